"""The plot view: a chart node with its series, drawn by VTK's charts."""

from __future__ import annotations

from typing import Any

import slicer
import vtk
from PySide6 import QtWidgets

from .views import RenderedView, ViewFrame
from .widget_api import implements, interface, widget_class
from .widgets_mrml import CarriesScene

SERIES = slicer.vtkMRMLPlotSeriesNode
CHART_TYPES = {
    SERIES.PlotTypeLine: vtk.vtkChart.LINE,
    SERIES.PlotTypeBar: vtk.vtkChart.BAR,
    SERIES.PlotTypeScatter: vtk.vtkChart.LINE,
    SERIES.PlotTypeScatterBar: vtk.vtkChart.BAR,
}


@implements
class qMRMLPlotView(RenderedView, CarriesScene, interface("qMRMLPlotView")):  # type: ignore[misc]
    """A chart, redrawn when its chart node, one of its series or their table changes."""

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        self._make_window()
        self._context = vtk.vtkContextView()
        self._context.SetRenderWindow(self._window)
        self._context.GetRenderer().SetBackground(1, 1, 1)
        self._chart = vtk.vtkChartXY()
        self._context.GetScene().AddItem(self._chart)
        self._node: Any = None
        self._observed: list[tuple[Any, int]] = []

    def setMRMLPlotViewNode(self, node: Any) -> None:
        """The plot view node, which names the chart to show."""
        self._node = node
        node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._draw())
        self._draw()

    def mrmlPlotViewNode(self) -> Any:
        """The plot view node."""
        return self._node

    def chart(self) -> Any:
        """VTK's chart."""
        return self._chart

    def fitToContent(self) -> None:
        """Show all of every series."""
        self._chart.RecalculateBounds()
        self.scheduleRender()

    def _follow(self, nodes: list[Any]) -> None:
        for node, tag in self._observed:
            node.RemoveObserver(tag)
        self._observed = [
            (node, node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._draw())) for node in nodes
        ]

    def _draw(self) -> None:
        chart_node = self._node.GetPlotChartNode()
        self._chart.ClearPlots()
        if chart_node is None:
            self._follow([])
            self.scheduleRender()
            return
        series = [chart_node.GetNthPlotSeriesNode(index) for index in range(chart_node.GetNumberOfPlotSeriesNodes())]
        tables = [node.GetTableNode() for node in series if node.GetTableNode() is not None]
        self._follow([chart_node, *series, *tables])
        for node in series:
            self._add_plot(node)
        self._chart.SetTitle(chart_node.GetTitle() or "" if chart_node.GetTitleVisibility() else "")
        self._chart.SetShowLegend(bool(chart_node.GetLegendVisibility()))
        titles = (chart_node.GetYAxisTitle(), chart_node.GetXAxisTitle())
        shown = (chart_node.GetYAxisTitleVisibility(), chart_node.GetXAxisTitleVisibility())
        for axis, title, visible in zip((vtk.vtkAxis.LEFT, vtk.vtkAxis.BOTTOM), titles, shown, strict=True):
            self._chart.GetAxis(axis).SetTitle(title or "" if visible else "")
        if not chart_node.GetXAxisRangeAuto():
            self._set_range(vtk.vtkAxis.BOTTOM, chart_node.GetXAxisRange())
        if not chart_node.GetYAxisRangeAuto():
            self._set_range(vtk.vtkAxis.LEFT, chart_node.GetYAxisRange())
        self.fitToContent()

    def _set_range(self, axis: int, limits: Any) -> None:
        self._chart.GetAxis(axis).SetBehavior(vtk.vtkAxis.FIXED)
        self._chart.GetAxis(axis).SetRange(*limits)

    def _add_plot(self, node: Any) -> None:
        """One series: its columns, colour, width and markers."""
        table_node = node.GetTableNode()
        y = table_node.GetTable().GetColumnByName(node.GetYColumnName()) if table_node is not None else None
        if y is None:
            return
        table = vtk.vtkTable()
        x_name = node.GetXColumnName()
        is_scatter = node.GetPlotType() in (SERIES.PlotTypeScatter, SERIES.PlotTypeScatterBar)
        x = table_node.GetTable().GetColumnByName(x_name) if x_name and is_scatter else None
        if x is None:
            x = vtk.vtkDoubleArray()
            x.SetName("index")
            for row in range(y.GetNumberOfTuples()):
                x.InsertNextValue(row)
        table.AddColumn(x)
        table.AddColumn(y)
        plot = self._chart.AddPlot(CHART_TYPES[node.GetPlotType()])
        plot.SetInputData(table, 0, 1)
        plot.SetLabel(node.GetName())
        plot.SetColorF(*node.GetColor())
        plot.SetWidth(node.GetLineWidth())
        plot.GetPen().SetLineType(node.GetLineStyle())
        if hasattr(plot, "SetMarkerStyle"):
            plot.SetMarkerStyle(node.GetMarkerStyle())
            plot.SetMarkerSize(node.GetMarkerSize())


@implements
class qMRMLPlotWidget(ViewFrame, interface("qMRMLPlotWidget")):  # type: ignore[misc]
    """A plot view with its bar."""

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        self._view = qMRMLPlotView(self)
        self._controller = widget_class("qMRMLPlotViewControllerWidget")(self)
        self._lay_out(self._view, self._controller)

    def set_node(self, node: Any) -> None:
        """The plot view node."""
        self._view.setMRMLPlotViewNode(node)
        self._show_label(self._controller, node)

    def plotView(self) -> qMRMLPlotView:
        """The chart."""
        return self._view

    def plotController(self) -> Any:
        """The bar."""
        return self._controller

    def mrmlPlotViewNode(self) -> Any:
        """The plot view node."""
        return self._view.mrmlPlotViewNode()
