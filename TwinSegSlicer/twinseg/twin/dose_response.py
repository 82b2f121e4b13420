"""What growth and treatment together do to cells at one place: exact where a formula exists.

Radiotherapy: a fraction of d Gy leaves exp(-alpha d - beta d^2) of the cells, with alpha/beta = 10 Gy (the
linear-quadratic model; Fowler, Br. J. Radiol. 62 (1989) 679-694).

Chemotherapy: a dose adds its amount (1 is 75 mg/m2) to a concentration c that then decays exponentially. Cells die at
the rate `chemo_kill` * c, scaled so that a whole dose leaves exp(-chemo_kill * amount) of them. The exposure in any
interval is the exact integral of c.

Between fractions the logistic equation has the exact solution N -> N / (p + q N), and a kill has this form too (q = 0).
Such maps compose into one, which is why a step of days with many fractions costs the same as one without.
"""

from __future__ import annotations

from collections.abc import Callable
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

_SMALLEST, _LARGEST = 1e-30, 1e30
"""Survival and its inverse stay within these, which single precision can hold."""

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
    """A stretch of `days` with drug `exposure` (in standard doses), begun by `fractions` of radiotherapy."""

    days: float
    exposure: float
    fractions: tuple[Fraction, ...]


class TreatmentEffect:
    """The fractions and drug doses of `treatments` by day. What is unknown is taken as `Treatments.assumptions` says.

    Raises InputError for a dose map that has a file's name but was not loaded.
    """

    def __init__(self, treatments: Treatments) -> None:
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
        return [Piece(*piece) for piece in zip(days, exposures, map(tuple, given), strict=True)]

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
    """The maps N -> N / (p + q N) of logistic growth and treatment over `pieces`, for n parameter samples.

    `rate` (per day), `alpha` (per Gy) and `chemo_kill` are (n,). Returns p and q as (n,), or as (X,Y,Z,n) where a dose
    map was used, which `on_grid` brings to the caller's grid (X,Y,Z); without it, dose maps count by their mean.
    """
    p: Any = np.ones_like(rate)
    q: Any = np.zeros_like(rate)
    for piece in pieces:
        for fraction in piece.fractions:
            dose: Any = fraction.mean_dose_gy
            if fraction.relative_dose is not None and on_grid is not None:
                dose = fraction.dose_gy * on_grid(fraction.relative_dose)[..., None]
            p, q = _killed(p, q, np.exp(-log_kill(alpha, dose)))
        # Growth, kill, growth (Strang): exact without the drug, and second order in its few half-lives
        half = np.exp(-rate * piece.days / 2)
        p, q = _killed(p * half, (q - 1) * half + 1, np.exp(-chemo_kill * piece.exposure))
        p, q = p * half, (q - 1) * half + 1
    return np.clip(p, _SMALLEST, _LARGEST), np.minimum(q, _LARGEST)


def _killed(p: Any, q: Any, surviving: Any) -> tuple[Any, Any]:
    surviving = np.maximum(surviving, _SMALLEST)
    return np.minimum(p / surviving, _LARGEST), np.minimum(q / surviving, _LARGEST)


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
