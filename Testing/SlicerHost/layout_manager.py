"""``slicer.app.layoutManager()``: the views of the current layout, from Slicer's own layout descriptions."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import slicer
import vtk
from PySide6 import QtCore, QtWidgets

from .plot_view import qMRMLPlotWidget
from .slice_view import qMRMLSliceWidget
from .threed_view import qMRMLThreeDWidget
from .views import qMRMLTableWidget
from .widget_api import implements

# Class of a view node -> widget that shows it.
VIEW_WIDGETS: dict[str, Any] = {
    "vtkMRMLSliceNode": qMRMLSliceWidget,
    "vtkMRMLViewNode": qMRMLThreeDWidget,
    "vtkMRMLTableViewNode": qMRMLTableWidget,
    "vtkMRMLPlotViewNode": qMRMLPlotWidget,
}


@implements
class qSlicerLayoutManager(QtCore.QObject):
    """Builds the widgets of a layout when it is chosen, and keeps every view once it was made."""

    layoutChanged = QtCore.Signal(int)

    def __init__(self, scene: Any, application_logic: Any):
        super().__init__()
        self._scene = scene
        self._viewport = QtWidgets.QWidget()
        self._viewport.setObjectName("CentralWidget")
        QtWidgets.QVBoxLayout(self._viewport).setContentsMargins(0, 0, 0, 0)
        self._views: dict[str, Any] = {}
        self._shown: list[Any] = []
        self._description = ""
        self._current = -1
        self._logic = slicer.vtkMRMLLayoutLogic()
        self._logic.SetMRMLApplicationLogic(application_logic)
        self._logic.SetMRMLScene(scene)
        self._node = self._logic.GetLayoutNode()
        self._node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._refresh())

    # The layout

    def layoutLogic(self) -> Any:
        """Slicer's layout logic."""
        return self._logic

    def setLayout(self, layout: int) -> None:
        """Choose a layout by its number in vtkMRMLLayoutNode, or a custom one that the module registered there."""
        self._node.SetViewArrangement(int(layout))
        self._refresh()

    @property
    def layout(self) -> int:
        """The number of the current layout."""
        return self._node.GetViewArrangement()

    @layout.setter
    def layout(self, layout: int) -> None:
        self.setLayout(layout)

    def viewport(self) -> QtWidgets.QWidget:
        """The widget that holds the views."""
        return self._viewport

    def mrmlScene(self) -> Any:
        """The scene."""
        return self._scene

    def _refresh(self) -> None:
        description = self._node.GetCurrentLayoutDescription() or ""
        if description == self._description:
            return
        self._description = description
        for view in self._shown:
            view.setParent(None)
            view.hide()
        self._shown = []
        box = self._viewport.layout()
        while box.count():
            box.takeAt(0).widget().deleteLater()
        if description:
            box.addWidget(self._build(ElementTree.fromstring(description)))
        for view in self._views.values():
            node = view.property("mrmlViewID")
            self._scene.GetNodeByID(node).SetMappedInLayout(view in self._shown)
        if self.layout != self._current:
            self._current = self.layout
            self.layoutChanged.emit(self.layout)

    def _build(self, element: ElementTree.Element) -> QtWidgets.QWidget:
        """The widget of a ``viewports``, ``layout``, ``item`` or ``view`` element."""
        if element.tag == "viewports":
            return self._build(element[0])
        if element.tag == "view":
            return self._show_view(element)
        if element.get("type") == "tab":
            tabs = QtWidgets.QTabWidget()
            for item in element.findall("item"):
                tabs.addTab(self._build(item[0]), item.get("name", ""))
            return tabs
        frame = QtWidgets.QWidget()
        grid = QtWidgets.QGridLayout(frame)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setSpacing(2)
        for index, item in enumerate(element.findall("item")):
            row, column = {"grid": (int(item.get("row", 0)), int(item.get("column", 0))), "horizontal": (0, index)}.get(
                element.get("type", "vertical"), (index, 0)
            )
            for child in item:
                grid.addWidget(self._build(child), row, column)
            grid.setRowStretch(row, 1)
            grid.setColumnStretch(column, 1)
        return frame

    def _show_view(self, element: ElementTree.Element) -> QtWidgets.QWidget:
        tag, kind = element.get("singletontag", ""), element.get("class", "")
        view = self._view(self._scene.GetSingletonNode(tag, kind))  # the layout logic has made the node
        self._shown.append(view)
        view.show()
        return view

    def _view(self, node: Any) -> Any:
        """The widget of a view node, made when it is first needed."""
        key = f"{node.GetClassName()}/{node.GetSingletonTag()}"
        if key not in self._views:
            if node.GetClassName() not in VIEW_WIDGETS:
                raise NotImplementedError(f"SlicerHost has no view for {node.GetClassName()}")
            widget = VIEW_WIDGETS[node.GetClassName()]()
            widget.setMRMLScene(self._scene)
            widget.setObjectName(f"{type(widget).__name__}{node.GetLayoutName()}")
            widget.setProperty("mrmlViewID", node.GetID())
            widget.set_node(node)
            self._views[key] = widget
        return self._views[key]

    # The views

    def _of_kind(self, kind: type, only_shown: bool = False) -> list[Any]:
        return [view for view in (self._shown if only_shown else self._views.values()) if isinstance(view, kind)]

    def sliceViewNames(self) -> tuple[str, ...]:
        """The layout names of the slice views."""
        return tuple(view.mrmlSliceNode().GetLayoutName() for view in self._of_kind(qMRMLSliceWidget))

    def sliceWidget(self, name: str) -> Any:
        """A slice view by its layout name, such as "Red"; None if there is none."""
        named = [view for view in self._of_kind(qMRMLSliceWidget) if view.mrmlSliceNode().GetLayoutName() == name]
        return named[0] if named else None

    def mrmlSliceLogics(self) -> Any:
        """The slice logics of all slice views."""
        return slicer.app.applicationLogic().GetSliceLogics()

    def viewWidget(self, node: Any) -> Any:
        """The widget of a view node."""
        return self._view(node)

    def threeDWidget(self, which: int | str) -> Any:
        """A 3D view by its number or its layout name."""
        views = self._of_kind(qMRMLThreeDWidget)
        if isinstance(which, str):
            return next((view for view in views if view.mrmlViewNode().GetLayoutName() == which), None)
        return views[which] if 0 <= which < len(views) else None

    def plotWidget(self, which: int) -> Any:
        """A plot view by its number."""
        views = self._of_kind(qMRMLPlotWidget)
        return views[which] if 0 <= which < len(views) else None

    def tableWidget(self, which: int) -> Any:
        """A table view by its number."""
        views = self._of_kind(qMRMLTableWidget)
        return views[which] if 0 <= which < len(views) else None

    @property
    def threeDViewCount(self) -> int:
        """How many 3D views there are."""
        return len(self._of_kind(qMRMLThreeDWidget))

    @property
    def plotViewCount(self) -> int:
        """How many plot views there are."""
        return len(self._of_kind(qMRMLPlotWidget))

    @property
    def tableViewCount(self) -> int:
        """How many table views there are."""
        return len(self._of_kind(qMRMLTableWidget))

    def activeThreeDView(self) -> Any:
        """The first 3D view."""
        widget = self.threeDWidget(0)
        return widget.threeDView() if widget is not None else None

    def activeMRMLThreeDViewNode(self) -> Any:
        """The node of the first 3D view."""
        widget = self.threeDWidget(0)
        return widget.mrmlViewNode() if widget is not None else None

    def resetThreeDViews(self) -> None:
        """Show all that is visible, from the front, in every 3D view."""
        for view in self._of_kind(qMRMLThreeDWidget):
            view.threeDView().resetCamera()

    def resetSliceViews(self) -> None:
        """Show the whole background volume in every slice view."""
        for view in self._of_kind(qMRMLSliceWidget):
            view.fitSliceToBackground()

    def setRenderPaused(self, paused: bool) -> None:
        """Rendering waits for painting here anyway."""

    def pauseRender(self) -> None:
        """Rendering waits for painting here anyway."""

    def resumeRender(self) -> None:
        """Rendering waits for painting here anyway."""
