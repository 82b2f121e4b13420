"""Segmentation of a case: drawn on the image's own grid, with its uncertainty, cleaned up, stopped when asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from twinseg import inference
from twinseg.cases import LoadedCase
from twinseg.errors import Cancelled
from twinseg.inference import clean_up, normalized_entropy, segment
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
            probabilities.append(logits[0].softmax(0).numpy())
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

    cleaned = clean_up(labels, task, voxel_ml=0.01)

    assert np.count_nonzero(cleaned) == 27
    assert cleaned[2, 2, 2] == 2
    assert cleaned[4, 4, 8] == 7
    assert cleaned[8, 8, 1] == cleaned[11, 0, 0] == 0
    assert np.array_equal(labels, before)


def test_all_but_the_largest_component_are_removed(toy: Task) -> None:
    cleaned = clean_up(scattered(), replace(toy, cleanup=Cleanup(keep_largest=True)), voxel_ml=0.001)

    assert np.count_nonzero(cleaned) == 27


def test_a_task_without_clean_up_keeps_everything(toy: Task) -> None:
    assert np.array_equal(clean_up(scattered(), toy, voxel_ml=0.001), scattered())


def test_clean_up_of_nothing(toy: Task) -> None:
    nothing = np.zeros((4, 4, 4), np.uint8)

    for cleanup in (Cleanup(smallest_ml=1.0), Cleanup(keep_largest=True)):
        assert not clean_up(nothing, replace(toy, cleanup=cleanup), voxel_ml=0.001).any()
