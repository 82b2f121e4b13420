"""Noise, filters and warps on a device: what holds for each of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twinseg.phantom.fields import gaussian_matrix, rotation
from twinseg.phantom.random_fields import Patch, Warp, affine_positions, along_axes, smoothstep

CPU = torch.device("cpu")
angles = st.tuples(*(st.floats(-np.pi, np.pi) for _ in range(3)))


@pytest.mark.parametrize("width", [8.0, 25.0])
def test_noise_has_unit_variance_and_bumps_of_the_width_asked_for(width: float) -> None:
    patch = Patch((64, 64, 64), 2.0, CPU)
    noise = patch.noise(torch.Generator().manual_seed(1), width, 6)

    assert noise.shape == (6, 64, 64, 64)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.12)
    near, far = round(width / 8), round(2 * width)
    along = [float((noise * noise.roll(step, 1))[:, step:].mean()) for step in (max(1, near), far // 2)]
    assert along[0] > 0.6
    assert abs(along[1]) < 0.25


def test_the_same_generator_state_gives_the_same_noise() -> None:
    patch = Patch((16, 20, 12), 2.0, CPU)
    first, second = (patch.noise(torch.Generator().manual_seed(7), 10.0) for _ in range(2))
    assert torch.equal(first, second)


def test_along_axes_is_a_matrix_product_an_axis_and_none_is_the_identity() -> None:
    rng = np.random.default_rng(0)
    field = torch.from_numpy(rng.normal(size=(2, 3, 4, 5)))
    a, b, c = (torch.from_numpy(rng.normal(size=size)) for size in ((6, 3), (7, 4), (8, 5)))

    torch.testing.assert_close(along_axes(field, (a, b, c)), torch.einsum("nxyz,ix,jy,kz->nijk", field, a, b, c))
    torch.testing.assert_close(along_axes(field, (None, None, None)), field)


def test_blur_keeps_a_constant_and_agrees_with_the_matrix() -> None:
    patch = Patch((12, 12, 12), 2.0, CPU)
    torch.testing.assert_close(patch.blur(torch.ones(12, 12, 12), 4.0), torch.ones(12, 12, 12))
    line = torch.zeros(12, 12, 12)
    line[6] = 1.0
    expected = torch.from_numpy(gaussian_matrix(12, 2.0))[:, 6]
    torch.testing.assert_close(patch.blur(line, 4.0)[:, 3, 3], expected)


@settings(max_examples=30, deadline=None)
@given(angles=angles, scale=st.floats(0.7, 1.4), shift=st.tuples(*(st.floats(-5, 5) for _ in range(3))))
def test_a_linear_field_is_read_exactly_through_any_affine_warp(
    angles: tuple[float, float, float], scale: float, shift: tuple[float, float, float]
) -> None:
    """Trilinear interpolation is exact on linear fields, and nearest is within half a voxel of it."""
    patch = Patch((8, 9, 7), 2.0, CPU)
    shape = (40, 42, 38)
    matrix, middle = rotation(np.array(angles)) * scale / 2.0, (np.array(shape) - 1) / 2 + np.array(shift)
    slope = np.array([0.5, -1.0, 2.0])
    source = torch.einsum("nxyz,n->xyz", torch.from_numpy(np.indices(shape)).float(), torch.tensor(slope).float())

    warp = Warp(affine_positions(patch, matrix, middle), shape)

    x, y, z = (part.expand(patch.shape).numpy().ravel() for part in patch.mesh)
    expected = slope @ (matrix @ np.stack([x, y, z]) + middle[:, None])
    np.testing.assert_allclose(warp.linear(source[None])[0].numpy().ravel(), expected, atol=2e-3)
    assert np.abs(warp.nearest(source).numpy().ravel() - expected).max() <= 0.5 * np.abs(slope).sum() + 1e-3


def test_beyond_the_border_nearest_repeats_it_and_linear_is_zero() -> None:
    patch = Patch((3, 3, 3), 2.0, CPU)
    source = torch.ones(5, 5, 5)
    warp = Warp(affine_positions(patch, np.eye(3), np.full(3, 50.0)), (5, 5, 5))

    assert torch.equal(warp.nearest(source), torch.ones(3, 3, 3))
    assert torch.equal(warp.linear(source[None])[0], torch.zeros(3, 3, 3))


def test_smoothstep_rises_from_zero_to_one() -> None:
    steps = smoothstep(torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0]), 0.0, 1.0)
    torch.testing.assert_close(steps, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
