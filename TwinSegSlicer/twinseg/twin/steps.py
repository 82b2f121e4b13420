"""What the commands `twinseg twin …` and the worker do alike with a twin."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from twinseg.errors import InputError
from twinseg.twin.store import Twin
from twinseg.twin.store_records import TimePoint
from twinseg.twin.timeline import lesion_history, timeline


def time_point_added(twin: Twin, point: TimePoint) -> dict[str, Any]:
    """What is to be told of a scan that was just added, as plain JSON; earlier forecasts are scored on it."""
    measured = next(one for one in timeline(twin) if one.timepoint == point.name).volumes or {}
    return {
        "timepoint": point.name,
        "day": point.day,
        "registration": point.registration,
        "volumes_ml": {name: {"volume": value, "standard_deviation": sd} for name, (value, sd) in measured.items()},
        "lesions": [dataclasses.asdict(lesion) for lesion in lesion_history(twin).lesions.get(point.name, ())],
        "forecasts_scored": scored_forecasts(twin),
    }


def scored_forecasts(twin: Twin) -> list[dict[str, Any]]:
    """Score the forecasts that new scans allow to; how each fared: its name as "forecast", "words" and numbers."""
    if not twin.records("forecasts"):
        return []
    from twinseg.twin.outlook_score import score_forecasts

    return [{"forecast": record.name, **record.scores[-1]} for record in score_forecasts(twin)]


def write_page(twin: Twin, html: Path, pdf: Path | None) -> None:
    """Write the patient's page, with the newest forecast, as HTML and if asked for as PDF. Raises InputError where
    there is no scan to report on."""
    from twinseg.twin.outlook_score import newest_bands
    from twinseg.twin.report import write_report

    if not twin.timepoints:
        raise InputError(f"{twin.folder}: it has no scan to report on; add one (twinseg twin add)")
    write_report(twin, html, pdf, forecast=newest_bands(twin))
