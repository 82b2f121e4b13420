"""Regular grids in millimetres and the two things drawn on them: band-limited noise and separable filters.

Both are products of one small matrix per axis, which is several times faster than a spatial filter of the same
effect, and both are defined in millimetres, so that the same seed gives the same head at any voxel size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Axes = tuple[Field, Field, Field]

NOISE_EXTENT_MM = 170.0
"""Noise is defined in a cube of this half-length around the origin; beyond it, the border's values go on."""


@dataclass(frozen=True)
class Grid:
    """A regular grid of `shape` voxels with `spacing` mm along R, A and S, centred on the origin of the RAS space."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    @cached_property
    def axes(self) -> Axes:
        """The voxels' positions along each axis, in mm."""
        x, y, z = (
            ((np.arange(n) - (n - 1) / 2) * step).astype(np.float32)
            for n, step in zip(self.shape, self.spacing, strict=True)
        )
        return x, y, z

    @cached_property
    def affine(self) -> NDArray[np.float64]:
        """The 4x4 matrix from voxel index to RAS mm."""
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = [-(n - 1) / 2 * step for n, step in zip(self.shape, self.spacing, strict=True)]
        return affine

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel in mL."""
        return float(np.prod(self.spacing)) / 1000.0


def mesh(axes: Axes) -> Axes:
    """The three coordinates as arrays that broadcast against each other: (X,1,1), (1,Y,1), (1,1,Z)."""
    x, y, z = axes
    return x[:, None, None], y[None, :, None], z[None, None, :]


def along_axes(field: Field, matrices: tuple[Field, Field, Field]) -> Field:
    """Multiply each axis of `field` (X,Y,Z) by its matrix (new size, old size)."""
    first, second, third = matrices
    out = (first @ field.reshape(field.shape[0], -1)).reshape(first.shape[0], *field.shape[1:])
    out = np.matmul(second, out)
    return np.ascontiguousarray(np.matmul(out, third.T))


def smooth_noise(rng: np.random.Generator, axes: Axes, width: float) -> Field:
    """Noise of unit variance and zero mean whose bumps are about `width` mm wide, (X,Y,Z).

    Normal deviates on a lattice of half that width, interpolated by cubic B-splines. The lattice is fixed in space, so
    the same generator state gives the same field at any voxel size.
    """
    step = width / 2
    count = int(np.ceil(2 * NOISE_EXTENT_MM / step)) + 4
    lattice = rng.standard_normal((count, count, count), dtype=np.float32)
    x, y, z = (_spline_matrix(axis, step, count) for axis in axes)
    return along_axes(lattice, (x, y, z))


def _spline_matrix(axis: Field, step: float, count: int) -> Field:
    """Cubic B-spline weights (positions, lattice points); each row has unit Euclidean length, to keep the variance."""
    position = np.clip((axis + NOISE_EXTENT_MM) / step + 1.5, 1.0, count - 2.0)
    distance = np.abs(position[:, None] - np.arange(count)[None, :])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    weights = np.where(distance < 1, near, far)
    return np.asarray(weights / np.linalg.norm(weights, axis=1, keepdims=True), dtype=np.float32)


def gaussian_matrix(count: int, sigma: float) -> Field:
    """Gaussian blur of `sigma` voxels along an axis of `count` voxels; rows sum to one (the border is renormalised)."""
    if sigma <= 0:
        return np.eye(count, dtype=np.float32)
    index = np.arange(count)
    weights = np.exp(-0.5 * ((index[:, None] - index[None, :]) / sigma) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def blur(field: Field, sigma_mm: float, spacing: tuple[float, float, float]) -> Field:
    """Gaussian blur of `sigma_mm`, the same in every direction."""
    x, y, z = (gaussian_matrix(n, sigma_mm / step) for n, step in zip(field.shape, spacing, strict=True))
    return along_axes(field, (x, y, z))


def slice_matrices(count: int, spacing: float, thickness: float) -> tuple[Field, Field]:
    """How a scanner with `thickness` mm samples an axis of `count` voxels of `spacing` mm, and the way back.

    The first matrix (slices, count) averages over a slice's profile (a Gaussian whose full width at half maximum is the
    thickness); the second (count, slices) interpolates linearly between slice centres.
    """
    slices = max(2, round(count * spacing / max(thickness, spacing)))
    pitch = count / slices
    centres = (np.arange(slices) + 0.5) * pitch - 0.5
    index = np.arange(count)
    sigma = max(thickness / spacing / 2.355, 0.3)
    sample = np.exp(-0.5 * ((centres[:, None] - index[None, :]) / sigma) ** 2)
    sample /= sample.sum(axis=1, keepdims=True)
    position = np.clip((index - centres[0]) / pitch, 0, slices - 1)
    spread = np.clip(1 - np.abs(position[:, None] - np.arange(slices)[None, :]), 0, None)
    return sample.astype(np.float32), spread.astype(np.float32)


def smoothstep(field: Field, low: float | Field, high: float | Field) -> Field:
    """0 below `low`, 1 above `high`, and a smooth cubic between."""
    ramp = np.clip((field - low) / (high - low), 0.0, 1.0)
    return np.asarray(ramp * ramp * (3.0 - 2.0 * ramp), dtype=np.float32)


def rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix (3,3) that turns about x, y, z by `angles` in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = matrix @ turn
    return matrix
