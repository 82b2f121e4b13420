"""What a simulation measured, as files and tables: JSON, CSV, curves."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_results(measured: Mapping[str, Any], output: Path, json_file: Path | None = None) -> None:
    """Write results.json, results.csv (a row a round) and curves.png, and the JSON to another file if named."""
    text = json.dumps(measured, indent=1) + "\n"
    for path in filter(None, (output / "results.json", json_file)):
        path.write_text(text, encoding="utf-8")
    header, rows = round_table(measured)
    with open(output / "results.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    _draw_curves(measured, output / "curves.png")


def round_table(measured: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Dice of the global model on each site's test cases and on all, and the bytes, by round."""
    sites = sorted(measured["rounds"][0]["sites"])
    header = ["round", *sites, "all", "up MB", "down MB"]
    rows = [
        [
            str(row["round"]),
            *(_dice(row["sites"][site]) for site in sites),
            _dice(row["union"]),
            *(f"{row['bytes'][way] / 1e6:.3f}" for way in ("up", "down")),
        ]
        for row in measured["rounds"]
    ]
    return header, rows


def comparison_table(measured: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """By site: a model trained there alone, the federated and the pooled one, on the test cases of all sites, and the
    site's twin on its own."""
    sites = sorted(measured["rounds"][0]["sites"])
    columns: dict[str, dict[str, float | None]] = {}
    if "local_only" in measured:
        columns["alone, on all"] = measured["local_only"]
        columns["federated, on all"] = dict.fromkeys(sites, measured["federated"])
    if "pooled" in measured:
        columns["pooled, on all"] = dict.fromkeys(sites, measured["pooled"])
    if "twins" in measured:
        columns["global, on its own"] = {site: measured["twins"][site]["global"] for site in sites}
        columns["twin, on its own"] = {site: measured["twins"][site]["twin"] for site in sites}
    return ["site", *columns], [[site, *(_dice(values[site]) for values in columns.values())] for site in sites]


def print_tables(measured: Mapping[str, Any]) -> None:
    """The tables on the terminal."""
    from rich.console import Console
    from rich.table import Table

    name = f"{measured['name']}: {measured['strategy']['name']}, {measured['task']}"
    titled = [(f"{name}; Dice on test cases", round_table(measured))]
    if len(comparison_table(measured)[0]) > 1:
        titled.append((f"{name}; alone, together and as a twin", comparison_table(measured)))
    for title, (header, rows) in titled:
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*row)
        Console().print(table)


def _draw_curves(measured: Mapping[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    rounds = measured["rounds"]
    numbers = [row["round"] for row in rounds]
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    for site in sorted(rounds[0]["sites"]):
        (line,) = left.plot(numbers, [row["sites"][site] for row in rounds], linewidth=1, label=site)
        if (alone := measured.get("local_only", {}).get(site)) is not None:
            label = f"{site} alone, on all"
            left.axhline(alone, color=line.get_color(), linestyle=":", linewidth=1, label=label)
    if (pooled := measured.get("pooled")) is not None:
        left.axhline(pooled, color="black", linestyle="--", linewidth=1, label="pooled, on all")
    left.plot(numbers, [row["union"] for row in rounds], color="black", linewidth=2, label="all")
    left.set(xlabel="round", ylabel="Dice on test cases", title=f"{measured['name']}: the global model")
    left.set_ylim(bottom=0)
    left.legend(fontsize="x-small")
    for way in ("up", "down"):
        right.plot(numbers, [row["bytes"][way] / 1e6 for row in rounds], marker="o", markersize=3, label=way)
    right.set(xlabel="round", ylabel="MB, all sites", title="bytes")
    right.set_ylim(bottom=0)
    right.legend(fontsize="x-small")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=110)


def _dice(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
