"""Parameters in the widgets of the Markups and SubjectHierarchy modules, which these modules connect in Slicer."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.parameterNodeWrapper import GuiConnector, getNodeTypes, isNodeOrUnionOfNodes, parameterNodeGuiConnector

# Widget -> the signal that tells of another node.
SIGNALS = {
    "qSlicerSimpleMarkupsWidget": "markupsNodeChanged",
    "qMRMLSubjectHierarchyTreeView": "currentItemChanged",
    "qMRMLSubjectHierarchyComboBox": "currentItemChanged",
}


@parameterNodeGuiConnector
class NodeWidgetConnector(GuiConnector):
    """A node class, or a union of them, in one of these widgets."""

    @staticmethod
    def canRepresent(widget: Any, datatype: Any) -> bool:
        return type(widget).__name__ in SIGNALS and isNodeOrUnionOfNodes(datatype)

    @staticmethod
    def create(widget: Any, datatype: Any) -> Any:
        return NodeWidgetConnector(widget, datatype) if NodeWidgetConnector.canRepresent(widget, datatype) else None

    def __init__(self, widget: Any, datatype: Any):
        super().__init__()
        self._widget = widget
        self._signal = SIGNALS[type(widget).__name__]
        holder = widget.markupsSelectorComboBox() if isinstance(widget, slicer.qSlicerSimpleMarkupsWidget) else widget
        holder.nodeTypes = getNodeTypes(datatype)

    def _connect(self) -> None:
        getattr(self._widget, self._signal).connect(self.changed)

    def _disconnect(self) -> None:
        getattr(self._widget, self._signal).disconnect(self.changed)

    def widget(self) -> Any:
        return self._widget

    def read(self) -> Any:
        return self._widget.currentNode()

    def write(self, value: Any) -> None:
        self._widget.setCurrentNode(value)
