"""What a restart and sites that skip do to the rounds: none is cut short, and the log does not grow by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from twinfed.client.instructions import Instructions
from twinfed.wire import InputError

Make = Callable[..., Any]


def test_rounds_can_be_lowered_to_the_open_one_and_no_further(room: Make) -> None:
    one = room(rounds=10)
    one.play(2)
    wanted = one.config

    one.config = replace(wanted, rounds=2)
    with pytest.raises(InputError, match=r"round 3 has begun. Write 3 to make it the last one"):
        one.open()
    one.config = replace(wanted, rounds=3)
    one.open()
    one.play(1)

    assert one.federation.current()["state"] == "published"
    assert one.federation.instructions("s1")["do"] == "finished"


def test_sites_understand_a_federation_whose_rounds_an_older_version_lowered(room: Make) -> None:
    one = room(rounds=10)
    one.play(4)
    with one.store.transaction() as db:
        db.execute("UPDATE settings SET value = json_set(value, '$.rounds', 3) WHERE key = 'federation'")
    one.config = None

    one.open()

    told = Instructions.from_dict(one.federation.instructions("s1"))
    assert (told.do, told.round, told.rounds) == ("train", 5, 5)


def test_the_turn_rests_where_all_sites_skip(room: Make) -> None:
    one = room(strategy={"name": "transfer"}, quorum=1, deadline_minutes=10)
    one.federation.advance()
    for name in ("s1", "s2", "s3"):
        one.intake.skip(name, 1)
    for _ in range(5):
        one.federation.advance()
    before = one.store.row("SELECT COUNT(*) AS entries FROM events")["entries"]

    for _ in range(119):  # a minute less than two deadlines
        one.clock.time += 10
        one.federation.advance()

    assert one.store.row("SELECT COUNT(*) AS entries FROM events")["entries"] == before + 1
    assert one.federation.current()["note"] == "Extended at 0 of 1 updates."
    invited = json.loads(one.federation.current()["invited"])[0]
    one.send(invited, one.update(invited, 1))  # it may still come
    one.federation.advance()
    assert one.federation.current()["number"] == 2
