"""From a round's updates to the next models: pure work on files, so that it can be repeated with the same result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinfed.errors import shown
from twinfed.wire import Header, Refusal, TensorFile, Tensors, UpdateFile, blocks, hash_file, write_model, write_update
from twinfed.wire.tensors import Block, SumTensors, TensorWriter, block_count, model_specs

from .aggregation import Contribution, aggregate
from .config import FederationConfig
from .store import Store
from .strategies import Memory, Strategy

UNKEPT = ("content_hash", "provenance", "twinfed")  # metadata of the initial model that do not hold for later ones


class NotFiniteError(ArithmeticError):
    """A model that nobody could use: it is not stored."""


@dataclass(frozen=True)
class Published:
    """What comes out of a round.

    Args:
        models: cluster -> hash of its next model.
        weights: site -> its weight.
        memory: what the strategy remembers.
        deltas: (model, base, file): files that make a model of its base.
    """

    models: dict[str, str]
    weights: dict[str, float]
    memory: Memory
    deltas: list[tuple[str, str, str]]


def publish(
    store: Store,
    config: FederationConfig,
    strategy: Strategy,
    number: int,
    bases: Mapping[str, str],
    updates: Sequence[Contribution],
    memory: Memory,
) -> Published:
    """Aggregate the updates of a round, cluster by cluster, into files of the store.

    Args:
        bases: cluster -> hash of the model that the round began from.
        memory: as the last round left it.

    Raises:
        OSError: no space left, or a file that it begins from is damaged; nothing but whole files stays behind.
        NotFiniteError: the model would hold NaN or infinity.
    """
    _check_beginning(store, {*bases.values(), *states_of(memory)})
    groups, after = strategy.groups(updates, memory)
    result = Published(dict(bases), {}, {**after, "files": {}}, [])
    for cluster in sorted(set(groups.values())):
        members = [one for one in updates if groups[one.site] == cluster]
        weights = strategy.weights(members, memory)
        result.weights.update(weights)
        base = bases[members[0].cluster]
        kept = memory.get("files", {}).get(members[0].cluster, {})
        with store.temporary() as folder:
            compressed = not config.download.in_round(number).plain
            files = _aggregate(
                store, strategy, base, members, weights, kept, folder, _metadata(config, number, cluster)
            )
            if compressed:
                header = Header(federation=config.name, round=number, site="aggregator", base=base)
                delta = _compress(store, config, header, files, kept, folder)
            result.models[cluster] = store.keep(files.pop("model"))
            if compressed:
                result.deltas.append((result.models[cluster], base, store.keep(delta)))
            result.memory["files"][cluster] = {key: store.keep(path) for key, path in files.items()}
    for cluster, files_before in memory.get("files", {}).items():
        result.memory["files"].setdefault(cluster, files_before)
    return result


def first_model(config: FederationConfig, source: Path, target: Path) -> dict[str, tuple[int, ...]]:
    """Write the initial model as float32 with the federation's metadata; return the model's shapes.

    Raises:
        Refusal: it is no model, or holds NaN or infinity.
    """
    model = TensorFile(source)
    for name, index in blocks(model.shapes):
        if not np.isfinite(model.block(name, index)).all():
            raise Refusal("not-finite", f"Tensor {shown(name)} holds NaN or infinity.", "Train it again.")
    metadata = {key: text for key, text in model.metadata.items() if key not in UNKEPT}
    write_model(target, model, {**metadata, **_metadata(config, 0, "0")})
    return dict(model.shapes)


def _metadata(config: FederationConfig, number: int, cluster: str) -> dict[str, str]:
    facts = {"federation": config.name, "round": number, "cluster": cluster, "strategy": config.strategy["name"]}
    return {"twinfed": json.dumps(facts, sort_keys=True)}


def _aggregate(
    store: Store,
    strategy: Strategy,
    base: str,
    members: Sequence[Contribution],
    weights: Mapping[str, float],
    kept: Mapping[str, str],
    folder: Path,
    metadata: Mapping[str, str],
) -> dict[str, Path]:
    """Write the next model and state of one cluster into ``folder``: name -> path."""
    model = TensorFile(store.file(base))
    state = {key: TensorFile(store.file(kept[key])) for key in strategy.state if key in kept}
    files = {key: folder / key for key in ("model", *strategy.state)}
    specs = model_specs(model.shapes)
    with ExitStack() as stack:
        writers = {
            key: stack.enter_context(
                TensorWriter(path, specs, {**model.metadata, **metadata} if key == "model" else {})
            )
            for key, path in files.items()
        }

        def sink(key: str, name: str, block: Block) -> None:
            if not np.isfinite(block).all():
                raise NotFiniteError(f"Tensor {shown(name)} of the next {key} would hold NaN or infinity")
            writers[key].append(block)

        aggregate(strategy, model, members, weights, state, sink)
    return files


def _compress(
    store: Store,
    config: FederationConfig,
    header: Header,
    files: dict[str, Path],
    kept: Mapping[str, str],
    folder: Path,
) -> Path:
    """Replace the model by base + what sites will decode, and keep what was left out for the next round.

    So whoever applies the compressed change has the very bits of whoever fetches the whole model.
    """
    base, model = TensorFile(store.file(header.base)), TensorFile(files["model"])
    residual = dict(_Arrays(TensorFile(store.file(kept["residual"])))) if "residual" in kept else {}
    delta, published = folder / "delta", folder / "published"
    write_update(
        delta,
        _Arrays(model, base),
        header,
        config.download.in_round(header.round),
        residual=residual,
        seed=header.round,
        model_metadata={key: text for key, text in model.metadata.items() if base.metadata.get(key) != text},
    )
    write_model(published, SumTensors(base, UpdateFile(delta)), model.metadata)
    files["model"] = published
    files["residual"] = folder / "residual"
    with TensorWriter(files["residual"], model_specs(model.shapes), {}) as writer:
        for name in sorted(model.shapes):
            writer.append(residual[name].astype("<f4", copy=False))
    return delta


class _Arrays(Mapping[str, NDArray[np.float32]]):
    """A model's tensors, or their differences from a base, as arrays that are made when asked for."""

    def __init__(self, model: Tensors, base: Tensors | None = None) -> None:
        self._model, self._base = model, base

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        shape = self._model.shapes[name]
        parts = [self._block(name, index) for index in range(block_count(shape))]
        return np.concatenate([*parts, np.zeros(0, dtype=np.float32)]).reshape(shape)

    def _block(self, name: str, index: int) -> Block:
        block = self._model.block(name, index)
        return block if self._base is None else block - self._base.block(name, index)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._model.shapes))

    def __len__(self) -> int:
        return len(self._model.shapes)


def _check_beginning(store: Store, files: set[str]) -> None:
    """The models and states that a round begins from: a damaged one must not become the next one."""
    for digest in sorted(files):
        if not same_file(store.file(digest), digest):
            raise OSError(f"{store.file(digest)} is missing or damaged: put it back from a copy of the folder")


def states_of(memory: Memory) -> set[str]:
    """Hashes of the files that a strategy remembers."""
    return {digest for states in memory.get("files", {}).values() for digest in states.values()}


def same_file(path: Path, digest: str) -> bool:
    """Whether a file of the store is there and whole."""
    return path.is_file() and hash_file(path) == digest
