"""What the libraries warn of, such as an image that has vanished, told as the site's own words."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

LOGGERS = ("twinseg", "twinfed.client")


@contextlib.contextmanager
def warnings_told(tell: Callable[[str], None]) -> Iterator[None]:
    """Call `tell` with each warning, until the block is left."""
    handler = _Warnings(tell)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(handler)


class _Warnings(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is None:
            self._tell(record.getMessage())
