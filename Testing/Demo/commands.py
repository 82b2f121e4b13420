"""Runs the commands as a user types them, one after the other or side by side, and puts them on the page."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from Demo.page import Page

MODULES = {"twinseg": "twinseg.cli", "twinfed": "twinfed.cli"}
PATIENCE = 10.0
"""Seconds that a command has to end by itself when it is told to."""


@dataclass
class Commands:
    """Commands of one machine.

    home: its data folder (TWINSEG_HOME), where it is not the user's.
    threads: on which it computes, where that is not all cores.
    """

    page: Page
    home: Path | None = None
    threads: int | None = None
    _beside: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, *words: str | Path) -> str:
        """Run a command to its end and return what it printed last. Raises CalledProcessError if it fails."""
        command, line = self._command(words)
        print("$", line, flush=True)
        started, said = time.perf_counter(), ""
        with subprocess.Popen(command, env=self._environment(), stdout=subprocess.PIPE, encoding="utf-8") as process:
            try:
                assert process.stdout is not None
                for said in process.stdout:
                    print(said, end="", flush=True)
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, line)
        self.page.command(line, time.perf_counter() - started)
        return said.strip()

    def start(self, *words: str | Path, log: Path) -> subprocess.Popen[bytes]:
        """Start a command that runs beside the others; it goes on the page, and what it prints into a file."""
        command, line = self._command(words)
        print("$", line, "&", flush=True)
        self.page.command(line)
        with open(log, "wb") as file:
            process = subprocess.Popen(
                command, env=self._environment(), stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        self._beside.append(process)
        return process

    def end(self) -> None:
        """End what still runs beside: as Ctrl-C would, and after `PATIENCE` by force."""
        for process in self._beside:
            process.terminate()
        until = time.monotonic() + PATIENCE
        for process in self._beside:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            process.kill()
            process.wait()
        self._beside.clear()

    def _command(self, words: tuple[str | Path, ...]) -> tuple[list[str], str]:
        """The words for the operating system and, in short form, for the reader."""
        program, *rest = (shown(word) if isinstance(word, Path) else word for word in words)
        home = "" if self.home is None else f"TWINSEG_HOME={shlex.quote(shown(self.home))} "
        return [sys.executable, "-m", MODULES[program], *rest], home + shlex.join([program, *rest])

    def _environment(self) -> dict[str, str]:
        own = {"TWINSEG_HOME": self.home, "OMP_NUM_THREADS": self.threads}
        given = {name: str(value) for name, value in own.items() if value is not None}
        return {**os.environ, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", **given}


@contextlib.contextmanager
def side_by_side(*machines: Commands) -> Iterator[None]:
    """However the block is left, nothing that these machines started runs on."""
    try:
        yield
    finally:
        for machine in machines:
            machine.end()


def shown(path: Path) -> str:
    """A path as a user would type it: from the folder that they are in."""
    try:
        return os.path.relpath(path)
    except ValueError:  # on another drive
        return str(path)
