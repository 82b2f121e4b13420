"""The matrix of a cross-site evaluation: model -> site -> what the site measured of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

FILE = "cross_site.json"
LARGEST = {"dice": 1.0, "hd95": 1000.0, "cases": 1e9}


def checked_scores(metrics: Any) -> dict[str, float]:
    """What can be true of a site's scores: Dice in [0, 1], HD95 in mm, cases; empty where there is no Dice."""
    if not isinstance(metrics, Mapping):
        return {}
    found = {
        key: float(metrics[key])
        for key, largest in LARGEST.items()
        if isinstance(metrics.get(key), int | float) and math.isfinite(metrics[key]) and 0 <= metrics[key] <= largest
    }
    return found if "dice" in found else {}


def table(matrix: Mapping[str, Mapping[str, Mapping[str, float]]]) -> tuple[list[str], list[list[str]]]:
    """Dice by model (rows) and site (columns), and the mean over all cases."""
    sites = sorted({site for scores in matrix.values() for site in scores})
    rows = []
    for model, scores in matrix.items():
        cases = sum(one["cases"] for one in scores.values())
        mean = sum(one["dice"] * one["cases"] for one in scores.values()) / cases if cases else None
        shown = [scores[site]["dice"] if site in scores else None for site in sites]
        rows.append([model, *("–" if dice is None else f"{dice:.3f}" for dice in (*shown, mean))])
    return ["model", *sites, "all"], rows
