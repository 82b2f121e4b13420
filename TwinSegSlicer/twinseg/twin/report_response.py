"""The response on the patient's page: a table a measure as HTML, and lines of small print for the PDF."""

from __future__ import annotations

import textwrap
from html import escape

from twinseg.twin.assessments import Assessed
from twinseg.twin.response import Assessment

TITLE = "Response (RANO 2.0)"
COLUMN = 62  # characters of small print in half the page's width

Line = tuple[str, bool, float]  # text, whether it is a title, and where it starts, a share of the page's width


def response_tables(assessed: Assessed, not_assessed: str) -> str:
    """HTML. not_assessed: why there can be no assessment, "" if there can."""
    if not_assessed:
        return f"<p>Not assessed: {escape(not_assessed)}.</p>"
    if not assessed:
        return "<p>Not assessed yet.</p>"
    titles = {"2D": "By diameters (2D)", "3D": "By volume (3D)"}
    return "".join(f"<h3>{titles[measure]}</h3>{_response_table(measure, ones)}" for measure, ones in assessed.items())


def _response_table(measure: str, assessments: tuple[Assessment, ...]) -> str:
    *sizes, last = _response_header(measure)
    head = "".join(f'<th class="number">{escape(cell)}</th>' for cell in sizes) + f"<th>{escape(last)}</th>"
    rows = []
    for one in assessments:
        day, size, from_baseline, from_nadir = (f'<td class="number">{escape(cell)}</td>' for cell in _cells(one))
        trace = "<br>".join(escape(sentence) for sentence in one.trace)
        response = f'<td class="response">{escape(one.words)}</td><td><small>{trace}</small></td>'
        rows.append(f"<tr>{day}{size}{from_baseline}{from_nadir}{response}</tr>")
    return f"<table><thead><tr>{head}<th>why</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"


def response_columns(assessed: Assessed, not_assessed: str) -> list[list[Line]]:
    """Columns of lines, one a measure."""
    if not_assessed:
        said = textwrap.wrap(f"Not assessed: {not_assessed}.", COLUMN)
        return [[(TITLE, True, 0.07), *((line, False, 0.09) for line in said)]]
    return [_response_lines(measure, ones) for measure, ones in assessed.items()]


def _response_lines(measure: str, assessments: tuple[Assessment, ...]) -> list[Line]:
    lines = [(f"Response (RANO 2.0, {measure})", True, 0.07)]
    for one in assessments:
        day, size, from_baseline, from_nadir = _cells(one)
        unit = "mm²" if measure == "2D" else "mL"
        changes = "" if one.from_nadir is None else f"; {from_baseline} from baseline, {from_nadir} from nadir"
        lines.append((f"day {day}: {one.words}  ({size} {unit}{changes})", False, 0.07))
        lines += [(line, False, 0.09) for line in textwrap.wrap(" ".join(one.trace), COLUMN)]
    return lines


def _response_header(measure: str) -> list[str]:
    size = "sum of products, mm²" if measure == "2D" else "volume, mL"
    return ["day", size, "from baseline", "from nadir", "response"]


def _cells(one: Assessment) -> list[str]:
    size = f"{one.size:.0f}" if one.size >= 100 else f"{one.size:.2f}"
    changes = ["–" if change is None else f"{change:+.0%}" for change in (one.from_baseline, one.from_nadir)]
    return [f"{one.day:g}", size, *changes]
