"""Modal dialogs without a user: they are answered, and those that report an error are written down as faults.

In a test nobody presses a button, so a modal dialog would stop it for ever. The host answers as a user in a hurry
would: the default button of a question, Cancel to a file dialog. A test can say otherwise with :meth:`Dialogs.answer`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from PySide6 import QtWidgets

from .faults import Fault, faults

ERROR_ICONS = (QtWidgets.QMessageBox.Icon.Critical,)
Buttons = QtWidgets.QMessageBox.StandardButton
# Buttons in the order in which one is taken when the dialog has no default.
PREFERRED = (
    Buttons.Ok,
    Buttons.Yes,
    Buttons.Close,
    Buttons.Save,
    Buttons.Open,
    Buttons.Retry,
    Buttons.Cancel,
    Buttons.No,
)


@dataclass
class Dialogs:
    """The dialogs that were shown, and what they are answered with."""

    shown: list[str] = field(default_factory=list)
    _answers: list[tuple[re.Pattern[str], Any]] = field(default_factory=list)

    @contextmanager
    def answer(self, pattern: str, result: Any) -> Iterator[None]:
        """Within the block, a dialog whose text or title matches ``pattern`` returns ``result``.

        ``result`` is what the dialog's ``exec`` returns (a button, or QDialog.Accepted), what the static function
        returns (a path, a text), or a callable that gets the dialog, may press its buttons, and returns that.
        """
        entry = (re.compile(pattern), result)
        self._answers.append(entry)
        try:
            yield
        finally:
            self._answers.remove(entry)

    def result(self, text: str, default: Any, dialog: Any = None) -> Any:
        """Note a dialog and give what it returns."""
        self.shown.append(text)
        for pattern, result in reversed(self._answers):
            if pattern.search(text):
                return result(dialog) if callable(result) and not isinstance(result, int) else result
        return default

    def install(self, util: Any, app: Any) -> None:
        """Take the place of every way in which Qt opens a modal dialog, and of ``slicer.util``'s error dialog, which
        Slicer only logs under ``--testing``."""
        show = util.errorDisplay

        @functools.wraps(show)
        def error_display(text: str, *arguments: Any, **options: Any) -> None:
            if app.testingEnabled():
                faults.record(Fault("dialog", str(text)))
            show(text, *arguments, **options)

        util.errorDisplay = error_display
        QtWidgets.QDialog.exec = self._exec
        QtWidgets.QDialog.exec_ = self._exec
        QtWidgets.QMessageBox.exec = self._exec
        for name, icon in {"information": 1, "warning": 2, "critical": 3, "question": 4}.items():
            setattr(QtWidgets.QMessageBox, name, staticmethod(self._message_function(QtWidgets.QMessageBox.Icon(icon))))
        cancelled: dict[str, Any] = {
            "getOpenFileName": ("", ""),
            "getSaveFileName": ("", ""),
            "getOpenFileNames": ([], ""),
        }
        for name, default in {**cancelled, "getExistingDirectory": ""}.items():
            setattr(QtWidgets.QFileDialog, name, staticmethod(self._static_function(default)))
        for name in ("getText", "getInt", "getDouble", "getItem", "getMultiLineText"):
            setattr(QtWidgets.QInputDialog, name, staticmethod(self._static_function((None, False))))
        QtWidgets.QMenu.exec = lambda *_: None
        QtWidgets.QMenu.exec_ = lambda *_: None

    @property
    def _exec(self) -> Callable[[Any], Any]:
        def run(dialog: Any) -> Any:
            """Stand in for ``exec``: answer at once."""
            if not isinstance(dialog, QtWidgets.QMessageBox):
                return self.result(dialog.windowTitle or type(dialog).__name__, 0, dialog)
            text = dialog.text
            if dialog.icon in ERROR_ICONS:
                faults.record(Fault("dialog", text, dialog.detailedText))
            return self.result(f"{dialog.windowTitle}: {text}", self._default_button(dialog), dialog)

        return run

    @staticmethod
    def _default_button(dialog: QtWidgets.QMessageBox) -> int:
        if dialog.defaultButton() is not None:
            return dialog.standardButton(dialog.defaultButton())
        return next((button for button in PREFERRED if dialog.standardButtons & button), Buttons.Ok)

    def _message_function(self, icon: QtWidgets.QMessageBox.Icon) -> Callable[..., Any]:
        def show(parent: Any, title: str, text: str, buttons: Any = Buttons.Ok, default: Any = Buttons.NoButton) -> Any:
            if icon in ERROR_ICONS:
                faults.record(Fault("dialog", text))
            first = next((button for button in PREFERRED if int(buttons) & int(button)), Buttons.Ok)
            return self.result(f"{title}: {text}", default if int(default) else first)

        return show

    def _static_function(self, default: Any) -> Callable[..., Any]:
        def ask(parent: Any = None, title: str = "", *_: Any, **__: Any) -> Any:
            return self.result(title, default)

        return ask


dialogs = Dialogs()
