"""From a case's own grid to what the network sees, and back to exactly that grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from twinseg.cases import LoadedCase
from twinseg.phantom import Scanner, make_patient
from twinseg.preprocessing import (
    MARGIN_MM,
    PreparedCase,
    foreground,
    label_values,
    normalize,
    prepare,
    region_channels,
    restore,
    restore_labels,
    with_dark_background,
)
from twinseg.tasks import Task, load_task
from twinseg.volumes import Volume

CENTRE_MM = np.array([12.0, -31.0, 54.0])


@st.composite
def affines(draw: st.DrawFn, spacing: tuple[float, float, float] | None = None, tilt: float = 30.0) -> np.ndarray:
    """Axes in any order and direction (left-handed ones too), turned obliquely by up to `tilt` degrees each."""
    axes = np.eye(3)[draw(st.permutations(range(3)))] * draw(st.tuples(*[st.sampled_from([1, -1])] * 3))
    turn = Rotation.from_euler("xyz", draw(st.tuples(*[st.floats(-tilt, tilt)] * 3)), degrees=True).as_matrix()
    sizes = spacing or draw(st.tuples(*[st.sampled_from([0.7, 1.0, 1.5, 3.0])] * 3))
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes * sizes
    return affine


def ball_case(
    affine: np.ndarray, shape: tuple[int, int, int], sequences: tuple[str, ...] = ("t1", "flair")
) -> LoadedCase:
    """A head (a ball of 22 mm around `CENTRE_MM`) with a brighter tumour (label 2, 9 mm, off the centre) and its core
    (label 7), on the grid with these axes."""
    affine = affine.copy()
    affine[:3, 3] = CENTRE_MM - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    places = voxels @ affine[:3, :3].T + affine[:3, 3]
    tumour = np.linalg.norm(places - (CENTRE_MM + np.array([6, -4, 3])), axis=-1)
    image = np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)
    image[np.linalg.norm(places - CENTRE_MM, axis=-1) < 22] += 5
    labels = np.where(tumour < 5, 7, np.where(tumour < 9, 2, 0)).astype(np.uint8)
    image += labels > 0
    return LoadedCase({s: Volume(image, affine) for s in sequences}, Volume(image, affine), Volume(labels, affine))


def one_hot(prepared: PreparedCase) -> np.ndarray:
    assert prepared.labels is not None
    return (prepared.labels == np.arange(3)[:, None, None, None]).astype(np.float32)


def centre_mm(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] @ np.argwhere(mask).mean(0) + affine[:3, 3]


# --- there and back --------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(affines(spacing=(1.0, 1.0, 1.0)))
def test_labels_at_the_task_s_spacing_come_back_voxel_for_voxel(toy: Task, affine: np.ndarray) -> None:
    case = ball_case(affine, (56, 50, 60))

    prepared = prepare(case, toy)
    back = restore_labels(one_hot(prepared), prepared, case.reference)

    assert np.array_equal(np.array(label_values(toy))[back], case.labels.array)


@settings(max_examples=12, deadline=None)
@given(affines())
def test_a_tumour_lies_where_it_was_on_any_grid(toy: Task, affine: np.ndarray) -> None:
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    case = ball_case(affine, tuple(np.ceil(56 / sizes).astype(int)))

    prepared = prepare(case, toy)
    back = np.array(label_values(toy))[restore_labels(one_hot(prepared), prepared, case.reference)]

    assert np.allclose(prepared.spacing, 1.0)
    assert back.shape == case.reference.shape
    for values in ((2, 7), (7,)):
        drawn, real = np.isin(back, values), np.isin(case.labels.array, values)
        seen = np.isin(prepared.labels, [label_values(toy).index(value) for value in values])
        at = centre_mm(real, case.reference.affine)
        assert np.linalg.norm(centre_mm(drawn, case.reference.affine) - at) < 0.5
        assert np.linalg.norm(centre_mm(seen, prepared.affine) - at) < 0.8
        assert 2 * (drawn & real).sum() / (drawn.sum() + real.sum()) > 0.85


@settings(max_examples=12, deadline=None)
@given(affines(spacing=(0.9, 1.3, 2.5), tilt=15.0))
def test_the_prepared_image_is_in_ras_order(toy: Task, affine: np.ndarray) -> None:
    prepared = prepare(ball_case(affine, (60, 44, 24)), toy)

    directions = prepared.affine[:3, :3] / prepared.spacing
    assert np.argmax(directions, axis=0).tolist() == [0, 1, 2]
    assert np.linalg.det(directions) == pytest.approx(1)


def test_what_the_cropped_box_does_not_reach_is_background(toy: Task) -> None:
    case = ball_case(np.eye(4), (70, 70, 70))
    prepared = prepare(case, toy)
    assert prepared.image.shape[1:] < (70, 70, 70)

    everywhere = np.zeros((3, *prepared.image.shape[1:]), np.float32)
    everywhere[2] = 1
    drawn = restore_labels(everywhere, prepared, case.reference)

    assert drawn[35, 35, 35] == 2
    assert drawn[0, 0, 0] == 0
    assert np.count_nonzero(drawn) == np.prod(prepared.image.shape[1:])


def test_restoring_leaves_the_scores_as_they_were(toy: Task) -> None:
    """Where both grids are the same nothing is copied, and what is drawn must not be drawn into the scores."""
    case = ball_case(np.eye(4), (50, 50, 50))
    scores = np.random.default_rng(0).dirichlet(np.ones(3), (50, 50, 50)).astype(np.float32).transpose(3, 0, 1, 2)
    scores = np.ascontiguousarray(scores)
    before = scores.copy()
    prepared = prepare(case, toy)
    assert prepared.image.shape[1:] == (50, 50, 50)

    restore_labels(scores, prepared, case.reference)

    assert np.array_equal(scores, before)


def test_a_map_is_restored_with_what_lies_outside(toy: Task) -> None:
    case = ball_case(np.eye(4), (70, 70, 70))
    prepared = prepare(case, toy)

    back = restore(np.ones(prepared.image.shape[1:], np.float32), prepared, case.reference, outside=-3.0)

    assert back[35, 35, 35] == 1
    assert back[0, 0, 0] == -3


# --- grid and crop ---------------------------------------------------------------------------------------------------


def test_a_grid_within_five_percent_is_not_resampled(toy: Task) -> None:
    case = ball_case(np.diag([1.04, 0.96, 1.0, 1]), (50, 50, 50))

    prepared = prepare(case, toy)

    assert np.allclose(prepared.spacing, (1.04, 0.96, 1.0))
    corner = np.rint(np.linalg.inv(case.reference.affine) @ prepared.affine[:, 3]).astype(int)[:3]
    box = tuple(slice(start, start + size) for start, size in zip(corner, prepared.labels.shape, strict=True))
    assert np.array_equal(prepared.labels > 0, case.labels.array[box] > 0)


def test_a_grid_beyond_five_percent_is(toy: Task) -> None:
    prepared = prepare(ball_case(np.diag([1.1, 0.9, 1.0, 1]), (50, 50, 50)), toy)

    assert np.allclose(prepared.spacing, 1.0)


def test_the_crop_keeps_a_margin_around_the_head(toy: Task) -> None:
    case = ball_case(np.diag([1.0, 1.0, 2.0, 1]), (90, 80, 45))

    prepared = prepare(case, replace(toy, spacing=(1.0, 1.0, 2.0)))

    lower = prepared.affine[:3, 3]
    upper = lower + (np.array(prepared.image.shape[1:]) - 1) * (1, 1, 2)
    # The outermost slabs of a ball are nearly empty, and do not count.
    for kept in (CENTRE_MM - lower, upper - CENTRE_MM):
        assert np.all(kept >= 20 + MARGIN_MM - 2)
        assert np.all(kept <= 22 + MARGIN_MM + 2)


def test_single_bright_voxels_do_not_hold_the_crop_open(toy: Task) -> None:
    case = ball_case(np.eye(4), (90, 90, 90))
    narrow = prepare(case, toy).image.shape

    case.reference.array[0, 45, 45] = case.reference.array[45, 89, 3] = 6

    assert prepare(case, toy).image.shape == narrow


def test_a_ct_is_neither_cropped_nor_shifted() -> None:
    liver = load_task("lits-liver")
    case = ball_case(np.diag([*liver.spacing, 1]), (40, 40, 40), sequences=(liver.sequences[0].name,))
    case = replace(case, labels=None)

    prepared = prepare(case, liver)

    assert prepared.image.shape == (1, 40, 40, 40)
    assert np.allclose(prepared.affine, case.reference.affine)
    assert prepared.labels is None


# --- intensities -----------------------------------------------------------------------------------------------------


def test_a_missing_sequence_is_zeros(toy: Task) -> None:
    prepared = prepare(ball_case(np.eye(4), (50, 50, 50), sequences=("flair",)), toy)

    assert prepared.present == (False, True)
    assert not prepared.image[0].any()
    assert prepared.image[1].any()


def test_sequences_stand_in_the_task_s_order(toy: Task) -> None:
    case = ball_case(np.eye(4), (50, 50, 50))
    other = Volume(-case.reference.array, case.reference.affine)
    flair_first = LoadedCase({"flair": other, "t1": case.reference}, case.reference, None)

    prepared = prepare(flair_first, toy)

    assert np.corrcoef(prepared.image[0].ravel(), prepared.image[1].ravel())[0, 1] == pytest.approx(-1, abs=0.01)
    assert prepared.image[0][25, 25, 25] > prepared.image[0][0, 0, 0]


@pytest.mark.parametrize(("factor", "shift"), [(1.0, 0.0), (250.0, 1000.0), (1e-3, -5.0)])
def test_z_scores_do_not_depend_on_the_scanner_s_scale(toy: Task, factor: float, shift: float) -> None:
    array = ball_case(np.eye(4), (50, 50, 50)).reference.array

    normalized = normalize((array * factor + shift).astype(np.float32), toy)

    inside = normalized[foreground(array)]
    assert inside.mean() == pytest.approx(0, abs=0.05)
    assert inside.std() == pytest.approx(1, abs=0.05)
    assert np.abs(normalized).max() <= 6


def stripped_head(background: float, *, z_scores: bool, spacing: float = 1.0) -> LoadedCase:
    """The ball with nothing but `background` around it, its own values 4.6 to 6.4, or these as z-scores."""
    case = ball_case(np.diag([spacing, spacing, spacing, 1]), (60, 60, 60))
    image = case.reference.array
    head = image > 3
    inside = (image[head] - image[head].mean()) / image[head].std() if z_scores else image[head]
    image[~head] = background
    image[head] = inside
    return case


@pytest.mark.parametrize("spacing", [1.0, 0.7])
@pytest.mark.parametrize(("background", "z_scores"), [(0.0, True), (-1000.0, True), (-1000.0, False), (-9.0, False)])
def test_a_background_that_is_not_the_darkest_tissue_is_still_background(
    toy: Task, background: float, z_scores: bool, spacing: float
) -> None:
    ordinary = prepare(stripped_head(0.0, z_scores=False, spacing=spacing), toy)

    prepared = prepare(stripped_head(background, z_scores=z_scores, spacing=spacing), toy)

    assert prepared.image.shape == ordinary.image.shape
    assert -4 < prepared.image[0, 0, 0, 0] < -1


@pytest.mark.parametrize("background", [0.0, 3.0])
def test_a_background_that_is_the_darkest_is_left_as_it_is(background: float) -> None:
    image = stripped_head(background, z_scores=False).reference.array
    scan = ball_case(np.eye(4), (60, 60, 60)).reference.array  # a whole head in air and noise

    assert with_dark_background(image) is image
    assert with_dark_background(scan) is scan


def test_a_synthetic_head_s_background_is_left_as_it_is() -> None:
    scanner = Scanner.for_site(0, 0)
    patient = make_patient(1, scanner=scanner, size=48, spacing=4.0)

    assert all(with_dark_background(image.array) is image.array for image in patient.images.values())


@pytest.mark.parametrize("odd", [0.0, 2.0])
def test_a_nearly_constant_image_has_finite_z_scores(toy: Task, odd: float) -> None:
    array = np.ones((12, 12, 12), np.float32)
    array[3, 3, 3] = odd

    assert np.isfinite(normalize(array, toy)).all()


def test_a_ct_window_becomes_minus_one_to_one() -> None:
    liver = load_task("lits-liver")
    low, high = liver.window
    array = np.array([-1024, low, (low + high) / 2, high, 3000], np.float32).reshape(1, 1, 5)

    assert np.allclose(normalize(array, liver).ravel(), [-1, -1, 0, 1, 1], atol=1e-6)


# --- labels ----------------------------------------------------------------------------------------------------------


def test_channels_and_values(toy: Task, glioma: Task) -> None:
    assert label_values(toy) == [0, 2, 7]
    assert region_channels(toy) == [[1, 2], [2]]
    assert region_channels(glioma) == [[1, 2, 3], [1, 3], [3]]


def test_label_values_beyond_a_byte(toy: Task) -> None:
    labels = (toy.labels[0], replace(toy.labels[1], value=1000))
    wide = replace(toy, labels=labels, regions=(replace(toy.regions[0], labels=(2, 1000)),))
    case = ball_case(np.eye(4), (50, 50, 50))
    values = np.where(case.labels.array == 7, 1000, case.labels.array.astype(np.uint16))

    prepared = prepare(replace(case, labels=Volume(values, case.reference.affine)), wide)

    assert prepared.labels.max() == 2
    assert np.array_equal(prepared.labels == 2, case.labels.array == 7)
