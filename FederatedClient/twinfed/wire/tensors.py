"""Tensors in files: the safetensors format, read within bounds and written as a stream.

The reader is our own because files come from strangers: it never allocates what a header claims, refuses duplicate
names, overlaps and gaps, and maps the file so that a block of a tensor costs a block of memory.
The format is that of https://github.com/huggingface/safetensors: 8 bytes of header length (little-endian), a JSON
header, then the tensors' bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import Refusal, shown

BLOCK = 65_536  # elements: the unit in which tensors are read, encoded and aggregated
LARGEST_HEADER = 4 * 2**20  # bytes; 20,000 blocks of a compressed update take about 0.5 MB
MOST_TENSORS = 20_000
LONGEST_NAME = 300  # characters
MOST_AXES = 8
MOST_ELEMENTS = 2**40
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "U8": np.dtype("u1")}

Block = NDArray[np.float32]


@dataclass(frozen=True)
class TensorSpec:
    """Type (safetensors' name) and shape of a stored tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * DTYPES[self.dtype].itemsize


class Tensors(Protocol):
    """Named float32 tensors that are read a block of ``BLOCK`` elements at a time: a model, or a change to one."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def block(self, name: str, index: int) -> Block:
        """Elements ``index * BLOCK`` to ``(index + 1) * BLOCK`` (or the end) of the flattened tensor, read-only."""
        ...


@dataclass(frozen=True)
class ArrayTensors:
    """Tensors in memory: what a simulation or another engine hands over. Every array is float32, C-contiguous."""

    arrays: Mapping[str, NDArray[Any]]

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.arrays.items()}

    def block(self, name: str, index: int) -> Block:
        flat = self.arrays[name].reshape(-1)
        return flat[index * BLOCK : (index + 1) * BLOCK].astype(np.float32, copy=False)


@dataclass(frozen=True)
class SumTensors:
    """A model plus a change to it, in float32: the aggregator and the sites get the same bits."""

    base: Tensors
    delta: Tensors

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self.base.shapes

    def block(self, name: str, index: int) -> Block:
        return self.base.block(name, index) + self.delta.block(name, index)


class TensorFile:
    """A safetensors file, mapped read-only. F16 tensors are widened to float32 as they are read.

    Raises:
        Refusal: not a safetensors file, cut short, or a header that breaks the format or the bounds above.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        size = self.path.stat().st_size
        with open(self.path, "rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length < 2 or length > LARGEST_HEADER or length + 8 > size:
                raise _malformed("it is not a safetensors file, or cut short")
            header = parse_json(file.read(length))
        self.metadata, self.specs, self._starts = _read_header(header, data=size - 8 - length)
        self._data = np.asarray(np.memmap(self.path, dtype=np.uint8, mode="r"))  # slices of a memmap itself are slow
        self._offset = 8 + length

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: spec.shape for name, spec in self.specs.items()}

    def raw(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes, as a view on the file."""
        start = self._offset + self._starts[name]
        return self._data[start : start + self.specs[name].nbytes]

    def block(self, name: str, index: int) -> Block:
        spec = self.specs[name]
        dtype, first = DTYPES[spec.dtype], index * BLOCK
        start = self._offset + self._starts[name] + first * dtype.itemsize
        piece = np.frombuffer(self._data, dtype, min(BLOCK, spec.count - first), start)
        return piece.astype(np.float32, copy=False)


class TensorWriter:
    """Write a safetensors file front to back: the header at once, then the tensors' bytes in the order of ``specs``.

    Leaving the ``with`` block forces the file to disk; leaving it by an exception removes the file.
    """

    def __init__(self, path: str | Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> None:
        self.path = Path(path)
        self._expected = sum(spec.nbytes for spec in specs.values())
        self._header = _write_header(specs, metadata)

    def __enter__(self) -> TensorWriter:
        self._file = open(self.path, "wb")
        try:
            self._file.write(self._header)
        except OSError:
            self.__exit__(OSError)
            raise
        return self

    def append(self, values: NDArray[Any] | bytes) -> None:
        self._file.write(values if isinstance(values, bytes) else np.ascontiguousarray(values).data)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                if self._file.tell() != len(self._header) + self._expected:
                    raise RuntimeError(f"{self.path}: wrote other than the {self._expected} bytes of the header")
                self._file.flush()
                os.fsync(self._file.fileno())
        except BaseException as error:
            kind = type(error)
            raise
        finally:
            try:
                self._file.close()  # may try to write what is left, and find the disk full again
            finally:
                if kind is not None:
                    self.path.unlink(missing_ok=True)


def model_specs(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorSpec]:
    """How a model of these shapes is stored: float32, in the order of the names."""
    return {name: TensorSpec("F32", tuple(shapes[name])) for name in sorted(shapes)}


def blocks(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, int]]:
    """Every block of a model, in the order of the names: (name, index)."""
    for name in sorted(shapes):
        for index in range(block_count(shapes[name])):
            yield name, index


def block_count(shape: tuple[int, ...]) -> int:
    return -(-math.prod(shape) // BLOCK)


def write_model(path: str | Path, tensors: Tensors, metadata: Mapping[str, str]) -> None:
    """Store tensors as a float32 model file; equal tensors and metadata give equal bytes."""
    with TensorWriter(path, model_specs(tensors.shapes), metadata) as writer:
        for name, index in blocks(tensors.shapes):
            writer.append(tensors.block(name, index).astype("<f4", copy=False))


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest, buffer = hashlib.sha256(), bytearray(2**18)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def parse_json(content: bytes) -> dict[str, Any]:
    """A JSON object from a stranger: no name twice, no NaN or infinity, no deeper than Python's recursion limit.

    Raises:
        Refusal: it is none.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            raise ValueError("a name occurs twice")
        return result

    def no_constant(text: str) -> None:
        raise ValueError(f"{text} is not a number")

    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=once, parse_constant=no_constant)
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
    except (ValueError, RecursionError) as error:
        raise _malformed(f"its JSON cannot be read ({shown(error)})") from error
    return value


def _read_header(header: dict[str, Any], data: int) -> tuple[dict[str, str], dict[str, TensorSpec], dict[str, int]]:
    """Metadata, specs and starts of the tensors, in the order of the file; they must fill its ``data`` bytes."""
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _malformed("its metadata are not text")
    if len(header) > MOST_TENSORS:
        raise _malformed(f"it lists {len(header)} tensors; at most {MOST_TENSORS} are read")
    found = sorted((_read_entry(name, entry) for name, entry in header.items()), key=lambda item: (item[2], item[3]))
    end = 0
    for name, _, first, last in found:
        if first != end:
            raise _malformed(f"tensor {shown(name)} overlaps another or leaves a gap")
        end = last
    if end != data:
        raise _malformed(f"its tensors take {end} bytes, but {data} are there")
    return metadata, {name: spec for name, spec, _, _ in found}, {name: first for name, _, first, _ in found}


def _read_entry(name: str, entry: Any) -> tuple[str, TensorSpec, int, int]:
    if len(name) > LONGEST_NAME or not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _malformed(f"the entry of tensor {shown(name)} breaks the format")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise Refusal(
            "wrong-dtype", f"Tensor {shown(name)} is {shown(dtype)}.", f"Send one of {', '.join(DTYPES)}, as asked for."
        )
    if not are_counts(shape) or len(shape) > MOST_AXES or not are_counts(offsets) or len(offsets) != 2:
        raise _malformed(f"shape or offsets of tensor {shown(name)} are no small natural numbers")
    spec = TensorSpec(dtype, tuple(shape))
    if spec.count > MOST_ELEMENTS or offsets[1] - offsets[0] != spec.nbytes:
        raise _malformed(f"shape and bytes of tensor {shown(name)} disagree")
    return name, spec, offsets[0], offsets[1]


def are_counts(value: Any) -> bool:
    """Whether a value is a list of natural numbers that fit into 53 bits."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**53 for item in value)


def _write_header(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name, spec in specs.items():
        header[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, offset + spec.nbytes]}
        offset += spec.nbytes
    content = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    content += b" " * (-len(content) % 8)  # tensors start at a multiple of eight
    if len(content) > LARGEST_HEADER:
        raise Refusal("header-too-large", "The model has too many tensors or too much text.", "Shorten its metadata.")
    return len(content).to_bytes(8, "little") + content


def _malformed(why: str) -> Refusal:
    return Refusal("malformed", f"The file cannot be read: {why}.", "Encode and send it again.")
