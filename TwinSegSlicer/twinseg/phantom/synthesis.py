"""Training by synthesis: from a grown head to images of four sequences, another patient each time.

Each sample bends the head anew, keeps its grown tumour or paints others, draws contrasts, takes the images with a poor
or a good scanner and leaves sequences out. All of it runs in torch on the device that trains; every choice comes from
the sample's seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinseg.phantom.acquisition import acquire, brain_mask, draw_acquisitions, export
from twinseg.phantom.anatomy import SOLID_BRAIN, Tissue, lookup
from twinseg.phantom.contrast import ContrastTables, draw_contrast
from twinseg.phantom.fields import rotation
from twinseg.phantom.heads import ENHANCEMENT_UNIT, HEAD_SIZE, HEAD_SPACING, GrownHead
from twinseg.phantom.lesions import (
    LESION_KINDS,
    LesionPainter,
    LesionPlan,
    PatchState,
    age_white_matter,
    distance_from,
    draw_lesion,
    make_fluid_flow,
    push_aside,
)
from twinseg.phantom.random_fields import Patch, Triple, Warp, affine_positions
from twinseg.phantom.scanner import SEQUENCES

GROWN, NORMAL = "grown", "normal"
NORMALIZED_LIMIT = 6.0


@dataclass(frozen=True)
class Mixture:
    """How often what occurs, as probabilities.

    `grown`, `painted`: the head's own tumour by reaction and diffusion, another by random fields; the rest is normal.
    `random_contrast`: grey values at random rather than by the signal equations; `blended_contrast`: somewhere between
    the two, whichever was drawn. `skull`, `poor_strip`: the head as it is, a badly stripped one; the rest is well
    stripped. `aged`, `flow`: changes that are no tumour. `cut`: a slab at one end is missing. `missing`: each sequence
    is left out so often where not all are there; `complete`: all are.
    """

    grown: float = 0.3
    painted: float = 0.6
    random_contrast: float = 0.5
    blended_contrast: float = 0.25
    skull: float = 0.45
    poor_strip: float = 0.15
    aged: float = 0.4
    flow: float = 0.25
    cut: float = 0.2
    missing: float = 0.3
    complete: float = 0.3


@dataclass(frozen=True)
class Sample:
    """A training sample: `image` (4, X, Y, Z) float32 in the order of `SEQUENCES`, normalised as
    `preprocessing.normalize` does, zero where a sequence is not `present`; `labels` (X, Y, Z) uint8 (0, NCR 1, ED 2,
    ET 3); `kind`: one of `LESION_KINDS`, "grown" or "normal"."""

    image: Tensor
    labels: Tensor
    present: tuple[bool, ...]
    kind: str


class Synthesizer:
    """Makes samples of a `shape` in voxels of `spacing` mm on a device.

    >>> synthesizer = Synthesizer((80, 96, 80), 2.0)
    >>> sample = synthesizer.sample(head, seed=(2026, 17))
    """

    def __init__(
        self,
        shape: Triple,
        spacing: float,
        device: torch.device | str = "cpu",
        mixture: Mixture | None = None,
    ) -> None:
        self.patch = Patch(shape, spacing, torch.device(device))
        self.mixture = mixture or Mixture()

    @torch.no_grad()
    def sample(self, head: GrownHead, seed: tuple[int, ...], kind: str | None = None) -> Sample:
        """The sample of a head (on the synthesizer's device) and a seed: the same one each time. `kind` as in `Sample`,
        or None to draw it; a head without a tumour of its own stays normal where its own is asked for."""
        rng = np.random.default_rng(seed)
        generator = torch.Generator(self.patch.device).manual_seed(int(rng.integers(2**62)))
        drawn = _draw_kind(rng, self.mixture)
        kind = kind or drawn
        state = _Placement(head, self.patch, rng, generator).state(kind, self.mixture)
        sequences = _draw_sequences(rng, self.mixture)
        image = self._take(state, sequences, rng, generator)
        if rng.random() < self.mixture.cut:
            _cut_off(image, state.labels, rng)
        present = tuple(name in sequences for name in SEQUENCES)
        return Sample(image, state.labels, present, kind)

    def _take(
        self, state: PatchState, sequences: list[str], rng: np.random.Generator, generator: torch.Generator
    ) -> Tensor:
        """The images (4, X, Y, Z), normalised."""
        mixture, patch = self.mixture, self.patch
        clusters = int(rng.integers(1, 6))
        tables = draw_contrast(rng, clusters, mixture.random_contrast, mixture.blended_contrast)
        index = state.tissues * clusters + self._clusters(clusters, rng, generator)
        grain = patch.noise(generator, float(rng.uniform(5.0, 12.0)))[0]
        way = rng.random()
        mask = None
        if way >= mixture.skull:
            poor = way < mixture.skull + mixture.poor_strip
            mask = brain_mask(state, patch, rng, generator, poor=poor)
        image = torch.zeros((len(SEQUENCES), *patch.shape), device=patch.device)
        for name, taken in zip(sequences, draw_acquisitions(rng, len(sequences)), strict=True):
            channel = SEQUENCES.index(name)
            ideal = _ideal(state, tables, channel, index)
            ideal.mul_(grain * float(rng.uniform(0.0, 0.08)) + 1)
            stored = acquire(ideal, taken, patch, rng, generator)
            if mask is not None:
                stored = stored * mask
            one = normalized(export(stored, taken))
            image[channel] = one * float(rng.uniform(0.8, 1.2)) + float(rng.uniform(-0.2, 0.2))
        return image.clamp_(-NORMALIZED_LIMIT, NORMALIZED_LIMIT)

    def _clusters(self, count: int, rng: np.random.Generator, generator: torch.Generator) -> Tensor | int:
        """Which sub-cluster of its tissue each voxel belongs to."""
        if count == 1:
            return 0
        noise = self.patch.noise(generator, float(np.exp(rng.uniform(np.log(6.0), np.log(40.0)))))[0]
        return ((noise + 2) * (count / 4)).clamp_(0, count - 1).to(torch.int64)


class _Placement:
    """Where a head lies in the patch and how it is bent, all of it drawn at once; then what is in the patch."""

    def __init__(self, head: GrownHead, patch: Patch, rng: np.random.Generator, generator: torch.Generator) -> None:
        self.head, self.patch, self.rng, self.generator = head, patch, rng, generator
        angles = rng.normal(0.0, [0.15, 0.1, 0.15])
        scale = np.exp(rng.normal(0.0, 0.10)) * np.exp(rng.normal(0.0, [0.06, 0.06, 0.14]))
        shear = np.eye(3) + rng.normal(0.0, 0.04, size=(3, 3)) * (1 - np.eye(3))
        mirror = np.diag([-1.0 if rng.random() < 0.5 else 1.0, 1.0, 1.0])
        self.matrix = mirror @ rotation(angles) @ shear @ np.diag(scale)
        self.centre = head.brain_centre + rng.normal(0.0, [5.0, 8.0, 8.0])

    def state(self, kind: str, mixture: Mixture) -> PatchState:
        """The patch with the tumour of a kind and what else lies in it."""
        rng = self.rng
        plan = draw_lesion(rng, kind) if kind in LESION_KINDS else None
        source = self._choose_place() if plan is not None else np.zeros(3)
        warp, squared, place = self._warp(plan, source)
        state = self._read(warp, grown=kind == GROWN)
        if rng.random() < mixture.aged:
            age_white_matter(state, self.patch, rng, self.generator)
        if rng.random() < mixture.flow:
            make_fluid_flow(state, self.patch, rng, self.generator)
        if plan is not None:
            assert squared is not None
            LesionPainter(state, self.patch, plan, self.generator).paint(place, squared)
        return state

    def _choose_place(self) -> NDArray[np.float64]:
        """A point of the brain in mm from the head's middle, in white matter rather than in grey, in the patch."""
        rng = self.rng
        candidates = rng.integers(0, HEAD_SIZE, size=(3000, 3))
        flat = torch.from_numpy(candidates @ np.array([HEAD_SIZE**2, HEAD_SIZE, 1])).to(self.patch.device)
        tissue = torch.take(self.head.healthy, flat).cpu().numpy()
        places = (candidates - (HEAD_SIZE - 1) / 2) * HEAD_SPACING
        in_patch = np.linalg.solve(self.matrix, (places - self.centre).T).T
        half = (np.array(self.patch.shape) - 1) / 2 * self.patch.spacing
        worth = _WORTH_OF_A_PLACE[tissue] * (np.abs(in_patch) < 0.9 * half).all(axis=1)
        if worth.sum() == 0:
            return self.centre
        return np.asarray(places[rng.choice(len(places), p=worth / worth.sum())])

    def _warp(
        self, plan: LesionPlan | None, source: NDArray[np.float64]
    ) -> tuple[Warp, Tensor | None, NDArray[np.float64]]:
        """The warp with a lesion's mass effect, the squared distance from the lesion's place, and that place."""
        rng, patch = self.rng, self.patch
        bend = patch.noise(self.generator, float(rng.uniform(50.0, 90.0)), 3) * float(rng.uniform(0.5, 4.5))
        if rng.random() < 0.5:
            bend += patch.noise(self.generator, float(rng.uniform(22.0, 40.0)), 3) * float(rng.uniform(0.2, 1.4))
        positions = affine_positions(patch, self.matrix, self.centre, bend)
        place = np.asarray(np.linalg.solve(self.matrix, source - self.centre), np.float64)
        squared = None
        if plan is not None:
            squared = distance_from(patch, plan, place)
            if plan.mass_effect > 0:
                push_aside(positions, squared, source, plan.mass_effect)
        positions.mul_(1 / HEAD_SPACING).add_((HEAD_SIZE - 1) / 2)
        return Warp(positions, (HEAD_SIZE,) * 3), squared, place

    def _read(self, warp: Warp, *, grown: bool) -> PatchState:
        head = self.head
        tissues = warp.nearest(head.tissues if grown else head.healthy).to(torch.int64)
        if grown:
            labels = warp.nearest(head.labels)
            infiltration, enhancement = warp.linear(torch.stack([head.infiltration, head.enhancement]).float())
            return PatchState(tissues, labels, infiltration.mul_(1 / 255), enhancement.mul_(ENHANCEMENT_UNIT))
        zero = torch.zeros(self.patch.shape, device=self.patch.device)
        return PatchState(tissues, zero.to(torch.uint8), zero, zero.clone())


def _worth_of_a_place() -> NDArray[np.float64]:
    worth = 0.4 * lookup(SOLID_BRAIN)
    worth[[Tissue.WHITE, Tissue.WHITE_LESION]] = 1.0
    worth[[Tissue.CEREBELLAR_GREY, Tissue.CEREBELLAR_WHITE, Tissue.BRAIN_STEM]] = 0.12
    return np.asarray(worth, np.float64)


_WORTH_OF_A_PLACE = _worth_of_a_place()


def _draw_kind(rng: np.random.Generator, mixture: Mixture) -> str:
    way = rng.random()
    painted = str(rng.choice(list(LESION_KINDS), p=list(LESION_KINDS.values())))
    if way < mixture.grown:
        return GROWN
    return painted if way < mixture.grown + mixture.painted else NORMAL


def _draw_sequences(rng: np.random.Generator, mixture: Mixture) -> list[str]:
    """All of them, or those of an older examination (FLAIR, perhaps with T1 before and after), or any."""
    way = rng.random()
    if way < mixture.complete:
        return list(SEQUENCES)
    rest = (way - mixture.complete) / max(1 - mixture.complete, 1e-9)
    if rest < 0.28:
        return ["flair"]
    if rest < 0.48:
        return ["t1", "t1ce", "flair"]
    kept = [name for name in SEQUENCES if rng.random() >= mixture.missing]
    return kept or [str(rng.choice(SEQUENCES))]


def _ideal(state: PatchState, tables: ContrastTables, channel: int, index: Tensor) -> Tensor:
    """The noise-free image of a sequence, (X, Y, Z)."""
    dry, wet, uptake = (
        torch.take(torch.from_numpy(table[channel].ravel()).to(index.device), index) if table[channel].any() else None
        for table in (tables.dry, tables.wet, tables.uptake)
    )
    assert dry is not None
    if wet is not None:
        dry.addcmul_(wet, state.infiltration)
    if uptake is not None:
        dry.addcmul_(uptake, state.enhancement)
    return dry.clamp_(min=0)


def normalized(image: Tensor) -> Tensor:
    """As `preprocessing.normalize`: z-score over the voxels above a tenth of the robust maximum."""
    low, high = torch.quantile(image[::3, ::3, ::3].flatten(), image.new_tensor([0.005, 0.995]))
    tissue = (image > low + 0.1 * (high - low)).float()
    count = tissue.sum().clamp(min=1)
    mean = (image * tissue).sum() / count
    centred = image - mean
    deviation = ((centred * centred * tissue).sum() / count).sqrt().clamp(min=1e-6)
    return (centred / deviation).clamp_(-NORMALIZED_LIMIT, NORMALIZED_LIMIT)


def _cut_off(image: Tensor, labels: Tensor, rng: np.random.Generator) -> None:
    """Blank a slab at one end or both, in place: slices that were not taken."""
    axis = 2 if rng.random() < 0.7 else int(rng.integers(0, 2))
    count = labels.shape[axis]
    low, high = (rng.uniform(0, 0.3, size=2) * count * (rng.random(2) < 0.7)).astype(int)
    for start, length in ((0, int(low)), (count - int(high), int(high))):
        image.narrow(axis + 1, start, length).zero_()
        labels.narrow(axis, start, length).zero_()
