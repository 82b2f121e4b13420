"""What a site process knows, in one SQLite file of the site's folder: it writes, the module's panel reads.

The file may be removed at any time while no process runs: it is made anew, and the aggregator tells what was sent.
"""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinfed.errors import InputError
from twinfed.wire import Report

FILE = "site.sqlite"
LINES_KEPT = 2000
TRAINING, READY, SENT, LATE, REFUSED, SKIPPED = "training", "ready", "sent", "late", "refused", "skipped"
SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rounds (
    number INTEGER NOT NULL, base TEXT NOT NULL, phase TEXT NOT NULL, began REAL NOT NULL, ended REAL,
    hash TEXT, bytes INTEGER, report TEXT, PRIMARY KEY (number, base));
CREATE TABLE IF NOT EXISTS traffic (
    round INTEGER PRIMARY KEY, up INTEGER NOT NULL DEFAULT 0, down INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS lines (time REAL NOT NULL, level TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS twins (
    model TEXT PRIMARY KEY, round INTEGER NOT NULL, made REAL NOT NULL, global_file TEXT NOT NULL, twin_file TEXT,
    global_dice REAL, twin_dice REAL);
"""


@dataclass(frozen=True)
class RoundEntry:
    """How far the site is with a round: its phase, and the update's hash, size and report once it is made."""

    number: int
    base: str
    phase: str
    hash: str | None
    bytes: int | None
    report: Report | None


class SiteState:
    """The state of one site's folder, opened to write. Use it in one thread.

    Raises InputError where the file is no state; sqlite3.OperationalError, from any method, where there is no room.
    """

    def __init__(self, folder: Path, patience: float = 10.0) -> None:
        """Open the state in a folder; `patience` in seconds for another writer."""
        self._db = sqlite3.connect(folder / FILE, timeout=patience, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")  # outlives a killed process; a power cut may cost a phase
            self._db.executescript(SCHEMA)
        except sqlite3.OperationalError:
            self._db.close()
            raise
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise InputError(
                f"{folder / FILE}: this is no site's state ({error}). Remove it; it is made anew."
            ) from error

    def close(self) -> None:
        self._db.close()

    def get(self, key: str, default: Any = None) -> Any:
        """A fact, or what is said where it is not known."""
        row = self._db.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
        return default if row is None else json.loads(row["value"])

    def set(self, **facts: Any) -> None:
        """Store facts; those that are as they were are not written."""
        changed = [(key, json.dumps(value)) for key, value in facts.items() if self.get(key, ...) != value]
        if changed:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", changed)
            self._db.execute("COMMIT")

    def round(self, number: int, base: str) -> RoundEntry | None:
        """The entry of a round that began from a base."""
        row = self._db.execute("SELECT * FROM rounds WHERE number = ? AND base = ?", (number, base)).fetchone()
        if row is None:
            return None
        report = Report.from_dict(json.loads(row["report"])) if row["report"] else None
        return RoundEntry(number, base, row["phase"], row["hash"], row["bytes"], report)

    def unsettled(self) -> list[RoundEntry]:
        """The rounds whose update is made, and of which it is not known whether it was taken."""
        rows = self._db.execute("SELECT number, base FROM rounds WHERE phase = ?", (READY,)).fetchall()
        return [entry for row in rows if (entry := self.round(row["number"], row["base"])) is not None]

    def begin(self, number: int, base: str) -> None:
        """The site trains for a round; one that it trained for before went on without it."""
        self._db.execute("UPDATE rounds SET phase = ? WHERE phase = ?", (LATE, TRAINING))
        self._db.execute(
            "INSERT INTO rounds (number, base, phase, began) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (number, base) DO UPDATE SET phase = excluded.phase, ended = NULL",
            (number, base, TRAINING, time.time()),
        )

    def made(self, number: int, base: str, digest: str, size: int, report: Report) -> None:
        """The update of a round is on the disk."""
        self._db.execute(
            "UPDATE rounds SET phase = ?, hash = ?, bytes = ?, report = ? WHERE number = ? AND base = ?",
            (READY, digest, size, json.dumps(report.to_dict()), number, base),
        )

    def offer(self, number: int, digest: str) -> None:
        """An update of a round is about to be sent; those of other rounds are forgotten."""
        self.set(offered={"round": number, "hashes": sorted({*self.offered(number), digest})})

    def offered(self, number: int) -> list[str]:
        """Hashes of the updates that this folder began to send for a round: more than one where it was made anew."""
        before = self.get("offered", {})
        return list(before["hashes"]) if before.get("round") == number else []

    def end(self, number: int, base: str, phase: str, **facts: Any) -> None:
        """The site is through with a round (sent, late, refused, skipped); facts are stored in the same stroke."""
        self._db.execute("BEGIN")
        self._db.execute(
            "INSERT INTO rounds (number, base, phase, began, ended) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (number, base) DO UPDATE SET phase = excluded.phase, ended = excluded.ended",
            (number, base, phase, time.time(), time.time()),
        )
        rows = [(key, json.dumps(value)) for key, value in facts.items()]
        self._db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", rows)
        self._db.execute("COMMIT")

    def count(self, number: int, up: int, down: int) -> None:
        """Add bytes to a round's traffic."""
        self._db.execute(
            "INSERT INTO traffic VALUES (?, ?, ?) "
            "ON CONFLICT (round) DO UPDATE SET up = up + excluded.up, down = down + excluded.down",
            (number, up, down),
        )

    def line(self, level: str, text: str) -> None:
        """Add a line to the log, which keeps the last ones."""
        self._db.execute("INSERT INTO lines VALUES (?, ?, ?)", (time.time(), level, text))
        self._db.execute("DELETE FROM lines WHERE rowid <= (SELECT MAX(rowid) FROM lines) - ?", (LINES_KEPT,))

    def add_twin(
        self,
        model: str,
        number: int,
        global_file: str,
        twin_file: str | None,
        global_dice: float | None,
        twin_dice: float | None,
    ) -> None:
        """Register the models that a site has of a published one."""
        self._db.execute(
            "INSERT OR REPLACE INTO twins VALUES (?, ?, ?, ?, ?, ?, ?)",
            (model, number, time.time(), global_file, twin_file, global_dice, twin_dice),
        )

    def twins(self) -> list[dict[str, Any]]:
        """The registered twins, the newest first."""
        rows = self._db.execute("SELECT * FROM twins ORDER BY round DESC, made DESC").fetchall()
        return [dict(row) for row in rows]

    def remove_twin(self, model: str) -> None:
        self._db.execute("DELETE FROM twins WHERE model = ?", (model,))


def read_state(folder: Path, lines: int = 200) -> dict[str, Any]:
    """All that a panel shows: facts, rounds, traffic, twins, and the last lines of the log, oldest first.

    Empty where no process has run yet. Reading never holds up the process.
    """
    try:
        return _read(folder / FILE, lines)
    except sqlite3.OperationalError:  # it is not there, or just being made
        return {"facts": {}, "rounds": [], "traffic": [], "twins": [], "lines": []}


def _read(file: Path, lines: int) -> dict[str, Any]:
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", timeout=2, uri=True)) as db:
        db.row_factory = sqlite3.Row
        tables = {
            "rounds": "SELECT * FROM rounds ORDER BY number, began",
            "traffic": "SELECT * FROM traffic ORDER BY round",
            "twins": "SELECT * FROM twins ORDER BY round",
            "lines": f"SELECT * FROM lines WHERE rowid > (SELECT MAX(rowid) FROM lines) - {int(lines)} ORDER BY rowid",
        }
        found: dict[str, Any] = {name: [dict(row) for row in db.execute(query)] for name, query in tables.items()}
        found["facts"] = {row["key"]: json.loads(row["value"]) for row in db.execute("SELECT * FROM facts")}
    for row in found["rounds"]:
        row["report"] = json.loads(row["report"]) if row["report"] else None
    return found
