"""Widgets made for a type: ``createGui(Annotated[float, WithinRange(0, 1)])`` is a slider."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import ctk
import qt
import slicer

from .annotations import (
    Choice,
    Label,
    Maximum,
    Minimum,
    WithinRange,
    findFirstAnnotation,
    isNodeOrUnionOfNodes,
    splitAnnotations,
    unannotatedType,
)
from .guiConnectors import SlicerPackParameterNamePropertyName
from .parameterPack import isParameterPack
from .serializers import PATH_TYPES
from .types import FloatRange

__all__ = ["GuiCreator", "createGui", "parameterNodeGuiCreator"]


class GuiCreator:
    """Makes widgets for some types. A module may derive its own and register it with ``@parameterNodeGuiCreator``."""

    @staticmethod
    def representationValue(datatype: Any) -> int:
        """How well it shows a type, 0 (not at all) to 100; the host's own give at most 90."""
        raise NotImplementedError

    @staticmethod
    def create(datatype: Any) -> Any:
        """A widget for a type."""
        raise NotImplementedError


_registered: list[type[GuiCreator]] = []


def parameterNodeGuiCreator(classtype: type | None = None) -> Any:
    """Class decorator: consider this creator in :func:`createGui`."""

    def register(cls: type) -> type:
        if not issubclass(cls, GuiCreator):
            raise TypeError(f"{cls.__name__} is not a GuiCreator")
        _registered.append(cls)
        return cls

    return register if classtype is None else register(classtype)


def _is_bounded(annotations: Any) -> bool:
    kinds = [findFirstAnnotation(annotations, kind) is not None for kind in (WithinRange, Minimum, Maximum)]
    return kinds[0] or all(kinds[1:])


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def _form(fields: Any, property_name: str, layout: Any, widget: Any) -> Any:
    """A row for each field; scenes go down from ``widget``."""
    for name, field in fields.items():
        piece = createGui(field.unalteredType)
        piece.setProperty(property_name, name)
        label = findFirstAnnotation(splitAnnotations(field.unalteredType)[1], Label)
        layout.addRow(label.label if label is not None else name, piece)
        if hasattr(piece, "setMRMLScene"):
            widget.mrmlSceneChanged.connect(piece.setMRMLScene)
    return widget


def _pack_widget(datatype: Any) -> Any:
    widget = slicer.qSlicerWidget()
    frame = ctk.ctkCollapsibleButton()
    qt.QVBoxLayout(widget).addWidget(frame)
    fields = unannotatedType(datatype).allParameters
    return _form(fields, SlicerPackParameterNamePropertyName, qt.QFormLayout(frame), widget)


def _wrapper_widget(datatype: Any) -> Any:
    widget = slicer.qSlicerWidget()
    return _form(datatype.allParameters, "SlicerParameterName", qt.QFormLayout(widget), widget)


# What a type must be, how well the widget shows it, and the widget; the first that fits is the best.
OWN_CREATORS: tuple[tuple[Callable[[Any, Any], Any], int, Callable[[Any], Any]], ...] = (
    (
        lambda kind, notes: findFirstAnnotation(notes, Choice) and kind in (int, float, str, bool),
        90,
        lambda _: qt.QComboBox(),
    ),
    (lambda kind, notes: _is_enum(kind), 90, lambda _: qt.QComboBox()),
    (lambda kind, notes: kind is float and _is_bounded(notes), 85, lambda _: ctk.ctkSliderWidget()),
    (lambda kind, notes: kind is float, 85, lambda _: qt.QDoubleSpinBox()),
    (lambda kind, notes: kind is int, 85, lambda _: qt.QSpinBox()),
    (lambda kind, notes: kind is FloatRange, 85, lambda _: ctk.ctkRangeWidget()),
    (lambda kind, notes: kind is bool, 80, lambda _: qt.QCheckBox()),
    (lambda kind, notes: kind is str, 80, lambda _: qt.QLineEdit()),
    (lambda kind, notes: kind in PATH_TYPES, 80, lambda _: ctk.ctkPathLineEdit()),
    (lambda kind, notes: isNodeOrUnionOfNodes(kind), 80, lambda _: slicer.qMRMLNodeComboBox()),
    (lambda kind, notes: kind is qt.QColor, 80, lambda _: ctk.ctkColorPickerButton()),
    (lambda kind, notes: isParameterPack(kind), 80, _pack_widget),
    (lambda kind, notes: getattr(kind, "_is_parameter_node_wrapper", False), 80, _wrapper_widget),
)


def createGui(datatype: Any) -> Any:
    """The widget that shows an annotated type best; RuntimeError where there is none."""
    candidates: list[tuple[int, Callable[[Any], Any]]] = [
        (creator.representationValue(datatype), creator.create) for creator in _registered
    ]
    kind, annotations = splitAnnotations(datatype)
    candidates += [(value, make) for fits, value, make in OWN_CREATORS if fits(kind, annotations)][:1]
    value, make = max(candidates, key=lambda candidate: candidate[0], default=(0, None))
    if not value or make is None:
        raise RuntimeError(f"There is no widget for {datatype}")
    return make(datatype)
