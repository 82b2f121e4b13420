"""The rounds of a federation: open -> closing -> aggregated -> published, and what a site is told at each.

Every step is one transaction, so that a process that is killed goes on where it was: an update that was acknowledged
is in the database and on the disk; a round that was closing is aggregated again, with the same result to the bit.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinfed.wire import InputError, Refusal, UpdateFile

from .accounts import Accounts
from .aggregation import Contribution
from .audit import hash_json, record
from .config import FederationConfig, check_change
from .damage import ask_again
from .publishing import NotFiniteError, Published, first_model, publish
from .retention import drop_obsolete
from .store import DISK_FULL, Store

OPEN, CLOSING, AGGREGATED, PUBLISHED = "open", "closing", "aggregated", "published"


class Federation:
    """One federation in one folder.

    Args:
        store: the folder.
        config: its description; may be left out for a folder that has one.

    Raises:
        InputError: a new folder without a description, one that differs from what the folder holds, or a model that
            cannot be read.
    """

    def __init__(self, store: Store, config: FederationConfig | None = None) -> None:
        self.store, self.accounts = store, Accounts(store)
        self._advancing = threading.Lock()
        held = store.setting("federation")
        if held is None and config is None:
            raise InputError(f"{store.folder}: no federation here yet. Describe one with --config FILE.toml.")
        if held is None:
            assert config is not None
            self.config = config
            self._begin()
        else:
            self.config = FederationConfig.from_dict(json.loads(held))
            if config is not None and check_change(self.config, config, self.current()["number"]):
                self.config = config
                with store.transaction() as db:
                    db.execute(
                        "UPDATE settings SET value = ? WHERE key = 'federation'", (json.dumps(config.to_dict()),)
                    )
                    record(db, store.now(), "operator", "federation-changed", federation=config.to_dict())
        self.strategy = self.config.make_strategy()
        self.shapes = {name: tuple(shape) for name, shape in json.loads(store.setting("shapes") or "{}").items()}
        if self.config.quorum < self.strategy.fewest:
            raise InputError(
                f"Strategy {self.strategy.name} needs {self.strategy.fewest} updates a round. Raise the quorum."
            )

    # -- what sites ask ------------------------------------------------------------------------------------------------

    def instructions(self, site: str) -> dict[str, Any]:
        """What a site is to do now: train for the open round, wait, or nothing any more."""
        row = self.current()
        invited = json.loads(row["invited"] or "null")
        memory = json.loads(row["next_memory"] or row["memory"])
        cluster = memory.get("clusters", {}).get(site, "0")
        bases = json.loads(row["models"] or row["bases"])
        base = bases[cluster]
        sent = self.store.row(
            "SELECT hash, state, code, reason, remedy FROM updates WHERE round = ? AND site = ? "
            "ORDER BY state = 'accepted' DESC, received DESC",
            row["number"],
            site,
        )
        skipped = self.store.row("SELECT 1 FROM skips WHERE round = ? AND site = ?", row["number"], site)
        what, why = "train", "The round is open."
        if row["state"] == PUBLISHED:
            what, why = "finished", "All rounds are done; the model is final."
        elif row["state"] != OPEN:
            what, why = "wait", "The round is being aggregated."
        elif invited is not None and site not in invited:
            what, why = "wait", f"It is the turn of {', '.join(invited)}."
        elif sent is not None and sent["state"] == "accepted":
            what, why = "wait", "Your update is in; the round waits for others."
        elif skipped is not None:
            what, why = "wait", "You skip this round."
        delta = self.store.row("SELECT base FROM deltas WHERE model = ?", base)
        last = self.store.row("SELECT weights FROM rounds WHERE state = 'published' ORDER BY number DESC LIMIT 1")
        return {
            "do": what,
            "why": why,
            "federation": self.config.name,
            "round": row["number"],
            "rounds": max(self.config.rounds, row["number"]),  # an older version let them be lowered below
            "state": row["state"],
            "base": base,
            "delta_from": delta["base"] if delta else None,
            "seconds_left": max(0.0, row["deadline"] - self.store.now()),
            "poll_seconds": 1.0 if row["state"] in (CLOSING, AGGREGATED) else 5.0,
            "epochs": self.config.epochs,
            "weights": json.loads(last["weights"] or "{}") if last else {},
            "client_terms": self.strategy.client_terms(),
            "upload": self.config.upload.in_round(row["number"]).to_dict(),
            "update": dict(sent) if sent else None,
            "log_head": self.store.head(),
        }

    # -- what time brings ----------------------------------------------------------------------------------------------

    def current(self) -> sqlite3.Row:
        """The last round."""
        row = self.store.row("SELECT * FROM rounds ORDER BY number DESC LIMIT 1")
        assert row is not None
        return row

    def advance(self) -> None:
        """Do all that is due: close, extend, aggregate, publish. Called after each update and every second or so.

        Raises:
            OSError: no space left, or a damaged model; the round stays as it is, and the next call tries again.
            NotFiniteError: likewise; the model would be of no use.
        """
        if self._advancing.acquire(blocking=False):
            try:
                while self._step():
                    pass
            finally:
                self._advancing.release()

    def _step(self) -> bool:
        row = self.current()
        if row["state"] == OPEN:
            return self._close_or_extend()
        if row["state"] == CLOSING:
            self._aggregate(row)
            return True
        if row["state"] == AGGREGATED:
            self._publish(row)
            return True
        if row["number"] < self.config.rounds:  # the number of rounds was raised
            with self.store.transaction() as db:
                self._open_round(db, row["number"] + 1, json.loads(row["models"]), json.loads(row["next_memory"]))
            return True
        return False

    def _close_or_extend(self) -> bool:
        with self.store.transaction() as db:
            row = self.current()
            number, now = row["number"], self.store.now()
            accepted = {r["site"] for r in db.execute(
                "SELECT site FROM updates WHERE round = ? AND state = 'accepted'", (number,))}  # fmt: skip
            skipped = {r["site"] for r in db.execute("SELECT site FROM skips WHERE round = ?", (number,))}
            invited = json.loads(row["invited"] or "null")
            active = self.accounts.active(db)
            awaited = set(active if invited is None else invited) & set(active)
            quorum = self.config.quorum if invited is None else max(1, len(invited))
            over = now >= row["deadline"]
            if len(accepted) >= quorum and (over or awaited <= accepted | skipped):
                db.execute("UPDATE rounds SET state = ?, closed = ? WHERE number = ?", (CLOSING, now, number))
                record(db, now, "aggregator", "round-closed", round=number, sites=sorted(accepted))
                return True
            anybody = set(active) - skipped  # else the turn would pass round and round
            if invited is not None and anybody and (over or not awaited or awaited <= skipped):
                return self._next_in_turn(db, row, active, now, over)
            if over:
                note = f"Extended at {len(accepted)} of {quorum} updates."
                self._extend(db, row, now, note)
            return False

    def _extend(self, db: sqlite3.Connection, row: sqlite3.Row, now: float, note: str, **changed: Any) -> None:
        db.execute(
            "UPDATE rounds SET deadline = ?, extended = extended + 1, note = ? WHERE number = ?",
            (now + self.config.deadline_minutes * 60, note, row["number"]),
        )
        record(db, now, "aggregator", "round-extended", round=row["number"], why=note, **changed)

    def _next_in_turn(
        self, db: sqlite3.Connection, row: sqlite3.Row, active: list[str], now: float, over: bool
    ) -> bool:
        """The sites that were invited did not come: the next ones are."""
        invited = json.loads(row["invited"])
        memory = self.strategy.passed_over(invited, json.loads(row["memory"]))
        following = self.strategy.invited(active, memory) or []
        if following == invited or (not over and not active):
            if over:
                self._extend(db, row, now, f"Extended: {', '.join(invited) or 'no site'} did not come.")
            return False
        db.execute(
            "UPDATE rounds SET invited = ?, memory = ? WHERE number = ?",
            (json.dumps(following), json.dumps(memory), row["number"]),
        )
        note = f"The turn passed from {', '.join(invited) or 'nobody'} to {', '.join(following)}."
        self._extend(db, row, now, note, invited=following, memory=hash_json(memory))
        return False

    def contributions(self, number: int) -> list[Contribution]:
        """The accepted updates of a round, in the order in which they came. Their files tell what the sites reported:
        no table decides what an update weighs."""
        round_ = self.store.row("SELECT memory FROM rounds WHERE number = ?", number)
        clusters = json.loads(round_["memory"] if round_ else "{}").get("clusters", {})
        rows = self.store.rows(
            "SELECT * FROM updates WHERE round = ? AND state = 'accepted' ORDER BY received, site", number
        )
        files = {row["site"]: UpdateFile(self.store.file(row["hash"])) for row in rows}
        return [
            Contribution(
                row["site"],
                files[row["site"]],
                files[row["site"]].header.report,
                row["norm"],
                clusters.get(row["site"], "0"),
            )
            for row in rows
        ]

    def build(self, row: sqlite3.Row) -> Published:
        """Aggregate a round that is closed. Repeating it gives the same files."""
        return publish(
            self.store,
            self.config,
            self.strategy,
            row["number"],
            json.loads(row["bases"]),
            self.contributions(row["number"]),
            json.loads(row["memory"]),
        )

    def _aggregate(self, row: sqlite3.Row) -> None:
        if ask_again(self.store, row["number"], self.store.now() + self.config.deadline_minutes * 60):
            return
        try:
            result = self.build(row)
        except (OSError, NotFiniteError) as error:
            full = isinstance(error, OSError) and error.errno in DISK_FULL
            note = f"Waits for room on the disk ({error})." if full else f"Stopped: {error}. Nothing was published."
            with self.store.transaction() as db:
                db.execute("UPDATE rounds SET note = ? WHERE number = ?", (note, row["number"]))
            raise
        with self.store.transaction() as db:
            db.execute(
                "UPDATE rounds SET state = ?, models = ?, weights = ?, next_memory = ?, note = '' WHERE number = ?",
                (
                    AGGREGATED,
                    json.dumps(result.models),
                    json.dumps(result.weights),
                    json.dumps(result.memory),
                    row["number"],
                ),
            )
            db.executemany("INSERT OR REPLACE INTO deltas VALUES (?, ?, ?)", result.deltas)
            record(
                db,
                self.store.now(),
                "aggregator",
                "round-aggregated",
                round=row["number"],
                models=result.models,
                weights=result.weights,
                next_memory=hash_json(result.memory),
            )

    def _publish(self, row: sqlite3.Row) -> None:
        number, models, memory = row["number"], json.loads(row["models"]), json.loads(row["next_memory"])
        with self.store.transaction() as db:
            now = self.store.now()
            db.execute("UPDATE rounds SET state = ?, published = ? WHERE number = ?", (PUBLISHED, now, number))
            record(db, now, "aggregator", "round-published", round=number, models=models)
            if number < self.config.rounds:
                self._open_round(db, number + 1, models, memory)
        drop_obsolete(self.store, self.config.keep_rounds)

    def _open_round(
        self, db: sqlite3.Connection, number: int, bases: Mapping[str, str], memory: Mapping[str, Any]
    ) -> None:
        now = self.store.now()
        invited = self.strategy.invited(self.accounts.active(db), dict(memory))
        db.execute(
            "INSERT INTO rounds (number, state, opened, deadline, invited, bases, memory) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                number,
                OPEN,
                now,
                now + self.config.deadline_minutes * 60,
                None if invited is None else json.dumps(invited),
                json.dumps(bases),
                json.dumps(memory),
            ),
        )
        told = {"bases": dict(bases), "invited": invited, "memory": hash_json(memory)}
        record(db, now, "aggregator", "round-opened", round=number, **told)

    def _begin(self) -> None:
        """Take the initial model into the folder and open the first round."""
        self.strategy = self.config.make_strategy()
        try:
            with self.store.temporary() as folder:
                shapes = first_model(self.config, Path(self.config.model), folder / "model")
                digest = self.store.keep(folder / "model")
        except (OSError, Refusal) as error:
            raise InputError(f"{self.config.model}: not a model ({error}). Name a .safetensors file.") from error
        with self.store.transaction() as db:
            for key, value in (("federation", self.config.to_dict()), ("shapes", shapes)):
                db.execute("INSERT INTO settings VALUES (?, ?)", (key, json.dumps(value)))
            record(db, self.store.now(), "operator", "federation-begun", federation=self.config.to_dict(), model=digest)
            self._open_round(db, 1, {"0": digest}, {})
