"""Parameters of more than one type: unions, None and Any."""

from __future__ import annotations

import importlib
import typing
from typing import Any

from slicer.util import NodeModify

from .annotations import IsNone, is_union
from .containers import TupleSerializer, restoring
from .serializers import (
    Serializer,
    StringSerializer,
    ValidatedSerializer,
    createSerializerFromAnnotatedType,
    parameterNodeSerializer,
)

__all__ = ["AnySerializer", "NoneSerializer", "UnionSerializer"]


@parameterNodeSerializer
class NoneSerializer(Serializer):
    """None, as a member of a union."""

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        return type_ is type(None)

    @staticmethod
    def create(type_: Any) -> Any:
        return ValidatedSerializer(NoneSerializer(), [IsNone()])

    def default(self) -> None:
        return None

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        parameterNode.SetParameter(name, "True")

    def read(self, parameterNode: Any, name: str) -> None:
        return None

    def supportsCaching(self) -> bool:
        return True


@parameterNodeSerializer
class UnionSerializer(Serializer):
    """Union[A, B] and Optional[A]: the value is under ``name.index`` of the member that took it."""

    def __init__(self, serializers: Any):
        self._members = [ValidatedSerializer(serializer, []) for serializer in serializers]

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        return is_union(type_)

    @staticmethod
    def create(type_: Any) -> Any:
        return UnionSerializer([createSerializerFromAnnotatedType(kind) for kind in typing.get_args(type_)])

    def default(self) -> Any:
        is_optional = len(self._members) == 2 and isinstance(self._members[1].serializer, NoneSerializer)
        return None if is_optional else self._members[0].default()

    def _stored(self, node: Any, name: str) -> tuple[int, Any] | None:
        found = ((i, member) for i, member in enumerate(self._members) if member.isIn(node, f"{name}.{i}"))
        return next(found, None)

    def _member_for(self, value: Any) -> tuple[int, Any]:
        refusal: Exception = TypeError(f"No member of the union takes {value!r} of type {type(value).__name__}")
        for index, member in enumerate(self._members):
            if member.serializer.canSerialize(type(value)):
                try:
                    member.validate(value)
                    return index, member
                except (TypeError, ValueError) as error:
                    refusal = error
        raise refusal

    def isIn(self, parameterNode: Any, name: str) -> bool:
        return self._stored(parameterNode, name) is not None

    def read(self, parameterNode: Any, name: str) -> Any:
        stored = self._stored(parameterNode, name)
        if stored is None:
            raise KeyError(f"{name} is not in the parameter node")
        return stored[1].read(parameterNode, f"{name}.{stored[0]}")

    plain = read

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        index, member = self._member_for(value)
        with restoring(self, parameterNode, name):
            self.remove(parameterNode, name)
            member.write(parameterNode, f"{name}.{index}", value)

    def remove(self, parameterNode: Any, name: str) -> None:
        with NodeModify(parameterNode):
            for index, member in enumerate(self._members):
                member.remove(parameterNode, f"{name}.{index}")

    def supportsCaching(self) -> bool:
        return all(member.supportsCaching() for member in self._members)


@parameterNodeSerializer
class AnySerializer(Serializer):
    """typing.Any: the value's class is kept beside it, so it must be one that a module defines at its top level."""

    def __init__(self) -> None:
        self._type = TupleSerializer([StringSerializer(), StringSerializer()])

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        return type_ is Any

    @staticmethod
    def create(type_: Any) -> Any:
        return AnySerializer()

    def default(self) -> None:
        return None

    def _value_serializer(self, node: Any, name: str) -> Any:
        module, class_name = self._type.read(node, f"{name}.type")
        kind = type(None) if class_name == "NoneType" else getattr(importlib.import_module(module), class_name)
        return createSerializerFromAnnotatedType(kind)

    def isIn(self, parameterNode: Any, name: str) -> bool:
        return self._type.isIn(parameterNode, f"{name}.type")

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        kind = type(value)
        serializer = createSerializerFromAnnotatedType(kind)
        with NodeModify(parameterNode):
            self.remove(parameterNode, name)
            serializer.write(parameterNode, f"{name}.value", value)
            self._type.write(parameterNode, f"{name}.type", (kind.__module__, kind.__name__))

    def read(self, parameterNode: Any, name: str) -> Any:
        return self._value_serializer(parameterNode, name).read(parameterNode, f"{name}.value")

    def remove(self, parameterNode: Any, name: str) -> None:
        if self.isIn(parameterNode, name):
            self._value_serializer(parameterNode, name).remove(parameterNode, f"{name}.value")
            self._type.remove(parameterNode, f"{name}.type")
