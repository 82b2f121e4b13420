"""Tumour growth by reaction and diffusion: the Fisher-KPP equation on a regular grid.

    dN/dt = div(D grad N) + rho N (1 - N),   no flux through the border of the brain tissue

N is the cell density as a fraction of what the tissue can carry. After Swanson, Alvord and Murray, "A quantitative
model for differential motility of gliomas in grey and white matter", Cell Prolif. 33 (2000) 317-329: D in white
matter is some ten times that in grey matter (theirs five; Painter and Hillen, J. Theor. Biol. 323 (2013) 25-39, and
Jbabdi et al., Magn. Reson. Med. 54 (2005) 616-624: 10 and more). Ranges met in patients: D 6-300 mm2/year, rho 1-30
per year (Harpold, Alvord and Swanson, J. Neuropathol. Exp. Neurol. 66 (2007) 1-9).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinseg.phantom.fields import Field


@dataclass(frozen=True)
class GrowthRates:
    """Diffusion in white matter (mm2 per day), how many times slower it is in grey matter, proliferation (per day)."""

    diffusion_white: float
    white_to_grey: float
    proliferation: float

    @property
    def front_speed(self) -> float:
        """Speed of the front in white matter in mm per day: 2 sqrt(D rho) (Fisher 1937)."""
        return 2.0 * float(np.sqrt(self.diffusion_white * self.proliferation))


class GrowthSolver:
    """Steps the Fisher-KPP equation on a grid of `spacing` mm (equal along each axis).

    `diffusion` (X,Y,Z), mm2 per day, is zero where no cell can live: no cell crosses into such a voxel. A step is
    Strang's split: half a logistic step (exact), an explicit diffusion step (stable, conserves cells), half a
    logistic step.
    """

    def __init__(self, diffusion: Field, spacing: float, proliferation: float) -> None:
        self.proliferation = proliferation
        self.largest_step = 0.9 * spacing**2 / (6.0 * max(float(diffusion.max()), 1e-9))
        self._between = [_harmonic_mean(diffusion, axis) / np.float32(spacing**2) for axis in range(3)]

    def advance(self, density: Field, days: float) -> Field:
        """The cell density (X,Y,Z) after `days`."""
        steps = max(1, int(np.ceil(days / self.largest_step - 1e-6)))
        step = days / steps
        density = self._react(density, step / 2)
        for number in range(steps):
            density = self._diffuse(density, step)
            density = self._react(density, step if number < steps - 1 else step / 2)
        return density

    def _react(self, density: Field, days: float) -> Field:
        growth = np.float32(np.exp(self.proliferation * days))
        return density * growth / (1 + density * (growth - 1))

    def _diffuse(self, density: Field, days: float) -> Field:
        change = np.zeros_like(density)
        for axis, between in enumerate(self._between):
            upper, lower = _halves(axis)
            flux = (density[upper] - density[lower]) * between
            change[lower] += flux
            change[upper] -= flux
        change *= np.float32(days)
        change += density
        return change


def _halves(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    upper, lower = [slice(None)] * 3, [slice(None)] * 3
    upper[axis], lower[axis] = slice(1, None), slice(None, -1)
    return tuple(upper), tuple(lower)


def _harmonic_mean(diffusion: Field, axis: int) -> Field:
    """Diffusion across the face between neighbours: zero as soon as one of the two is closed."""
    upper, lower = _halves(axis)
    a, b = diffusion[upper], diffusion[lower]
    return np.asarray(2 * a * b / np.maximum(a + b, np.float32(1e-12)), dtype=np.float32)


def initial_density(shape: tuple[int, ...], spacing: float, seeds_mm: NDArray[np.float64], radius_mm: float) -> Field:
    """A Gaussian droplet of cells (peak 0.9, standard deviation `radius_mm`) around each seed (rows of `seeds_mm`).

    Seeds are in mm from the first voxel's centre.
    """
    density = np.zeros(shape, dtype=np.float32)
    for seed in seeds_mm:
        parts = [
            np.exp(-0.5 * ((np.arange(n) * spacing - centre) / radius_mm) ** 2)
            for n, centre in zip(shape, seed, strict=True)
        ]
        drop = 0.9 * parts[0][:, None, None] * parts[1][None, :, None] * parts[2][None, None, :]
        density = np.maximum(density, drop.astype(np.float32))
    return density
