"""What the disk spoils after it was taken does not become a model, and stops the federation no longer than it must."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinfed.aggregator.verify import faults
from twinfed.wire import ArrayTensors, InputError, Refusal, hash_file, write_model

Make = Callable[..., Any]


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-8:-4] = np.float32("nan").tobytes()
    path.write_bytes(content)


def lose(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [spoil, lose])
def test_an_update_that_the_disk_spoils_is_asked_for_again(room: Make, harm: Callable[[Path], None]) -> None:
    one, whole = room(), room()
    for seed, name in enumerate(("s1", "s2", "s3"), start=1):
        one.send(name, one.update(name, seed))
        whole.send(name, whole.update(name, seed))
    whole.federation.advance()
    taken = one.store.row("SELECT hash FROM updates WHERE site = 's3'")["hash"]
    harm(one.store.file(taken))

    one.federation.advance()

    told = one.federation.instructions("s3")
    assert (told["round"], told["state"], told["do"]) == (1, "open", "train")
    assert told["update"]["code"] == "damaged-here"
    assert one.federation.instructions("s1")["do"] == "wait"
    assert "the update of s3" in one.federation.current()["note"]
    assert one.store.rows("SELECT 1 FROM events WHERE what = 'update-refused' AND who = 's3'")
    assert list(faults(one.store.folder)) == []
    assert one.intake.earlier_answer("s3", 1, taken) is None
    one.send("s3", one.update("s3", 3))  # the very same
    one.federation.advance()
    assert one.federation.current()["bases"] == whole.federation.current()["bases"]
    assert list(faults(one.store.folder)) == []


def test_a_damaged_base_is_said_and_gone_on_from_when_it_is_mended(room: Make) -> None:
    one = room()
    for seed, name in enumerate(("s1", "s2", "s3"), start=1):
        one.send(name, one.update(name, seed))
    base = one.store.file(json.loads(one.federation.current()["bases"])["0"])
    copy = base.read_bytes()
    spoil(base)

    with pytest.raises(OSError, match="missing or damaged"):
        one.federation.advance()

    assert one.federation.current()["state"] == "closing"
    assert one.federation.current()["note"].startswith(f"Stopped: {base} is missing or damaged: put it back")
    base.write_bytes(copy)
    one.federation.advance()
    assert one.federation.current()["number"] == 2
    assert list(faults(one.store.folder)) == []


def test_a_model_that_is_not_finite_is_not_stored(room: Make, tensors: Make, tmp_path: Path) -> None:
    one = room()
    for seed, name in enumerate(("s1", "s2", "s3"), start=1):
        one.send(name, one.update(name, seed))
    write_model(tmp_path / "model", ArrayTensors({**tensors(0), "encoder.bias": np.full(5, np.inf, np.float32)}), {})
    with one.store.transaction() as db:
        db.execute("UPDATE rounds SET bases = ?", (json.dumps({"0": one.store.keep(tmp_path / "model")}),))

    with pytest.raises(ArithmeticError, match=r"encoder\.bias"):
        one.federation.advance()

    assert one.federation.current()["state"] == "closing"
    assert "encoder.bias of the next model would hold NaN or infinity" in one.federation.current()["note"]
    assert list((one.store.folder / "temporary").iterdir()) == []


def test_no_federation_begins_with_a_model_that_is_not_finite(room: Make, tensors: Make, tmp_path: Path) -> None:
    path = tmp_path / "initial"
    write_model(path, ArrayTensors({**tensors(0), "encoder.bias": np.full(5, np.nan, np.float32)}), {})

    with pytest.raises(InputError, match="holds NaN"):
        room(model=str(path))


def test_a_round_in_which_nothing_is_compressed_yet_gives_the_plain_model(room: Make) -> None:
    one, plain = room(rounds=2, download={"warm_up": 2}), room(rounds=2)
    for there in (one, plain):
        for seed, name in enumerate(("s1", "s2", "s3"), start=1):
            there.send(name, there.update(name, seed))
        there.federation.advance()

    told = one.federation.instructions("s1")
    assert (told["round"], told["delta_from"]) == (2, None)
    assert told["base"] == plain.federation.instructions("s1")["base"]
    assert list(faults(one.store.folder)) == []


def test_an_update_whose_round_closes_while_it_is_checked_is_refused_and_on_record(
    room: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = room(quorum=2, deadline_minutes=10)
    for seed, name in enumerate(("s1", "s2"), start=1):
        one.send(name, one.update(name, seed))
    path = one.update("s3", 3)
    digest = hash_file(path)
    keep = one.store.keep

    def slow(*arguments: Any) -> Any:
        if arguments[1:] == (digest,):
            one.clock.time += 700  # the deadline passes
            one.federation.advance()
        return keep(*arguments)

    monkeypatch.setattr(one.store, "keep", slow)
    with pytest.raises(Refusal, match="closed"):
        one.send("s3", path)

    assert one.federation.current()["number"] == 2
    assert not one.store.file(digest).exists()
    assert (one.store.folder / "quarantine" / digest).is_file()
    (event,) = one.store.rows("SELECT * FROM events WHERE what = 'update-refused'")
    assert (event["who"], json.loads(event["details"])["code"]) == ("s3", "late")
    with pytest.raises(Refusal, match="closed"):
        one.intake.earlier_answer("s3", 1, digest)
