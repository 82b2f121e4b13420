"""What the site process, the case queue and the local aggregator are at, looked at once a second beside the window."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import qt

from twinfed.client.controls import Consent, read_consent
from twinfed.client.site_state import read_state
from twinfed.client.site_twin import Offer, first_offer
from twinseg.case_queue import CaseQueue
from twinseg.home import data_folder
from TwinSegSlicerLib.Background import BackgroundTask
from TwinSegSlicerLib.Worker import Signal

from .SiteProcess import SiteProcess

INTERVAL_MS = 1000
LINES = 200
LEAST_FREE = 20_000_000  # bytes on the disk
ENDED = ("stopped", "finished")


@dataclass(frozen=True)
class Snapshot:
    """All that the panel shows. facts, rounds, traffic, twins, lines: as `read_state` gives them; offer: the model that
    the viewer takes first; cases: of the queue; consent: that was given; failure: of the process; isDiskFull: as the
    process then cannot even store what is wrong."""

    facts: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    traffic: list[dict[str, Any]] = field(default_factory=list)
    twins: list[dict[str, Any]] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    offer: Offer | None = None
    cases: list[Any] = field(default_factory=list)
    isRunning: bool = False
    isPaused: bool = False
    consent: Consent | None = None
    failure: str = ""
    aggregatorAnswers: bool = False
    isDiskFull: bool = False

    @property
    def phase(self) -> str:
        """What the site does; "" where nothing is known."""
        phase = str(self.facts.get("phase") or "")
        if self.isRunning:
            return "starting" if phase in ("", *ENDED) else phase
        return phase if phase in ("", *ENDED) else "ended"

    @property
    def sent(self) -> int:
        """Bytes."""
        return sum(row["up"] for row in self.traffic)

    @property
    def received(self) -> int:
        """Bytes."""
        return sum(row["down"] for row in self.traffic)


class SiteWatch:
    """Reads in a thread, so that neither a slow disk nor a locked file holds up the window.

    `changed` is emitted with each `Snapshot` that differs from the last one; `failed` with why nothing could be read.
    """

    def __init__(self, aggregatorAnswers: Callable[[], bool]) -> None:
        self.changed, self.failed = Signal(), Signal()
        self.snapshot = Snapshot()
        self._aggregatorAnswers = aggregatorAnswers
        self._site: SiteProcess | None = None
        self._queue: CaseQueue | None = None
        self._task: BackgroundTask | None = None
        self._timer = qt.QTimer()
        self._timer.setInterval(INTERVAL_MS)
        self._timer.connect("timeout()", self.look)

    def watch(self, site: SiteProcess) -> None:
        """Look at this site from now on."""
        self.stop()
        self._site = site
        self.snapshot = Snapshot()
        self.changed.emit(self.snapshot)
        self._timer.start()
        self.look()

    def stop(self) -> None:
        """Look no more."""
        self._timer.stop()
        self._site = None
        if self._task is not None:
            self._task.abandon()
            self._task = None

    def look(self) -> None:
        """Look now, unless that is being done."""
        if self._task is None and self._site is not None:
            site = self._site
            self._task = BackgroundTask(lambda: self._read(site), self._onRead, self._onError)

    def _read(self, site: SiteProcess) -> Snapshot:
        state = read_state(site.folder, LINES)
        facts = state["facts"]
        return Snapshot(
            **state,
            offer=first_offer(site.folder),
            cases=self._cases(),
            isRunning=site.isRunning(facts.get("pid"), facts.get("started")),
            isPaused=site.isPaused,
            consent=read_consent(site.folder),
            failure=site.failure,
            aggregatorAnswers=self._aggregatorAnswers(),
            isDiskFull=site.folder.is_dir() and shutil.disk_usage(site.folder).free < LEAST_FREE,
        )

    def _cases(self) -> list[Any]:
        """Those of the queue, newest first; a queue that is not there yet is not made."""
        folder = data_folder() / "cases"
        if not folder.is_dir():
            return []
        if self._queue is None or self._queue.folder != folder:
            self._queue = CaseQueue(folder)
        return sorted(self._queue.cases(), key=lambda case: case.since, reverse=True)

    def _onRead(self, snapshot: Snapshot) -> None:
        self._task = None
        if snapshot != self.snapshot:
            self.snapshot = snapshot
            self.changed.emit(snapshot)

    def _onError(self, error: Exception) -> None:
        self._task = None
        self.failed.emit(str(error))
