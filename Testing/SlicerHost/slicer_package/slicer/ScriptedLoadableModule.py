"""The four base classes of a scripted module, as Slicer documents them."""

from __future__ import annotations

import logging
import sys
import unittest
from pathlib import Path
from typing import Any

import ctk
import qt
import slicer
from slicer.i18n import tr as _

__all__ = [
    "ScriptedLoadableModule",
    "ScriptedLoadableModuleLogic",
    "ScriptedLoadableModuleTest",
    "ScriptedLoadableModuleWidget",
]


def _name_without(suffix: str, instance: Any) -> str:
    """The module's name from the name of one of its classes: ``TwinWidget`` without ``Widget``."""
    return type(instance).__name__.removesuffix(suffix)


class ScriptedLoadableModule:
    """What the module is: a subclass sets title, categories, help and so on of its ``parent``."""

    def __init__(self, parent: Any):
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title = ""
        parent.categories = []
        parent.dependencies = []
        parent.contributors = []
        parent.helpText = ""
        parent.acknowledgementText = ""
        icons = [Path(self.resourcePath(f"Icons/{self.moduleName}{end}")) for end in (".svg", ".png")]
        icon = next((path for path in icons if path.is_file()), None)
        if icon is not None:
            parent.icon = qt.QIcon(str(icon))
        slicer.selfTests[self.moduleName] = self.runTest

    def resourcePath(self, filename: str) -> str:
        """The path of a file in the module's Resources folder."""
        return str(Path(self.parent.path).parent / "Resources" / filename)

    def getDefaultModuleDocumentationLink(self, docPage: str | None = None) -> str:
        """A paragraph of HTML that links to the module's documentation."""
        url = (
            slicer.app.documentationBaseUrl + docPage if docPage else slicer.app.moduleDocumentationUrl(self.moduleName)
        )
        return f'<p><a href="{url}">{_("Online documentation")}</a></p>'

    def runTest(self, msec: int = 100, **options: Any) -> None:
        """Run the class ``<Module>Test`` of the module's script; AssertionError where there is none."""
        script = sys.modules[type(self).__module__]
        test_class = getattr(script, f"{self.moduleName}Test", None)
        if test_class is None:
            raise AssertionError(f"{script.__name__} has no class {self.moduleName}Test")
        test = test_class()
        test.messageDelay = msec
        test.runTest(**options)


class ScriptedLoadableModuleWidget:
    """The module's panel. ``parent`` is the widget it is built in; without one, it makes its own and shows it."""

    def __init__(self, parent: Any = None):
        super().__init__()
        self.moduleName = _name_without("Widget", self)
        self.developerMode = slicer.util.settingsValue("Developer/DeveloperMode", False, converter=slicer.util.toBool)
        self.parent = parent
        if parent is None:
            self.parent = slicer.qMRMLWidget()
            self.parent.setLayout(qt.QVBoxLayout())
            self.parent.setMRMLScene(slicer.mrmlScene)
        self.layout = self.parent.layout()
        if parent is None:
            self.setup()
            self.parent.show()
        slicer.app.moduleManager().connect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def resourcePath(self, filename: str) -> str:
        """The path of a file in the module's Resources folder."""
        return str(Path(slicer.util.modulePath(self.moduleName)).parent / "Resources" / filename)

    def cleanup(self) -> None:
        """Called before the module is unloaded or reloaded."""

    def _onModuleAboutToBeUnloaded(self, moduleName: str) -> None:
        if moduleName == self.moduleName:
            self.cleanup()
            slicer.app.moduleManager().disconnect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def setup(self) -> None:
        """Build the panel; in developer mode, buttons to reload and test come first."""
        self.setupDeveloperSection()

    def setupDeveloperSection(self) -> None:
        """The buttons that Slicer shows in developer mode."""
        if not self.developerMode:
            return
        self.reloadCollapsibleButton = ctk.ctkCollapsibleButton()
        self.reloadCollapsibleButton.text = "Reload && Test"
        self.layout.addWidget(self.reloadCollapsibleButton)
        row = qt.QHBoxLayout(self.reloadCollapsibleButton)
        for attribute, text, slot in (
            ("reloadButton", "Reload", self.onReload),
            ("reloadAndTestButton", "Reload and Test", self.onReloadAndTest),
            ("editSourceButton", "Edit", self.onEditSource),
            ("restartButton", "Restart Slicer", slicer.app.restart),
        ):
            button = qt.QPushButton(text)
            button.connect("clicked()", slot)
            row.addWidget(button)
            setattr(self, attribute, button)

    def onReload(self) -> None:
        """Import the script anew and build the panel again."""
        slicer.util.reloadScriptedModule(self.moduleName)

    def onTest(self, **options: Any) -> None:
        """Run the module's self-test."""
        with slicer.util.tryWithErrorDisplay("Test failed."):
            slicer.selfTests[self.moduleName](**options)

    def onReloadAndTest(self, **options: Any) -> None:
        """Reload the module and run its self-test."""
        with slicer.util.tryWithErrorDisplay("Reload and Test failed."):
            self.onReload()
            slicer.selfTests[self.moduleName](**options)

    def onEditSource(self) -> None:
        """Open the script in the system's editor."""
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(slicer.util.modulePath(self.moduleName)))


class ScriptedLoadableModuleLogic:
    """The module's computation; it keeps its parameters in a node of the scene, so that they are saved with it."""

    def __init__(self, parent: Any = None):
        super().__init__()
        self.moduleName = _name_without("Logic", self)
        self.isSingletonParameterNode = True

    def getParameterNode(self) -> Any:
        """The first parameter node of the module, made if there is none."""
        scene = slicer.mrmlScene
        if self.isSingletonParameterNode:
            node = scene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
            if node is not None:
                node.SetAttribute("ModuleName", self.moduleName)  # closing the scene may have cleared it
                return node
        nodes = [] if self.isSingletonParameterNode else self.getAllParameterNodes()
        return nodes[0] if nodes else scene.AddNode(self.createParameterNode())

    def getAllParameterNodes(self) -> list[Any]:
        """All parameter nodes of the module."""
        nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
        return [node for node in nodes if node.GetAttribute("ModuleName") == self.moduleName]

    def createParameterNode(self) -> Any:
        """A new parameter node, not yet in the scene."""
        if slicer.mrmlScene is None:
            return None
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """The module's self-test: every method with "test" in its name is run."""

    def __init__(self, *arguments: Any, **options: Any):
        self.moduleTestNames: list[str] = []
        super().__init__(*arguments, **options)
        super(unittest.TestCase, self).__init__()  # cooperative: lets a mixin such as VTKObservationMixin start
        self.enableScreenshots = False
        self.screenshotScaleFactor = 1.0
        if not self.moduleTestNames:
            self.moduleTestNames = [name for name in dir(self) if "test" in name and callable(getattr(self, name))]

    def delayDisplay(self, message: str, requestedDelay: int | None = None, msec: int | None = None) -> None:
        """Show a message for some milliseconds, and let the application catch up."""
        delay = next(d for d in (getattr(self, "messageDelay", None), msec, requestedDelay, 100) if d is not None)
        slicer.util.delayDisplay(message, delay)

    def takeScreenshot(self, name: str, description: str, type: int = -1) -> None:
        """Show the description; a picture is taken only with ``enableScreenshots``."""
        self.delayDisplay(description)
        if self.enableScreenshots:
            picture = slicer.app.layoutManager().viewport().grab()
            picture.save(str(Path(slicer.app.temporaryPath) / f"{name}.png"))

    def runTest(self) -> None:
        """Run the tests one after the other, each between ``setUp`` and ``tearDown``."""
        if not self.moduleTestNames:
            logging.warning("No test is defined in %s", self.__class__.__name__)
            return
        self.setUpClass()
        for name in self.moduleTestNames:
            self.setUp()
            logging.info("Running %s", name)
            getattr(self, name)()
            self.tearDown()
        self.tearDownClass()
