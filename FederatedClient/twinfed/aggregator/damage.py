"""Accepted updates that the disk has lost or spoilt since: the round opens again, and their sites send them again."""

from __future__ import annotations

import sqlite3

from twinfed.wire import Refusal

from .audit import record
from .publishing import same_file
from .store import Store

DAMAGED = Refusal(
    "damaged-here", "The update was lost or damaged on the aggregator's disk.", "Send the same update again."
)


def ask_again(store: Store, number: int, deadline: float) -> bool:
    """Open a closed round again where the file of an accepted update is not what was accepted; whether there was one.

    Args:
        deadline: of the round, should it be opened.
    """
    taken = store.rows("SELECT hash, site FROM updates WHERE round = ? AND state = 'accepted' ORDER BY site", number)
    damaged = [row for row in taken if not same_file(store.file(row["hash"]), row["hash"])]
    if not damaged:
        return False
    note = f"Open again: the disk spoilt the update of {', '.join(row['site'] for row in damaged)}."
    with store.transaction() as db:
        for row in damaged:
            _refuse(db, store.now(), number, row["site"], row["hash"])
        db.execute(
            "UPDATE rounds SET state = 'open', closed = NULL, deadline = ?, note = ? WHERE number = ?",
            (deadline, note, number),
        )
        record(db, store.now(), "aggregator", "round-reopened", round=number, why=note)
    for row in damaged:
        if store.file(row["hash"]).is_file():
            store.file(row["hash"]).replace(store.folder / "quarantine" / row["hash"])
    return True


def _refuse(db: sqlite3.Connection, now: float, number: int, site: str, digest: str) -> None:
    db.execute(
        "UPDATE updates SET state = 'refused', code = ?, reason = ?, remedy = ?, received = ? "
        "WHERE hash = ? AND round = ? AND site = ?",
        (DAMAGED.code, DAMAGED.reason, DAMAGED.remedy, now, digest, number, site),
    )
    told = {"hash": digest, "code": DAMAGED.code, "reason": DAMAGED.reason}
    record(db, now, site, "update-refused", round=number, **told)
