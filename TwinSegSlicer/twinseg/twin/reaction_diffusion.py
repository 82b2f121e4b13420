"""Reaction and diffusion of tumour cells in 3D, for many parameter samples at once (torch, CPU or GPU).

    dN/dt = div(D grad N) + rho N (1 - N),   no flux through the edge of the tissue (Fisher 1937; Swanson 2000)

N is the cell density as a share of what tissue can carry; D is `diffusion` in white matter and `diffusion /
white_to_grey` in grey matter. A step is Strang's split: growth and treatment are solved exactly (`dose_response`),
diffusion by Crank-Nicolson, one axis after the other (locally one-dimensional; Marchuk, Handbook of Numerical Analysis
1 (1990) 197-462), in alternating order. It is stable at any step and of second order, and keeps the number of cells.

On a lattice of spacing h a front runs too fast once it is steeper than the voxels: the linear front exp(-s x) grows at
the rate rho + 2 D/h^2 (cosh(s h) - 1), and the front moves at the least value of rate / s. `lattice_factor` lowers D so
that this speed is 2 sqrt(D rho) on any grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinseg.errors import InputError
from twinseg.twin.dose_response import DoseMap, TreatmentEffect, local_map

Array = NDArray[np.float64]

GROWTH_A_STEP = 0.35
"""The default step's largest rho * days: the front's speed is then right to (rho days)^2 / 24."""

DIFFUSION_A_STEP = 2.5
"""The default step's largest D * days / spacing^2."""

LONGEST_STEP_DAYS = 10.0

NEGLIGIBLE = 1e-9
"""Cells are followed in the box where their density is above this. One cell per mm3 is some 1e-5."""


@dataclass(frozen=True)
class Rates:
    """Parameter samples, each (n,): mm2/day in white matter, per day, ratio, per Gy, log kill of a standard dose."""

    diffusion: Array
    proliferation: Array
    white_to_grey: Array
    radiosensitivity: Array
    chemo_kill: Array

    def __getitem__(self, which: slice | NDArray[np.intp]) -> Rates:
        return Rates(*(values[which] for values in vars(self).values()))

    def __len__(self) -> int:
        return len(self.diffusion)


class TissueGrid:
    """Where tumour cells can live: a grid with voxels of `spacing` mm (X,Y,Z).

    `white` and `grey` (X,Y,Z) are the shares of a voxel that are white and grey matter, 0 to 1; where both are zero no
    cell can live.
    """

    def __init__(
        self,
        white: NDArray[np.floating],
        grey: NDArray[np.floating],
        spacing: tuple[float, float, float],
        device: str = "cpu",
    ) -> None:
        if white.shape != grey.shape or white.ndim != 3:
            raise InputError(f"growth: white {white.shape} and grey {grey.shape} must be two maps of one 3D shape.")
        if not all(np.isfinite(step) and step > 0 for step in spacing):
            raise InputError(f"growth: the spacing {spacing} must be above zero.")
        self.spacing = spacing
        self.white = torch.as_tensor(np.array(white, np.float32), device=device)[..., None]
        self.grey = torch.as_tensor(np.array(grey, np.float32), device=device)[..., None]
        self.tissue = ((self.white + self.grey) > 0).float()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along X, Y and Z."""
        x, y, z = self.white.shape[:3]
        return x, y, z

    def diffusion(self, rates: Rates, axis: int) -> Tensor:
        """D along an axis in mm2/day, (X,Y,Z,n), corrected for the lattice."""
        shares = ((self.white, rates.diffusion), (self.grey, rates.diffusion / rates.white_to_grey))
        parts = [share * self.samples(d * self._correction(d, rates, axis)) for share, d in shares]
        return parts[0] + parts[1]

    def samples(self, values: Array) -> Tensor:
        """Values on the grid's device, in single precision."""
        return torch.as_tensor(values, dtype=torch.float32, device=self.white.device)

    def _correction(self, diffusion: Array, rates: Rates, axis: int) -> Array:
        return lattice_factor(self.spacing[axis] * np.sqrt(rates.proliferation / diffusion))

    def default_step(self, rates: Rates) -> float:
        """Days a step such that cell counts are right to 1 %, for the most demanding of the samples."""
        reaction = GROWTH_A_STEP / float(rates.proliferation.max())
        diffusion = DIFFUSION_A_STEP * min(self.spacing) ** 2 / float(rates.diffusion.max())
        return min(reaction, diffusion, LONGEST_STEP_DAYS)


class Ensemble:
    """n tumours on one grid, one for each of the samples in `rates`, that grow together.

    `density` (X,Y,Z,n) is their state on `day`, and is changed in place. `step_days` replaces the default step;
    `windowed` follows only the box that holds cells; `on_grid` gives a fraction's dose map on this grid.
    """

    def __init__(
        self,
        grid: TissueGrid,
        rates: Rates,
        density: Tensor,
        day: float,
        treatment: TreatmentEffect,
        *,
        step_days: float | None = None,
        windowed: bool = True,
        on_grid: Callable[[DoseMap], DoseMap] | None = None,
    ) -> None:
        if density.shape != (*grid.shape, len(rates)):
            raise InputError(f"growth: the density {tuple(density.shape)} must be {(*grid.shape, len(rates))}.")
        self.grid, self.rates, self.density, self.day, self.treatment = grid, rates, density, day, treatment
        self.windowed, self.on_grid = windowed, on_grid
        self.longest_step = step_days or grid.default_step(rates)
        self._sweeps: tuple[float, list[_Sweep]] = (0.0, [])

    def advance(self, day: float) -> None:
        """Grow until `day`. A treatment counts from its day on: one on `day` itself is left to the next call."""
        span = day - self.day
        if span <= 0:
            return
        steps = max(1, int(np.ceil(span / self.longest_step - 1e-6)))
        sweeps = self._sweeps_for(span / steps)
        edges = [self.day, *(self.day + span / steps * (np.arange(steps) + 0.5)).tolist(), day]
        self._react(edges[0], edges[1])
        window = self._window()
        for number in range(steps):
            if number % 4 == 3:
                window = self._window()
            for axis in (0, 1, 2) if number % 2 == 0 else (2, 1, 0):
                sweeps[axis].solve(self.density, window)
            self._react(edges[number + 1], edges[number + 2])
        self.day = day

    def _react(self, start: float, end: float) -> None:
        rates = self.rates
        p, q = local_map(
            self.treatment.pieces(start, end),
            rates.proliferation,
            rates.radiosensitivity,
            rates.chemo_kill,
            self.on_grid,
        )
        self.density.div_((self.density * self.grid.samples(q)).add_(self.grid.samples(p)))

    def _window(self) -> tuple[slice, slice, slice]:
        """The box (X,Y,Z) that holds cells, with room for them to move on."""
        if not self.windowed:
            return slice(None), slice(None), slice(None)
        there = self.density.amax(dim=3) > NEGLIGIBLE
        bounds = []
        for axis in range(3):
            held = there.movedim(axis, 0).flatten(1).any(dim=1).nonzero()
            first, last = (int(held[0]), int(held[-1])) if len(held) else (0, 0)
            bounds.append(slice(max(first - 6, 0), last + 7))
        return bounds[0], bounds[1], bounds[2]

    def _sweeps_for(self, days: float) -> list[_Sweep]:
        """The factors for a step of `days`; the last ones are kept, for equal stretches use equal steps."""
        if abs(self._sweeps[0] - days) > 1e-9:
            grid = self.grid
            sweeps = [_Sweep(grid.diffusion(self.rates, a), a, days / grid.spacing[a] ** 2) for a in range(3)]
            self._sweeps = (days, sweeps)
        return self._sweeps[1]


class _Sweep:
    """Crank-Nicolson along one axis of (X,Y,Z,n): (I + A/2) new = (I - A/2) old, A the flux between neighbours.

    Solved as new = 2 (I + A/2)^-1 old - old by Thomas's algorithm, whose factors are made here once.
    """

    def __init__(self, diffusion: Tensor, axis: int, days_per_mm2: float) -> None:
        self.axis = axis
        lines = diffusion.movedim(axis, 0)
        low, high = lines[:-1], lines[1:]
        # Across a face D is the harmonic mean: zero as soon as one side is closed
        face = torch.zeros((len(lines) + 1, *lines.shape[1:]), device=diffusion.device)
        face[1:-1] = low * high * days_per_mm2 / (low + high).clamp(min=1e-12)
        pivot = face[1:] + face[:-1] + 1
        self.inverse = pivot.reciprocal()
        for i in range(1, len(lines)):
            share = torch.mul(face[i], self.inverse[i - 1])
            torch.reciprocal(pivot[i].addcmul_(share, face[i], value=-1), out=self.inverse[i])
        self.forward = face[:-1] * self.inverse
        self.backward = face[1:] * self.inverse
        self.inverse.mul_(2)  # the solution is wanted twice

    def solve(self, density: Tensor, window: tuple[slice, slice, slice]) -> None:
        """One step in `window` (X,Y,Z) of `density`, in place. Outside the window there are no cells to speak of."""
        old = density[window].movedim(self.axis, 0).unbind(0)
        lines = (window[self.axis], *(part for axis, part in enumerate(window) if axis != self.axis))
        inverse, forward, backward = (factor[lines].unbind(0) for factor in (self.inverse, self.forward, self.backward))
        new = [torch.mul(old[0], inverse[0])]
        for i in range(1, len(old)):
            new.append(torch.mul(old[i], inverse[i]).addcmul_(forward[i], new[i - 1]))
        for i in range(len(old) - 1, -1, -1):
            if i < len(old) - 1:
                new[i].addcmul_(backward[i], new[i + 1])
            # Crank-Nicolson can undershoot at a steep edge
            torch.sub(new[i], old[i], out=old[i]).clamp_(min=0)


def front_speed(diffusion: float, proliferation: float) -> float:
    """The front's speed in mm per day, 2 sqrt(D rho) (Fisher 1937)."""
    return 2.0 * float(np.sqrt(diffusion * proliferation))


def lattice_factor(ratio: Array) -> Array:
    """What D must be multiplied by so that fronts run at 2 sqrt(D rho); `ratio` is the spacing over sqrt(D / rho).

    With q = s h where the speed is least: q - tanh(q / 2) = ratio / 2, and the factor is ratio / sinh(q).
    """
    ratios, factors = _lattice_table()
    return np.interp(ratio, ratios, factors)


@lru_cache(maxsize=1)
def _lattice_table() -> tuple[Array, Array]:
    q = np.linspace(1e-4, 20.0, 20000)
    ratio = 2 * (q - np.tanh(q / 2))
    return ratio, ratio / np.sinh(q)
