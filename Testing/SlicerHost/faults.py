"""What went wrong behind the back of a test: exceptions in slots and observers, and error dialogs.

Qt and VTK swallow an exception that leaves a Python callback: they print it and go on, as Slicer does. A test would
then pass over a broken button. The host writes each of them down here, and :meth:`Faults.check` fails the test.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType


class HostFault(AssertionError):
    """Raised by :meth:`Faults.check` when something went wrong that no test had expected."""


@dataclass(frozen=True)
class Fault:
    """One thing that went wrong: ``kind`` is "exception" or "dialog", ``text`` is what the user would have read."""

    kind: str
    text: str
    details: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}" + (f"\n{self.details}" if self.details else "")


@dataclass
class Faults:
    """The faults of the running session, oldest first."""

    unexpected: list[Fault] = field(default_factory=list)
    _expected: list[tuple[re.Pattern[str], list[Fault]]] = field(default_factory=list)
    _shown: str = ""  # the error dialog of the exception that is on its way

    def record(self, fault: Fault) -> None:
        """Keep ``fault``, unless an :meth:`expect` block that is open now waits for it.

        ``slicer.util.tryWithErrorDisplay`` shows an error and raises it again: that is one fault, not two.
        """
        shown, self._shown = self._shown, fault.text if fault.kind == "dialog" else ""
        message = fault.text.partition(": ")[2]
        if fault.kind == "exception" and message and message in shown:
            return
        for pattern, caught in reversed(self._expected):
            if pattern.search(fault.text):
                caught.append(fault)
                return
        self.unexpected.append(fault)

    def record_exception(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """An ``sys.excepthook``: print the traceback, as always, and keep the fault."""
        traceback.print_exception(kind, error, trace)
        if not issubclass(kind, (KeyboardInterrupt, SystemExit)):
            details = "".join(traceback.format_exception(kind, error, trace))
            self.record(Fault("exception", f"{kind.__name__}: {error}", details))

    @contextmanager
    def expect(self, pattern: str) -> Iterator[list[Fault]]:
        """Require at least one fault whose text matches the regular expression ``pattern`` within the block.

        Yields the list of the faults that matched, filled as they come.
        """
        caught: list[Fault] = []
        entry = (re.compile(pattern), caught)
        self._expected.append(entry)
        try:
            yield caught
        finally:
            self._expected.remove(entry)
        if not caught:
            raise HostFault(f"No error dialog or exception matched {pattern!r}")

    def check(self) -> None:
        """Raise :class:`HostFault` with all unexpected faults, and forget them."""
        faults, self.unexpected = self.unexpected, []
        if faults:
            raise HostFault("\n".join(str(fault) for fault in faults))

    def install(self) -> None:
        """Become the handler of exceptions that Qt and VTK would only print."""
        sys.excepthook = self.record_exception


faults = Faults()
