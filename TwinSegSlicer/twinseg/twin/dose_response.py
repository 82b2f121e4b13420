"""What growth and treatment together do to cells at one place, exactly.

Treatment kills the cells that proliferate, a share 1 - N of them where N is the density (Rockne et al., Phys. Med.
Biol. 55 (2010) 3271-3285): those packed to capacity do not divide, and survive. So growth at the rate rho and a kill of
k a day are one logistic equation, dN/dt = (rho - k) N (1 - N), and what acts in any interval adds up in ln(N / (1-N)).

Radiotherapy: a fraction of d Gy takes alpha d + beta d^2 off it, with alpha/beta = 10 Gy (the linear-quadratic model;
Fowler, Br. J. Radiol. 62 (1989) 679-694).

Chemotherapy: a dose adds its amount (1 is 75 mg/m2) to a concentration c that then decays exponentially. Cells die at
the rate `chemo_kill` * c, scaled so that a whole dose takes chemo_kill * amount off. The exposure in any interval is
the exact integral of c.

A treatment that nobody knows of kills at a constant rate, as long as it may go on.

What was killed does not vanish from the next scan: its volume fades exponentially (`seen`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinseg.errors import InputError
from twinseg.twin.treatments import HALF_LIFE_DAYS, TEMOZOLOMIDE, Treatments

ALPHA_BETA_GY = 10.0
"""Glioma: Qi, Schultz and Li, Int. J. Radiat. Oncol. Biol. Phys. 64 (2006) 1570-1580."""

UNKNOWN_FRACTION_GY = 2.0
STANDARD_DOSE_MG_M2 = 75.0

TREATED_SHARE = 0.05
"""Where a dose map gives at least this share of the dose, tissue counts as treated."""

ALWAYS_PROLIFERATING = 1e-5
"""This share of cells packed to capacity proliferates all the same: single precision does not tell so few from none."""

_LARGEST = 69.0
"""No interval changes ln(N / (1 - N)) by more: single precision holds the exponential of that, and of its negative."""

Array = NDArray[np.float64]
DoseMap = NDArray[np.float32]


@dataclass(frozen=True)
class Fraction:
    """One fraction of radiotherapy: the day, the dose in Gy, and the map (X,Y,Z) that scales it, if there is one."""

    day: float
    dose_gy: float
    relative_dose: DoseMap | None

    @property
    def mean_dose_gy(self) -> float:
        """The dose in Gy, averaged over the places that a dose map treats."""
        if self.relative_dose is None:
            return self.dose_gy
        treated = self.relative_dose[self.relative_dose > TREATED_SHARE]
        return self.dose_gy * float(treated.mean()) if treated.size else 0.0


@dataclass(frozen=True)
class Piece:
    """A stretch of `days` with drug `exposure` (in standard doses), begun by `fractions` of radiotherapy; an unknown
    treatment kills at the rate `unknown_kill` per day: one number, or (n,) for n samples."""

    days: float
    exposure: float
    fractions: tuple[Fraction, ...]
    unknown_kill: Any = 0.0


class TreatmentEffect:
    """The fractions and drug doses of `treatments` by day. What is unknown is taken as `Treatments.assumptions` says.

    `unknown_kill` (n,) is the rate per day at which an unknown treatment kills in each of n samples, if there may be
    one. Raises InputError for a dose map that has a file's name but was not loaded.
    """

    def __init__(self, treatments: Treatments, unknown_kill: Array | float = 0.0) -> None:
        self._unknown_kill = unknown_kill if treatments.kills_unknown else 0.0
        self.fractions = sorted(_fractions(treatments), key=lambda fraction: fraction.day)
        self._doses = np.array(sorted(_doses(treatments))).reshape(-1, 3)
        day, half_life = self._doses[:, :1], np.log(2) / self._doses[:, 2:]
        fading = half_life * np.array([0.0, 1.0, 2.0, 4.0, 8.0])
        # Growth within half a day is too small to care in which order it and the kill come
        fading = np.where(fading < 0.5, 0.0, fading)
        self._breaks = np.unique(np.concatenate([[f.day for f in self.fractions], (day + fading).ravel()]))

    def exposure(self, start: float, end: float) -> float:
        """The integral of the concentration over [start, end], in standard doses."""
        return float(np.diff(self._taken_up(np.array([start, end])))[0])

    def between(self, start: float, end: float) -> bool:
        """Whether anything kills cells in [start, end)."""
        return any(start <= f.day < end for f in self.fractions) or self.exposure(start, end) > 1e-6

    def pieces(self, start: float, end: float) -> list[Piece]:
        """[start, end) cut at fractions, at doses and while a drug fades."""
        inside = self._breaks[(self._breaks > start) & (self._breaks < end)]
        edges = np.concatenate([[start], inside, [end]])
        days, exposures = np.diff(edges).tolist(), np.diff(self._taken_up(edges)).tolist()
        given: list[list[Fraction]] = [[] for _ in days]
        for fraction in self.fractions:
            if start <= fraction.day < end:
                given[int(np.searchsorted(edges, fraction.day, side="right")) - 1].append(fraction)
        parts = zip(days, exposures, map(tuple, given), strict=True)
        return [Piece(*part, unknown_kill=self._unknown_kill) for part in parts]

    def _taken_up(self, at: Array) -> Array:
        """The exposure (n,) from all doses until the days `at` (n,)."""
        day, amount, decay = self._doses.T
        return (amount * -np.expm1(-decay * np.maximum(at[:, None] - day, 0.0))).sum(axis=1)


def log_kill(alpha: Array, dose_gy: Any) -> Any:
    """What a fraction takes off the logarithm of the cells' number (linear-quadratic model)."""
    return alpha * dose_gy * (1.0 + dose_gy / ALPHA_BETA_GY)


def local_map(
    pieces: list[Piece],
    rate: Array,
    alpha: Array,
    chemo_kill: Array,
    on_grid: Callable[[DoseMap], DoseMap] | None = None,
) -> tuple[Any, Any]:
    """The map N -> N / (p + q N) of growth and treatment over `pieces`, for n parameter samples.

    `rate` (per day), `alpha` (per Gy) and `chemo_kill` are (n,). Returns p and q as (n,), or as (X,Y,Z,n) where a dose
    map was used, which `on_grid` brings to the caller's grid (X,Y,Z); without it, dose maps count by their mean.
    """
    change: Any = np.zeros_like(rate)
    for piece in pieces:
        change = change + (rate - piece.unknown_kill) * piece.days - chemo_kill * piece.exposure
        for fraction in piece.fractions:
            dose: Any = fraction.mean_dose_gy
            if fraction.relative_dose is not None and on_grid is not None:
                dose = fraction.dose_gy * on_grid(fraction.relative_dose)[..., None]
            change = change - log_kill(alpha, dose)
    p = np.exp(-np.clip(change, -_LARGEST, _LARGEST))
    return p, np.where(p > 1, 1 - ALWAYS_PROLIFERATING, 1.0) * (1 - p)


WATCHED_EVERY_DAYS = 7.0

UNSURE_DAYS, UNSURE_SD = 84.0, 0.3
"""From the first fraction until so long after the last, what enhances need not be tumour: ln(volume) is off by so much.
Of 25 glioblastomas a month after radiotherapy 5 had grown by a quarter or more that proved to be no tumour (Gladwish et
al., Radiat. Oncol. 6 (2011) 121), which is 0.26; RANO waits for 12 weeks."""


def enhancement_sd(treatments: Treatments, days: Sequence[float]) -> Array:
    """The standard deviation (n,) of ln(volume) on `days` (n,) that comes from radiotherapy's effect on the scans."""
    unsure = np.zeros(len(days))
    for course in treatments.radiotherapy or ():
        if course.days:
            within = (np.asarray(days) > min(course.days)) & (np.asarray(days) <= max(course.days) + UNSURE_DAYS)
            unsure[within] = UNSURE_SD
    return unsure


def seen(
    effect: TreatmentEffect, start: float, days: Sequence[float], half_life: Array, alive: Callable[[Array], Array]
) -> Array:
    """The volumes (n,m) that scans show on `days` (m,), where `alive` gives those of living tumour on any rising days.

    What was killed since `start` fades with a half-life (n,) in days; tumour that grows again takes its place. Only
    treatment that is known of leaves something to fade: an unknown one is known by what it does to the scans.
    """
    if not len(days) or not effect.between(start, days[-1]):
        return alive(np.asarray(days, float))
    watched = np.unique([*days, *np.arange(start, days[-1], WATCHED_EVERY_DAYS)]).astype(float)
    living = alive(watched)
    shown, killed = living.copy(), np.zeros(len(living))
    for number in range(1, len(watched)):
        fading = np.exp2(-(watched[number] - watched[number - 1]) / half_life)
        change = living[:, number] - living[:, number - 1]
        killed = np.maximum(killed * fading - np.maximum(change, 0.0), 0.0) + np.maximum(-change, 0.0) * np.sqrt(fading)
        shown[:, number] += killed
    return shown[:, np.searchsorted(watched, days)]


def _fractions(treatments: Treatments) -> list[Fraction]:
    found = []
    for course in treatments.radiotherapy or ():
        if course.dose_map_file is not None and course.relative_dose is None:
            raise InputError(f"radiotherapy: the dose map {course.dose_map_file} is not loaded; load it before use.")
        for day, dose in zip(course.days, course.dose_gy, strict=True):
            found.append(Fraction(day, UNKNOWN_FRACTION_GY if dose is None else dose, course.relative_dose))
    return found


def _doses(treatments: Treatments) -> list[tuple[float, float, float]]:
    """Day, amount in standard doses, decay per day."""
    found = []
    for course in treatments.chemotherapy or ():
        decay = np.log(2) / (course.effective_half_life_days or HALF_LIFE_DAYS[TEMOZOLOMIDE])
        for day, dose in zip(course.days, course.dose_mg_m2, strict=True):
            amount = 1.0 if dose is None else dose / STANDARD_DOSE_MG_M2
            found.append((day, amount, float(decay)))
    return found
