"""The part of the panel that shows a segmentation: volumes, surfaces, uncertainty, and what made it."""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from .SegmentationResult import (
    COMPUTED,
    MODEL,
    MODEL_TITLE,
    SECONDS,
    TABLE,
    TASK,
    TIME,
    UNCERTAINTY,
    VERSION,
    show3D,
    showUncertainty,
)


class ResultPanel:
    """Shows one segmentation node, or none."""

    def __init__(self, ui: Any) -> None:
        self._ui = ui
        self._node: Any = None
        ui.segmentationSelector.addAttribute("vtkMRMLSegmentationNode", TASK)
        ui.show3DButton.connect("clicked(bool)", self._onShow3D)
        ui.uncertaintyButton.connect("clicked(bool)", self._onUncertainty)
        self.show(None)

    def show(self, node: Any) -> None:
        """Show this segmentation node; None shows none."""
        self._node = node
        table = node.GetNodeReference(TABLE) if node is not None else None
        self._ui.volumesTable.setMRMLTableNode(table)
        self._ui.volumesTable.setVisible(table is not None)
        self._fitTable()
        display = node.GetDisplayNode() if node is not None else None
        self._ui.show3DButton.enabled = display is not None
        self._ui.show3DButton.checked = display is not None and bool(display.GetVisibility3D())
        uncertainty = node.GetNodeReference(UNCERTAINTY) if node is not None else None
        self._ui.uncertaintyButton.enabled = uncertainty is not None
        self._ui.uncertaintyButton.checked = uncertainty is not None and uncertainty in _foregrounds()
        self._ui.originLabel.text = origin(node) if node is not None else ""
        self._ui.originLabel.setVisible(node is not None)

    def _fitTable(self) -> None:
        """As high as its rows, as wide as the panel."""
        table = self._ui.volumesTable
        table.verticalHeader().setVisible(False)
        table.resizeColumnsToContents()
        table.resizeRowsToContents()
        if table.model() is not None and table.model().columnCount():
            table.horizontalHeader().setSectionResizeMode(0, qt.QHeaderView.Stretch)
        rows = table.model().rowCount() if table.model() is not None else 0
        height = table.horizontalHeader().sizeHint.height() + sum(table.rowHeight(row) for row in range(rows)) + 4
        table.setFixedHeight(height)

    def _onShow3D(self, shown: bool) -> None:
        with slicer.util.tryWithErrorDisplay(_("The surfaces could not be made."), waitCursor=True):
            show3D(self._node, shown)
            if shown:
                manager = slicer.app.layoutManager()
                for index in range(manager.threeDViewCount):
                    manager.threeDWidget(index).threeDView().resetFocalPoint()

    def _onUncertainty(self, shown: bool) -> None:
        with slicer.util.tryWithErrorDisplay(_("The uncertainty could not be shown.")):
            showUncertainty(self._node, shown)


def origin(node: Any) -> str:
    """What made a segmentation node, in one sentence; "" for one that was not made here."""
    if node.GetAttribute(TASK) is None:
        return ""
    return _("Model {title} ({hash}), {computed}, {seconds} s, {time}, TwinSegSlicer {version}").format(
        title=node.GetAttribute(MODEL_TITLE),
        hash=(node.GetAttribute(MODEL) or "")[:12],
        computed=node.GetAttribute(COMPUTED),
        seconds=node.GetAttribute(SECONDS),
        time=(node.GetAttribute(TIME) or "")[:16].replace("T", " "),
        version=node.GetAttribute(VERSION),
    )


def _foregrounds() -> list[Any]:
    """The volumes that lie over others in the slice views."""
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    ids = {composite.GetForegroundVolumeID() for composite in composites} - {None}
    return [slicer.mrmlScene.GetNodeByID(nodeId) for nodeId in ids]
