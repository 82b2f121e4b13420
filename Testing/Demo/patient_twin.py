"""A synthetic patient over four visits: three are known, the volume at the fourth is forecast, then it is looked at."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path

from Demo.commands import Commands

SEED = 3
"""Of the patient: one whose tumour is not treated between the visits."""


def show(commands: Commands, folder: Path) -> None:
    page, visits, twin = commands.page, folder / "visits", folder / "twin"
    shutil.rmtree(twin, ignore_errors=True)  # of an earlier demonstration
    page.heading("The patient twin: four visits, and a forecast that was sealed before the fourth")
    grid = ("--size", "72", "--spacing", "2.5", "--seed", str(SEED))
    commands.run("twinseg", "phantom", visits, "--sites", "1", "--patients", "1", "--visits", "4", *grid)
    scans = sorted(path for path in (visits / "SITE-01" / "S01P001").iterdir() if path.is_dir())
    first = scans[0].name

    def add(scan: Path, *words: str | Path) -> None:
        dates = ("--date", scan.name, "--baseline-date", first)
        commands.run("twinseg", "twin", "add", twin, scan, *dates, "--origin", "expert", *words)

    commands.run("twinseg", "twin", "create", twin, "--pseudonym", "PHANTOM-1")
    for scan in scans[:-1]:
        add(scan)
    days = "150"
    commands.run("twinseg", "twin", "forecast", twin, "--horizon", days, "--json", folder / "forecast.json")
    add(scans[-1], "--json", folder / "fourth-visit.json")
    commands.run("twinseg", "twin", "respond", twin)
    commands.run("twinseg", "twin", "report", twin, "--output", folder / "twin.html")

    chart, slices = pictures(folder / "twin.html")[:2]
    page.picture(chart, "volume over time, with the forecast's bands")
    page.picture(slices, "a slice of each visit, with outlines and diameters")
    scored = json.loads((folder / "fourth-visit.json").read_text(encoding="utf-8"))["forecasts_scored"]
    for score in scored:
        page.text(score["words"])
        forecast = score["forecast_ml"]
        page.result(
            f"{score['measured_ml']:.0f} mL",
            f"at the fourth visit; the twin had said {forecast['median']:.0f} mL "
            f"(90 % band {forecast['low90']:.0f} to {forecast['high90']:.0f})",
        )
    page.link("twin.html", "The patient's whole page")
    page.text("Research only: not for treatment decisions.", "note")


def pictures(page: Path) -> list[bytes]:
    """The pictures that an HTML page holds."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page.read_text(encoding="utf-8"))
    return [base64.b64decode(one) for one in found]
