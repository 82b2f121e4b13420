"""One page about a patient, as HTML (whole in one file) and as PDF: timeline, pictures, response with its traces,
forecast with its bands, and where everything comes from."""

from __future__ import annotations

import base64
import io
import textwrap
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinseg import __version__
from twinseg.pictures import lesion_centre, png
from twinseg.tasks import Task, load_task
from twinseg.twin.assessments import Assessed, last_assessments, why_not_assessed
from twinseg.twin.lesions import Lesion
from twinseg.twin.report_response import TITLE, response_columns, response_tables
from twinseg.twin.store import Twin
from twinseg.twin.store_records import TimePoint
from twinseg.twin.timeline import Measured, draw_volumes, lesion_history, timeline
from twinseg.twin.treatments import KINDS, Treatments
from twinseg.volumes import to_ras, write_atomically

WIDTH = 130  # characters of small print across the page
LINE = 0.0125  # of small print, as a share of the page's height
PICTURES = 4  # at most: the baseline and the last scans
FORECAST_CELLS = "Median volume in mL, with the 90 % band."
NOTICE = "For research. Not for diagnosis, and not for decisions on treatment."

STYLE = """
body{font:14px/1.45 system-ui,sans-serif;color:#1b1f24;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}
h2{font-size:1.05rem;margin:1.6rem 0 .4rem;border-bottom:1px solid #d0d7de}
h3{font-size:.95rem;margin:.8rem 0 .2rem}
p.notice{color:#8a2b06;margin:.2rem 0 1rem}
img{max-width:100%}
small,li{color:#57606a}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.25rem .5rem;border-bottom:1px solid #eaeef2;vertical-align:top}
th{font-weight:600}
caption{text-align:left;color:#57606a;font-size:.85rem;padding:.2rem .5rem}
.number{text-align:right}
td.number{white-space:nowrap}
td.response{font-weight:600}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:0}
dt{color:#57606a}
dd{margin:0;overflow-wrap:anywhere}
@media print{body{margin:0;max-width:none;font-size:11px}}
"""


@dataclass(frozen=True)
class ForecastBands:
    """A forecast to draw. days (N,): since the baseline; median and the ends of the 50 and 90 % bands (N,), mL; region:
    its title; notes: what must be said with it (how it fared against persistence, say); table: a header and rows of
    what would come of each scenario."""

    days: NDArray[np.float64]
    median: NDArray[np.float64]
    low50: NDArray[np.float64]
    high50: NDArray[np.float64]
    low90: NDArray[np.float64]
    high90: NDArray[np.float64]
    region: str
    notes: tuple[str, ...] = ()
    table: tuple[list[str], ...] = ()


@dataclass(frozen=True)
class Contents:
    """What both forms of the report show. not_assessed: why there can be no assessment, "" if there can."""

    twin: Twin
    task: Task
    measured: tuple[Measured, ...]
    assessed: Assessed
    not_assessed: str
    treatments: Treatments
    forecast: ForecastBands | None


def write_report(
    twin: Twin, html: str | Path, pdf: str | Path | None = None, *, forecast: ForecastBands | None = None
) -> None:
    """Write the page as HTML and, if asked for, as PDF. Raises InputError where a file cannot be written or the twin is
    damaged."""
    contents = Contents(
        twin,
        load_task(twin.task),
        timeline(twin),
        last_assessments(twin),
        why_not_assessed(twin),
        Treatments.from_json(twin.document("treatments.json")),
        forecast,
    )
    write_atomically(html, _html(contents).encode())
    if pdf is not None:
        write_atomically(pdf, _pdf(contents))


# --- HTML ------------------------------------------------------------------------------------------------------------


def _html(contents: Contents) -> str:
    sections = [("Volume over time", _picture(_chart(contents), "Volume of each region over time"))]
    if contents.forecast is not None:
        sections[0] = ("Volume over time, and forecast", sections[0][1])
        sections.append((f"Forecast: {contents.forecast.region}", _forecast(contents.forecast)))
    if scans := _shown(contents):
        sections.append(
            ("Scans", _picture(_scans_figure(contents, scans), "An axial slice of each scan, with outlines"))
        )
    sections.append((TITLE, response_tables(contents.assessed, contents.not_assessed)))
    sections.append(("Lesions", _lesion_table(contents)))
    sections.append(("Where this comes from", _definitions(_provenance(contents))))
    body = "\n".join(f"<section><h2>{escape(title)}</h2>{content}</section>" for title, content in sections)
    name = escape(contents.twin.pseudonym)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Patient twin {name}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>Patient twin {name}</h1>"
        f'<p class="notice">{NOTICE}</p>\n{body}\n</body></html>\n'
    )


def _picture(figure: Any, alt: str) -> str:
    content = base64.b64encode(png(figure)).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{content}">'


def _forecast(forecast: ForecastBands) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in forecast.notes)
    if not forecast.table:
        return f"<ul>{notes}</ul>"
    head, *rows = (
        f"<tr><{tag}>{escape(first)}</{tag}>"
        + "".join(f'<{tag} class="number">{escape(cell)}</{tag}>' for cell in others)
        + "</tr>"
        for tag, (first, *others) in zip(["th", *["td"] * len(forecast.table)], forecast.table, strict=False)
    )
    return (
        f"<table><caption>{FORECAST_CELLS}</caption><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
        f"<ul>{notes}</ul>"
    )


def _lesion_table(contents: Contents) -> str:
    history = lesion_history(contents.twin)
    ids = sorted({lesion.id for there in history.lesions.values() for lesion in there})
    if not ids:
        return "<p>None was found.</p>"
    scans = [scan for scan in contents.measured if scan.volumes is not None]
    head = "".join(f"<th>day {scan.day:g}</th>" for scan in scans)
    rows = []
    for id in ids:
        found = [next((x for x in history.lesions.get(scan.timepoint, ()) if x.id == id), None) for scan in scans]
        rows.append(f"<tr><td>{id}</td>{''.join(f'<td>{_lesion(lesion)}</td>' for lesion in found)}</tr>")
    days = {scan.timepoint: scan.day for scan in scans}
    said = [
        f"<li>day {days[change.timepoint]:g}: lesion {change.lesion} {escape(_WORDS[change.kind])}"
        f"{' ' + ', '.join(str(other) for other in change.others) if change.others else ''}</li>"
        for change in history.changes
        if change.timepoint in days and days[change.timepoint] > 0  # at the baseline all of them appear
    ]
    table = f"<table><thead><tr><th>lesion</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"{table}<ul>{''.join(said)}</ul>"


_WORDS = {
    "born": "appeared",
    "split": "split off from",
    "merged": "merged into",
    "vanished": "vanished",
    "reappeared": "reappeared",
}


def _lesion(lesion: Lesion | None) -> str:
    if lesion is None:
        return "–"
    return (
        f"{lesion.volume_ml:.2f} ± {lesion.volume_sd_ml:.2f} mL<br>{lesion.longest:.0f} × {lesion.perpendicular:.0f} mm"
    )


def _definitions(entries: dict[str, str]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(key)}</dt><dd>{escape(value)}</dd>' for key, value in entries.items())}</dl>"


# --- what both forms show --------------------------------------------------------------------------------------------


def _provenance(contents: Contents) -> dict[str, str]:
    twin = contents.twin
    entries = {"twin": f"revision {twin.revision}, {twin.events[-1]['hash']}", "task": contents.task.title}
    for scan in twin.timepoints:
        said = []
        if scan.registration is not None:
            said.append(
                f"registered ({scan.registration.get('kind', 'unknown')}, "
                f"agreement {scan.registration.get('agreement', 'unknown')})"
            )
        if scan.segmentation is not None:
            drawn = scan.segmentation
            by = f" by model {drawn.model[:12]}" if drawn.model else ""
            said.append(f"segmentation: {drawn.origin}{by}{f', adapted by {drawn.delta}' if drawn.delta else ''}")
        unsure = f" ± {scan.day_uncertainty:g}" if scan.day_uncertainty else ""
        entries[f"scan of day {scan.day:g}{unsure}"] = "; ".join(said) or "no segmentation"
    given = {kind: getattr(contents.treatments, kind) for kind in KINDS}
    entries["treatments"] = "; ".join(
        f"{kind}: {'not known' if courses is None else len(courses) or 'none'}" for kind, courses in given.items()
    )
    entries["made by"] = f"twinseg {__version__}"
    return entries


def _chart(contents: Contents) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    _draw_chart(figure.add_subplot(), contents)
    return figure


def _draw_chart(axes: Any, contents: Contents) -> None:
    draw_volumes(axes, contents.measured, contents.task)
    _draw_treatments(axes, contents.treatments)
    if (bands := contents.forecast) is not None:
        for low, high, alpha, share in ((bands.low90, bands.high90, 0.18, 90), (bands.low50, bands.high50, 0.35, 50)):
            axes.fill_between(
                bands.days, low, high, color="tab:purple", alpha=alpha, linewidth=0, label=f"{share} % band"
            )
        axes.plot(bands.days, bands.median, "--", color="tab:purple", label=f"forecast, {bands.region}")
    axes.legend(frameon=False, fontsize=8, ncols=2)
    axes.set_ylim(bottom=0)


def _draw_treatments(axes: Any, treatments: Treatments) -> None:
    """Bars along the top while radiotherapy and chemotherapy went on, and a line at each operation."""
    kinds = (("radiotherapy", "tab:red", 0.985), ("chemotherapy", "tab:olive", 0.955))
    for kind, color, height in kinds:
        for number, course in enumerate(getattr(treatments, kind) or ()):
            ends = [min(course.days, default=0.0), max(course.days, default=0.0)]
            label = kind if number == 0 else None
            axes.plot(ends, [height] * 2, color=color, linewidth=4, transform=axes.get_xaxis_transform(), label=label)
    for number, surgery in enumerate(treatments.surgery or ()):
        axes.axvline(surgery.day, color="tab:gray", linestyle=":", label="operation" if number == 0 else None)


def _shown(contents: Contents) -> list[TimePoint]:
    """The scans to draw: the baseline and the last ones."""
    drawn = [scan for scan in contents.twin.timepoints if scan.segmentation is not None]
    return drawn if len(drawn) <= PICTURES else [drawn[0], *drawn[1 - PICTURES :]]


def _scans_figure(contents: Contents, scans: list[TimePoint]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(scans), 3.1), layout="constrained", facecolor="black")
    for column, scan in enumerate(scans):
        _draw_scan(figure.add_subplot(1, len(scans), column + 1), contents, scan)
    return figure


def _draw_scan(axes: Any, contents: Contents, scan: TimePoint) -> None:
    """The axial slice with the largest lesion (or the most tumour), outlines, and the lesion's diameters."""
    twin = contents.twin
    labels = twin.labels(scan)
    assert labels is not None
    shape = labels.shape
    image = next(
        (to_ras(candidate) for name in scan.images if (candidate := twin.image(scan, name)).shape == shape), None
    )
    ras = to_ras(labels)
    z = lesion_centre(ras.array)[2]
    lesions = lesion_history(twin).lesions.get(scan.name, ())
    lines: tuple[Any, ...] = ()
    if lesions:
        lines = max(lesions, key=lambda lesion: lesion.product).lines
        points = np.array([[*point, 1.0] for line in lines for point in line]) @ np.linalg.inv(ras.affine).T
        z = int(np.clip(round(float(points[0, 2])), 0, ras.shape[2] - 1))
    if image is not None:
        low, high = np.percentile(image.array, (1, 99.5))
        aspect = ras.spacing[1] / ras.spacing[0]
        axes.imshow(image.array[:, :, z].T, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect)
    for label in contents.task.labels:
        mask = (ras.array[:, :, z] == label.value).T
        if mask.any() and not mask.all():
            axes.contour(mask, levels=[0.5], colors=[np.array(label.color) / 255], linewidths=1)
    for number in range(len(lines)):
        axes.plot(
            points[2 * number : 2 * number + 2, 0], points[2 * number : 2 * number + 2, 1], color="yellow", linewidth=1
        )
    across, along = (np.flatnonzero((image or ras).array.any(axis=others)) for others in ((1, 2), (0, 2)))
    axes.set_xlim(across[-1] + 2, across[0] - 2)  # the patient's right is on the left
    axes.set_ylim(along[0] - 2, along[-1] + 2)
    axes.set_title(f"day {scan.day:g}", color="white", fontsize=9)
    axes.set_axis_off()


# --- PDF -------------------------------------------------------------------------------------------------------------


def _pdf(contents: Contents) -> bytes:
    """The page as PDF. No date of its making is put in, so that equal twins give equal pages."""
    from matplotlib.backends.backend_pdf import PdfPages

    buffer = io.BytesIO()
    with PdfPages(buffer, metadata={"Title": f"Patient twin {contents.twin.pseudonym}", "CreationDate": None}) as pages:
        pages.savefig(_page(contents))
    return buffer.getvalue()


def _page(contents: Contents) -> Any:
    """One A4 page, a matplotlib figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.27, 11.69))
    figure.text(0.07, 0.965, f"Patient twin {contents.twin.pseudonym}", fontsize=15, weight="bold")
    figure.text(0.07, 0.948, NOTICE, fontsize=8, color="#8a2b06")
    _draw_chart(figure.add_axes((0.1, 0.775, 0.84, 0.16)), contents)
    for column, scan in enumerate(_shown(contents)):
        axes = figure.add_axes((0.07 + 0.22 * column, 0.565, 0.21, 0.15))
        _draw_scan(axes, contents, scan)
        axes.title.set_color("black")
    top = 0.545
    if contents.forecast is not None:
        top = _write_forecast(figure, top, contents.forecast)
    origin = textwrap.wrap(". ".join(f"{key}: {value}" for key, value in _provenance(contents).items()), WIDTH)
    floor = 0.072 + LINE * len(origin)
    for number, lines in enumerate(response_columns(contents.assessed, contents.not_assessed)):
        _write_lines(figure, top, lines, right=0.44 * number, floor=floor)
    lines = [("Where this comes from", True, 0.07), *((line, False, 0.09) for line in origin)]
    _write_lines(figure, floor - 0.032, lines, floor=0.0)
    return figure


def _write_forecast(figure: Any, top: float, forecast: ForecastBands) -> float:
    figure.text(0.07, top, f"Forecast: {forecast.region}", fontsize=9, weight="bold")
    if forecast.table:
        top -= 0.015
        figure.text(0.07, top, FORECAST_CELLS, fontsize=7, color="#57606a")
    for number, row in enumerate(forecast.table):
        top -= 0.0135
        for left, cell in zip((0.07, 0.36, 0.495, 0.63, 0.765), row, strict=False):
            figure.text(left, top, cell, fontsize=7, weight="normal" if number else "bold")
    notes = [(line, False, 0.09) for note in forecast.notes for line in textwrap.wrap(f"– {note}", WIDTH)]
    return _write_lines(figure, top - 0.016, notes)


def _write_lines(
    figure: Any, top: float, lines: list[tuple[str, bool, float]], *, right: float = 0.0, floor: float = 0.04
) -> float:
    """Write lines (text, bold, left) downwards from `top` to the `floor`, moved to the `right`; what does not fit on
    the page is said to be in the HTML."""
    for text, bold, left in lines:
        if top < floor:
            figure.text(0.07 + right, top, "… the rest is in the HTML report.", fontsize=7, color="#57606a")
            return top
        color = "black" if left < 0.08 else "#57606a"
        weight = "bold" if bold else "normal"
        figure.text(left + right, top, text, fontsize=9 if bold else 7, weight=weight, color=color)
        top -= 0.018 if bold else LINE
    return top - 0.008
