"""A twin's volumes over time, and its forecast, as Slicer's chart: a table, plot series and a plot chart node.

Slicer's plots draw no error bars: the ends of an interval are thin lines of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _

from .TwinNodes import TwinNodes
from .TwinRecord import TwinRecord

Color = tuple[float, float, float]
TOTAL: Color = (0.1, 0.1, 0.1)
LESIONS: tuple[Color, ...] = ((0.84, 0.37, 0.0), (0.0, 0.45, 0.70), (0.0, 0.62, 0.45), (0.80, 0.47, 0.65))
SCENARIOS: tuple[Color, ...] = ((0.49, 0.25, 0.65), (0.90, 0.62, 0.0), (0.34, 0.71, 0.91), (0.60, 0.15, 0.15))
TABLE, CHART, SERIES = "volumes", "chart", "series"
FORECAST = "forecast"
PLAIN: Color = (0.55, 0.55, 0.55)


def showChart(record: TwinRecord, forecasts: Sequence[Mapping[str, Any]] = (), selected: int = 0) -> Any:
    """Draw the volume of each lesion and of all over days (± 1 standard deviation), and forecasts (as the library's
    `Forecast.to_json` gives them), the selected one with its 50 and 90 % bands. Returns the chart node."""
    nodes = TwinNodes(record.pseudonym)
    nodes.remove(SERIES)
    nodes.remove(FORECAST)
    table = nodes.make("vtkMRMLTableNode", TABLE, _("volumes over time"))
    fillTable(table, volumeColumns(record))
    chart = nodes.make("vtkMRMLPlotChartNode", CHART, _("volumes over time"))
    wasModifying = chart.StartModify()
    chart.RemoveAllPlotSeriesNodeIDs()
    for series in [*_measured(nodes, table, record), *_forecast(nodes, forecasts, record, selected)]:
        chart.AddAndObservePlotSeriesNodeID(series.GetID())
    chart.SetTitle(_("{patient}: volume of {region}").format(patient=record.pseudonym, region=record.region))
    chart.SetXAxisTitle(_("days since the baseline scan"))
    thin = _("dashed: ± 1 SD, 50 and 90 % bands; grey: no model") if forecasts else _("dashed: ± 1 SD")
    chart.SetYAxisTitle(_("volume, mL ({thin})").format(thin=thin))
    chart.SetLegendVisibility(not forecasts)  # it would cover them; the panel's table has their colours
    chart.SetYAxisRangeAuto(False)
    chart.SetYAxisRange(0.0, 1.3 * max(_highest(record, forecasts), 0.1))  # room for the legend
    chart.EndModify(wasModifying)
    slicer.modules.plots.logic().ShowChartInLayout(chart)
    return chart


def _highest(record: TwinRecord, forecasts: Sequence[Mapping[str, Any]]) -> float:
    """The largest volume that the chart should show, mL. Not the 90 % bands': these may run away."""
    measured = [sum(record.total(scan.name)) for scan in record.segmented]
    inner = [max(band["high_ml"]) for f in forecasts for band in f["bands"] if band["level"] <= 0.5]
    return max([*measured, *inner, *(max(f["median_ml"]) for f in forecasts)], default=0.0)


def volumeColumns(record: TwinRecord) -> dict[str, list[float]]:
    """Title -> a value a segmented scan: day, each lesion's mL (0 where it is not there), all of them with ± 1 SD."""
    scans = record.segmented
    columns = {_("day"): [scan.day for scan in scans]}
    for number in record.lesions:
        found = [record.lesion(scan.name, number) for scan in scans]
        columns[_lesionTitle(number)] = [lesion.volume_ml if lesion is not None else 0.0 for lesion in found]
    totals = [record.total(scan.name) for scan in scans]
    columns[_("all lesions")] = [volume for volume, _deviation in totals]
    columns[_("all - 1 SD")] = [max(0.0, volume - deviation) for volume, deviation in totals]
    columns[_("all + 1 SD")] = [volume + deviation for volume, deviation in totals]
    return columns


def fillTable(table: Any, columns: Mapping[str, Sequence[float]]) -> None:
    """Replace a table node's content by columns of numbers."""
    wasModifying = table.StartModify()
    table.RemoveAllColumns()
    for title, values in columns.items():
        column = vtk.vtkDoubleArray()
        column.SetName(title)
        for value in values:
            column.InsertNextValue(value)
        table.AddColumn(column)
    table.SetUseColumnTitleAsColumnHeader(True)
    table.SetLocked(True)
    table.EndModify(wasModifying)


def _measured(nodes: TwinNodes, table: Any, record: TwinRecord) -> list[Any]:
    """The series of what was measured."""
    day = _("day")
    made = []
    if len(record.lesions) > 1:
        for index, number in enumerate(record.lesions):
            color = LESIONS[index % len(LESIONS)]
            made.append(_series(nodes, f"{SERIES} {number}", table, (day, _lesionTitle(number)), color, marked=True))
    for title in (_("all lesions"), _("all - 1 SD"), _("all + 1 SD")):
        isEdge = title != _("all lesions")
        made.append(_series(nodes, f"{SERIES} {title}", table, (day, title), TOTAL, isEdge, marked=not isEdge))
    return made


def _forecast(nodes: TwinNodes, forecasts: Sequence[Mapping[str, Any]], record: TwinRecord, selected: int) -> list[Any]:
    """The series of each scenario's median, of the bands of the selected one as outlines, and of the two forecasts that
    need no model; all begin at the last scan."""
    if not forecasts or not record.segmented:
        return []
    last = record.segmented[-1]
    start = record.total(last.name)[0]
    days = [last.day, *forecasts[0]["days"]]
    columns = {_("day"): days, _("as the last scan"): [start, *forecasts[0]["persistence_ml"]]}
    if forecasts[0]["log_linear_ml"] is not None:
        columns[_("going on as before")] = [start, *forecasts[0]["log_linear_ml"]]
    columns |= {forecast["scenario"]: [start, *forecast["median_ml"]] for forecast in forecasts}
    table = nodes.make("vtkMRMLTableNode", f"{FORECAST} table", _("forecast"))
    fillTable(table, columns)
    colors = {forecast["scenario"]: scenarioColor(index) for index, forecast in enumerate(forecasts)}
    made = [
        _series(nodes, f"{FORECAST} {title}", table, (_("day"), title), colors.get(title, PLAIN), title not in colors)
        for title in list(columns)[1:]
    ]
    for band in forecasts[selected]["bands"]:
        title = _("{level:.0%} band").format(level=band["level"])
        outline = nodes.make("vtkMRMLTableNode", f"{FORECAST} table {title}", _("forecast, {name}").format(name=title))
        edge = [start, *band["low_ml"], *band["high_ml"][::-1], start]
        fillTable(outline, {_("day"): [*days, *forecasts[0]["days"][::-1], last.day], title: edge})
        part, color = f"{FORECAST} {title}", scenarioColor(selected)
        made.append(_series(nodes, part, outline, (_("day"), title), color, isEdge=True))
    return made


def scenarioColor(number: int) -> Color:
    """The colour of a scenario's lines, RGB from 0 to 1."""
    return SCENARIOS[number % len(SCENARIOS)]


def _lesionTitle(number: int) -> str:
    return _("lesion {number}").format(number=number)


def _series(
    nodes: TwinNodes,
    part: str,
    table: Any,
    columns: tuple[str, str],
    color: Color,
    isEdge: bool = False,
    marked: bool = False,
) -> Any:
    """A plot series of two columns; an edge of an interval is thin and dashed."""
    node = nodes.make("vtkMRMLPlotSeriesNode", part, columns[1])
    node.SetName(columns[1])  # which the legend shows
    node.SetAndObserveTableNodeID(table.GetID())
    node.SetXColumnName(columns[0])
    node.SetYColumnName(columns[1])
    node.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
    node.SetLineStyle(
        slicer.vtkMRMLPlotSeriesNode.LineStyleDash if isEdge else slicer.vtkMRMLPlotSeriesNode.LineStyleSolid
    )
    node.SetLineWidth(1 if isEdge else 3)
    node.SetMarkerStyle(
        slicer.vtkMRMLPlotSeriesNode.MarkerStyleCircle if marked else slicer.vtkMRMLPlotSeriesNode.MarkerStyleNone
    )
    node.SetMarkerSize(9)
    node.SetColor(*color)
    return node


def progressionText(forecast: Mapping[str, Any]) -> str:
    """When a forecast sees progression: the median with its 90 % interval, in days from the last scan."""
    found = forecast["time_to_progression_days"]
    horizon = found["horizon_days"] or 0.0
    ends = [found[name] for name in ("median", "low90", "high90")]
    median, low, high = (_days(value, horizon) for value in ends)
    share = found["share_without"] or 0.0
    if math.isclose(share, 1.0):
        return _("none within {horizon:.0f} d").format(horizon=horizon)
    return _("{median} ({low} to {high})").format(median=median, low=low, high=high)


def _days(value: float | None, horizon: float) -> str:
    return f"> {horizon:.0f} d" if value is None or not math.isfinite(value) else f"{value:.0f} d"
