"""For tests: how long the window stood still while the module was at work."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path

import qt

WAITED = Path("/proc/thread-self/schedstat")  # Linux: the second number is how long this thread waited for a core, ns


def ownClock() -> float:
    """Seconds, less those in which other programs had the core: what they take is not the module's doing."""
    waited = int(WAITED.read_text().split()[1]) / 1e9 if WAITED.exists() else 0.0
    return time.perf_counter() - waited


class Heartbeat:
    """Beats every few milliseconds until `stop`.

    Python does not search what was there before for garbage meanwhile: with all that a long test run leaves behind,
    that alone takes longer than a beat may.

    Attributes:
        pauses: of each beat (seconds since the one before, was `isWatched()` true before, and after).
    """

    def __init__(self, isWatched: Callable[[], bool] = lambda: True, clock: Callable[[], float] = ownClock) -> None:
        self.pauses: list[tuple[float, bool, bool]] = []
        self._isWatched, self._clock = isWatched, clock
        gc.freeze()
        self._last = clock(), isWatched()
        self._timer = qt.QTimer()
        self._timer.setInterval(5)
        self._timer.connect("timeout()", self._beat)
        self._timer.start()

    @property
    def watched(self) -> list[float]:
        """The pauses while `isWatched()`, before and after, in seconds."""
        return [seconds for seconds, before, after in self.pauses if before and after]

    @property
    def longestButOne(self) -> float:
        """Of the watched pauses, in seconds: what the module does it does again, a hiccup of the machine comes alone.
        0 where there are not two."""
        return sorted(self.watched)[-2] if len(self.watched) > 1 else 0.0

    def stop(self) -> None:
        self._timer.stop()
        gc.unfreeze()

    def _beat(self) -> None:
        now, (before, wasWatched) = (self._clock(), self._isWatched()), self._last
        self._last = now
        self.pauses.append((now[0] - before, wasWatched, now[1]))
