"""A site whose update the aggregator's disk has spoilt sends the same one again, without training anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def test_a_site_sends_again_what_the_disk_spoilt(cohort: Path, aggregator: Any, join: Any, until: Any) -> None:
    there = aggregator(sites=("SITE-01", "SITE-02"), rounds=1, quorum=1)
    there.federation.accounts.register("SITE-02", 1)
    site = join(there.url, there.tokens["SITE-01"], "SITE-01", cohort / "SITE-01")
    until(lambda: there.accepted() == ["SITE-01"] and site.facts()["rounds"][0]["phase"] == "sent")
    (sent,) = there.store.rows("SELECT * FROM updates")
    there.store.file(sent["hash"]).unlink()

    with there.store.transaction() as db:
        db.execute("INSERT INTO skips VALUES (1, 'SITE-02')")
    until(lambda: there.finished)

    (again,) = there.store.rows("SELECT * FROM updates")
    assert (again["hash"], again["state"]) == (sent["hash"], "accepted")
    told = [row["what"] for row in there.store.rows("SELECT what FROM events WHERE what LIKE 'update-%'")]
    assert told == ["update-accepted", "update-refused", "update-accepted"]
