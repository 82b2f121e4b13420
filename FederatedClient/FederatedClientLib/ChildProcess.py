"""A `twinfed` command as a process beside Slicer: started, found again by a later Slicer, ended."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import psutil

import twinfed
import twinseg
from twinseg.volumes import write_atomically
from TwinSegSlicerLib.Worker import pythonProgram

PROGRAM = ("-m", "twinfed.cli")
FAULTS = (1, 2)  # exit codes of the command: a fault, bad input
SAME_START_SECONDS = 5.0  # how far two readings of a process's start may differ, as the clock may be set meanwhile
NEW_SESSION: dict[str, Any] = (
    {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}  # type: ignore[attr-defined,unused-ignore]
    if os.name == "nt"
    else {"start_new_session": True}
)


class ChildProcess:
    """The process that runs a command for a folder; at most one.

    A note in the folder names it, so that it need not end with Slicer: the next one finds it by the note. What it
    prints is in the folder's `NAME.log`.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._note = folder / f"{name}.process.json"
        self._log = folder / f"{name}.log"
        self._started: subprocess.Popen[bytes] | None = None

    @property
    def isRunning(self) -> bool:
        """Whether the process is there, whoever started it."""
        return self.find() is not None

    @property
    def failure(self) -> str:
        """The last line of a process of this Slicer that found fault with its input or itself; "" if none did. One that
        was ended from outside has another exit code."""
        if self._started is None or self._started.poll() not in FAULTS:
            return ""
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].removeprefix("twinfed: ") if lines else f"exit code {self._started.returncode}"

    def start(self, words: list[str]) -> None:
        """Start the command with these words. Raises ValueError where it cannot be started."""
        libraries = [str(Path(file).resolve().parents[1]) for file in (str(twinseg.__file__), str(twinfed.__file__))]
        path = os.pathsep.join(dict.fromkeys([*libraries, *filter(None, [os.environ.get("PYTHONPATH")])]))
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"}
        command = [pythonProgram(), *PROGRAM, *words]
        try:
            self._note.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(self._log, "wb") as log:
                self._started = subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **NEW_SESSION
                )
        except OSError as error:
            raise ValueError(f"{command[0]}: it could not be started ({error.strerror})") from error
        process = psutil.Process(self._started.pid)
        write_atomically(self._note, json.dumps({"pid": process.pid, "started": process.create_time()}).encode())

    def find(self) -> psutil.Process | None:
        """The process, where it runs."""
        if self._started is not None and self._started.poll() is not None:
            return None
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            process = psutil.Process(note["pid"])
            isSame = abs(process.create_time() - note["started"]) < SAME_START_SECONDS
            return process if isSame and process.status() != psutil.STATUS_ZOMBIE else None
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            return None


def endTree(launcher: psutil.Process | None) -> None:
    """End a process and its children at once: `PythonSlicer` is a launcher, which dies without taking its child along.
    None, or one that is gone, is ended already."""
    if launcher is None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        processes = [*launcher.children(recursive=True), launcher]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(processes, timeout=2)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
