"""Making updates small: sparsification, quantisation and entropy coding of one tensor, and back.

FedSegNet (section 6.5) names the first two: only the largest entries are sent, and in 8 or 16 bits. The order is
sparsify -> quantise -> entropy-code; each stage may be left out. A tensor is coded in blocks of ``BLOCK`` elements that
are decoded one by one, so that memory is bounded by a block, and a frame that claims to be larger is refused unread.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from ..errors import InputError, Refusal
from .tensors import BLOCK, Block, are_counts

SMALL = 1024
"""Entries up to which top-k leaves a tensor whole: biases and normalisations, which a network feels most, and which are
less than 1 % of one of usual size."""
LEVEL = 3  # of zstandard: higher ones gain under 1 % on quantised updates and cost many times the time
LARGEST_WINDOW = 2**23  # bytes of history that a frame may ask for
VALUES: dict[int, np.dtype[Any]] = {1: np.dtype("i1"), 8: np.dtype("i1"), 16: np.dtype("<i2"), 32: np.dtype("<f4")}
GAPS: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2")}


@dataclass(frozen=True, kw_only=True)
class Compression:
    """What is done to each tensor of an update.

    Args:
        keep: the share of entries that is sent of each tensor that is not `SMALL`, those of largest magnitude (top-k);
            1 sends all.
        threshold: entries of smaller magnitude are not sent; 0 sends all.
        bits: 32 sends float32, 16 and 8 send integers with one scale a tensor, rounded at random without bias; 1 sends
            signs, which stand for the mean magnitude of the tensor's entries that are sent (sparse ternary compression:
            Sattler et al. 2019, algorithm 1). Adam changes most weights by about as much, so that many signs tell more
            than few numbers. Tensors that are `SMALL` are sent in 8 bits then.
        entropy: whether zstandard packs the result.
        warm_up: first rounds in which more is sent, see `in_round`: a model that begins with random weights moves as a
            whole at first.

    Raises:
        InputError: a value out of range.
    """

    keep: float = 1.0
    threshold: float = 0.0
    bits: int = 32
    entropy: bool = False
    warm_up: int = 0

    def __post_init__(self) -> None:
        possible = 0 < self.keep <= 1 and 0 <= self.threshold < math.inf and self.bits in VALUES
        if not possible or type(self.warm_up) is not int or self.warm_up < 0:
            raise InputError(
                f"Compression {self} is not possible: keep is above 0 and at most 1, threshold and warm_up not "
                f"negative, bits one of 8, 16, 32. Correct it."
            )

    @property
    def plain(self) -> bool:
        """Whether tensors stay as they are: float32, all entries."""
        return self == Compression()

    def in_round(self, number: int) -> Compression:
        """What is done in a round, counted from 1: `keep` falls to its value by equal factors, and stays there.

        Warm-up training of Deep Gradient Compression (Lin et al. 2018, section 3.3).
        """
        return replace(self, keep=self.keep ** min(1.0, number / (self.warm_up + 1)), warm_up=0)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class CodedTensor:
    """A tensor's bytes and what is needed to read them.

    ``blocks`` holds for each block the number of values and the bytes of its gaps (0: none) and of its values.
    ``gap`` is the width of a gap in bytes, 0 where all entries are stored; a gap counts the entries left out before a
    value.
    """

    shape: tuple[int, ...]
    bits: int
    scale: float
    gap: int
    entropy: bool
    blocks: tuple[tuple[int, int, int], ...]

    @property
    def nbytes(self) -> int:
        return sum(gaps + values for _, gaps, values in self.blocks)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "blocks": [number for block in self.blocks for number in block]}

    @classmethod
    def from_dict(cls, entry: Any) -> CodedTensor:
        """Read and verify an entry that a stranger wrote.

        Raises:
            Refusal: it breaks the format, or claims more than the tensor can hold.
        """
        if not isinstance(entry, dict) or entry.keys() != {"shape", "bits", "scale", "gap", "entropy", "blocks"}:
            raise _damaged("an entry lacks a field or has one too many")
        scale, numbers, shape = entry["scale"], entry["blocks"], entry["shape"]
        if not are_counts(numbers) or not are_counts(shape) or len(shape) > 8 or type(entry["entropy"]) is not bool:
            raise _damaged("an entry's numbers are not natural numbers")
        count = math.prod(shape)
        if type(entry["bits"]) is not int or entry["bits"] not in VALUES or type(entry["gap"]) is not int:
            raise _damaged("unknown bits")
        if entry["gap"] not in (0, 1, 2) or len(numbers) != 3 * -(-count // BLOCK):
            raise _damaged("its blocks do not fit its shape")
        if type(scale) not in (int, float) or not 0 <= scale < 1e30:
            raise _damaged("the scale is no finite number")
        rows = tuple(zip(numbers[0::3], numbers[1::3], numbers[2::3], strict=True))
        coded = cls(tuple(shape), entry["bits"], float(scale), entry["gap"], entry["entropy"], rows)
        for index, (values, _, _) in enumerate(rows):
            if values > coded.length(index) or (coded.gap == 0 and values != coded.length(index)):
                raise _damaged("a block has more values than entries")
        return coded

    def length(self, index: int) -> int:
        """Entries of a block: ``BLOCK``, fewer in the last."""
        return min(BLOCK, math.prod(self.shape) - index * BLOCK)


def encode(tensor: NDArray[np.float32], how: Compression, random: np.random.Generator) -> tuple[bytes, CodedTensor]:
    """Code a float32 tensor of any shape; what comes back from :func:`decode` is what the receiver sees.

    In 8 and 16 bits the error of an entry that is sent is below ``scale`` (the largest magnitude over 127 or 32767),
    and zero on average because rounding goes up with the probability of the fraction (stochastic rounding).

    Raises:
        InputError: the tensor holds NaN or infinity.
    """
    flat = np.ascontiguousarray(tensor, dtype=np.float32).reshape(-1)
    if not math.isfinite(float(np.max(np.abs(flat), initial=0.0))):
        raise InputError("An update holds NaN or infinity and is not sent. Train again from the global model.")
    bits = 8 if how.bits == 1 and flat.size <= SMALL else how.bits
    kept = _kept(flat, how)
    if kept is not None:
        flat = np.where(kept, flat, np.float32(0))
    gap, scale = _gap_width(flat, kept, bits), _scale(flat, bits)
    payload, rows = [], []
    for start in range(0, flat.size, BLOCK):
        values = _quantise(flat[start : start + BLOCK], scale, bits, random)
        gaps = b""
        if gap:
            values, gaps = _close_up(values, gap)
        stored = np.packbits(values > 0) if bits == 1 else values
        parts = [pack(gaps, how.entropy), pack(stored.tobytes(), how.entropy)]
        rows.append((values.size, len(parts[0]), len(parts[1])))
        payload += parts
    return b"".join(payload), CodedTensor(tensor.shape, bits, scale, gap, how.entropy, tuple(rows))


def decode(payload: NDArray[np.uint8], coded: CodedTensor, index: int, start: int) -> Block:
    """Decode block ``index``, whose bytes begin at ``start`` of the payload.

    Raises:
        Refusal: the bytes break the format.
    """
    count, gap_bytes, value_bytes = coded.blocks[index]
    middle = start + gap_bytes
    dtype = VALUES[coded.bits]
    stored = -(-count // 8) if coded.bits == 1 else count * dtype.itemsize
    values = np.frombuffer(unpack(payload[middle : middle + value_bytes], stored, coded.entropy), dtype=dtype)
    if coded.bits == 1:
        values = 2 * np.unpackbits(values.view(np.uint8), count=count).astype(np.int8) - 1
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are found by the checks
        real = values.astype(np.float32) if coded.bits == 32 else values * np.float32(coded.scale)
    if coded.gap == 0:
        return real.astype(np.float32, copy=False)
    packed = unpack(payload[start:middle], count * coded.gap, coded.entropy)
    positions = np.cumsum(np.frombuffer(packed, dtype=GAPS[coded.gap]).astype(np.int64) + 1) - 1
    block = np.zeros(coded.length(index), dtype=np.float32)
    if positions.size and positions[-1] >= block.size:
        raise _damaged("a value lies outside its tensor")
    block[positions] = real
    return block


def _kept(flat: NDArray[np.float32], how: Compression) -> NDArray[np.bool_] | None:
    """Which entries are sent; None where all are."""
    keep = 1.0 if flat.size <= SMALL else how.keep
    if keep == 1 and how.threshold == 0:
        return None
    magnitude = np.abs(flat)
    kept = magnitude >= how.threshold
    count = max(1, round(keep * flat.size))
    if count < flat.size:
        top = np.zeros(flat.size, dtype=bool)
        top[np.argpartition(magnitude, flat.size - count)[flat.size - count :]] = True
        kept &= top
    return kept


def _gap_width(flat: NDArray[np.float32], kept: NDArray[np.bool_] | None, bits: int) -> int:
    """Bytes of a gap; 0 where all entries are stored. A sign cannot bridge a gap that is too long, as a zero can."""
    density = np.count_nonzero(flat if bits == 1 or kept is None else kept) / max(flat.size, 1)
    if bits == 1:
        longest = int(np.max(np.diff(np.flatnonzero(flat), prepend=-1), initial=0)) - 1
        return 0 if density == 1 else 1 if longest < 256 else 2
    return 0 if kept is None or density > 0.5 else 1 if density > 0.005 else 2


def _scale(flat: NDArray[np.float32], bits: int) -> float:
    """What a quantised 1 stands for."""
    if bits == 32:
        return 1.0
    magnitude = np.abs(flat)
    if bits == 1:
        return float(np.mean(magnitude, where=magnitude > 0, dtype=np.float64)) if magnitude.any() else 0.0
    return float(np.max(magnitude, initial=0.0)) / (2 ** (bits - 1) - 1)


def _quantise(block: Block, scale: float, bits: int, random: np.random.Generator) -> NDArray[Any]:
    """Signs, or stochastic rounding: q = floor(x / scale + u) with u uniform in [0, 1)."""
    dtype = VALUES[bits]
    if bits in (1, 32):
        return (np.sign(block) if bits == 1 else block).astype(dtype)
    if scale == 0:
        return np.zeros(block.shape, dtype=dtype)
    limit = 2 ** (bits - 1) - 1
    raised = block.astype(np.float64) / scale + random.random(block.size)
    quantised = np.clip(np.floor(raised), -limit, limit)
    return np.where(block == 0, 0, quantised).astype(dtype)  # a zero stays a zero: it is not sent


def _close_up(values: NDArray[Any], width: int) -> tuple[NDArray[Any], bytes]:
    """The values that are not zero, and the gaps before them; a gap too long for its width is bridged by zeros."""
    positions = np.flatnonzero(values)
    gaps = np.diff(positions, prepend=-1) - 1
    reach = 256**width
    bridges = gaps // reach
    places = np.cumsum(bridges + 1) - 1
    total = int(places[-1]) + 1 if places.size else 0
    out_values = np.zeros(total, dtype=values.dtype)
    out_gaps = np.full(total, reach - 1, dtype=GAPS[width])
    out_values[places] = values[positions]
    out_gaps[places] = gaps % reach
    return out_values, out_gaps.tobytes()


def pack(content: bytes, entropy: bool = True) -> bytes:
    """A frame of zstandard, if so wished."""
    if not entropy or not content:
        return content
    return zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(content)


def unpack(piece: NDArray[np.uint8], expected: int, entropy: bool = True) -> bytes:
    """The ``expected`` bytes of a piece; whatever its frame claims, no more than that is ever allocated.

    Raises:
        Refusal: it holds other than that.
    """
    content = piece.tobytes()
    if entropy and expected:
        try:
            if zstandard.frame_content_size(content) != expected:
                raise _damaged("a block unpacks to another size than it should")
            unpacker = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
            content = unpacker.decompress(content, max_output_size=expected, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise _damaged("a block does not unpack") from error
    if len(content) != expected:
        raise _damaged("a block has another length than it should")
    return content


def _damaged(why: str) -> Refusal:
    return Refusal("malformed", f"The compressed update cannot be read: {why}.", "Encode and send it again.")
