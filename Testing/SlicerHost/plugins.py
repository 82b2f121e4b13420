"""Plugins that scripts register with the application: subject hierarchy plugins and segment editor effects.

The host keeps what is registered and calls none of it: in Slicer, C++ does.
"""

from __future__ import annotations

from typing import Any, ClassVar

from PySide6 import QtCore

from .qt_facade import native


@native
class Registry(QtCore.QObject):
    """One registry of each kind, given by ``instance()``, as Slicer's singletons are."""

    _instances: ClassVar[dict[type, Any]] = {}

    @classmethod
    def instance(cls) -> Any:
        """The only one."""
        if cls not in Registry._instances:
            Registry._instances[cls] = cls()
        return Registry._instances[cls]

    def __init__(self) -> None:
        super().__init__()
        self._registered: dict[str, Any] = {}

    def _register(self, plugin: Any) -> bool:
        if plugin.name in self._registered:
            return False
        self._registered[plugin.name] = plugin
        return True

    def cleanup(self) -> None:
        """Forget all."""
        self._registered.clear()


@native
class qSlicerSubjectHierarchyPluginHandler(Registry):
    """The plugins of the subject hierarchy."""

    registerPlugin = Registry._register

    def pluginByName(self, name: str) -> Any:
        """A registered plugin, or None."""
        return self._registered.get(name)

    def setCurrentItem(self, item: int) -> None:
        """No plugin acts on it."""


@native
class qSlicerSegmentEditorEffectFactory(Registry):
    """The effects of the segment editor."""

    effectRegistered = QtCore.Signal(str)

    def registerEffect(self, effect: Any) -> bool:
        """Keep an effect, and announce it; one of a name that is there already is refused."""
        is_new = self._register(effect)
        if is_new:
            self.effectRegistered.emit(effect.name)
        return is_new

    def registeredEffects(self) -> list[Any]:
        """All effects."""
        return list(self._registered.values())


@native
class ScriptedPlugin(QtCore.QObject):
    """A C++ object that takes its behaviour from a Python file."""

    name = ""

    def __init__(self, parent: Any = None):
        super().__init__(parent)
        self._source = ""
        self._script: Any = None

    def setPythonSource(self, path: str) -> bool:
        """The Python file."""
        self._source = path
        return True

    def pythonSource(self) -> str:
        """The Python file."""
        return self._source


@native
class qSlicerSubjectHierarchyScriptedPlugin(ScriptedPlugin):
    """A subject hierarchy plugin in Python."""


@native
class qSlicerSegmentEditorScriptedEffect(ScriptedPlugin):
    """A segment editor effect in Python."""


@native
class qSlicerSegmentEditorAbstractEffect(ScriptedPlugin):
    """The constants of effects."""

    ModificationModeSet, ModificationModeAdd, ModificationModeRemove, ModificationModeRemoveAll = range(4)


NAMES = {
    cls.__name__: cls
    for cls in (
        qSlicerSegmentEditorAbstractEffect,
        qSlicerSegmentEditorEffectFactory,
        qSlicerSegmentEditorScriptedEffect,
        qSlicerSubjectHierarchyPluginHandler,
        qSlicerSubjectHierarchyScriptedPlugin,
    )
}
