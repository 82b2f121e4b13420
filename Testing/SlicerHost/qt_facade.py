"""The ``qt`` module: every Qt class in one flat namespace, with PythonQt's manners on PySide6.

PythonQt shows a Qt property as an attribute (``button.text = "Apply"``) beside its setter (``button.setText("Apply")``)
and refuses an attribute that does not exist (``button.txt = "Apply"`` is an error, not a new attribute). PySide6 has
its own switch for properties, ``__feature__.true_property``, but it takes the setters and ``isEnabled`` away, which
modules call as well; so the host puts the properties on PySide6's classes itself, read from Qt's own description of
each class (its meta-object). Enumerations are integers in PythonQt: ``checkBox.checkState() == 2`` must hold.
"""

from __future__ import annotations

import functools
import sys
import types
from typing import Any

# Bits of PySide6's own option: every enumeration inherits from int (2), and Qt's unscoped names stay (4, 8).
sys.pyside6_option_python_enum = 0x02 | 0x04 | 0x08  # type: ignore[attr-defined]

import shiboken6  # noqa: E402
from PySide6 import (  # noqa: E402
    QtCore,
    QtGui,
    QtNetwork,
    QtPrintSupport,
    QtSql,
    QtSvg,
    QtSvgWidgets,
    QtTest,
    QtUiTools,
    QtWidgets,
    QtXml,
)

from . import signals  # noqa: E402

if not issubclass(QtCore.Qt.CheckState, int):
    raise ImportError(
        "PySide6 was imported before SlicerHost, which must set its options first: import SlicerHost earlier"
    )

QT_MODULES = (
    QtCore, QtGui, QtWidgets, QtNetwork, QtSvg, QtSvgWidgets, QtXml, QtUiTools, QtPrintSupport, QtSql, QtTest,
)  # fmt: skip

_native_classes: set[type] = set()


def native(cls: type) -> type:
    """Class decorator for the host's widgets: in Slicer they are C++ classes, so unknown attributes are refused."""
    _native_classes.add(cls)
    return cls


def is_native(cls: type) -> bool:
    """Whether ``cls`` is a C++ class in Slicer, as against a class that a module derived in Python."""
    return cls in _native_classes or cls.__module__.startswith("PySide6.")


def set_property(obj: QtCore.QObject, name: str, value: Any) -> None:
    """Set a property by its setter, ``setText`` for ``text``, or through Qt where there is none."""
    setter = getattr(obj, "set" + name[0].upper() + name[1:], None)
    if setter is not None:
        setter(value)
    elif not obj.setProperty(name, value):
        raise AttributeError(f"Property {name!r} of {type(obj).__name__} does not accept {value!r}")


class QtProperty:
    """A Qt property as a Python attribute. ``method`` is the getter that PySide6 had under the same name, if any."""

    def __init__(self, name: str, method: Any, writable: bool):
        self.name = name
        self.method = method
        self.writable = writable

    def __get__(self, obj: QtCore.QObject | None, owner: type | None = None) -> Any:
        if isinstance(self.method, staticmethod):  # QTimer.singleShot is a property and a static function
            return self.method.__get__(obj, owner) if obj is None else obj.property(self.name)
        if obj is None:
            return self if self.method is None else self.method.__get__(None, owner)
        if self.method is not None:
            return self.method.__get__(obj, owner)()
        return obj.property(self.name)

    def __set__(self, obj: QtCore.QObject, value: Any) -> None:
        if not self.writable:
            raise AttributeError(f"Property {self.name!r} of {type(obj).__name__} is read-only")
        set_property(obj, self.name, value)


def _make_getattribute(original: Any) -> Any:
    """What ``object.name`` gives, from what PySide6 gives: signals and setters get PythonQt's manners."""

    def getattribute(self: QtCore.QObject, name: str) -> Any:
        if name == "connect":
            return types.MethodType(signals.connect, self)
        if name == "disconnect":
            return types.MethodType(signals.disconnect, self)
        value = original(self, name)
        if type(value) is QtCore.SignalInstance:
            return signals.find_signal(self, name)
        if type(value) is types.BuiltinMethodType and name.startswith("set"):
            return functools.partial(_call_leniently, value)
        return value

    return getattribute


def _call_leniently(setter: Any, *arguments: Any) -> Any:
    """Call a setter as PythonQt does: failing that, None is False, 3.7 is 3, a number is its text, a list its truth."""
    try:
        return setter(*arguments)
    except TypeError as error:
        numbers = [False if value is None else int(value) if isinstance(value, float) else value for value in arguments]
        texts = [str(value) if isinstance(value, (int, float)) else value for value in arguments]
        nothings = [None if value == 0 else value for value in arguments]  # 0 is a null pointer
        truths = [bool(value) for value in arguments]
        for attempt in (numbers, texts, nothings, truths):
            try:
                return setter(*attempt)
            except TypeError:
                continue
        name = setter.__name__[3:]
        value = arguments[0] if len(arguments) == 1 else None
        if isinstance(value, int) and setter.__self__.setProperty(name[:1].lower() + name[1:], int(value)):
            return None  # an enumeration by its number
        raise error


def _getattr(self: QtCore.QObject, name: str) -> Any:
    """Attributes that no class defines: the alias ``name`` of objectName, and dynamic properties."""
    if not name.startswith("__"):
        if name == "name":
            return self.objectName
        if name.encode() in [key.data() for key in self.dynamicPropertyNames()]:
            return self.property(name)
    raise AttributeError(f"{type(self).__name__} has no attribute named {name!r}")


def _setattr(self: QtCore.QObject, name: str, value: Any) -> None:
    cls = type(self)
    if type(value) is QtCore.SignalInstance:  # PySide6 keeps the signals of an object that were asked for in it
        self.__dict__[name] = value
        return
    for base in cls.__mro__:
        if name in base.__dict__:
            descriptor = base.__dict__[name]
            if isinstance(descriptor, QtCore.Property):
                set_property(self, name, value)
                return
            if hasattr(type(descriptor), "__set__"):
                descriptor.__set__(self, value)
                return
            if is_native(cls) and not name.startswith("_") and callable(descriptor):
                raise AttributeError(f"{name!r} of {cls.__name__} is not a property and can not be assigned")
            self.__dict__[name] = value
            return
    if name == "name" and "name" not in self.__dict__:
        self.setObjectName(value)
    elif name.encode() in [key.data() for key in self.dynamicPropertyNames()]:
        self.setProperty(name, value)
    elif is_native(cls) and not (name.startswith("_") and cls in _native_classes):
        raise AttributeError(f"{cls.__name__} has no attribute named {name!r}, and new ones can not be added to it")
    else:
        self.__dict__[name] = value


def _add_properties(cls: type) -> None:
    """Put the properties that ``cls`` declares on it, and those that its own methods would hide again (sizeHint)."""
    meta = cls.staticMetaObject  # type: ignore[attr-defined]
    for index in range(meta.propertyCount()):
        entry = meta.property(index)
        name = entry.name()
        if entry.isReadable() and (index >= meta.propertyOffset() or name in cls.__dict__):
            method = next((base.__dict__[name] for base in cls.__mro__ if name in base.__dict__), None)
            if isinstance(method, QtProperty):
                method = method.method
            setattr(cls, name, QtProperty(name, method, entry.isWritable()))


def _safe_single_shot(single_shot: Any) -> Any:
    """``QTimer.singleShot`` for any callable; an exception in it becomes a fault, where PySide6 would crash."""

    def run_later(milliseconds: float, *target: Any) -> None:
        receiver = target[-2] if len(target) > 1 and isinstance(target[-1], str) else target[-1]
        slot = target[-1] if isinstance(target[-1], str) else None
        single_shot(int(milliseconds), signals.make_adapter(signals.resolve_slot(receiver, slot), []))

    return run_later


def _class_name(self: QtCore.QObject) -> str:
    return self.metaObject().className()


def _find(name: str) -> Any:
    """``findChild`` and ``findChildren`` that also take the class as a string, and skip deleted objects."""
    original = getattr(QtCore.QObject, name)

    def find(self: QtCore.QObject, kind: Any = QtCore.QObject, *arguments: Any) -> Any:
        if not isinstance(kind, str):
            return original(self, kind, *arguments)
        named = [child for child in self.findChildren(QtCore.QObject, *arguments) if child.inherits(kind)]
        return named if name == "findChildren" else next(iter(named), None)

    return find


def qt_names() -> dict[str, Any]:
    """Every public name of Qt. PySide6 loads a class when it is asked for, so ``vars`` would miss most."""
    return {name: getattr(module, name) for module in QT_MODULES for name in dir(module) if not name.startswith("_")}


def _adopt_pythonqt_manners() -> None:
    """Change PySide6's classes once, for the whole process."""
    QtCore.QObject.findChild = _find("findChild")
    QtCore.QObject.findChildren = _find("findChildren")
    classes = {c for c in qt_names().values() if isinstance(c, type) and issubclass(c, QtCore.QObject)}
    for cls in sorted(classes, key=lambda c: len(c.__mro__)):
        _add_properties(cls)
        cls.__setattr__ = _setattr  # type: ignore[assignment,method-assign]
        if "__getattribute__" in cls.__dict__:
            cls.__getattribute__ = _make_getattribute(cls.__dict__["__getattribute__"])  # type: ignore[method-assign]
    single_shot = QtCore.QTimer.__dict__["singleShot"]
    single_shot.method = staticmethod(_safe_single_shot(single_shot.method.__func__))
    QtCore.QObject.className = _class_name
    QtCore.QObject.delete = lambda self: shiboken6.delete(self)
    QtCore.QObject.__getattr__ = _getattr


def _add_qt5_names(namespace: dict[str, Any]) -> None:
    """Names that Slicer's Qt has and Qt 6 moved or renamed."""
    for cls in (QtWidgets.QDialog, QtWidgets.QMenu, QtCore.QCoreApplication, QtCore.QEventLoop, QtGui.QDrag):
        cls.exec_ = lambda self, *arguments: self.exec(*arguments)
    QtWidgets.QLayout.margin = property(
        lambda self: self.contentsMargins().left(),
        lambda self, margin: self.setContentsMargins(margin, margin, margin, margin),
    )
    QtWidgets.QLayout.setMargin = lambda self, margin: self.setContentsMargins(*[margin] * 4)
    make_menu = QtWidgets.QMenu.__init__

    def init_menu(self: Any, *arguments: Any) -> None:
        """Modules hand their Python widget class as parent, which PythonQt takes as no parent."""
        make_menu(self, *[entry for entry in arguments if isinstance(entry, (str, QtWidgets.QWidget))])

    QtWidgets.QMenu.__init__ = init_menu
    view = QtWidgets.QAbstractItemView  # PythonQt makes instances of an abstract class; here, of a class below it
    view.__new__ = lambda cls, *_, **__: super(view, cls).__new__(QtWidgets.QListView if cls is view else cls)
    color_name = QtGui.QColor.name
    QtGui.QColor.name = lambda self, kind=0: color_name(self, QtGui.QColor.NameFormat(int(kind)))
    QtCore.Qt.MidButton = QtCore.Qt.MouseButton.MiddleButton
    QtGui.QFontMetrics.width = QtGui.QFontMetrics.horizontalAdvance
    namespace["QRegExp"] = QtCore.QRegularExpression
    namespace["QRegExpValidator"] = QtGui.QRegularExpressionValidator


def make_module() -> types.ModuleType:
    """The module that ``import qt`` gives; call it once, before any widget is made."""
    _adopt_pythonqt_manners()
    module = types.ModuleType("qt", "Qt in one namespace, with PythonQt's manners (made by SlicerHost)")
    module.__dict__.update(qt_names())
    _add_qt5_names(module.__dict__)
    sys.modules["qt"] = module
    return module
