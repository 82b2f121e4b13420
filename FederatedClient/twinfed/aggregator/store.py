"""The aggregator's folder: one SQLite file in WAL mode, and files named by their hash.

A file is forced to disk and renamed into place before the database speaks of it, so that ``kill -9`` at any moment
leaves at most a file that nobody knows, never an entry without its file.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

from twinfed.wire import InputError, hash_file

from . import audit

SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sites (
    name TEXT PRIMARY KEY, token_hash TEXT NOT NULL UNIQUE, added REAL NOT NULL, revoked REAL, seen REAL,
    samples INTEGER);
CREATE TABLE IF NOT EXISTS rounds (
    number INTEGER PRIMARY KEY, state TEXT NOT NULL, opened REAL NOT NULL, deadline REAL NOT NULL,
    extended INTEGER NOT NULL DEFAULT 0, closed REAL, published REAL, invited TEXT, bases TEXT NOT NULL,
    models TEXT, weights TEXT, memory TEXT NOT NULL, next_memory TEXT, note TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS updates (
    hash TEXT NOT NULL, round INTEGER NOT NULL, site TEXT NOT NULL, state TEXT NOT NULL, code TEXT, reason TEXT,
    remedy TEXT, report TEXT, norm REAL, bytes INTEGER NOT NULL, cluster TEXT, received REAL NOT NULL,
    PRIMARY KEY (hash, round, site));
CREATE UNIQUE INDEX IF NOT EXISTS one_update ON updates (round, site) WHERE state = 'accepted';
CREATE TABLE IF NOT EXISTS skips (round INTEGER NOT NULL, site TEXT NOT NULL, PRIMARY KEY (round, site));
CREATE TABLE IF NOT EXISTS uploads (
    site TEXT PRIMARY KEY, round INTEGER NOT NULL, hash TEXT NOT NULL, length INTEGER NOT NULL,
    received INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS deltas (
    model TEXT PRIMARY KEY, base TEXT NOT NULL, file TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS traffic (
    round INTEGER NOT NULL, site TEXT NOT NULL, up INTEGER NOT NULL DEFAULT 0, down INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (round, site));
"""
    + audit.SCHEMA
)


VERSION = 1  # of the tables; 0 is what was written before it was noted, and is the same
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Store:
    """The folder, opened. Several processes may hold it (``twinfed site add`` beside a running aggregator).

    Args:
        folder: made if it is not there.
        now: the clock, in seconds since 1970.

    Raises:
        InputError: a newer version of the program made it.
    """

    def __init__(self, folder: str | Path, now: Callable[[], float] = time.time) -> None:
        self.folder, self.now = Path(folder), now
        make_private(self.folder)
        for name in ("files", "uploads", "quarantine", "temporary"):
            (self.folder / name).mkdir(exist_ok=True)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(
            self.folder / "aggregator.sqlite", timeout=30, isolation_level=None, check_same_thread=False
        )
        self._db.row_factory = sqlite3.Row
        self._check_version()
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(SCHEMA)
        if self._version() < VERSION:
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _check_version(self) -> None:
        if (found := self._version()) > VERSION:
            self._db.close()
            raise InputError(
                f"{self.folder}: a newer version of TwinSegSlicer wrote it (tables {found}, this one knows {VERSION}). "
                "Update this one."
            )

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self, *, forced: bool = True) -> Iterator[sqlite3.Connection]:
        """All of it or nothing; a second writer, in this process or another, waits.

        Args:
            forced: to disk, so that it outlives a power cut. Otherwise it outlives a killed process only: enough for
                what can be told again, and ten times as fast.
        """
        with self._lock:
            self._db.execute(f"PRAGMA synchronous={'FULL' if forced else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def row(self, query: str, *values: object) -> sqlite3.Row | None:
        found = self.rows(query, *values)
        return found[0] if found else None

    def setting(self, key: str) -> str | None:
        row = self.row("SELECT value FROM settings WHERE key = ?", key)
        return row["value"] if row else None

    def head(self) -> str:
        """Hash of the log's last entry."""
        with self._lock:
            return audit.head(self._db)

    def file(self, digest: str) -> Path:
        """Where the file of this hash is; it need not be there."""
        return self.folder / "files" / digest[:2] / digest

    def keep(self, path: Path, digest: str | None = None) -> str:
        """Move a file into the store under its hash, safe from a power cut; return the hash."""
        with open(path, "rb+") as opened:
            os.fsync(opened.fileno())
        digest = digest or hash_file(path)
        target = self.file(digest)
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
        sync_folder(target.parent)
        return digest

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """A folder that is gone afterwards, on the same disk as the files."""
        path = self.folder / "temporary" / uuid.uuid4().hex
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what a killed process left behind. Only for the process that holds the folder's lock."""
        for path in (self.folder / "temporary").iterdir():
            shutil.rmtree(path, ignore_errors=True)
        with self.transaction() as db:
            db.execute("DELETE FROM uploads WHERE round < (SELECT MAX(number) FROM rounds)")
        known = {f"{row['site']}.{row['hash']}" for row in self.rows("SELECT site, hash FROM uploads")}
        for path in (self.folder / "uploads").iterdir():
            if path.name not in known:
                path.unlink()

    def count_traffic(self, db: sqlite3.Connection, number: int, site: str, up: int = 0, down: int = 0) -> None:
        db.execute(
            "INSERT INTO traffic VALUES (?, ?, ?, ?) "
            "ON CONFLICT (round, site) DO UPDATE SET up = up + excluded.up, down = down + excluded.down",
            (number, site, up, down),
        )


class FolderLock:
    """One aggregator a folder; the lock goes with the process, however that ends.

    Raises:
        InputError: another process holds it.
    """

    def __init__(self, folder: str | Path) -> None:
        make_private(Path(folder))
        self._file: IO[str] = open(Path(folder) / "lock", "a+", encoding="utf-8")  # noqa: SIM115 (held)
        try:
            _lock(self._file)
        except OSError as error:
            self._file.close()
            raise InputError(f"{folder}: another aggregator runs in this folder. Stop it, or name another.") from error

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def make_private(folder: Path) -> None:
    """Make a folder that only its owner can look into: updates tell something of the cases that they come from."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder last; Windows does so by itself and cannot open folders."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _lock(file: IO[str]) -> None:
    if os.name == "posix":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
