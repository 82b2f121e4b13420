"""A tumour in a head: where it starts, how it grows, and what its cell density makes of the tissue at each visit."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from twinseg.phantom.anatomy import INFRATENTORIAL, SOLID_BRAIN, WHITE_MATTER, Anatomy, Tissue, lookup
from twinseg.phantom.fields import Axes, Field, blur, smooth_noise, smoothstep
from twinseg.phantom.growth import GrowthRates, GrowthSolver, initial_density

KINDS = {"ring": 0.42, "solid": 0.12, "low-grade": 0.24, "patchy": 0.10, "cystic": 0.12}
"""Necrosis in an enhancing rim; enhancing throughout; no enhancement; little of it; a cyst. With how often each is
drawn."""

CELLS_PER_MM3 = 1e5
"""Cells in tissue that is full of tumour (Swanson 2000: some 1e8 per cm3)."""


@dataclass(frozen=True)
class TumourPlan:
    """What one patient's tumour is like; drawn once, kept for all visits.

    `oedema_density` is the cell density from which white matter shows on FLAIR, times `grey_factor` in grey matter;
    `core_fraction` the core's share of the visible volume at the first visit; `rim_fraction` the rim's thickness as a
    share of the core's radius.
    """

    kind: str
    volume_ml: float
    rates: GrowthRates
    foci: int
    oedema_density: float
    grey_factor: float
    core_fraction: float
    rim_fraction: float
    septa: float
    roughness: float
    oedema_strength: float
    enhancement: float
    mass_effect: float
    blood: float
    texture_seed: int


@dataclass(frozen=True)
class TumourState:
    """The patient's head at one visit: arrays (X,Y,Z) on the anatomy's grid."""

    tissues: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    infiltration: Field = field(repr=False)
    enhancement: Field = field(repr=False)


def draw_plan(rng: np.random.Generator, kind: str | None = None) -> TumourPlan:
    """A tumour at random: kinds, sizes (1-150 mL), growth rates and looks as they occur in adults."""
    kinds = list(KINDS)
    chosen = str(rng.choice(kinds, p=list(KINDS.values())))
    kind = kind or chosen
    low_grade = kind in ("low-grade", "patchy")
    common, any_size = np.exp(rng.normal(np.log(50.0), 0.65)), np.exp(rng.uniform(0.0, np.log(150.0)))
    volume = float(np.clip(common if rng.random() < 0.65 else any_size, 1.0, 150.0))
    # Front speed: Swanson 2000 for glioblastoma; Mandonnet et al., Ann. Neurol. 53 (2003) 524-528, for low grade
    speed = float(np.exp(rng.normal(np.log(0.015 if low_grade else 0.07), 0.4)))
    width = float(np.exp(rng.normal(np.log(3.6), 0.35)))
    width = float(np.clip(width, 2.0, 8.0) * min(1.0, 0.45 + volume / 40))
    rates = GrowthRates(speed * width / 2, float(rng.uniform(5.0, 15.0)), speed / (2 * width))
    spread = float(np.exp(rng.uniform(np.log(0.01), np.log(0.16))))
    if low_grade and rng.random() < 0.5:
        spread = float(rng.uniform(0.15, 0.35))  # sharply bordered, hardly any oedema
    return TumourPlan(
        kind=kind,
        volume_ml=volume,
        rates=rates,
        foci=1 if rng.random() < 0.82 else int(rng.integers(2, 5)),
        oedema_density=spread,
        grey_factor=float(rng.uniform(1.5, 5.0)),
        core_fraction=float(rng.beta(2.2, 1.4) if low_grade else rng.beta(1.9, 2.3)),
        rim_fraction=float(np.exp(rng.uniform(np.log(0.12), np.log(0.6)))),
        septa=max(0.0, float(rng.uniform(-0.2, 0.25))),
        roughness=float(rng.uniform(0.25, 0.75)),
        oedema_strength=float(rng.uniform(0.55, 1.0)),
        enhancement=float(np.exp(rng.normal(np.log(0.8), 0.4))),
        mass_effect=float(rng.uniform(0.0, 0.3)),
        blood=float(rng.uniform(0.5, 1.0)) if rng.random() < 0.25 else 0.0,
        texture_seed=int(rng.integers(2**31)),
    )


class Tumour:
    """A tumour that grows in `anatomy`. `grow_to_size` brings it to its first visit, `advance` to the later ones.

    `follow_up_days` says for how long it shall have room to grow after the first visit.
    """

    def __init__(
        self, rng: np.random.Generator, anatomy: Anatomy, plan: TumourPlan, follow_up_days: float = 0.0
    ) -> None:
        self.anatomy, self.plan = anatomy, plan
        self.days = 0.0
        self.core_density = 1.0
        self.seeds_mm = self._place_seeds(rng)
        self.origin, self.axes, self.spacing = self._choose_box(follow_up_days * plan.rates.front_speed)
        self.tissues = self._sample_tissues()
        self.solid = lookup(SOLID_BRAIN)[self.tissues]
        self.white = lookup(WHITE_MATTER)[self.tissues]
        uneven = np.exp(plan.roughness * smooth_noise(rng, self.axes, 20.0))
        speed = np.where(self.white, 1.0, 1.0 / plan.rates.white_to_grey) * self.solid
        diffusion = (plan.rates.diffusion_white * np.minimum(speed * uneven, 1.8)).astype(np.float32)
        self.solver = GrowthSolver(diffusion, self.spacing, plan.rates.proliferation)
        radius = min(3.0, 0.35 * (plan.volume_ml * 1000) ** (1 / 3))
        self.density = initial_density(self.solid.shape, self.spacing, self.seeds_mm - self.origin, radius)
        self.density *= self.solid

    def _place_seeds(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Starting points in RAS mm (n,3): first in brain tissue; near ones make lobes, far ones further foci."""
        tissues, grid, plan = self.anatomy.tissues, self.anatomy.grid, self.plan
        radius = (plan.volume_ml * 1000 / (4 / 3 * np.pi)) ** (1 / 3)
        weight = np.zeros(len(Tissue))
        weight[list(SOLID_BRAIN)] = 0.35
        weight[[Tissue.WHITE, Tissue.WHITE_LESION]] = 1.0
        weight[list(INFRATENTORIAL)] = 0.06
        candidates = rng.integers(0, grid.shape, size=(4000, 3))
        worth = weight[tissues[tuple(candidates.T)]]
        if worth.sum() == 0:  # a field of view that hardly meets the brain
            candidates = np.argwhere(lookup(SOLID_BRAIN)[tissues])
            worth = np.ones(len(candidates))
        main = candidates[rng.choice(len(candidates), p=worth / worth.sum())]
        first = grid.affine[:3, :3] @ main + grid.affine[:3, 3]
        lobes = first + rng.normal(0, 0.38 * radius, size=(int(rng.integers(0, 4)), 3))
        away = rng.normal(size=(plan.foci - 1, 3))
        away /= np.linalg.norm(away, axis=1, keepdims=True) + 1e-9
        foci = first + away * rng.uniform(1.1, 2.2, size=(plan.foci - 1, 1)) * max(radius, 12.0)
        return np.concatenate([first[None], lobes, foci])

    def _choose_box(self, growth_mm: float) -> tuple[NDArray[np.float64], Axes, float]:
        """The coarse grid around the seeds: its first voxel in RAS mm, its axes in mm, its spacing."""
        grid, plan = self.anatomy.grid, self.plan
        radius = (plan.volume_ml * 1000 / (4 / 3 * np.pi)) ** (1 / 3)
        margin = 1.35 * radius + 12.0 + min(growth_mm, 40.0)
        edge = np.array([axis[-1] for axis in grid.axes])
        low = np.maximum(self.seeds_mm.min(axis=0) - margin, -edge)
        high = np.minimum(self.seeds_mm.max(axis=0) + margin, edge)
        spacing = 2.0 if np.prod(high - low) < 8 * 64**3 else 3.0
        counts = np.maximum(np.ceil((high - low) / spacing).astype(int) + 1, 4)
        x, y, z = ((start + spacing * np.arange(n)).astype(np.float32) for start, n in zip(low, counts, strict=True))
        return low, (x, y, z), spacing

    def _sample_tissues(self) -> NDArray[np.uint8]:
        """The anatomy's tissues at the coarse grid's points (nearest)."""
        grid = self.anatomy.grid
        index = [
            np.clip(np.rint((axis - start) / step), 0, n - 1).astype(np.intp)
            for axis, start, step, n in zip(self.axes, grid.affine[:3, 3], grid.spacing, grid.shape, strict=True)
        ]
        return self.anatomy.tissues[np.ix_(*index)]

    def _visible(self) -> NDArray[np.bool_]:
        """Where on the coarse grid the cell density shows on FLAIR."""
        return self.density > np.where(self.white, self.plan.oedema_density, self._grey_density)

    @property
    def _grey_density(self) -> float:
        return min(self.plan.oedema_density * self.plan.grey_factor, 0.5)

    @property
    def cells(self) -> float:
        """The number of tumour cells."""
        return float(self.density.sum()) * self.spacing**3 * CELLS_PER_MM3

    def grow_to_size(self) -> float:
        """Grow until the planned volume shows, or until there is no room left; then fix the core's threshold.

        Returns the volume in mL that shows.
        """
        stride = 1.2 / self.plan.rates.front_speed
        before = -1.0
        for _ in range(60):
            shown = self.density[self._visible()]
            dense = shown.size > 0 and shown.max() > 0.6
            visible = shown.size * self.spacing**3 / 1000.0
            if visible >= self.plan.volume_ml * (1.0 if dense else 1.5):
                break
            if self.days > 12 * stride and visible < 1.002 * before:
                break
            before = visible
            self.advance(stride)
        if shown.size:
            self.core_density = float(np.quantile(shown, 1.0 - self.plan.core_fraction))
        return visible

    def advance(self, days: float) -> None:
        """Grow for `days`."""
        self.density = self.solver.advance(self.density, days)
        self.days += days

    def treat(self, surviving_fraction: float) -> None:
        """Radiotherapy or chemotherapy in one stroke: this fraction of the cells lives on."""
        self.density = self.density * np.float32(surviving_fraction)

    def displacement(self) -> tuple[Field, Field, Field]:
        """Mass effect in mm on the coarse grid: tissue is pushed away from the core, down its blurred density.

        The push fades towards the skull, which does not yield.
        """
        step = (self.spacing,) * 3
        core = smoothstep(self.density, 0.3, 0.8)
        bulk = blur(core, 9.0, step)
        skull = lookup((Tissue.BONE, Tissue.FAT, Tissue.MUSCLE, Tissue.MARROW, Tissue.AIR))[self.tissues]
        yielding = np.clip(1.0 - 2.2 * blur(skull.astype(np.float32), 5.0, step), 0.0, 1.0)
        x, y, z = (np.asarray(-np.gradient(bulk, self.spacing, axis=axis) * yielding, np.float32) for axis in range(3))
        peak = float(np.sqrt(x * x + y * y + z * z).max()) + 1e-6
        reach = self.plan.mass_effect * (core.sum() * self.spacing**3 / 4.19) ** (1 / 3)
        scale = np.float32(min(reach, 13.0) / peak)
        return x * scale, y * scale, z * scale
