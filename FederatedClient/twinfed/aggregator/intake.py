"""What sites bring to a round: whether an update may come, what is wrong with it, and where it goes.

An update is in the round from the moment at which the database says so, after its file is on the disk; that is also
the moment at which the site is told.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from twinfed.wire import Refusal, Report, UpdateFile

from .audit import record
from .checks import Expected, check_update
from .damage import DAMAGED
from .rounds import OPEN, Federation

MOST_REFUSED = 20  # updates a site may have refused in one round
NORMS_KEPT = 50  # accepted updates whose norms make the running median


class Intake:
    """Takes updates into the open round of a federation."""

    def __init__(self, federation: Federation) -> None:
        self.federation, self._store = federation, federation.store

    def skip(self, site: str, number: int) -> None:
        """A site says that it sends nothing in this round, so that nobody waits for it."""
        with self._store.transaction() as db:
            self._open_round(number)
            added = db.execute("INSERT OR IGNORE INTO skips VALUES (?, ?)", (number, site)).rowcount
            if added:
                record(db, self._store.now(), site, "round-skipped", round=number)

    def earlier_answer(self, site: str, number: int, digest: str) -> dict[str, Any] | None:
        """What was said to this very update before, if it came before.

        Raises:
            Refusal: it was refused before, for the same reason.
        """
        row = self._store.row("SELECT * FROM updates WHERE hash = ? AND round = ? AND site = ?", digest, number, site)
        if row is None or row["code"] == DAMAGED.code:
            return None
        if row["state"] == "refused":
            raise Refusal(row["code"], row["reason"], row["remedy"])
        return {"state": "accepted", "round": number, "hash": digest}

    def check_may_send(self, site: str, number: int, digest: str) -> None:
        """Raise a Refusal where an update of this hash cannot be taken, whatever it holds: before it is uploaded."""
        with self._store.transaction() as db:
            self._check_may_send(db, site, number, digest)

    def receive(self, site: str, number: int, digest: str, path: Path) -> dict[str, Any]:
        """Check a whole update and take it into the round. The file at ``path`` is moved away.

        Args:
            digest: SHA-256 of the file, which the caller has computed from what arrived.

        Raises:
            Refusal: why it is not taken; the reason is on record, and the file in quarantine.
        """
        size = path.stat().st_size
        try:
            cluster, expected = self._expected(site, number)
            report, norm = _examine(path, expected)
        except Refusal as refusal:
            refusal.with_traceback(None)  # lets go of the mapped file, which Windows could not move otherwise
            self._refuse(site, number, digest, path, refusal)
            raise
        self._store.keep(path, digest)
        told = {"hash": digest, "bytes": size, "report": report.to_dict(), "norm": norm, "cluster": cluster}
        try:
            with self._store.transaction() as db:
                self._check_may_send(db, site, number, digest)
                now = self._store.now()
                db.execute(
                    "INSERT OR REPLACE INTO updates VALUES (?, ?, ?, 'accepted', NULL, NULL, NULL, ?, ?, ?, ?, ?)",
                    (digest, number, site, json.dumps(report.to_dict()), norm, size, cluster, now),
                )
                record(db, now, site, "update-accepted", round=number, **told)
        except Refusal as refusal:  # the round closed while the update was checked
            if self._store.row("SELECT 1 FROM updates WHERE hash = ? AND state = 'accepted'", digest) is None:
                self._refuse(site, number, digest, self._store.file(digest), refusal)
            raise
        return {"state": "accepted", "round": number, "hash": digest}

    def _open_round(self, number: int) -> sqlite3.Row:
        row = self.federation.current()
        if number > row["number"] or number < 1:
            raise Refusal("wrong-round", f"There is no round {number} yet.", f"Ask for round {row['number']}.", 409)
        if number < row["number"] or row["state"] != OPEN:
            raise Refusal(
                "late",
                f"Round {number} is closed; the update is not in its model.",
                "Carry on with the round that is open.",
                409,
            )
        return row

    def _check_may_send(self, db: sqlite3.Connection, site: str, number: int, digest: str) -> None:
        row = self._open_round(number)
        invited = json.loads(row["invited"] or "null")
        if invited is not None and site not in invited:
            raise Refusal("not-your-turn", f"It is the turn of {', '.join(invited)}.", "Wait to be asked.", 409)
        entry = db.execute("SELECT revoked, samples FROM sites WHERE name = ?", (site,)).fetchone()
        if entry["revoked"] is not None:
            raise Refusal("revoked", "This site's access was withdrawn.", "Ask the operator for a new token.", 403)
        if entry["samples"] is None:
            raise Refusal("not-registered", "The site has not registered its cases.", "Register them first.", 409)
        known = db.execute(
            "SELECT round, site FROM updates WHERE hash = ? AND state = 'accepted'", (digest,)
        ).fetchone()
        if known and (known["round"], known["site"]) != (number, site):
            raise Refusal("replayed", "This update was taken before.", "Train for the open round.", 409)
        sent = db.execute(
            "SELECT hash FROM updates WHERE round = ? AND site = ? AND state = 'accepted'", (number, site)
        ).fetchone()
        if sent and sent["hash"] != digest:
            raise Refusal("second-update", "The site's update for this round is in.", "Wait for the next round.", 409)
        refused = db.execute(
            "SELECT COUNT(*) FROM updates WHERE round = ? AND site = ? AND state = 'refused'", (number, site)
        ).fetchone()[0]
        if refused >= MOST_REFUSED:
            raise Refusal(
                "too-many-refused", f"{refused} updates were refused in this round.", "Wait for the next round.", 429
            )

    def _expected(self, site: str, number: int) -> tuple[str, Expected]:
        """The site's cluster, and what its update must be."""
        config = self.federation.config
        with self._store.transaction() as db:
            row = self._open_round(number)
            registered = db.execute("SELECT samples FROM sites WHERE name = ?", (site,)).fetchone()["samples"]
        norms = self._store.rows(
            "SELECT norm FROM updates WHERE state = 'accepted' ORDER BY received DESC LIMIT ?", NORMS_KEPT
        )
        cluster = json.loads(row["memory"]).get("clusters", {}).get(site, "0")
        return cluster, Expected(
            federation=config.name,
            site=site,
            round=number,
            base=json.loads(row["bases"])[cluster],
            shapes=self.federation.shapes,
            registered=registered or 0,
            norms=[norm["norm"] for norm in norms],
            norm_factor=config.limits.norm_factor,
            largest_value=config.limits.largest_value,
        )

    def _refuse(self, site: str, number: int, digest: str, path: Path, refusal: Refusal) -> None:
        size = path.stat().st_size
        folder = self._store.folder / "quarantine"
        path.replace(folder / digest)
        with self._store.transaction() as db:
            now = self._store.now()
            db.execute(
                "INSERT OR REPLACE INTO updates VALUES (?, ?, ?, 'refused', ?, ?, ?, NULL, NULL, ?, NULL, ?)",
                (digest, number, site, refusal.code, refusal.reason, refusal.remedy, size, now),
            )
            why = {"code": refusal.code, "reason": refusal.reason}
            record(db, now, site, "update-refused", round=number, hash=digest, **why)
            kept = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
            for old in kept[int(self.federation.config.limits.quarantine) :]:
                old.unlink()


def _examine(path: Path, expected: Expected) -> tuple[Report, float]:
    """Report and norm of an update that passes the checks; the file is closed again."""
    update = UpdateFile(path)
    return update.header.report, check_update(update, expected)
