"""How a value is kept in a parameter node, which holds text and references to nodes."""

from __future__ import annotations

import enum
import pathlib
from collections.abc import Callable
from typing import Any

import qt
import slicer

from .annotations import IsInstance, NotNone, Validator, extractValidators, splitAnnotations

__all__ = [
    "BoolSerializer", "EnumSerializer", "NodeSerializer", "NumberSerializer", "ObservedQColor", "PathSerializer",
    "QColorSerializer", "Serializer", "StringSerializer", "ValidatedSerializer", "createSerializer",
    "createSerializerFromAnnotatedType", "extractSerializer", "parameterNodeSerializer",
]  # fmt: skip

PATH_TYPES = tuple(
    getattr(pathlib, name)
    for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
)


class Serializer:
    """Keeps values of one type under a name in a parameter node. A module may derive its own and register it with
    ``@parameterNodeSerializer``; the methods here keep a value as one text."""

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        """Whether this class keeps values of a type."""
        raise NotImplementedError

    @staticmethod
    def create(type_: Any) -> Any:
        """A serializer for a type, usually a :class:`ValidatedSerializer` around one of this class."""
        raise NotImplementedError

    def default(self) -> Any:
        """The value of a parameter without a default of its own."""
        raise NotImplementedError

    def isIn(self, parameterNode: Any, name: str) -> bool:
        """Whether the node has the parameter."""
        return parameterNode.HasParameter(name)

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        """Put the value into the node."""
        raise NotImplementedError

    def read(self, parameterNode: Any, name: str) -> Any:
        """Get the value out of the node."""
        raise NotImplementedError

    def remove(self, parameterNode: Any, name: str) -> None:
        """Take the parameter out of the node."""
        parameterNode.UnsetParameter(name)

    def supportsCaching(self) -> bool:
        """Whether a value that was read stays right until the node changes. A mutable value must write its own changes
        to the node for that, as :class:`containers.ObservedList` does."""
        return False


class ValidatedSerializer(Serializer):
    """Another serializer, behind validators. Around another one of this class, the inner validators come first."""

    serializer: Any
    validators: list[Validator]

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        """Never chosen for a type."""
        return False

    @staticmethod
    def create(type_: Any) -> Any:
        """Not to be created for a type."""
        raise TypeError("A ValidatedSerializer is made around another serializer")

    def __init__(self, serializer: Any, validators: list[Validator] | None):
        inner = serializer.validators if isinstance(serializer, ValidatedSerializer) else []
        self.serializer = serializer.serializer if isinstance(serializer, ValidatedSerializer) else serializer
        self.validators = [*inner, *(validators or [])]

    def validate(self, value: Any) -> None:
        """Raise if a validator refuses the value."""
        for validator in self.validators:
            validator.validate(value)

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        self.validate(value)
        self.serializer.write(parameterNode, name, value)

    def default(self) -> Any:
        return self.serializer.default()

    def isIn(self, parameterNode: Any, name: str) -> bool:
        return self.serializer.isIn(parameterNode, name)

    def read(self, parameterNode: Any, name: str) -> Any:
        return self.serializer.read(parameterNode, name)

    def remove(self, parameterNode: Any, name: str) -> None:
        self.serializer.remove(parameterNode, name)

    def supportsCaching(self) -> bool:
        return self.serializer.supportsCaching()


_registered: list[Any] = []


def parameterNodeSerializer(classtype: type | None = None) -> Any:
    """Class decorator: consider this serializer for parameters of the types that it can serialize."""

    def register(cls: type) -> type:
        if not issubclass(cls, Serializer):
            raise TypeError(f"{cls.__name__} is not a Serializer")
        _registered.append(cls)
        return cls

    return register if classtype is None else register(classtype)


def extractSerializer(annotations: Any) -> tuple[Any, list[Any]]:
    """The serializer among the annotations, and the others."""

    def is_serializer(entry: Any) -> bool:
        return isinstance(entry, Serializer) or (isinstance(entry, type) and issubclass(entry, Serializer))

    found = [entry for entry in annotations if is_serializer(entry)]
    if len(found) > 1:
        raise ValueError(f"More than one serializer: {found}")
    return (found[0] if found else None), [entry for entry in annotations if not is_serializer(entry)]


def createSerializer(type_: Any, annotations: Any) -> tuple[ValidatedSerializer, list[Any]]:
    """The serializer for a type with its annotations, and the annotations that it had no use for."""
    validators, rest = extractValidators(annotations)
    serializer, rest = extractSerializer(rest)
    if serializer is None:
        factory = next((candidate for candidate in _registered if candidate.canSerialize(type_)), None)
        if factory is None:
            raise TypeError(f"No serializer for {type_}")
        serializer = factory.create(type_)
    return ValidatedSerializer(serializer, validators), rest


def createSerializerFromAnnotatedType(annotatedType: Any) -> ValidatedSerializer:
    """The serializer for an element of a container."""
    return createSerializer(*splitAnnotations(annotatedType))[0]


class _TextSerializer(Serializer):
    """A value that is one text: ``to_text`` and ``from_text`` convert it."""

    to_text: Callable[[Any], str] = staticmethod(str)
    from_text: Callable[[str], Any] = staticmethod(str)

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        parameterNode.SetParameter(name, self.to_text(value))

    def read(self, parameterNode: Any, name: str) -> Any:
        return self.from_text(parameterNode.GetParameter(name))

    def supportsCaching(self) -> bool:
        return True


@parameterNodeSerializer
class NumberSerializer(_TextSerializer):
    """int and float."""

    def __init__(self, type: Any):
        self.from_text = type

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        return type_ in (int, float)

    @staticmethod
    def create(type_: Any) -> Any:
        accepted = (int, float) if type_ is float else int
        return ValidatedSerializer(NumberSerializer(type_), [NotNone(), IsInstance(accepted)])

    def default(self) -> Any:
        return 0


@parameterNodeSerializer
class StringSerializer(_TextSerializer):
    """str."""

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        return type_ is str

    @staticmethod
    def create(type_: Any) -> Any:
        return ValidatedSerializer(StringSerializer(), [NotNone(), IsInstance(str)])

    def default(self) -> str:
        return ""


@parameterNodeSerializer
class PathSerializer(_TextSerializer):
    """The classes of pathlib."""

    def __init__(self, pathtype: Any):
        self.from_text = pathtype

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        return type_ in PATH_TYPES

    @staticmethod
    def create(type_: Any) -> Any:
        return ValidatedSerializer(PathSerializer(type_), [NotNone(), IsInstance(type_)])

    def default(self) -> Any:
        return self.from_text("")


@parameterNodeSerializer
class BoolSerializer(_TextSerializer):
    """bool, as "True" or "False"."""

    from_text = staticmethod(lambda text: text == "True")
    to_text = staticmethod(lambda value: "True" if value else "False")

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        return type_ is bool

    @staticmethod
    def create(type_: Any) -> Any:
        return ValidatedSerializer(BoolSerializer(), [NotNone(), IsInstance(bool)])

    def default(self) -> bool:
        return False


@parameterNodeSerializer
class EnumSerializer(_TextSerializer):
    """A Python enumeration, by the name of its member."""

    def __init__(self, enumtype: Any):
        self.enumtype = enumtype
        self.from_text = lambda name: enumtype[name]
        self.to_text = lambda member: member.name

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        return isinstance(type_, type) and issubclass(type_, enum.Enum)

    @staticmethod
    def create(type_: Any) -> Any:
        return ValidatedSerializer(EnumSerializer(type_), [NotNone(), IsInstance(type_)])

    def default(self) -> Any:
        return next(iter(self.enumtype))


@parameterNodeSerializer
class NodeSerializer(Serializer):
    """A node of the scene, or None, as a node reference. An empty parameter of the same name marks that it was set."""

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        return isinstance(type_, type) and issubclass(type_, slicer.vtkMRMLNode)

    @staticmethod
    def create(type_: Any) -> Any:
        return ValidatedSerializer(NodeSerializer(), [IsInstance(type_)])

    def default(self) -> None:
        return None

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        parameterNode.SetParameter(name, "")
        parameterNode.SetNodeReferenceID(name, value.GetID() if value is not None else None)

    def read(self, parameterNode: Any, name: str) -> Any:
        return parameterNode.GetNodeReference(name)

    def remove(self, parameterNode: Any, name: str) -> None:
        parameterNode.UnsetParameter(name)
        parameterNode.RemoveNodeReferenceIDs(name)

    def supportsCaching(self) -> bool:
        return True


class ObservedQColor(qt.QColor):
    """A colour that writes its changes to the parameter node."""

    def __init__(self, text: str, save: Callable[[Any], None]):
        super().__init__(text)
        self._save = save


def _saving(name: str) -> Callable[..., None]:
    def setter(self: ObservedQColor, *arguments: Any) -> None:
        getattr(qt.QColor, name)(self, *arguments)
        self._save(self)

    return setter


for _name in dir(qt.QColor):
    if _name.startswith("set"):
        setattr(ObservedQColor, _name, _saving(_name))


@parameterNodeSerializer
class QColorSerializer(Serializer):
    """A colour, as "#aarrggbb"."""

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        return type_ is qt.QColor

    @staticmethod
    def create(type_: Any) -> Any:
        return ValidatedSerializer(QColorSerializer(), [NotNone(), IsInstance(qt.QColor)])

    def default(self) -> Any:
        return qt.QColor()

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        parameterNode.SetParameter(name, value.name(qt.QColor.HexArgb))

    def read(self, parameterNode: Any, name: str) -> Any:
        return ObservedQColor(parameterNode.GetParameter(name), lambda color: self.write(parameterNode, name, color))

    def supportsCaching(self) -> bool:
        return True
