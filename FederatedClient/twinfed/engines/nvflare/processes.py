"""Programs that are started for a trial, ended with it, and seen to listen on this machine alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from twinfed.errors import InputError

LOOPBACK = ("127.", "::1", "::ffff:127.")
PATIENCE = 5.0
"""Seconds that a process has to end by itself."""


class Processes:
    """Child processes, each with its own log. Leaving the `with` block ends them and all that they started, however it
    is left: by an error, Ctrl-C or SIGTERM as well.

    Args:
        environment: what they have besides this process's.
        on_look: called after each look at them.
    """

    def __init__(self, environment: Mapping[str, str], on_look: Callable[[], None] = lambda: None) -> None:
        self._environment, self._on_look = dict(environment), on_look
        self._started: list[subprocess.Popen[bytes]] = []
        self._known: dict[int, psutil.Process] = {}
        self.most_memory, self.most_processes = 0, 0

    def __enter__(self) -> Processes:
        self._before = signal.getsignal(signal.SIGTERM)
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        return self

    def start(self, arguments: Sequence[str], log: Path, folder: Path) -> subprocess.Popen[bytes]:
        """Start a Python module with arguments, in a folder, in a session of its own."""
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", *arguments],
                cwd=folder,
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def look(self) -> None:
        """Note processes and memory, and that nothing listens to the network. Raises InputError where something does.

        Called again and again: children appear at any time.
        """
        alive = list(self._all())
        memory = 0
        for process in alive:
            with contextlib.suppress(psutil.Error):
                memory += _memory(process)
                for address in listening(process):
                    if not address.startswith(LOOPBACK):
                        raise InputError(
                            f"NVFlare listened on {address}, not on this machine alone; it was stopped. "
                            "Is a comm_config.json in effect?"
                        )
        self._on_look()
        self.most_memory = max(self.most_memory, memory)
        self.most_processes = max(self.most_processes, len(alive))

    def __exit__(self, *_: object) -> None:
        alive = list(self._all())
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, left = psutil.wait_procs(alive, PATIENCE)
        for process in {*left, *self._all()}:
            with contextlib.suppress(psutil.Error):
                process.kill()
        for started in self._started:
            started.wait()
        with contextlib.suppress(ValueError, TypeError):
            signal.signal(signal.SIGTERM, self._before)

    def _all(self) -> Iterator[psutil.Process]:
        """Every living process of these, also those whose parent is gone: they are remembered once seen."""
        for started in self._started:
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(started.pid)
                for process in (root, *root.children(recursive=True)):
                    self._known.setdefault(process.pid, process)
        for process in list(self._known.values()):
            with contextlib.suppress(psutil.Error):
                for child in process.children(recursive=True):
                    self._known.setdefault(child.pid, child)
        for process in list(self._known.values()):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def wait_until(ready: Callable[[], bool], processes: Processes, seconds: float, what: str, every: float = 0.5) -> None:
    """Wait until `ready()` is true. Raises InputError after `seconds`; what `Processes.look` raises."""
    end = time.monotonic() + seconds
    while not ready():
        processes.look()
        if time.monotonic() > end:
            raise InputError(f"{what} took more than {seconds:.0f} seconds. See the logs.")
        time.sleep(every)


def listening(process: psutil.Process) -> list[str]:
    """The addresses that a process listens on."""
    connections = getattr(process, "net_connections", None) or process.connections
    return [one.laddr.ip for one in connections(kind="inet") if one.status == psutil.CONN_LISTEN]


def _memory(process: psutil.Process) -> int:
    """Bytes that are this process's own; what several share counts for each of them by its part, where it is told."""
    with contextlib.suppress(psutil.Error, AttributeError):
        return int(process.memory_full_info().pss)
    return int(process.memory_info().rss)
