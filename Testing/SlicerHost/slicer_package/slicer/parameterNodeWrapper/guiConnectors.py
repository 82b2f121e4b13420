"""Which widget shows which type of parameter, and how a value goes between them."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import ctk
import qt

import slicer

from .annotations import (
    Choice,
    Decimals,
    Default,
    Maximum,
    Minimum,
    RangeBounds,
    SingleStep,
    WithinRange,
    findFirstAnnotation,
    getNodeTypes,
    isNodeOrUnionOfNodes,
    splitAnnotations,
    unannotatedType,
)
from .parameterPack import isParameterPack, nestedParameterNames
from .serializers import PATH_TYPES
from .types import FloatRange

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
    def canRepresent(cls, widget: Any, datatype: Any) -> bool:  # noqa: D102
        return type(widget) in cls.widgets and unannotatedType(datatype) in cls.types

    @classmethod
    def create(cls, widget: Any, datatype: Any) -> Any:  # noqa: D102
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

    def widget(self) -> Any:  # noqa: D102
        return self._widget

    def read(self) -> Any:  # noqa: D102
        return getattr(self._widget, self.attribute)

    def write(self, value: Any) -> None:  # noqa: D102
        if self.read() != value:
            setattr(self._widget, self.attribute, value)


@parameterNodeGuiConnector
class CheckBoxConnector(WidgetConnector):
    """A check box for bool."""

    widgets, types = (qt.QCheckBox, ctk.ctkCheckBox), (bool,)
    signal, attribute = "toggled", "checked"


@parameterNodeGuiConnector
class PushButtonConnector(WidgetConnector):
    """A checkable button for bool; one that is not checkable is made so."""

    widgets, types = (qt.QPushButton,), (bool,)
    signal, attribute = "toggled", "checked"

    def _prepare(self) -> None:
        self._widget.checkable = True


@parameterNodeGuiConnector
class CheckablePushButtonConnector(WidgetConnector):
    """A button with a check box for bool. Where the check box makes the button a toggle, that is the value."""

    widgets, types = (ctk.ctkCheckablePushButton,), (bool,)
    signal, attribute = "toggled", "checked"

    def _prepare(self) -> None:
        if not self._widget.checkBoxControlsButtonToggleState:
            self._widget.checkable = True

    def write(self, value: bool) -> None:  # noqa: D102
        if self._widget.checkBoxControlsButtonToggleState:
            self._widget.checkable = value
        if self._widget.checkable:
            self._widget.checked = value


class NumberConnector(WidgetConnector):
    """What sliders and spin boxes have in common: limits, step and decimals from the annotations."""

    needs_limits: tuple[type, ...] = ()
    lowest: Any = float("-inf")
    highest: Any = float("inf")
    signal = "valueChanged"

    def _prepare(self) -> None:
        self._set_decimals()
        step = self.annotation(SingleStep)
        if step is not None:
            self._widget.singleStep = step.value
        within, low, high = (self.annotation(kind) for kind in (WithinRange, Minimum, Maximum))
        minimum = within.minimum if within else low.minimum if low else None
        maximum = within.maximum if within else high.maximum if high else None
        if type(self._widget) in self.needs_limits and None in (minimum, maximum):
            raise RuntimeError(f"{type(self._widget).__name__} needs a parameter with a minimum and a maximum")
        self._widget.minimum = self.lowest if minimum is None else minimum
        self._widget.maximum = self.highest if maximum is None else maximum

    def _set_decimals(self) -> None:
        """Integers need none."""


@parameterNodeGuiConnector
class IntegerConnector(NumberConnector):
    """A slider or spin box for int."""

    widgets, types = (qt.QSlider, qt.QSpinBox), (int,)
    needs_limits = (qt.QSlider,)
    lowest, highest = -(2**31), 2**31 - 1


@parameterNodeGuiConnector
class FloatConnector(NumberConnector):
    """A slider or spin box of floating-point numbers, for float and int."""

    widgets = (
        qt.QDoubleSpinBox,
        ctk.ctkSliderWidget,
        ctk.ctkDoubleSlider,
        ctk.ctkDoubleSpinBox,
        slicer.qMRMLSliderWidget,
        slicer.qMRMLSpinBox,
    )
    types = (float, int)
    needs_limits = (ctk.ctkSliderWidget, slicer.qMRMLSliderWidget)

    def _set_decimals(self) -> None:
        decimals = self.annotation(Decimals)
        if type(self._widget) is ctk.ctkDoubleSlider:
            return
        if self._type is int:
            self._widget.decimals = 0
        elif decimals is not None:
            self._widget.decimals = decimals.value

    def read(self) -> Any:  # noqa: D102
        return self._type(self._widget.value)


class ComboBoxConnector(WidgetConnector):
    """A combo box whose items are fixed by the type."""

    widgets = (qt.QComboBox, ctk.ctkComboBox)
    signal = "currentIndexChanged"

    def _values(self) -> list[tuple[str, Any]]:
        raise NotImplementedError

    def _prepare(self) -> None:
        self._choices = self._values()
        chosen = max(0, min(self._widget.currentIndex, len(self._choices) - 1))
        self._widget.clear()
        for text, _ in self._choices:
            self._widget.addItem(text)
        self._widget.currentIndex = chosen

    def read(self) -> Any:  # noqa: D102
        return self._choices[self._widget.currentIndex][1]

    def write(self, value: Any) -> None:  # noqa: D102
        indexes = [index for index, (_, choice) in enumerate(self._choices) if choice == value]
        if not indexes:
            raise ValueError(f"{value!r} is none of {[choice for _, choice in self._choices]}")
        self._widget.currentIndex = indexes[0]


@parameterNodeGuiConnector
class ChoiceConnector(ComboBoxConnector):
    """A combo box for the values of a ``Choice``."""

    types = (int, float, str, bool)

    def _values(self) -> list[tuple[str, Any]]:
        choice = self.annotation(Choice)
        if choice is None:
            raise RuntimeError("A combo box needs a parameter with the annotation Choice")
        return [(str(value), value) for value in choice.choices]


@parameterNodeGuiConnector
class EnumConnector(ComboBoxConnector):
    """A combo box for an enumeration; a member's text is its ``label()`` where the enumeration has one."""

    @classmethod
    def canRepresent(cls, widget: Any, datatype: Any) -> bool:  # noqa: D102
        kind = unannotatedType(datatype)
        return type(widget) in cls.widgets and isinstance(kind, type) and issubclass(kind, enum.Enum)

    def _values(self) -> list[tuple[str, Any]]:
        label = getattr(self._type, "label", lambda member: member.name)
        return [(label(member), member) for member in self._type]


@parameterNodeGuiConnector
class LineEditConnector(WidgetConnector):
    """A line edit for str."""

    widgets, types = (qt.QLineEdit, ctk.ctkSearchBox), (str,)
    signal, attribute = "textChanged", "text"


@parameterNodeGuiConnector
class LabelConnector(WidgetConnector):
    """A label for str; it only shows."""

    widgets, types = (qt.QLabel,), (str,)
    attribute = "text"


@parameterNodeGuiConnector
class TextEditConnector(WidgetConnector):
    """A text edit for str."""

    widgets, types = (qt.QTextEdit, qt.QPlainTextEdit), (str,)
    signal, attribute = "textChanged", "plainText"

    def read(self) -> str:  # noqa: D102
        return self._widget.toPlainText()

    def write(self, value: str) -> None:  # noqa: D102
        if self.read() != value:
            self._widget.setPlainText(value)


@parameterNodeGuiConnector
class RangeConnector(WidgetConnector):
    """A range widget for a range with ``RangeBounds``."""

    widgets, types = (ctk.ctkRangeWidget, ctk.ctkDoubleRangeSlider, slicer.qMRMLRangeWidget), (FloatRange,)
    signal = "valuesChanged"

    def _prepare(self) -> None:
        decimals, step, bounds = (self.annotation(kind) for kind in (Decimals, SingleStep, RangeBounds))
        if bounds is None:
            raise RuntimeError("A range widget needs a parameter with the annotation RangeBounds")
        if self.annotation(Default) is None and not bounds.minimum <= 0 <= bounds.maximum:
            raise RuntimeError("RangeBounds that leave out 0 need a Default as well")
        if decimals is not None and type(self._widget) is not ctk.ctkDoubleRangeSlider:
            self._widget.decimals = decimals.value
        if step is not None:
            self._widget.singleStep = step.value
        self._widget.setRange(bounds.minimum, bounds.maximum)

    def read(self) -> FloatRange:  # noqa: D102
        return FloatRange(self._widget.minimumValue, self._widget.maximumValue)

    def write(self, value: FloatRange) -> None:  # noqa: D102
        self._widget.setValues(value.minimum, value.maximum)


@parameterNodeGuiConnector
class PathConnector(WidgetConnector):
    """A path editor for a path."""

    widgets, types = (ctk.ctkPathLineEdit,), PATH_TYPES
    signal, attribute = "currentPathChanged", "currentPath"

    def read(self) -> Any:  # noqa: D102
        return self._type(getattr(self._widget, self.attribute))

    def write(self, value: Any) -> None:  # noqa: D102
        setattr(self._widget, self.attribute, str(value))


@parameterNodeGuiConnector
class DirectoryConnector(PathConnector):
    """A folder button for a path."""

    widgets = (ctk.ctkDirectoryButton,)
    signal, attribute = "directoryChanged", "directory"


@parameterNodeGuiConnector
class NodeConnector(WidgetConnector):
    """A node selector for a node class or a union of them; it lists nodes of these classes."""

    widgets = (slicer.qMRMLNodeComboBox,)
    signal = "currentNodeChanged"

    @classmethod
    def canRepresent(cls, widget: Any, datatype: Any) -> bool:  # noqa: D102
        return type(widget) in cls.widgets and isNodeOrUnionOfNodes(datatype)

    def _prepare(self) -> None:
        self._widget.nodeTypes = getNodeTypes(self._type)

    def read(self) -> Any:  # noqa: D102
        return self._widget.currentNode()

    def write(self, value: Any) -> None:  # noqa: D102
        self._widget.setCurrentNode(value)


@parameterNodeGuiConnector
class ColorConnector(WidgetConnector):
    """A colour button for a colour."""

    widgets, types = (ctk.ctkColorPickerButton,), (qt.QColor,)
    signal, attribute = "colorChanged", "color"


def widgets_of_pack(widget: Any) -> dict[str, Any]:
    """The widgets below ``widget`` that show the fields of a pack, by the fields' dotted names."""
    found: dict[str, Any] = {}
    for child in widget.findChildren(qt.QWidget):
        parts, step = [], child
        while step is not None and step is not widget:
            parts.insert(0, step.property(SlicerPackParameterNamePropertyName))
            step = step.parent()
        if parts and parts[-1]:
            found[".".join(part for part in parts if part)] = child
    return found


@parameterNodeGuiConnector
class PackConnector(WidgetConnector):
    """A widget whose children show the fields of a pack."""

    @classmethod
    def canRepresent(cls, widget: Any, datatype: Any) -> bool:  # noqa: D102
        kind = unannotatedType(datatype)
        return isParameterPack(kind) and set(nestedParameterNames(kind)) <= set(widgets_of_pack(widget))

    def _prepare(self) -> None:
        widgets = widgets_of_pack(self._widget)
        self._connectors = {
            name: createGuiConnector(widgets[name], self._type.dataType(name)) for name in nestedParameterNames(self._type)
        }

    def _connect(self) -> None:
        for connector in self._connectors.values():
            connector.onChanged(self.changed)

    def _disconnect(self) -> None:
        for connector in self._connectors.values():
            connector.onChanged(None)

    def read(self) -> Any:  # noqa: D102
        pack = self._type()
        for name, connector in self._connectors.items():
            pack.setValue(name, connector.read())
        return pack

    def write(self, value: Any) -> None:  # noqa: D102
        for name, connector in self._connectors.items():
            connector.write(value.getValue(name))
