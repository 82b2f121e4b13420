"""Proving a folder whole: the log's chain, every file against its hash, every model against its updates.

The updates of older rounds are gone (see :mod:`.retention`), and the log says so: their models are held against the
hashes in the log, and are not made again.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twinfed.wire import InputError, UpdateFile

from .audit import broken_link, hash_json, unknown_heads
from .checks import norm_of
from .publishing import same_file
from .retention import dropped_through, files_kept, models_of
from .rounds import AGGREGATED, CLOSING, OPEN, PUBLISHED, Federation
from .store import Store

STATES = {
    "round-opened": OPEN,
    "round-closed": CLOSING,
    "round-reopened": OPEN,
    "round-aggregated": AGGREGATED,
    "round-published": PUBLISHED,
}
OF_A_ROUND = {
    "state": "its state is another one",
    "bases": "it began from another model",
    "models": "its model is another one",
    "weights": "its weights are others",
    "invited": "other sites are invited",
    "memory": "the strategy remembered something else before it",
    "next_memory": "the strategy remembers something else after it",
}
HASHED = ("memory", "next_memory")  # the log holds the hash
TOLD_LATER = ("invited", *HASHED)  # not in the log of an older version, or not each time
OF_AN_UPDATE = ("report", "norm", "cluster", "bytes")
TOLERANCE = 1e-6  # of sums that may end a little differently on another machine


@dataclass
class _Told:
    """What the log says, read from its beginning.

    Args:
        rounds: number -> what its entries hold, the last one of each kind, and the state that it is in.
        updates: round, site, hash -> what else the entry of an update that was taken holds.
        federation: the description that is in force.
    """

    rounds: dict[int, dict[str, Any]] = field(default_factory=dict)
    updates: dict[tuple[int, str, str], dict[str, Any]] = field(default_factory=dict)
    federation: Any = None


def faults(folder: str | Path, *, recompute: bool = True, heads: Iterable[str] = ()) -> Iterator[str]:
    """What is wrong in an aggregator's folder, a line each; nothing where it is whole.

    Args:
        folder: of an aggregator, running or not.
        recompute: aggregate every round that has its updates again and compare the bits, which takes its time; left out
            where something else is wrong.
        heads: hashes that sites were told as the log's last: each must be in it.

    Raises:
        InputError: no federation's folder.
    """
    with _opened(folder) as store:
        with store.transaction() as db:
            number, unknown = broken_link(db), unknown_heads(db, heads)
        if number is not None:
            yield f"The log is broken at entry {number}."
            return  # without it there is nothing to hold the rest against
        found = [f"The log never ended in {head}, as a site was told: it was written anew." for head in unknown]
        found += [*_faults_of_tables(store), *_faults_of_files(store)]
        yield from found
        if recompute and not found:
            federation = Federation(store)
            yield from _faults_of_updates(federation)
            yield from _faults_of_models(federation)


def not_checked(folder: str | Path) -> list[str]:
    """What the log, as an older version wrote it, does not tell: a line, or none."""
    with _opened(folder) as store:
        told = _told(store.rows("SELECT who, what, details FROM events ORDER BY number"))
    older = sorted(number for number, entry in told.rounds.items() if "memory" not in entry)
    if not older:
        return []
    return [
        f"Rounds {older[0]} to {older[-1]}: an older version wrote their log, so what the strategy remembered and what "
        "sites reported was held against the files that are left, not against the log."
    ]


def rounds_made_again(folder: str | Path) -> tuple[int, int]:
    """The first and the last round that :func:`faults` makes again; the last is smaller where there is none."""
    with _opened(folder) as store:
        made = store.row("SELECT COALESCE(MAX(number), 0) AS last FROM rounds WHERE models IS NOT NULL")
        return dropped_through(store) + 1, made["last"] if made else 0


@contextmanager
def _opened(folder: str | Path) -> Iterator[Store]:
    if not (Path(folder) / "aggregator.sqlite").is_file():
        raise InputError(f"{folder}: no aggregator's folder. Name the one of twinfed aggregator --folder.")
    store = Store(folder)
    try:
        yield store
    finally:
        store.close()


def _faults_of_tables(store: Store) -> Iterator[str]:
    """Where the tables do not say what the log says."""
    with store.transaction() as db:
        told = _told(db.execute("SELECT who, what, details FROM events ORDER BY number").fetchall())
        rounds = {row["number"]: row for row in db.execute("SELECT * FROM rounds ORDER BY number")}
        updates = db.execute("SELECT * FROM updates WHERE state = 'accepted' ORDER BY round, site").fetchall()
        federation = json.loads(store.setting("federation") or "null")
    if federation != told.federation:
        yield "The federation's description is another one than the log says."
    for number in sorted(rounds.keys() ^ told.rounds.keys()):
        yield f"Round {number}: {'the log' if number in rounds else 'the table'} knows nothing of it."
    for number in sorted(rounds.keys() & told.rounds.keys()):
        for key, what in OF_A_ROUND.items():
            if (key not in TOLD_LATER or "memory" in told.rounds[number]) and (
                _as_told(rounds[number], key) != told.rounds[number].get(key)
            ):
                yield f"Round {number}: {what} than the log says."
    accepted = {(row["round"], row["site"], row["hash"]): row for row in updates}
    for number, site, _ in sorted(accepted.keys() ^ told.updates.keys()):
        yield f"Round {number}: the log and the table do not agree on an update of {site}."
    for one in sorted(accepted.keys() & told.updates.keys()):
        held = {**accepted[one], "report": json.loads(accepted[one]["report"])}
        if any(held[key] != value for key, value in told.updates[one].items() if key in OF_AN_UPDATE):
            yield f"Round {one[0]}: the table says other of the update of {one[1]} than the log."


def _as_told(row: sqlite3.Row, key: str) -> Any:
    """A field of a round in the form in which the log tells it."""
    if key == "state":
        return row[key]
    value = json.loads(row[key] or "null")
    return hash_json(value) if key in HASHED and value is not None else value


def _told(events: Iterable[sqlite3.Row]) -> _Told:
    told = _Told()
    for event in events:
        what, details = event["what"], json.loads(event["details"])
        if what in STATES or what == "round-extended":
            entry = told.rounds.setdefault(details["round"], {})
            entry.update(details)
            entry["state"] = STATES.get(what, entry.get("state"))
        elif what in ("federation-begun", "federation-changed"):
            told.federation = details["federation"]
        elif what == "update-accepted":
            told.updates[details["round"], event["who"], details["hash"]] = details
        elif what == "update-refused":  # after it was taken, where the disk spoilt it
            told.updates.pop((details["round"], event["who"], details["hash"]), None)
    return told


def _faults_of_files(store: Store) -> Iterator[str]:
    for digest in sorted(files_kept(store)):
        if not same_file(store.file(digest), digest) and digest in files_kept(store):  # it may have gone just now
            yield f"The file of {_what(store, digest)} is missing or damaged."


def _what(store: Store, digest: str) -> str:
    update = store.row("SELECT round, site FROM updates WHERE hash = ? AND state = 'accepted'", digest)
    if update:
        return f"round {update['round']}'s update of {update['site']} ({digest})"
    rounds = [row for row in store.rows("SELECT * FROM rounds ORDER BY number") if digest in models_of(row)]
    return f"round {rounds[0]['number']}'s model {digest}" if rounds else f"the strategy's state or a change, {digest},"


def _faults_of_updates(federation: Federation) -> Iterator[str]:
    """Where the table says other of an update than its file."""
    store = federation.store
    query = "SELECT * FROM updates WHERE state = 'accepted' AND round > ? ORDER BY round, site"
    for row in store.rows(query, dropped_through(store)):
        try:
            update = UpdateFile(store.file(row["hash"]))
        except FileNotFoundError:
            if row["round"] <= dropped_through(store):  # a running aggregator dropped it just now
                continue
            raise
        report, norm = update.header.report.to_dict(), norm_of(update, federation.shapes)
        if json.loads(row["report"]) != report or not math.isclose(row["norm"], norm, rel_tol=TOLERANCE):
            yield f"Round {row['round']}: the table says other of the update of {row['site']} than its file."


def _faults_of_models(federation: Federation) -> Iterator[str]:
    store = federation.store
    for row in store.rows("SELECT * FROM rounds WHERE models IS NOT NULL ORDER BY number"):
        if row["number"] <= dropped_through(store):
            continue
        try:
            again = federation.build(row)
        except OSError:
            if row["number"] <= dropped_through(store):  # a running aggregator dropped its updates just now
                continue
            raise
        weights = json.loads(row["weights"])
        alike = (math.isclose(weights.get(site, -1), one, rel_tol=TOLERANCE) for site, one in again.weights.items())
        if again.models != json.loads(row["models"]):
            yield f"Round {row['number']}: its updates give another model than the one published."
        if hash_json(again.memory) != hash_json(json.loads(row["next_memory"])):
            yield f"Round {row['number']}: its updates give the strategy something else to remember than is stored."
        if len(weights) != len(again.weights) or not all(alike):
            yield f"Round {row['number']}: its updates give other weights than are stored."
