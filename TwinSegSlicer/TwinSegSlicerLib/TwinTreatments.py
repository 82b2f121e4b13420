"""Treatments as lines of a table, and back: a line a course, in words that fit a cell."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from slicer.i18n import tr as _

from twinseg.errors import InputError
from twinseg.twin.treatments import EXTENTS, Chemotherapy, Radiotherapy, Steroids, Surgery, Treatments, weekdays

KINDS = ("surgery", "radiotherapy", "chemotherapy", "steroids")
NUMBER = r"[-−]?\d+(?:\.\d+)?"
UNKNOWN = "?"


@dataclass(frozen=True)
class Line:
    """One course. days: "40 to 44, 47" or "30 weekdays from 40"; amount: Gy a fraction, mg/m² a dose, mg a day, or the
    mL left by surgery, "?" where not known, "75 x42, 150 x5" where it changes; detail: the drug, or the surgery's
    extent; course: what this line was read from, which may know more than a line says."""

    kind: str
    days: str
    amount: str = UNKNOWN
    detail: str = ""
    course: Any = None


def linesOf(treatments: Treatments) -> list[Line]:
    """The courses that are known."""
    return [_line(kind, course) for kind in KINDS for course in getattr(treatments, kind) or ()]


def noneGiven(treatments: Treatments) -> set[str]:
    """The kinds that are known not to have been given."""
    return {kind for kind in KINDS if getattr(treatments, kind) == ()}


def treatmentsOf(lines: Sequence[Line], none: set[str]) -> Treatments:
    """The treatments that lines tell; a kind without a line is unknown unless it is in `none`. Raises InputError that
    names the line."""
    courses: dict[str, tuple[Any, ...] | None] = {kind: () if kind in none else None for kind in KINDS}
    for number, line in enumerate(lines, start=1):
        try:
            course = _course(line)
        except InputError as error:
            raise InputError(_("line {number}: {error}").format(number=number, error=error)) from error
        courses[line.kind] = (*(courses[line.kind] or ()), course)
    return Treatments(**courses)


# --- a course to a line ----------------------------------------------------------------------------------------------


def _line(kind: str, course: Any) -> Line:
    if isinstance(course, Surgery):
        return Line(kind, _number(course.day), _amount(course.residual_ml), course.extent or "", course)
    if isinstance(course, Steroids):
        last = UNKNOWN if course.last_day is None else _number(course.last_day)
        return Line(kind, f"{_number(course.first_day)} to {last}", _amount(course.dexamethasone_mg), "", course)
    if isinstance(course, Radiotherapy):
        return Line(kind, _daysText(course.days), _amountsText(course.dose_gy), "", course)
    return Line(kind, _daysText(course.days), _amountsText(course.dose_mg_m2), course.drug or "", course)


def _number(value: float) -> str:
    return f"{value:.10g}"


def _amount(value: float | None) -> str:
    return UNKNOWN if value is None else _number(value)


def _daysText(days: Sequence[float]) -> str:
    if len(days) > 5 and tuple(days) == weekdays(days[0], len(days)):
        return f"{len(days)} weekdays from {_number(days[0])}"
    runs: list[list[float]] = []
    for day in days:
        if runs and day == runs[-1][0] + len(runs[-1]):
            runs[-1].append(day)
        else:
            runs.append([day])
    ends = ((run[0],) if len(run) == 1 else (run[0], run[-1]) for run in runs)
    return ", ".join(" to ".join(_number(end) for end in pair) for pair in ends)


def _amountsText(amounts: Sequence[float | None]) -> str:
    runs = [(value, len(list(same))) for value, same in itertools.groupby(amounts)]
    if len(runs) == 1:
        return _amount(runs[0][0])
    return ", ".join(_amount(value) if count == 1 else f"{_amount(value)} x{count}" for value, count in runs)


# --- and back --------------------------------------------------------------------------------------------------------


def _course(line: Line) -> Any:
    before = line.course
    if line.kind == "surgery":
        extent = line.detail.strip().lower() or None
        if extent is not None and extent not in EXTENTS:
            raise InputError(_("the extent is one of {known}").format(known=", ".join(EXTENTS)))
        return Surgery(_oneDay(line.days), extent, _readAmount(line.amount))
    if line.kind == "steroids":
        first, _to, last = line.days.partition("to")
        return Steroids(_oneDay(first), _readAmount(last), _readAmount(line.amount))
    days = readDays(line.days)
    amounts = readAmounts(line.amount, len(days))
    if line.kind == "radiotherapy":
        course = Radiotherapy(days, amounts)
        return course if before is None else replace(before, days=days, dose_gy=amounts)
    drug = line.detail.strip() or None
    if before is not None and before.drug == drug:
        return replace(before, days=days, dose_mg_m2=amounts)
    return Chemotherapy(days, amounts, drug)


def _oneDay(text: str) -> float:
    value = _readAmount(text)
    if value is None:
        raise InputError(_("give the day, counted from the baseline scan"))
    return value


def _readAmount(text: str) -> float | None:
    text = text.strip()
    if text in ("", UNKNOWN):
        return None
    if not re.fullmatch(NUMBER, text):
        raise InputError(_("{text!r} is no number; write ? for what is not known").format(text=text))
    return float(text.replace("−", "-"))


def readDays(text: str) -> tuple[float, ...]:
    """Days of "40 to 44, 47" or "30 weekdays from 40". Raises InputError."""
    if found := re.fullmatch(rf"\s*(\d{{1,3}})\s*weekdays\s+from\s+({NUMBER})\s*", text):
        return weekdays(_oneDay(found[2]), int(found[1]))
    days: list[float] = []
    for part in text.split(","):
        found = re.fullmatch(rf"\s*({NUMBER})\s*(?:(?:to|[-–])\s*({NUMBER}))?\s*", part)
        if found is None:
            raise InputError(
                _("{part!r} is no day; write for instance 40 to 44, 47, or 30 weekdays from 40").format(
                    part=part.strip()
                )
            )
        first = _oneDay(found[1])
        count = round(_oneDay(found[2]) - first) + 1 if found[2] else 1
        if not 1 <= count <= 1000:
            raise InputError(_("{part!r} ends before it begins, or lasts too long").format(part=part.strip()))
        days += [first + n for n in range(count)]
    return tuple(days)


def readAmounts(text: str, count: int) -> tuple[float | None, ...]:
    """An amount a day: one for all, or "75 x42, 150 x5". Raises InputError where they are not `count`."""
    amounts: list[float | None] = []
    for part in text.split(","):
        value, _x, times = part.replace("×", "x").partition("x")
        if times.strip() and not times.strip().isdigit():
            raise InputError(
                _("{part!r}: write the amount and how often, for instance 75 x42").format(part=part.strip())
            )
        amounts += [_readAmount(value)] * (int(times) if times.strip() else 1)
    if len(amounts) == 1:
        return tuple(amounts * count)
    if len(amounts) != count:
        raise InputError(_("{given} amounts for {count} days").format(given=len(amounts), count=count))
    return tuple(amounts)
