"""Work beside the window: a function in a thread, whose outcome comes back to the main thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import qt

INTERVAL_MS = 5
HANDOVER_SECONDS = 0.01


class BackgroundTask:
    """Calls `function()` in a thread, then in the main thread `onDone(result)` or `onError(exception)`.

    For reading, writing and numpy: nothing in the function may touch the scene or a widget. Slicer's event loop may
    hold Python's global lock while it waits, so a timer lends it to the thread for a few milliseconds at a time.
    """

    def __init__(
        self, function: Callable[[], Any], onDone: Callable[[Any], None], onError: Callable[[Exception], None]
    ) -> None:
        self._callbacks: tuple[Callable[[Any], None], Callable[[Exception], None]] | None = (onDone, onError)
        self._result: Any = None
        self._error: Exception | None = None
        # Handed over as an argument, as a thread lets go of its arguments at its end.
        self._thread = threading.Thread(target=self._run, args=(function,), name="TwinSegSlicer", daemon=True)
        self._timer = qt.QTimer()
        self._timer.setInterval(INTERVAL_MS)
        self._timer.connect("timeout()", self._check)
        self._thread.start()
        self._timer.start()

    def abandon(self, then: Callable[[], None] | None = None) -> None:
        """Let the thread come to its end and tell nobody; `then()` is called after that, in another thread."""
        self._release()
        if then is not None:
            threading.Thread(target=lambda: (self._thread.join(), then()), name="TwinSegSlicer", daemon=True).start()

    def _run(self, function: Callable[[], Any]) -> None:
        try:
            self._result = function()
        except Exception as error:  # handed to onError, whatever it is
            self._error = error

    def _check(self) -> None:
        self._thread.join(HANDOVER_SECONDS)
        if self._thread.is_alive() or self._callbacks is None:
            return
        (onDone, onError), result, error = self._callbacks, self._result, self._error
        self._release()
        if error is not None:
            onError(error)
        else:
            onDone(result)

    def _release(self) -> None:
        """Let go of everything. The timer's connection would keep this object for good, as PythonQt owns its part of
        the circle; the timer goes later, as this may be called by it."""
        if self._callbacks is None:
            return
        self._callbacks = self._result = self._error = None
        self._timer.stop()
        self._timer.deleteLater()
