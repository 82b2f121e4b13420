"""qMRMLNodeComboBox: choose, add, rename and delete a node of the scene."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

from .scene_observer import SceneObserver
from .widget_api import as_strings, implements, interface

Qt = QtCore.Qt
BOX_DEFAULTS = {
    "noneDisplay": "None",
    "showChildNodeTypes": True,
    "selectNodeUponCreation": True,
    "addEnabled": True,
    "removeEnabled": True,
    "interactionNodeSingletonTag": "Singleton",
}


@implements
class qMRMLNodeComboBox(interface("qMRMLNodeComboBox", **BOX_DEFAULTS)):  # type: ignore[misc]
    """A list of the nodes of some classes, filtered by attributes, with an entry for none and a menu of actions."""

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        self._scene: Any = None
        self._observer = SceneObserver(self._on_scene_changed, self)
        self._node: Any = None
        self._requested: Any = None  # chosen before there was a scene
        self._row = 0  # of the current node
        self._filters: dict[str, dict[str, Any]] = {}
        self._base_names: dict[str, str] = {}
        self._labels: dict[str, str] = {}
        self._menu_actions: list[QtGui.QAction] = []
        self._combo_box = QtWidgets.QComboBox(self)
        self._combo_box.activated.connect(self._on_activated)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo_box)

    # The scene and which of its nodes are listed

    def mrmlScene(self) -> Any:
        """The scene, None until it is set."""
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        """List the nodes of this scene; the first becomes current unless none is allowed."""
        self._scene = scene
        self._observer.observe(scene)
        self.setEnabled(scene is not None)
        self._combo_box.clear()
        requested, self._requested = self._requested, None
        self._refresh()
        if requested is not None and scene is not None:
            self.setCurrentNode(requested)

    def setNodeTypes(self, types: Any) -> None:
        """Class names of the nodes to list."""
        if self.store("nodeTypes", as_strings(types)):
            self._refresh()

    def setShowHidden(self, show: bool) -> None:
        """Also list nodes that are hidden from editors."""
        self.store("showHidden", bool(show))
        self._refresh()

    def setShowChildNodeTypes(self, show: bool) -> None:
        """Whether a node of a derived class is listed."""
        self.store("showChildNodeTypes", bool(show))
        self._refresh()

    def setHideChildNodeTypes(self, types: Any) -> None:
        """Derived classes that are not listed."""
        self.store("hideChildNodeTypes", as_strings(types))
        self._refresh()

    def setNoneEnabled(self, enabled: bool) -> None:
        """Whether the user may choose no node."""
        self.store("noneEnabled", bool(enabled))
        self._refresh()

    def setAddEnabled(self, enabled: bool) -> None:
        """Whether the user may create a node."""
        self.store("addEnabled", bool(enabled))
        self._show_list()

    def setRemoveEnabled(self, enabled: bool) -> None:
        """Whether the user may delete the current node."""
        self.store("removeEnabled", bool(enabled))
        self._show_list()

    def setRenameEnabled(self, enabled: bool) -> None:
        """Whether the user may rename the current node."""
        self.store("renameEnabled", bool(enabled))
        self._show_list()

    def setNoneDisplay(self, text: str) -> None:
        """The text of the entry for no node."""
        self.store("noneDisplay", text)
        self._refresh()

    def addAttribute(self, node_type: str, name: str, value: Any = None) -> None:
        """List nodes of ``node_type`` only if they have this attribute, with this value unless it is None."""
        self._filters.setdefault(node_type, {})[name] = None if value is None else str(value)
        self._refresh()

    def removeAttribute(self, node_type: str, name: str) -> None:
        """Undo :meth:`addAttribute`."""
        self._filters.get(node_type, {}).pop(name, None)
        self._refresh()

    def _listing(self) -> Callable[[Any], bool]:
        """Whether a node is listed, by the properties as they are now: each is read once, as that goes through Qt."""
        types, derived, filters = self.nodeTypes, self.showChildNodeTypes, self._filters
        left_out, hidden = self.hideChildNodeTypes, self.showHidden

        def is_listed(node: Any) -> bool:
            if node.GetHideFromEditors() and not hidden:
                return False
            if any(node.IsA(kind) for kind in left_out):
                return False
            matches = node.IsA if derived else node.GetClassName().__eq__
            return any(
                all(
                    node.GetAttribute(name) is not None and (value is None or node.GetAttribute(name) == value)
                    for name, value in filters.get(kind, {}).items()
                )
                for kind in types
                if matches(kind)
            )

        return is_listed

    def nodes(self) -> list[Any]:
        """The listed nodes, in the order of the scene."""
        if self._scene is None:
            return []
        everything = self._scene.GetNodes()
        return list(filter(self._listing(), map(everything.GetItemAsObject, range(everything.GetNumberOfItems()))))

    def nodeCount(self) -> int:
        """How many nodes are listed."""
        return len(self.nodes())

    def nodeFromIndex(self, index: int) -> Any:
        """The node at this place in the list, or None."""
        nodes = self.nodes()
        return nodes[index] if 0 <= index < len(nodes) else None

    # The current node

    def currentNode(self) -> Any:
        """The chosen node, or None."""
        return self._node

    def currentNodeId(self) -> str:
        """Deprecated in Slicer; as currentNodeID."""
        return self.stored("currentNodeID")

    def setCurrentNode(self, node: Any) -> None:
        """Choose a node, by itself or its ID; one that is not listed leaves none. Before there is a scene, later."""
        if self._scene is None:
            self._requested = node
            return
        if isinstance(node, str):
            node = self._scene.GetNodeByID(node) if self._scene is not None and node else None
        self._set_current(node if node is not None and node in self.nodes() else None)

    def setCurrentNodeID(self, node_id: str) -> None:
        """Choose a node by its ID."""
        self.setCurrentNode(node_id or None)

    def setCurrentNodeIndex(self, index: int) -> None:
        """Choose a node by its place in the list."""
        self._set_current(self.nodeFromIndex(index))

    def _set_current(self, node: Any) -> None:
        changed = node is not self._node
        self._node = node
        self._show_list()
        if changed:
            node_id = node.GetID() if node is not None and node.GetID() else ""
            self.__dict__.setdefault("_values", {})["currentNodeID"] = node_id
            self.currentNodeChanged.emit(node)
            self.currentNodeIDChanged.emit(node_id)

    # What the user does

    def addNode(self, node_type: str | None = None) -> Any:
        """Create a node of the first node type, or of the one given, with the filter's attributes; and choose it."""
        kind = node_type or (self.nodeTypes[0] if self.nodeTypes else None)
        if kind is None or self._scene is None:
            return None
        node = self._scene.CreateNodeByClass(kind)
        if node is None:
            return None
        node.UnRegister(None)
        base_name = self._base_names.get(kind) or self._base_names.get("") or node.GetNodeTagName()
        node.SetName(self._scene.GenerateUniqueName(base_name))
        for name, value in self._filters.get(kind, {}).items():
            node.SetAttribute(name, value or "")
        node = self._scene.AddNode(node)
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    def removeCurrentNode(self) -> None:
        """Delete the chosen node from the scene."""
        if self._node is not None:
            self.nodeAboutToBeRemoved.emit(self._node)
            self._scene.RemoveNode(self._node)

    def renameCurrentNode(self) -> None:
        """Ask for a new name."""
        if self._node is None:
            return
        name, accepted = QtWidgets.QInputDialog.getText(
            self, "Rename", "New name:", QtWidgets.QLineEdit.EchoMode.Normal, self._node.GetName()
        )
        if accepted:
            self._node.SetName(name)

    def editCurrentNode(self) -> None:
        """Ask the application to open the node's module."""
        if self._node is not None:
            self.nodeAboutToBeEdited.emit(self._node)

    def setBaseName(self, name: str, node_type: str = "") -> None:
        """The name of new nodes, which is made unique in the scene."""
        self.store("baseName", name)
        self._base_names[node_type] = name

    def setNodeTypeLabel(self, label: str, node_type: str) -> None:
        """What the user reads in place of the node type."""
        self._labels[node_type] = label
        self._show_list()

    def nodeTypeLabel(self, node_type: str) -> str:
        """The label of a node type, its tag name unless another was set."""
        if node_type in self._labels or self._scene is None:
            return self._labels.get(node_type, node_type)
        return self._scene.GetTagByClassName(node_type) or node_type

    def addMenuAction(self, action: QtGui.QAction) -> None:
        """Add the module's own entry to the menu."""
        self._menu_actions.append(action)
        self._show_list()

    def _menu(self) -> list[tuple[str, Any]]:
        label = self.nodeTypeLabel(self.nodeTypes[0]) if self.nodeTypes else "node"
        entries: list[tuple[str, Any]] = []
        if self.editEnabled and self._node is not None:
            entries.append((f"Edit current {label}...", self.editCurrentNode))
        if self.renameEnabled and self._node is not None:
            entries.append((f"Rename current {label}...", self.renameCurrentNode))
        if self.addEnabled:
            kinds = [(f"Create new {self.nodeTypeLabel(kind)}", kind) for kind in self.nodeTypes]
            entries += [(text, lambda kind=kind: self.addNode(kind)) for text, kind in kinds]
        if self.removeEnabled and self._node is not None:
            entries.append((f"Delete current {label}", self.removeCurrentNode))
        return entries + [(action.text, action.trigger) for action in self._menu_actions]

    def _on_activated(self, index: int) -> None:
        data = self._combo_box.itemData(index)
        self._show_list()
        if callable(data):
            data()
        else:
            self.setCurrentNode(data)
            self.nodeActivated.emit(self._node)

    # Keeping up with the scene

    def _on_scene_changed(self, event: str, node: Any) -> None:
        if node is not None and node is not self._node and not self._listing()(node):
            was_listed = event == "modified" and self._combo_box.findData(node.GetID()) >= 0
            if not was_listed:
                return
        self._refresh()
        if event == "added":
            self.nodeAdded.emit(node)

    def _refresh(self) -> None:
        """List the nodes anew. As in a QComboBox, the next entry follows a current one that went, and the first node to
        come into an empty list becomes current: with an entry for none, or to create a node, the list is not empty."""
        was_empty = self._combo_box.count == 0
        nodes = self.nodes()
        if self._node is not None and self._node not in nodes:
            self._set_current(nodes[min(self._row, len(nodes) - 1)] if nodes else None)
        elif self._node is None and was_empty and nodes and not self.noneEnabled:
            self._set_current(nodes[0])
        else:
            self._show_list()

    def _show_list(self) -> None:
        box = self._combo_box
        box.clear()
        if self._scene is None:
            return
        nodes = self.nodes()
        if self.noneEnabled:
            box.addItem(self.noneDisplay, None)
        for node in nodes:
            box.addItem(node.GetName() or "", node.GetID())
        box.setPlaceholderText(self._prompt())
        none_index = 0 if self.noneEnabled else -1
        box.setCurrentIndex(box.findData(self._node.GetID()) if self._node is not None else none_index)
        if self._node in nodes:
            self._row = nodes.index(self._node)
        menu = self._menu()
        if menu and box.count:
            box.insertSeparator(box.count)
        for text, action in menu:
            box.addItem(text, action)

    def _prompt(self) -> str:
        return "Select a " + " or ".join(self.nodeTypeLabel(kind) for kind in self.nodeTypes)

    def nodeFactory(self) -> Any:
        """The host creates nodes in the box itself."""
        return self

    def sizeHint(self) -> QtCore.QSize:
        """That of the list."""
        return self._combo_box.sizeHint


@implements
class qMRMLCheckableNodeComboBox(interface("qMRMLCheckableNodeComboBox")):  # type: ignore[misc]
    """A list of nodes of which several can be checked."""

    def __init__(self, parent: QtWidgets.QWidget | None = None):
        super().__init__(parent)
        self._checked: list[str] = []

    def checkedNodes(self) -> list[Any]:
        """The checked nodes, in the order of the list."""
        return [node for node in self.nodes() if node.GetID() in self._checked]

    def uncheckedNodes(self) -> list[Any]:
        """The other listed nodes."""
        return [node for node in self.nodes() if node.GetID() not in self._checked]

    def checkState(self, node: Any) -> int:
        """Qt.Checked or Qt.Unchecked."""
        return Qt.CheckState.Checked if node.GetID() in self._checked else Qt.CheckState.Unchecked

    def setCheckState(self, node: Any, state: int) -> None:
        """Check or clear one node."""
        checked = [node_id for node_id in self._checked if node_id != node.GetID()]
        if int(state) == int(Qt.CheckState.Checked):
            checked.append(node.GetID())
        if sorted(checked) != sorted(self._checked):
            self._checked = checked
            self.checkedNodesChanged.emit()

    def noneChecked(self) -> bool:
        """Whether no node is checked."""
        return not self.checkedNodes()

    def allChecked(self) -> bool:
        """Whether every listed node is checked."""
        return not self.uncheckedNodes()
