"""Slicer's and CTK's widget classes, made from a description of their interface.

``widget_api.json`` lists, for each class, its base class, properties, signals, enumeration constants and the methods
that set something. From it come classes that keep what is set, emit the signals of what changes, and are otherwise
inert frames. Widgets whose behaviour modules rely on derive from such a class (:func:`interface`) and add it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from PySide6 import QtCore, QtGui, QtWidgets

from .qt_facade import native

API: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "widget_api.json").read_text())

# Classes under their Slicer name, as far as they have been made.
classes: dict[str, type] = {}

SIGNAL_TYPES = {"bool": bool, "int": int, "double": float, "QString": str}


def as_strings(value: Any) -> tuple[str, ...]:
    """A QStringList, which PythonQt gives as a tuple; a lone string is a list of one."""
    return (value,) if isinstance(value, str) else tuple(value or ())


def as_color(value: Any) -> QtGui.QColor:
    """A plain QColor, from one (also of a derived class) or from a name."""
    return QtGui.QColor.fromRgba(value.rgba()) if isinstance(value, QtGui.QColor) else QtGui.QColor(value)


def _convert_enum(value: Any) -> Any:
    return int(value) if isinstance(value, (int, float)) else value


# Type in the description -> (value before it is set, conversion of what is set).
PROPERTY_TYPES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "bool": (False, bool),
    "int": (0, int),
    "float": (0.0, float),
    "str": ("", str),
    "strings": ((), as_strings),
    "enum": (0, _convert_enum),
    "QColor": (QtGui.QColor(), as_color),
}


def capitalized(name: str) -> str:
    """``"readOnly"`` -> ``"ReadOnly"``, for setters."""
    return name[0].upper() + name[1:]


class Stored:
    """The store behind the properties of a class that was made from the description. Mixed in first."""

    defaults: ClassVar[dict[str, Any]] = {}

    def stored(self, name: str) -> Any:
        """The value of a property, or its default."""
        values = self.__dict__.get("_values", {})
        return values[name] if name in values else self.defaults.get(name)

    def store(self, name: str, value: Any) -> bool:
        """Set a property; when it changes, emit ``nameChanged`` where the class has that signal. Tells if it did."""
        if self.stored(name) == value and name in self.__dict__.get("_values", {}):
            return False
        changed = self.stored(name) != value
        self.__dict__.setdefault("_values", {})[name] = value
        signal: Any = getattr(self, f"{name}Changed", None)
        if changed and hasattr(signal, "emit"):
            signal.emit(value)
        return changed


def _property(name: str, kind: str) -> dict[str, Any]:
    """The members of a class that make up one property: attribute, setter and, where it differs, the reader."""
    type_name, _, reader = kind.partition(" ")
    convert = PROPERTY_TYPES.get(type_name, (None, lambda value: value))[1]
    setter = f"set{capitalized(name)}"

    def read(self: Any) -> Any:
        return self.stored(name)

    def write(self: Any, value: Any) -> None:
        getattr(self, setter)(value)

    def set_value(self: Any, value: Any) -> None:
        self.store(name, convert(value))

    qt_type = {"bool": bool, "int": int, "float": float, "str": str}.get(type_name, "QVariant")
    members: dict[str, Any] = {name: QtCore.Property(qt_type, read, write), setter: set_value}
    if reader:
        members[reader] = read
    return members


def _method(name: str) -> dict[str, Any]:
    """A setter that keeps its argument, with its getter; any other method does nothing."""
    if not name.startswith("set"):
        return {name: lambda self, *arguments: None}
    key = name[3].lower() + name[4:]

    def set_value(self: Any, *arguments: Any) -> None:
        self.store(key, arguments[0] if len(arguments) == 1 else arguments)

    return {name: set_value, key: lambda self: self.stored(key)}


def _weight(signature: str) -> tuple[int, bool, bool]:
    """Of two signals of one name, the host declares the one with more arguments, an object, or a number as argument."""
    return signature.count(",") + (not signature.endswith("()")), "*" in signature, "QString" not in signature


def interface(name: str, **defaults: Any) -> type:
    """A class with the described interface of ``name``, to derive from; ``defaults`` are values of its properties.

    Raises KeyError for an unknown name.
    """
    entry = API[name]
    base = widget_class(entry["base"]) if entry["base"] in API else getattr(QtWidgets, entry["base"], None)
    base = base or getattr(QtCore, entry["base"], QtWidgets.QWidget)
    members: dict[str, Any] = {"__module__": __name__, "__doc__": f"{name}, as far as an inert widget can be it."}
    members["defaults"] = {**getattr(base, "defaults", {})}
    for method in entry.get("methods", ()):
        members.update({key: value for key, value in _method(method).items() if not hasattr(base, key)})
    for signature in sorted(entry.get("signals", ()), key=_weight):
        signal, _, arguments = signature.rstrip(")").partition("(")
        types = [SIGNAL_TYPES.get(kind, object) for kind in arguments.split(",") if kind]
        if not hasattr(base, signal):
            members[signal] = QtCore.Signal(*types)
    for property_name, kind in entry.get("properties", {}).items():
        members.update(_property(property_name, kind))
        members["defaults"][property_name] = PROPERTY_TYPES.get(kind.split()[0], (None, None))[0]
    members["defaults"].update(defaults)
    members.update(entry.get("constants", {}))
    bases = (base,) if issubclass(base, Stored) else (Stored, base)
    made = type(base)(name, bases, members)
    return native(made)


def implements(cls: type) -> type:
    """Class decorator: this class is the one that modules get under its name."""
    classes[cls.__name__] = native(cls)
    return cls


def widget_class(name: str) -> type:
    """The class of this name: one with behaviour if the host has it, else an inert one.

    Raises
    ------
    KeyError
        if neither Slicer's description nor the host knows the class.
    """
    if name not in classes:
        classes[name] = interface(name)
    return classes[name]


def known_classes(prefixes: tuple[str, ...]) -> dict[str, type]:
    """All classes whose names start with one of ``prefixes``; for the namespaces ``ctk`` and ``slicer``."""
    names = {name for name in (*API, *classes) if name.startswith(prefixes)}
    return {name: widget_class(name) for name in sorted(names)}
