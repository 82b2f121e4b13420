"""How a value goes between a widget and a parameter; :mod:`widgetConnectors` has the widgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .annotations import findFirstAnnotation, splitAnnotations, unannotatedType

__all__ = ["GuiConnector", "SlicerPackParameterNamePropertyName", "createGuiConnector", "parameterNodeGuiConnector"]

SlicerPackParameterNamePropertyName = "SlicerPackParameterName"


class GuiConnector:
    """Shows a value of one type in a widget of one class. A module may derive its own and register it with
    ``@parameterNodeGuiConnector``."""

    @staticmethod
    def canRepresent(widget: Any, datatype: Any) -> bool:
        """Whether this class connects such a widget with a parameter of such a type."""
        raise NotImplementedError

    @staticmethod
    def create(widget: Any, datatype: Any) -> Any:
        """A connector for a widget and a type."""
        raise NotImplementedError

    def __init__(self) -> None:
        self._callback: Callable[[], None] | None = None

    def onChanged(self, callback: Callable[[], None] | None) -> None:
        """Call this when the user changes the widget; None stops that."""
        self._callback = callback
        if callback is None:
            self._disconnect()
        else:
            self._connect()

    def changed(self) -> None:
        """The widget's signal ends here."""
        if self._callback is not None:
            self._callback()

    def _connect(self) -> None:
        raise NotImplementedError

    def _disconnect(self) -> None:
        raise NotImplementedError

    def widget(self) -> Any:
        """The widget."""
        raise NotImplementedError

    def read(self) -> Any:
        """The value that the widget shows."""
        raise NotImplementedError

    def write(self, value: Any) -> None:
        """Show a value."""
        raise NotImplementedError


_registered: list[type[GuiConnector]] = []


def parameterNodeGuiConnector(classtype: type | None = None) -> Any:
    """Class decorator: consider this connector in :func:`createGuiConnector`."""

    def register(cls: type) -> type:
        if not issubclass(cls, GuiConnector):
            raise TypeError(f"{cls.__name__} is not a GuiConnector")
        _registered.append(cls)
        return cls

    return register if classtype is None else register(classtype)


def createGuiConnector(widget: Any, datatype: Any) -> Any:
    """A connector for a widget and an annotated type; RuntimeError where there is none."""
    for kind in _registered:
        if kind.canRepresent(widget, datatype):
            return kind.create(widget, datatype)
    raise RuntimeError(f"A widget of class {type(widget).__name__} can not show a parameter of type {datatype}")


class WidgetConnector(GuiConnector):
    """A connector whose widget tells of changes by one signal, and keeps its value in one property."""

    widgets: tuple[type, ...] = ()
    types: tuple[Any, ...] = ()
    signal: str | None = None
    attribute = "value"

    def __init__(self, widget: Any, datatype: Any):
        super().__init__()
        self._widget = widget
        self._type, self._annotations = splitAnnotations(datatype)
        self._prepare()

    def _prepare(self) -> None:
        """Set the widget up by the annotations."""

    @classmethod
    def canRepresent(cls, widget: Any, datatype: Any) -> bool:
        return type(widget) in cls.widgets and unannotatedType(datatype) in cls.types

    @classmethod
    def create(cls, widget: Any, datatype: Any) -> Any:
        return cls(widget, datatype) if cls.canRepresent(widget, datatype) else None

    def annotation(self, kind: type) -> Any:
        """The first annotation of a kind, or None."""
        return findFirstAnnotation(self._annotations, kind)

    def _connect(self) -> None:
        if self.signal:
            getattr(self._widget, self.signal).connect(self.changed)

    def _disconnect(self) -> None:
        if self.signal:
            getattr(self._widget, self.signal).disconnect(self.changed)

    def widget(self) -> Any:
        return self._widget

    def read(self) -> Any:
        return getattr(self._widget, self.attribute)

    def write(self, value: Any) -> None:
        if self.read() != value:
            setattr(self._widget, self.attribute, value)
