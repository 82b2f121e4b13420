"""`twinfed join`: the process of a site, beside Slicer. One a folder, of low priority, which may be killed at any time.

The main thread only watches for the signal or file that ends it; another one works (`site_loop`). When it is told to
stop, the work has a moment to come to a rest. Then the process ends anyway: whatever moment that is, the next one goes
on from what is on the disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import filelock
import psutil

from twinfed.client.controls import STOP, tell
from twinfed.client.site_state import SiteState
from twinfed.errors import InputError

if TYPE_CHECKING:
    from twinfed.client.site_loop import SiteLoop
    from twinfed.client.site_settings import SiteSettings

MOMENT = 0.5
"""Seconds that the work has to come to a rest."""
LOOK = 0.1
ROOM = 2.0
"""Seconds between two looks for room on the disk."""


def run_site(settings: SiteSettings, parent: int | None, agree: Callable[[], None]) -> None:
    """Take part until the federation is finished. SIGTERM, SIGINT, the stop file and the end of the process `parent`
    end the process within two seconds, with exit code 0. `agree` is called as soon as no other process
    can run in the folder.

    Raises InputError where another process runs in the folder, or where the settings are wrong.
    """
    folder = settings.folder
    lock = locked(folder)
    try:
        agree()
        (folder / STOP).unlink(missing_ok=True)
        if settings.low_priority:
            lower_priority()
        stop, errors = threading.Event(), list[Exception]()
        for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), lambda *_: stop.set())
        worker = threading.Thread(target=_work, args=(settings, stop, errors), name="site", daemon=True)
        worker.start()
        while worker.is_alive() and not stop.is_set():
            worker.join(LOOK)
            if (folder / STOP).exists() or (parent is not None and not psutil.pid_exists(parent)):
                stop.set()
        if stop.is_set():
            worker.join(MOMENT)
            _leave(folder, at_work=worker.is_alive())
        worker.join()
        if errors:
            raise errors[0]
    finally:
        lock.release()


def _work(settings: SiteSettings, stop: threading.Event, errors: list[Exception]) -> None:
    try:
        if (loop := _opened(settings, stop)) is None:
            return
        loop.say("info", f"taking part at {settings.server.url}")
        if not loop.run():
            loop.say("info", "stopped")
            with contextlib.suppress(sqlite3.OperationalError):  # no room
                loop.state.set(phase="stopped")
        loop.state.close()
    except Exception as error:
        errors.append(error)


def _opened(settings: SiteSettings, stop: threading.Event) -> SiteLoop | None:
    """The loop, as soon as there is room for its state; None if told to stop before."""
    from twinfed.client.site_loop import SiteLoop  # torch with it: seconds, in which it can be stopped already

    said = False
    while not stop.is_set():
        try:
            loop = SiteLoop(settings, stop)
            loop.state.set(pid=os.getpid(), started=time.time(), engine="twinfed")
            return loop
        except (OSError, sqlite3.OperationalError) as error:
            if not said:
                tell(f"{settings.folder}: {error}; free some room, or mend the folder")
            said = True
            stop.wait(ROOM)
    return None


def _leave(folder: Path, at_work: bool) -> NoReturn:
    """End the process at once, as to take torch down takes longer than there is time; what it was `at_work` on is gone
    on with by the next one."""
    if at_work:
        with contextlib.suppress(sqlite3.Error, InputError):
            SiteState(folder, patience=0.1).set(phase="stopped")
        tell("stopped")
    logging.shutdown()
    os._exit(0)


def locked(folder: Path) -> Any:
    """The lock of a site's folder, which goes with the process however that ends. Raises InputError if it is taken."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = filelock.FileLock(folder / "lock")
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise InputError(f"{folder}: another process takes part from this folder. Stop it, or name another.") from error
    except OSError as error:
        raise InputError(f"{folder}: it cannot be written ({error.strerror}). Name another folder.") from error
    return lock


def lower_priority() -> None:
    """Let every other program go first."""
    with contextlib.suppress(psutil.Error, OSError):
        psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if sys.platform == "win32" else 19)
