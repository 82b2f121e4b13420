"""What views have in common, and the table view.

A view paints itself with the picture that VTK rendered offscreen, so a picture of any widget, of the layout or of the
whole window shows what the user would see.
"""

from __future__ import annotations

from typing import Any

import slicer
import vtk
from PySide6 import QtGui, QtWidgets

from .widget_api import implements, interface
from .widgets_mrml import image_from_vtk, qMRMLTableView

_pictures_being_taken: list[Any] = []
_qt_grab = QtWidgets.QWidget.grab


def grab(widget: Any, *arguments: Any) -> QtGui.QPixmap:
    """``QWidget.grab``, during which the views below the widget render."""
    _pictures_being_taken.append(widget)
    try:
        return _qt_grab(widget, *arguments)
    finally:
        _pictures_being_taken.pop()


QtWidgets.QWidget.grab = grab


def make_render_window() -> Any:
    """A render window. VTK warns where there is no display; offscreen, that goes without saying."""
    was_shown = vtk.vtkObject.GetGlobalWarningDisplay()
    vtk.vtkObject.GlobalWarningDisplayOff()
    window = vtk.vtkRenderWindow()
    vtk.vtkObject.SetGlobalWarningDisplay(was_shown)
    return window


class RenderedView:
    """An offscreen render window whose picture the widget paints.

    Nobody looks at an offscreen window, so a view renders when a picture is taken, not each time that Qt paints it.
    """

    def _make_window(self: Any) -> None:
        self._renderer = vtk.vtkRenderer()
        self._window = make_render_window()
        self._window.SetOffScreenRendering(1)
        self._window.SetShowWindow(False)
        self._window.SetMultiSamples(0)
        self._window.AddRenderer(self._renderer)
        self._interactor = vtk.vtkRenderWindowInteractor()
        self._interactor.SetRenderWindow(self._window)
        self._interactor.EnableRenderOff()
        self._interactor.Initialize()
        self._picture: QtGui.QImage | None = None
        self._paused = 0
        self.setMinimumSize(40, 40)

    def _make_displayable_managers(self: Any, factory: Any, names: tuple[str, ...]) -> None:
        factory.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        for name in names:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self._group = factory.InstantiateDisplayableManagers(self._renderer)
        self._group.AddObserver(vtk.vtkCommand.UpdateEvent, lambda *_: self.scheduleRender())

    def renderWindow(self: Any) -> Any:
        """VTK's render window."""
        return self._window

    def renderer(self: Any) -> Any:
        """The renderer of the scene."""
        return self._renderer

    def interactor(self: Any) -> Any:
        """VTK's interactor."""
        return self._interactor

    def interactorStyle(self: Any) -> Any:
        """The style of the interactor."""
        return self._interactor.GetInteractorStyle()

    def displayableManagerByClassName(self: Any, name: str) -> Any:
        """One of the displayable managers, or None."""
        return self._group.GetDisplayableManagerByClassName(name)

    def getDisplayableManagers(self: Any, collection: Any) -> None:
        """Fill a vtkCollection with the displayable managers."""
        for index in range(self._group.GetDisplayableManagerCount()):
            collection.AddItem(self._group.GetNthDisplayableManager(index))

    def scheduleRender(self: Any) -> None:
        """The picture is out of date; it is rendered anew when it is painted."""
        self._picture = None
        self.update()

    def forceRender(self: Any) -> None:
        """Render now."""
        self._picture = None
        self.picture()

    def picture(self: Any) -> QtGui.QImage:
        """What VTK renders at the widget's size; rendered only when something changed."""
        size = (max(self.width, 2), max(self.height, 2))
        if self._picture is None or self._window.GetSize() != size:
            if self._window.GetSize() != size:
                self._window.SetSize(*size)
                self._resized(*size)
            self._window.Render()
            grab = vtk.vtkWindowToImageFilter()
            grab.SetInput(self._window)
            grab.ReadFrontBufferOff()
            grab.ShouldRerenderOff()
            grab.Update()
            self._picture = image_from_vtk(grab.GetOutput())
        return self._picture

    def _resized(self: Any, width: int, height: int) -> None:
        """Called before rendering at a new size."""

    def paintEvent(self: Any, event: QtGui.QPaintEvent) -> None:
        """Paint the rendered picture, if one is being taken."""
        if _pictures_being_taken:
            QtGui.QPainter(self).drawImage(self.rect, self.picture())

    def setBackgroundColor(self: Any, color: QtGui.QColor) -> None:
        """The colour behind the scene."""
        self._renderer.SetBackground(color.redF(), color.greenF(), color.blueF())
        self.scheduleRender()


class ViewFrame:
    """A view under a thin bar in the colour of its view node, as in Slicer's layout."""

    def _lay_out(self: Any, view: QtWidgets.QWidget, controller: QtWidgets.QWidget) -> None:
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(controller)
        layout.addWidget(view, 1)

    def _show_label(self: Any, controller: QtWidgets.QWidget, node: Any) -> None:
        color = QtGui.QColor.fromRgbF(*node.GetLayoutColor())
        label = QtWidgets.QLabel(f" {node.GetLayoutLabel() or node.GetSingletonTag()} ", controller)
        controller.setStyleSheet(f"background-color: {color.name()}; color: black; font-weight: bold;")
        layout = QtWidgets.QHBoxLayout(controller)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(label)
        controller.setFixedHeight(18)


@implements
class qMRMLTableWidget(ViewFrame, interface("qMRMLTableWidget")):  # type: ignore[misc]
    """A table view with its bar."""

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        from .widget_api import widget_class

        self._view = qMRMLTableView(self)
        self._controller = widget_class("qMRMLTableViewControllerWidget")(self)
        self._lay_out(self._view, self._controller)

    def set_node(self, node: Any) -> None:
        """The table view node, whose table is shown and followed."""
        self._node = node
        node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._view.setMRMLTableNode(node.GetTableNode()))
        self._view.setMRMLTableNode(node.GetTableNode())
        self._show_label(self._controller, node)

    def tableView(self) -> qMRMLTableView:
        """The table."""
        return self._view

    def tableController(self) -> Any:
        """The bar."""
        return self._controller

    def mrmlTableViewNode(self) -> Any:
        """The table view node."""
        return self._node
