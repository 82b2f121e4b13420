"""Lists, tuples and dictionaries in a parameter node. An element is kept under ``name.index``.

A list or dictionary that was read is observed: changing it writes it to the node.
"""

from __future__ import annotations

import collections.abc
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from slicer.util import NodeModify

from .serializers import (
    NumberSerializer,
    Serializer,
    createSerializerFromAnnotatedType,
    parameterNodeSerializer,
)

__all__ = ["DictSerializer", "ListSerializer", "ObservedDict", "ObservedList", "TupleSerializer"]


@contextmanager
def restoring(serializer: Any, node: Any, name: str) -> Iterator[None]:
    """One change of the node; if the block raises, the parameter is as it was before."""
    before = serializer.plain(node, name) if serializer.isIn(node, name) else None
    was_in = serializer.isIn(node, name)
    with NodeModify(node):
        try:
            yield
        except Exception:
            serializer.remove(node, name)
            if was_in:
                serializer.write(node, name, before)
            raise


class ObservedList(collections.abc.MutableSequence[Any]):
    """A list in a parameter node."""

    def __init__(self, parameterNode: Any, listSerializer: Any, name: str, startingValue: list[Any]):
        self._node, self._serializer, self._name = parameterNode, listSerializer, name
        self._items = startingValue

    def _save(self, items: list[Any]) -> None:
        with NodeModify(self._node):
            self._serializer.write(self._node, self._name, items)
            self._items = self._serializer.plain(self._node, self._name)  # elements observe their new places

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        items = list(self._items)
        items[index] = value
        self._save(items)

    def __delitem__(self, index: Any) -> None:
        items = list(self._items)
        del items[index]
        self._save(items)

    def insert(self, index: int, value: Any) -> None:
        """Before ``index``."""
        items = list(self._items)
        items.insert(index, value)
        self._save(items)

    def extend(self, values: Any) -> None:
        """All at once."""
        self._save([*self._items, *values])

    def clear(self) -> None:
        """Leave it empty."""
        self._save([])

    def sort(self, **options: Any) -> None:
        """As list.sort."""
        self._save(sorted(self._items, **options))

    def reverse(self) -> None:
        """As list.reverse."""
        self._save(self._items[::-1])

    def __iadd__(self, values: Any) -> ObservedList:  # type: ignore[misc]  # "+" gives a plain list, "+=" stays in the node
        self.extend(values)
        return self

    def __imul__(self, times: int) -> ObservedList:  # type: ignore[misc]
        self._save(self._items * times)
        return self

    def _no_operator(self, other: Any) -> Any:
        raise NotImplementedError("Make a list of it first: list(parameter) + other")

    __add__ = __radd__ = __mul__ = __rmul__ = _no_operator

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (list, ObservedList)) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ObservedList({self._items!r})"

    def __str__(self) -> str:
        return str(self._items)


@parameterNodeSerializer
class ListSerializer(Serializer):
    """list[T], with its length under ``name.len``."""

    def __init__(self, elementTypeSerializer: Any):
        self._element = elementTypeSerializer
        self._length = NumberSerializer(int)

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        return type_ is list or typing.get_origin(type_) is list

    @staticmethod
    def create(type_: Any) -> Any:
        return ListSerializer(createSerializerFromAnnotatedType((typing.get_args(type_) or (Any,))[0]))

    def default(self) -> list[Any]:
        return []

    def _len(self, node: Any, name: str) -> int:
        return self._length.read(node, f"{name}.len") if self.isIn(node, name) else 0

    def isIn(self, parameterNode: Any, name: str) -> bool:
        return self._length.isIn(parameterNode, f"{name}.len")

    def plain(self, node: Any, name: str) -> list[Any]:
        """The elements in a plain list."""
        return [self._element.read(node, f"{name}.{index}") for index in range(self._len(node, name))]

    def read(self, parameterNode: Any, name: str) -> ObservedList:
        return ObservedList(parameterNode, self, name, self.plain(parameterNode, name))

    def write(self, parameterNode: Any, name: str, values: Any) -> None:
        values = list(values)
        with restoring(self, parameterNode, name):
            surplus = range(len(values), self._len(parameterNode, name))
            for index, value in enumerate(values):
                self._element.write(parameterNode, f"{name}.{index}", value)
            self._length.write(parameterNode, f"{name}.len", len(values))
            for index in surplus:
                self._element.remove(parameterNode, f"{name}.{index}")

    def remove(self, parameterNode: Any, name: str) -> None:
        with NodeModify(parameterNode):
            for index in range(self._len(parameterNode, name)):
                self._element.remove(parameterNode, f"{name}.{index}")
            self._length.remove(parameterNode, f"{name}.len")

    def supportsCaching(self) -> bool:
        return self._element.supportsCaching()


@parameterNodeSerializer
class TupleSerializer(Serializer):
    """tuple[A, B, …] of a fixed length."""

    def __init__(self, serializers: Any):
        self._serializers = list(serializers)

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        return typing.get_origin(type_) is tuple

    @staticmethod
    def create(type_: Any) -> Any:
        return TupleSerializer([createSerializerFromAnnotatedType(kind) for kind in typing.get_args(type_)])

    def default(self) -> tuple[Any, ...]:
        return tuple(serializer.default() for serializer in self._serializers)

    def isIn(self, parameterNode: Any, name: str) -> bool:
        return self._serializers[0].isIn(parameterNode, f"{name}.0")

    def read(self, parameterNode: Any, name: str) -> tuple[Any, ...]:
        kept = enumerate(self._serializers)
        return tuple(serializer.read(parameterNode, f"{name}.{index}") for index, serializer in kept)

    plain = read

    def write(self, parameterNode: Any, name: str, values: Any) -> None:
        values = tuple(values)
        if len(values) != len(self._serializers):
            raise ValueError(f"{len(values)} values for a tuple of {len(self._serializers)}")
        with restoring(self, parameterNode, name):
            for index, (serializer, value) in enumerate(zip(self._serializers, values, strict=True)):
                serializer.write(parameterNode, f"{name}.{index}", value)

    def remove(self, parameterNode: Any, name: str) -> None:
        with NodeModify(parameterNode):
            for index, serializer in enumerate(self._serializers):
                serializer.remove(parameterNode, f"{name}.{index}")

    def supportsCaching(self) -> bool:
        return all(serializer.supportsCaching() for serializer in self._serializers)


class ObservedDict(collections.abc.MutableMapping[Any, Any]):
    """A dictionary in a parameter node."""

    def __init__(self, parameterNode: Any, dictSerializer: Any, name: str, startingValue: dict[Any, Any]):
        self._node, self._serializer, self._name = parameterNode, dictSerializer, name
        self._items = startingValue

    def _save(self, items: dict[Any, Any]) -> None:
        with NodeModify(self._node):
            self._serializer.write(self._node, self._name, items)
            self._items = self._serializer.plain(self._node, self._name)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __getitem__(self, key: Any) -> Any:
        return self._items[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._save({**self._items, key: value})

    def __delitem__(self, key: Any) -> None:
        items = dict(self._items)
        del items[key]
        self._save(items)

    def update(self, *arguments: Any, **options: Any) -> None:
        """All at once."""
        self._save({**self._items, **dict(*arguments, **options)})

    def popitem(self) -> tuple[Any, Any]:
        """Take out the entry that came last, as dict.popitem does."""
        if not self._items:
            raise KeyError("popitem(): the dictionary is empty")
        key = next(reversed(self._items))
        return key, self.pop(key)

    def clear(self) -> None:
        """Leave it empty."""
        self._save({})

    def __ior__(self, other: Any) -> ObservedDict:
        self.update(other)
        return self

    def __or__(self, other: Any) -> Any:
        raise NotImplementedError("Make a dictionary of it first: dict(parameter) | other")

    __ror__ = __or__

    def __reversed__(self) -> Iterator[Any]:
        return reversed(self._items)

    def copy(self) -> dict[Any, Any]:
        """A plain dictionary."""
        return dict(self._items)

    def __repr__(self) -> str:
        return f"ObservedDict({self._items!r})"

    def __str__(self) -> str:
        return str(self._items)


@parameterNodeSerializer
class DictSerializer(Serializer):
    """dict[K, V], as a list of pairs, in order."""

    def __init__(self, keySerializer: Any, valueSerializer: Any):
        self._pairs = ListSerializer(TupleSerializer([keySerializer, valueSerializer]))

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        return type_ is dict or typing.get_origin(type_) is dict

    @staticmethod
    def create(type_: Any) -> Any:
        key, value = typing.get_args(type_) or (Any, Any)
        return DictSerializer(createSerializerFromAnnotatedType(key), createSerializerFromAnnotatedType(value))

    def default(self) -> dict[Any, Any]:
        return {}

    def isIn(self, parameterNode: Any, name: str) -> bool:
        return self._pairs.isIn(parameterNode, name)

    def plain(self, node: Any, name: str) -> dict[Any, Any]:
        """The entries in a plain dictionary."""
        return dict(self._pairs.plain(node, name))

    def read(self, parameterNode: Any, name: str) -> ObservedDict:
        return ObservedDict(parameterNode, self, name, self.plain(parameterNode, name))

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        self._pairs.write(parameterNode, name, value.items())

    def remove(self, parameterNode: Any, name: str) -> None:
        self._pairs.remove(parameterNode, name)

    def supportsCaching(self) -> bool:
        return self._pairs.supportsCaching()
