"""Tensor files, compression and reports: what goes in comes out, within the bounds that are promised."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from twinfed.wire import (
    BLOCK,
    ArrayTensors,
    Compression,
    Header,
    InputError,
    Refusal,
    Report,
    TensorFile,
    UpdateFile,
    apply_update,
    blocks,
    hash_file,
    write_model,
    write_update,
)
from twinfed.wire.compression import SMALL, CodedTensor, decode, encode
from twinfed.wire.messages import thousandths

HEADER = Header(federation="trial", round=1, site="s1", base="0" * 64, report=Report(samples=4))
FLOATS = st.floats(-1e3, 1e3, width=32)
TENSORS = arrays(
    np.float32, st.one_of(st.just((0,)), st.tuples(st.integers(1, 40), st.integers(1, 9))), elements=FLOATS
)
STAGES = st.builds(
    Compression,
    keep=st.sampled_from([1.0, 0.5, 0.1, 0.001]),
    threshold=st.sampled_from([0.0, 0.0, 1.0]),
    bits=st.sampled_from([1, 8, 16, 32]),
    entropy=st.booleans(),
)


def decoded(content: bytes, coded: CodedTensor) -> NDArray[np.float32]:
    """A coded tensor, read as a receiver reads it: from JSON and bytes."""
    again = CodedTensor.from_dict(json.loads(json.dumps(coded.to_dict())))
    starts = np.cumsum([0, *(gaps + values for _, gaps, values in again.blocks)])
    payload = np.frombuffer(content, dtype=np.uint8)
    parts = [decode(payload, again, index, int(starts[index])) for index in range(len(again.blocks))]
    return np.concatenate([*parts, np.zeros(0, np.float32)]).reshape(again.shape)


def whole(update: UpdateFile) -> dict[str, NDArray[np.float32]]:
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in update.shapes}
    for name, index in blocks(update.shapes):
        parts[name].append(update.block(name, index))
    return {name: np.concatenate(some).reshape(update.shapes[name]) for name, some in parts.items()}


@given(TENSORS, STAGES, st.integers(0, 2**32))
def test_each_entry_comes_back_within_the_scale(tensor: NDArray[np.float32], how: Compression, seed: int) -> None:
    content, coded = encode(tensor, how, np.random.default_rng(seed))

    result = decoded(content, coded)

    assert result.shape == tensor.shape
    assert result.dtype == np.float32
    sent = result != 0
    bound = 0 if how.bits == 32 else coded.scale * (1 + 1e-5)
    assert np.all(np.abs(result - tensor)[sent] <= bound)
    assert np.all(np.abs(tensor)[sent] >= how.threshold - bound)


@given(TENSORS)
def test_without_sparsification_at_32_bits_nothing_is_lost(tensor: NDArray[np.float32]) -> None:
    content, coded = encode(tensor, Compression(entropy=True), np.random.default_rng(0))

    assert np.array_equal(decoded(content, coded), tensor)


@given(st.integers(SMALL + 1, 3_000), st.floats(0.001, 1.0), st.integers(0, 2**32))
def test_top_k_sends_the_largest(size: int, keep: float, seed: int) -> None:
    tensor = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    content, coded = encode(tensor, Compression(keep=keep), np.random.default_rng(0))

    result = decoded(content, coded)

    wanted = np.sort(np.abs(tensor))[::-1][: max(1, round(keep * size))]
    assert np.array_equal(np.sort(np.abs(result[result != 0]))[::-1], wanted)


@given(st.integers(SMALL + 1, 3 * BLOCK), st.sampled_from([0.0002, 0.01, 0.3, 1.0]), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_one_bit_sends_signs_and_their_mean_magnitude(size: int, keep: float, seed: int) -> None:
    tensor = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    tensor[: size // 2] *= np.random.default_rng(seed + 1).random() < 0.5  # a long gap, or none
    content, coded = encode(tensor, Compression(keep=keep, bits=1, entropy=True), np.random.default_rng(0))

    result = decoded(content, coded)

    sent = result != 0
    assert np.count_nonzero(sent) == min(max(1, round(keep * size)), np.count_nonzero(tensor))
    assert np.array_equal(np.sign(result)[sent], np.sign(tensor)[sent])
    assert np.allclose(np.abs(result)[sent], np.abs(tensor)[sent].mean(), rtol=1e-5)


def test_one_bit_takes_half_the_bytes_of_eight() -> None:
    tensor = np.random.default_rng(0).standard_normal(300_000).astype(np.float32)
    one, eight = (
        encode(tensor, Compression(keep=0.1, bits=bits, entropy=True), np.random.default_rng(0))[0] for bits in (1, 8)
    )

    assert len(one) < 0.6 * len(eight)
    assert len(one) < 0.02 * tensor.nbytes


def test_top_k_leaves_small_tensors_whole() -> None:
    tensor = np.random.default_rng(0).standard_normal(SMALL).astype(np.float32)

    content, coded = encode(tensor, Compression(keep=0.01), np.random.default_rng(0))

    assert np.array_equal(decoded(content, coded), tensor)


@pytest.mark.parametrize("density", [0.9, 0.3, 0.02, 0.0001])
def test_sparse_tensors_of_several_blocks_come_back(density: float) -> None:
    random = np.random.default_rng(1)
    tensor = np.where(random.random(3 * BLOCK + 17) < density, random.standard_normal(3 * BLOCK + 17), 0).astype("f4")
    tensor[-1] = 1e-3

    content, coded = encode(tensor, Compression(threshold=1e-6, entropy=True), random)

    assert np.array_equal(decoded(content, coded), tensor)


@pytest.mark.parametrize("bits", [8, 16])
def test_rounding_is_without_bias(bits: int) -> None:
    tensor = np.full(200_000, 0.3456789e-3, dtype=np.float32)
    tensor[0] = 1.0  # sets the scale: the others lie between two steps

    content, coded = encode(tensor, Compression(bits=bits), np.random.default_rng(2))

    mean = decoded(content, coded)[1:].mean(dtype=np.float64)
    spread = coded.scale / 2 / np.sqrt(tensor.size)
    assert abs(mean - 0.3456789e-3) < 5 * spread


@settings(deadline=None, max_examples=25)
@given(st.lists(TENSORS.filter(lambda tensor: tensor.size > 0), min_size=1, max_size=1), STAGES, st.integers(2, 5))
def test_error_feedback_conserves_the_sum(
    tmp_path_factory: pytest.TempPathFactory, tensor: list[NDArray[np.float32]], how: Compression, rounds: int
) -> None:
    path = tmp_path_factory.mktemp("feedback") / "update"
    residual: dict[str, NDArray[np.float32]] = {}
    trained, sent = np.zeros_like(tensor[0], dtype=np.float64), np.zeros_like(tensor[0], dtype=np.float64)

    for number in range(rounds):
        change = (tensor[0] * (number + 1)).astype(np.float32)
        write_update(path, {"w": change}, HEADER, how, residual=residual, seed=number)
        trained += change
        sent += whole(UpdateFile(path))["w"]

    held = residual.get("w", np.zeros_like(tensor[0]))
    assert np.allclose(sent + held, trained, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(trained).max())))


def test_compression_saves_95_percent(tmp_path: Path, tensors: Callable[..., dict[str, NDArray[np.float32]]]) -> None:
    write_update(tmp_path / "plain", tensors(1), HEADER)
    write_update(tmp_path / "small", tensors(1), HEADER, Compression(keep=0.05, bits=8, entropy=True), seed=1)

    assert (tmp_path / "small").stat().st_size < 0.05 * (tmp_path / "plain").stat().st_size


def test_a_small_networks_table_takes_less_than_its_values(tmp_path: Path) -> None:
    many = {f"encoder.blocks.{n}.weight": np.random.default_rng(n).normal(size=3000).astype("f4") for n in range(72)}

    write_update(tmp_path / "small", many, HEADER, Compression(keep=0.05, bits=8, entropy=True), seed=1)

    assert (tmp_path / "small").stat().st_size < 0.05 * 4 * 72 * 3000
    assert list(UpdateFile(tmp_path / "small").shapes) == sorted(many)


def test_more_is_sent_in_the_first_rounds() -> None:
    how = Compression(keep=0.001, bits=8, warm_up=2)

    assert [how.in_round(number).keep for number in (1, 2, 3, 4)] == pytest.approx([0.1, 0.01, 0.001, 0.001])
    assert how.in_round(3) == Compression(keep=0.001, bits=8)
    assert Compression(warm_up=3).in_round(1).plain


def test_a_site_makes_the_published_model_from_a_change(
    tmp_path: Path, tensors: Callable[..., dict[str, NDArray[np.float32]]]
) -> None:
    write_model(tmp_path / "base", ArrayTensors(tensors(1)), {"labels": "ET"})
    header = Header(federation="trial", round=1, site="aggregator", base=hash_file(tmp_path / "base"))
    write_update(tmp_path / "delta", tensors(2), header, Compression(bits=16), seed=1, model_metadata={"task": "a"})

    digest = apply_update(tmp_path / "base", tmp_path / "delta", tmp_path / "model")

    assert digest == hash_file(tmp_path / "model")
    assert TensorFile(tmp_path / "model").metadata == {"labels": "ET", "task": "a"}
    write_model(tmp_path / "other", ArrayTensors(tensors(3)), {})
    with pytest.raises(Refusal, match="another model"):
        apply_update(tmp_path / "other", tmp_path / "delta", tmp_path / "no")


def test_files_are_the_formats_own(tmp_path: Path, tensors: Callable[..., dict[str, NDArray[np.float32]]]) -> None:
    write_model(tmp_path / "ours", ArrayTensors(tensors(1)), {"key": "text"})
    save_file(tensors(1), tmp_path / "theirs", {"key": "text"})

    for name, array in load_file(tmp_path / "ours").items():
        assert np.array_equal(array, tensors(1)[name])
    assert TensorFile(tmp_path / "theirs").shapes == TensorFile(tmp_path / "ours").shapes
    assert np.array_equal(TensorFile(tmp_path / "theirs").block("encoder.bias", 0), tensors(1)["encoder.bias"])


def test_half_precision_is_widened(tmp_path: Path) -> None:
    save_file({"w": np.array([1.5, -2.0], dtype=np.float16)}, tmp_path / "half")

    block = TensorFile(tmp_path / "half").block("w", 0)

    assert block.dtype == np.float32
    assert block.tolist() == [1.5, -2.0]


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[1' + b"0" * 5000 + b'],"data_offsets":[0,8]}}',
        b'{"w":1,"w":2}',
        json.dumps({"w": entry("F64", (1,))}).encode(),
        json.dumps({"w": entry(shape=(3,))}).encode(),
        json.dumps({"w": entry(shape=(-2,))}).encode(),
        json.dumps({"w": entry(shape=(2.0,))}).encode(),
        json.dumps({"w": entry(shape=(True, 2))}).encode(),
        json.dumps({"w": entry(shape=(2**40, 2**40), offsets=(0, 2**82))}).encode(),
        json.dumps({"w": entry(offsets=(8, 16))}).encode(),
        json.dumps({"w": entry(), "v": entry()}).encode(),
        json.dumps({"w": {**entry(), "more": 1}}).encode(),
        json.dumps({"w" * 1000: entry()}).encode(),
        json.dumps({"__metadata__": {"a": 1}, "w": entry()}).encode(),
        json.dumps({"__metadata__": [], "w": entry()}).encode(),
        json.dumps({}).encode(),
        b"\xff\xfe" * 20,
    ],
    ids=range(21),
)
def test_malformed_headers_are_refused(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "bad").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))

    with pytest.raises(Refusal) as refusal:
        TensorFile(tmp_path / "bad")

    assert refusal.value.code in ("malformed", "wrong-dtype")


def test_a_header_that_claims_to_be_huge_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(struct.pack("<Q", 2**62) + b"{}")

    with pytest.raises(Refusal, match="cut short"):
        TensorFile(tmp_path / "bad")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_update_is_refused_or_read_but_never_a_fault(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "update"
    change = {"a": np.linspace(-1, 1, 700, dtype=np.float32), "b": np.ones((2, 3), dtype=np.float32)}
    write_update(path, change, HEADER, data.draw(STAGES), seed=0)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)

    try:
        update = UpdateFile(path)
        if sum(int(np.prod(shape)) for shape in update.shapes.values()) < 10_000:  # the checks compare shapes first
            whole(update)
    except Refusal as error:
        refusal = error
    else:
        return
    assert all(refusal.to_dict().values())


def test_a_zip_bomb_is_not_unpacked() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(200_000_000))
    coded = CodedTensor((100,), 8, 1.0, 0, True, ((100, 0, len(bomb)),))

    with pytest.raises(Refusal, match="another size"):
        decode(np.frombuffer(bomb, dtype=np.uint8), coded, 0, 0)


def test_nan_is_not_sent() -> None:
    with pytest.raises(InputError, match="NaN"):
        encode(np.array([np.nan], dtype=np.float32), Compression(bits=8), np.random.default_rng(0))


@pytest.mark.parametrize("wrong", [{"keep": 0}, {"keep": 1.1}, {"bits": 4}, {"threshold": -1}, {"warm_up": -1}])
def test_impossible_compression_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Compression(**wrong)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ({}, "bad-report"),
        ({"samples": 0}, "bad-samples"),
        ({"samples": -5}, "bad-samples"),
        ({"samples": 10**18}, "bad-samples"),
        ({"samples": True}, "bad-samples"),
        ({"samples": 1.5}, "bad-samples"),
        ({"samples": 1, "dice_after": 1.1}, "bad-report"),
        ({"samples": 1, "dice_after": "0.5"}, "bad-report"),
        ({"samples": 1, "hd95_after": -1}, "bad-report"),
        ({"samples": 1, "hd95_after": float("inf")}, "bad-report"),
        ({"samples": 1, "labels": {"ET": -1}}, "bad-report"),
        ({"samples": 1, "labels": {"ET": 1001}}, "bad-report"),
        ({"samples": 1, "labels": {"ET": 600, "ED": 600}}, "bad-report"),
        ({"samples": 1, "labels": {"ET": 0.5}}, "bad-report"),
        ({"samples": 1, "labels": [1]}, "bad-report"),
        ({"samples": 1, "patient": "name"}, "bad-report"),
        ([], "bad-report"),
    ],
)
def test_impossible_reports_are_refused(content: Any, code: str) -> None:
    with pytest.raises(Refusal) as refusal:
        Report.from_dict(content)

    assert refusal.value.code == code


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=8))
def test_shares_in_thousandths_sum_to_the_whole(counts: list[int]) -> None:
    shares = list(thousandths({str(number): count for number, count in enumerate(counts)}).values())

    assert sum(shares) == (1000 if any(counts) else 0)
    assert all(abs(share - 1000 * count / max(1, sum(counts))) < 1 for share, count in zip(shares, counts, strict=True))


def test_diversity_is_one_for_even_labels_and_zero_for_one() -> None:
    assert Report(samples=9, labels={"WT": 3, "TC": 3, "ET": 3}).diversity() == pytest.approx(1)
    assert Report(samples=9, labels={"WT": 9, "TC": 0}).diversity() == 0
    assert 0 < Report(samples=9, labels={"WT": 9, "TC": 1}).diversity() < 1
