"""Dice by round as Slicer shows it: a table, a series for each kind of model, and a chart."""

from __future__ import annotations

import math
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _

from .SiteWatch import Snapshot

ATTRIBUTE = "FederatedClient"  # marks the nodes, which are found by it again
KINDS = ("global", "local", "twin")
COLOURS = {"global": (0.13, 0.47, 0.71), "local": (0.55, 0.55, 0.55), "twin": (0.89, 0.40, 0.16)}


def scores(snapshot: Snapshot) -> list[tuple[int, dict[str, float]]]:
    """By number of rounds done, mean Dice on this site's validation cases: of the global model, of the one after local
    training, which is what is sent, and of the site twin. Round 0 is the model that the federation began with."""
    found: dict[int, dict[str, float]] = {}

    def note(number: int, kind: str, dice: float | None) -> None:
        if dice is not None:
            found.setdefault(number, {})[kind] = dice

    for row in snapshot.rounds:
        report = row["report"] or {}
        note(row["number"] - 1, "global", report.get("dice_before"))
        note(row["number"], "local", report.get("dice_after"))
    for row in snapshot.twins:
        note(row["round"], "global", row["global_dice"])
        note(row["round"], "twin", row["twin_dice"])
    return sorted(found.items())


def update(snapshot: Snapshot) -> Any:
    """Bring the chart of the scene up to date, made if it is not there; None before the first score."""
    rows = scores(snapshot)
    if not rows:
        return None
    table = _node("vtkMRMLTableNode", "table", _("Dice by round"))
    columns = [_column(_("Round"), [number for number, _dice in rows])]
    titles = {"global": _("Global model"), "local": _("After local training"), "twin": _("Site twin")}
    for kind in KINDS:
        columns.append(_column(titles[kind], [dice.get(kind, math.nan) for _number, dice in rows]))
    was = table.StartModify()
    table.RemoveAllColumns()
    for column in columns:
        table.AddColumn(column)
    table.EndModify(was)
    chart = _node("vtkMRMLPlotChartNode", "chart", _("Dice by round"))
    chart.SetTitle(_("Dice on this site's validation cases"))
    chart.SetXAxisTitle(_("Rounds done"))
    chart.SetYAxisTitle(_("Mean Dice"))
    chart.SetYAxisRangeAuto(False)  # else the view keeps that of the chart before
    highest = max(dice for _number, row in rows for dice in row.values())
    chart.SetYAxisRange(0.0, 1.3 * max(highest, 0.1))  # room for the legend
    for kind, column in zip(KINDS, columns[1:], strict=True):
        series = _series(kind, column.GetName(), table, columns[0].GetName())
        if not chart.HasPlotSeriesNodeID(series.GetID()):
            chart.AddAndObservePlotSeriesNodeID(series.GetID())
    return chart


def show(chart: Any) -> None:
    """Show the chart beside the images."""
    manager, logic = slicer.app.layoutManager(), slicer.modules.plots.logic()
    manager.setLayout(logic.GetLayoutWithPlot(manager.layout))
    manager.plotWidget(0).mrmlPlotViewNode().SetPlotChartNodeID(chart.GetID())


def _series(kind: str, title: str, table: Any, rounds: str) -> Any:
    series = _node("vtkMRMLPlotSeriesNode", kind, title)
    series.SetAndObserveTableNodeID(table.GetID())
    series.SetXColumnName(rounds)
    series.SetYColumnName(title)
    series.SetPlotType(series.PlotTypeScatter)
    series.SetLineStyle(series.LineStyleSolid)
    series.SetMarkerStyle(series.MarkerStyleCircle)
    series.SetColor(*COLOURS[kind])
    return series


def _node(kind: str, name: str, title: str) -> Any:
    """The module's node of a name; made if it is not there. It is not saved: the numbers are this computer's."""
    for node in slicer.util.getNodesByClass(kind):
        if node.GetAttribute(ATTRIBUTE) == name:
            return node
    node = slicer.mrmlScene.AddNewNodeByClass(kind, title)
    node.SetAttribute(ATTRIBUTE, name)
    node.SetSaveWithScene(False)
    return node


def _column(name: str, values: list[float]) -> Any:
    column = vtk.vtkDoubleArray()
    column.SetName(name)
    for value in values:
        column.InsertNextValue(value)
    return column
