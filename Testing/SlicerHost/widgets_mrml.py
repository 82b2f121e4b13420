"""The widgets that carry a scene or a node: qMRMLWidget, qSlicerWidget and what derives from them."""

from __future__ import annotations

from typing import Any

import vtk
from PySide6 import QtCore, QtGui, QtWidgets

from .scene_observer import while_alive
from .widget_api import implements, interface


class CarriesScene:
    """``setMRMLScene``, ``mrmlScene()`` and the signal ``mrmlSceneChanged``."""

    def setMRMLScene(self: Any, scene: Any) -> None:
        """Hand the scene to this widget; its children get it by the signal."""
        if scene is not self.__dict__.get("_scene"):
            self.__dict__["_scene"] = scene
            self.mrmlSceneChanged.emit(scene)

    def mrmlScene(self: Any) -> Any:
        """The scene, None until it is set."""
        return self.__dict__.get("_scene")


@implements
class qMRMLWidget(CarriesScene, interface("qMRMLWidget")):  # type: ignore[misc]
    """The base of widgets that show something of a scene."""


@implements
class qSlicerWidget(CarriesScene, interface("qSlicerWidget")):  # type: ignore[misc]
    """The base of the panels of modules."""


@implements
class qMRMLVolumePropertyWidget(qMRMLWidget):
    """An inert frame, for forms that name it so."""


@implements
class qMRMLTableView(interface("qMRMLTableView")):  # type: ignore[misc]
    """A table node as a table."""

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        self._scene: Any = None
        self._node: Any = None
        self._tag = 0
        self.setModel(QtGui.QStandardItemModel(self))

    def setMRMLScene(self, scene: Any) -> None:
        """Kept; the node is set on its own."""
        self._scene = scene

    def mrmlScene(self) -> Any:
        """The scene."""
        return self._scene

    def setMRMLTableNode(self, node: Any) -> None:
        """Show this node, and follow its changes; None shows nothing."""
        if self._node is not None:
            self._node.RemoveObserver(self._tag)
        self._node = node
        if node is not None:
            self._tag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, while_alive(self, lambda *_: self._show()))
        self._show()

    def mrmlTableNode(self) -> Any:
        """The node that is shown."""
        return self._node

    def _show(self) -> None:
        model = self.model()
        model.clear()
        table = self._node.GetTable() if self._node is not None else None
        if table is None:
            return
        columns = range(table.GetNumberOfColumns())
        model.setHorizontalHeaderLabels([table.GetColumnName(column) or "" for column in columns])
        for row in range(table.GetNumberOfRows()):
            texts = [table.GetValue(row, column).ToString() for column in columns]
            model.appendRow([QtGui.QStandardItem(text) for text in texts])


@implements
class qSlicerMarkupsPlaceWidget(interface("qSlicerMarkupsPlaceWidget")):  # type: ignore[misc]
    """The buttons that place a markups point; here they hold the node and the mode."""

    def setCurrentNode(self, node: Any) -> None:
        """The markups node that points are placed in."""
        self.store("currentNode", node)

    def currentNode(self) -> Any:
        """The markups node."""
        return self.stored("currentNode")

    def currentMarkupsNode(self) -> Any:
        """As currentNode."""
        return self.stored("currentNode")

    def setPlaceModeEnabled(self, enabled: bool) -> None:
        """Start or stop placing points."""
        if self.store("placeModeEnabled", bool(enabled)):
            self.activeMarkupsPlaceModeChanged.emit(bool(enabled))

    def _button(self, name: str) -> QtWidgets.QToolButton:
        found = self.findChild(QtWidgets.QToolButton, name)
        if found is None:
            found = QtWidgets.QToolButton(self)
            found.setObjectName(name)
        return found

    def placeButton(self) -> QtWidgets.QToolButton:
        """The button that starts placing."""
        return self._button("PlaceButton")

    def deleteButton(self) -> QtWidgets.QToolButton:
        """The button that deletes points."""
        return self._button("MoreButton")

    def colorButton(self) -> QtWidgets.QToolButton:
        """The button that changes the colour."""
        return self._button("ColorButton")


@implements
class qSlicerSimpleMarkupsWidget(interface("qSlicerSimpleMarkupsWidget")):  # type: ignore[misc]
    """A selector of a markups node, with the table of its points."""

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        from .widget_api import widget_class

        self._selector = widget_class("qMRMLNodeComboBox")(self)
        self._selector.nodeTypes = ("vtkMRMLMarkupsNode",)
        self._selector.noneEnabled = True
        self._place = qSlicerMarkupsPlaceWidget(self)
        self._table = QtWidgets.QTableWidget(self)
        layout = QtWidgets.QVBoxLayout(self)
        for part in (self._selector, self._place, self._table):
            layout.addWidget(part)
        self._selector.currentNodeChanged.connect(self._on_node_changed)

    def setMRMLScene(self, scene: Any) -> None:
        """The scene of the selector."""
        super().setMRMLScene(scene)
        self._selector.setMRMLScene(scene)

    def setCurrentNode(self, node: Any) -> None:
        """Choose a markups node."""
        self._selector.setCurrentNode(node)

    def currentNode(self) -> Any:
        """The chosen markups node."""
        return self._selector.currentNode()

    def markupsSelectorComboBox(self) -> Any:
        """The selector."""
        return self._selector

    def markupsPlaceWidget(self) -> Any:
        """The buttons."""
        return self._place

    def tableWidget(self) -> QtWidgets.QTableWidget:
        """The table of points."""
        return self._table

    def setNodeBaseName(self, name: str) -> None:
        """The name of new nodes."""
        self._selector.setBaseName(name)

    def _on_node_changed(self, node: Any) -> None:
        self._place.setCurrentNode(node)
        self.markupsNodeChanged.emit()


@implements
class qMRMLTextWidget(interface("qMRMLTextWidget")):  # type: ignore[misc]
    """A text node in an editor."""

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        self._editor = QtWidgets.QTextEdit(self)
        QtWidgets.QVBoxLayout(self).addWidget(self._editor)

    def setMRMLTextNode(self, node: Any) -> None:
        """Show this node's text."""
        self.store("mRMLTextNode", node)
        self._editor.setPlainText(node.GetText() or "" if node is not None else "")

    def mrmlTextNode(self) -> Any:
        """The node that is shown."""
        return self.stored("mRMLTextNode")


class qMRMLUtils(QtCore.QObject):
    """Conversions between Qt's and VTK's images."""

    @staticmethod
    def qImageToVtkImageData(image: QtGui.QImage, target: Any) -> bool:
        """Copy a picture into a vtkImageData, RGBA, with VTK's origin at the lower left."""
        import numpy as np
        from vtk.util.numpy_support import numpy_to_vtk

        picture = image.convertToFormat(QtGui.QImage.Format.Format_RGBA8888)
        height, width = picture.height(), picture.width()
        pixels = np.frombuffer(picture.constBits(), np.uint8).reshape(height, picture.bytesPerLine() // 4, 4)[
            ::-1, :width
        ]
        target.SetDimensions(width, height, 1)
        target.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(pixels).reshape(-1, 4), deep=True))
        return True

    @staticmethod
    def vtkImageDataToQImage(source: Any, target: QtGui.QImage) -> bool:
        """Copy a vtkImageData of RGB or RGBA bytes into a picture."""
        target.swap(image_from_vtk(source))
        return True


def image_from_vtk(source: Any) -> QtGui.QImage:
    """A vtkImageData of RGB or RGBA bytes as a picture."""
    import numpy as np
    from vtk.util.numpy_support import vtk_to_numpy

    width, height, _ = source.GetDimensions()
    components = source.GetNumberOfScalarComponents()
    pixels = vtk_to_numpy(source.GetPointData().GetScalars()).reshape(height, width, components)[::-1]
    pixels = np.ascontiguousarray(pixels)
    kind = QtGui.QImage.Format.Format_RGB888 if components == 3 else QtGui.QImage.Format.Format_RGBA8888
    return QtGui.QImage(pixels.tobytes(), width, height, width * components, kind).copy()


NAMES = {"qMRMLUtils": qMRMLUtils}
