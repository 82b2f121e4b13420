"""The main window: the module panel on the left, the views on the right."""

from __future__ import annotations

from typing import Any

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from .widget_api import implements, widget_class

PANEL_WIDTH = 460  # pixels


@implements
class qSlicerModuleSelectorToolBar(QtWidgets.QToolBar):
    """Chooses the module that is open; calls ``exit`` of the one before and ``enter`` of the new one."""

    moduleSelected = QtCore.Signal(str)

    def __init__(self, window: qSlicerMainWindow):
        super().__init__(window)
        self.setObjectName("ModuleSelectorToolBar")
        self._window = window
        self._selected = ""

    @property
    def selectedModule(self) -> str:
        """The name of the open module, "" if none is open."""
        return self._selected

    def selectModule(self, name: str) -> None:
        """Open a module. Raises RuntimeError for a module that is not loaded."""
        if name == self._selected:
            return
        module = slicer.util.getModule(name) if name else None
        old = slicer.app.moduleManager().module(self._selected)
        if old is not None and old.widgetRepresentation() is not None:
            old.widgetRepresentation().exit()
        self._selected = ""
        panel = module.widgetRepresentation() if module is not None else None
        self._window.show_panel(panel, module)
        if panel is not None:
            panel.enter()
        self._selected = name
        self.moduleSelected.emit(name)


@implements
class qSlicerMainWindow(QtWidgets.QMainWindow):
    """As much of Slicer's window as modules look for in it."""

    initialWindowShown = QtCore.Signal()

    def __init__(self, layout_manager: Any):
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self.setWindowTitle(slicer.app.applicationName)
        self.resize(1400, 900)
        self.setCentralWidget(layout_manager.viewport())
        self._panel: Any = None
        self._title = QtWidgets.QLabel()
        self._title.setStyleSheet("font-weight: bold; padding: 4px;")
        self._scroll = QtWidgets.QScrollArea()
        self._scroll.setWidgetResizable(True)
        self._scroll.setFrameShape(QtWidgets.QFrame.Shape.NoFrame)
        contents = QtWidgets.QWidget()
        contents.setObjectName("ModulePanel")
        layout = QtWidgets.QVBoxLayout(contents)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._title)
        layout.addWidget(self._scroll, 1)
        dock = QtWidgets.QDockWidget(self)
        dock.setObjectName("PanelDockWidget")
        dock.setWidget(contents)
        dock.setTitleBarWidget(QtWidgets.QWidget())
        dock.setMinimumWidth(PANEL_WIDTH)
        self.addDockWidget(QtCore.Qt.DockWidgetArea.LeftDockWidgetArea, dock)
        self._selector = qSlicerModuleSelectorToolBar(self)
        self._selector.hide()
        self._add_bars()
        for name, kind in {"LogoLabel": "QLabel", "DataProbeCollapsibleWidget": "ctkCollapsibleButton"}.items():
            part = widget_class(kind)(contents) if kind.startswith("ctk") else QtWidgets.QLabel(contents)
            part.setObjectName(name)
            part.hide()
        self._console: QtWidgets.QWidget | None = None
        self._error_log: QtWidgets.QDockWidget | None = None
        self.statusBar()

    def _add_bars(self) -> None:
        """The menus and tool bars that modules add their own entries to, by their names; empty and hidden."""
        for name in ("FileMenu", "EditMenu", "ViewMenu", "HelpMenu"):
            self.menuBar().addMenu(name.removesuffix("Menu")).setObjectName(name)
        self.menuBar().hide()
        for name in (
            "MainToolBar",
            "ModuleToolBar",
            "ViewToolBar",
            "MouseModeToolBar",
            "CaptureToolBar",
            "DialogToolBar",
        ):
            bar = self.addToolBar(name)
            bar.setObjectName(name)
            button = QtWidgets.QToolButton(bar)  # of the tool bar of views: the menu of layouts
            button.setMenu(QtWidgets.QMenu(button))
            bar.addWidget(button)
            bar.hide()

    def moduleSelector(self) -> qSlicerModuleSelectorToolBar:
        """What opens modules."""
        return self._selector

    def show_panel(self, panel: QtWidgets.QWidget | None, module: Any) -> None:
        """Put a module's panel into the window in place of the one before."""
        self._title.setText(module.title if module is not None else "")
        old = self._scroll.takeWidget()
        if old is not None:
            old.hide()
        if panel is not None:
            self._scroll.setWidget(panel)
            panel.show()

    def pythonConsole(self) -> QtWidgets.QWidget:
        """An empty stand-in of the Python console."""
        if self._console is None:
            dock = QtWidgets.QDockWidget(self)
            self._console = QtWidgets.QWidget(dock)
            dock.setWidget(self._console)
            dock.hide()
        return self._console

    def errorLogDockWidget(self) -> QtWidgets.QDockWidget:
        """An empty stand-in of the error log."""
        if self._error_log is None:
            self._error_log = QtWidgets.QDockWidget(self)
            self._error_log.hide()
        return self._error_log

    def closeEvent(self, event: QtGui.QCloseEvent) -> None:
        """The window closes."""
        event.accept()
