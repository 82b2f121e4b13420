"""3D views: the scene as Slicer's displayable managers draw it."""

from __future__ import annotations

from typing import Any, ClassVar

import slicer
import vtk
from PySide6 import QtWidgets

from .views import RenderedView, ViewFrame
from .widget_api import implements, interface, widget_class
from .widgets_mrml import CarriesScene

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


@implements
class qMRMLThreeDView(RenderedView, CarriesScene, interface("qMRMLThreeDView")):  # type: ignore[misc]
    """The scene in three dimensions."""

    # Direction from which the camera looks, and what is up, for each of ctkAxesWidget's axes; both in RAS.
    AXES: ClassVar[dict[int, tuple[tuple[int, int, int], tuple[int, int, int]]]] = {
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
        """Look at the middle of what is visible, from as far as shows all of it, without the box around the scene."""
        shown = self._node.GetBoxVisible(), self._node.GetAxisLabelsVisible()
        self._show_box(False, False)
        is_empty = not vtk.vtkMath.AreBoundsInitialized(self._renderer.ComputeVisiblePropBounds())
        if is_empty:
            self._show_box(*shown)
        self._renderer.ResetCamera()
        self._show_box(*shown)
        self._renderer.ResetCameraClippingRange()
        self.scheduleRender()

    def _show_box(self, box: bool, labels: bool) -> None:
        self._node.SetBoxVisible(box)
        self._node.SetAxisLabelsVisible(labels)

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


@implements
class qMRMLThreeDWidget(ViewFrame, interface("qMRMLThreeDWidget")):  # type: ignore[misc]
    """A 3D view with its bar."""

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
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
