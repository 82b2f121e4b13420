"""The child process that segments (`python -m twinseg.worker`): one JSON object a line, in and out."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

import twinseg

logger = logging.getLogger(__name__)

CANCEL_MS = 950  # the worker answers within 800 ms, or it is ended: Cancel holds within a second
QUIT_MS = 1000


class Signal:
    """Calls what is connected to it. A plain class, as `qt.Signal` in a Python class crashes Slicer."""

    def __init__(self) -> None:
        self._slots: list[Callable[..., Any]] = []

    def connect(self, slot: Callable[..., Any]) -> None:
        self._slots.append(slot)

    def disconnect(self, slot: Callable[..., Any]) -> None:
        self._slots.remove(slot)

    def emit(self, *arguments: Any) -> None:
        for slot in list(self._slots):
            slot(*arguments)


class WorkerError(ValueError):
    """A request that ended without a result, in one line. `kind`: input, cancelled, memory, fault, or crashed."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass
class _Request:
    onResult: Callable[[dict[str, Any]], None]
    onError: Callable[[WorkerError], None]
    onProgress: Callable[[float, str], None]
    onNotice: Callable[[str], None]
    isCancelled: bool = False


def pythonProgram() -> str:
    """The Python that runs the worker: `PythonSlicer`, which knows Slicer's own packages and those it installed."""
    return shutil.which("PythonSlicer") or sys.executable


class WorkerProcess:
    """The worker, started when it is first needed and again after it has died. All calls return at once.

    A request ends with one call of `onResult(value)` or `onError(WorkerError)`, in the main thread; before that,
    `onProgress(done, stage)` with done from 0 to 1, and `onNotice(message)`, may come any number of times.
    """

    def __init__(self, arguments: tuple[str, ...] = ("-m", "twinseg.worker")) -> None:
        self._arguments = arguments
        self._process: Any = None
        self._pending: dict[int, _Request] = {}
        self._lastId = 0
        self._output = b""
        self._lastErrors = b""

    @property
    def isRunning(self) -> bool:
        """Whether there is a process, be it that it still starts."""
        return self._process is not None and self._process.state() != qt.QProcess.NotRunning

    @property
    def processId(self) -> int:
        """The process's number, 0 where there is none."""
        return int(self._process.processId()) if self.isRunning else 0

    def request(
        self,
        message: dict[str, Any],
        onResult: Callable[[dict[str, Any]], None],
        onError: Callable[[WorkerError], None],
        onProgress: Callable[[float, str], None] = lambda done, stage: None,
        onNotice: Callable[[str], None] = lambda message: None,
    ) -> int:
        """Send a request (`{"do": …}`), starting the process if there is none; returns the request's number."""
        self._lastId += 1
        number = self._lastId
        self._pending[number] = _Request(onResult, onError, onProgress, onNotice)
        if not self.isRunning:
            self._start()
        self._send({"id": number, **message})
        return number

    def cancel(self, number: int) -> None:
        """End a request with the error "cancelled" within a second, if need be by ending the process."""
        if number not in self._pending:
            return
        self._pending[number].isCancelled = True
        self._lastId += 1
        self._send({"id": self._lastId, "do": "cancel", "target": number})
        process = self._process
        qt.QTimer.singleShot(CANCEL_MS, lambda: self._endIfPending(number, process))

    def stop(self) -> None:
        """End the process; requests that are open are forgotten. Waits a second at most."""
        self._pending.clear()
        if not self.isRunning:
            return
        self._lastId += 1
        self._send({"id": self._lastId, "do": "quit"})
        self._process.closeWriteChannel()
        if not self._process.waitForFinished(QUIT_MS):
            _killTree(self.processId)
            self._process.waitForFinished(QUIT_MS)

    def _start(self) -> None:
        self._output = self._lastErrors = b""
        process = qt.QProcess()
        environment = qt.QProcessEnvironment.systemEnvironment()
        folders = [str(Path(twinseg.__file__).resolve().parents[1]), environment.value("PYTHONPATH", "")]
        environment.insert("PYTHONPATH", os.pathsep.join(folder for folder in folders if folder))
        environment.insert("PYTHONUTF8", "1")
        process.setProcessEnvironment(environment)
        process.connect("readyReadStandardOutput()", self._onOutput)
        process.connect("readyReadStandardError()", self._onErrors)
        process.connect("finished(int,QProcess::ExitStatus)", self._onFinished)
        process.connect("errorOccurred(QProcess::ProcessError)", self._onProcessError)
        self._process = process
        process.start(pythonProgram(), [*self._arguments, "--parent", str(os.getpid())])

    def _send(self, message: dict[str, Any]) -> None:
        if self.isRunning:
            self._process.write((json.dumps(message) + "\n").encode())

    def _onOutput(self) -> None:
        self._output += _toBytes(self._process.readAllStandardOutput())
        *lines, self._output = self._output.split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
                number, kind = message.get("id"), message["type"]
            except (ValueError, KeyError, TypeError, AttributeError):
                logger.warning("the worker wrote a line that is no message: %r", line[:200])
                continue
            if request := self._pending.get(number):
                self._hand(number, request, kind, message)

    def _hand(self, number: int, request: _Request, kind: str, message: dict[str, Any]) -> None:
        if kind == "progress":
            request.onProgress(float(message["done"]), str(message["stage"]))
        elif kind == "notice":
            request.onNotice(str(message["message"]))
        else:
            del self._pending[number]
            # A result that crossed with the cancellation on its way is cancelled all the same.
            if request.isCancelled:
                request.onError(WorkerError("cancelled", _("Cancelled; the scene is as it was.")))
            elif kind == "result":
                request.onResult(message["value"])
            else:
                request.onError(WorkerError(str(message.get("kind", "fault")), str(message.get("message", ""))))

    def _onErrors(self) -> None:
        text = _toBytes(self._process.readAllStandardError())
        logger.debug("worker: %s", text.decode(errors="replace").rstrip())
        self._lastErrors = (self._lastErrors + text)[-4000:]

    def _onFinished(self, exitCode: int = 0, exitStatus: Any = None) -> None:
        self._onOutput()
        lines = self._lastErrors.decode(errors="replace").strip().splitlines()
        reason = f" ({lines[-1][:200]})" if lines and exitCode else ""
        self._failPending(
            _(
                "The segmentation process ended unexpectedly{reason}; it may have run out of memory. "
                "The scene is as it was. Press the button again: the process starts anew."
            ).format(reason=reason)
        )

    def _onProcessError(self, error: Any) -> None:
        if error == qt.QProcess.FailedToStart:
            self._failPending(
                _("The segmentation process could not be started: {program}. Install Slicer again.").format(
                    program=pythonProgram()
                )
            )

    def _failPending(self, message: str) -> None:
        pending, self._pending = self._pending, {}
        for request in pending.values():
            if request.isCancelled:
                request.onError(WorkerError("cancelled", _("Cancelled; the scene is as it was.")))
            else:
                request.onError(WorkerError("crashed", message))

    def _endIfPending(self, number: int, process: Any) -> None:
        if number in self._pending and process is self._process:
            _killTree(self.processId)


def _toBytes(array: Any) -> bytes:
    """A QByteArray's bytes; PythonQt hands them out as text in some versions."""
    data = array.data()
    return data.encode() if isinstance(data, str) else bytes(data)


def _killTree(processId: int) -> None:
    """End a process and its children: `PythonSlicer` is a launcher, which dies without taking its child along."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(processId)
        for process in [*launcher.children(recursive=True), launcher]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
