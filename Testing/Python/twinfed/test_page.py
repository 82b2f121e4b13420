"""The page and the metrics: what they show, and that nothing a site says becomes markup."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from fastapi.testclient import TestClient

from twinfed.wire import Report

Make = Callable[..., Any]


def test_the_page_shows_what_happened(web: Make) -> None:
    one = web(rounds=2)
    bad = one.room.update("s1", 9, {name: np.full_like(a, np.nan) for name, a in one.room.model(1).items()})
    assert one.refused(one.send("s1", bad)) == "not-finite"
    for seed, site in enumerate(("s1", "s2", "s3"), start=1):
        one.send(site, one.room.update(site, seed))
    one.wait(2)

    page = one.client.get("/")

    assert page.status_code == 200
    assert "not-finite" in page.text
    assert page.text.count("<circle") == 3
    assert "0.333" in page.text
    assert not re.search(r"<script|(src|href)\s*=|url\(|@import|https?://", page.text)
    metrics = one.client.get("/metrics").text
    assert 'twinfed_updates_total{state="accepted",code=""} 3' in metrics
    assert "twinfed_round 2" in metrics
    assert one.client.get("/health").json()["ok"] is True


def test_hostile_text_does_not_become_markup(web: Make) -> None:
    one = web()
    path = one.room.update("s1", 1, federation="<script>alert(1)</script>")

    assert one.refused(one.send("s1", path)) == "wrong-federation"
    assert "<script" not in one.client.get("/").text


def test_a_site_is_shown_its_own_rows_and_totals(web: Make) -> None:
    one = web(rounds=2)
    bad = one.room.update("s2", 9, {name: np.full_like(a, np.nan) for name, a in one.room.model(1).items()})
    one.send("s2", bad)
    for seed, (site, distance) in enumerate((("s1", 11.5), ("s2", 22.5)), start=1):
        one.send(site, one.room.update(site, seed, report=Report(samples=10, dice_before=0.4, hd95_after=distance)))
    elsewhere = TestClient(one.client.app, base_url="http://127.0.0.1:8600", client=("192.0.2.1", 50000))

    of_site = elsewhere.get("/", auth=("s1", one.tokens["s1"])).text
    of_operator = one.client.get("/").text

    for text in ("s2", "22.5 mm", "not-finite"):
        assert text in of_operator
        assert text not in of_site
    assert "11.5 mm" in of_site
    assert (of_operator.count("<circle"), of_site.count("<circle")) == (2, 1)
    assert re.search(r"All 3 sites</td><td></td><td class=.n.>30</td>", of_site)
    assert "2 updates in all" in of_site
    assert "<b>2 of 3</b>" in of_site
    metrics = elsewhere.get("/metrics", headers=one.headers("s1")).text
    assert 'site="s1"' in metrics
    assert 'site="s2"' not in metrics
    assert 'site="s2"' in one.client.get("/metrics").text
