"""What a twin's records hold, and what they may never hold: names and calendar dates."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from twinseg.errors import InputError

ORIGINS = ("model", "edited", "expert")  # who drew a segmentation, from the least to the most trusted
ROOMS = ("models", "growth", "forecasts", "assessments")
DOCUMENTS = ("lesions.json", "treatments.json")

_PSEUDONYM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_CALENDAR_DATE = re.compile(
    r"(?<![0-9A-Za-z])(?:(?:19|20)\d\d([-./]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0?[1-9]|[12]\d|3[01])[-./](?:0?[1-9]|[12]\d|3[01])[-./](?:19|20)\d\d)(?![0-9A-Za-z])"
)


@dataclass(frozen=True)
class Frame:
    """The baseline's grid, in which lesions are followed. affine: voxel indices to RAS mm; shape in voxels."""

    affine: np.ndarray
    shape: tuple[int, int, int]

    def to_json(self) -> dict[str, Any]:
        """Plain lists and strings."""
        return {"space": "RAS", "unit": "mm", "affine": self.affine.tolist(), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Frame:
        """The reverse of `to_json`."""
        x, y, z = (int(n) for n in data["shape"])
        return cls(np.array(data["affine"], float), (x, y, z))


@dataclass(frozen=True)
class Segmentation:
    """One segmentation of a time point: where its label map and, if there is one, its uncertainty lie in the folder.

    model: hash of the model that drew it; delta: the adapted model of this patient, by its name in `models/`.
    """

    path: str
    origin: str
    model: str | None = None
    delta: str | None = None
    uncertainty: str | None = None


@dataclass(frozen=True)
class TimePoint:
    """One scan. day: since the baseline scan, with the standard deviation of that in days; images: path by sequence;
    to_baseline: 4x4, points of this scan (RAS mm) to the baseline's; registration: how it was found and how good it is
    (None for the baseline); revision: of the twin when it was added; segmentations: in the order they were made."""

    name: str
    day: float
    day_uncertainty: float
    images: dict[str, str]
    source_sha256: dict[str, str]
    to_baseline: np.ndarray
    registration: dict[str, Any] | None
    revision: int
    segmentations: tuple[Segmentation, ...] = ()

    @property
    def segmentation(self) -> Segmentation | None:
        """The one that counts: the newest of the most trusted origin."""
        ranked = sorted(enumerate(self.segmentations), key=lambda pair: (ORIGINS.index(pair[1].origin), pair[0]))
        return ranked[-1][1] if ranked else None


@dataclass(frozen=True)
class Record:
    """A record in one of the `ROOMS`: its name, its content, its files by name (paths in the folder) and, for a
    forecast, the scores that were added later, oldest first."""

    room: str
    name: str
    revision: int
    content: dict[str, Any]
    files: dict[str, str]
    scores: tuple[dict[str, Any], ...] = ()


def checked_pseudonym(pseudonym: str) -> str:
    """The pseudonym. Raises InputError where it cannot be one."""
    if not _PSEUDONYM.fullmatch(pseudonym):
        raise InputError(f"pseudonym {pseudonym!r}: use up to 64 letters, digits, - and _; not the patient's name")
    refuse_calendar_dates(pseudonym, "the pseudonym")
    return pseudonym


def checked_origin(origin: str) -> str:
    """Who drew a segmentation. Raises InputError for nobody that is known."""
    if origin not in ORIGINS:
        raise InputError(f"origin {origin!r}: unknown; use one of {', '.join(ORIGINS)}")
    return origin


def checked_day(day: float, uncertainty: float, days_before: list[float]) -> None:
    """Raises InputError for a day that cannot follow on the days of the scans that are there."""
    if not math.isfinite(day) or abs(day) > 36525:
        raise InputError(f"day {day}: give the days since the baseline scan, a number up to 36525")
    if not math.isfinite(uncertainty) or uncertainty < 0:
        raise InputError(f"day uncertainty {uncertainty}: give a standard deviation in days, 0 or more")
    if not days_before and day != 0:
        raise InputError(f"day {day:g}: the first scan is the baseline, which is day 0")
    if days_before and day == days_before[-1]:
        raise InputError(f"day {day:g}: there is a scan of that day already; one scan a day, or correct the date")
    if days_before and day < days_before[-1]:
        raise InputError(
            f"day {day:g}: it comes before day {days_before[-1]:g}, the last scan; add scans in order of their dates"
        )


def days_since(baseline: date, scan: date, today: date) -> int:
    """Days from the baseline to the scan; neither date is kept. Raises InputError for a scan of the future, or one
    before the baseline."""
    if scan > today or baseline > today:
        raise InputError(f"{max(scan, baseline)}: this date is in the future; correct it")
    if scan < baseline:
        raise InputError(f"{scan}: it comes before the baseline's {baseline}; dates are out of order, correct them")
    return (scan - baseline).days


def refuse_calendar_dates(data: Any, where: str) -> None:
    """Raises InputError where a text in JSON data holds something that reads as a calendar date."""
    if isinstance(data, str):
        if found := _CALENDAR_DATE.search(data):
            raise InputError(f"{where}: {found[0]!r} reads as a date; a twin keeps days since the baseline only")
    elif isinstance(data, Mapping):
        for key, value in data.items():
            refuse_calendar_dates(key, where)
            refuse_calendar_dates(value, where)
    elif isinstance(data, (list, tuple)):
        for value in data:
            refuse_calendar_dates(value, where)
