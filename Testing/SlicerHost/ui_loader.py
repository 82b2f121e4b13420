"""Loading ``.ui`` files with Slicer's and CTK's widgets.

Qt's own loader builds the form. Before it sees the file, the properties of the host's widgets and the connections are
taken out, and set and made afterwards in Python: Qt's loader knows neither ``ctkPathLineEdit::Dirs`` nor signals that
carry a VTK object.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from typing import Any
from xml.etree import ElementTree

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

from .widget_api import API, classes, widget_class

Properties = dict[str, list[tuple[str, Any]]]


class UnknownWidgetError(RuntimeError):
    """A ``.ui`` file names a widget class that neither Qt nor the host has."""


def parse_value(element: ElementTree.Element, owner: type) -> Any:
    """The value of a property element: text, number, list, or enumeration constants of ``owner``."""
    text = element.text or ""
    if element.tag == "bool":
        return text.strip() == "true"
    if element.tag == "number":
        return int(text)
    if element.tag in ("double", "float"):
        return float(text)
    if element.tag == "stringlist":
        return [item.text or "" for item in element]
    if element.tag in ("enum", "set"):
        return sum({constant_value(name, owner) for name in text.split("|") if name.strip()})
    if element.tag == "color":
        return QtGui.QColor(*(int(element.findtext(part, "0")) for part in ("red", "green", "blue")))
    if element.tag == "size":
        return QtCore.QSize(int(element.findtext("width", "0")), int(element.findtext("height", "0")))
    if element.tag == "iconset":
        return QtGui.QIcon(text.strip())
    return text


def constant_value(name: str, owner: type) -> int:
    """``"ctkPathLineEdit::Dirs"`` or ``"Qt::AlignLeft"`` as a number; raises RuntimeError if it is neither's."""
    scope, _, last = name.strip().rpartition("::")
    places = [
        owner,
        *(getattr(module, part, None) for module in (QtCore, QtGui, QtWidgets) for part in scope.split("::")),
    ]
    places += [widget_class(part) for part in scope.split("::") if part in API]
    for place in places:
        if hasattr(place, last):
            return int(getattr(place, last))
    raise RuntimeError(f"Unknown constant {name} for {owner.__name__}")


class UiFile:
    """A ``.ui`` file, parted into what Qt's loader builds and what is done after it."""

    def __init__(self, xml: bytes):
        self.tree = ElementTree.fromstring(xml)
        self.properties: Properties = {}
        self.renamed: dict[str, str] = {}
        self.connections: list[tuple[str, str, str, str]] = []
        self._take_out_properties()
        self._take_out_connections()

    def _take_out_properties(self) -> None:
        names = Counter(widget.get("name", "") for widget in self.tree.iter("widget"))
        for number, widget in enumerate(self.tree.iter("widget")):
            class_name = widget.get("class", "")
            if not (class_name in API or class_name in classes):
                continue
            made = widget_class(class_name)
            if not widget.get("name") or names[widget.get("name", "")] > 1:  # told apart until they are finished
                self.renamed[f"__{number}"] = widget.get("name", "")
                widget.set("name", f"__{number}")
            for element in widget.findall("property"):
                name, value = element.get("name", ""), element[0]
                ours = any(name in base.__dict__ for base in made.__mro__ if base.__module__.startswith(__package__))
                if ours:
                    self.properties.setdefault(widget.get("name", ""), []).append((name, parse_value(value, made)))
                    widget.remove(element)

    def _take_out_connections(self) -> None:
        for parent in list(self.tree.iter("ui")):
            for element in parent.findall("connections"):
                for connection in element:
                    parts = [connection.findtext(part, "") for part in ("sender", "signal", "receiver", "slot")]
                    self.connections.append((parts[0], parts[1], parts[2], parts[3]))
                parent.remove(element)

    def to_bytes(self) -> bytes:
        """What is left for Qt's loader."""
        return ElementTree.tostring(self.tree, encoding="utf-8")

    def finish(self, widget: QtWidgets.QWidget) -> None:
        """Set the properties and make the connections that were taken out."""
        named = {child.objectName: child for child in widget.findChildren(QtCore.QObject)}
        named |= {child.objectName: child for child in [widget, *widget.findChildren(QtWidgets.QWidget)]}
        for name, properties in self.properties.items():
            for key, value in sorted(properties, key=lambda pair: _ORDER.get(pair[0], 0)):
                setattr(named[name], key, value)
        for name, original in self.renamed.items():
            named[name].setObjectName(original)
            named.setdefault(original, named[name])
        for sender, signal, receiver, slot in self.connections:
            if sender in named and hasattr(named.get(receiver), slot.partition("(")[0]):
                named[sender].connect(signal, named[receiver], slot)
            else:
                logging.warning("%s.%s -> %s.%s: no such connection can be made", sender, signal, receiver, slot)


# Limits come before the value that they bound, and the number of decimals first of all.
_ORDER = {
    "decimals": -2,
    "minimum": -1,
    "maximum": -1,
    "value": 1,
    "minimumValue": 1,
    "maximumValue": 2,
    "collapsed": 3,
}


class QUiLoader(QtUiTools.QUiLoader):
    """``qt.QUiLoader`` with the widget classes of Slicer and CTK."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._unknown: list[str] = []

    def createWidget(self, class_name: str, parent: Any = None, name: str = "") -> QtWidgets.QWidget:
        """Make one widget; a class that does not exist is reported when the file is loaded."""
        if class_name in API or class_name in classes:
            widget = widget_class(class_name)(parent)
            widget.setObjectName(name)
            return widget
        if class_name == "Line" or class_name in self.availableWidgets():
            return super().createWidget(class_name, parent, name)
        self._unknown.append(class_name)
        return QtWidgets.QWidget(parent)

    def load(self, source: Any, parent: QtWidgets.QWidget | None = None) -> QtWidgets.QWidget:
        """Build the form in a QFile, or in the file of this path.

        Raises
        ------
        UnknownWidgetError
            if the form has a widget of a class that the host does not know.
        """
        device = QtCore.QFile(source) if isinstance(source, str) else source
        if not device.isOpen():
            device.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        form = UiFile(device.readAll().data())
        buffer = QtCore.QBuffer()
        buffer.setData(form.to_bytes())
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        self._unknown = []
        widget = super().load(buffer, parent)
        file_name = device.fileName() if hasattr(device, "fileName") else "form"
        if self._unknown:
            names = ", ".join(sorted(set(self._unknown)))
            raise UnknownWidgetError(f"{file_name}: unknown widget class {names}; SlicerHost does not have it")
        if widget is None:
            raise RuntimeError(f"{file_name}: {re.sub('<.*?>', '', self.errorString())}")
        form.finish(widget)
        return widget
