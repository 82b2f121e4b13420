"""Slice views: the blended volumes of a slice logic, and what Slicer's displayable managers draw on them."""

from __future__ import annotations

from typing import Any

import slicer
import vtk
from PySide6 import QtWidgets

from .views import RenderedView, ViewFrame
from .widget_api import implements, interface, widget_class
from .widgets_mrml import CarriesScene

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


@implements
class qMRMLSliceView(RenderedView, CarriesScene, interface("qMRMLSliceView")):  # type: ignore[misc]
    """One slice: the blended volumes of the slice logic, with what the displayable managers draw on it."""

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        self._make_window()
        self._renderer.GetActiveCamera().ParallelProjectionOn()
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._actor = vtk.vtkActor2D()
        self._actor.SetMapper(self._mapper)
        self._actor.GetProperty().SetDisplayLocationToBackground()
        self._actor.VisibilityOff()
        self._renderer.AddViewProp(self._actor)  # before all others: what is translucent blends with what is there
        self._make_displayable_managers(
            slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance(), SLICE_DISPLAYABLE_MANAGERS
        )
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
        self._actor.SetVisibility(connection is not None)
        if connection is not None:
            self._mapper.SetInputConnection(connection)
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
