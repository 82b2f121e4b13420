"""Slice, 3D and table views as widgets, rendered offscreen by Slicer's own displayable managers.

A view paints itself with the picture that VTK rendered, so a picture of any widget, of the layout or of the whole window
shows what the user would see.
"""

from __future__ import annotations

from typing import Any

import slicer
import vtk
from PySide6 import QtGui, QtWidgets

from .widget_api import implements, interface
from .widgets_mrml import CarriesScene, image_from_vtk, qMRMLTableView

SLICE_DISPLAYABLE_MANAGERS = (
    "vtkMRMLVolumeGlyphSliceDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLScalarBarDisplayableManager",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLTransformsDisplayableManager2D",
    "vtkMRMLColorLegendDisplayableManager",
)
THREED_DISPLAYABLE_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLThreeDReformatDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager3D",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
    "vtkMRMLTransformsDisplayableManager3D",
    "vtkMRMLVolumeRenderingDisplayableManager",
    "vtkMRMLColorLegendDisplayableManager",
)


class RenderedView:
    """An offscreen render window whose picture the widget paints."""

    def _make_window(self: Any) -> None:
        self._renderer = vtk.vtkRenderer()
        self._window = vtk.vtkRenderWindow()
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
        """Paint the rendered picture."""
        QtGui.QPainter(self).drawImage(self.rect, self.picture())

    def setBackgroundColor(self: Any, color: QtGui.QColor) -> None:
        """The colour behind the scene."""
        self._renderer.SetBackground(color.redF(), color.greenF(), color.blueF())
        self.scheduleRender()


@implements
class qMRMLSliceView(RenderedView, CarriesScene, interface("qMRMLSliceView")):  # type: ignore[misc]
    """One slice: the blended volumes of the slice logic, with what the displayable managers draw on it."""

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        self._make_window()
        self._make_displayable_managers(
            slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance(), SLICE_DISPLAYABLE_MANAGERS
        )
        self._renderer.GetActiveCamera().ParallelProjectionOn()
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._actor = vtk.vtkActor2D()
        self._actor.SetMapper(self._mapper)
        self._actor.GetProperty().SetDisplayLocationToBackground()
        self._interactor.SetInteractorStyle(vtk.vtkInteractorStyleUser())
        self._logic: Any = None

    def set_logic(self, logic: Any) -> None:
        """Show what this slice logic blends."""
        self._logic = logic
        self._group.SetMRMLDisplayableNode(logic.GetSliceNode())
        logic.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._on_logic_modified())
        self._on_logic_modified()

    def _on_logic_modified(self) -> None:
        connection = self._logic.GetImageDataConnection()
        if connection is None:
            self._renderer.RemoveViewProp(self._actor)
        else:
            self._mapper.SetInputConnection(connection)
            if not self._renderer.HasViewProp(self._actor):
                self._renderer.AddViewProp(self._actor)
        self.scheduleRender()

    def _resized(self, width: int, height: int) -> None:
        self._logic.ResizeSliceNode(width, height)

    def mrmlSliceNode(self) -> Any:
        """The slice node."""
        return self._logic.GetSliceNode()

    def convertXYZToRAS(self, xyz: Any) -> list[float]:
        """View coordinates (pixels) to RAS (mm)."""
        return list(self.mrmlSliceNode().GetXYToRAS().MultiplyPoint([*xyz, 1.0])[:3])

    def convertRASToXYZ(self, ras: Any) -> list[float]:
        """RAS (mm) to view coordinates (pixels)."""
        matrix = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self.mrmlSliceNode().GetXYToRAS(), matrix)
        return list(matrix.MultiplyPoint([*ras, 1.0])[:3])


@implements
class qMRMLThreeDView(RenderedView, CarriesScene, interface("qMRMLThreeDView")):  # type: ignore[misc]
    """The scene in three dimensions."""

    # Direction from which the camera looks, and what is up, for each of ctkAxesWidget's axes; both in RAS.
    AXES = {
        0: ((-1, 0, 0), (0, 0, 1)),  # left
        1: ((1, 0, 0), (0, 0, 1)),  # right
        2: ((0, -1, 0), (0, 0, 1)),  # posterior
        3: ((0, 1, 0), (0, 0, 1)),  # anterior
        4: ((0, 0, -1), (0, 1, 0)),  # inferior
        5: ((0, 0, 1), (0, 1, 0)),  # superior
    }

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        self._make_window()
        style = vtk.vtkInteractorStyleTrackballCamera()
        self._interactor.SetInteractorStyle(style)
        self._renderer.SetGradientBackground(True)
        self._make_displayable_managers(
            slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance(), THREED_DISPLAYABLE_MANAGERS
        )
        self._node: Any = None

    def setMRMLViewNode(self, node: Any) -> None:
        """The view node; it gets a camera if it has none."""
        self._node = node
        self._group.SetMRMLDisplayableNode(node)
        node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._on_node_modified())
        self._on_node_modified()

    def mrmlViewNode(self) -> Any:
        """The view node."""
        return self._node

    def _on_node_modified(self) -> None:
        self._renderer.SetBackground(*self._node.GetBackgroundColor())
        self._renderer.SetBackground2(*self._node.GetBackgroundColor2())
        self.scheduleRender()

    def cameraNode(self) -> Any:
        """The camera of this view."""
        return slicer.modules.cameras.logic().GetViewActiveCameraNode(self._node)

    def _camera(self) -> Any:
        node = self.cameraNode()
        return node.GetCamera() if node is not None else self._renderer.GetActiveCamera()

    def resetFocalPoint(self) -> None:
        """Look at the middle of what is visible, from as far as shows all of it."""
        self._renderer.ResetCamera()
        self.scheduleRender()

    def resetCamera(self, *_: Any) -> None:
        """Look from the front at all that is visible."""
        self.lookFromAxis(3)

    def rotateToViewAxis(self, axis: int) -> None:
        """Look along one of the axes: 0 left, 1 right, 2 posterior, 3 anterior, 4 inferior, 5 superior."""
        direction, up = self.AXES[int(axis)]
        camera = self._camera()
        focal_point, distance = camera.GetFocalPoint(), camera.GetDistance()
        camera.SetPosition(*(focal + distance * part for focal, part in zip(focal_point, direction, strict=True)))
        camera.SetViewUp(*up)
        self.resetFocalPoint()

    lookFromAxis = rotateToViewAxis

    def zoomIn(self) -> None:
        """Come closer."""
        self._camera().Dolly(1.05)
        self.scheduleRender()

    def zoomOut(self) -> None:
        """Go further away."""
        self._camera().Dolly(0.95)
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
class qMRMLSliceControllerWidget(interface("qMRMLSliceControllerWidget")):  # type: ignore[misc]
    """The bar over a slice view; its methods act on the slice node."""

    _logic: Any = None

    def setSliceVisible(self, visible: bool) -> None:
        """Show the slice in the 3D views."""
        self._logic.GetSliceNode().SetSliceVisible(bool(visible))

    def setSliceLink(self, linked: bool) -> None:
        """Change all slice views together."""
        self._logic.GetSliceCompositeNode().SetLinkedControl(bool(linked))

    def fitSliceToBackground(self) -> None:
        """Show the whole background volume."""
        self._logic.FitSliceToBackground()

    def setSliceOffsetValue(self, offset: float) -> None:
        """Go to an offset, in mm along the slice's normal."""
        self._logic.SetSliceOffset(float(offset))

    def setSliceOrientation(self, orientation: str) -> None:
        """Axial, Sagittal or Coronal."""
        self._logic.GetSliceNode().SetOrientation(orientation)

    def sliceOffsetSlider(self) -> Any:
        """A slider that is not laid out, with the offset as its value."""
        from .widget_api import widget_class

        slider = widget_class("qMRMLSliderWidget")(self)
        slider.setRange(*self._logic.GetLowestVolumeSliceBounds()[4:])
        slider.setValue(self._logic.GetSliceOffset())
        slider.hide()
        slider.valueChanged.connect(self.setSliceOffsetValue)
        return slider

    def sliceLogic(self) -> Any:
        """The slice logic."""
        return self._logic


@implements
class qMRMLSliceWidget(ViewFrame, interface("qMRMLSliceWidget")):  # type: ignore[misc]
    """A slice view with its bar."""

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        self._view = qMRMLSliceView(self)
        self._controller = qMRMLSliceControllerWidget(self)
        self._lay_out(self._view, self._controller)
        self._logic: Any = None

    def set_node(self, node: Any) -> None:
        """Make the slice logic of this slice node, which the application's logic gets to know."""
        application_logic = slicer.app.applicationLogic()
        self._logic = slicer.vtkMRMLSliceLogic()
        self._logic.SetMRMLApplicationLogic(application_logic)
        self._logic.SetMRMLScene(slicer.mrmlScene)
        self._logic.SetSliceNode(node)
        application_logic.GetSliceLogics().AddItem(self._logic)
        self._controller._logic = self._logic
        self._view.set_logic(self._logic)
        self._show_label(self._controller, node)

    def sliceView(self) -> qMRMLSliceView:
        """The view."""
        return self._view

    def sliceController(self) -> qMRMLSliceControllerWidget:
        """The bar."""
        return self._controller

    def sliceLogic(self) -> Any:
        """The slice logic."""
        return self._logic

    def mrmlSliceNode(self) -> Any:
        """The slice node."""
        return self._logic.GetSliceNode()

    def mrmlSliceCompositeNode(self) -> Any:
        """The node that says which volumes are shown."""
        return self._logic.GetSliceCompositeNode()

    def interactorStyle(self) -> Any:
        """The style of the view's interactor."""
        return self._view.interactorStyle()

    def fitSliceToBackground(self) -> None:
        """Show the whole background volume."""
        self._logic.FitSliceToBackground()


@implements
class qMRMLThreeDWidget(ViewFrame, interface("qMRMLThreeDWidget")):  # type: ignore[misc]
    """A 3D view with its bar."""

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        from .widget_api import widget_class

        self._view = qMRMLThreeDView(self)
        self._controller = widget_class("qMRMLThreeDViewControllerWidget")(self)
        self._lay_out(self._view, self._controller)

    def set_node(self, node: Any) -> None:
        """The view node, which the application's logic gets a view logic for."""
        logic = slicer.vtkMRMLViewLogic()
        logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        logic.SetMRMLScene(slicer.mrmlScene)
        logic.AddViewNode(node.GetLayoutName())  # finds the node that is there
        slicer.app.applicationLogic().GetViewLogics().AddItem(logic)
        self._logic = logic
        self._view.setMRMLViewNode(node)
        self._show_label(self._controller, node)

    def threeDView(self) -> qMRMLThreeDView:
        """The view."""
        return self._view

    def threeDController(self) -> Any:
        """The bar."""
        return self._controller

    def mrmlViewNode(self) -> Any:
        """The view node."""
        return self._view.mrmlViewNode()

    def viewLogic(self) -> Any:
        """The view logic."""
        return self._logic


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
