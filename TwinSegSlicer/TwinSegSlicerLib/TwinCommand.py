"""A `twinseg twin …` command as a child process, beside the window: for what would hold Python up too long here."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

import twinseg
from twinseg.errors import InputError

from .Worker import WorkerError, _killTree, _toBytes, pythonProgram

QUIT_MS = 1000
PREFIX = "twinseg: "  # of the line that tells bad input


class TwinCommand:
    """Runs one command at a time. A twin is written in whole revisions, so that it can be ended at any moment."""

    def __init__(self, arguments: Sequence[str] = ("-m", "twinseg.cli", "twin")) -> None:
        self._arguments = list(arguments)
        self._process: Any = None
        self._folder: Any = None
        self._isCancelled = False
        self._onDone: Callable[[dict[str, Any]], None] = lambda measured: None
        self._onError: Callable[[Exception], None] = lambda error: None

    @property
    def isRunning(self) -> bool:
        return self._process is not None

    def run(
        self, arguments: Sequence[str], onDone: Callable[[dict[str, Any]], None], onError: Callable[[Exception], None]
    ) -> None:
        """Start `twinseg twin` with arguments; returns at once. Ends with `onDone(what --json holds)` or
        `onError(InputError or WorkerError)`. Raises ValueError while another command runs."""
        if self.isRunning:
            raise ValueError(_("Another step is under way: wait until it is done, or cancel it"))
        self._onDone, self._onError, self._isCancelled = onDone, onError, False
        self._folder = tempfile.TemporaryDirectory(prefix="TwinSegSlicer-", ignore_cleanup_errors=True)
        process = qt.QProcess()
        environment = qt.QProcessEnvironment.systemEnvironment()
        folders = [str(Path(twinseg.__file__).resolve().parents[1]), environment.value("PYTHONPATH", "")]
        environment.insert("PYTHONPATH", os.pathsep.join(folder for folder in folders if folder))
        environment.insert("PYTHONUTF8", "1")
        process.setProcessEnvironment(environment)
        process.connect("finished(int,QProcess::ExitStatus)", self._onFinished)
        process.connect("errorOccurred(QProcess::ProcessError)", self._onProcessError)
        self._process = process
        process.start(pythonProgram(), [*self._arguments, *arguments, "--json", str(self._answer)])

    def cancel(self) -> None:
        """End the command with the error "cancelled"; what it had not finished is not in the twin."""
        if self.isRunning:
            self._isCancelled = True
            _killTree(int(self._process.processId()))

    def stop(self) -> None:
        """End the command and tell nobody: the module goes. Waits a second at most."""
        self._onDone, self._onError = lambda measured: None, lambda error: None
        if (process := self._process) is not None:
            _killTree(int(process.processId()))
            process.waitForFinished(QUIT_MS)

    @property
    def _answer(self) -> Path:
        return Path(self._folder.name) / "answer.json"

    def _onFinished(self, exitCode: int = 0, exitStatus: Any = None) -> None:
        told = _toBytes(self._process.readAllStandardError()).decode(errors="replace").strip().splitlines()
        line = told[-1] if told else ""
        error: Exception | None = None
        if self._isCancelled:
            error = WorkerError("cancelled", _("Cancelled; the twin is as it was."))
        elif line.startswith(PREFIX):
            error = InputError(line.removeprefix(PREFIX))
        elif exitCode or not self._answer.is_file():
            reason = f" ({line[:300]})" if line else ""
            error = WorkerError(
                "fault", _("The twin's process failed{reason}; the twin is as it was.").format(reason=reason)
            )
        measured = {} if error else json.loads(self._answer.read_text(encoding="utf-8"))
        self._end()
        if error is not None:
            self._onError(error)
        else:
            self._onDone(measured)

    def _onProcessError(self, error: Any) -> None:
        if error == qt.QProcess.FailedToStart:
            self._end()
            text = _("The twin's process could not be started: {program}. Install Slicer again.")
            self._onError(WorkerError("crashed", text.format(program=pythonProgram())))

    def _end(self) -> None:
        self._process = None
        self._folder.cleanup()
