"""Signals and ``connect`` in PythonQt's manner, over PySide6's signals.

Three differences matter to modules. PythonQt connects by signature (``button.connect("clicked(bool)", f)``), hands a
callable only as many arguments as it takes, and keeps the callable alive as long as the connection stands; PySide6
holds a bound method weakly.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable
from typing import Any

import shiboken6
from PySide6 import QtCore

from .faults import faults

# Signals of Qt 5 that Qt 6 renamed: (class, signature without blanks) -> name now.
QT5_SIGNALS = {
    ("QButtonGroup", "buttonClicked(int)"): "idClicked",
    ("QButtonGroup", "buttonPressed(int)"): "idPressed",
    ("QButtonGroup", "buttonReleased(int)"): "idReleased",
    ("QButtonGroup", "buttonToggled(int,bool)"): "idToggled",
    ("QComboBox", "activated(QString)"): "textActivated",
    ("QComboBox", "currentIndexChanged(QString)"): "currentTextChanged",
    ("QComboBox", "highlighted(QString)"): "textHighlighted",
    ("QDoubleSpinBox", "valueChanged(QString)"): "textChanged",
    ("QProcess", "error(QProcess::ProcessError)"): "errorOccurred",
    ("QSignalMapper", "mapped(QString)"): "mappedString",
    ("QSignalMapper", "mapped(int)"): "mappedInt",
    ("QSpinBox", "valueChanged(QString)"): "textChanged",
}

# PySide6's own, kept before the facade takes their names.
_qt_connect = QtCore.QObject.connect
_qt_disconnect = QtCore.QObject.disconnect
_pyside_getattribute = QtCore.QObject.__getattribute__

Adapter = Callable[..., None]
# Adapters by (address of the sender, signal), so that disconnect finds what connect made.
_connections: dict[tuple[int, str], list[tuple[Any, Adapter]]] = {}


def normalize(signature: str) -> str:
    """``"textChanged( const QString & )"`` -> ``"textChanged(QString)"``."""
    return QtCore.QMetaObject.normalizedSignature(signature.strip()).data().decode()


def accepted_arguments(callback: Callable[..., Any]) -> int | None:
    """How many positional arguments ``callback`` takes at most; None when it takes any number or will not say."""
    try:
        parameters = inspect.signature(callback).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    return sum(
        parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters
    )


def _call_builtin(callback: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Call a slot that is written in C++ with the most arguments that it takes."""
    for count in range(len(arguments), 0, -1):
        try:
            callback(*arguments[:count])
            return
        except TypeError:
            continue
    callback()


def make_adapter(callback: Callable[..., Any], types: list[str] | None) -> Adapter:
    """A slot that calls ``callback`` with the arguments that the signature lists, at most as many as it takes.

    ``types`` are those of the signature: ``currentNodeChanged(bool)`` is served by the signal that carries the node.
    """
    sent = None if types is None else len(types)
    to_bool = [index for index, kind in enumerate(types or ()) if kind == "bool"]
    limit = accepted_arguments(callback)
    receiver = getattr(callback, "__self__", None)
    is_builtin = inspect.isbuiltin(callback)

    def adapter(*arguments: Any) -> None:
        if isinstance(receiver, QtCore.QObject) and not shiboken6.isValid(receiver):
            return  # Qt has deleted the receiver
        arguments = tuple(bool(value) if index in to_bool else value for index, value in enumerate(arguments[:sent]))
        try:
            if is_builtin:
                _call_builtin(callback, arguments)
            else:
                callback(*arguments[:limit])
        except Exception:  # what a slot raises ends here in Slicer too: printed, and Qt goes on
            faults.record_exception(*sys.exc_info())

    return adapter


class Signal:
    """A signal of one object: ``button.clicked`` in a module. ``signature`` is one that the object's class has."""

    def __init__(self, sender: QtCore.QObject, signature: str, arguments: list[str] | None = None):
        self._sender = sender
        self._signature = signature
        self._arguments = arguments
        self._key = (shiboken6.getCppPointer(sender)[0], signature)

    def connect(self, receiver: Any, slot: str | None = None) -> bool:
        """Connect a callable, another signal, or the slot of an object that is named by its signature."""
        callback = resolve_slot(receiver, slot)
        adapter = make_adapter(callback, self._arguments)
        if self._key not in _connections:
            key = self._key
            _qt_connect(self._sender, QtCore.SIGNAL("destroyed()"), lambda: _connections.pop(key, None))
        _connections.setdefault(self._key, []).append((callback, adapter))
        return bool(_qt_connect(self._sender, QtCore.SIGNAL(self._signature), adapter))

    def disconnect(self, receiver: Any = None, slot: str | None = None) -> bool:
        """Undo :meth:`connect`; without an argument, undo every connection made from Python."""
        known = _connections.get(self._key, [])
        callback = None if receiver is None else resolve_slot(receiver, slot)
        gone = [entry for entry in known if callback is None or entry[0] == callback]
        for entry in gone:
            known.remove(entry)
            _qt_disconnect(self._sender, QtCore.SIGNAL(self._signature), entry[1])
        return bool(gone)

    def emit(self, *arguments: Any) -> None:
        """Send the signal."""
        name = self._signature.partition("(")[0]
        _pyside_getattribute(self._sender, name).emit(*arguments)

    __call__ = emit


def find_signal(sender: QtCore.QObject, signature: str) -> Signal | None:
    """The signal of ``sender`` that ``signature`` names, "clicked" or "clicked(bool)"; None if there is none.

    Where a signal has several signatures, the one that is asked for is taken, else the one with the most arguments:
    "currentNodeChanged(vtkMRMLNode*)" finds the signal that the host declares with a Python object.
    """
    signature = normalize(signature.lstrip("12"))
    name, _, listed = signature.partition("(")
    for kind in type(sender).__mro__:
        name = QT5_SIGNALS.get((kind.__name__, signature), name)
    best = _signatures(sender.metaObject()).get(name)
    if best is None:
        return None
    declared = listed.rstrip(")")
    sent = (declared.split(",") if declared else []) if "(" in signature else None
    return Signal(sender, signature if signature in best and sent else best[-1], sent)


_signature_cache: dict[str, dict[str, list[str]]] = {}


def _signatures(meta: QtCore.QMetaObject) -> dict[str, list[str]]:
    """Signal name -> its signatures, the longest last, of a class."""
    key = meta.className()
    if key not in _signature_cache:
        found: dict[str, list[str]] = {}
        for index in range(meta.methodCount()):
            method = meta.method(index)
            if method.methodType() == QtCore.QMetaMethod.MethodType.Signal:
                found.setdefault(method.name().data().decode(), []).append(method.methodSignature().data().decode())
        for signatures in found.values():
            signatures.sort(key=lambda text: text.count(",") + (not text.endswith("()")))
        _signature_cache[key] = found
    return _signature_cache[key]


def resolve_slot(receiver: Any, slot: str | None) -> Callable[..., Any]:
    """What a connection calls: the callable itself, the ``emit`` of a signal, or the named method of an object."""
    if slot is not None:
        return resolve_slot(getattr(receiver, slot.split("(")[0].strip().lstrip("12")), None)
    if isinstance(receiver, Signal):
        return receiver.emit
    if not callable(receiver):
        raise TypeError(f"Cannot connect a signal to {receiver!r}: it is not callable")
    return receiver


def connect(sender: QtCore.QObject, *arguments: Any) -> bool:
    """``sender.connect("signal(...)", callable)``, also with a receiver and a slot, or with the sender as argument."""
    if arguments and isinstance(arguments[0], QtCore.QObject):
        sender, *rest = arguments
    else:
        rest = list(arguments)
    signal = find_signal(sender, rest[0])
    if signal is None:
        logging.warning("connect: %s has no signal %s", type(sender).__name__, rest[0])
        return False
    return signal.connect(*rest[1:])


def disconnect(sender: QtCore.QObject, *arguments: Any) -> bool:
    """The reverse of :func:`connect`; without a callable, everything that was connected to the signal."""
    if arguments and isinstance(arguments[0], QtCore.QObject):
        sender, *rest = arguments
    else:
        rest = list(arguments)
    if not rest:
        address = shiboken6.getCppPointer(sender)[0]
        found = [Signal(sender, name).disconnect() for at, name in list(_connections) if at == address]
        return any(found)
    signal = find_signal(sender, rest[0])
    return signal.disconnect(*rest[1:]) if signal is not None else False
