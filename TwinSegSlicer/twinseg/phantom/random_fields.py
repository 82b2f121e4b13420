"""Band-limited noise, separable filters and warps by torch, on whatever device trains.

What `fields.py` is to a cohort, this file is to training by synthesis, where each step asks for a dozen fields: on a
patch instead of the whole head, on the CPU or a GPU, everything from one generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from twinseg.phantom.fields import gaussian_matrix

Triple = tuple[int, int, int]
Mesh = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Patch:
    """A regular grid of `shape` voxels of `spacing` mm (equal along each axis), its middle at the origin."""

    shape: Triple
    spacing: float
    device: torch.device

    @cached_property
    def mesh(self) -> Mesh:
        """Positions in mm, broadcastable: (X,1,1), (1,Y,1), (1,1,Z)."""
        x, y, z = (
            (torch.arange(n, dtype=torch.float32, device=self.device) - (n - 1) / 2) * self.spacing for n in self.shape
        )
        return x[:, None, None], y[None, :, None], z[None, None, :]

    def noise(self, generator: torch.Generator, width: float, channels: int = 1) -> Tensor:
        """Noise of unit variance and zero mean whose bumps are about `width` mm wide, (channels, X, Y, Z).

        Normal deviates on a lattice of half that width, laid at random, between them cubic B-splines.
        """
        step = width / 2
        counts = [int(np.ceil((n - 1) * self.spacing / step)) + 5 for n in self.shape]
        lattice = torch.randn((channels, *counts), generator=generator, device=self.device)
        phase = torch.rand(3, generator=generator, device=self.device)
        matrices = []
        for axis, count in enumerate(counts):
            position = torch.arange(self.shape[axis], dtype=torch.float32, device=self.device) * (self.spacing / step)
            matrices.append(_spline_matrix(position + phase[axis] + 1.0, count))
        return along_axes(lattice, matrices)

    def blur(self, field: Tensor, sigma_mm: float) -> Tensor:
        """Gaussian blur of `field` (..., X, Y, Z), the same in every direction."""
        matrices = [gaussian_matrix(n, sigma_mm / self.spacing) for n in self.shape]
        return along_axes(field, [torch.from_numpy(matrix).to(self.device) for matrix in matrices])


def _spline_matrix(position: Tensor, count: int) -> Tensor:
    """Cubic B-spline weights (positions, lattice points); each row has unit Euclidean length, to keep the variance."""
    distance = (position[:, None] - torch.arange(count, device=position.device)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    weights = torch.where(distance < 1, near, far)
    return weights / weights.norm(dim=1, keepdim=True)


def along_axes(field: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """Multiply each of the last three axes of `field` (..., X, Y, Z) by its matrix (new size, old size); None leaves
    an axis as it is."""
    first, second, third = matrices
    if third is not None:
        field = field @ third.T
    if second is not None:
        field = second @ field
    if first is not None:
        field = (first @ field.flatten(-2)).unflatten(-1, field.shape[-2:])
    return field


@dataclass(frozen=True)
class Warp:
    """Where each voxel of a patch is read from: `positions` (3, X, Y, Z), voxels of a source of `shape`."""

    positions: Tensor
    shape: Triple

    @cached_property
    def _nearest(self) -> Tensor:
        flat: Tensor | None = None
        for position, count in zip(self.positions, self.shape, strict=True):
            index = (position + 0.5).clamp(0, count - 1).to(torch.int64)
            flat = index if flat is None else flat.mul_(count).add_(index)
        assert flat is not None
        return flat

    def nearest(self, source: Tensor) -> Tensor:
        """The source's (X, Y, Z) nearest values; beyond its border, the border's."""
        return torch.take(source, self._nearest)

    def linear(self, source: Tensor) -> Tensor:
        """The sources' (channels, X, Y, Z) interpolated values; beyond their border, zero."""
        scale = torch.tensor([2 / (count - 1) for count in self.shape], device=source.device)
        points = (self.positions * scale[:, None, None, None] - 1).flip(0).movedim(0, -1)
        return functional.grid_sample(source[None], points[None], padding_mode="zeros", align_corners=True)[0]


def affine_positions(
    patch: Patch, matrix: NDArray[np.float64], centre: NDArray[np.float64], bend: Tensor | None = None
) -> Tensor:
    """matrix · p + centre + bend for each voxel's position p, in mm, (3, X, Y, Z); `bend` (3, X, Y, Z) in mm."""
    x, y, z = patch.mesh
    rows = []
    for axis in range(3):
        a, b, c = (float(value) for value in matrix[axis])
        plane = b * y + (c * z + float(centre[axis]))
        rows.append(a * x + (plane if bend is None else bend[axis] + plane))
    return torch.stack(rows)


def smoothstep(field: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """0 below `low`, 1 above `high`, and a smooth cubic between."""
    ramp = ((field - low) / (high - low)).clamp(0.0, 1.0)
    return ramp * ramp * (3.0 - 2.0 * ramp)
