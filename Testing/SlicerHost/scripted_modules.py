"""Scripted modules as Slicer's C++ side holds them: the module, its panel, and the manager that loads them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import slicer
import SubjectHierarchyPlugins
from PySide6 import QtCore, QtGui, QtWidgets

from .widget_api import implements, widget_class


def load_script(path: Path) -> ModuleType:
    """Import a module's script under its own name, with its folder on ``sys.path``, as Slicer does."""
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    plugins = path.parent / "SubjectHierarchyPlugins"
    if plugins.is_dir() and str(plugins) not in SubjectHierarchyPlugins.__path__:
        SubjectHierarchyPlugins.__path__.append(str(plugins))  # in Slicer, all modules' plugins are in one folder
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} can not be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@implements
class qSlicerScriptedLoadableModule(QtCore.QObject):
    """The module object that a script's ``ScriptedLoadableModule`` class gets as its parent, and fills in."""

    name = title = path = helpText = acknowledgementText = version = ""
    categories: Any = ()
    dependencies: Any = ()
    contributors: Any = ()
    associatedNodeTypes: Any = ()
    icon = QtGui.QIcon()
    hidden = False
    widgetRepresentationCreationEnabled = True
    logo = QtGui.QImage()
    index = -1
    isInstalled, isBuiltIn = False, False
    defaultDocumentationLink = slicerWikiUrl = ""

    def __init__(self, path: Path):
        super().__init__()
        self.path = str(path)
        self.name = self.title = path.stem
        url = slicer.app.moduleDocumentationUrl(self.name)
        self.defaultDocumentationLink = f'<p><a href="{url}">Online documentation</a></p>'
        self._widget: Any = None
        self._logic = slicer.vtkSlicerScriptedLoadableModuleLogic()
        self._logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        self._logic.SetMRMLScene(slicer.mrmlScene)
        script = load_script(path)
        if not hasattr(script, self.name):
            raise ImportError(f"{path} has no class {self.name}, so it is not a scripted module")
        self._instance = getattr(script, self.name)(self)
        setattr(slicer.modules, f"{self.name}Instance", self._instance)

    def setup(self) -> None:
        """Call the ``setup`` of the script's module class, where it has one."""
        if hasattr(self._instance, "setup"):
            self._instance.setup()

    def self(self) -> Any:
        """The Python instance."""
        return self._instance

    def mrmlScene(self) -> Any:
        """The scene."""
        return slicer.mrmlScene

    def logic(self) -> Any:
        """Slicer's C++ logic of scripted modules; the Python logic is the panel's."""
        return self._logic

    def widgetRepresentation(self) -> Any:
        """The panel, made when it is first asked for; None for a module without one."""
        if self._widget is None and self.widgetRepresentationCreationEnabled:
            self._widget = self.createNewWidgetRepresentation()
        return self._widget

    def createNewWidgetRepresentation(self) -> Any:
        """Another panel."""
        script = sys.modules[self.name]
        if not hasattr(script, f"{self.name}Widget"):
            return None
        panel = qSlicerScriptedLoadableModuleWidget(self.name)
        panel.setMRMLScene(slicer.mrmlScene)
        panel.setup()
        return panel


@implements
class qSlicerScriptedLoadableModuleWidget(widget_class("qSlicerWidget")):  # type: ignore[misc]
    """The panel that a script's widget class gets as its parent; it calls ``setup``, ``enter`` and ``exit`` of it."""

    isEntered = False

    def __init__(self, module_name: str):
        super().__init__()
        self._module_name = module_name
        self._self: Any = None
        self.setObjectName(f"{module_name}ModuleWidget")
        QtWidgets.QVBoxLayout(self)

    def setup(self) -> None:
        """Make the Python widget and build the panel."""
        script = sys.modules[self._module_name]
        widget = getattr(script, f"{self._module_name}Widget")(self)
        self._self = widget
        setattr(slicer.modules, f"{self._module_name}Widget", widget)
        widget.setup()

    def reload(self) -> None:
        """After the script was imported anew: another Python widget in the same panel."""
        was_entered = self.isEntered
        self.exit()
        self.setup()
        if was_entered:
            self.enter()

    def self(self) -> Any:
        """The Python widget."""
        return self._self

    def setEditedNode(self, node: Any, role: str = "", context: str = "") -> bool:
        """Hand a node to the module for editing; tells whether it takes it."""
        takes = hasattr(self._self, "setEditedNode")
        return bool(self._self.setEditedNode(node, role, context)) if takes else False

    def enter(self) -> None:
        """The user came to the module."""
        self.isEntered = True
        if hasattr(self._self, "enter"):
            self._self.enter()

    def exit(self) -> None:
        """The user went to another module."""
        if self.isEntered and hasattr(self._self, "exit"):
            self._self.exit()
        self.isEntered = False

    def cleanup(self) -> None:
        """The module is unloaded."""
        if hasattr(self._self, "cleanup"):
            self._self.cleanup()


class FactoryManager:
    """``moduleManager().factoryManager()``: which modules there are, and adding more."""

    def __init__(self, manager: qSlicerModuleManager):
        self._manager = manager

    def loadedModuleNames(self) -> tuple[str, ...]:
        """The names of all modules."""
        return tuple(self._manager.modules)

    registeredModuleNames = instantiatedModuleNames = loadedModuleNames

    def isLoaded(self, name: str) -> bool:
        """Whether a module is loaded."""
        return name in self._manager.modules

    isRegistered = isInstantiated = isLoaded

    def moduleInstance(self, name: str) -> Any:
        """A module by its name."""
        return self._manager.module(name)

    def registerModule(self, file: Any) -> None:
        """Note the script of a module, a QFileInfo or a path, to be loaded by :meth:`loadModules`."""
        path = file.absoluteFilePath() if hasattr(file, "absoluteFilePath") else file
        self._manager.registered[Path(path).stem] = Path(path)

    def loadModules(self, names: Any) -> bool:
        """Load registered modules."""
        for name in names:
            self._manager.load(self._manager.registered[name])
        return True

    def searchPaths(self) -> tuple[str, ...]:
        """The folders of the loaded scripts."""
        return tuple({str(Path(m.path).parent) for m in self._manager.modules.values() if m.path})

    def modulesByDependencies(self, *_: Any) -> tuple[str, ...]:
        """All modules, in loading order."""
        return self.loadedModuleNames()


@implements
class qSlicerModuleManager(QtCore.QObject):
    """Loads and unloads modules, and keeps which one is open."""

    moduleLoaded = QtCore.Signal(str)
    moduleAboutToBeUnloaded = QtCore.Signal(str)
    moduleUnloaded = QtCore.Signal(str)
    modulesUnloaded = QtCore.Signal()

    modules: dict[str, Any]
    registered: dict[str, Path]

    def __init__(self, built_in: dict[str, Any]):
        super().__init__()
        self.__dict__.update(modules=dict(built_in), registered={})  # unknown attributes can not be assigned
        self._factory_manager = FactoryManager(self)
        for name, module in built_in.items():
            setattr(slicer.modules, name.lower(), module)

    def load(self, path: Path | str) -> qSlicerScriptedLoadableModule:
        """Load the scripted module in this file, and announce it. A module that is loaded already is returned."""
        path = Path(path).resolve()
        if path.stem in self.modules:
            return self.modules[path.stem]
        module = qSlicerScriptedLoadableModule(path)
        self.modules[module.name] = module
        setattr(slicer.modules, module.name.lower(), module)
        module.setup()
        self.moduleLoaded.emit(module.name)
        return module

    def unload(self, name: str) -> None:
        """Close the module's panel and forget the module."""
        module = self.modules[name]
        panel = module._widget
        if panel is not None:
            panel.exit()
        self.moduleAboutToBeUnloaded.emit(name)
        for suffix in ("Widget", "Instance"):
            slicer.modules.__dict__.pop(f"{name}{suffix}", None)
        slicer.modules.__dict__.pop(name.lower(), None)
        del self.modules[name]
        sys.modules.pop(name, None)
        if panel is not None:
            panel.setParent(None)
            panel.deleteLater()
        self.moduleUnloaded.emit(name)

    def module(self, name: str) -> Any:
        """A module by its name; None if it is not loaded."""
        return self.modules.get(name)

    def modulesNames(self) -> tuple[str, ...]:
        """The names of all modules."""
        return tuple(self.modules)

    def factoryManager(self) -> FactoryManager:
        """The factory manager."""
        return self._factory_manager
