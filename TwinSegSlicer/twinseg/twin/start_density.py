"""The cell density behind a segmentation: how many cells there are beyond the visible edge, and how many within.

That depends on how the tumour came about. So tumours are grown from a few cells in the depth of the mask, in the
patient's tissue, until they have the mask's volume; then their densities are laid out anew, the highest deepest in
the mask. So the amounts are those of a tumour in this tissue, and the shape is the patient's. (A fixed profile beyond
the mask's edge, or that of the travelling wave, was up to 40 % off in the volume of the next visit: edges rest where
tissue slows the cells.)

Measured in units of 1 / rho, growth depends on D / rho and on white to grey matter alone. So a small library over these
two, made once for a mask, serves all parameter samples.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logit
from torch import Tensor

from twinseg.twin.coarse_grid import CoarseGrid
from twinseg.twin.dose_response import TreatmentEffect
from twinseg.twin.reaction_diffusion import Ensemble, Rates
from twinseg.twin.treatments import Treatments

Array = NDArray[np.float64]

WIDEST_MM, COUNT = 6.0, 12
RATIOS = np.array([3.5, 7.0, 14.0])
FARTHEST_SHIFT, HALVINGS = 20.0, 26
SEED_RADIUS_MM = 2.0

SETTLING = 0.25
"""In units of 1 / rho. On 22 phantoms of another scheme (0.4 to 8 mL, from one to ten seeds), untreated and with their
growth halved or stopped, the error of ln(volume) at 2 / rho was 0.55 without it, 0.47 with 0.25 and 0.43 with 0.5; on
16 of 10 to 50 mL it was 0.073, 0.071 and 0.073. But where treatment is unknown, 0.5 was worse by 0.02
(Testing/Experiments/twin.py)."""

LONGEST_AGE = 250.0
"""In units of 1 / rho: time for a front of the least width to cross 80 mm of white matter, or 40 mm of grey."""


class StartDensities:
    """Densities for a mask of `volume_ml` at signed `distance` (X,Y,Z) mm on `grid`, `visible_density` at its edge."""

    def __init__(self, grid: CoarseGrid, distance: Array, volume_ml: float, visible_density: float) -> None:
        self.grid, self.visible_density = grid, visible_density
        self.wanted = min(volume_ml, 0.9 * grid.tissue_ml) / grid.voxel_ml
        # Fronts much narrower than a voxel are all alike
        self.widths = np.geomspace(max(0.32, 0.14 * min(grid.spacing)), WIDEST_MM, COUNT)
        self.levels = self._settled(_levels(self._laid_out(self._grown(distance), distance)))

    def densities(self, width_mm: Array, white_to_grey: Array, volume_factor: Array) -> Tensor:
        """Densities (X,Y,Z,n) for n samples whose visible volume is `volume_factor` times the mask's.

        `width_mm` is sqrt(D / rho) in white matter.
        """
        levels = torch.zeros((*self.levels.shape[:3], len(width_mm)), device=self.levels.device)
        for a, share_a in _between(np.log(width_mm), np.log(self.widths)):
            for b, share_b in _between(np.log(white_to_grey), np.log(RATIOS)):
                which = torch.as_tensor(a * len(RATIOS) + b)
                levels += self.levels[..., which] * self.grid.tissue.samples(share_a * share_b)
        wanted = np.minimum(volume_factor * self.wanted, 0.95 * self.grid.tissue_ml / self.grid.voxel_ml)
        density = torch.sigmoid(levels + self._shift(levels, self.grid.tissue.samples(wanted)))
        return (density * self.grid.tissue.tissue).contiguous()

    def _shift(self, levels: Tensor, wanted: Tensor) -> Tensor:
        """What to add to the logits `levels` (X,Y,Z,n) so that `wanted` (n,) voxels are visible: their number is
        brought to its place by moving in logistic time.

        Found by halving: around a small tumour of a wide front the number leaps from none to many times the wanted.
        """
        per_level = self.grid.steepness(levels).reciprocal_()
        depth = (levels - float(logit(self.visible_density))).mul_(per_level).add_(0.5)
        shift, step = torch.zeros_like(wanted), FARTHEST_SHIFT / 2
        for _ in range(HALVINGS):
            visible = torch.addcmul(depth, per_level, shift).clamp_(0, 1).mul_(self.grid.tissue.tissue)
            shift += torch.where(visible.sum(dim=(0, 1, 2)) < wanted, step, -step)
            step /= 2
        return shift

    def _grown(self, distance: Array) -> Tensor:
        """Densities (X,Y,Z, widths x ratios) at the moment when as many voxels are visible as in the mask."""
        seed = self.grid.tissue.samples(self._droplet(distance))[..., None]
        # Narrow fronts take many times the steps of wide ones
        parts = np.array_split(self.widths, 4)
        return torch.cat([self._grown_part(seed, np.repeat(part, len(RATIOS))) for part in parts], dim=3)

    def _grown_part(self, seed: Tensor, widths: Array) -> Tensor:
        density = seed.repeat(1, 1, 1, len(widths))
        members = self._tumours(density, widths)
        grown = torch.zeros_like(density)
        growing = torch.ones(len(widths), dtype=torch.bool, device=grown.device)
        # Tissue apart from the rest is never reached: then the most that there is must do
        while growing.any() and members.day < LONGEST_AGE:
            members.advance(members.day + members.longest_step)
            reached = growing & ((density > self.visible_density).sum(dim=(0, 1, 2)) >= self.wanted)
            grown[..., reached] = density[..., reached]
            growing &= ~reached
        grown[..., growing] = density[..., growing]
        return grown

    def _tumours(self, density: Tensor, widths: Array) -> Ensemble:
        """Tumours that grow from `density` on, untreated, with rho 1; each width comes with all ratios."""
        ratios, none = np.tile(RATIOS, len(widths) // len(RATIOS)), np.zeros_like(widths)
        rates = Rates(widths**2, np.ones_like(widths), ratios, none, none)
        return Ensemble(self.grid.tissue, rates, density, 0.0, TreatmentEffect(Treatments.none_given()))

    def _settled(self, levels: Tensor) -> Tensor:
        """The logits (X,Y,Z, widths x ratios) of tumours that had `levels` when they were younger by `SETTLING`."""
        wanted = self.grid.tissue.samples(np.full(levels.shape[3], self.wanted))
        density = torch.sigmoid(levels + self._shift(levels, wanted) - SETTLING) * self.grid.tissue.tissue
        self._tumours(density, np.repeat(self.widths, len(RATIOS))).advance(SETTLING)
        return _levels(density)

    def _laid_out(self, grown: Tensor, distance: Array) -> Tensor:
        inside = self.grid.tissue.tissue[..., 0] > 0
        order = torch.as_tensor(distance, device=grown.device)[inside].argsort()
        densities = torch.zeros_like(grown)
        densities[tuple(inside.nonzero()[order].T)] = grown[inside].sort(dim=0, descending=True).values
        return densities

    def _droplet(self, distance: Array) -> Array:
        """A few cells around the deepest place of the mask."""
        inside = self.grid.tissue.tissue[..., 0].cpu().numpy() > 0
        deepest = np.unravel_index(np.argmin(np.where(inside, distance, np.inf)), inside.shape)
        axes = np.meshgrid(*[np.arange(n) for n in inside.shape], indexing="ij")
        parts = zip(axes, deepest, self.grid.spacing, strict=True)
        square = np.sum([((axis - place) * step) ** 2 for axis, place, step in parts], axis=0)
        radius = max(SEED_RADIUS_MM, min(self.grid.spacing) / 2)
        return np.asarray(0.9 * np.exp(-0.5 * square / radius**2) * inside)


def _levels(density: Tensor) -> Tensor:
    """The logit of densities; of none at all and of the most that there can be, a finite one."""
    return torch.logit(density.clamp(1e-30, 1 - 1e-6))


def _between(values: Array, nodes: Array) -> list[tuple[NDArray[np.intp], Array]]:
    """For linear interpolation at `values` (n,): the node below and its weight (n,), the node above and its weight."""
    clipped = np.clip(values, nodes[0], nodes[-1])
    below = np.clip(np.searchsorted(nodes, clipped, side="right") - 1, 0, len(nodes) - 2)
    share = (clipped - nodes[below]) / (nodes[below + 1] - nodes[below])
    return [(below, 1 - share), (below + 1, share)]
