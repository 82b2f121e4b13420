"""Inference: in one pass or in windows, flipped or not, smaller where memory runs out, on the device asked for."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from twinseg import inference
from twinseg.errors import Cancelled, InputError, OutOfSpaceError
from twinseg.inference import OVERLAP, bfloat16_is_faster, choose_device, predict, predict_anywhere, window_places
from twinseg.network import NetworkConfig, build_network
from twinseg.tasks import Task

CONFIG = NetworkConfig(2, 3, channels=(8, 12), strides=((2, 2, 2),) * 2, embedding=24, depth=1, heads=2)
FAR = 40.0  # a logit that leaves no doubt


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that equal means equal."""
    monkeypatch.setattr(inference, "bfloat16_is_faster", lambda: False)


class Graded(nn.Module):
    """Logits that are the image itself: it sees one voxel at a time, and is never sure."""

    config = CONFIG

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([image, image[:, :1] * image[:, 1:]], 1)


class Greedy(Graded):
    """Runs out of memory on anything larger than `limit` voxels, as `error` says."""

    def __init__(self, limit: int, error: BaseException) -> None:
        super().__init__()
        self.limit, self.error, self.sizes = limit, error, list[tuple[int, ...]]()

    def forward(self, image: Tensor) -> Tensor:
        self.sizes.append(tuple(image.shape[2:]))
        if image[0, 0].numel() > self.limit:
            raise self.error
        return super().forward(image)


def noise(*size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, *size)).astype(np.float32)


def softmax(logits: Tensor) -> np.ndarray:
    return logits[0].softmax(0).numpy()


# --- windows ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 3), st.tuples(*[st.integers(4, 24)] * 3))
def test_windows_cover_everything_and_overlap_by_half(size: tuple, window: tuple) -> None:
    places = window_places(size, window)

    covered = np.zeros(size, bool)
    for place in places:
        covered[place] = True
        assert all(0 <= along.start < along.stop <= length for along, length in zip(place, size, strict=True))
        assert [along.stop - along.start for along in place] == [min(pair) for pair in zip(size, window, strict=True)]
    assert covered.all()
    for axis in range(3):
        starts = sorted({place[axis].start for place in places})
        assert max(np.diff(starts), default=0) <= np.ceil(window[axis] * (1 - OVERLAP))


@pytest.mark.parametrize("size", [(16, 16, 16), (21, 33, 17), (5, 40, 9), (3, 3, 3)])
def test_windows_give_what_the_whole_volume_gives_where_the_receptive_field_allows(toy: Task, size: tuple) -> None:
    image = noise(*size)

    windowed = predict(Graded(), image, toy, window=(16, 16, 16))

    assert windowed.shape == (3, *size)
    assert np.allclose(windowed, softmax(Graded()(torch.from_numpy(image)[None])), atol=1e-5)


@pytest.mark.parametrize("size", [(21, 33, 17), (5, 7, 3)])
@pytest.mark.parametrize("window", [None, (16, 16, 16), (8, 8, 8)])
def test_a_real_network_gives_probabilities_for_odd_sizes(toy: Task, size: tuple, window: tuple | None) -> None:
    probabilities = predict(build_network(CONFIG), noise(*size), toy, window=window, flips=True)

    assert probabilities.shape == (3, *size)
    assert np.allclose(probabilities.sum(0), 1, atol=1e-5)
    assert probabilities.min() >= 0


def test_seams_of_windows_are_blended() -> None:
    """A window whose edge is wrong counts little there, as the middle of its neighbour knows better."""

    class WrongAtTheEdge(nn.Module):
        config = CONFIG

        def forward(self, image: Tensor) -> Tensor:
            logits = torch.zeros(1, 3, *image.shape[2:])
            logits[:, 0] = FAR
            logits[:, :, 0] = torch.tensor([0, FAR, 0.0])[None, :, None, None]
            return logits

    task = SimpleNamespace(flip_axes=())
    wrong = predict(WrongAtTheEdge(), noise(40, 16, 16), task, window=(16, 16, 16))[1]  # type: ignore[arg-type]

    assert wrong[0, 8, 8] == pytest.approx(1)  # no other window reaches here
    assert 0 < wrong[8, 8, 8] < 0.01


def test_the_network_is_left_in_evaluation_mode_and_without_gradients(toy: Task) -> None:
    network = build_network(replace(CONFIG, deep_supervision=True)).train()

    probabilities = predict(network, noise(8, 8, 8), toy)

    assert probabilities.shape == (3, 8, 8, 8)
    assert not network.training


def test_windows_can_be_stopped_one_by_one(toy: Task) -> None:
    network = Greedy(10**9, MemoryError())

    with pytest.raises(Cancelled):
        predict(network, noise(40, 40, 40), toy, window=(16, 16, 16), report=lambda done, stage: done > 0.2)

    assert 1 < len(network.sizes) < 64


# --- flips -----------------------------------------------------------------------------------------------------------


def test_flips_average_over_mirrored_copies(toy: Task) -> None:
    network = build_network(CONFIG).eval()
    image = torch.from_numpy(noise(12, 8, 8))[None]
    with torch.no_grad():
        straight, mirrored = network(image).softmax(1), network(image.flip(2)).softmax(1).flip(2)
        across = network(image.flip(4)).softmax(1).flip(4)

    one_axis = predict(network, image[0].numpy(), toy, flips=True)
    two_axes = predict(network, image[0].numpy(), replace(toy, flip_axes=(0, 2)), flips=True)

    assert np.allclose(one_axis, ((straight + mirrored) / 2)[0], atol=1e-5)
    assert np.allclose(two_axes, ((straight + mirrored + across) / 3)[0], atol=1e-5)
    assert not np.allclose(one_axis, straight[0], atol=1e-3)


def test_flips_make_a_mirrored_image_a_mirrored_answer(toy: Task) -> None:
    network, image = build_network(CONFIG), noise(12, 8, 8)

    left = predict(network, image, toy, flips=True)
    right = predict(network, image[:, ::-1].copy(), toy, flips=True)

    assert np.allclose(left[:, ::-1], right, atol=1e-5)


# --- memory ----------------------------------------------------------------------------------------------------------

OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to allocate"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_windows_are_taken_when_memory_runs_out(
    toy: Task, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    image, network = noise(24, 20, 20), Greedy(16**3, error)

    probabilities, computed = predict_anywhere(network, image, toy, "cpu")

    assert computed == "cpu, windows of 16×16×16"
    assert network.sizes[:2] == [(24, 20, 20), (16, 16, 16)]
    assert [record.message for record in caplog.records] == [
        "cpu, whole volume ran out of memory; a smaller way is taken"
    ]
    assert np.allclose(probabilities, softmax(Graded()(torch.from_numpy(image)[None])), atol=1e-5)


def test_smaller_windows_are_the_last_resort(toy: Task, caplog: pytest.LogCaptureFixture) -> None:
    network = Greedy(8**3, OUT_OF_MEMORY[0])

    _, computed = predict_anywhere(network, noise(24, 20, 20), toy, "cpu")

    assert computed == "cpu, windows of 8×8×8"
    assert len(caplog.records) == 2
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_no_way_fits(toy: Task) -> None:
    with pytest.raises(OutOfSpaceError, match="not enough memory"):
        predict_anywhere(Greedy(10, OUT_OF_MEMORY[0]), noise(24, 20, 20), toy, "cpu")


def test_other_faults_are_not_taken_for_a_lack_of_memory(toy: Task) -> None:
    network = Greedy(10, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))

    with pytest.raises(RuntimeError, match="mat1"):
        predict_anywhere(network, noise(24, 20, 20), toy, "cpu")

    assert len(network.sizes) == 1


@pytest.mark.parametrize(
    ("free", "way"),
    [(10**12, "whole volume"), (2_000_000, "windows of 16×16×16"), (1_000_000, "windows of 8×8×8")],
)
def test_what_would_not_fit_is_not_tried(
    toy: Task, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: int, way: str
) -> None:
    monkeypatch.setattr(inference, "free_memory", lambda device: free)
    network = Greedy(10**9, MemoryError())

    _, computed = predict_anywhere(network, noise(24, 20, 20), toy, "cpu")

    assert computed == f"cpu, {way}"
    assert (network.sizes[0] == (24, 20, 20)) == (way == "whole volume")
    assert all("would need" in record.message and "GB" in record.message for record in caplog.records)
    assert bool(caplog.records) == (way != "whole volume")


def test_float32_needs_twice_the_memory(toy: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "free_memory", lambda device: 2_000_000)
    ways = []
    for faster in (False, True):
        monkeypatch.setattr(inference, "bfloat16_is_faster", lambda faster=faster: faster)
        ways.append(predict_anywhere(Graded(), noise(24, 20, 20), toy, "cpu")[1])

    assert ways == ["cpu, windows of 16×16×16", "cpu, whole volume"]


def test_too_little_memory_for_anything(toy: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "free_memory", lambda device: 0)

    with pytest.raises(OutOfSpaceError):
        predict_anywhere(Graded(), noise(24, 20, 20), toy, "cpu")


# --- devices ---------------------------------------------------------------------------------------------------------


def test_auto_finds_a_device_that_computes() -> None:
    assert torch.ones(2, device=choose_device()).sum() == 2
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("small", "large", "faster", "looked_at"),
    [(10.0, 70.0, False, {4}), (2.0, 0.5, True, {4, 16}), (1.0, 1.5, False, {4, 16})],
)
def test_bfloat16_is_taken_where_it_is_faster_and_given_up_by_a_small_image_where_it_is_hopeless(
    small: float, large: float, faster: bool, looked_at: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ratios are of bfloat16's seconds to float32's; the first are those of a CPU that has no units for it."""
    sides = []

    def seconds(dtype: torch.dtype, side: int) -> float:
        sides.append(side)
        return 1.0 if dtype == torch.float32 else {4: small, 16: large}[side]

    monkeypatch.setattr(inference, "_convolution_seconds", seconds)

    assert bfloat16_is_faster.__wrapped__() == faster  # not the cached answer
    assert set(sides) == looked_at


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "hpu", "privateuseone", "", "xla"])
def test_a_device_that_is_not_here_is_bad_input(name: str) -> None:
    with pytest.raises(InputError, match=r"use --device cpu or auto") as error:
        choose_device(name)

    assert "\n" not in str(error.value)


def test_bfloat16_is_for_processors_that_are_faster_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "bfloat16_is_faster", lambda: True)

    with inference.autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with inference.autocast(torch.device("mps")):  # the CPU's speed says nothing of it
        assert not torch.is_autocast_enabled("mps")
