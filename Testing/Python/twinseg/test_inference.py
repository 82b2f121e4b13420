"""Inference: on the image's own grid, in one pass or in windows, smaller where memory runs out, stopped when asked."""

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
from twinseg.cases import LoadedCase
from twinseg.errors import Cancelled, InputError, OutOfSpaceError
from twinseg.inference import (
    OVERLAP,
    choose_device,
    clean_up,
    normalized_entropy,
    predict,
    predict_anywhere,
    segment,
    window_places,
)
from twinseg.network import NetworkConfig, build_network
from twinseg.tasks import Cleanup, Task
from twinseg.volumes import Volume

CONFIG = NetworkConfig(2, 3, channels=(8, 12), strides=((2, 2, 2),) * 2, embedding=24, depth=1, heads=2)
FAR = 40.0  # a logit that leaves no doubt


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that equal means equal."""
    monkeypatch.setattr(inference, "bfloat16_is_faster", lambda: False)


class Voxelwise(nn.Module):
    """Class 1 where the first sequence is bright, class 2 where it is very bright: it sees one voxel at a time."""

    config = CONFIG

    def forward(self, image: Tensor) -> Tensor:
        bright = image[:, :1]
        return torch.cat([torch.zeros_like(bright), (bright - 1) * FAR, (bright - 2) * 2 * FAR], 1)


class Graded(nn.Module):
    """Logits that are the image itself: also voxelwise, but never sure."""

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


# --- progress and cancel ---------------------------------------------------------------------------------------------


def test_progress_rises_from_nothing_to_all(toy: Task) -> None:
    told: list[tuple[float, str]] = []

    segment(Voxelwise(), ball_case(), toy, report=lambda done, stage: told.append((done, stage)))

    shares = [done for done, _ in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert {stage for _, stage in told} >= {"preparing the images", "segmenting", "done"}


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])
def test_a_callback_stops_the_work_at_its_next_report(toy: Task, stop_at: int) -> None:
    told: list[float] = []

    def report(done: float, stage: str) -> bool:
        told.append(done)
        return len(told) == stop_at

    with pytest.raises(Cancelled):
        segment(Voxelwise(), ball_case(), toy, report=report)

    assert len(told) == stop_at


def test_windows_can_be_stopped_one_by_one(toy: Task) -> None:
    network = Greedy(10**9, MemoryError())

    with pytest.raises(Cancelled):
        predict(network, noise(40, 40, 40), toy, window=(16, 16, 16), report=lambda done, stage: done > 0.2)

    assert 1 < len(network.sizes) < 64


# --- the image's own grid --------------------------------------------------------------------------------------------


def ball_case(affine: np.ndarray | None = None, missing: bool = False) -> LoadedCase:
    """A head with a bright ball (label 2) around a brighter one (label 7), off its middle."""
    shape = (40, 36, 44)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    distance = np.linalg.norm(places - [16, 20, 25], axis=-1)
    image = np.where(np.linalg.norm(places - np.array(shape) / 2, axis=-1) < 17, 10.0, 0.0)
    labels = np.where(distance < 4, 7, np.where(distance < 7, 2, 0)).astype(np.uint8)
    image = (image + 12 * (distance < 7) + 40 * (distance < 4)).astype(np.float32)
    volume = Volume(image, np.eye(4) if affine is None else affine)
    images = {"t1": volume} if missing else {"t1": volume, "flair": volume}
    return LoadedCase(images, volume, Volume(labels, volume.affine))


def turned(degrees: float, *columns: tuple[float, float, float]) -> np.ndarray:
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array(columns).T
    affine[:3, 3] = (-80.5, 13.25, 7)
    return affine


GRIDS = {
    "RAS": np.eye(4),
    "LPS": np.diag([-1.0, -1, 1, 1]),
    "left-handed": np.diag([-1.0, 1, 1, 1]),
    "sagittal": turned(0, (0, 1, 0), (0, 0, -1), (-1, 0, 0)),
    "oblique": turned(17, (0, -1, 0), (1, 0, 0), (0, 0, -1)),
}


@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS)
def test_a_tumour_is_drawn_exactly_where_it_is(toy: Task, affine: np.ndarray) -> None:
    case = ball_case(affine)

    result = segment(Voxelwise(), case, toy, uncertainty=True)

    assert np.array_equal(result.labels.array, case.labels.array)
    assert np.abs(result.labels.affine - affine).max() < 1e-6
    assert result.uncertainty.shape == result.labels.shape
    assert np.abs(result.uncertainty.affine - affine).max() < 1e-6
    assert result.computed == "cpu, whole volume"


@pytest.mark.parametrize("spacing", [(0.6, 0.6, 0.6), (0.9, 1.2, 3.0), (2.0, 2.0, 2.0)])
def test_a_tumour_is_drawn_where_it_is_at_another_spacing(toy: Task, spacing: tuple[float, float, float]) -> None:
    case = ball_case(GRIDS["oblique"] @ np.diag([*spacing, 1]))

    drawn = segment(Voxelwise(), case, toy).labels.array

    for values in ((2, 7), (7,)):
        one, other = np.isin(drawn, values), np.isin(case.labels.array, values)
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.8
        assert np.allclose(np.argwhere(one).mean(0), np.argwhere(other).mean(0), atol=0.5)


def test_a_missing_sequence_is_no_obstacle(toy: Task) -> None:
    case = ball_case(missing=True)

    assert np.array_equal(segment(Voxelwise(), case, toy).labels.array, case.labels.array)


def test_label_values_beyond_a_byte(toy: Task) -> None:
    wide = replace(
        toy, labels=(toy.labels[0], replace(toy.labels[1], value=1000)), regions=(replace(toy.regions[0], labels=(2,)),)
    )

    labels = segment(Voxelwise(), ball_case(), wide).labels.array

    assert labels.dtype == np.uint16
    assert set(np.unique(labels)) == {0, 2, 1000}


# --- uncertainty -----------------------------------------------------------------------------------------------------


def test_entropy_is_nothing_when_sure_and_one_when_all_classes_are_alike() -> None:
    probabilities = np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]], np.float32).T.reshape(3, 3, 1, 1)

    entropy = normalized_entropy(probabilities).ravel()

    assert entropy == pytest.approx([0, 1, np.log(2) / np.log(3)], abs=1e-6)


@settings(max_examples=30)
@given(st.integers(2, 6), st.integers(0, 2**31))
def test_entropy_stays_between_nothing_and_one(classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.full(classes, random.choice([0.01, 1, 1e6])), 64).T.astype(np.float32)

    entropy = normalized_entropy(np.ascontiguousarray(probabilities).reshape(classes, 4, 4, 4))

    assert entropy.min() >= 0
    assert entropy.max() <= 1


@pytest.mark.parametrize("affine", [GRIDS["RAS"], GRIDS["oblique"], np.diag([1.3, 0.8, 2.0, 1])])
def test_the_uncertainty_is_that_of_the_probabilities(toy: Task, affine: np.ndarray) -> None:
    """On the network's own grid too, where the class scores are not copied on the way to the label map."""
    case = ball_case(affine)
    unsure = build_network(CONFIG)
    probabilities = []

    class Watched(nn.Module):
        config = CONFIG

        def forward(self, image: Tensor) -> Tensor:
            logits = unsure(image)
            probabilities.append(softmax(logits))
            return logits

    result = segment(Watched(), case, toy, uncertainty=True)

    assert result.uncertainty.array.max() <= 1
    expected = normalized_entropy(probabilities[0])
    assert result.uncertainty.array.max() == pytest.approx(expected.max(), abs=0.05)
    inside = result.uncertainty.array[result.uncertainty.array > 0]
    assert inside.mean() == pytest.approx(expected.mean(), abs=0.02)


# --- clean-up --------------------------------------------------------------------------------------------------------


def scattered() -> np.ndarray:
    """Components of 27, 8 and 1 voxels; the two parts of the first touch by a corner only."""
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[1:4, 1:4, 1:3] = 2
    labels[4, 4, 3:12] = 7
    labels[8:10, 8:10, 1:3] = 7
    labels[11, 0, 0] = 2
    return labels


def test_components_below_the_task_s_size_are_removed(toy: Task) -> None:
    labels = scattered()
    before = labels.copy()
    task = replace(toy, cleanup=Cleanup(smallest_ml=0.1))  # at 10 mm³ a voxel: ten of them

    cleaned = clean_up(labels, task, (1.0, 2.0, 5.0))

    assert np.count_nonzero(cleaned) == 27
    assert cleaned[2, 2, 2] == 2
    assert cleaned[4, 4, 8] == 7
    assert cleaned[8, 8, 1] == cleaned[11, 0, 0] == 0
    assert np.array_equal(labels, before)


def test_all_but_the_largest_component_are_removed(toy: Task) -> None:
    cleaned = clean_up(scattered(), replace(toy, cleanup=Cleanup(keep_largest=True)), (1.0, 1.0, 1.0))

    assert np.count_nonzero(cleaned) == 27


def test_a_task_without_clean_up_keeps_everything(toy: Task) -> None:
    assert np.array_equal(clean_up(scattered(), toy, (1.0, 1.0, 1.0)), scattered())


def test_clean_up_of_nothing(toy: Task) -> None:
    nothing = np.zeros((4, 4, 4), np.uint8)

    for cleanup in (Cleanup(smallest_ml=1.0), Cleanup(keep_largest=True)):
        assert not clean_up(nothing, replace(toy, cleanup=cleanup), (1.0, 1.0, 1.0)).any()


# --- devices ---------------------------------------------------------------------------------------------------------


def test_auto_finds_a_device_that_computes() -> None:
    assert torch.ones(2, device=choose_device()).sum() == 2
    assert choose_device("cpu") == torch.device("cpu")


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
