"""The widgets of segmentations: the table of segments, the segment selector, and a stand-in for the editor."""

from __future__ import annotations

from typing import Any

import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from slicer import vtkSegmentation

from .node_combo_box import qMRMLNodeComboBox
from .scene_observer import while_alive
from .widget_api import as_strings, implements, interface
from .widgets_mrml import qMRMLWidget

Qt = QtCore.Qt


def segment_ids(node: Any) -> list[str]:
    """The IDs of a segmentation node's segments, in order; empty for None."""
    segmentation = node.GetSegmentation() if node is not None else None
    return list(segmentation.GetSegmentIDs()) if segmentation is not None else []


TABLE_DEFAULTS = {
    "visibilityColumnVisible": True,
    "colorColumnVisible": True,
    "opacityColumnVisible": True,
    "statusColumnVisible": True,
    "headerVisible": True,
    "hideSegments": (),
}


class FollowsSegmentation:
    """Observes one segmentation node and calls ``_show`` when its segments change."""

    EVENTS = (
        vtkSegmentation.SegmentAdded,
        vtkSegmentation.SegmentRemoved,
        vtkSegmentation.SegmentModified,
        vtkSegmentation.SegmentsOrderModified,
    )

    def _follow(self: Any, node: Any) -> None:
        for subject, tag in self.__dict__.get("_observed", []):
            subject.RemoveObserver(tag)
        self._observed = []
        self._segmentation = node
        if node is not None:
            segmentation = node.GetSegmentation()
            show = while_alive(self, lambda *_: self._show())
            self._observed = [(segmentation, segmentation.AddObserver(event, show)) for event in self.EVENTS]
            self._observed.append((node, node.AddObserver(vtk.vtkCommand.ModifiedEvent, show)))
        self._show()

    def segmentationNode(self: Any) -> Any:
        """The segmentation node, or None."""
        return self.__dict__.get("_segmentation")


@implements
class qMRMLSegmentsTableView(FollowsSegmentation, interface("qMRMLSegmentsTableView", **TABLE_DEFAULTS)):  # type: ignore[misc]
    """One row a segment: visibility, colour, opacity, name."""

    HEADERS = ("", "Color", "Opacity", "Name")
    NAME = 3  # column of the name; its cell holds the segment's ID

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        self._table = QtWidgets.QTableWidget(0, len(self.HEADERS), self)
        self._table.setHorizontalHeaderLabels(list(self.HEADERS))
        self._table.setSelectionBehavior(QtWidgets.QAbstractItemView.SelectionBehavior.SelectRows)
        self._table.horizontalHeader().setStretchLastSection(True)
        self._table.verticalHeader().hide()
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._table)
        self._table.selectionModel().selectionChanged.connect(lambda a, b: self.selectionChanged.emit(a, b))
        self._table.itemChanged.connect(self._on_item_changed)

    def setSegmentationNode(self, node: Any) -> None:
        """Show the segments of this node; None shows none."""
        self._follow(node)

    def tableWidget(self) -> QtWidgets.QTableWidget:
        """The table."""
        return self._table

    def displayedSegmentIDs(self) -> tuple[str, ...]:
        """The IDs of the rows, top to bottom."""
        hidden = set(as_strings(self.stored("hideSegments")))
        text = self.textFilter.lower()
        return tuple(
            segment_id
            for segment_id in segment_ids(self.segmentationNode())
            if segment_id not in hidden and text in self._segment(segment_id).GetName().lower()
        )

    def segmentCount(self) -> int:
        """How many segments the node has."""
        return len(segment_ids(self.segmentationNode()))

    def selectedSegmentIDs(self) -> tuple[str, ...]:
        """The IDs of the selected rows."""
        rows = sorted({index.row() for index in self._table.selectionModel().selectedRows()})
        return tuple(self.segmentIDForRow(row) for row in rows)

    def setSelectedSegmentIDs(self, ids: Any) -> None:
        """Select these rows and no others."""
        wanted = as_strings(ids)
        selection = QtCore.QItemSelection()
        model = self._table.model()
        for row, segment_id in enumerate(self.displayedSegmentIDs()):
            if segment_id in wanted:
                selection.select(model.index(row, 0), model.index(row, self.NAME))
        self._table.selectionModel().select(selection, QtCore.QItemSelectionModel.SelectionFlag.ClearAndSelect)

    def clearSelection(self) -> None:
        """Select none."""
        self._table.clearSelection()

    def setHideSegments(self, ids: Any) -> None:
        """Leave these segments out."""
        self.store("hideSegments", as_strings(ids))
        self._show()

    def hideSegments(self) -> tuple[str, ...]:
        """The segments that are left out."""
        return as_strings(self.stored("hideSegments"))

    def setTextFilter(self, text: str) -> None:
        """List only segments whose name contains this."""
        self.store("textFilter", text)
        self._show()

    def setSelectionMode(self, mode: int) -> None:
        """One of QAbstractItemView's selection modes."""
        self.store("selectionMode", int(mode))
        self._table.setSelectionMode(QtWidgets.QAbstractItemView.SelectionMode(int(mode)))

    def setHeaderVisible(self, visible: bool) -> None:
        """Show or hide the header."""
        self.store("headerVisible", bool(visible))
        self._table.horizontalHeader().setVisible(visible)

    def rowForSegmentID(self, segment_id: str) -> int:
        """The row of a segment, -1 if it is not listed."""
        ids = self.displayedSegmentIDs()
        return ids.index(segment_id) if segment_id in ids else -1

    def segmentIDForRow(self, row: int) -> str:
        """The segment in a row, "" if there is none."""
        ids = self.displayedSegmentIDs()
        return ids[row] if 0 <= row < len(ids) else ""

    def showOnlySelectedSegments(self) -> None:
        """Hide the others in the views."""
        display = self.segmentationNode().GetDisplayNode()
        for segment_id in self.displayedSegmentIDs():
            display.SetSegmentVisibility(segment_id, segment_id in self.selectedSegmentIDs())

    def _segment(self, segment_id: str) -> Any:
        return self.segmentationNode().GetSegmentation().GetSegment(segment_id)

    def _show(self) -> None:
        if "_table" not in self.__dict__:
            return
        selected = self.selectedSegmentIDs() if self._table.rowCount else ()
        was_blocked = self._table.blockSignals(True)
        ids = self.displayedSegmentIDs()
        self._table.setRowCount(len(ids))
        display = self.segmentationNode().GetDisplayNode() if self.segmentationNode() is not None else None
        for row, segment_id in enumerate(ids):
            segment = self._segment(segment_id)
            shown = QtWidgets.QTableWidgetItem()
            visible = display is None or display.GetSegmentVisibility(segment_id)
            shown.setCheckState(Qt.CheckState.Checked if visible else Qt.CheckState.Unchecked)
            color = QtWidgets.QTableWidgetItem()
            color.setBackground(QtGui.QColor.fromRgbF(*segment.GetColor()))
            opacity = QtWidgets.QTableWidgetItem(
                f"{display.GetSegmentOpacity3D(segment_id):.2f}" if display else "1.00"
            )
            name = QtWidgets.QTableWidgetItem(segment.GetName())
            name.setData(Qt.ItemDataRole.UserRole, segment_id)
            for column, item in enumerate((shown, color, opacity, name)):
                self._table.setItem(row, column, item)
        self._table.blockSignals(was_blocked)
        if selected:
            self.setSelectedSegmentIDs(selected)

    def _on_item_changed(self, item: QtWidgets.QTableWidgetItem) -> None:
        segment_id = self.segmentIDForRow(item.row())
        if item.column() == self.NAME and item.text() and item.text() != self._segment(segment_id).GetName():
            self.segmentAboutToBeModified.emit(segment_id)
            self._segment(segment_id).SetName(item.text())
        elif item.column() == 0:
            self.segmentAboutToBeModified.emit(segment_id)
            shown = item.checkState() == Qt.CheckState.Checked
            self.segmentationNode().GetDisplayNode().SetSegmentVisibility(segment_id, shown)


SELECTOR = interface("qMRMLSegmentSelectorWidget", segmentationNodeSelectorVisible=True)


@implements
class qMRMLSegmentSelectorWidget(FollowsSegmentation, SELECTOR):  # type: ignore[misc,valid-type]
    """A selector of a segmentation node with a selector of one of its segments."""

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        self._nodes = qMRMLNodeComboBox(self)
        self._nodes.nodeTypes = ("vtkMRMLSegmentationNode",)
        self._segments = QtWidgets.QComboBox(self)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._nodes)
        layout.addWidget(self._segments)
        self._nodes.currentNodeChanged.connect(self._on_node_changed)
        self._segments.currentIndexChanged.connect(lambda: self.currentSegmentChanged.emit(self.currentSegmentID()))

    def setMRMLScene(self, scene: Any) -> None:
        """The scene of the node selector."""
        qMRMLWidget.setMRMLScene(self, scene)
        self._nodes.setMRMLScene(scene)

    def setNoneEnabled(self, enabled: bool) -> None:
        """Whether no segmentation may be chosen."""
        self.store("noneEnabled", bool(enabled))
        self._nodes.setNoneEnabled(enabled)

    def setCurrentNode(self, node: Any) -> None:
        """Choose a segmentation node."""
        self._nodes.setCurrentNode(node)

    def setCurrentNodeID(self, node_id: str) -> None:
        """Choose a segmentation node by its ID."""
        self._nodes.setCurrentNodeID(node_id)

    def currentNode(self) -> Any:
        """The segmentation node."""
        return self._nodes.currentNode()

    def currentNodeID(self) -> str:
        """The ID of the segmentation node."""
        return self._nodes.currentNodeID

    def currentSegmentID(self) -> str:
        """The ID of the chosen segment, "" for none."""
        return self._segments.currentData or ""

    def setCurrentSegmentID(self, segment_id: str) -> None:
        """Choose a segment."""
        self._segments.setCurrentIndex(self._segments.findData(segment_id))

    def selectedSegmentIDs(self) -> tuple[str, ...]:
        """The chosen segment, as a list."""
        return (self.currentSegmentID(),) if self.currentSegmentID() else ()

    def segmentationNodeComboBox(self) -> qMRMLNodeComboBox:
        """The node selector."""
        return self._nodes

    def _on_node_changed(self, node: Any) -> None:
        self._follow(node)
        self.currentNodeChanged.emit(node)

    def _show(self) -> None:
        if "_segments" not in self.__dict__:
            return
        chosen = self.currentSegmentID()
        ids = segment_ids(self.segmentationNode())
        self._segments.blockSignals(True)
        self._segments.clear()
        for segment_id in ids:
            self._segments.addItem(
                self.segmentationNode().GetSegmentation().GetSegment(segment_id).GetName(), segment_id
            )
        self._segments.setCurrentIndex(max(0, self._segments.findData(chosen)) if ids else -1)
        self._segments.blockSignals(False)
        if self.currentSegmentID() != chosen:
            self.currentSegmentChanged.emit(self.currentSegmentID())


@implements
class qMRMLSegmentEditorWidget(interface("qMRMLSegmentEditorWidget")):  # type: ignore[misc]
    """Holds the nodes of the segment editor. It has no effects: those are C++ and Python plugins of the application."""

    def mrmlSegmentEditorNode(self) -> Any:
        """The parameter node of the editor."""
        return self.stored("mRMLSegmentEditorNode")

    def setMRMLSegmentEditorNode(self, node: Any) -> None:
        """The parameter node of the editor."""
        self.store("mRMLSegmentEditorNode", node)

    def segmentationNode(self) -> Any:
        """The edited segmentation."""
        return self.stored("segmentationNode")

    def setSegmentationNode(self, node: Any) -> None:
        """The segmentation to edit; its first segment is chosen."""
        if self.mrmlSegmentEditorNode() is not None:
            self.mrmlSegmentEditorNode().SetAndObserveSegmentationNode(node)
        if self.store("segmentationNode", node):
            self.setCurrentSegmentID(next(iter(segment_ids(node)), ""))

    def sourceVolumeNode(self) -> Any:
        """The volume that is segmented."""
        return self.stored("sourceVolumeNode")

    def setSourceVolumeNode(self, node: Any) -> None:
        """The volume that is segmented; it gives the geometry of a segmentation that has none yet."""
        if self.mrmlSegmentEditorNode() is not None:
            self.mrmlSegmentEditorNode().SetAndObserveSourceVolumeNode(node)
        self.store("sourceVolumeNode", node)

    setMasterVolumeNode = setSourceVolumeNode
    masterVolumeNode = sourceVolumeNode

    def segmentationNodeID(self) -> str:
        """The ID of the edited segmentation, "" for none."""
        return self.segmentationNode().GetID() if self.segmentationNode() is not None else ""

    def setSegmentationNodeID(self, node_id: str) -> None:
        """The segmentation to edit, by its ID."""
        self.setSegmentationNode(self.mrmlScene().GetNodeByID(node_id) if node_id else None)

    def sourceVolumeNodeID(self) -> str:
        """The ID of the volume that is segmented, "" for none."""
        return self.sourceVolumeNode().GetID() if self.sourceVolumeNode() is not None else ""

    def setSourceVolumeNodeID(self, node_id: str) -> None:
        """The volume that is segmented, by its ID."""
        self.setSourceVolumeNode(self.mrmlScene().GetNodeByID(node_id) if node_id else None)

    setMasterVolumeNodeID = setSourceVolumeNodeID
    masterVolumeNodeID = sourceVolumeNodeID

    def currentSegmentID(self) -> str:
        """The ID of the chosen segment."""
        return self.stored("currentSegmentID") or ""

    def setCurrentSegmentID(self, segment_id: str) -> None:
        """Choose a segment."""
        if self.mrmlSegmentEditorNode() is not None:
            self.mrmlSegmentEditorNode().SetSelectedSegmentID(segment_id)
        self.store("currentSegmentID", segment_id)

    def activeEffect(self) -> None:
        """Always None: there are no effects here."""
        return None

    def setActiveEffectByName(self, name: str) -> None:
        """Only "" (no effect) can be set."""
        if name:
            raise NotImplementedError(f"SlicerHost has no segment editor effects, so {name!r} can not be activated")

    def effectByName(self, name: str) -> None:
        """None: there are no effects here."""
        return None

    def availableEffectNames(self) -> tuple[str, ...]:
        """No effects."""
        return ()
