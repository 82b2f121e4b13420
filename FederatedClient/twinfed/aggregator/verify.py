"""Proving a folder whole: the log's chain, every file against its hash, every model against its updates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from twinfed.wire import InputError

from .audit import broken_link
from .publishing import same_file
from .rounds import Federation
from .store import Store


def faults(folder: str | Path, *, recompute: bool = True) -> Iterator[str]:
    """What is wrong in an aggregator's folder, a line each; nothing where it is whole.

    Args:
        folder: of an aggregator, running or not.
        recompute: aggregate every round again from its updates and compare the bits, which takes its time.

    Raises:
        InputError: no federation's folder.
    """
    if not (Path(folder) / "aggregator.sqlite").is_file():
        raise InputError(f"{folder}: no aggregator's folder. Name the one of twinfed aggregator --folder.")
    store = Store(folder)
    try:
        yield from _faults(store, recompute)
    finally:
        store.close()


def _faults(store: Store, recompute: bool) -> Iterator[str]:
    with store.transaction() as db:
        number = broken_link(db)
        logged = {
            json.loads(row["details"]).get("hash")
            for row in db.execute("SELECT details FROM events WHERE what = 'update-accepted'")
        }
    if number is not None:
        yield f"The log is broken at entry {number}."
    federation = Federation(store)
    rounds = store.rows("SELECT * FROM rounds ORDER BY number")
    damaged = False
    for row in rounds:
        for digest in {*json.loads(row["bases"]).values(), *json.loads(row["models"] or "{}").values()}:
            if not same_file(store.file(digest), digest):
                damaged = True
                yield f"Round {row['number']}: the file of model {digest} is missing or damaged."
    for row in store.rows("SELECT hash, round, site FROM updates WHERE state = 'accepted'"):
        if not same_file(store.file(row["hash"]), row["hash"]):
            damaged = True
            yield f"Round {row['round']}: the update of {row['site']} ({row['hash']}) is missing or damaged."
        if row["hash"] not in logged:
            yield f"Round {row['round']}: the update of {row['site']} is not in the log."
    if damaged or not recompute:
        return
    for row in rounds:
        if row["models"] and federation.build(row).models != json.loads(row["models"]):
            yield f"Round {row['number']}: its updates give another model than the one published."
