"""The connectors for the widgets of Qt, CTK and Slicer."""

from __future__ import annotations

import enum
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
    getNodeTypes,
    isNodeOrUnionOfNodes,
    unannotatedType,
)
from .guiConnectors import (
    SlicerPackParameterNamePropertyName,
    WidgetConnector,
    createGuiConnector,
    parameterNodeGuiConnector,
)
from .parameterPack import isParameterPack, nestedParameterNames
from .serializers import PATH_TYPES
from .types import FloatRange

__all__: list[str] = []


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

    def write(self, value: bool) -> None:
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

    def read(self) -> Any:
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

    def read(self) -> Any:
        return self._choices[self._widget.currentIndex][1]

    def write(self, value: Any) -> None:
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
    def canRepresent(cls, widget: Any, datatype: Any) -> bool:
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

    def read(self) -> str:
        return self._widget.toPlainText()

    def write(self, value: str) -> None:
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

    def read(self) -> FloatRange:
        return FloatRange(self._widget.minimumValue, self._widget.maximumValue)

    def write(self, value: FloatRange) -> None:
        self._widget.setValues(value.minimum, value.maximum)


@parameterNodeGuiConnector
class PathConnector(WidgetConnector):
    """A path editor for a path."""

    widgets, types = (ctk.ctkPathLineEdit,), PATH_TYPES
    signal, attribute = "currentPathChanged", "currentPath"

    def read(self) -> Any:
        return self._type(getattr(self._widget, self.attribute))

    def write(self, value: Any) -> None:
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
    def canRepresent(cls, widget: Any, datatype: Any) -> bool:
        return type(widget) in cls.widgets and isNodeOrUnionOfNodes(datatype)

    def _prepare(self) -> None:
        self._widget.nodeTypes = getNodeTypes(self._type)

    def read(self) -> Any:
        return self._widget.currentNode()

    def write(self, value: Any) -> None:
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
        parts: list[Any] = []
        step = child
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
    def canRepresent(cls, widget: Any, datatype: Any) -> bool:
        kind = unannotatedType(datatype)
        return isParameterPack(kind) and set(nestedParameterNames(kind)) <= set(widgets_of_pack(widget))

    def _prepare(self) -> None:
        widgets = widgets_of_pack(self._widget)
        self._connectors = {
            name: createGuiConnector(widgets[name], self._type.dataType(name))
            for name in nestedParameterNames(self._type)
        }

    def _connect(self) -> None:
        for connector in self._connectors.values():
            connector.onChanged(self.changed)

    def _disconnect(self) -> None:
        for connector in self._connectors.values():
            connector.onChanged(None)

    def read(self) -> Any:
        pack = self._type()
        for name, connector in self._connectors.items():
            pack.setValue(name, connector.read())
        return pack

    def write(self, value: Any) -> None:
        for name, connector in self._connectors.items():
            connector.write(value.getValue(name))
