"""Diameters against shapes worked out by hand, and against brute force on 200 random lesions."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import ndimage

from twinseg.twin.diameters import lesion_diameters, slice_diameters
from twinseg.volumes import Volume

Spacing = tuple[float, float]


def disc(shape: tuple[int, int], centre: tuple[float, float], radius: float, spacing: Spacing = (1, 1)) -> np.ndarray:
    x, y = np.ogrid[: shape[0], : shape[1]]
    return np.hypot((x - centre[0]) * spacing[0], (y - centre[1]) * spacing[1]) <= radius


def random_lesion(generator: np.random.Generator) -> np.ndarray:
    """The largest part of thresholded smooth noise: bays, necks and, at times, holes."""
    noise = ndimage.gaussian_filter(generator.normal(size=(24, 24)), generator.uniform(1.2, 3.5))
    parts, _ = ndimage.label(noise > np.quantile(noise, generator.uniform(0.6, 0.9)))
    return parts == np.bincount(parts.ravel())[1:].argmax() + 1


def brute_force(mask: np.ndarray, spacing: Spacing) -> tuple[float, float]:
    """Every pair of voxels and every line across, followed in small steps."""
    filled, size = ndimage.binary_fill_holes(mask), np.array(spacing)
    voxels = np.argwhere(filled)

    def inside(a: np.ndarray, b: np.ndarray) -> bool:
        shares = np.linspace(0, 1, int(np.abs(b - a).max() * 20) + 2)[:, None]
        points = np.rint(a + shares * (b - a)).astype(int)
        return bool(filled[points[:, 0], points[:, 1]].all())

    one, other = np.triu_indices(len(voxels))
    lengths = np.linalg.norm((voxels[one] - voxels[other]) * size, axis=1)
    pair = next(i for i in np.argsort(-lengths, kind="stable") if inside(voxels[one[i]], voxels[other[i]]))
    along = (voxels[other[pair]] - voxels[one[pair]]) * size
    along = along / np.linalg.norm(along) if lengths[pair] else np.array([1.0, 0.0])
    across = np.array([-along[1], along[0]])
    steps = np.arange(0, 50, 0.02)[:, None] * across / size
    widest = 0.0
    for voxel in voxels:
        ways = []
        for sign in (1, -1):
            line = np.clip(np.rint(voxel + sign * steps).astype(int), -1, filled.shape)
            inside_line = np.pad(filled, 1)[line[:, 0] + 1, line[:, 1] + 1]
            ways.append(int(np.argmin(inside_line)) * 0.02)
        widest = max(widest, sum(ways))
    return lengths[pair] + 1 / np.linalg.norm(along / size), widest


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.9, 1.2)])
def test_two_hundred_random_lesions_agree_with_brute_force_within_one_pixel(spacing: Spacing) -> None:
    generator = np.random.default_rng(7)

    for _ in range(100):
        mask = random_lesion(generator)
        longest, perpendicular, _ = slice_diameters(mask, spacing)
        expected = brute_force(mask, spacing)
        assert longest == pytest.approx(expected[0], abs=max(spacing))
        assert perpendicular == pytest.approx(expected[1], abs=max(spacing))


def test_a_rectangle_by_hand() -> None:
    mask = np.zeros((40, 30), bool)
    mask[5:35, 10:14] = True  # 30 by 4 voxels: from corner to corner 29 and 3 voxels between the centres

    longest, perpendicular, ends = slice_diameters(mask, (1, 1))

    assert longest == pytest.approx(np.hypot(29, 3) + 1, abs=0.3)
    assert perpendicular == pytest.approx(4, abs=0.5)
    assert np.dot(ends[1] - ends[0], ends[3] - ends[2]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.94, 0.94), (0.5, 1.0)])
@pytest.mark.parametrize("diameter", [10.0, 25.0, 60.0])
def test_a_disc_measures_its_diameter_both_ways(spacing: Spacing, diameter: float) -> None:
    mask = disc((140, 100), (70.3, 49.8), diameter / 2, spacing)

    longest, perpendicular, _ = slice_diameters(mask, spacing)

    assert longest == pytest.approx(diameter, abs=1.2 * max(spacing))
    assert perpendicular == pytest.approx(diameter, abs=1.2 * max(spacing))


def test_a_ring_is_measured_across_its_necrotic_core() -> None:
    ring = disc((50, 50), (25, 25), 15) & ~disc((50, 50), (25, 25), 11)

    longest, _, _ = slice_diameters(ring, (1, 1))

    assert longest == pytest.approx(30, abs=1.2)


def test_a_line_does_not_leave_the_lesion() -> None:
    mask = np.zeros((40, 40), bool)
    mask[5:35, 5:10] = mask[5:35, 30:35] = mask[5:10, 5:35] = True  # a horseshoe 30 voxels wide: no line spans its gap

    longest, _, _ = slice_diameters(mask, (1, 1))

    assert longest == pytest.approx(np.hypot(29, 4) + 1, abs=0.5)


def test_one_voxel_has_its_own_size() -> None:
    mask = np.zeros((5, 5), bool)
    mask[2, 2] = True

    longest, perpendicular, _ = slice_diameters(mask, (0.8, 1.1))

    assert (longest, perpendicular) == pytest.approx((0.8, 1.1))


def test_the_slice_with_the_largest_product_counts_whatever_way_the_array_lies() -> None:
    array = np.zeros((60, 50, 20), np.uint8)
    array[20:40, 20:40, 5] = 1  # a square
    array[5:55, 20:24, 9] = 1  # longer, but narrow
    upright = Volume(array, np.diag([1.0, 1.0, 3.0, 1.0]))
    turned = np.array([[0, 0, -1.0, 3], [-1.0, 0, 0, 5], [0, 3.0, 0, 7], [0, 0, 0, 1]])
    lying = Volume(np.ascontiguousarray(array.transpose(1, 2, 0)), turned)

    measured, again = lesion_diameters(upright), lesion_diameters(lying)

    assert measured is not None
    assert again is not None
    assert measured.product == pytest.approx(again.product, rel=0.02)
    assert measured.longest == pytest.approx(np.hypot(19, 19) + 1, abs=0.5)
    assert {point[2] for line in measured.lines for point in line} == {15.0}


@pytest.mark.parametrize(("side", "expected"), [(10, True), (9, False)])
def test_measurable_from_ten_by_ten_mm(side: int, expected: bool) -> None:
    array = np.zeros((40, 20, 3), np.uint8)
    array[5:35, 5 : 5 + side, 1] = 1

    measured = lesion_diameters(Volume(array, np.eye(4)))

    assert measured is not None
    assert measured.measurable() is expected


def test_an_empty_mask_has_no_diameters() -> None:
    assert lesion_diameters(Volume(np.zeros((5, 5, 5)), np.eye(4))) is None


def test_a_large_lesion_takes_under_three_seconds() -> None:
    x, y, z = np.ogrid[:240, :240, :155]
    radius = np.sqrt(((x - 110) / 1.4) ** 2 + (y - 120.0) ** 2 + (z - 80.0) ** 2)
    lesion = Volume((radius < 35) & (radius > 20), np.eye(4))
    start = time.process_time()

    measured = lesion_diameters(lesion)

    assert measured is not None
    assert measured.longest == pytest.approx(2 * 35 * 1.4, abs=2)
    assert time.process_time() - start < 3
