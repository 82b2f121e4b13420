"""The grid, the noise and the filters that everything synthetic is drawn with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinseg.phantom.fields import Grid, along_axes, blur, gaussian_matrix, slice_matrices, smooth_noise, smoothstep


def test_the_grid_is_centred_on_the_origin() -> None:
    grid = Grid((10, 11, 12), (1.0, 2.0, 3.0))

    first = grid.affine @ [0, 0, 0, 1]
    last = grid.affine @ [9, 10, 11, 1]

    np.testing.assert_allclose(first[:3], -last[:3])
    np.testing.assert_allclose([axis[0] for axis in grid.axes], first[:3])
    assert grid.voxel_ml == pytest.approx(0.006)


def test_noise_is_the_same_field_at_any_voxel_size() -> None:
    coarse, fine = Grid((21, 21, 21), (6.0, 6.0, 6.0)), Grid((61, 61, 61), (2.0, 2.0, 2.0))

    on_coarse = smooth_noise(np.random.default_rng(3), coarse.axes, 20.0)
    on_fine = smooth_noise(np.random.default_rng(3), fine.axes, 20.0)

    np.testing.assert_allclose(on_fine[::3, ::3, ::3], on_coarse, atol=1e-4)


def test_noise_has_unit_variance_and_wider_bumps_for_a_larger_width() -> None:
    axes = Grid((100, 100, 100), (2.0, 2.0, 2.0)).axes
    narrow = smooth_noise(np.random.default_rng(0), axes, 6.0)
    wide = smooth_noise(np.random.default_rng(0), axes, 24.0)

    assert narrow.std() == pytest.approx(1.0, abs=0.03)
    assert wide.std() == pytest.approx(1.0, abs=0.1)
    assert np.abs(np.diff(wide, axis=0)).mean() < 0.4 * np.abs(np.diff(narrow, axis=0)).mean()


@given(count=st.integers(4, 60), spacing=st.floats(0.5, 4.0), thickness=st.floats(0.3, 9.0))
@settings(max_examples=60, deadline=None)
def test_sampling_in_slices_and_back_keeps_a_constant(count: int, spacing: float, thickness: float) -> None:
    sample, spread = slice_matrices(count, spacing, thickness)

    np.testing.assert_allclose(spread @ (sample @ np.ones(count)), 1.0, atol=1e-5)
    assert 2 <= sample.shape[0] <= max(count, 2)


def test_a_thick_slice_is_blurred_along_its_axis_alone() -> None:
    image = np.zeros((24, 24, 24), dtype=np.float32)
    image[12, 12, 12] = 1.0
    thin, thick = slice_matrices(24, 1.0, 0.5), slice_matrices(24, 1.0, 6.0)

    seen = along_axes(image, (thin[1] @ thin[0], thin[1] @ thin[0], thick[1] @ thick[0]))

    assert (seen[12, 12] > 0.01).sum() >= 5
    assert (seen[:, 12, 12] > 0.1 * seen.max()).sum() == 1


def test_blur_agrees_with_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    image = np.zeros((30, 30, 30), dtype=np.float32)
    image[10:20, 12:18, 14] = 1.0

    ours = blur(image, 4.0, (2.0, 1.0, 2.0))

    np.testing.assert_allclose(ours, ndimage.gaussian_filter(image, (2.0, 4.0, 2.0), truncate=8.0), atol=2e-3)


def test_no_blur_is_the_identity() -> None:
    np.testing.assert_array_equal(gaussian_matrix(5, 0.0), np.eye(5))


def test_smoothstep_runs_from_zero_to_one() -> None:
    np.testing.assert_allclose(smoothstep(np.array([0.0, 1.0, 1.5, 2.0, 9.0]), 1.0, 2.0), [0, 0, 0.5, 1, 1])
