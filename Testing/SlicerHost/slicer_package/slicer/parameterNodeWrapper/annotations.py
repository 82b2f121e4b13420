"""What may stand in ``Annotated[type, …]``: a default, limits and choices, and hints for widgets."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import slicer

__all__ = [
    "Choice",
    "Decimals",
    "Default",
    "Exclude",
    "IsInstance",
    "IsNone",
    "Label",
    "Maximum",
    "Minimum",
    "NotNone",
    "RangeBounds",
    "SingleStep",
    "Validator",
    "WithinRange",
    "extractDefault",
    "extractValidators",
    "findFirstAnnotation",
    "getNodeTypes",
    "isNodeOrUnionOfNodes",
    "splitAnnotations",
    "unannotatedType",
]


class Default:
    """The value of a parameter that was not set; ``generator`` makes a new one each time."""

    def __init__(self, value: Any = None, *, generator: Callable[[], Any] | None = None):
        self._value = value
        self._generator = generator

    @property
    def value(self) -> Any:
        """The default."""
        return self._generator() if self._generator else self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Default) and (self._value, self._generator) == (other._value, other._generator)

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"Default({self._value!r})"


class Validator:
    """Base of annotations that refuse values: ``validate`` raises ValueError or TypeError."""

    def validate(self, value: Any) -> None:
        """Raise if ``value`` is not allowed."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(repr(value) for value in vars(self).values())})"


def _refuse_unless(allowed: bool, message: str) -> None:
    if not allowed:
        raise ValueError(message)


class IsNone(Validator):
    """Only None."""

    def validate(self, value: Any) -> None:
        _refuse_unless(value is None, f"{value!r} must be None")


class NotNone(Validator):
    """Anything but None."""

    def validate(self, value: Any) -> None:
        _refuse_unless(value is not None, "The value must not be None")


class IsInstance(Validator):
    """None, or an instance of a type (or of one of several)."""

    def __init__(self, classtype: Any):
        self.classtype = classtype

    def validate(self, value: Any) -> None:
        if value is not None and not isinstance(value, self.classtype):
            raise TypeError(f"{value!r} is of type {type(value).__name__}, and must be {self.classtype}")


class WithinRange(Validator):
    """From ``minimum`` to ``maximum``, both included."""

    def __init__(self, minimum: Any, maximum: Any):
        self.minimum, self.maximum = minimum, maximum

    def validate(self, value: Any) -> None:
        _refuse_unless(self.minimum <= value <= self.maximum, f"{value} is not within {self.minimum} to {self.maximum}")


class Minimum(Validator):
    """At least ``minimum``."""

    def __init__(self, minimum: Any):
        self.minimum = minimum

    def validate(self, value: Any) -> None:
        _refuse_unless(value >= self.minimum, f"{value} is less than {self.minimum}")


class Maximum(Validator):
    """At most ``maximum``."""

    def __init__(self, maximum: Any):
        self.maximum = maximum

    def validate(self, value: Any) -> None:
        _refuse_unless(value <= self.maximum, f"{value} is more than {self.maximum}")


class Choice(Validator):
    """One of ``choices``."""

    def __init__(self, choices: Any):
        self.choices = choices

    def validate(self, value: Any) -> None:
        _refuse_unless(value in self.choices, f"{value!r} is none of {self.choices}")


class Exclude(Validator):
    """None of ``excludedValues``."""

    def __init__(self, excludedValues: Any):
        self.excludedValues = excludedValues

    def validate(self, value: Any) -> None:
        _refuse_unless(value not in self.excludedValues, f"{value!r} is excluded")


class RangeBounds(Validator):
    """A range that lies from ``minimum`` to ``maximum``."""

    def __init__(self, minimum: Any, maximum: Any):
        self.minimum, self.maximum = minimum, maximum

    def validate(self, value: Any) -> None:
        inside = self.minimum <= value.minimum and value.maximum <= self.maximum
        _refuse_unless(inside, f"{value} is not within {self.minimum} to {self.maximum}")


@dataclass
class Decimals:
    """Digits after the point in a widget."""

    value: int


@dataclass
class SingleStep:
    """The step of a widget."""

    value: float


@dataclass
class Label:
    """The label of a created widget."""

    label: str


def splitAnnotations(annotated: Any) -> tuple[Any, tuple[Any, ...]]:
    """``Annotated[int, a, b]`` -> ``(int, (a, b))``; a plain type has no annotations."""
    kind, *rest = typing.get_args(Annotated[annotated, None])
    return kind, tuple(rest[:-1])


def unannotatedType(annotated: Any) -> Any:
    """The type without its annotations."""
    return splitAnnotations(annotated)[0]


def findFirstAnnotation(annotations: Any, kind: type) -> Any:
    """The first annotation of a kind, or None."""
    return next((annotation for annotation in annotations if isinstance(annotation, kind)), None)


def extractDefault(annotations: Any) -> tuple[Default | None, list[Any]]:
    """The default among the annotations, and the others. More than one is an error."""
    defaults = [annotation for annotation in annotations if isinstance(annotation, Default)]
    if len(defaults) > 1:
        raise ValueError(f"More than one default: {defaults}")
    return (defaults[0] if defaults else None), [a for a in annotations if not isinstance(a, Default)]


def extractValidators(annotations: Any) -> tuple[list[Validator], list[Any]]:
    """The validators among the annotations, and the others. A validator may be given as its class."""
    found, others = [], []
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, Validator):
            found.append(annotation())
        elif isinstance(annotation, Validator):
            found.append(annotation)
        else:
            others.append(annotation)
    return found, others


def _node_classes(annotated: Any) -> tuple[type, ...] | None:
    """The node classes of a node type, or of a union of node types and None; None for any other type."""
    kind = unannotatedType(annotated)
    members = typing.get_args(kind) if is_union(kind) else (kind,)
    classes = [unannotatedType(member) for member in members if member is not type(None)]
    if classes and all(isinstance(member, type) and issubclass(member, slicer.vtkMRMLNode) for member in classes):
        return tuple(classes)
    return None


def is_union(kind: Any) -> bool:
    """Whether a type is ``Union[A, B]`` or ``A | B``."""
    import types

    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def isNodeOrUnionOfNodes(datatype: Any) -> bool:
    """Whether a type is a node class, or a union of node classes and None."""
    return _node_classes(datatype) is not None


def getNodeTypes(datatype: Any) -> tuple[str, ...]:
    """The class names of the nodes of a type; TypeError if it is not one of nodes."""
    classes = _node_classes(datatype)
    if classes is None:
        raise TypeError(f"{datatype} is not a node type")
    return tuple(kind.__name__ for kind in classes)
