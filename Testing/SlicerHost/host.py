"""Starts the host: makes ``qt``, ``ctk`` and a complete ``slicer`` importable, and runs modules in it."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("QT_LOGGING_RULES", "qt.svg.warning=false;qt.qpa.*=false")

from . import qt_facade
from .faults import Faults, faults

SLICER_FILES = Path(__file__).parent / "slicer_package"  # the host's own slicer.i18n, slicer.packaging, …

_host: Host | None = None


class Host:
    """The running application. There is one in a process: :func:`start` makes it, or gives it again."""

    def __init__(self, testing: bool = False):
        self.qt = qt_facade.make_module()
        self.qt.qInstallMessageHandler(_log_qt_message)
        import slicer

        from .application import make_scene, qSlicerApplication, temporary_home
        from .dialogs import dialogs

        self.slicer = slicer
        self.faults: Faults = faults
        self.dialogs = dialogs
        self._folder = temporary_home()
        home = Path(self._folder.name)
        self.app = qSlicerApplication(home)
        self.app.set_testing(testing)
        _add_slicer_files(slicer, home)
        slicer.app = self.app
        slicer.mrmlScene, logic = make_scene(home)
        self.app.attach(slicer.mrmlScene, logic)
        self._make_modules(logic)
        faults.install()
        dialogs.install(slicer.util, self.app)
        self.app.startupCompleted.emit()

    def _make_modules(self, logic: Any) -> None:
        from . import cli_modules, module_logics, vtk_modules
        from .vtk_modules import SHARE

        slicer = self.slicer
        vtk_modules.install(Path(self.app.slicerHome))
        slicer.modules = module_logics.Modules()
        slicer.selfTests = {}
        built_in: dict[str, Any] = module_logics.make_logics(slicer.mrmlScene, logic, str(SHARE))
        built_in.update(cli_modules.make_modules())
        _fill_namespaces(self.qt, slicer)
        from . import node_widget_connectors  # noqa: F401 - registers them
        from .layout_manager import qSlicerLayoutManager
        from .main_window import qSlicerMainWindow
        from .scene_observer import ModuleObservers
        from .scripted_modules import qSlicerModuleManager
        from .subject_hierarchy import HierarchyFollower

        self._hierarchy_follower = HierarchyFollower(slicer.mrmlScene)
        modules = qSlicerModuleManager(built_in)
        self.app.set_managers(qSlicerLayoutManager(slicer.mrmlScene, logic), modules)
        self.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        self.window = qSlicerMainWindow(self.app.layoutManager())
        self.window.show()
        self._module_observers = ModuleObservers(slicer.mrmlScene)

    # What a test does

    def load(self, path: Path | str) -> Any:
        """Load the scripted module in this file, without opening its panel."""
        return self.app.moduleManager().load(path)

    def open(self, path: Path | str) -> Any:
        """Load a module and open its panel; returns the module's Python widget, None for a module without a panel."""
        module = self.load(path)
        self.slicer.util.selectModule(module.name)
        self.app.processEvents()
        panel = module.widgetRepresentation()
        return panel.self() if panel is not None else None

    def process_events(self, seconds: float = 0.0) -> None:
        """Run the event loop, for ``seconds`` or until nothing is left to do."""
        if seconds:
            self.app.wait_until(lambda: False, seconds)
        self.app.processEvents()
        # Outside of QApplication.exec, Qt would keep for ever what is to be deleted later.
        self.app.sendPostedEvents(None, self.qt.QEvent.DeferredDelete)

    def close_scene(self) -> None:
        """As File / Close scene."""
        self.slicer.mrmlScene.Clear()
        self.process_events()

    def reset(self) -> None:
        """Between tests: no module open, none loaded, an empty scene, the default layout, no dialogs."""
        self.window.moduleSelector().selectModule("")
        for name, module in list(self.app.moduleManager().modules.items()):
            if module.path:
                self.app.moduleManager().unload(name)
        self.process_events()
        self._module_observers.remove()
        self.close_scene()
        self.app.layoutManager().setLayout(self.slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        self.dialogs.shown.clear()
        self.app._is_quitting = False
        self.app.exit_code = 0

    # Pictures

    def captureViews(self, path: Path | str) -> None:
        """Write a PNG of all views in the current layout."""
        _save(self.app.layoutManager().viewport(), path)

    def captureWidget(self, path: Path | str, widget: Any = None) -> None:
        """Write a PNG of a widget; without one, of the panel of the open module, as high as it wants to be."""
        if widget is None:
            widget = self.slicer.util.getModule(self.slicer.util.selectedModule()).widgetRepresentation()
        _save(widget, path)

    def captureWindow(self, path: Path | str) -> None:
        """Write a PNG of the main window."""
        _save(self.window, path)


def _log_qt_message(level: Any, context: Any, text: str) -> None:
    """Qt's warnings go to the log; that the offscreen platform has no window manager goes without saying."""
    if "does not support propagateSizeHints" not in text:
        logging.getLogger("Qt").log(logging.DEBUG if int(level) in (0, 4) else logging.WARNING, text)


def _save(widget: Any, path: Path | str) -> None:
    from PySide6 import QtWidgets

    QtWidgets.QApplication.instance().processEvents()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if not widget.grab().save(str(path)):
        raise OSError(f"{path}: the picture could not be written")


def start(testing: bool = False) -> Host:
    """Start the host, once in a process; called again, the running one is returned.

    With ``testing``, ``slicer.app.testingEnabled()`` is true, as under Slicer's ``--testing``: ``slicer.util`` then
    logs errors and answers questions itself. Without it, dialogs are shown, answered, and error dialogs become faults.
    """
    global _host
    if _host is None:
        _host = Host(testing)
    _host.app.set_testing(testing)
    return _host


def end(host: Host) -> None:
    """Quit the application, and see that all went well.

    Raises
    ------
    RuntimeError
        if child processes are left (they are ended), or a module called ``slicer.util.exit`` with another code than 0.
    HostFault
        if there was an error that nobody expected.
    """
    host.app.quit()
    left = [f"{process.name()} (process {process.pid})" for process in host.app.child_processes()]
    for process in host.app.child_processes():
        process.kill()
    host.faults.check()
    if left:
        raise RuntimeError(f"still running when the application quit: {', '.join(left)}")
    if host.app.exit_code:
        raise RuntimeError(f"the module ended the application with exit code {host.app.exit_code}")


def _add_slicer_files(slicer: ModuleType, home: Path) -> None:
    """Let ``import slicer.i18n`` and the like find the host's files, or Slicer's own below SLICER_PYTHON_DIR."""
    slicer.__path__.append(str(SLICER_FILES / "slicer"))
    sys.path.append(str(SLICER_FILES))
    folder = os.environ.get("SLICER_PYTHON_DIR")
    if folder:
        real = Path(folder) / "slicer" if (Path(folder) / "slicer").is_dir() else Path(folder)
        if not (real / "ScriptedLoadableModule.py").is_file():
            raise FileNotFoundError(f"SLICER_PYTHON_DIR={folder}: no slicer/ScriptedLoadableModule.py there")
        chosen = home / "slicer"
        chosen.mkdir()
        for name in ("ScriptedLoadableModule.py", "parameterNodeWrapper", "i18n.py"):
            (chosen / name).symlink_to((real / name).resolve())
        slicer.__path__.insert(len(slicer.__path__) - 1, str(chosen))
        logging.info("SlicerHost uses Slicer's own Python files in %s", real)


def _fill_namespaces(qt: ModuleType, slicer: ModuleType) -> None:
    """``ctk`` as a module; Slicer's widget classes, and what is left, in ``slicer``; the form loader in ``qt``."""
    from . import (  # noqa: F401 - importing them makes their widgets known
        layout_manager,
        main_window,
        node_combo_box,
        plot_view,
        plugins,
        scripted_modules,
        slice_view,
        subject_hierarchy,
        threed_view,
        ui_loader,
        views,
        vtk_modules,
        widget_api,
        widgets_ctk,
        widgets_ctk_paths,
        widgets_ctk_values,
        widgets_mrml,
        widgets_segments,
    )

    ctk = ModuleType("ctk", "CTK's widgets (made by SlicerHost)")
    vars(ctk).update(widget_api.known_classes(("ctk",)), **widgets_ctk.NAMES)
    sys.modules["ctk"] = ctk
    vars(slicer).update(widget_api.known_classes(("qMRML", "qSlicer")))
    vars(slicer).update(**widgets_mrml.NAMES, **subject_hierarchy.NAMES, **plugins.NAMES)
    vtk_modules.install_widget_libraries(qt_facade.QT_MODULES)
    qt.__dict__["QUiLoader"] = ui_loader.QUiLoader
    qt.__dict__["loadUI"] = lambda path: ui_loader.QUiLoader().load(path)
    for name in ("util", "ScriptedLoadableModule", "cli", "i18n", "packaging", "testing"):
        __import__(f"slicer.{name}")
    import vtk

    main = sys.modules["__main__"]  # older scripts import from __main__ what Slicer has there
    for name, module in {"vtk": vtk, "qt": qt, "ctk": ctk, "slicer": slicer}.items():
        if not hasattr(main, name):
            setattr(main, name, module)
