"""Whether a model's uncertainty means something: reliability of its probabilities, and volume intervals that keep
what they promise.

**Reliability.** Of the voxels to which a model gives the probability p of belonging to a region, a share p should
belong to it (Guo et al. 2017, "On Calibration of Modern Neural Networks", ICML). Only voxels with p of at least
`SMALLEST` count: most of a head is rightly near 0 for every model, and would drown what differs. They are chosen by the
probability alone, never by the truth, as that would bend the frequencies; what the model misses below that bound is
told apart, as a share of the region.

**Intervals.** Conformalised quantile regression (Romano, Patterson and Candès 2019, NeurIPS, eq. 6-8), split conformal
(Vovk et al. 2005, "Algorithmic Learning in a Random World"), on the scale log(mL + `FLOOR_ML`). The quantiles are the
volumes within level sets (`region_volumes`); patients that the network was not trained on tell by which factor these
must be widened (or may be narrowed) to hold the true volume of nine new patients in ten. It holds whatever the network
is like, on the average over patients that are drawn as those were; not for each kind of patient, and not for another
scanner or population.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinseg.errors import InputError

LEVEL = 0.9
"""Share of new patients whose true volume a calibrated interval should hold."""

FLOOR_ML = 1.0
"""Added to volumes before the logarithm, so that empty regions have one: far below it millilitres count, far above
ratios. 1 mL is a sphere of 12 mm, about the smallest lesion that RANO calls measurable (10 mm)."""

BINS = 10
"""Bins of equal width from probability 0 to 1."""

SMALLEST = 0.01
"""Voxels of a lower probability do not count for the reliability."""

LARGEST_MARGIN = 50.0
"""No patient has a volume that is so far from another on the scale of the margins."""


@dataclass(frozen=True)
class Reliability:
    """How often voxels belong to a region, by the probability that the model gave them; may be added up over patients.

    Attributes:
        voxels, found: by bin, voxels and those of them that belong to the region.
        expected: by bin, the sum of the probabilities, which is how many should.
        missed: voxels of the region whose probability is below `SMALLEST`.
    """

    voxels: tuple[int, ...] = (0,) * BINS
    found: tuple[int, ...] = (0,) * BINS
    expected: tuple[float, ...] = (0.0,) * BINS
    missed: int = 0

    @classmethod
    def of(cls, probability: NDArray[np.floating], truth: NDArray[np.bool_]) -> Reliability:
        """Of one region's probabilities and its true mask, of the same shape."""
        counted = probability >= SMALLEST
        chance, inside = np.clip(probability[counted].astype(float), 0, 1), truth[counted]
        bins = np.minimum((chance * BINS).astype(int), BINS - 1)
        voxels, found = np.bincount(bins, minlength=BINS), np.bincount(bins[inside], minlength=BINS)
        expected = np.bincount(bins, chance, BINS)
        missed = int(np.count_nonzero(truth)) - int(np.count_nonzero(inside))
        return cls(tuple(voxels.tolist()), tuple(found.tolist()), tuple(expected.tolist()), missed)

    def __add__(self, other: Reliability) -> Reliability:
        def both(one: Sequence[Any], another: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(a + b for a, b in zip(one, another, strict=True))

        voxels, found = both(self.voxels, other.voxels), both(self.found, other.found)
        return Reliability(voxels, found, both(self.expected, other.expected), self.missed + other.missed)

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al. 2017, eq. 3): the gap between probability and frequency, mean over
        voxels, 0 to 1; NaN without any voxel."""
        gaps = (abs(expected - found) for expected, found in zip(self.expected, self.found, strict=True))
        return sum(gaps) / sum(self.voxels) if any(self.voxels) else math.nan

    @property
    def missed_share(self) -> float:
        """Share of the region's voxels that have a probability below `SMALLEST`; NaN for an empty region."""
        all_found = sum(self.found) + self.missed
        return self.missed / all_found if all_found else math.nan


@dataclass(frozen=True)
class RegionMeasure:
    """One region of one patient: the volume that was drawn, the interval of the level sets around it, uncalibrated, and
    the truth, in mL."""

    volume_ml: float
    low_ml: float
    high_ml: float
    true_ml: float
    reliability: Reliability

    @property
    def score(self) -> float:
        """By how much the truth lies outside the interval (below 0: inside), on the scale log(mL + `FLOOR_ML`):
        Romano et al. 2019, eq. 6."""
        low, high, true = (math.log(ml + FLOOR_ML) for ml in (self.low_ml, self.high_ml, self.true_ml))
        return max(low - true, true - high)


def conformal_margin(scores: Sequence[float], level: float = LEVEL) -> float:
    """The ⌈(n + 1) · level⌉-th smallest of n scores (Romano et al. 2019, eq. 8): a new one is not above it with a
    probability of at least `level`, and of at most level + 1 / (n + 1) where no two are equal. Infinite where n is too
    small to say so: below 9 for 90 %."""
    place = math.ceil(round((len(scores) + 1) * level, 9))
    return math.inf if place > len(scores) else float(sorted(scores)[place - 1])


def widened(
    volume_ml: float, low_ml: float, high_ml: float, margin: float, floor_ml: float = FLOOR_ML
) -> tuple[float, float]:
    """The interval widened by the margin (Romano et al. 2019, eq. 7): all volumes whose score is not above it, and the
    volume that was drawn, which a margin below 0 might leave outside."""
    low = max(0.0, (low_ml + floor_ml) * math.exp(-margin) - floor_ml)
    high = (high_ml + floor_ml) * math.exp(margin) - floor_ml
    return min(low, volume_ml), max(high, volume_ml)


def fewest_patients(level: float = LEVEL) -> int:
    """How many patients it takes for a finite margin."""
    return math.ceil(round(level / (1 - level), 9))


@dataclass(frozen=True)
class Calibration:
    """What a model's card keeps of its calibration, under ``calibration`` in the provenance.

    Attributes:
        patients: that were measured; data, part: the folder's name, and the part of its split, that they came from.
        sequences: those that all of the patients had. Of a case that lacks one, nothing was promised.
        errors: by region, expected calibration error of the voxels' probabilities; NaN where there was no voxel.
        margins: by region, on the scale log(mL + floor_ml); empty where the patients are too few.
        level: the share of new patients whose volume an interval with the margin should hold.
        floor_ml: see `FLOOR_ML`.
    """

    patients: int
    data: str
    part: str
    sequences: tuple[str, ...]
    errors: Mapping[str, float]
    margins: Mapping[str, float]
    level: float = LEVEL
    floor_ml: float = FLOOR_ML

    @classmethod
    def of(
        cls, measured: Sequence[Mapping[str, RegionMeasure]], *, data: str, part: str, sequences: Iterable[str]
    ) -> Calibration:
        """From the regions of each patient, of whom there must be at least one."""
        names = list(measured[0])
        errors = {name: total_reliability(one[name] for one in measured).error for name in names}
        margins = {name: conformal_margin([one[name].score for one in measured]) for name in names}
        finite = {name: margin for name, margin in margins.items() if margin < math.inf}
        return cls(len(measured), data, part, tuple(sequences), errors, finite)

    @classmethod
    def from_provenance(cls, provenance: Mapping[str, Any], path: Path) -> Calibration | None:
        """That of a model's card, or None where it keeps none. Raises InputError for one that is damaged."""
        kept = provenance.get("calibration")
        if kept is None:
            return None
        try:
            errors = {name: math.nan if error is None else float(error) for name, error in kept["errors"].items()}
            margins = {str(name): float(margin) for name, margin in kept["margins"].items()}
            level, floor = float(kept["level"]), float(kept["floor_ml"])
            if not (0 < level < 1 and 0 < floor < 1000 and all(abs(m) <= LARGEST_MARGIN for m in margins.values())):
                raise ValueError("a number that no interval can have")
            told = (int(kept["patients"]), str(kept["data"]), str(kept["part"]), tuple(map(str, kept["sequences"])))
            return cls(*told, errors, margins, level, floor)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"{path}: its calibration is damaged ({error!r}); fetch the model again") from error

    def to_json(self) -> dict[str, Any]:
        """As the card keeps it."""
        return asdict(self)

    def holds_for(self, sequences: Iterable[str]) -> bool:
        """Whether a case with these sequences is like those that were measured."""
        return set(self.sequences) <= set(sequences)

    @property
    def words(self) -> str:
        """What it promises, in a few words."""
        intervals = f"{100 * self.level:.0f} % volume intervals"
        if self.margins:
            return f"{intervals} from {self.patients} patients"
        return f"no {intervals}: {self.patients} patients to calibrate on, {fewest_patients(self.level)} are needed"


def total_reliability(measures: Iterable[RegionMeasure]) -> Reliability:
    """The reliability over patients, each voxel alike."""
    return sum((measure.reliability for measure in measures), Reliability())
