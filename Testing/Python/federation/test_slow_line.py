"""A line of 1 Mbit/s, 200 ms late each way, that loses a packet in a hundred: the round ends in time all the same."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from twinfed.client.initial_model import write_initial_model
from twinfed.wire import TensorFile
from twinseg.tasks import Task

RATE, DELAY, LOSS = 125_000.0, 0.2, 0.01
SECONDS = 60.0
"""Until the round is over. The model alone takes some 30 s, and an update as it is would take as long."""


@pytest.fixture
def large_model(tmp_path: Path, task: Task) -> Path:
    path = tmp_path / "large.safetensors"
    write_initial_model(path, task, {"channels": [16, 32], "embedding": 128, "depth": 3, "heads": 2}, seed=1)
    return path


@pytest.mark.slow
def test_a_round_completes_with_an_update_that_is_as_large_as_the_deadline_allows(
    cohort: Path, large_model: Path, aggregator: Any, proxy: Any, join: Any, until: Any
) -> None:
    size = large_model.stat().st_size
    assert 2 * size / RATE > 0.8 * SECONDS  # down and up as it is would take all the time
    there = aggregator(sites=("SITE-01", "SITE-02"), model=large_model, rounds=1, deadline_minutes=SECONDS / 60)
    slow = proxy(there.url, shape=(RATE, DELAY, LOSS))

    near = join(there.url, there.tokens["SITE-02"], "SITE-02", cohort / "SITE-02", twins=False)
    far = join(slow.url, there.tokens["SITE-01"], "SITE-01", cohort / "SITE-01", twins=False)
    until(lambda: there.finished)

    assert there.accepted() == ["SITE-01", "SITE-02"]
    assert there.store.row("SELECT extended FROM rounds")["extended"] == 0, far.lines()
    until(lambda: far.facts()["rounds"][0]["phase"] == "sent")
    sent = {site.folder.name: site.facts()["rounds"][0]["bytes"] for site in (near, far)}
    parameters = sum(math.prod(shape) for shape in TensorFile(large_model).shapes.values())
    print(f"{parameters} weights; sent near {sent['SITE-02']}, far {sent['SITE-01']} bytes; {far.lines()}")
    assert sent["SITE-02"] > 4 * parameters  # float32, as the federation asks for
    (said,) = [line for line in far.lines() if "the line carries" in line]
    found = re.search(r"carries (\d+) kB/s: (\d+)% of the update is sent, in (\d+)-bit numbers", said)
    assert found is not None
    speed, share, bits = int(found[1]), int(found[2]) / 100, int(found[3])
    assert 0.3 * RATE < 1000 * speed < 1.05 * RATE
    assert 0 < sent["SITE-01"] < 0.6 * sent["SITE-02"]
    assert sent["SITE-01"] < 1.1 * parameters * share * (bits / 8 + (share < 1))
