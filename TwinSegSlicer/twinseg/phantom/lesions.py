"""Lesions by random fields: a new tumour at every training step, where reaction and diffusion would take seconds.

A lesion is a level set: an ellipsoid with lobes and further foci, made uneven by band-limited noise. Deeper levels are
the core, the rim, necrosis and cysts. It is painted into a `PatchState`, as `appearance.py` paints a grown tumour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinseg.phantom.anatomy import SOLID_BRAIN, WHITE_MATTER, Tissue, lookup
from twinseg.phantom.appearance import BRAIN_AND_SULCI, ENHANCING, NECROTIC, OEDEMA
from twinseg.phantom.fields import rotation
from twinseg.phantom.random_fields import Patch, smoothstep

LESION_KINDS = {
    "infiltrative": 0.23,
    "mass": 0.22,
    "cystic": 0.14,
    "ring": 0.17,
    "solid": 0.08,
    "patchy": 0.09,
    "specks": 0.05,
    "cavity": 0.02,
}
"""Bright on FLAIR without a core; a core that does not enhance; one with cysts; an enhancing rim around necrosis;
enhancing throughout; enhancing in patches; a few tiny foci; a resection cavity. With how often each is drawn."""


@dataclass
class PatchState:
    """What a patch of a head is made of, tensors (X, Y, Z): `Tissue` numbers (int64), labels (uint8), infiltration
    (0-1; of fluid: how far flow has brightened it) and enhancement (0-2)."""

    tissues: Tensor
    labels: Tensor
    infiltration: Tensor
    enhancement: Tensor

    def is_one_of(self, kinds: tuple[Tissue, ...]) -> Tensor:
        """Where the tissue is one of these."""
        return torch.take(torch.from_numpy(lookup(kinds)).to(self.tissues.device), self.tissues)


@dataclass(frozen=True)
class LesionPlan:
    """One lesion at random. Depths and amplitudes are shares of `radius` (mm), that of a ball of its volume.

    `stretch` (3,3) makes the ball an ellipsoid; `balls` are rows of x, y, z, radius of its lobes and further foci.
    `coarse` and `fine` are the border's unevenness, `softness` half the width over which oedema fades, `reluctance`
    how much less it enters grey matter, `effaces` whether it fills the sulci, up to the skull, `core` where the core
    begins (1 the centre, 0 the border), `rim` the rim's thickness, `patches` how rare patches in the core are,
    `strength` how wet oedema is, `enhancement` how much agent is taken up, `mass_effect` how far tissue is pushed away,
    `blood` whether there is some, `walled` whether a cyst's wall enhances.
    """

    kind: str
    radius: float
    stretch: NDArray[np.float64]
    balls: NDArray[np.float64]
    coarse: float
    fine: float
    softness: float
    reluctance: float
    effaces: bool
    core: float
    rim: float
    patches: float
    strength: float
    enhancement: float
    mass_effect: float
    blood: bool
    walled: bool


def draw_lesion(rng: np.random.Generator, kind: str | None = None) -> LesionPlan:
    """A lesion of any kind, from specks of 0.1 mL to 300 mL."""
    chosen = str(rng.choice(list(LESION_KINDS), p=list(LESION_KINDS.values())))
    kind = kind or chosen
    any_size, common = np.exp(rng.uniform(np.log(0.5), np.log(300.0))), np.exp(rng.normal(np.log(60.0), 0.8))
    volume = float(np.clip(any_size if rng.random() < 0.3 else common, 0.5, 300.0))
    if kind == "specks":
        volume = float(np.exp(rng.uniform(np.log(0.1), np.log(3.0))))
    radius = (volume * 1000 / (4 / 3 * np.pi)) ** (1 / 3)
    axes = np.exp(rng.normal(0, 0.28, size=3))
    turn = rotation(rng.uniform(-np.pi, np.pi, size=3))
    core = float(rng.uniform(0.0, 0.75))
    if kind == "mass":  # often all of the lesion, without oedema
        core = float(rng.uniform(-0.1, 0.15)) if rng.random() < 0.5 else float(rng.uniform(0.0, 0.6))
    soft = kind == "infiltrative" or rng.random() < 0.3
    return LesionPlan(
        kind=kind,
        radius=radius,
        stretch=turn @ np.diag(axes / np.prod(axes) ** (1 / 3)) @ turn.T,
        balls=_draw_balls(rng, kind, radius),
        coarse=float(rng.uniform(0.08, 0.38)),
        fine=float(rng.uniform(0.0, 0.12)),
        softness=float(rng.uniform(0.08, 0.4) if soft else np.exp(rng.uniform(np.log(0.02), np.log(0.15)))),
        reluctance=float(rng.uniform(0.0, 0.25)) if rng.random() < 0.35 else 0.0,
        effaces=bool(rng.random() < 0.65),
        core=core,
        rim=float(np.exp(rng.uniform(np.log(0.05), np.log(0.45)))),
        patches=float(rng.uniform(0.5, 1.7)),
        strength=float(rng.uniform(0.6, 1.0)),
        enhancement=float(np.exp(rng.normal(np.log(0.75), 0.45))),
        mass_effect=float(rng.uniform(0.0, 0.4)) if rng.random() < 0.7 else 0.0,
        blood=bool(rng.random() < 0.2),
        walled=bool(rng.random() < 0.4),
    )


def _draw_balls(rng: np.random.Generator, kind: str, radius: float) -> NDArray[np.float64]:
    """Offsets in mm and radii in shares: the main ball, lobes at its border, foci away from it."""
    lobes = int(rng.integers(0, 4))
    foci = int(rng.integers(1, 4)) if rng.random() < 0.14 else 0
    if kind == "specks":
        lobes, foci = 0, int(rng.integers(0, 6))
    directions = rng.normal(size=(lobes + foci, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    near, far = rng.uniform(0.5, 1.0, size=lobes) * radius, rng.uniform(8.0, 45.0, size=foci) + 1.2 * radius
    sizes = np.concatenate([rng.uniform(0.4, 0.85, size=lobes), rng.uniform(0.2, 0.8, size=foci)])
    offsets = directions * np.concatenate([near, far])[:, None]
    return np.concatenate([[[0, 0, 0, 1.0]], np.column_stack([offsets, sizes])])


def distance_from(patch: Patch, plan: LesionPlan, centre: NDArray[np.float64]) -> Tensor:
    """Square of the distance to the lesion's centre (mm) in units of its radius, stretched, (X, Y, Z)."""
    x, y, z = (axis - float(middle) for axis, middle in zip(patch.mesh, centre, strict=True))
    rows = [(float(a) * x + (float(b) * y + float(c) * z)).square_() for a, b, c in plan.stretch / plan.radius]
    return rows[0].add_(rows[1]).add_(rows[2])


def push_aside(positions: Tensor, squared: Tensor, source: NDArray[np.float64], amount: float) -> None:
    """Mass effect, in place: `positions` (3, X, Y, Z) in mm are drawn towards the lesion's `source` point, so that
    what was there is found further out. Strongest at the border of the lesion; it fades like a Gaussian."""
    pull = (0.5 - 0.5 * squared).exp_().mul_(amount)
    for axis in range(3):
        positions[axis] -= pull * (positions[axis] - float(source[axis]))


class LesionPainter:
    """Paints a planned lesion, centred at `centre` (mm in the patch), into the state of a patch."""

    def __init__(self, state: PatchState, patch: Patch, plan: LesionPlan, generator: torch.Generator) -> None:
        self.state, self.patch, self.plan, self.generator = state, patch, plan, generator
        self.medium = self._noise(float(np.clip(0.5 * plan.radius, 6.0, 15.0)))
        self.fine = self._noise(7.0)

    def _noise(self, width: float) -> Tensor:
        return self.patch.noise(self.generator, width)[0]

    def paint(self, centre: NDArray[np.float64], squared: Tensor) -> None:
        """`squared`: what `distance_from` gave for the centre."""
        plan, state = self.plan, self.state
        level = self._level(centre, squared)
        solid, room = state.is_one_of(SOLID_BRAIN), state.is_one_of(BRAIN_AND_SULCI)
        if plan.reluctance:
            level -= plan.reluctance * (solid & ~state.is_one_of(WHITE_MATTER))
        outer = (level > 0) & room & (solid | (level > 0.12))
        state.labels.masked_fill_(outer, OEDEMA)
        if plan.effaces:
            state.tissues.masked_fill_(outer & ~solid, int(Tissue.GREY))
        patchy = (1.0 + 0.18 * self.medium + 0.08 * self.fine).clamp(0.4, 1.4)
        water = smoothstep(level, -plan.softness, plan.softness) * room * plan.strength * patchy
        state.infiltration = torch.maximum(state.infiltration, water)
        deeper = level + 0.15 * self.medium - plan.core
        core = (deeper > 0) & outer
        if plan.kind in ("ring", "solid"):
            self._enhancing(core, deeper)
        elif plan.kind == "cavity":
            self._cavity(core, deeper)
        elif plan.kind != "infiltrative":
            self._not_enhancing(core, deeper)
        self._take_up()

    def _level(self, centre: NDArray[np.float64], squared: Tensor) -> Tensor:
        """Above 0 inside the lesion, 1 at its centre."""
        plan = self.plan
        level = 1 - squared.sqrt()
        for x, y, z, size in plan.balls[1:]:
            distance = distance_from(self.patch, plan, centre + np.array([x, y, z])).sqrt_()
            level = torch.maximum(level, float(size) - distance)
        level += plan.coarse * self._noise(float(np.clip(0.9 * plan.radius, 8.0, 40.0)))
        return level.add_(self.fine, alpha=plan.fine)

    def _set(self, where: Tensor, tissue: Tissue, label: int) -> None:
        self.state.tissues.masked_fill_(where, int(tissue))
        self.state.labels.masked_fill_(where, label)

    def _enhancing(self, core: Tensor, deeper: Tensor) -> None:
        plan = self.plan
        self._set(core, Tissue.ENHANCING, ENHANCING)
        uneven = plan.rim * (0.4 * self.medium).exp()
        dead = core & ((deeper > uneven) if plan.kind == "ring" else (self.medium + self.fine > 1.2 + plan.patches))
        septa = (self.fine.abs() > 0.15) | (deeper > 2 * uneven)
        self._set(dead & septa, Tissue.NECROSIS, NECROTIC)
        gaps = core & (deeper < uneven) & (self._noise(26.0) > 1.3)
        self._set(gaps, Tissue.NON_ENHANCING, NECROTIC)
        if plan.blood:
            self.state.tissues.masked_fill_(dead & (self.fine > 1.2), int(Tissue.BLOOD))

    def _not_enhancing(self, core: Tensor, deeper: Tensor) -> None:
        plan = self.plan
        self._set(core, Tissue.NON_ENHANCING, NECROTIC)
        if plan.kind == "patchy":
            self._set(core & (self.medium + 0.5 * self.fine > plan.patches), Tissue.ENHANCING, ENHANCING)
        if plan.kind == "specks" and plan.walled:
            self._set(core, Tissue.ENHANCING, ENHANCING)
        if plan.kind == "cystic":
            inside = core & (deeper > plan.rim * 0.7 * (0.5 * self.medium).exp())
            if plan.walled:
                self._set(core & (deeper < plan.rim) & (self.medium > -0.6), Tissue.ENHANCING, ENHANCING)
            self._set(inside & (self.medium > plan.patches - 2.2), Tissue.CYST, NECROTIC)
        if plan.blood:  # calcium looks much the same
            self.state.tissues.masked_fill_(core & (self.medium + self.fine > 2.2), int(Tissue.BLOOD))

    def _cavity(self, core: Tensor, deeper: Tensor) -> None:
        """Fluid where tumour was, no label; around it the gliosis that is painted as oedema, perhaps a rest."""
        self._set(core, Tissue.VENTRICLE, 0)
        self.state.infiltration.masked_fill_(core, 0.0)
        rest = core & (deeper < self.plan.rim) & (self.medium > 0.3 + self.plan.patches)
        self._set(rest, Tissue.ENHANCING, ENHANCING)

    def _take_up(self) -> None:
        plan, state = self.plan, self.state
        enhancing = state.tissues == int(Tissue.ENHANCING)
        state.enhancement = torch.where(
            enhancing, (1 + 0.28 * self.fine).clamp_(0.35, 1.7) * plan.enhancement, state.enhancement
        )


def age_white_matter(state: PatchState, patch: Patch, rng: np.random.Generator, generator: torch.Generator) -> None:
    """Caps and halos around the ventricles and small bright foci in the white matter, without a label."""
    load = float(rng.uniform(0.0, 1.0))
    near = patch.blur((state.tissues == int(Tissue.VENTRICLE)).float(), float(rng.uniform(2.5, 6.0)))
    islands = patch.noise(generator, float(rng.uniform(6.0, 14.0)))[0]
    free = state.is_one_of(WHITE_MATTER) & (state.labels == 0)
    halo = near * (float(rng.uniform(0.0, 1.6)) * free)
    state.infiltration = torch.maximum(state.infiltration, halo.clamp_(max=0.7))
    chosen = (near > 0.48 - 0.3 * load + 0.06 * islands) | (islands > 3.5 - load)
    state.tissues.masked_fill_(chosen & free & (state.tissues == int(Tissue.WHITE)), int(Tissue.WHITE_LESION))


def make_fluid_flow(state: PatchState, patch: Patch, rng: np.random.Generator, generator: torch.Generator) -> None:
    """CSF that moves is not nulled on FLAIR: bright patches in ventricles and cisterns, without a label."""
    fluid = state.is_one_of((Tissue.VENTRICLE, Tissue.CSF))
    flow = (0.5 * patch.noise(generator, float(rng.uniform(12.0, 30.0)))[0] + float(rng.uniform(-0.4, 0.4))).clamp_(
        0, 1
    )
    state.infiltration = torch.maximum(state.infiltration, flow * fluid)
