"""What a response assessment looks at: the rules' settings, and each scan's lesions summed into one size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from twinseg.errors import InputError
from twinseg.twin.lesions import Change, LesionHistory, LesionSettings

CLINICAL = ("better", "stable", "worse")
Course = tuple[float, float]  # the first and the last day of a course of radiotherapy


@dataclass(frozen=True)
class Criteria:
    """The rules' numbers and choices. "Wen 2023" is RANO 2.0; what is marked (review) was read in a review of it (RANO
    2.0, Jpn. J. Radiol. 2025, PMC12479667) or in its abstract; the other papers are named in response.py.

    measure: 2D or 3D; partial, progression: shares of the baseline and the nadir (None: RANO 2.0's, see response.py);
    baseline: the first scan after the first radiotherapy, if there was one and there is such a scan (Wen 2023, review),
    or the first of all, and a new one after each operation (see `periods_of`); baseline_day: the day of another
    baseline, as for a recurrence the last scan before its treatment;
    measurable_mm: both diameters of a measurable lesion (Wen 2010, 2023; thick slices ask for twice their thickness);
    target_lesions: how many of the largest measurable lesions are summed (three, Wen 2023, review; five, Wen 2010;
    None: all); confirmation_days: a response must hold so long (4 weeks, Wen 2010 and 2023);
    early_days: progression during radiotherapy, or this soon after it, is preliminary until a scan after
    `confirmation_days` confirms it (12 weeks, Wen 2023; longer for a treatment that often looks like progression);
    confirmed_by: "persistence", the growth from the nadir still meets the limit, or "growth", it meets the limit again
    from the preliminary scan: both are in use, and the paper's own words were not at hand; new_lesion_progresses: a new
    measurable lesion is progression by itself (Wen 2010, 2023), else it is only added to the sum (Ellingson 2017);
    non_measurable_growth_mm: a lesion that was too small to measure, or is no target, progresses when it is measurable
    and both diameters grew by this much from their smallest (Wen 2010's example is 5 × 5 to 10 × 10 mm);
    complete_rest_ml: what a complete response may leave of the region in specks that are each too small to be a lesion:
    in all no more than the smallest lesion that is counted (a choice; RANO asks for none, but segmentations err);
    steroids_matter: growth while steroids are reduced is no progression, a response on more steroids than at baseline
    is none (Wen 2010, 2023); physiological_steroids_mg: what a complete response allows, dexamethasone a day (Wen 2010
    allows physiological replacement; 20 mg of hydrocortisone are as much).
    """

    measure: Literal["2D", "3D"] = "2D"
    partial: float | None = None
    progression: float | None = None
    baseline: Literal["after-radiotherapy", "first"] = "after-radiotherapy"
    baseline_day: float | None = None
    measurable_mm: float = 10.0
    target_lesions: int | None = 3
    confirmation_days: float = 28.0
    early_days: float = 84.0
    confirmed_by: Literal["persistence", "growth"] = "persistence"
    new_lesion_progresses: bool = True
    non_measurable_growth_mm: float = 5.0
    complete_rest_ml: float = LesionSettings.smallest_ml
    steroids_matter: bool = True
    physiological_steroids_mg: float = 0.75

    @property
    def shrinkage(self) -> float:
        """The share by which a partial response is smaller than the baseline."""
        return self.partial if self.partial is not None else (0.50 if self.measure == "2D" else 0.65)

    @property
    def growth(self) -> float:
        """The share by which progression is larger than the nadir."""
        return self.progression if self.progression is not None else (0.25 if self.measure == "2D" else 0.40)

    @property
    def unit(self) -> str:
        """Of sizes."""
        return "mm²" if self.measure == "2D" else "mL"


@dataclass(frozen=True)
class Visit:
    """What the rules look at. size: sum over the measured lesions, in mm² (2D) or mL (3D), size_sd its standard
    deviation; measurable: one of these is; lesions: how many there are, measurable or not; new_measurable: ids of
    lesions that the baseline does not have and that are measurable for the first time; non_measurable_worse: a reader's
    word; rest_ml: what there is of the region where there is no lesion, in specks too small to be one; clinical: one of
    `CLINICAL`, steroids_mg: dexamethasone equivalent a day; None: not known."""

    timepoint: str
    day: float
    size: float
    size_sd: float = 0.0
    measurable: bool = True
    lesions: int = 1
    new_measurable: tuple[int, ...] = ()
    non_measurable_worse: bool = False
    rest_ml: float = 0.0
    clinical: str | None = None
    steroids_mg: float | None = None

    def __post_init__(self) -> None:
        if self.clinical is not None and self.clinical not in CLINICAL:
            raise InputError(f"clinical status {self.clinical!r}: unknown; use one of {', '.join(CLINICAL)}")
        if self.steroids_mg is not None and not self.steroids_mg >= 0:
            raise InputError(f"steroids {self.steroids_mg}: give dexamethasone equivalent in mg per day, 0 or more")


def baseline_of(days: Mapping[str, float], criteria: Criteria, radiotherapy: Sequence[Course] = ()) -> str:
    """The time point that the others are compared with. days: by time point. Raises InputError."""
    names = sorted(days, key=lambda name: days[name])
    if not names:
        raise InputError("there is no scan to assess; add the baseline first")
    if criteria.baseline_day is not None:
        if criteria.baseline_day not in days.values():
            raise InputError(
                f"setting baseline_day {criteria.baseline_day:g}: no scan with a segmentation is of that day"
            )
        return next(name for name in names if days[name] == criteria.baseline_day)
    if criteria.baseline == "after-radiotherapy" and radiotherapy:
        end = min(last for _, last in radiotherapy)
        return next((name for name in names if days[name] > end), names[0])
    return names[0]


@dataclass(frozen=True)
class Period:
    """Time points between two operations, with their days; operation: the day of the one before them, if any."""

    days: dict[str, float]
    operation: float | None


def periods_of(days: Mapping[str, float], operations: Sequence[float]) -> tuple[Period, ...]:
    """The time points parted at the operations that removed tumour: each period has a baseline of its own, as what an
    operation takes away is no response. A scan of the day of an operation is taken to be from before it."""
    edges = (-math.inf, *sorted(operations), math.inf)
    periods = [
        Period(
            {name: day for name, day in days.items() if after < day <= until}, after if math.isfinite(after) else None
        )
        for after, until in itertools.pairwise(edges)
    ]
    return tuple(period for period in periods if period.days)


def visits_of(
    history: LesionHistory,
    days: Mapping[str, float],
    criteria: Criteria | None = None,
    *,
    rest_ml: Mapping[str, float] | None = None,
    clinical: Mapping[str, str] | None = None,
    steroids_mg: Mapping[str, float] | None = None,
) -> tuple[Visit, ...]:
    """The visits that the rules look at, from lesions that were followed. All mappings are by time point.

    Summed are the targets: the largest measurable lesions of the baseline, as long as anything is left of them, what
    split off or merged with them, and lesions that are new or grew to be measurable later. The standard deviation of a
    product is taken as 2/3 of the volume's, relatively (a length's is 1/3); those of several are added in squares.
    """
    criteria = criteria or Criteria()
    smallest: dict[int, tuple[float, float]] = {}  # diameters of each lesion that was seen, at its smallest
    targets: set[int] = set()
    known: set[int] = set()  # the baseline's lesions, measurable or not, and what became of them
    visits: list[Visit] = []
    for name in sorted(days, key=lambda name: days[name]):
        there = history.lesions.get(name, ())
        measurable = [lesion for lesion in there if lesion.perpendicular >= criteria.measurable_mm]
        if visits:  # what happens later must not reach back to this scan
            happened = [change for change in history.changes if change.timepoint == name]
            targets, known = _with_relatives(targets, happened), _with_relatives(known, happened)
        fresh = [lesion for lesion in measurable if lesion.id not in targets]
        new = [lesion.id for lesion in fresh if visits and lesion.id not in known]
        grown = [
            lesion.id
            for lesion in fresh
            if lesion.id in known & set(smallest)
            and lesion.longest - smallest[lesion.id][0] >= criteria.non_measurable_growth_mm
            and lesion.perpendicular - smallest[lesion.id][1] >= criteria.non_measurable_growth_mm
        ]
        largest = sorted(measurable, key=lambda lesion: lesion.product, reverse=True)
        if not visits:
            targets = {lesion.id for lesion in largest[: criteria.target_lesions]}
            known = {lesion.id for lesion in there}
        else:
            targets |= {*new, *grown}
        summed = [lesion for lesion in there if lesion.id in targets]
        if criteria.measure == "2D":
            sizes = [lesion.product for lesion in summed]
            errors = [2 / 3 * lesion.product * lesion.volume_sd_ml / lesion.volume_ml for lesion in summed]
        else:
            sizes = [lesion.volume_ml for lesion in summed]
            errors = [lesion.volume_sd_ml for lesion in summed]
        visits.append(
            Visit(
                timepoint=name,
                day=days[name],
                size=math.fsum(sizes),
                size_sd=math.hypot(*errors),
                measurable=any(lesion in measurable for lesion in summed),
                lesions=len(there),
                new_measurable=tuple(new),
                non_measurable_worse=bool(grown),
                rest_ml=(rest_ml or {}).get(name, 0.0),
                clinical=(clinical or {}).get(name),
                steroids_mg=(steroids_mg or {}).get(name),
            )
        )
        size_of = {lesion.id: (lesion.longest, lesion.perpendicular) for lesion in there}
        for id in {*smallest, *size_of}:
            now = size_of.get(id, (0.0, 0.0))
            before = smallest.get(id, now)
            smallest[id] = min(before[0], now[0]), min(before[1], now[1])
    return tuple(visits)


def _with_relatives(ids: set[int], happened: Sequence[Change]) -> set[int]:
    """The lesions with what they merged into and what split off from them, by the changes of one time point."""
    ids = ids | {into for one in happened if one.kind == "merged" and one.lesion in ids for into in one.others}
    return ids | {one.lesion for one in happened if one.kind == "split" and ids & set(one.others)}
