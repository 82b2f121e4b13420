"""Grey values of every tissue in every sequence: by the signal equations, at random, or between the two.

A tissue is split into sub-clusters, each with its own value (FetalSynthSeg: Zalevskyi et al. 2024). As infiltration
and contrast agent change the signal nearly linearly, an image is one look-up and two products a voxel, instead of
signal equations at every voxel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinseg.phantom.anatomy import Tissue
from twinseg.phantom.physics import OEDEMA_FACTORS, RELAXATION, TUMOUR_UPTAKE_MM, UPTAKE_MM, TissueMaps
from twinseg.phantom.scanner import SEQUENCES, Scanner

Values = NDArray[np.float32]

FLUIDS = [Tissue.CSF, Tissue.VENTRICLE, Tissue.EYE]
OUTSIDE = [Tissue.FAT, Tissue.MUSCLE, Tissue.BONE, Tissue.MARROW]
"""A drawn face is plainer than a real one: what lies outside the brain is the more uneven."""

FIRST_OF_TUMOUR = int(Tissue.NECROSIS)
"""From this tissue number on it is tumour, which takes up no further water."""


@dataclass(frozen=True)
class ContrastTables:
    """By sequence, in the order of `SEQUENCES`: (sequences, tissues, clusters), the brain's level near one.

    `dry` is the tissue's own value, `wet` what full infiltration adds (of fluid: flow), `uptake` what an enhancement
    of one adds.
    """

    dry: Values
    wet: Values
    uptake: Values

    def blended(self, other: ContrastTables, share: float) -> ContrastTables:
        """Between this and another, `share` of the other."""
        mine, theirs = (self.dry, self.wet, self.uptake), (other.dry, other.wet, other.uptake)
        return ContrastTables(
            *(np.asarray((1 - share) * a + share * b, np.float32) for a, b in zip(mine, theirs, strict=True))
        )


def draw_contrast(
    rng: np.random.Generator, clusters: int, random_share: float, blended_share: float = 0.25
) -> ContrastTables:
    """Tables at random: with a probability of `random_share` of free contrast, else physical; but with one of
    `blended_share` somewhere between the two."""
    chosen = rng.random() < random_share
    physical, free = physical_contrast(rng, clusters), random_contrast_tables(rng, clusters)
    if rng.random() < blended_share:
        return physical.blended(free, float(rng.random()))
    return free if chosen else physical


def physical_contrast(rng: np.random.Generator, clusters: int) -> ContrastTables:
    """By the signal equations with a scanner at random; tissues vary between patients and within."""
    scanner = Scanner.random(int(rng.integers(2**31)))
    column = 0 if scanner.field_strength < 2 else 1
    table = np.array([RELAXATION[kind] for kind in Tissue])
    kinds = len(Tissue)
    tumour = np.arange(kinds) >= FIRST_OF_TUMOUR
    spread = np.where(tumour, 0.22, 0.06)
    spread[FLUIDS] = 0.015  # water is water: else FLAIR would not null it
    between = np.exp(rng.normal(0, spread, size=(3, kinds)))[:, :, None]
    spread[OUTSIDE] = 0.3
    within = np.exp(rng.normal(0, 0.55 * spread[:, None], size=(3, kinds, clusters)))
    change = between * within
    change[2] **= 0.3  # proton density varies little
    t1, t2, density = table[:, [column, 2 + column, 4]].T[:, :, None] * change
    agent = np.zeros((kinds, clusters))
    for kind, amount in UPTAKE_MM.items():
        agent[kind] = amount * np.exp(rng.normal(0, 0.25))

    def image(water: NDArray[np.float64], enhancement: float) -> Values:
        factors = [1 + water[:, None] * (factor - 1) for factor in OEDEMA_FACTORS]
        values = (t1 * factors[0], t2 * factors[1], np.minimum(density * factors[2], 1.0))
        maps = TissueMaps(*(part.astype(np.float32) for part in (*values, agent + TUMOUR_UPTAKE_MM * enhancement)))
        signals = scanner.signals(maps)
        return np.stack([signals[name] for name in SEQUENCES])

    swells = (~tumour).astype(float)
    swells[FLUIDS] = 0
    dry = image(np.zeros(kinds), 0.0)
    wet = image(swells, 0.0) - dry
    uptake = image(np.zeros(kinds), 1.0) - dry
    level = dry[:, [Tissue.WHITE, Tissue.GREY]].mean(axis=(1, 2), keepdims=True)
    wet[:, FLUIDS] = _flow(rng, dry / level)[:, FLUIDS] * level
    return ContrastTables(dry / level, wet / level, uptake / level)


def random_contrast_tables(rng: np.random.Generator, clusters: int) -> ContrastTables:
    """Contrasts that no scanner has (SynthSeg: Billot et al., Med. Image Anal. 86 (2023) 102789). Left as in reality
    is what tells the tumour, and not always: brighter than brain on FLAIR and T2, darker or equal on T1."""
    rows = [_random_row(rng, name) for name in SEQUENCES]
    dry, wet = (np.stack([row[part] for row in rows]) for part in (0, 1))
    if rng.random() < 0.6:  # t1ce is t1 but for the agent
        dry[1], wet[1] = dry[0] * rng.uniform(0.9, 1.1), wet[0]
    dry[1, [Tissue.VESSEL, Tissue.CHOROID]] += rng.uniform(0.1, 1.6, size=2)
    spread = rng.uniform(0.0, 0.12, size=(len(SEQUENCES), len(Tissue), 1))
    spread[:, FIRST_OF_TUMOUR:] *= 2.5
    spread[:, OUTSIDE] *= 5.0
    values = dry[:, :, None] * (1 + spread * rng.normal(size=(len(SEQUENCES), len(Tissue), clusters)))
    uptake = np.zeros_like(values)
    uptake[1] = rng.uniform(0.4, 1.8)
    waters = np.broadcast_to(wet[:, :, None], values.shape)
    flow = _flow(rng, values)
    waters = np.where(np.isin(np.arange(len(Tissue)), FLUIDS)[:, None], flow, waters)
    return ContrastTables(*(np.asarray(part, np.float32) for part in (np.maximum(values, 0.0), waters, uptake)))


def _flow(rng: np.random.Generator, dry: NDArray[np.floating]) -> Values:
    """What flow adds to fluid: brightness on FLAIR, loss of signal on T2."""
    flow = np.zeros(dry.shape)
    flow[SEQUENCES.index("flair")] = rng.uniform(0.2, 1.6)
    flow[SEQUENCES.index("t2")] = -rng.uniform(0.0, 0.8) * dry[SEQUENCES.index("t2")]
    return np.asarray(flow, np.float32)


def _random_row(rng: np.random.Generator, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One sequence's values of all tissues and what water adds to each."""
    level = rng.uniform(0.1, 1.6, size=len(Tissue))
    level[Tissue.AIR] = rng.uniform(0, 0.04)
    level[[Tissue.FAT, Tissue.MARROW]] = rng.uniform(0.3, 4.0, size=2)
    dark = name in ("t1", "t1ce")
    grey = float(np.exp(rng.normal(-0.2 if dark else 0.13, 0.17)))
    level[Tissue.WHITE], level[Tissue.GREY] = 1.0, grey
    for kind in (Tissue.DEEP_GREY, Tissue.CEREBELLAR_GREY, Tissue.CEREBELLAR_WHITE, Tissue.BRAIN_STEM):
        level[kind] = rng.uniform(min(1.0, grey) - 0.12, max(1.0, grey) + 0.12)
    brain, brightest = (1.0 + grey) / 2, max(1.0, grey)
    fluid = rng.uniform(1.5, 4.5) if name == "t2" else rng.uniform(0.03, 0.65)
    level[FLUIDS] = fluid * rng.uniform(0.85, 1.15, size=3)
    level[Tissue.WHITE_LESION] = rng.uniform(0.7, 1.0) if dark else brightest * rng.uniform(1.05, 1.9)
    if dark:
        ranges = {Tissue.NON_ENHANCING: (0.4, 1.05), Tissue.ENHANCING: (0.5, 1.1), Tissue.NECROSIS: (0.25, 0.95)}
    else:
        ranges = {Tissue.NON_ENHANCING: (1.1, 2.4), Tissue.ENHANCING: (0.85, 2.0), Tissue.NECROSIS: (0.6, 2.4)}
    for kind, (low, high) in ranges.items():
        level[kind] = brain * rng.uniform(low, high)
    if not dark and rng.random() < 0.85:
        level[Tissue.NON_ENHANCING] = max(level[Tissue.NON_ENHANCING], brightest * rng.uniform(1.1, 1.5))
    level[Tissue.CYST] = rng.uniform(fluid, brain) if name == "flair" else fluid * rng.uniform(0.7, 1.4)
    water = rng.uniform(-0.35, 0.0) if dark else rng.uniform(0.25, 1.4)
    wet = np.where(np.arange(len(Tissue)) < FIRST_OF_TUMOUR, water * brain, 0.0)
    return level / brain, wet / brain
