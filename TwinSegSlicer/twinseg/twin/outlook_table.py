"""A forecast as a table: its scenarios side by side, and what needs no model."""

from __future__ import annotations

from typing import Any


def forecast_table(told: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows from what `Outlook.to_json` or a forecast's record says: each scenario at three days (median and
    90 % band in mL) with its time to progression, then persistence and log-linear extrapolation."""
    first = told["scenarios"][0]
    days = first["days"]
    shown = sorted({len(days) // 3, 2 * len(days) // 3, len(days) - 1})
    rows = []
    for one in told["scenarios"]:
        wide = next(band for band in one["bands"] if band["level"] == 0.9)
        volumes = [f"{one['median_ml'][n]:.1f} ({wide['low_ml'][n]:.1f}–{wide['high_ml'][n]:.1f})" for n in shown]
        title = one["scenario"] + (" (from other patients alone)" if one.get("prior_alone") else "")
        rows.append([title, *volumes, _progression(one["time_to_progression_days"])])
    for title, curve in (("persistence", "persistence_ml"), ("log-linear extrapolation", "log_linear_ml")):
        if first[curve] is not None:
            rows.append([title, *(f"{first[curve][n]:.1f}" for n in shown), "–"])
    header = ["scenario", *(f"+{days[n] - told['last']['day']:g} days" for n in shown), "days to progression (90 %)"]
    return header, rows


def _progression(days: dict[str, Any]) -> str:
    """Median and 90 % interval of the time to progression."""
    beyond = f"> {days['horizon_days']:g}"
    median, low, high = (beyond if days[k] is None else f"{days[k]:.0f}" for k in ("median", "low90", "high90"))
    return f"{median} ({low} to {high})"
