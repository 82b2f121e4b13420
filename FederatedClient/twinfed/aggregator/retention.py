"""What stays on the disk. Models and the log stay for ever; what they were made of goes when nobody needs it any more.

For ``keep_rounds`` rounds after its publication a round keeps the updates, the strategy's state and the compressed
change, so that ``twinfed verify`` can make its models again. Then they are dropped. The log says so first, and the
files go afterwards: a process that is killed in between leaves files that nobody needs, and the next start sweeps them.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterable

from .audit import record
from .publishing import states_of
from .store import Store

log = logging.getLogger("twinfed.aggregator")


def models_of(row: sqlite3.Row) -> set[str]:
    """Hashes of the models that a round began from and made."""
    return {*json.loads(row["bases"]).values(), *json.loads(row["models"] or "{}").values()}


def dropped_through(store: Store) -> int:
    """The last round whose updates were dropped; 0 where all are there."""
    row = store.row("SELECT details FROM events WHERE what = 'updates-dropped' ORDER BY number DESC LIMIT 1")
    return int(json.loads(row["details"])["through"]) if row else 0


def files_kept(store: Store) -> set[str]:
    """Hashes of all files that must be there."""
    return _kept(store, store.rows("SELECT * FROM rounds ORDER BY number"), dropped_through(store))


def drop_obsolete(store: Store, keep_rounds: int) -> None:
    """Drop the files that only rounds needed which were published before the last ``keep_rounds``.

    Raises:
        sqlite3.OperationalError: no space left for the log; nothing is dropped.
    """
    rounds = store.rows("SELECT * FROM rounds ORDER BY number")
    last, before = rounds[-1], dropped_through(store)
    through = last["number"] - (last["state"] != "published") - keep_rounds
    if through <= before:
        return
    leaving = _needed(store, [row for row in rounds if before < row["number"] <= through])
    gone = sorted(leaving - _kept(store, rounds, through))
    with store.transaction() as db:
        db.executemany("DELETE FROM deltas WHERE file = ?", [(digest,) for digest in gone])
        record(db, store.now(), "aggregator", "updates-dropped", through=through, files=gone)
    _unlink(store, gone)


def sweep(store: Store) -> None:
    """Remove the files that nobody knows or needs: only at the start, while nothing is on its way into the folder."""
    kept = files_kept(store)
    _unlink(store, [path.name for path in (store.folder / "files").glob("??/*") if path.name not in kept])


def _kept(store: Store, rounds: list[sqlite3.Row], through: int) -> set[str]:
    """All models, what later rounds need, and what the last round hands on."""
    last, files = rounds[-1], _needed(store, [row for row in rounds if row["number"] > through])
    return files.union(_handed_on(store, last), *(models_of(row) for row in rounds))


def _needed(store: Store, rounds: Iterable[sqlite3.Row]) -> set[str]:
    """The updates of rounds, the strategy's state before and after them, and the changes between their models."""
    files: set[str] = set()
    for row in rounds:
        updates = store.rows("SELECT hash FROM updates WHERE round = ? AND state = 'accepted'", row["number"])
        files.update(update["hash"] for update in updates)
        files.update(states_of(json.loads(row["memory"])), _handed_on(store, row))
    return files


def _handed_on(store: Store, row: sqlite3.Row) -> set[str]:
    """What the round after a round takes over, besides the models."""
    deltas = [store.row("SELECT file FROM deltas WHERE model = ?", model) for model in models_of(row)]
    return {*states_of(json.loads(row["next_memory"] or row["memory"])), *(delta["file"] for delta in deltas if delta)}


def _unlink(store: Store, files: Iterable[str]) -> None:
    for digest in files:
        try:
            store.file(digest).unlink(missing_ok=True)
        except OSError as error:  # Windows keeps a file that somebody reads; the next start sweeps it
            log.warning("A file that is not needed any more stays: %s", error)
