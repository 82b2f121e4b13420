"""Volumes of shares, from 0 to 1, that are laid over an image: yellow (little) to red (all), clear where there is
hardly any."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

COLORS_ATTRIBUTE = "TwinSeg.ShareColors"


def drawAsShares(node: Any, lowest: float) -> None:
    """Give a scalar volume node such a display; below the share `lowest` it is clear."""
    display = node.GetDisplayNode()
    if display is None:  # not by CreateDefaultDisplayNodes, which first looks for a window in all voxels: 200 ms
        display = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeDisplayNode")
        node.SetAndObserveDisplayNodeID(display.GetID())
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0.0, 1.0)
    display.AutoThresholdOff()
    display.SetThreshold(lowest, 1.0)
    display.ApplyThresholdOn()
    display.SetAndObserveColorNodeID(_colors().GetID())


def _colors() -> Any:
    """One colour node a scene."""
    for node in slicer.util.getNodesByClass("vtkMRMLColorTableNode"):
        if node.GetAttribute(COLORS_ATTRIBUTE):
            return node
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLColorTableNode", _("Shares"))
    wasModifying = node.StartModify()
    node.SetTypeToUser()
    node.SetNumberOfColors(256)
    for index in range(256):
        share = index / 255
        node.SetColor(index, f"{share:.0%}", 1.0, 1 - share, 0.3 * (1 - share), 1.0)
    node.EndModify(wasModifying)
    node.SetAttribute(COLORS_ATTRIBUTE, "1")
    return node
