"""From tissue to signal: relaxation times, proton densities and the signal equations of the four sequences.

Sources (T1, T2 in ms; proton density relative to water). White, grey matter: Wansapura et al., J. Magn. Reson.
Imaging 9 (1999) 531-538 (3 T); Rooney et al., Magn. Reson. Med. 57 (2007) 308-318, and Stanisz et al., Magn. Reson.
Med. 54 (2005) 507-512 (1.5 T; blood and muscle at both). CSF: Rooney 2007. Fat, marrow: de Bazelaire et al.,
Radiology 230 (2004) 652-659; the T2 of fat is the longer apparent one of fast spin echo trains. Glioma and oedema:
Hattingen et al., Eur. Radiol. 23 (2013) 1409-1416 and Blystad et al., PLoS ONE 12 (2017) e0177135, rounded. Proton
density: Tofts, Quantitative MRI of the Brain (2003), ch. 4. Relaxivity of gadopentetate in plasma: Rohrer et al.,
Invest. Radiol. 40 (2005) 715-724 (4.1 and 4.6 per mM per s at 1.5 T, 3.7 and 5.2 at 3 T).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinseg.phantom.anatomy import Tissue
from twinseg.phantom.fields import Field, Grid, smooth_noise
from twinseg.phantom.tumour import TumourState

RELAXATION: dict[Tissue, tuple[float, float, float, float, float]] = {
    # T1 at 1.5 T, T1 at 3 T, T2 at 1.5 T, T2 at 3 T, proton density
    Tissue.AIR: (1000, 1000, 20, 20, 0.0),
    Tissue.FAT: (343, 382, 110, 120, 0.90),
    Tissue.MUSCLE: (1008, 1300, 44, 42, 0.75),
    Tissue.BONE: (500, 600, 2, 2, 0.10),
    Tissue.MARROW: (450, 520, 80, 80, 0.45),
    Tissue.CSF: (4000, 4100, 1500, 1400, 1.00),
    Tissue.GREY: (1120, 1331, 96, 99, 0.83),
    Tissue.WHITE: (690, 832, 78, 78, 0.70),
    Tissue.VENTRICLE: (4200, 4300, 1800, 1700, 1.00),
    Tissue.DEEP_GREY: (930, 1150, 84, 80, 0.78),
    Tissue.CEREBELLAR_GREY: (1070, 1270, 94, 96, 0.83),
    Tissue.CEREBELLAR_WHITE: (720, 860, 80, 80, 0.71),
    Tissue.BRAIN_STEM: (780, 930, 82, 81, 0.73),
    Tissue.VESSEL: (1441, 1800, 60, 50, 0.45),
    Tissue.EYE: (3800, 4000, 1200, 1100, 1.00),
    Tissue.CHOROID: (1500, 1700, 200, 190, 0.90),
    Tissue.WHITE_LESION: (1020, 1250, 125, 125, 0.80),
    Tissue.NECROSIS: (1850, 2150, 270, 260, 0.92),
    Tissue.ENHANCING: (1180, 1420, 125, 122, 0.84),
    Tissue.NON_ENHANCING: (1350, 1650, 165, 160, 0.87),
    Tissue.CYST: (2900, 3200, 700, 680, 0.98),
    Tissue.BLOOD: (650, 750, 70, 60, 0.85),
}

OEDEMA_FACTORS = (1.75, 1.75, 1.17)
"""Tissue full of oedema has this many times the T1, T2 and proton density of healthy tissue."""

RELAXIVITY = {1.5: (4.1, 4.6), 3.0: (3.7, 5.2)}
"""r1 and r2 of the contrast agent in 1/(mM s) by field strength."""

UPTAKE_MM = {Tissue.VESSEL: 2.2, Tissue.CHOROID: 1.0, Tissue.MUSCLE: 0.16, Tissue.FAT: 0.02, Tissue.GREY: 0.035}
"""Concentration in mM some minutes after 0.1 mmol/kg; of the tumour: 0.7 mM times its enhancement."""

TUMOUR_UPTAKE_MM = 0.7


@dataclass(frozen=True)
class Protocol:
    """How one sequence is taken: `kind` and its times in ms, flip angle in degrees, after contrast agent or not."""

    kind: str
    repetition: float
    echo: float
    inversion: float = 0.0
    flip: float = 90.0
    contrast_agent: bool = False


@dataclass(frozen=True)
class TissueMaps:
    """T1, T2 in ms, proton density and contrast agent in mM (at 0.1 mmol/kg), each (X,Y,Z)."""

    t1: Field
    t2: Field
    proton_density: Field
    agent: Field


def tissue_maps(rng: np.random.Generator, state: TumourState, grid: Grid, field_strength: float) -> TissueMaps:
    """The patient's own maps: tissue values with 3-5 % between patients, and a texture within each tissue."""
    column = 0 if field_strength < 2 else 1
    table = np.array([RELAXATION[kind] for kind in Tissue], dtype=np.float32)
    between = np.exp(rng.normal(0.0, 0.045, size=(3, len(Tissue))))
    between[:, Tissue.NECROSIS :] = np.exp(rng.normal(0.0, 0.16, size=(3, len(Tissue) - Tissue.NECROSIS)))
    between[2] **= 0.3  # proton density varies little
    values = np.stack([table[:, column], table[:, 2 + column], table[:, 4]]) * between.astype(np.float32)
    agent = np.zeros(len(Tissue), dtype=np.float32)
    for kind, amount in UPTAKE_MM.items():
        agent[kind] = amount * np.exp(rng.normal(0, 0.25))
    texture = 0.55 * smooth_noise(rng, grid.axes, 24.0) + 0.45 * smooth_noise(rng, grid.axes, 8.0)
    rough = np.full(len(Tissue), 0.045, dtype=np.float32)
    rough[[Tissue.NECROSIS, Tissue.NON_ENHANCING, Tissue.ENHANCING, Tissue.FAT, Tissue.MUSCLE]] = 0.16
    texture = np.exp(texture * rough[state.tissues])
    excess = [1 + (factor - 1) * state.infiltration for factor in OEDEMA_FACTORS]
    swollen = state.tissues < Tissue.NECROSIS
    t1, t2, density = (
        np.take(column_values, state.tissues) * np.where(swollen, more, 1)
        for column_values, more in zip(values.astype(np.float32), excess, strict=True)
    )
    concentration = agent[state.tissues] + np.float32(TUMOUR_UPTAKE_MM) * state.enhancement
    return TissueMaps(t1 * texture, t2 * texture, np.minimum(density, 1.0).astype(np.float32), concentration)


def signal(maps: TissueMaps, protocol: Protocol, field_strength: float, dose: float) -> Field:
    """The noise-free magnitude (X,Y,Z) of one sequence; `dose` in mmol/kg scales the contrast agent.

    With E1 = exp(-TR/T1), the equations are (Bernstein, King and Zhou, Handbook of MRI Pulse Sequences, 2004, ch. 14):
    spin echo PD (1 - E1) exp(-TE/T2); inversion recovery PD |1 - 2 exp(-TI/T1) + E1| exp(-TE/T2); spoiled gradient echo
    PD sin(a) (1 - E1) / (1 - cos(a) E1) exp(-TE/T2*); and magnetisation-prepared gradient echo
    PD |1 - 2 exp(-TI/T1) / (1 + E1)|. Contrast agent: 1/T = 1/T0 + r C.
    """
    rate1, rate2 = np.float32(1) / maps.t1, np.float32(1) / maps.t2
    if protocol.contrast_agent:
        r1, r2 = RELAXIVITY[1.5 if field_strength < 2 else 3.0]
        amount = maps.agent * np.float32(dose / 0.1 / 1000)
        rate1, rate2 = rate1 + np.float32(r1) * amount, rate2 + np.float32(r2) * amount
    e1 = np.exp(np.float32(-protocol.repetition) * rate1)
    if protocol.kind == "spin echo":
        longitudinal = 1 - e1
    elif protocol.kind == "inversion recovery":
        longitudinal = np.abs(1 - 2 * np.exp(np.float32(-protocol.inversion) * rate1) + e1)
    elif protocol.kind == "gradient echo":
        angle = np.deg2rad(protocol.flip)
        longitudinal = np.float32(np.sin(angle)) * (1 - e1) / (1 - np.float32(np.cos(angle)) * e1)
        rate2 = rate2 * np.float32(1.4)  # T2* is shorter than T2
    elif protocol.kind == "prepared gradient echo":
        longitudinal = np.abs(1 - 2 * np.exp(np.float32(-protocol.inversion) * rate1) / (1 + e1))
        rate2 = rate2 * np.float32(1.4)
    else:
        raise ValueError(f"no signal equation for {protocol.kind!r}")
    decay = np.exp(np.float32(-protocol.echo) * rate2)
    return np.asarray(maps.proton_density * longitudinal * decay, dtype=np.float32)


def random_contrast(
    rng: np.random.Generator, state: TumourState, grid: Grid, sequences: tuple[str, ...]
) -> dict[str, Field]:
    """Images of contrasts that no scanner has: each tissue, split at random in sub-clusters, gets its own grey values.

    After Billot et al., Med. Image Anal. 86 (2023) 102789 (SynthSeg), and the sub-clusters of FetalSynthSeg. Left as
    in reality is only what makes the sequences tell the tumour: oedema brighter than brain on FLAIR and T2, and
    darker or equal on T1; t1ce is t1 plus enhancement. Arrays (X,Y,Z), the brain's mean near one.
    """
    clusters = int(rng.integers(1, 5))
    noise = smooth_noise(rng, grid.axes, float(rng.uniform(6.0, 24.0)))
    cluster = np.clip(((noise + 2) / 4 * clusters).astype(np.intp), 0, clusters - 1)
    index = state.tissues.astype(np.intp) * clusters + cluster
    grain = smooth_noise(rng, grid.axes, float(rng.uniform(5.0, 10.0)))
    images: dict[str, Field] = {}
    for name in sequences:
        if name == "t1ce" and "t1" in images and rng.random() < 0.6:
            image = images["t1"] * np.float32(rng.uniform(0.9, 1.1))
        else:
            level, spread = _random_levels(rng, name)
            values = level[:, None] + spread[:, None] * rng.normal(0, 1, size=(len(Tissue), clusters))
            values[Tissue.AIR] = level[Tissue.AIR]
            image = np.clip(values, 0, None).astype(np.float32).ravel()[index]
            image *= 1 + np.float32(rng.uniform(0, 0.08)) * grain
            change = rng.uniform(-0.35, 0.02) if name in ("t1", "t1ce") else rng.uniform(0.3, 1.3)
            image *= 1 + np.float32(change) * state.infiltration * (state.tissues < Tissue.NECROSIS)
        if name == "t1ce":
            vessels = np.isin(state.tissues, (Tissue.VESSEL, Tissue.CHOROID)) * np.float32(rng.uniform(0.2, 1.6))
            image = image + np.float32(rng.uniform(0.5, 1.6)) * state.enhancement + vessels
        images[name] = np.asarray(image, np.float32)
    return images


def _random_levels(rng: np.random.Generator, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and spread of every tissue in one sequence: all at random but for fluid and tumour, which keep their
    sign."""
    level = rng.uniform(0.15, 1.5, size=len(Tissue))
    level[Tissue.AIR] = rng.uniform(0, 0.03)
    level[[Tissue.FAT, Tissue.MARROW]] = rng.uniform(0.3, 4.0, size=2)
    level[Tissue.WHITE] = 1.0
    grey = np.exp(rng.normal(-0.2 if name in ("t1", "t1ce") else 0.2, 0.2))
    level[Tissue.GREY] = grey
    for kind in (Tissue.DEEP_GREY, Tissue.CEREBELLAR_GREY, Tissue.CEREBELLAR_WHITE, Tissue.BRAIN_STEM):
        level[kind] = rng.uniform(min(1.0, grey) - 0.1, max(1.0, grey) + 0.1)
    brain = (1.0 + grey) / 2
    fluid = rng.uniform(2.0, 4.5) if name == "t2" else rng.uniform(0.03, 0.6)
    level[[Tissue.CSF, Tissue.VENTRICLE, Tissue.EYE]] = fluid * rng.uniform(0.85, 1.15, size=3)
    bright = name in ("t2", "flair")
    for kind in (Tissue.NON_ENHANCING, Tissue.ENHANCING, Tissue.NECROSIS):
        level[kind] = brain * (rng.uniform(1.2, 2.4) if bright else rng.uniform(0.5, 1.0))
    if name == "flair":
        level[Tissue.NECROSIS] = brain * rng.uniform(0.7, 2.3)
        level[Tissue.CYST] = rng.uniform(fluid, 1.2)
    else:
        level[Tissue.CYST] = rng.uniform(0.7, 1.0) * fluid + 0.05
    level[Tissue.WHITE_LESION] = rng.uniform(1.1, 1.6) if bright else rng.uniform(0.7, 1.0)
    return level, rng.uniform(0.0, 0.12, size=len(Tissue))
