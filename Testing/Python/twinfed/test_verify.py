"""Somebody with the folder in hand alters what decides the models: `twinfed verify` says so."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinfed.aggregator.audit import START, _chained
from twinfed.aggregator.verify import faults, not_checked
from twinfed.wire import ArrayTensors, write_model

Make = Callable[..., Any]
ALTERED = {
    "report": "UPDATE updates SET report = json_set(report, '$.samples', 9000000) WHERE site = 's3'",
    "norm": "UPDATE updates SET norm = 1e9 WHERE site = 's2'",
    "weights": """UPDATE rounds SET weights = '{"s1": 1.0, "s2": 0, "s3": 0}' WHERE number = 1""",
    "settings": "UPDATE settings SET value = json_set(value, '$.strategy.beta', 0.1) WHERE key = 'federation'",
    "state": "UPDATE rounds SET state = 'published' WHERE number = 2",
    "last round": "DELETE FROM rounds WHERE number > 1",
    "what is handed on": "UPDATE rounds SET next_memory = '{}' WHERE number = 1",
    "what is taken over": "UPDATE rounds SET memory = '{}' WHERE number = 2",
}


def play(one: Any, rounds: int = 1) -> None:
    """Whole rounds of three sites."""
    for _ in range(rounds):
        number = one.federation.current()["number"]
        for seed, name in enumerate(("s1", "s2", "s3"), start=10 * number):
            one.send(name, one.update(name, seed))
        one.federation.advance()


def execute(one: Any, *queries: str) -> None:
    with one.store.transaction() as db:
        for query in queries:
            db.execute(query)


def say_anew(one: Any, change: Callable[[str, dict[str, Any]], dict[str, Any]]) -> None:
    """Write the log anew, chained as it should be: `change` gives an entry's new details."""
    execute(one, "DROP TRIGGER IF EXISTS events_stay")
    previous = START
    with one.store.transaction() as db:
        for row in db.execute("SELECT * FROM events ORDER BY number").fetchall():
            details = json.dumps(change(row["what"], json.loads(row["details"])), sort_keys=True)
            previous = _chained(previous, row["time"], row["who"], row["what"], details)
            db.execute("UPDATE events SET details = ?, hash = ? WHERE number = ?", (details, previous, row["number"]))


@pytest.mark.parametrize("what", ALTERED)
def test_what_was_altered_in_the_tables_is_found(room: Make, what: str) -> None:
    one = room(strategy={"name": "fedavgm"})
    play(one)
    assert list(faults(one.store.folder)) == []

    execute(one, ALTERED[what])

    assert len(list(faults(one.store.folder, recompute=False))) == 1


def test_the_strategys_state_is_held_against_the_log(room: Make, tmp_path: Path) -> None:
    one = room(strategy={"name": "fedavgm"})
    play(one)
    write_model(tmp_path / "momentum", ArrayTensors({"w": np.full(3, 0.5, np.float32)}), {})
    other = one.store.keep(tmp_path / "momentum")

    execute(one, f"UPDATE rounds SET memory = json_set(memory, '$.files.0.momentum', '{other}') WHERE number = 2")

    (found,) = faults(one.store.folder)
    assert "Round 2: the strategy remembered something else" in found


def test_what_a_site_reported_is_read_from_its_update(room: Make) -> None:
    one = room()
    for seed, name in enumerate(("s1", "s2", "s3")):
        one.send(name, one.update(name, seed + 1))

    execute(one, ALTERED["report"])
    one.federation.advance()

    assert json.loads(one.store.row("SELECT weights FROM rounds")["weights"])["s3"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("what", ["report", "norm"])
def test_a_log_that_agrees_with_a_lie_is_found_by_the_files(room: Make, what: str) -> None:
    one = room()
    play(one)
    execute(one, ALTERED[what])
    held = {row["site"]: row for row in one.store.rows("SELECT * FROM updates")}

    def agree(event: str, details: dict[str, Any]) -> dict[str, Any]:
        if event != "update-accepted":
            return details
        row = next(row for row in held.values() if row["hash"] == details["hash"])
        return {**details, "report": json.loads(row["report"]), "norm": row["norm"]}

    say_anew(one, agree)

    found = next(faults(one.store.folder))
    assert "than its file" in found


def test_weights_and_memory_are_made_again(room: Make) -> None:
    one = room(strategy={"name": "clustered"})
    play(one)
    lies = {"weights": {"s1": 1.0, "s2": 0.0, "s3": 0.0}, "next_memory": {"clusters": {}}}
    execute(one, *(f"UPDATE rounds SET {key} = '{json.dumps(lie)}' WHERE number = 1" for key, lie in lies.items()))
    say_anew(one, lambda _, details: {key: one for key, one in details.items() if key not in ("memory", "next_memory")})
    say_anew(one, lambda _, details: {**details, **({"weights": lies["weights"]} if "weights" in details else {})})

    found = list(faults(one.store.folder))

    assert len(found) == 2
    assert "something else to remember" in found[0]
    assert "other weights" in found[1]


def test_a_log_of_an_older_version_is_whole_and_what_it_lacks_is_said(room: Make) -> None:
    one = room(strategy={"name": "fedavgm"}, rounds=3)
    play(one)
    later = {"memory", "next_memory", "report", "norm", "cluster"}
    say_anew(one, lambda _, details: {key: value for key, value in details.items() if key not in later})
    play(one)

    assert list(faults(one.store.folder)) == []
    (line,) = not_checked(one.store.folder)
    assert line.startswith("Rounds 1 to 2: an older version wrote their log")


def test_a_round_whose_turn_passed_is_whole(room: Make) -> None:
    one = room(strategy={"name": "transfer"}, quorum=1)
    one.federation.advance()
    for name in ("s1", "s2"):
        one.intake.skip(name, 1)
        one.federation.advance()
    one.send("s3", one.update("s3", 1))
    one.federation.advance()

    assert one.federation.current()["number"] == 2
    assert list(faults(one.store.folder)) == []


def test_a_log_that_was_written_anew_lacks_the_heads_that_sites_keep(room: Make, tmp_path: Path) -> None:
    one = room(rounds=3)
    heads = []
    for _ in range(2):
        heads.append(one.federation.instructions("s1")["log_head"])
        play(one)
    command = [sys.executable, "-m", "twinfed.cli", "verify", "--folder", str(one.store.folder)]
    command += ["--json", str(tmp_path / "found.json")] + [word for head in heads for word in ("--head", head)]
    assert subprocess.run(command, capture_output=True).returncode == 0

    say_anew(one, lambda what, details: {**details, "samples": 11} if what == "site-registered" else details)

    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert json.loads((tmp_path / "found.json").read_text())["faults"] == [
        f"The log never ended in {head}, as a site was told: it was written anew." for head in heads
    ]
