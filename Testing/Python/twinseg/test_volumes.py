"""Volumes: a voxel's place in the world survives flips, crops and resampling."""

from __future__ import annotations

from typing import Literal

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from twinseg.volumes import (
    Volume,
    crop,
    grids_agree,
    overlap,
    ras_grid,
    resample_to,
    to_ras,
)

quick = settings(max_examples=60, deadline=None)


@st.composite
def affines(draw: st.DrawFn, oblique: bool = True) -> np.ndarray:
    """Voxel to RAS mm: any order and sense of the axes (so also left-handed), any rotation, spacings 0.3 to 8 mm."""
    spacing = draw(st.tuples(*[st.floats(0.3, 8)] * 3))
    signs = draw(st.tuples(*[st.sampled_from((-1, 1))] * 3))
    order = draw(st.permutations(range(3)))
    turn = (
        Rotation.from_euler("xyz", draw(st.tuples(*[st.floats(-0.6, 0.6)] * 3))).as_matrix() if oblique else np.eye(3)
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ (np.diag(signs)[:, order] * spacing)
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    return affine


shapes = st.tuples(*[st.integers(2, 9)] * 3)


def numbered(shape: tuple[int, int, int], affine: np.ndarray) -> Volume:
    """A volume of which every voxel has its own value, by which it is found again."""
    return Volume(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), affine)


def places(volume: Volume) -> dict[float, np.ndarray]:
    """The world coordinates (RAS mm) of each value."""
    indices = np.indices(volume.shape).reshape(3, -1).T
    world = indices @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return dict(zip(volume.array.reshape(-1).tolist(), world, strict=True))


def world_ramp(shape: tuple[int, int, int], affine: np.ndarray) -> Volume:
    """A volume whose value is a linear function of the world coordinates, which linear sampling must keep."""
    points = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    return Volume((points @ [1.0, -2.0, 0.5] + 7).astype(np.float32), affine)


# --- reorientation and crop ------------------------------------------------------------------------------------------


@quick
@given(shapes, affines())
def test_to_ras_keeps_every_voxel_where_it_is(shape: tuple[int, int, int], affine: np.ndarray) -> None:
    volume = numbered(shape, affine)

    turned = to_ras(volume)

    before, after = places(volume), places(turned)
    assert before.keys() == after.keys()
    assert all(np.allclose(before[v], after[v], atol=1e-9) for v in before)
    assert nibabel.aff2axcodes(turned.affine) == ("R", "A", "S")


@quick
@given(shapes, affines(), st.data())
def test_crop_keeps_every_voxel_where_it_is(
    shape: tuple[int, int, int], affine: np.ndarray, data: st.DataObject
) -> None:
    volume = numbered(shape, affine)
    lower = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    upper = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(lower, shape, strict=True))

    part = crop(volume, lower, upper)

    before = places(volume)
    assert part.shape == tuple(b - a for a, b in zip(lower, upper, strict=True))
    assert all(np.allclose(before[v], place, atol=1e-9) for v, place in places(part).items())


def test_a_crop_beyond_the_volume_is_refused() -> None:
    with pytest.raises(ValueError, match="does not lie in"):
        crop(numbered((4, 4, 4), np.eye(4)), (0, 0, 0), (4, 5, 4))


# --- resampling ------------------------------------------------------------------------------------------------------


def test_the_same_grid_costs_nothing() -> None:
    volume = numbered((240, 240, 155), np.diag([-1.0, -1, 1, 1]))

    assert resample_to(volume, volume.affine.copy(), volume.shape) is volume


@quick
@given(shapes, affines(), st.sampled_from(["linear", "nearest"]))
def test_there_and_back_between_flipped_grids_is_exact(
    shape: tuple[int, int, int], affine: np.ndarray, mode: Literal["linear", "nearest"]
) -> None:
    volume = numbered(shape, affine)
    ras = to_ras(volume)

    there = resample_to(volume, ras.affine, ras.shape, mode)
    back = resample_to(there, affine, shape, mode)

    np.testing.assert_array_equal(there.array, ras.array)
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.affine, affine, atol=1e-6)


@quick
@given(shapes, affines(), st.data())
def test_a_crop_put_back_fills_the_rest(shape: tuple[int, int, int], affine: np.ndarray, data: st.DataObject) -> None:
    volume = numbered(shape, affine)
    lower = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    upper = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(lower, shape, strict=True))

    back = resample_to(crop(to_ras(volume), (0, 0, 0), to_ras(volume).shape), affine, shape)
    part = resample_to(crop(volume, lower, upper), affine, shape, fill=-1.0)

    np.testing.assert_array_equal(back.array, volume.array)
    box = tuple(slice(a, b) for a, b in zip(lower, upper, strict=True))
    np.testing.assert_array_equal(part.array[box], volume.array[box])
    assert np.count_nonzero(part.array == -1) == volume.array.size - part.array[box].size


@quick
@given(affines(), affines(), st.booleans())
def test_linear_sampling_keeps_world_coordinates(source: np.ndarray, target: np.ndarray, aligned: bool) -> None:
    if aligned:  # the way that goes axis by axis
        target[:3, :3] = (
            source[:3, :3] * np.linalg.norm(target[:3, :3], axis=0) / np.linalg.norm(source[:3, :3], axis=0)
        )
    shape = (12, 13, 14)
    volume = world_ramp(shape, source)
    coarser = np.linalg.norm(np.linalg.inv(source[:3, :3]) @ target[:3, :3], axis=1).max()
    target[:3, :3] /= max(1.0, coarser * 1.001)  # no coarser, so that nothing is smoothed
    target[:3, 3] += (source @ [5.5, 6, 6.5, 1] - target @ [3.5, 3.5, 3.5, 1])[:3]  # the same centre
    matrix = np.linalg.inv(source) @ target

    sampled = resample_to(volume, target, (8, 8, 8))

    indices = np.moveaxis(np.indices((8, 8, 8)), 0, -1) @ matrix[:3, :3].T + matrix[:3, 3]
    inside = np.all((indices >= 0) & (indices <= np.array(shape) - 1), axis=-1)
    assert inside.any()
    np.testing.assert_allclose(
        sampled.array[inside], world_ramp((8, 8, 8), target).array[inside], rtol=1e-4, atol=np.ptp(volume.array) * 1e-4
    )


@quick
@given(affines(oblique=False), st.tuples(*[st.floats(0.5, 3)] * 3))
def test_a_new_spacing_keeps_the_field_of_view(affine: np.ndarray, spacing: tuple[float, float, float]) -> None:
    volume = numbered((20, 21, 22), affine)

    new_affine, shape = ras_grid(volume, spacing)

    centre = affine @ [*(np.array(volume.shape) - 1) / 2, 1]
    np.testing.assert_allclose(new_affine @ [*(np.array(shape) - 1) / 2, 1], centre, atol=1e-9)
    extent, before = np.array(shape) * Volume(np.empty(shape), new_affine).spacing, to_ras(volume)
    assert np.all(np.abs(extent - np.array(before.shape) * before.spacing) <= np.array(spacing) / 2 + 1e-6)
    assert nibabel.aff2axcodes(new_affine) == ("R", "A", "S")


def test_a_spacing_that_is_there_already_changes_nothing() -> None:
    volume = to_ras(numbered((20, 21, 22), np.diag([-1.0, -1.0002, 1.0, 1])))

    affine, shape = ras_grid(volume, (1.0, 1.0, 1.0))

    assert resample_to(volume, affine, shape) is volume


def test_linear_sampling_agrees_with_scipy_axis_by_axis() -> None:
    from twinseg import volumes

    array = np.random.default_rng(0).random((11, 12, 13), dtype=np.float32)
    affine = np.diag([0.7, 0.9, 0.8, 1.0])
    affine[:3, 3] = 0.2, 1.3, 2.1

    fast = resample_to(Volume(array, np.eye(4)), affine, (12, 10, 11), fill=-5.0)
    general = volumes._sample_obliquely(array, affine, (12, 10, 11), "linear", -5.0)

    np.testing.assert_allclose(fast.array, general, atol=1e-5)


def test_a_coarser_grid_averages_instead_of_aliasing() -> None:
    stripes = np.zeros((64, 64, 64), np.float32)
    stripes[::2] = 1  # every second slice: taking every fourth voxel would give all ones or all zeros
    volume = Volume(stripes, np.eye(4))

    coarse = resample_to(volume, *ras_grid(volume, (4.0, 4.0, 4.0)))

    assert coarse.shape == (16, 16, 16)
    np.testing.assert_allclose(coarse.array[1:-1], 0.5, atol=0.02)


@pytest.mark.parametrize("turn", [0.0, 0.2])
def test_labels_stay_labels(turn: float) -> None:
    labels = Volume((np.random.default_rng(1).random((16, 17, 18)) > 0.5).astype(np.uint8) * 3, np.eye(4))
    affine = np.eye(4) * [0.7, 0.7, 0.7, 1]
    affine[:3, :3] = Rotation.from_euler("z", turn).as_matrix() @ affine[:3, :3]

    sampled = resample_to(labels, affine, (20, 20, 20), mode="nearest")

    assert sampled.array.dtype == np.uint8
    assert set(np.unique(sampled.array)) == {0, 3}


def test_a_constant_volume_stays_constant_to_its_border_and_is_filled_beyond() -> None:
    volume = Volume(np.full((8, 8, 8), 5, np.float32), np.eye(4))
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = -0.25 - 1  # four samples before the field of view begins, at -0.5
    affine[:3, :3] = Rotation.from_euler("z", 1e-3).as_matrix() @ affine[:3, :3]

    for turned in (affine, np.where(np.abs(affine) < 2e-3, 0, affine)):
        sampled = resample_to(volume, turned, (20, 20, 20), fill=-1.0).array

        assert np.all(sampled[3:17, 3:17, 3:17] == pytest.approx(5))
        assert np.all(sampled[0] == -1)


# --- grids -----------------------------------------------------------------------------------------------------------


def test_grids_agree_within_a_thousandth() -> None:
    volume = numbered((4, 5, 6), np.eye(4))
    near, far = np.eye(4), np.eye(4)
    near[0, 3], far[0, 3] = 9e-4, 2e-3

    assert grids_agree(volume, Volume(volume.array, near))
    assert not grids_agree(volume, Volume(volume.array, far))
    assert not grids_agree(volume, numbered((4, 5, 7), np.eye(4)))


def test_overlap_is_the_share_of_the_smaller_field_of_view() -> None:
    head, slab, elsewhere = np.eye(4), np.eye(4), np.eye(4)
    slab[2, 3], elsewhere[0, 3] = 8, 24
    volume = numbered((32, 32, 32), head)

    assert overlap(volume, numbered((32, 32, 4), slab)) == 1.0
    assert overlap(volume, numbered((32, 32, 32), elsewhere)) == pytest.approx(0.25)


def test_a_voxel_of_a_tilted_gantry_holds_less_than_the_product_of_its_spacings() -> None:
    tilt = np.deg2rad(25.0)
    affine = np.diag([0.5, 0.5, 1.0, 1.0])
    affine[:3, 2] = 5 * np.array([0.0, np.sin(tilt), np.cos(tilt)])  # slices 5 mm apart along the tilted bed
    straight, tilted = Volume(np.zeros((2, 2, 2)), np.diag([0.5, 0.5, 5.0, 1.0])), Volume(np.zeros((2, 2, 2)), affine)

    assert straight.voxel_ml == pytest.approx(0.00125)
    assert tilted.voxel_ml == pytest.approx(0.00125 * np.cos(tilt))
    assert tilted.spacing == pytest.approx(straight.spacing)
