"""``slicer.app``: the application object, with the scene, the managers, the settings and the folders."""

from __future__ import annotations

import os
import platform
import stat
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import slicer
import vtk
from PySide6 import QtCore, QtWidgets

from .io_manager import IOManager
from .qt_facade import native

VERSION = version("slicer-core").split(".")  # major, minor, revision of the sources


@native
class qSlicerApplication(QtWidgets.QApplication):
    """The application. It exists once in a process, offscreen, with its settings and files in a temporary folder."""

    startupCompleted = QtCore.Signal()
    mrmlSceneChanged = QtCore.Signal(object)
    lastWindowIsAboutToClose = QtCore.Signal()

    majorVersion, minorVersion, mainApplicationPatchVersion = int(VERSION[0]), int(VERSION[1]), 0
    mainApplicationMajorVersion, mainApplicationMinorVersion = majorVersion, minorVersion
    revision = repositoryRevision = mainApplicationRevision = mainApplicationRepositoryRevision = VERSION[2]
    mainApplicationName = applicationDisplayName = "Slicer"
    releaseType = "Experimental"
    repositoryUrl = repositoryBranch = mainApplicationRepositoryUrl = intDir = ""
    os = {"Linux": "linux", "Darwin": "macosx", "Windows": "win"}.get(platform.system(), "linux")
    arch = "arm64" if platform.machine() in ("arm64", "aarch64") else "amd64"
    platform = f"{os}-{arch}"
    documentationBaseUrl = "https://slicer.readthedocs.io/en/latest/"
    slicerSharePath = "share"
    slicerHome = applicationDirPath = temporaryPath = cachePath = defaultScenePath = extensionsInstallPath = ""
    slicerUserSettingsFilePath = ""
    isCustomMainApplication = False
    exit_code = 0  # what slicer.util.exit was called with

    def __init__(self, home: Path):
        super().__init__(["Slicer"])
        self._home = home
        self.setOrganizationName("SlicerHost")
        self.setApplicationName("Slicer")
        self.setApplicationVersion(".".join(VERSION[:3]))
        QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
        QtCore.QSettings.setPath(
            QtCore.QSettings.Format.IniFormat, QtCore.QSettings.Scope.UserScope, str(home / "settings")
        )
        self._revision_settings = QtCore.QSettings(
            str(home / "settings/Slicer-revision.ini"), QtCore.QSettings.Format.IniFormat
        )
        self._testing = False
        self._scene: Any = None
        self._application_logic: Any = None
        self._layout_manager: Any = None
        self._module_manager: Any = None
        self._io_manager = IOManager()
        self._startup_environment = dict(os.environ)
        self._is_quitting = False
        for folder in ("share/ColorFiles", "temporary", "cache", "scenes", "extensions"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        self.slicerHome = self.applicationDirPath = str(home)
        self.temporaryPath = str(home / "temporary")
        self.cachePath = str(home / "cache")
        self.defaultScenePath = str(home / "scenes")
        self.extensionsInstallPath = str(home / "extensions")
        self.slicerUserSettingsFilePath = QtCore.QSettings().fileName()
        Path(self.slicerUserSettingsFilePath).parent.mkdir(parents=True, exist_ok=True)
        self._put_python_slicer_on_path()

    def _put_python_slicer_on_path(self) -> None:
        """A ``PythonSlicer`` that runs this Python, where ``shutil.which`` finds it, as in Slicer."""
        folder = self._home / "bin"
        folder.mkdir(exist_ok=True)
        launcher = folder / "PythonSlicer"
        launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        launcher.chmod(launcher.stat().st_mode | stat.S_IXUSR)
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"

    # What the application consists of

    def attach(self, scene: Any, application_logic: Any) -> None:
        """The scene and Slicer's application logic."""
        self._scene, self._application_logic = scene, application_logic
        self.mrmlSceneChanged.emit(scene)

    def set_managers(self, layout_manager: Any, module_manager: Any) -> None:
        """The managers, which need the application to be there."""
        self._layout_manager, self._module_manager = layout_manager, module_manager

    def mrmlScene(self) -> Any:
        """The scene."""
        return self._scene

    def applicationLogic(self) -> Any:
        """Slicer's application logic: selection, interaction and slice logics."""
        return self._application_logic

    def layoutManager(self) -> Any:
        """The views."""
        return self._layout_manager

    def moduleManager(self) -> Any:
        """The modules."""
        return self._module_manager

    def ioManager(self) -> IOManager:
        """Loading and saving."""
        return self._io_manager

    coreIOManager = ioManager

    def mainWindow(self) -> Any:
        """The window, None without one."""
        return slicer.util.mainWindow()

    def moduleLogic(self, name: str) -> Any:
        """The logic of a module."""
        return self._module_manager.module(name).logic()

    def openNodeModule(self, node: Any, *_: Any) -> None:
        """Slicer's own panels are not here to be opened."""

    def extensionsManagerModel(self) -> Any:
        """No extensions are installed, and none can be."""
        return SimpleNamespace(
            isExtensionInstalled=lambda name: False,
            isExtensionEnabled=lambda name: False,
            installedExtensions=[],
            interactive=False,
            updateExtensionsMetadataFromServer=lambda *_: False,
            downloadAndInstallExtensionByName=lambda *_: False,
            installExtensionFromServer=lambda *_: False,
        )

    def errorLogModel(self) -> Any:
        """The error log, which has no file here."""
        return SimpleNamespace(filePath="", clear=lambda: None, logEntryCount=0)

    def dicomDatabase(self) -> None:
        """None: the DICOM database is CTK's."""
        return None

    # How it runs

    def testingEnabled(self) -> bool:
        """Whether it was started with ``--testing``: then ``slicer.util`` logs errors instead of showing them."""
        return self._testing

    def set_testing(self, testing: bool) -> None:
        """As Slicer's option ``--testing``."""
        self._testing = testing

    def commandOptions(self) -> Any:
        """The options that Slicer would have been started with."""
        return SimpleNamespace(
            testingEnabled=self._testing,
            noMainWindow=False,
            disableSettings=True,
            noSplash=True,
            additionalModulePaths=(),
        )

    def startupEnvironment(self) -> QtCore.QProcessEnvironment:
        """The environment that the process was started with."""
        environment = QtCore.QProcessEnvironment()
        for name, value in self._startup_environment.items():
            environment.insert(name, value)
        return environment

    def environment(self) -> QtCore.QProcessEnvironment:
        """The environment of this process."""
        return QtCore.QProcessEnvironment.systemEnvironment()

    def setEnvironmentVariable(self, name: str, value: str) -> None:
        """For this process and its children."""
        os.environ[name] = value

    def settings(self) -> QtCore.QSettings:
        """The user's settings."""
        return QtCore.QSettings()

    userSettings = settings

    def revisionUserSettings(self) -> QtCore.QSettings:
        """The user's settings for this revision of Slicer."""
        return self._revision_settings

    def pauseRender(self) -> None:
        """Views render when they are painted."""

    resumeRender = pauseRender

    def setRenderPaused(self, paused: bool) -> None:
        """Views render when they are painted."""

    def pythonConsole(self) -> Any:
        """The stand-in of the console."""
        window = slicer.util.mainWindow()
        return window.pythonConsole() if window is not None else None

    def translate(self, context: str, text: str, *_: Any) -> str:
        """The text itself: no translations are loaded."""
        return text

    def moduleDocumentationUrl(self, name: str) -> str:
        """Where a module's documentation is."""
        return f"{self.documentationBaseUrl}user_guide/modules/{name.lower()}.html"

    def toSlicerHomeAbsolutePath(self, path: str) -> str:
        """A path below the application's folder, as an absolute one."""
        return str(self._home / path)

    def toSlicerHomeRelativePath(self, path: str) -> str:
        """A path, relative to the application's folder if it lies there."""
        return os.path.relpath(path, self._home) if Path(path).is_relative_to(self._home) else path

    def launchDesigner(self, *_: Any) -> bool:
        """There is no Qt Designer here."""
        return False

    def isCodePageUtf8(self) -> bool:
        """Paths are UTF-8."""
        return True

    def restart(self, *_: Any) -> None:
        """Not done; a test would end."""

    def exit(self, code: int = 0) -> None:
        """As :meth:`quit`; a code other than 0 makes the run fail."""
        self.exit_code = code
        self.quit()

    def quit(self) -> None:
        """Announce the end, unload the modules, and leave what is still to be done to the host."""
        if self._is_quitting:
            return
        self._is_quitting = True
        self.aboutToQuit.emit()
        for name, module in list(self._module_manager.modules.items()):
            if module.path:
                self._module_manager.unload(name)
        self.processEvents()

    def wait_until(self, condition: Callable[[], Any], seconds: float = 10.0) -> bool:
        """Run the event loop until ``condition`` holds or the time is over; tells whether it holds."""
        end = QtCore.QDeadlineTimer(int(1000 * seconds))
        while not condition():
            if end.hasExpired():
                return False
            self.processEvents(QtCore.QEventLoop.ProcessEventsFlag.AllEvents, 20)
        return True

    def child_processes(self) -> list[psutil.Process]:
        """The processes that modules started and that still run."""
        return [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]


def make_scene(home: Path) -> tuple[Any, Any]:
    """The scene with the singletons that Slicer puts into it, and the application logic that serves it."""
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerApplicationLogic()
    logic.SetHomeDirectory(str(home))
    logic.SetShareDirectory("share")
    logic.SetTemporaryPath(str(home / "temporary"))
    logic.SetSliceLogics(vtk.vtkCollection())
    logic.SetViewLogics(vtk.vtkCollection())
    cache = slicer.vtkCacheManager()
    cache.SetRemoteCacheDirectory(str(home / "cache"))
    scene.SetCacheManager(cache)
    remote = slicer.vtkMRMLRemoteIOLogic()
    remote.SetMRMLApplicationLogic(logic)
    remote.SetMRMLScene(scene)
    remote.AddDataIOToScene()
    logic.SetMRMLSceneDataIO(scene, remote, slicer.vtkDataIOManagerLogic())
    scene.RegisterNodeClass(slicer.vtkMRMLCommandLineModuleNode())
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetCrosshairName("default")
    scene.AddNode(crosshair)
    logic.SetMRMLScene(scene)
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    scene.remote_io_logic = remote  # lives as long as the scene
    return scene, logic


def temporary_home() -> tempfile.TemporaryDirectory[str]:
    """A folder for settings, cache and temporary files that goes with the process."""
    return tempfile.TemporaryDirectory(prefix="SlicerHost-")
