"""Update files: what a site sends after training, and what the aggregator sends instead of a whole model.

A safetensors file whose metadata hold one JSON text (``twinfed``): what it is, for which federation, round, site and
base model, and the site's report. One hash over the file thus covers all that is said. Nothing is ever unpickled.
The tensors are those of the model; where they are compressed there is one, ``payload``: a packed table of how to read
them, then their bytes in the order of their names. (A safetensors header and a table that is not packed would take more
than the values of a small network.)
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Refusal, shown
from .compression import CodedTensor, Compression, decode, encode, pack, unpack
from .messages import Report
from .tensors import (
    LARGEST_HEADER,
    LONGEST_NAME,
    MOST_TENSORS,
    Block,
    SumTensors,
    TensorFile,
    TensorSpec,
    TensorWriter,
    are_counts,
    hash_file,
    model_specs,
    parse_json,
    write_model,
)

FORMAT = 2
KEY = "twinfed"
MODEL_KEY = "twinfed_model"
PAYLOAD = "payload"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an update says of itself.

    Args:
        federation: its name.
        round: the round it is for.
        site: who sends it.
        base: hash of the model that the change is to be added to.
        report: the site's numbers.
    """

    federation: str
    round: int
    site: str
    base: str
    report: Report = field(default_factory=lambda: Report(samples=1))

    def to_dict(self) -> dict[str, Any]:
        return {
            "federation": self.federation,
            "round": self.round,
            "site": self.site,
            "base": self.base,
            "report": self.report.to_dict(),
        }


def write_update(
    path: str | Path,
    delta: Mapping[str, NDArray[np.float32]],
    header: Header,
    how: Compression | None = None,
    *,
    residual: dict[str, NDArray[np.float32]] | None = None,
    seed: int | None = None,
    model_metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an update: the change from the base model to the local one.

    Error feedback (Seide et al. 2014; Karimireddy et al. 2019): ``residual`` holds what earlier updates left out. It
    is added to the change before coding, and afterwards holds what this one left out, so that nothing is lost over
    the rounds: what was sent and what is held back add up to what was trained. Keep it with the site's state.

    Args:
        path: the file to write; it is forced to disk.
        delta: name -> change, float32, the shapes of the model.
        header: what the update says of itself.
        how: the stages of compression; without it the tensors are stored as they are.
        residual: name -> what was held back; changed in place. Leave it out to let what is left out go.
        seed: of the stochastic rounding; random if left out.
        model_metadata: what the metadata of the model that comes out have other than its base's, for
            :func:`apply_update`.

    Raises:
        InputError: the change holds NaN or infinity.
        OSError: no space left; nothing half-written stays behind.
    """
    how, random = how or Compression(), np.random.default_rng(seed)
    description: dict[str, Any] = {"format": FORMAT, **header.to_dict()}
    specs, table, held = model_specs({name: array.shape for name, array in delta.items()}), {}, {}
    with tempfile.TemporaryFile(dir=Path(path).parent) as content:
        for name in specs:
            change = delta[name].astype(np.float32, copy=False)
            if residual is not None and name in residual:
                change = change + residual[name]
            if how.plain:
                content.write(np.ascontiguousarray(change, dtype="<f4").data)
                continue
            coded_bytes, coded = encode(change, how, random)
            content.write(coded_bytes)
            table[name] = coded.to_dict()
            if residual is not None:
                held[name] = change - _decoded(coded_bytes, coded)
        packed = b""
        if not how.plain:
            text = _json(table).encode()
            packed = pack(text)
            description["table"] = [len(packed), len(text)]
            specs = {PAYLOAD: TensorSpec("U8", (len(packed) + content.tell(),))}
        metadata = {KEY: _json(description), **({MODEL_KEY: _json(dict(model_metadata))} if model_metadata else {})}
        with TensorWriter(path, specs, metadata) as out:
            out.append(packed)
            _copy(content, out)
    if residual is not None:
        residual.clear()
        residual.update(held)


class UpdateFile:
    """An update, read a block at a time: ``header``, ``shapes`` and ``block(name, index)``.

    Raises:
        Refusal: malformed, damaged, or a number in it that cannot be.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = TensorFile(path)
        description = parse_json(self._file.metadata.get(KEY, "").encode())
        if description.get("format") != FORMAT:
            raise Refusal(
                "unknown-format",
                f"The update has format {shown(description.get('format'))}; {FORMAT} is read.",
                "Update the program that is older.",
            )
        self.header = _read_header(description)
        told = description.get("table")
        self._coded, self._starts = ({}, {}) if told is None else _read_table(self._file, told)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: coded.shape for name, coded in self._coded.items()} if self._coded else self._file.shapes

    @property
    def model_metadata(self) -> dict[str, str]:
        return {key: str(text) for key, text in parse_json(self._file.metadata.get(MODEL_KEY, "{}").encode()).items()}

    @property
    def dtypes(self) -> Mapping[str, str]:
        """Stored type of the tensors, where they are not compressed."""
        return {} if self._coded else {name: spec.dtype for name, spec in self._file.specs.items()}

    def block(self, name: str, index: int) -> Block:
        if not self._coded:
            return self._file.block(name, index)
        return decode(self._file.raw(PAYLOAD), self._coded[name], index, self._starts[name][index])


def apply_update(base: str | Path, update: str | Path, result: str | Path) -> str:
    """Write the model that an aggregator's update makes of its base; return its hash, which must be the published one.

    Raises:
        Refusal: a file is malformed, or they do not belong together.
    """
    model, change = TensorFile(base), UpdateFile(update)
    if change.header.base != hash_file(base) or change.shapes != model.shapes:
        raise Refusal("stale-base", "The update starts from another model.", "Fetch the whole model instead.")
    write_model(result, SumTensors(model, change), {**model.metadata, **change.model_metadata})
    return hash_file(result)


def _read_header(description: dict[str, Any]) -> Header:
    for name, kind in (("federation", str), ("round", int), ("site", str), ("base", str)):
        if type(description.get(name)) is not kind:
            raise _malformed(name)
    return Header(
        federation=description["federation"],
        round=description["round"],
        site=description["site"],
        base=description["base"],
        report=Report.from_dict(description.get("report")),
    )


def _read_table(file: TensorFile, sizes: Any) -> tuple[dict[str, CodedTensor], dict[str, tuple[int, ...]]]:
    """How a stranger's compressed tensors are to be read, and where in the payload the blocks of each begin."""
    if not are_counts(sizes) or len(sizes) != 2 or not 0 < sizes[1] <= LARGEST_HEADER:
        raise _malformed("table")
    spec = file.specs.get(PAYLOAD, TensorSpec("U8", (0,)))
    if len(file.specs) != 1 or spec.dtype != "U8" or not 0 < sizes[0] <= spec.nbytes:
        raise _malformed("payload")
    entries = parse_json(unpack(file.raw(PAYLOAD)[: sizes[0]], sizes[1]))
    if not 0 < len(entries) <= MOST_TENSORS or max(map(len, entries)) > LONGEST_NAME:
        raise _malformed("table of tensors")
    coded = {name: CodedTensor.from_dict(entries[name]) for name in sorted(entries)}
    starts: dict[str, tuple[int, ...]] = {}
    end = sizes[0]
    for name, one in coded.items():
        starts[name] = _starts(one, end)
        end += one.nbytes
    if end != spec.nbytes:
        raise _malformed("payload's length")
    return coded, starts


def _starts(coded: CodedTensor, first: int = 0) -> tuple[int, ...]:
    sizes = [first, *(gaps + values for _, gaps, values in coded.blocks)]
    return tuple(int(start) for start in np.cumsum(sizes))


def _decoded(content: bytes, coded: CodedTensor) -> NDArray[np.float32]:
    """A whole tensor as the receiver will read it."""
    payload, starts = np.frombuffer(content, dtype=np.uint8), _starts(coded)
    parts = [decode(payload, coded, index, starts[index]) for index in range(len(coded.blocks))]
    return np.concatenate([*parts, np.zeros(0, dtype=np.float32)]).reshape(coded.shape)


def _copy(content: IO[bytes], out: TensorWriter) -> None:
    content.seek(0)
    while piece := content.read(2**20):
        out.append(piece)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _malformed(field_name: str) -> Refusal:
    return Refusal("malformed", f"The update's {field_name} cannot be read.", "Encode and send it again.")
