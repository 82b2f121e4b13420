"""The sites of a federation and their tokens. A token is told once; the folder holds only its hash."""

from __future__ import annotations

import hashlib
import re
import secrets
import sqlite3
from typing import Any

from twinfed.wire import InputError, Refusal

from .audit import record
from .store import Store

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
MOST_REGISTRATIONS = 50  # changes of a site's number of cases in a day: each is an entry of a log that only grows


class Accounts:
    """Who may take part."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, name: str) -> str:
        """Add a site, or give a revoked one a new token; return the token, which nobody can ask for again.

        Raises:
            InputError: not a name, or a site that is there already.
        """
        if not NAME.fullmatch(name):
            raise InputError(f"{name!r} is no name of a site. Take up to 40 letters, digits, - and _.")
        token = f"twinfed-{secrets.token_urlsafe(32)}"
        with self._store.transaction() as db:
            found = db.execute("SELECT name, revoked FROM sites WHERE name = ? COLLATE NOCASE", (name,)).fetchone()
            if found and (found["name"] != name or found["revoked"] is None):
                raise InputError(f"The site {found['name']} is there already. Revoke it first to give it a new token.")
            db.execute(
                "INSERT INTO sites (name, token_hash, added) VALUES (?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET token_hash = excluded.token_hash, revoked = NULL",
                (name, _hashed(token), self._store.now()),
            )
            record(db, self._store.now(), "operator", "site-added", site=name)
        return token

    def revoke(self, name: str) -> None:
        """From now on nothing comes in from this site; what it sent before stays in the models.

        Raises:
            InputError: there is no such site.
        """
        with self._store.transaction() as db:
            changed = db.execute(
                "UPDATE sites SET revoked = ? WHERE name = ? AND revoked IS NULL", (self._store.now(), name)
            )
            if not changed.rowcount:
                raise InputError(f"There is no site {name} to revoke. See twinfed site list.")
            record(db, self._store.now(), "operator", "site-revoked", site=name)

    def sites(self) -> list[dict[str, Any]]:
        rows = self._store.rows("SELECT name, added, revoked, seen, samples FROM sites ORDER BY name")
        return [dict(row) for row in rows]

    def recognise(self, token: str) -> str:
        """The site that a token belongs to; notes when it was seen.

        The token is 256 random bits, so that one fast hash suffices, and looking the hash up tells nothing of it.

        Raises:
            Refusal: unknown (401) or revoked (403).
        """
        digest = _hashed(token)
        row = self._store.row("SELECT name, revoked, seen, token_hash FROM sites WHERE token_hash = ?", digest)
        if row is None or not secrets.compare_digest(row["token_hash"], digest):
            raise Refusal("unknown-token", "The token is not known here.", "Ask the operator for one.", 401)
        if row["revoked"] is not None:
            raise Refusal("revoked", "This site's access was withdrawn.", "Ask the operator for a new token.", 403)
        if row["seen"] is None or self._store.now() - row["seen"] > 1:
            with self._store.transaction(forced=False) as db:
                db.execute("UPDATE sites SET seen = ? WHERE name = ?", (self._store.now(), row["name"]))
        return str(row["name"])

    def register(self, name: str, samples: int) -> None:
        """Note how many training cases a site has; its updates may not claim more.

        Raises:
            Refusal: no possible number, or changed too often.
        """
        if type(samples) is not int or not 1 <= samples <= 10_000_000:
            raise Refusal("bad-samples", "That is no number of training cases.", "Register 1 to 10,000,000.")
        with self._store.transaction() as db:
            before = db.execute("SELECT samples FROM sites WHERE name = ?", (name,)).fetchone()["samples"]
            if before != samples:
                changes = db.execute(
                    "SELECT COUNT(*) FROM events WHERE who = ? AND what = 'site-registered' AND time > ?",
                    (name, self._store.now() - 86400),
                ).fetchone()[0]
                if changes >= MOST_REGISTRATIONS:
                    raise Refusal(
                        "too-many-changes", f"The number was changed {changes} times today.", "Wait for tomorrow.", 429
                    )
                db.execute("UPDATE sites SET samples = ? WHERE name = ?", (samples, name))
                record(db, self._store.now(), name, "site-registered", samples=samples, before=before)

    def active(self, db: sqlite3.Connection) -> list[str]:
        """Sites that are not revoked and have registered their cases."""
        rows = db.execute("SELECT name FROM sites WHERE revoked IS NULL AND samples IS NOT NULL ORDER BY name")
        return [row["name"] for row in rows]


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
