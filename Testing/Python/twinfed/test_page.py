"""The page and the metrics: what they show, and that nothing a site says becomes markup."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

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
