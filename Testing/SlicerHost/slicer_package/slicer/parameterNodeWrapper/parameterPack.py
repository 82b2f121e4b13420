"""Packs: a class of typed fields that is itself a parameter."""

from __future__ import annotations

import logging
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from slicer.util import NodeModify

from .annotations import IsInstance, NotNone, extractDefault, splitAnnotations, unannotatedType
from .serializers import Serializer, ValidatedSerializer, createSerializer, parameterNodeSerializer

__all__ = ["ParameterInfo", "isParameterPack", "nestedParameterNames", "parameterPack"]


@dataclass
class ParameterInfo:
    """One field of a pack or of a parameter node wrapper."""

    basename: str
    serializer: Any
    default: Any
    unalteredType: Any


def _always(value: Any) -> Callable[[], Any]:
    return lambda: value


def describe_fields(cls: type) -> dict[str, ParameterInfo]:
    """The typed fields of a class. A default is given by ``=``, by ``Default(…)`` or by the serializer."""
    fields = {}
    for name, annotated in typing.get_type_hints(cls, include_extras=True).items():
        kind, annotations = splitAnnotations(annotated)
        try:
            serializer, rest = createSerializer(kind, annotations)
        except Exception as error:
            raise TypeError(f"{cls.__name__}.{name}: {error}") from error
        default, rest = extractDefault(rest)
        if hasattr(cls, name):
            generate: Callable[[], Any] = _always(getattr(cls, name))
        elif default is not None:
            generate = partial(getattr, default, "value")
        else:
            generate = serializer.default
        known = [entry for entry in rest if not type(entry).__module__.startswith(__package__)]
        if known:
            logging.warning("%s.%s: unused annotations %s", cls.__name__, name, known)
        fields[name] = ParameterInfo(name, serializer, generate, annotated)
    return fields


def reserve(cls: type, **members: Any) -> None:
    """Add members to a class that it must not have already."""
    for name, member in members.items():
        if hasattr(cls, name):
            raise ValueError(f"{cls.__name__}: the name {name!r} is reserved")
        setattr(cls, name, member)


def isParameterPack(obj: Any) -> bool:
    """Whether an object or class is a pack."""
    return getattr(obj, "_is_parameterPack", False)


def field_type(fields: dict[str, ParameterInfo], owner: Any, name: str) -> Any:
    """The annotated type of a field, whose name may be dotted; ValueError if there is no such field."""
    top, _, rest = name.partition(".")
    if top not in fields:
        raise ValueError(f"{owner} has no parameter {top!r}; it has {', '.join(fields)}")
    kind = fields[top].unalteredType
    if not rest:
        return kind
    inner = unannotatedType(kind)
    if not isParameterPack(inner):
        raise ValueError(f"{owner}.{top} is not a parameter pack, so it has no {rest!r}")
    return inner.dataType(rest)


def _attribute(name: str) -> str:
    return f"_parameterPack_{name}_impl"


def _make_property(name: str) -> property:
    def set_value(self: Any, value: Any) -> None:
        self.allParameters[name].serializer.validate(value)
        setattr(self, _attribute(name), value)

    return property(lambda self: getattr(self, _attribute(name)), set_value)


def _initialize(self: Any, *arguments: Any, **options: Any) -> None:
    """Fields by position or by name; the others get their defaults."""
    names = list(self.allParameters)
    given = dict(zip(names, arguments, strict=False))
    for name, value in options.items():
        if name not in names:
            raise TypeError(f"__init__() got an unexpected keyword argument {name!r}")
        if name in given:
            raise TypeError(f"__init__() got multiple values for argument {name!r}")
        given[name] = value
    if len(arguments) > len(names):
        raise TypeError(f"__init__() takes {len(names)} values, and got {len(arguments)}")
    for name, field in self.allParameters.items():
        _fields_property(type(self), name).__set__(self, given[name] if name in given else field.default())


def _fields_property(cls: type, name: str) -> property:
    """The property that the pack itself defined: an observed pack overrides it."""
    return cls._parameterPack_properties[name]  # type: ignore[attr-defined]


def _get_value(self: Any, name: str) -> Any:
    """The value of a field, whose name may be dotted."""
    _check_name(self, name)
    top, _, rest = name.partition(".")
    value = getattr(self, top)
    if not rest:
        return value
    if not isParameterPack(value):
        raise ValueError(f"{top} is not a parameter pack, so it has no {rest!r}")
    return value.getValue(rest)


def _set_value(self: Any, name: str, value: Any) -> None:
    """Set a field, whose name may be dotted."""
    _check_name(self, name)
    top, _, rest = name.partition(".")
    if rest:
        getattr(self, top).setValue(rest, value)
    else:
        setattr(self, top, value)


def _check_name(self: Any, name: str) -> None:
    if not hasattr(self, name.partition(".")[0]):
        raise ValueError(f"{type(self).__name__} has no member {name!r}")


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _to_text(self: Any) -> str:
    values = (f"{name}={_quoted(getattr(self, _attribute(name)))}" for name in self.allParameters)
    return f"{type(self).__name__}({', '.join(values)})"


def _equals(self: Any, other: Any) -> bool:
    same = isParameterPack(other) and list(self.allParameters) == list(other.allParameters)
    related = isinstance(other, type(self)) or isinstance(self, type(other))
    return same and related and all(
        getattr(self, _attribute(name)) == getattr(other, _attribute(name)) for name in self.allParameters
    )  # fmt: skip


def parameterPack(classtype: type | None = None) -> Any:
    """Class decorator: typed fields with validation, that a parameter node can hold."""
    return _make_pack if classtype is None else _make_pack(classtype)


def _make_pack(cls: type) -> type:
    fields = describe_fields(cls)
    if not fields:
        raise ValueError(f"{cls.__name__} has no typed fields, so it is no parameter pack")
    for name, field in fields.items():
        if name.startswith("_parameterPack_") or _attribute(name) in vars(cls):
            raise ValueError(f"{cls.__name__}: names that start with _parameterPack_ are reserved")
        try:
            field.serializer.validate(field.default())
        except (TypeError, ValueError) as error:
            raise ValueError(f"{cls.__name__}.{name}: the default is refused: {error}") from error
    own_init = vars(cls).get("__init__")

    def initialize(self: Any, *arguments: Any, **options: Any) -> None:
        _initialize(self)
        if own_init is not None:
            own_init(self, *arguments, **options)

    properties = {name: _make_property(name) for name in fields}
    for name, made in properties.items():
        setattr(cls, name, made)
    cls.__init__ = initialize if own_init is not None else _initialize  # type: ignore[misc]
    for name, method in (("__eq__", _equals), ("__str__", _to_text), ("__repr__", _to_text)):
        if name not in vars(cls):
            setattr(cls, name, method)
    reserve(
        cls,
        allParameters=fields,
        _is_parameterPack=True,
        _parameterPack_properties=properties,
        getValue=_get_value,
        setValue=_set_value,
        dataType=staticmethod(lambda name: field_type(fields, cls.__name__, name)),
    )
    return cls


def nestedParameterNames(pack: Any) -> list[str]:
    """The names of all fields, those of packs within the pack dotted."""
    names = []
    for name, field in unannotatedType(pack).allParameters.items():
        inner = unannotatedType(field.unalteredType)
        names += [f"{name}.{rest}" for rest in nestedParameterNames(inner)] if isParameterPack(inner) else [name]
    return names


@cache
def _observed_class(pack: type) -> type:
    """A pack that writes itself to the parameter node when one of its fields is set."""

    class ObservedParameterPack(pack):
        def __init__(self, save: Callable[[Any], None], values: dict[str, Any]):
            super().__setattr__("_save", None)
            _initialize(self, **values)
            super().__setattr__("_save", save)

        def __setattr__(self, name: str, value: Any) -> None:
            if self._save is not None and not hasattr(self, name):
                raise AttributeError(f"{pack.__name__} has no attribute {name!r}, and new ones can not be added")
            super().__setattr__(name, value)
            if self._save is not None and name in (_attribute(field) for field in self.allParameters):
                self._save(self)

        def __str__(self) -> str:
            return f"Observed({super().__str__()})"

        __repr__ = __str__

    ObservedParameterPack.__name__ = pack.__name__
    return ObservedParameterPack


@parameterNodeSerializer
class ParameterPackSerializer(Serializer):
    """A pack: each field under ``name.field``."""

    def __init__(self, type_: Any):
        self.type = type_

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        return isParameterPack(type_)

    @staticmethod
    def create(type_: Any) -> Any:
        return ValidatedSerializer(ParameterPackSerializer(type_), [NotNone(), IsInstance(type_)])

    def default(self) -> Any:
        return self.type()

    def isIn(self, parameterNode: Any, name: str) -> bool:
        first = next(iter(self.type.allParameters.values()))
        return first.serializer.isIn(parameterNode, f"{name}.{first.basename}")

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        with NodeModify(parameterNode):
            for key, field in self.type.allParameters.items():
                field.serializer.write(parameterNode, f"{name}.{key}", getattr(value, _attribute(key)))

    def _values(self, node: Any, name: str) -> dict[str, Any]:
        return {key: field.serializer.read(node, f"{name}.{key}") for key, field in self.type.allParameters.items()}

    def read(self, parameterNode: Any, name: str) -> Any:
        def save(pack: Any) -> None:
            with NodeModify(parameterNode):
                self.write(parameterNode, name, pack)
                for key, value in self._values(parameterNode, name).items():
                    object.__setattr__(pack, _attribute(key), value)  # what is within observes its own place

        return _observed_class(self.type)(save, self._values(parameterNode, name))

    def remove(self, parameterNode: Any, name: str) -> None:
        for key, field in self.type.allParameters.items():
            field.serializer.remove(parameterNode, f"{name}.{key}")

    def supportsCaching(self) -> bool:
        return all(field.serializer.supportsCaching() for field in self.type.allParameters.values())
