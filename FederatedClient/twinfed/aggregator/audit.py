"""The log of what happened: append-only, each entry chained to the one before by its hash."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from typing import Any

START = "0" * 64

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY, time REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL, details TEXT NOT NULL,
    hash TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'the log is fixed'); END;
CREATE TRIGGER IF NOT EXISTS events_keep BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'the log is fixed'); END;
"""


def record(db: sqlite3.Connection, time: float, who: str, what: str, **details: Any) -> None:
    """Append an entry within the caller's transaction, so that the log and what it tells of stand or fall together.

    Args:
        time: seconds since 1970.
        who: ``aggregator``, ``operator`` or a site's name.
        what: stable name of what happened (``update-accepted``).
        details: JSON values; hashes of the files concerned among them.
    """
    text = json.dumps(details, sort_keys=True, allow_nan=False)
    db.execute(
        "INSERT INTO events (time, who, what, details, hash) VALUES (?, ?, ?, ?, ?)",
        (time, who, what, text, _chained(head(db), time, who, what, text)),
    )


def head(db: sqlite3.Connection) -> str:
    """Hash of the last entry: whoever keeps it can prove later that the log up to it has not been changed."""
    row = db.execute("SELECT hash FROM events ORDER BY number DESC LIMIT 1").fetchone()
    return row[0] if row else START


def broken_link(db: sqlite3.Connection) -> int | None:
    """Number of the first entry that does not fit the one before; None where the chain is whole."""
    previous = START
    rows = db.execute("SELECT number, time, who, what, details, hash FROM events ORDER BY number")
    for expected, (number, time, who, what, details, digest) in enumerate(rows, start=1):
        if number != expected or digest != _chained(previous, time, who, what, details):
            return int(number)
        previous = digest
    return None


def unknown_heads(db: sqlite3.Connection, heads: Iterable[str]) -> list[str]:
    """Those of the hashes that were never the log's last: the log that they come from is another one."""
    return [one for one in heads if db.execute("SELECT 1 FROM events WHERE hash = ?", (one,)).fetchone() is None]


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON value: for an entry to tell of what is too long to stand in it."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _chained(previous: str, time: float, who: str, what: str, details: str) -> str:
    return hashlib.sha256(json.dumps([previous, time, who, what, details]).encode()).hexdigest()
