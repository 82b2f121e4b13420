"""Sealed forecasts, scored on the scans that came after them; and the newest one as the report draws it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinseg.tasks import load_task
from twinseg.twin.outlook_table import forecast_table
from twinseg.twin.posterior import Visit, log_volume
from twinseg.twin.report import ForecastBands
from twinseg.twin.store import Twin
from twinseg.twin.store_records import Record, TimePoint
from twinseg.twin.timeline import Measured, timeline
from twinseg.twin.treatments import Treatments

Z50, Z90 = 0.6745, 1.6449
"""Ends of the central 50 and 90 % of a normal distribution, in standard deviations."""


def score_forecasts(twin: Twin) -> tuple[Record, ...]:
    """Score every forecast on each later scan within its horizon, once for each segmentation that counts; the scored
    records. The first scenario is scored: no treatment beyond what was recorded then."""
    measured = {one.timepoint: one for one in timeline(twin)}
    scored = []
    for record in twin.records("forecasts"):
        done = {score.get("segmentation") for score in record.scores}
        for point in twin.timepoints:
            drawn = point.segmentation
            if point.revision < record.revision or drawn is None or drawn.path in done:
                continue
            if point.day <= record.content["scenarios"][0]["days"][-1]:
                score = _score(twin, record, point, measured[point.name])
                scored.append(twin.score_forecast(record.name, point.name, {"segmentation": drawn.path, **score}))
    return tuple(scored)


def newest_bands(twin: Twin) -> ForecastBands | None:
    """The newest forecast for the report, with all that must be said with it; None before the first."""
    records = twin.records("forecasts")
    if not records:
        return None
    content = records[-1].content
    days, curves = _curves(content)
    said = [*content["notes"], *_of_scenarios(content)]
    if any(point.revision > records[-1].revision for point in twin.timepoints):
        said.append(f"Made when the scan of day {content['last']['day']:g} was the newest.")
    scored = [score for record in records for score in record.scores]
    said += [score["words"] for score in scored[-2:]]
    title = next((r.title for r in load_task(twin.task).regions if r.name == content["region"]), content["region"])
    drawn = {name: curves[name] for name in ("median", "low50", "high50", "low90", "high90")}
    header, rows = forecast_table(content)
    return ForecastBands(days=days, **drawn, region=title, notes=tuple(said), table=(header, *rows))


def _of_scenarios(content: dict[str, Any]) -> list[str]:
    """What must be said of some scenarios only, each sentence once, with the scenarios' names."""
    names: dict[str, list[str]] = {}
    for one in content["scenarios"]:
        for note in one["notes"]:
            if note not in content["notes"]:
                names.setdefault(note, []).append(one["scenario"])
    return [f"{'; '.join(scenarios)}: {note}" for note, scenarios in names.items()]


def _score(twin: Twin, record: Record, point: TimePoint, measured: Measured) -> dict[str, Any]:
    content = record.content
    assert measured.volumes is not None
    volume, deviation = measured.volumes[content["region"]]
    days, curves = _curves(content)
    said = {name: _at(point.day, days, curve) for name, curve in curves.items()}
    names = [name for name in ("median", "persistence", "log_linear") if name in said]
    errors = {name: float(abs(log_volume(said[name]) - log_volume(volume))) for name in names}
    others = {name: error for name, error in errors.items() if name != "median"}
    better = all(errors["median"] < error for error in others.values())
    inside = {share: said[f"low{share}"] <= volume <= said[f"high{share}"] for share in ("50", "90")}
    treated = Treatments.from_json(twin.document("treatments.json")).to_json() != content["treatments"]
    words = (
        f"Forecast {record.name}, scan of day {point.day:g}: {said['median']:.1f} mL was forecast, 90 % band "
        f"{said['low90']:.1f} to {said['high90']:.1f} mL; {volume:.1f} ± {deviation:.1f} mL was measured, "
        f"{'inside' if inside['90'] else 'outside'} the band. The forecast was {'' if better else 'not '}nearer than "
        f"{' and '.join(_WORDS[name] for name in others)}."
    )
    return {
        "day": point.day,
        "measured_ml": volume,
        "sd_ml": deviation,
        "forecast_ml": said,
        "log_errors": errors,
        "in_50": bool(inside["50"]),
        "in_90": bool(inside["90"]),
        "nearest": better,
        "treatments_changed_since": treated,
        "words": words + (" What is recorded of the treatment has changed since." if treated else ""),
    }


_WORDS = {"persistence": "persistence", "log_linear": "log-linear extrapolation"}


def _curves(content: dict[str, Any]) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Days (N,) from the last known scan on and each curve (N,) in mL: median, bands, and what needs no model."""
    last, first = content["last"], content["scenarios"][0]
    start = Visit(last["day"], last["volume_ml"], last["sd_ml"])
    curves = {"median": (0.0, first["median_ml"]), "persistence": (0.0, first["persistence_ml"])}
    if first["log_linear_ml"] is not None:
        curves["log_linear"] = (0.0, first["log_linear_ml"])
    for band, z in zip(first["bands"], (Z50, Z90), strict=True):
        share = round(100 * band["level"])
        curves |= {f"low{share}": (-z, band["low_ml"]), f"high{share}": (z, band["high_ml"])}
    floor = np.exp(log_volume(0.0))
    days = np.array([last["day"], *first["days"]], float)
    return days, {
        name: np.maximum(np.array([np.exp(start.log_volume + z * start.log_sd) - floor, *volumes]), 0.0)
        for name, (z, volumes) in curves.items()
    }


def _at(day: float, days: NDArray[np.float64], curve: NDArray[np.float64]) -> float:
    """The volume in mL on a day, between days in the logarithm."""
    return float(np.exp(np.interp(day, days, log_volume(curve))) - np.exp(log_volume(0.0)))
