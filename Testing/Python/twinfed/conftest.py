"""A small federation for the tests: a model of three tensors, sites with tokens, updates of a given seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from twinfed.aggregator.config import FederationConfig
from twinfed.aggregator.rounds import Federation
from twinfed.aggregator.store import Store
from twinfed.wire import ArrayTensors, Header, Report, TensorFile, hash_file, write_model, write_update

SHAPES = {"decoder.weight": (70_001,), "encoder.bias": (5,), "encoder.weight": (3, 4, 5)}  # the first takes two blocks


@dataclass
class Clock:
    """Seconds since 1970 that pass when a test says so."""

    time: float = 1_000_000_000.0

    def __call__(self) -> float:
        return self.time


@dataclass
class Room:
    """A federation in a folder, and what a test does with it."""

    folder: Path
    clock: Clock = field(default_factory=Clock)
    options: dict[str, Any] = field(default_factory=dict)
    store: Store = field(init=False)
    federation: Federation = field(init=False)

    def __post_init__(self) -> None:
        model = self.folder / "initial.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_model(model, ArrayTensors(arrays(0)), {"task": "a task", "content_hash": "of the initial model"})
        self.config = FederationConfig.from_dict(
            {"name": "trial", "task": "brats-glioma", "network": "small", "model": str(model), **self.options}
        )
        self.open()

    def open(self) -> None:
        """Start, or start again, as a new process would."""
        self.store = Store(self.folder / "aggregator", self.clock)
        self.federation = Federation(self.store, self.config)

    def join(self, *names: str, samples: int = 10) -> None:
        for name in names:
            self.federation.accounts.add(name)
            self.federation.accounts.register(name, samples)

    def update(
        self, site: str, seed: int, change: dict[str, NDArray[np.float32]] | None = None, /, **options: Any
    ) -> Path:
        """Write the update of a site for the round that is open."""
        current = self.federation.instructions(site)
        facts = {"federation": "trial", "round": current["round"], "site": site, "base": current["base"]}
        report = options.pop("report", Report(samples=10, dice_before=0.5 + seed / 1000))
        facts |= {key: options.pop(key) for key in list(facts) if key in options}
        path = self.folder / f"{site}.{seed}.update"
        write_update(path, change or arrays(seed, 0.01), Header(**facts, report=report), **options)
        return path

    def send(self, site: str, path: Path, number: int | None = None) -> dict[str, Any]:
        """Hand an update to the federation without HTTP; ``path`` is gone afterwards."""
        number = number or self.federation.current()["number"]
        self.federation.check_may_send(site, number, hash_file(path))
        return self.federation.receive(site, number, hash_file(path), path)

    def model(self, number: int, cluster: str = "0") -> dict[str, NDArray[np.float32]]:
        """The model that round ``number`` began from."""
        import json

        row = self.store.row("SELECT bases FROM rounds WHERE number = ?", number)
        assert row is not None
        return read(self.store.file(json.loads(row["bases"])[cluster]))


def arrays(seed: int, scale: float = 1.0) -> dict[str, NDArray[np.float32]]:
    """Tensors of the test model's shapes, normally distributed."""
    random = np.random.default_rng(seed)
    return {name: (scale * random.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}


def read(path: Path) -> dict[str, NDArray[np.float32]]:
    """A model file's tensors, by the format's own library: what we write, everybody can read."""
    from safetensors.numpy import load_file

    assert TensorFile(path).shapes == SHAPES
    return load_file(path)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Callable[..., Room]]:
    """Make a federation: ``room(rounds=2, strategy={...})``, sites s1, s2, s3."""
    made: list[Room] = []

    def make(*, sites: tuple[str, ...] = ("s1", "s2", "s3"), samples: int = 10, **options: Any) -> Room:
        made.append(Room(tmp_path / f"room{len(made)}", options={"quorum": 3, **options}))
        made[-1].join(*sites, samples=samples)
        return made[-1]

    yield make
    for one in made:
        one.store.close()


@pytest.fixture
def tensors() -> Callable[..., dict[str, NDArray[np.float32]]]:
    """Tensors of the test model's shapes: ``tensors(seed, scale)``."""
    return arrays
