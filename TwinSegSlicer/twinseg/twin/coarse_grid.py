"""The surroundings of a tumour on a coarse grid: where hundreds of growth runs are affordable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, distance_transform_edt, map_coordinates
from scipy.special import logit
from torch import Tensor

from twinseg.errors import InputError
from twinseg.twin.dose_response import DoseMap
from twinseg.twin.reaction_diffusion import TissueGrid

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Brain:
    """Shares of white and grey matter (X,Y,Z), 0 to 1, on voxels of `spacing` mm. Zero in both: no cell can live."""

    white: NDArray[np.float32]
    grey: NDArray[np.float32]
    spacing: tuple[float, float, float]

    @classmethod
    def of_unknown_tissue(cls, brain: NDArray[np.bool_], spacing: tuple[float, float, float]) -> Brain:
        """From a brain mask alone: every voxel counts as half white, half grey matter."""
        half = np.where(brain, np.float32(0.5), np.float32(0.0))
        return cls(half, half, spacing)

    @property
    def voxel_ml(self) -> float:
        """A voxel's volume in mL."""
        return float(np.prod(self.spacing)) / 1000.0


class CoarseGrid:
    """The surroundings of a tumour on voxels of some mm, cut out of the brain and averaged."""

    def __init__(self, mask: NDArray[np.bool_], brain: Brain, reach_mm: float, voxels: int, device: str) -> None:
        spacing = np.array(brain.spacing)
        held = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
        reach = np.ceil(reach_mm / spacing).astype(int)
        low = np.maximum([h[0] for h in held] - reach, 0)
        high = np.minimum([h[-1] for h in held] + reach + 1, mask.shape)
        wanted = max(2.0, float(np.prod((high - low) * spacing) / voxels) ** (1 / 3))
        self.block = np.maximum(1, np.round(wanted / spacing)).astype(int)
        if np.prod((high - low) / self.block) > 1.5 * voxels:
            self.block = np.ceil(wanted / spacing).astype(int)
        self.counts = -((low - high) // self.block)
        self.low = low
        self.brain_shape = mask.shape
        coarse = tuple((spacing * self.block).tolist())
        self.spacing = (coarse[0], coarse[1], coarse[2])
        self.voxel_ml = float(np.prod(self.spacing)) / 1000.0
        white, grey = self._average(brain.white), self._average(brain.grey)
        share = white + grey
        tumour = self._average(mask) > 0.25
        # A tumour's own voxels are tissue, whatever an atlas makes of their look
        unknown = tumour & (share < 0.05)
        white, grey = np.where(unknown, 0.5, white), np.where(unknown, 0.5, grey)
        share = white + grey
        open_ = (share >= 0.5) | tumour
        white, grey = (np.where(open_, part / np.maximum(share, 1e-6), 0.0) for part in (white, grey))
        self.tissue = TissueGrid(white, grey, self.spacing, device)
        self.tissue_ml = float(open_.sum()) * self.voxel_ml

    def _place(self) -> tuple[slice, ...]:
        """Where this grid lies on the brain's, as far as that reaches."""
        return tuple(slice(a, a + n * k) for a, n, k in zip(self.low, self.counts, self.block, strict=True))

    def _average(self, array: NDArray[np.generic], beyond: Literal["constant", "edge"] = "constant") -> Array:
        """Means over blocks. They may reach over the brain's border: `beyond` it are zeros, or the border's values."""
        cut = array[self._place()].astype(np.float64)
        cut = np.pad(cut, [(0, int(n)) for n in self.counts * self.block - cut.shape], mode=beyond)
        shape = [n for pair in zip(self.counts, self.block, strict=True) for n in pair]
        return cut.reshape(shape).mean(axis=(1, 3, 5))

    def from_brain(self, field: DoseMap) -> DoseMap:
        """A map on the brain's grid, averaged on this one."""
        if field.shape != self.brain_shape:
            raise InputError(f"growth: the dose map {field.shape} does not fit the brain's grid {self.brain_shape}.")
        return self._average(field, "edge").astype(np.float32)

    def to_brain(self, field: NDArray[np.float32]) -> NDArray[np.float32]:
        """A map on this grid, interpolated on the brain's; zero outside."""
        result = np.zeros(self.brain_shape, np.float32)
        counts = result[self._place()].shape
        places = [(np.arange(n) + 0.5) / k - 0.5 for n, k in zip(counts, self.block, strict=True)]
        inside = map_coordinates(field, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest")
        result[self._place()] = inside
        return result

    def distance(self, mask: NDArray[np.bool_]) -> tuple[Array, float]:
        """The signed distance to the filled mask's border on this grid, in mm; the volume inside it, in mL."""
        filled = binary_fill_holes(mask)
        spacing = tuple(float(a / b) for a, b in zip(self.spacing, self.block, strict=True))
        distance = self._average(signed_distance(filled, (spacing[0], spacing[1], spacing[2])), "edge")
        return distance, float(filled.sum() * np.prod(spacing) / 1000.0)

    def visible_share(self, density: Tensor, visible_density: float) -> Tensor:
        """The share (X,Y,Z,n) of each voxel in which `density` (X,Y,Z,n) is above the visible one.

        The logit of a front is nearly linear in depth, so that its slope places the edge within the voxel.
        """
        level = torch.logit(density.clamp(1e-30, 1 - 1e-6)).sub_(float(logit(visible_density)))
        return level.div_(self.steepness(level)).add_(0.5).clamp_(0, 1).mul_(self.tissue.tissue)

    def steepness(self, level: Tensor) -> Tensor:
        """How much `level` (X,Y,Z,n) changes within a voxel, along its steepest direction; above zero."""
        tissue = self.tissue.tissue
        square = torch.full_like(level, 1e-6)
        for axis in range(3):
            count = level.shape[axis] - 1
            if count:
                low, high = level.narrow(axis, 0, count), level.narrow(axis, 1, count)
                both = tissue.narrow(axis, 0, count) * tissue.narrow(axis, 1, count)
                change = (high - low).square_().mul_(both / 2)
                square.narrow(axis, 0, count).add_(change)
                square.narrow(axis, 1, count).add_(change)
        return square.sqrt_()


def signed_distance(mask: NDArray[np.bool_], spacing: tuple[float, float, float]) -> Array:
    """Distance in mm to the mask's border (X,Y,Z), negative inside."""
    outside = distance_transform_edt(~mask, sampling=spacing)
    inside = distance_transform_edt(mask, sampling=spacing)
    # Voxel centres on either side of the border are half a voxel from it
    half = np.mean(spacing) / 2
    return np.where(mask, half - inside, outside - half)
