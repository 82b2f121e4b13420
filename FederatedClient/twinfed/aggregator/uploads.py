"""Uploads in pieces: what was acknowledged outlives the process, and a site goes on from there when interrupted."""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from twinfed.wire import Refusal, hash_file
from twinfed.wire.tensors import LARGEST_HEADER, model_specs

from .intake import Intake

if TYPE_CHECKING:
    from hashlib import _Hash

HASH = re.compile(r"[0-9a-f]{64}")
MEGABYTE = 10**6


class Uploads:
    """The uploads under way: one a site; beginning another discards the one before."""

    def __init__(self, intake: Intake) -> None:
        self._intake, self._store = intake, intake.federation.store
        self._limits = intake.federation.config.limits
        self._hashing: dict[str, tuple[str, int, _Hash]] = {}  # site -> update, its bytes that are hashed, their hash
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        size = sum(spec.nbytes for spec in model_specs(intake.federation.shapes).values())
        self.largest = int(size * 1.02) + LARGEST_HEADER + MEGABYTE

    def status(self, site: str, number: int, digest: str) -> dict[str, Any]:
        """How much of an upload is here: ``received`` bytes, or the answer to the whole.

        Raises:
            Refusal: the update was refused before, or cannot be taken.
        """
        _check_hash(digest)
        if answer := self._intake.earlier_answer(site, number, digest):
            return answer
        self._intake.check_may_send(site, number, digest)
        row = self._row(site, number, digest)
        return {"state": "uploading", "received": row["received"] if row else 0}

    @contextmanager
    def piece(self, site: str, number: int, digest: str, offset: int, length: int) -> Iterator[Piece]:
        """Take one piece; leaving the block without an error acknowledges it.

        Args:
            offset: where it begins in the file.
            length: of the whole file.

        Raises:
            Refusal: it cannot be taken; nothing has changed.
        """
        _check_hash(digest)
        self._intake.check_may_send(site, number, digest)
        if not 0 < length <= self.largest:
            raise Refusal(
                "too-large", f"An update takes at most {self.largest} bytes here.", "Send one for this model.", 413
            )
        if shutil.disk_usage(self._store.folder).free < length + self._limits.free_mb * MEGABYTE:
            raise disk_full()
        with self._alone(site):
            row = self._row(site, number, digest)
            received = row["received"] if row else 0
            if offset != received or (row and row["length"] != length):
                raise Refusal(
                    "wrong-offset",
                    f"{received} bytes are here, the piece begins at {offset}.",
                    "Ask how much is here.",
                    409,
                )
            if row is None:
                self._begin(site, number, digest, length)
            hashing = self._hashed(site, digest, received)
            with open(self._part(site, digest), "r+b") as file:
                file.truncate(received)  # a killed process may have written more than it acknowledged
                file.seek(received)
                piece = Piece(file, min(length - received, self._limits.chunk_mb * MEGABYTE), hashing)
                yield piece
                file.flush()
            with self._store.transaction(forced=False) as db:
                db.execute("UPDATE uploads SET received = ? WHERE site = ?", (received + piece.size, site))
                self._store.count_traffic(db, number, site, up=piece.size)
            if hashing is not None:
                self._hashing[site] = digest, received + piece.size, hashing

    def finish(self, site: str, number: int, digest: str) -> dict[str, Any]:
        """Where all bytes are here, check the update and take it in; otherwise tell how much is here.

        Raises:
            Refusal: why the update is not taken.
        """
        if answer := self._intake.earlier_answer(site, number, digest):
            return answer
        with self._alone(site):
            row = self._row(site, number, digest)
            if row is None:
                raise Refusal("not-started", "Nothing of this upload is here.", "Begin at offset 0.", 409)
            if row["received"] < row["length"]:
                return {"state": "uploading", "received": row["received"]}
            part, hashing = self._part(site, digest), self._hashed(site, digest, row["length"])
            try:
                if (hashing.hexdigest() if hashing else hash_file(part)) != digest:
                    part.unlink()
                    raise Refusal(
                        "wrong-hash", "What arrived has another hash than it should.", "Send it again from 0."
                    )
                return self._intake.receive(site, number, digest, part)
            finally:
                if not part.exists():
                    self._forget(site)

    def _hashed(self, site: str, digest: str, count: int) -> _Hash | None:
        """The hash of the first ``count`` bytes, where this process has received them all; it is given out once."""
        if count == 0:
            return hashlib.sha256()
        known = self._hashing.pop(site, None)
        return known[2] if known and known[:2] == (digest, count) else None

    def _row(self, site: str, number: int, digest: str) -> Any:
        """The upload's entry, where it has begun and its bytes are there: a kill may have come before the answer."""
        row = self._store.row("SELECT * FROM uploads WHERE site = ? AND round = ? AND hash = ?", site, number, digest)
        part = self._part(site, digest)
        return row if row and row["received"] and part.is_file() and part.stat().st_size >= row["received"] else None

    def _part(self, site: str, digest: str) -> Path:
        return self._store.folder / "uploads" / f"{site}.{digest}"

    def _begin(self, site: str, number: int, digest: str, length: int) -> None:
        for old in (self._store.folder / "uploads").glob(f"{site}.*"):
            old.unlink()
        self._part(site, digest).touch()
        with self._store.transaction(forced=False) as db:
            db.execute("INSERT OR REPLACE INTO uploads VALUES (?, ?, ?, ?, 0)", (site, number, digest, length))

    def _forget(self, site: str) -> None:
        with self._store.transaction(forced=False) as db:
            db.execute("DELETE FROM uploads WHERE site = ?", (site,))

    @contextmanager
    def _alone(self, site: str) -> Iterator[None]:
        with self._lock:
            if site in self._busy:
                raise Refusal("busy", "Another request of this site is under way.", "Ask again in a second.", 409)
            self._busy.add(site)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(site)


class Piece:
    """A piece of an upload while it arrives: written, and hashed while it is in the processor's cache."""

    def __init__(self, file: IO[bytes], most: int, hashing: _Hash | None) -> None:
        self._file, self._most, self._hashing = file, most, hashing
        self.size, self._checksum = 0, 0

    def write(self, contents: Iterable[bytes]) -> None:
        content = b"".join(contents)  # at once: each call lets other threads in, and then waits for its turn again
        self.size += len(content)
        if self.size > self._most:
            raise Refusal(
                "too-large", f"The piece is longer than the {self._most} bytes it may have.", "Send less.", 413
            )
        self._file.write(content)
        self._checksum = zlib.crc32(content, self._checksum)
        if self._hashing is not None:
            self._hashing.update(content)

    def check(self, expected: str) -> None:
        """Compare the sender's CRC-32 (8 hexadecimal digits), so that a damaged piece is sent again alone."""
        if f"{self._checksum:08x}" != expected.lower():
            raise Refusal("wrong-checksum", "The piece was damaged on its way.", "Send the same piece again.", 422)


def disk_full() -> Refusal:
    return Refusal("disk-full", "The aggregator's disk is full.", "Try again later; the operator has been told.", 507)


def _check_hash(digest: str) -> None:
    if not HASH.fullmatch(digest):
        raise Refusal("bad-hash", "The address holds no SHA-256.", "Name the update by 64 hexadecimal digits.", 422)
