"""The nodes of a twin in the scene: found again by what they are, filed by patient and date."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slicer

from .BatchCases import removeWithDisplay
from .Sequences import RESULT_ATTRIBUTE

# Attributes of the nodes; they are saved with the scene.
TWIN, PART = "TwinSeg.Twin", "TwinSeg.TwinPart"


class TwinNodes:
    """The nodes of one patient. A part is what a node is for, such as "chart"; there is one node a part."""

    def __init__(self, pseudonym: str) -> None:
        self.pseudonym = pseudonym

    def find(self, part: str) -> Any:
        """The node of a part; None where there is none."""
        return next((node for node in self.all() if node.GetAttribute(PART) == part), None)

    def all(self, prefix: str = "") -> list[Any]:
        """All nodes of the patient whose part begins so."""
        nodes = slicer.util.getNodesByClass("vtkMRMLNode")
        mine = [node for node in nodes if node.GetAttribute(TWIN) == self.pseudonym]
        return [node for node in mine if (node.GetAttribute(PART) or "").startswith(prefix)]

    def make(self, className: str, part: str, name: str, day: float | None = None) -> Any:
        """The node of a part, made if there is none, below the patient or the study of a day."""
        node = self.find(part)
        if node is None:
            node = slicer.mrmlScene.CreateNodeByClass(className)
            node.UnRegister(None)
            node.SetName(f"{self.pseudonym} {name}")
            for attribute, value in ((TWIN, self.pseudonym), (PART, part), (RESULT_ATTRIBUTE, part)):
                node.SetAttribute(attribute, value)  # the last: it is no input of a segmentation
            slicer.mrmlScene.AddNode(node)  # only now: each change of a node of the scene costs every selector a look
            self.file(node, day)
        return node

    def remove(self, prefix: str) -> None:
        """Take the nodes whose part begins so out of the scene."""
        for node in self.all(prefix):
            if node.IsA("vtkMRMLStorableNode"):
                removeWithDisplay([node])
            else:
                slicer.mrmlScene.RemoveNode(node)

    def file(self, node: Any, day: float | None = None) -> None:
        """Put a node below the patient in the subject hierarchy, or below the study of a day."""
        hierarchy = _hierarchy()
        if item := hierarchy.GetItemByDataNode(node):
            hierarchy.SetItemParent(item, self._patient() if day is None else self._study(day))

    def _patient(self) -> int:
        hierarchy = _hierarchy()
        found = hierarchy.GetItemChildWithName(hierarchy.GetSceneItemID(), self.pseudonym)
        return int(found or hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), self.pseudonym))

    def _study(self, day: float) -> int:
        hierarchy, name = _hierarchy(), f"Day {day:g}"
        found = hierarchy.GetItemChildWithName(self._patient(), name)
        return int(found or hierarchy.CreateStudyItem(self._patient(), name))


def copyInto(sequence: Any, node: Any, value: str) -> Any:
    """Put a copy of a node into a sequence; it is returned, and is not taken for the node itself."""
    copy = sequence.SetDataNodeAtValue(node, value)
    for name in (TWIN, PART):
        copy.RemoveAttribute(name)
    return copy


def makeColors(nodes: TwinNodes, part: str, name: str, colors: Sequence[tuple[str, tuple[float, ...]]]) -> Any:
    """A colour table: a name and RGBA (0 to 1) for each value from 0 on."""
    table = nodes.find(part)
    if table is None:
        table = nodes.make("vtkMRMLColorTableNode", part, name)
        wasModifying = table.StartModify()
        table.SetTypeToUser()
        table.SetNumberOfColors(len(colors))
        for value, (title, rgba) in enumerate(colors):
            table.SetColor(value, title, *rgba)
        table.EndModify(wasModifying)
    return table


def _hierarchy() -> Any:
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
