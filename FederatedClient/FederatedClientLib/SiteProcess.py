"""The site process (`twinfed join`) of a folder: start, pause, stop, and whether it runs."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import qt
from slicer.i18n import tr as _

from twinfed.client.controls import PAUSE, STOP, Hours, read_consent

from .ChildProcess import ChildProcess, endTree
from .JoinSettings import JoinSettings

END_MS = 4000  # it stops within 2 s; one that does not is ended


class SiteProcess:
    """Told what to do by files in its folder, so that one that an earlier Slicer or a terminal started obeys, too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._child = ChildProcess(folder, "site")

    @property
    def failure(self) -> str:
        """Why the process ended that was started here, in its words; "" if it did not, or was told to."""
        return self._child.failure

    @property
    def isPaused(self) -> bool:
        return (self.folder / PAUSE).exists()

    def isRunning(self, pid: int | None = None, started: float | None = None) -> bool:
        """Whether it runs; `pid` and `started` are what it says of itself in its state, if it was started elsewhere."""
        if self._child.isRunning:
            return True
        try:
            # One that has the number of a process that is gone began later than that one spoke.
            return bool(pid and started and psutil.Process(pid).create_time() < started + 1)
        except psutil.Error:
            return False

    def whyNot(self, settings: JoinSettings) -> str:
        """Why it cannot be started, "" if it can."""
        if not settings.address:
            return _("Enter the aggregator's address, or start a local aggregator below")
        try:
            settings.server(self.folder)
            if settings.hours:
                Hours.parse(settings.hours)
        except ValueError as error:
            return str(error)
        consent = read_consent(self.folder)
        if consent is None:
            return _("Read what is sent, and agree to it")
        if not consent.holds_for(settings.address):
            return _("What was agreed to is for {address}: take the tick away, and agree anew").format(
                address=consent.address
            )
        return ""

    def start(self, settings: JoinSettings) -> None:
        """Raises ValueError where it cannot be started."""
        if reason := self.whyNot(settings):
            raise ValueError(reason)
        self.pause(False)
        (self.folder / STOP).unlink(missing_ok=True)
        self._child.start(settings.words(self.folder))

    def pause(self, paused: bool) -> None:
        """Let it stand still, or go on."""
        if paused:
            (self.folder / PAUSE).touch()
        else:
            (self.folder / PAUSE).unlink(missing_ok=True)

    def stop(self) -> None:
        """Tell it to stop, which it does within 2 s; what it was at is gone on with at the next start."""
        (self.folder / STOP).touch()
        process = self._child.find()
        qt.QTimer.singleShot(END_MS, lambda: endTree(process))

    def stopAndWait(self) -> None:
        """As `stop`, for Slicer's end: returns when it is gone."""
        process = self._child.find()
        if process is None:
            return
        (self.folder / STOP).touch()
        until = time.monotonic() + END_MS / 1000
        while self._child.isRunning and time.monotonic() < until:
            time.sleep(0.02)
        endTree(process)
