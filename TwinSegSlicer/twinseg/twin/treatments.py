"""What was, or might be, done to a patient: radiotherapy, chemotherapy, surgery, steroids.

Days are counted from the patient's baseline scan and may be negative. What is not known is None, and stays None in
JSON: `Treatments.radiotherapy` None says that nobody knows whether the patient was irradiated, `()` that they were not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinseg.errors import InputError

TEMOZOLOMIDE = "temozolomide"

HALF_LIFE_DAYS = {TEMOZOLOMIDE: 1.8 / 24}
"""Half-lives in plasma, in days (temozolomide 1.8 h: Baker et al., Clin. Cancer Res. 5 (1999) 309-317)."""

KINDS = ("radiotherapy", "chemotherapy", "surgery", "steroids")

EXTENTS = ("biopsy", "partial", "subtotal", "gross total")


@dataclass(frozen=True)
class Radiotherapy:
    """A course of radiotherapy: one fraction of `dose_gy[i]` Gy on each of `days`; a dose that is not known is None.

    A dose map scales these doses voxel by voxel: `relative_dose` (X,Y,Z), 1 where the prescribed dose is given. JSON
    keeps only `dose_map_file`, the name of the file that holds it; without a map the dose is uniform.
    """

    days: tuple[float, ...]
    dose_gy: tuple[float | None, ...]
    dose_map_file: str | None = None
    relative_dose: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_pairs("radiotherapy", self.days, self.dose_gy, "dose in Gy")
        if self.relative_dose is not None and not (np.isfinite(self.relative_dose) & (self.relative_dose >= 0)).all():
            raise InputError(
                "radiotherapy: the dose map has negative or undefined values; give it as shares of the dose."
            )

    @property
    def total_gy(self) -> float | None:
        """The prescribed dose in Gy, None if a fraction's dose is not known."""
        known = [dose for dose in self.dose_gy if dose is not None]
        return sum(known) if len(known) == len(self.dose_gy) else None


@dataclass(frozen=True)
class Chemotherapy:
    """Doses of one drug, mg per m2 of body surface on each of `days`; a dose, drug or half-life not known is None."""

    days: tuple[float, ...]
    dose_mg_m2: tuple[float | None, ...]
    drug: str | None = None
    half_life_days: float | None = None

    def __post_init__(self) -> None:
        _check_pairs("chemotherapy", self.days, self.dose_mg_m2, "dose in mg per m2")
        _check_positive("chemotherapy: the half-life in days", self.half_life_days)

    @property
    def effective_half_life_days(self) -> float | None:
        """The half-life given, or else the drug's own, or else None."""
        return self.half_life_days or HALF_LIFE_DAYS.get((self.drug or "").lower())


@dataclass(frozen=True)
class Surgery:
    """An operation: its extent (one of `EXTENTS`) and what was left of the tumour, in mL."""

    day: float
    extent: str | None = None
    residual_ml: float | None = None

    def __post_init__(self) -> None:
        _check_number("surgery: the day", self.day)
        if self.extent is not None and self.extent not in EXTENTS:
            raise InputError(f"surgery: the extent {self.extent!r} is not known; use one of {', '.join(EXTENTS)}.")
        _check_at_least_zero("surgery: the residual volume in mL", self.residual_ml)

    @property
    def removes_tumour(self) -> bool:
        """Anything but a biopsy, an unknown extent included."""
        return self.extent != "biopsy"


@dataclass(frozen=True)
class Steroids:
    """A steroid at one dose: dexamethasone equivalent in mg per day. `last_day` None: still taken, or not known."""

    first_day: float
    last_day: float | None = None
    dexamethasone_mg: float | None = None

    def __post_init__(self) -> None:
        _check_number("steroids: the first day", self.first_day)
        if self.last_day is not None:
            _check_number("steroids: the last day", self.last_day)
            if self.last_day < self.first_day:
                raise InputError(f"steroids: the last day {self.last_day:g} is before the first {self.first_day:g}.")
        _check_at_least_zero("steroids: the dose in mg per day", self.dexamethasone_mg)


@dataclass(frozen=True)
class Treatments:
    """All that is known of a patient's treatment: for each kind a tuple, empty for "none given", None for unknown.

    `more_unknown` marks a plan for a patient of whom it is not known what else is given. It is not written to JSON,
    which holds what was given.
    """

    radiotherapy: tuple[Radiotherapy, ...] | None = None
    chemotherapy: tuple[Chemotherapy, ...] | None = None
    surgery: tuple[Surgery, ...] | None = None
    steroids: tuple[Steroids, ...] | None = None
    more_unknown: bool = False

    @classmethod
    def none_given(cls) -> Treatments:
        """The patient is known to have had no treatment."""
        return cls((), (), (), ())

    @property
    def kills_unknown(self) -> bool:
        """Whether there may be radiotherapy or chemotherapy that nobody knows of."""
        return self.more_unknown or self.radiotherapy is None or self.chemotherapy is None

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers, strings and None.

        Raises InputError for a dose map that lives in memory only.
        """
        return {
            "radiotherapy": _list(self.radiotherapy, _radiotherapy_to_json),
            "chemotherapy": _list(self.chemotherapy, _chemotherapy_to_json),
            "surgery": _list(self.surgery, lambda s: dict(vars(s))),
            "steroids": _list(self.steroids, lambda s: dict(vars(s))),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Treatments:
        """The reverse of `to_json`; a kind or a value that is missing is unknown. Raises InputError."""
        if not isinstance(data, Mapping) or set(data) - set(KINDS):
            raise InputError(f"treatments: expected an object with {', '.join(KINDS)}; found {data!r:.80}.")
        try:
            return cls(
                radiotherapy=_tuple(data.get("radiotherapy"), _radiotherapy_from_json),
                chemotherapy=_tuple(data.get("chemotherapy"), _chemotherapy_from_json),
                surgery=_tuple(data.get("surgery"), lambda s: Surgery(**s)),
                steroids=_tuple(data.get("steroids"), lambda s: Steroids(**s)),
            )
        except InputError:
            raise
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise InputError(f"treatments: an entry has a wrong or missing field ({error}); correct it.") from error

    def assumptions(self) -> tuple[str, ...]:
        """What a growth model must assume because it is not known, in plain words."""
        return tuple(_assumptions(self))


def weekdays(first_day: float, count: int) -> tuple[float, ...]:
    """`count` treatment days, five a week; `first_day` is taken for a Monday."""
    return tuple(first_day + 7.0 * (n // 5) + n % 5 for n in range(count))


def radiotherapy_60_gy_with_temozolomide(first_day: float, adjuvant_cycles: int = 6) -> Treatments:
    """60 Gy in 30 fractions with temozolomide, then cycles of temozolomide on 5 of 28 days.

    Doses after Stupp et al., N. Engl. J. Med. 352 (2005) 987-996: 75 mg/m2 daily during radiotherapy; four weeks later
    150 mg/m2 in the first cycle, 200 in the others.
    """
    fractions = weekdays(first_day, 30)
    with_radiation = tuple(first_day + n for n in range(int(fractions[-1] - first_day) + 1))
    restart = fractions[-1] + 28.0
    cycles = [(restart + 28.0 * c + d, 150.0 if c == 0 else 200.0) for c in range(adjuvant_cycles) for d in range(5)]
    return Treatments(
        radiotherapy=(Radiotherapy(fractions, (2.0,) * 30),),
        chemotherapy=(
            Chemotherapy(
                days=with_radiation + tuple(day for day, _ in cycles),
                dose_mg_m2=(75.0,) * len(with_radiation) + tuple(dose for _, dose in cycles),
                drug=TEMOZOLOMIDE,
            ),
        ),
        surgery=(),
        steroids=None,
    )


def radiotherapy_40_gy_hypofractionated(first_day: float) -> Treatments:
    """40 Gy in 15 fractions over three weeks (40.05 Gy; Roa et al., J. Clin. Oncol. 22 (2004) 1583-1588)."""
    return Treatments((Radiotherapy(weekdays(first_day, 15), (2.67,) * 15),), (), (), None)


def _list(items: Iterable[Any] | None, convert: Callable[[Any], Any]) -> list[Any] | None:
    return None if items is None else [convert(item) for item in items]


def _tuple(items: Iterable[Any] | None, convert: Callable[[Any], Any]) -> tuple[Any, ...] | None:
    return None if items is None else tuple(convert(item) for item in items)


def _radiotherapy_to_json(course: Radiotherapy) -> dict[str, Any]:
    if course.relative_dose is not None and course.dose_map_file is None:
        raise InputError("radiotherapy: the dose map is in memory only; save it and name its file in dose_map_file.")
    return {"days": list(course.days), "dose_gy": list(course.dose_gy), "dose_map_file": course.dose_map_file}


def _radiotherapy_from_json(data: Mapping[str, Any]) -> Radiotherapy:
    days = tuple(data["days"])
    doses = data.get("dose_gy")
    return Radiotherapy(days, (None,) * len(days) if doses is None else tuple(doses), data.get("dose_map_file"))


def _chemotherapy_to_json(course: Chemotherapy) -> dict[str, Any]:
    return {
        "days": list(course.days),
        "dose_mg_m2": list(course.dose_mg_m2),
        "drug": course.drug,
        "half_life_days": course.half_life_days,
    }


def _chemotherapy_from_json(data: Mapping[str, Any]) -> Chemotherapy:
    days = tuple(data["days"])
    doses = data.get("dose_mg_m2")
    amounts = (None,) * len(days) if doses is None else tuple(doses)
    return Chemotherapy(days, amounts, data.get("drug"), data.get("half_life_days"))


def _assumptions(treatments: Treatments) -> list[str]:
    said = []
    if unknown := [kind for kind in KINDS[:2] if getattr(treatments, kind) is None]:
        said.append(
            f"Whether there was or is {' or '.join(unknown)} is not known: the tumour may be held back or not, and the "
            "bands are wide for it."
        )
    if any(dose is None for course in treatments.radiotherapy or () for dose in course.dose_gy):
        said.append("The dose of some radiotherapy fractions is not known: 2 Gy each are assumed.")
    for course in treatments.chemotherapy or ():
        if any(dose is None for dose in course.dose_mg_m2):
            said.append("Some doses of chemotherapy are not known: 75 mg/m² each are assumed.")
        if course.effective_half_life_days is None:
            said.append(f"The half-life of {course.drug or 'a drug'} is not known: temozolomide's is assumed.")
    if treatments.surgery is None:
        said.append("Whether there was surgery is not known: none is assumed.")
    return said


def _check_pairs(kind: str, days: Sequence[float], doses: Sequence[float | None], what: str) -> None:
    if len(days) != len(doses):
        raise InputError(f"{kind}: {len(days)} days but {len(doses)} doses; give one {what} a day, null if not known.")
    for day in days:
        _check_number(f"{kind}: the day", day)
    for dose in doses:
        _check_at_least_zero(f"{kind}: the {what}", dose)


def _check_number(what: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise InputError(f"{what} is {value!r}; give a number.")


def _check_at_least_zero(what: str, value: float | None) -> None:
    if value is not None:
        _check_number(what, value)
        if value < 0:
            raise InputError(f"{what} is {value:g}; it cannot be negative.")


def _check_positive(what: str, value: float | None) -> None:
    if value is not None:
        _check_number(what, value)
        if value <= 0:
            raise InputError(f"{what} is {value:g}; it must be above zero.")
