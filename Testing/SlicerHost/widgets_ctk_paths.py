"""CTK's widgets that choose a file or a folder."""

from __future__ import annotations

import re
from typing import Any

from PySide6 import QtCore, QtWidgets

from .widget_api import implements, interface

MAXIMUM_HISTORY = 20  # paths that ctkPathLineEdit keeps in the settings
EXTENSION = re.compile(r"\*\.(\w+)")  # in a name filter


@implements
class ctkPathLineEdit(interface("ctkPathLineEdit", showBrowseButton=True, showHistoryButton=True)):  # type: ignore[misc]
    """A path to type, to choose from the history, or to browse for."""

    def __init__(self, *arguments: Any):
        parent = next((argument for argument in arguments if isinstance(argument, QtWidgets.QWidget)), None)
        super().__init__(parent)
        self.store("filters", self.Files | self.NoDot | self.NoDotDot | self.AllEntries)
        self._combo_box = QtWidgets.QComboBox(self)
        self._combo_box.setEditable(True)
        self._combo_box.setInsertPolicy(QtWidgets.QComboBox.InsertPolicy.NoInsert)
        self._combo_box.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)
        self._is_valid = False
        self._combo_box.lineEdit().textChanged.connect(lambda text: self._on_text(text))
        self._button = QtWidgets.QToolButton(self)
        self._button.setText("...")
        self._button.clicked.connect(lambda: self.browse())
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo_box)
        layout.addWidget(self._button)

    def comboBox(self) -> QtWidgets.QComboBox:
        """The history."""
        return self._combo_box

    def setCurrentPath(self, path: Any) -> None:
        """The path, as text; a path of another system's style is taken as it is. The cursor goes to its end."""
        self._combo_box.lineEdit().setText(str(path))

    def _on_text(self, text: str) -> None:
        """CTK's rule: a text that is not acceptable, such as an empty one, is no new path, only no valid one."""
        was_valid, self._is_valid = self._is_valid, self._is_acceptable(text)
        self.__dict__.setdefault("_values", {})["currentPath"] = text
        if self._is_valid:
            self.currentPathChanged.emit(text)
        if self._is_valid != was_valid:
            self.validInputChanged.emit(self._is_valid)

    def _is_acceptable(self, text: str) -> bool:
        """Whether the text ends as the name filters say; without them, whether there is one. The disk is not asked."""
        extensions = EXTENSION.findall(" ".join(self.nameFilters))
        pattern = "|".join(rf".*\.{extension}?" for extension in extensions)  # with CTK's own question mark
        return re.fullmatch(pattern or ".+", text) is not None

    def browse(self) -> None:
        """Ask with Qt's file dialog; nothing changes when the user cancels."""
        dialog = QtWidgets.QFileDialog
        if self.filters & self.Dirs and not self.filters & self.Files:
            path = dialog.getExistingDirectory(self, self.label, self.currentPath)
        else:
            path = dialog.getOpenFileName(self, self.label, self.currentPath, ";;".join(self.nameFilters))[0]
        if path:
            self.setCurrentPath(path)

    def addCurrentPathToHistory(self) -> None:
        """Keep the path in the settings under ``settingKey``, newest first."""
        if not self.currentPath or not self.settingKey:
            return
        history = [path for path in self._history() if path != self.currentPath]
        QtCore.QSettings().setValue(self.settingKey, [self.currentPath, *history][:MAXIMUM_HISTORY])

    def _history(self) -> list[str]:
        kept = QtCore.QSettings().value(self.settingKey) or []
        return [kept] if isinstance(kept, str) else list(kept)

    def setSettingKey(self, key: str) -> None:
        """Where the history is kept; the newest path becomes the current one."""
        self.store("settingKey", str(key))
        self.retrieveHistory()

    def retrieveHistory(self) -> None:
        """Fill the list from the settings; as in CTK, nobody is told of a path that is taken from there."""
        path = self.currentPath
        was_blocked = self.blockSignals(True)
        self._combo_box.clear()
        self._combo_box.addItems(self._history() if self.settingKey else [])
        if path:
            self.setCurrentPath(path)
        self.blockSignals(was_blocked)

    def setShowBrowseButton(self, show: bool) -> None:
        """Show or hide the button beside the path."""
        self.store("showBrowseButton", bool(show))
        self._button.setVisible(show)


@implements
class ctkDirectoryButton(interface("ctkDirectoryButton", directory=".")):  # type: ignore[misc]
    """A button that shows a folder and lets the user choose another."""

    def __init__(self, *arguments: Any):
        parent = next((argument for argument in arguments if isinstance(argument, QtWidgets.QWidget)), None)
        super().__init__(parent)
        self._button = QtWidgets.QPushButton(self)
        self._button.clicked.connect(lambda: self.browse())
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._button)
        self._button.setText(self.directory)
        for directory in arguments:
            if isinstance(directory, str):
                self.setDirectory(directory)

    def setDirectory(self, directory: Any) -> None:
        """Another folder, kept as an absolute path."""
        new = QtCore.QDir(str(directory))
        if new != QtCore.QDir(self.directory):
            self.store("directory", new.absolutePath())
            self._button.setText(self.stored("text") or self.directory)

    def setText(self, text: str) -> None:
        """Text in place of the path."""
        self.store("text", text)
        self._button.setText(text or self.directory)

    def browse(self) -> None:
        """Ask with Qt's folder dialog."""
        path = QtWidgets.QFileDialog.getExistingDirectory(self, self.caption, self.directory)
        if path:
            self.setDirectory(path)
            self.directorySelected.emit(path)
