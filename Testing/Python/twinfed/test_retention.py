"""What stays on the disk after many rounds, and that the folder can still be proven whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from twinfed.aggregator import retention
from twinfed.aggregator.verify import faults, rounds_made_again

Make = Callable[..., Any]
STATEFUL = [
    {"strategy": {"name": "fedadam"}},
    {"strategy": {"name": "clustered"}},
    {"download": {"keep": 0.2, "bits": 8, "entropy": True}},
]


def files(one: Any) -> set[str]:
    return {path.name for path in (one.store.folder / "files").glob("??/*")}


def updates(one: Any, number: int) -> set[str]:
    return {row["hash"] for row in one.store.rows("SELECT hash FROM updates WHERE round = ?", number)}


def models(one: Any) -> set[str]:
    return set().union(*(retention.models_of(row) for row in one.store.rows("SELECT * FROM rounds")))


def test_all_models_stay_and_the_updates_of_the_last_round(room: Make) -> None:
    one = room(rounds=9)

    one.play(4)

    assert files(one) == models(one) | updates(one, 4)
    assert rounds_made_again(one.store.folder) == (4, 4)
    assert list(faults(one.store.folder)) == []
    told = [json.loads(row["details"]) for row in one.store.rows("SELECT * FROM events WHERE what = 'updates-dropped'")]
    assert [event["through"] for event in told] == [1, 2, 3]
    assert set(told[1]["files"]) == updates(one, 2)


@pytest.mark.parametrize(("keep", "made_again"), [(0, (5, 4)), (2, (3, 4)), (100, (1, 4))])
def test_as_many_rounds_are_kept_as_the_description_says(room: Make, keep: int, made_again: tuple[int, int]) -> None:
    one = room(rounds=4, keep_rounds=keep)

    one.play(4)

    assert rounds_made_again(one.store.folder) == made_again
    assert files(one) == models(one).union(*(updates(one, number) for number in range(made_again[0], 5)))
    assert list(faults(one.store.folder)) == []


@pytest.mark.parametrize("options", STATEFUL, ids=["state", "clusters", "changes"])
@pytest.mark.parametrize("keep", [0, 1])
def test_what_the_next_round_needs_stays(room: Make, options: dict[str, Any], keep: int) -> None:
    one, whole = room(rounds=3, keep_rounds=keep, **options), room(rounds=4, keep_rounds=100, **options)
    one.play(3)
    few = len(files(one))
    one.config = type(one.config).from_dict({**one.config.to_dict(), "rounds": 4})
    one.open()
    one.federation.advance()

    one.play(1)
    whole.play(4)

    assert one.federation.current()["models"] == whole.federation.current()["models"]
    assert len(files(one)) <= few + len(models(one))
    assert list(faults(one.store.folder)) == []


def test_a_kill_between_log_and_disk_is_made_good_at_the_next_start(
    room: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = room(rounds=9)
    one.play(1)
    monkeypatch.setattr(retention, "_unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        one.play(1)
    monkeypatch.undo()
    assert updates(one, 1) <= files(one)

    one.open()
    retention.sweep(one.store)
    one.play(1)

    assert files(one) == models(one) | updates(one, 3)
    assert list(faults(one.store.folder)) == []


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_start_sweeps_what_nobody_knows_and_keeps_the_open_round(room: Make) -> None:
    one = room(rounds=9)
    one.play(1)
    one.send("s1", one.update("s1", 21))
    known = files(one)
    stray = one.store.file("ab" * 32)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"kept by a process that was killed before it told the database")

    retention.sweep(one.store)

    assert files(one) == known


def test_more_can_be_dropped_after_a_restart_and_nothing_comes_back(room: Make) -> None:
    one = room(rounds=9, keep_rounds=100)
    one.play(3)

    retention.drop_obsolete(one.store, 1)
    retention.drop_obsolete(one.store, 100)

    assert files(one) == models(one) | updates(one, 3)
    assert rounds_made_again(one.store.folder) == (3, 3)


def test_a_missing_update_that_was_not_dropped_is_a_fault(room: Make) -> None:
    one = room(rounds=9)
    one.play(2)
    gone = min(updates(one, 2))
    one.store.file(gone).unlink()

    (found,) = faults(one.store.folder)

    assert "round 2's update" in found
    assert gone in found


def test_a_model_that_the_log_does_not_know_is_a_fault(room: Make) -> None:
    one = room(rounds=9)
    one.play(3)
    other = one.store.row("SELECT bases FROM rounds WHERE number = 1")["bases"]
    with one.store.transaction() as db:
        db.execute("UPDATE rounds SET models = ? WHERE number = 1", (other,))
        db.execute("DELETE FROM updates WHERE round = 1 AND site = 's2'")

    found = list(faults(one.store.folder))

    assert found == [
        "Round 1: its model is another one than the log says.",
        "Round 1: the log and the table do not agree on an update of s2.",
    ]


@pytest.mark.parametrize("keep", [-1, 1.5, "all", True])
def test_keep_rounds_is_a_number(room: Make, keep: Any) -> None:
    with pytest.raises(ValueError, match="keep_rounds"):
        room(keep_rounds=keep)
