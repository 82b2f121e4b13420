"""``@parameterNodeWrapper``: a class whose typed fields are read from and written to a parameter node."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import qt
import vtk
from slicer.util import NodeModify

from .guiConnectors import GuiConnector, createGuiConnector
from .parameterPack import ParameterInfo, describe_fields, field_type, reserve
from .widgetConnectors import widgets_of_pack

__all__ = [
    "SlicerParameterNamePropertyName",
    "findChildWidgetForParameter",
    "isParameterNodeWrapper",
    "parameterNodeWrapper",
]

SlicerParameterNamePropertyName = "SlicerParameterName"


class BoundParameter:
    """One field in one parameter node, stored there under its name with the wrapper's prefix. The value is kept where
    its serializer allows, and read again when the node changes."""

    def __init__(self, field: ParameterInfo, node: Any, prefix: str | None):
        self.node = node
        self.name = f"{prefix or ''}{field.basename}"
        self.serializer = field.serializer
        self.default = field.default
        if not self.serializer.isIn(node, self.name):
            self.serializer.write(node, self.name, self.default())
        self.is_cached = self.serializer.supportsCaching()
        self._is_writing = False
        if self.is_cached:
            self._value = self.serializer.read(node, self.name)
            on_modified = weakref.WeakMethod(self._on_modified)  # the node must not keep the wrapper alive
            self._tag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: _call_if_alive(on_modified))

    def __del__(self) -> None:
        if getattr(self, "is_cached", False) and hasattr(self, "_tag"):
            self.node.RemoveObserver(self._tag)

    def _on_modified(self) -> None:
        if not self._is_writing:
            self._value = self._read()

    def _read(self) -> Any:
        if not self.serializer.isIn(self.node, self.name):
            self.serializer.write(self.node, self.name, self.default())
        return self.serializer.read(self.node, self.name)

    def read(self) -> Any:
        """The value; the default where the node has lost it, as when the scene was closed."""
        return self._value if self.is_cached else self._read()

    def write(self, value: Any) -> None:
        """Check the value and put it into the node; observers of the node see the new value already."""
        self._is_writing = True
        try:
            with NodeModify(self.node):
                self.serializer.write(self.node, self.name, value)
                if self.is_cached:
                    self._value = self._read()
        finally:
            self._is_writing = False


def _call_if_alive(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    alive = method()
    if alive is not None:
        alive()


class GuiConnections:
    """The widgets that are connected with a wrapper, in groups that can be disconnected."""

    def __init__(self, wrapper: Any):
        self._wrapper: Callable[[], Any] = weakref.ref(wrapper)
        self._groups: dict[int, tuple[dict[str, GuiConnector], int]] = {}
        self._next = 0
        self._is_updating = False

    def connect(self, mapping: dict[str, Any]) -> int:
        """Connect parameters with widgets; the widgets show the parameters' values. Returns the group's tag."""
        wrapper = self._wrapper()
        types = {name: wrapper.dataType(name) for name in mapping}  # raises for unknown names before anything changes
        connectors = {
            name: widget if isinstance(widget, GuiConnector) else createGuiConnector(widget, types[name])
            for name, widget in mapping.items()
        }
        for name, connector in connectors.items():
            connector.write(wrapper.getValue(name))
            connector.onChanged(partial(self._on_widget_changed, name, connector))
        tag, self._next = self._next, self._next + 1
        self._groups[tag] = (
            connectors,
            wrapper.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._update_widgets()),
        )
        return tag

    def disconnect(self, tag: int) -> None:
        """Undo one :meth:`connect`; an unknown tag is ignored."""
        connectors, observer = self._groups.pop(tag, ({}, None))
        for connector in connectors.values():
            connector.onChanged(None)
        if observer is not None:
            self._wrapper().RemoveObserver(observer)

    @property
    def observer_tags(self) -> dict[int, int]:
        """The observer of the node for each group, by the group's tag."""
        return {tag: observer for tag, (_, observer) in self._groups.items()}

    def _on_widget_changed(self, name: str, connector: GuiConnector) -> None:
        wrapper = self._wrapper()
        if not self._is_updating and wrapper is not None:
            with NodeModify(wrapper):
                wrapper.setValue(name, connector.read())

    def _update_widgets(self) -> None:
        wrapper = self._wrapper()
        if self._is_updating or wrapper is None:
            return
        self._is_updating = True
        try:
            with NodeModify(wrapper):
                for connectors, _ in list(self._groups.values()):
                    for name, connector in connectors.items():
                        connector.write(wrapper.getValue(name))
        finally:
            self._is_updating = False


def _initialize(self: Any, parameterNode: Any, prefix: str | None = None) -> None:
    self.parameterNode = parameterNode
    self._bound = {name: BoundParameter(field, parameterNode, prefix) for name, field in self.allParameters.items()}
    self._gui = GuiConnections(self)


def _get_value(self: Any, name: str) -> Any:
    """The value of a parameter, whose name may be dotted into a pack."""
    self.dataType(name)
    top, _, rest = name.partition(".")
    value = self._bound[top].read()
    return value.getValue(rest) if rest else value


def _set_value(self: Any, name: str, value: Any) -> None:
    """Set a parameter, whose name may be dotted into a pack."""
    self.dataType(name)
    top, _, rest = name.partition(".")
    if rest:
        self._bound[top].read().setValue(rest, value)
    else:
        self._bound[top].write(value)


def _bound_parameter(self: Any, name: str) -> BoundParameter:
    self.dataType(name)
    return self._bound[name]


class _DefaultValue:
    """What ``wrapper.default(name)`` gives: an object with the attribute ``value``."""

    def __init__(self, value: Any):
        self.value = value


def _parameter_name(widget: Any) -> Any:
    return widget.property(SlicerParameterNamePropertyName) if hasattr(widget, "property") else None


def _connect_gui(self: Any, gui: Any) -> int:
    """Connect every widget that has the property ``SlicerParameterName``, in a widget or in the object that
    ``slicer.util.childWidgetVariables`` made."""
    widgets = gui.findChildren(qt.QWidget) if hasattr(gui, "isWidgetType") else vars(gui).values()
    return self._gui.connect({_parameter_name(widget): widget for widget in widgets if _parameter_name(widget)})


def _make_property(name: str) -> property:
    return property(lambda self: self._bound[name].read(), lambda self, value: self._bound[name].write(value))


def _make_wrapper(cls: type) -> type:
    fields = describe_fields(cls)
    for name in fields:
        setattr(cls, name, _make_property(name))
    cls.__init__ = _initialize  # type: ignore[misc]
    reserve(
        cls,
        allParameters=fields,
        _is_parameter_node_wrapper=True,
        _guiVtkObserverTags=property(lambda self: self._gui.observer_tags),
        dataType=staticmethod(lambda name: field_type(fields, cls.__name__, name)),
        default=lambda self, name: _DefaultValue(_bound_parameter(self, name).default()),
        isCached=lambda self, name: _bound_parameter(self, name).is_cached,
        getValue=_get_value,
        setValue=_set_value,
        connectGui=_connect_gui,
        connectParametersToGui=lambda self, mapping: self._gui.connect(mapping),
        disconnectGui=lambda self, tag: self._gui.disconnect(tag),
        StartModify=lambda self: self.parameterNode.StartModify(),
        EndModify=lambda self, was_modified: self.parameterNode.EndModify(was_modified),
        AddObserver=lambda self, event, callback, priority=0.0: self.parameterNode.AddObserver(
            event, callback, priority
        ),
        RemoveObserver=lambda self, tag: self.parameterNode.RemoveObserver(tag),
        Modified=lambda self: self.parameterNode.Modified(),
    )
    return cls


def parameterNodeWrapper(classtype: type | None = None) -> Any:
    """Class decorator: ``Parameters(node)`` then reads and writes its typed fields in the node."""
    return _make_wrapper if classtype is None else _make_wrapper(classtype)


def isParameterNodeWrapper(classOrObj: Any) -> bool:
    """Whether a class or object is a parameter node wrapper."""
    return getattr(classOrObj, "_is_parameter_node_wrapper", False)


def findChildWidgetForParameter(widget: Any, parameter: str) -> Any:
    """The widget below ``widget`` that shows a parameter, whose name may be dotted into a pack; None if none does."""
    for child in widget.findChildren(qt.QWidget):
        if child.property(SlicerParameterNamePropertyName) == parameter:
            return child
    top, _, rest = parameter.partition(".")
    holder = findChildWidgetForParameter(widget, top) if rest else None
    return widgets_of_pack(holder).get(rest) if holder is not None else None
