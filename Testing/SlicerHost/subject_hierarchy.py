"""The subject hierarchy: its items follow the scene's nodes, and the widgets that choose among them.

In Slicer, plugins in C++ and Qt make an item for every data node. Here each visible data node gets one below the scene.
"""

from __future__ import annotations

from typing import Any

import slicer
import vtk
from PySide6 import QtGui, QtWidgets

from .qt_facade import native
from .scene_observer import SceneObserver
from .widget_api import as_strings, implements, interface

DATA_CLASSES = (
    "vtkMRMLDisplayableNode", "vtkMRMLTableNode", "vtkMRMLTextNode", "vtkMRMLPlotChartNode", "vtkMRMLPlotSeriesNode",
    "vtkMRMLSequenceNode", "vtkMRMLSequenceBrowserNode", "vtkMRMLScriptedModuleNode",
)  # fmt: skip
ITEM_ROLE = 0x0100  # Qt.UserRole


def hierarchy_node(scene: Any) -> Any:
    """The scene's subject hierarchy, made if there is none; None without a scene."""
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene) if scene is not None else None


def has_item(node: Any) -> bool:
    """Whether a node is shown in the hierarchy."""
    return not node.GetHideFromEditors() and any(node.IsA(kind) for kind in DATA_CLASSES)


class HierarchyFollower:
    """Makes an item for every data node that comes into the scene, and takes it away with the node."""

    def __init__(self, scene: Any):
        self._scene = scene
        self._observer = SceneObserver(self._on_changed)
        self._observer.observe(scene)

    def _on_changed(self, event: str, node: Any) -> None:
        if self._scene.IsClosing() and event != "closed":
            return  # the hierarchy goes as well
        # Makes the hierarchy anew after the scene was closed, and takes in what was read with an imported scene.
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.ResolveSubjectHierarchy(self._scene)
        if event == "removed":
            item = hierarchy.GetItemByDataNode(node) if node is not None else 0
            if item:
                hierarchy.RemoveItem(item, False, False)
            return
        nodes = self._scene.GetNodes()
        arrived = [node] if event == "added" else [nodes.GetItemAsObject(i) for i in range(nodes.GetNumberOfItems())]
        for candidate in arrived:
            if has_item(candidate) and not hierarchy.GetItemByDataNode(candidate):
                hierarchy.CreateItem(hierarchy.GetSceneItemID(), candidate)


class qMRMLSortFilterSubjectHierarchyProxyModel:
    """What a view of the hierarchy lists: the view's own filter, under the name that it has in Slicer."""

    def __init__(self, view: Any):
        self._view = view

    @property
    def nodeTypes(self) -> tuple[str, ...]:
        """Only items of nodes of these classes; all where it is empty."""
        return as_strings(self._view.nodeTypes)

    @nodeTypes.setter
    def nodeTypes(self, types: Any) -> None:
        self._view.setNodeTypes(types)

    def setNodeTypes(self, types: Any) -> None:
        """Only items of nodes of these classes; all where it is empty."""
        self._view.setNodeTypes(types)

    def setNameFilter(self, text: str) -> None:
        """Only items whose name contains this."""
        self._view.setNameFilter(text)

    def acceptedItemCount(self, root_item: int = 0) -> int:
        """How many items are listed."""
        return len(self._view.listed_items())


class ChoosesItem:
    """The current item of a view of the hierarchy, among those whose nodes have one of the node types."""

    def setMRMLScene(self: Any, scene: Any) -> None:
        """Show the hierarchy of this scene."""
        self._scene = scene
        self._current = 0
        self._observer = SceneObserver(lambda event, node: self._on_scene_changed(), self)
        self._observer.observe(scene)
        self._show()

    def mrmlScene(self: Any) -> Any:
        """The scene."""
        return self.__dict__.get("_scene")

    def subjectHierarchyNode(self: Any) -> Any:
        """The hierarchy."""
        return hierarchy_node(self.mrmlScene())

    def setNodeTypes(self: Any, types: Any) -> None:
        """Only items of nodes of these classes; all where it is empty."""
        self.store("nodeTypes", as_strings(types))
        self._show()

    def setNameFilter(self: Any, text: str) -> None:
        """Only items whose name contains this."""
        self.store("nameFilter", text)
        self._show()

    def sortFilterProxyModel(self: Any) -> qMRMLSortFilterSubjectHierarchyProxyModel:
        """The filter, through which modules set what is listed."""
        return qMRMLSortFilterSubjectHierarchyProxyModel(self)

    def listed_items(self: Any) -> list[int]:
        """The items that can be chosen."""
        hierarchy = self.subjectHierarchyNode()
        if hierarchy is None:
            return []
        children = vtk.vtkIdList()
        hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), children, True)
        items = [children.GetId(index) for index in range(children.GetNumberOfIds())]
        kinds, text = as_strings(self.nodeTypes), (self.stored("nameFilter") or "").lower()
        of_kind = [item for item in items if not kinds or self._is_of(hierarchy.GetItemDataNode(item), kinds)]
        return [item for item in of_kind if text in hierarchy.GetItemName(item).lower()]

    @staticmethod
    def _is_of(node: Any, kinds: tuple[str, ...]) -> bool:
        return node is not None and any(node.IsA(kind) for kind in kinds)

    def currentItem(self: Any) -> int:
        """The chosen item's ID, 0 for none."""
        return self.__dict__.get("_current", 0)

    def setCurrentItem(self: Any, item: int) -> None:
        """Choose an item by its ID, 0 for none."""
        if item != self.currentItem():
            self._current = item
            self._show()
            self._announce()

    def setCurrentNode(self: Any, node: Any) -> None:
        """Choose the item of a node."""
        self.setCurrentItem(self.subjectHierarchyNode().GetItemByDataNode(node) if node is not None else 0)

    def currentNode(self: Any) -> Any:
        """The node of the chosen item, or None."""
        return self.subjectHierarchyNode().GetItemDataNode(self.currentItem()) if self.currentItem() else None

    def clearSelection(self: Any) -> None:
        """Choose none."""
        self.setCurrentItem(0)

    def _announce(self: Any) -> None:
        self.currentItemChanged.emit(self.currentItem())

    def _on_scene_changed(self: Any) -> None:
        if self.currentItem() and self.currentItem() not in self.listed_items():
            self.setCurrentItem(0)
        self._show()


@native
class qMRMLSubjectHierarchyModel(QtGui.QStandardItemModel):
    """The rows of a tree view: a row an item, below the row of its parent."""

    nameColumn, descriptionColumn, visibilityColumn, colorColumn, transformColumn, idColumn = range(6)

    def __init__(self, parent: Any = None):
        super().__init__(parent)
        self.setHorizontalHeaderLabels(["Node", "Description", "", "", "", "IDs"])

    def show_items(self, hierarchy: Any, items: list[int]) -> None:
        """List these items anew; a parent must come before its children."""
        self.removeRows(0, self.rowCount())
        rows: dict[int, QtGui.QStandardItem] = {}
        for item in items:
            row = self._make_row(hierarchy.GetItemName(item), hierarchy.GetItemDataNode(item))
            row[self.nameColumn].setData(item, ITEM_ROLE)
            rows.get(hierarchy.GetItemParent(item), self.invisibleRootItem()).appendRow(row)
            rows[item] = row[self.nameColumn]

    def _make_row(self, name: str, node: Any) -> list[QtGui.QStandardItem]:
        texts = [name, "", "", "", "", ""]
        display = node.GetDisplayNode() if hasattr(node, "GetDisplayNode") else None
        if node is not None:
            texts[self.descriptionColumn] = node.GetDescription() or ""
            texts[self.idColumn] = node.GetID()
        if hasattr(node, "GetParentTransformNode") and node.GetParentTransformNode() is not None:
            texts[self.transformColumn] = node.GetParentTransformNode().GetName()
        row = [QtGui.QStandardItem(text) for text in texts]
        if display is not None:
            row[self.visibilityColumn].setText("shown" if display.GetVisibility() else "hidden")
            row[self.colorColumn].setBackground(QtGui.QColor.fromRgbF(*display.GetColor()))
        return row


@implements
class qMRMLSubjectHierarchyTreeView(ChoosesItem, interface("qMRMLSubjectHierarchyTreeView")):  # type: ignore[misc]
    """The hierarchy as a tree; without its context menus."""

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        self.setModel(qMRMLSubjectHierarchyModel(self))
        self.clicked.connect(lambda index: self.setCurrentItem(index.data(ITEM_ROLE) or 0))

    def currentItems(self) -> list[int]:
        """The chosen items."""
        return [self.currentItem()] if self.currentItem() else []

    def setCurrentItems(self, items: Any) -> None:
        """Choose the first of these."""
        self.setCurrentItem(next(iter(items), 0))

    def _announce(self) -> None:
        super()._announce()
        self.currentItemsChanged.emit(self.currentItems())
        self.currentNodeChanged.emit(self.currentNode())

    def _show(self) -> None:
        self.model().show_items(self.subjectHierarchyNode(), self.listed_items())


@implements
class qMRMLSubjectHierarchyComboBox(ChoosesItem, interface("qMRMLSubjectHierarchyComboBox")):  # type: ignore[misc]
    """The hierarchy in a drop-down list."""

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        self.activated.connect(lambda index: self.setCurrentItem(self.itemData(index) or 0))

    def _show(self) -> None:
        was_blocked = self.blockSignals(True)
        self.clear()
        if self.noneEnabled:
            self.addItem(self.noneDisplay or "None", 0)
        for item in self.listed_items():
            self.addItem(self.subjectHierarchyNode().GetItemName(item), item)
        self.setCurrentIndex(self.findData(self.currentItem()))
        self.blockSignals(was_blocked)


NAMES = {"qMRMLSubjectHierarchyModel": qMRMLSubjectHierarchyModel}
