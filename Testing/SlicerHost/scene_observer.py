"""Observers of the scene: those of widgets that show its nodes, and those that modules leave behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import shiboken6
import vtk
from PySide6 import QtCore
from slicer import vtkMRMLNode, vtkMRMLScene

# Name of an event for the widget -> the scene's event.
SCENE_EVENTS = {
    "added": vtkMRMLScene.NodeAddedEvent,
    "removed": vtkMRMLScene.NodeRemovedEvent,
    "closed": vtkMRMLScene.EndCloseEvent,
    "imported": vtkMRMLScene.EndImportEvent,
    "restored": vtkMRMLScene.EndBatchProcessEvent,
}


def while_alive(owner: QtCore.QObject, callback: Callable[..., Any]) -> Callable[..., Any]:
    """``callback`` for an observer, which is not called any more once Qt has deleted the widget that it belongs to."""

    def call(*arguments: Any) -> None:
        if shiboken6.isValid(owner):
            callback(*arguments)

    return call


class ModuleObservers:
    """Notes the observers that modules add to the scene. In Slicer, one that a module has not removed ends with the
    application; here, another module or test would follow, and the observer would act on a panel that is gone."""

    def __init__(self, scene: Any):
        self._scene = scene
        self._tags: list[int] = []
        scene.AddObserver = self._add

    def _add(self, *arguments: Any) -> int:
        tag = vtkMRMLScene.AddObserver(self._scene, *arguments)
        self._tags.append(tag)
        return tag

    def remove(self) -> None:
        """Remove all that are still there."""
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._tags.clear()


class SceneObserver:
    """Calls ``on_change(event, node)`` when a node comes, goes or is renamed, or the whole scene changes, as long as Qt
    has not deleted the widget ``owner``."""

    def __init__(self, on_change: Callable[[str, Any], None], owner: QtCore.QObject | None = None):
        self._on_change = on_change if owner is None else while_alive(owner, on_change)
        self._scene: Any = None
        self._tags: list[tuple[Any, int]] = []
        self._node_tags: dict[str, tuple[Any, int]] = {}

    def observe(self, scene: Any) -> None:
        """Leave the scene observed so far and observe this one; None only leaves."""
        for subject, tag in [*self._tags, *self._node_tags.values()]:
            subject.RemoveObserver(tag)
        self._tags, self._node_tags = [], {}
        self._scene = scene
        if scene is None:
            return
        for name, event in SCENE_EVENTS.items():
            self._tags.append((scene, vtkMRMLScene.AddObserver(scene, event, self._callback(name))))
        nodes = scene.GetNodes()
        for index in range(nodes.GetNumberOfItems()):
            self._observe_node(nodes.GetItemAsObject(index))

    def _observe_node(self, node: Any) -> None:
        """Names and attributes decide whether and how a node is listed."""
        if (
            node.IsA("vtkMRMLDisplayableNode")
            or node.IsA("vtkMRMLStorableNode")
            or node.IsA("vtkMRMLScriptedModuleNode")
        ):
            shown = [node.GetName(), node.GetAttributeNames()]

            def on_modified(caller: Any, _: str) -> None:
                now = [caller.GetName(), caller.GetAttributeNames()]
                if now != shown:
                    shown[:] = now
                    self._on_change("modified", caller)

            self._node_tags[node.GetAddressAsString("")] = (
                node,
                node.AddObserver(vtk.vtkCommand.ModifiedEvent, on_modified),
            )

    def _callback(self, name: str) -> Callable[..., None]:
        @vtk.calldata_type(vtk.VTK_OBJECT)
        def on_event(caller: Any, event: str, node: Any) -> None:
            if name == "added":
                self._observe_node(node)
            elif name == "removed" and node is not None:
                subject, tag = self._node_tags.pop(node.GetAddressAsString(""), (None, 0))
                if subject is not None:
                    subject.RemoveObserver(tag)
            if self._scene is not None and (not self._scene.IsBatchProcessing() or name == "removed"):
                self._on_change(name, node if isinstance(node, vtkMRMLNode) else None)

        def on_plain_event(caller: Any, event: str) -> None:
            self._on_change(name, None)

        return on_event if name in ("added", "removed") else on_plain_event
