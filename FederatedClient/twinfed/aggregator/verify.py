"""Proving a folder whole: the log's chain, every file against its hash, every model against its updates.

The updates of older rounds are gone (see :mod:`.retention`), and the log says so: their models are held against the
hashes in the log, and are not made again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twinfed.wire import InputError

from .audit import broken_link
from .publishing import same_file
from .retention import dropped_through, files_kept, models_of
from .rounds import Federation
from .store import Store


def faults(folder: str | Path, *, recompute: bool = True) -> Iterator[str]:
    """What is wrong in an aggregator's folder, a line each; nothing where it is whole.

    Args:
        folder: of an aggregator, running or not.
        recompute: aggregate every round that has its updates again and compare the bits, which takes its time.

    Raises:
        InputError: no federation's folder.
    """
    if not (Path(folder) / "aggregator.sqlite").is_file():
        raise InputError(f"{folder}: no aggregator's folder. Name the one of twinfed aggregator --folder.")
    store = Store(folder)
    try:
        with store.transaction() as db:
            number = broken_link(db)
        if number is not None:
            yield f"The log is broken at entry {number}."
            return  # without it there is nothing to hold the rest against
        yield from _faults_of_tables(store)
        damaged = list(_faults_of_files(store))
        yield from damaged
        if recompute and not damaged:
            yield from _faults_of_models(Federation(store))
    finally:
        store.close()


def rounds_made_again(folder: str | Path) -> tuple[int, int]:
    """The first and the last round that :func:`faults` makes again; the last is smaller where there is none."""
    store = Store(folder)
    try:
        made = store.row("SELECT COALESCE(MAX(number), 0) AS last FROM rounds WHERE models IS NOT NULL")
        return dropped_through(store) + 1, made["last"] if made else 0
    finally:
        store.close()


def _faults_of_tables(store: Store) -> Iterator[str]:
    """Where the tables do not say what the log says."""
    with store.transaction() as db:
        events = db.execute("SELECT who, what, details FROM events ORDER BY number").fetchall()
        rounds = db.execute("SELECT * FROM rounds ORDER BY number").fetchall()
        accepted = {tuple(row) for row in db.execute("SELECT round, site, hash FROM updates WHERE state = 'accepted'")}
    bases, models, logged = _told(events)
    for row in rounds:
        if json.loads(row["bases"]) != bases.get(row["number"]):
            yield f"Round {row['number']}: it began from another model than the log says."
        if json.loads(row["models"] or "null") != models.get(row["number"]):
            yield f"Round {row['number']}: its model is another one than the log says."
    for round_, site, _ in sorted(accepted ^ logged):
        yield f"Round {round_}: the log and the table do not agree on an update of {site}."


def _told(events: list[sqlite3.Row]) -> tuple[dict[int, Any], dict[int, Any], set[tuple[int, str, str]]]:
    """What the log says: round -> the models it began from, round -> those it made, the updates taken."""
    bases, models, updates = {}, {}, set()
    for event in events:
        details = json.loads(event["details"])
        if event["what"] == "round-opened":
            bases[details.get("round")] = details.get("bases")
        elif event["what"] == "round-aggregated":
            models[details.get("round")] = details.get("models")
        elif event["what"] == "update-accepted":
            updates.add((details.get("round"), event["who"], details.get("hash")))
    return bases, models, updates


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


def _faults_of_models(federation: Federation) -> Iterator[str]:
    store = federation.store
    for row in store.rows("SELECT * FROM rounds WHERE models IS NOT NULL ORDER BY number"):
        if row["number"] <= dropped_through(store):
            continue
        try:
            again = federation.build(row).models
        except FileNotFoundError:
            if row["number"] <= dropped_through(store):  # a running aggregator dropped its updates just now
                continue
            raise
        if again != json.loads(row["models"]):
            yield f"Round {row['number']}: its updates give another model than the one published."
