"""The rounds without HTTP: who is waited for, what is taken, what a restart finds."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinfed.aggregator.config import load_config
from twinfed.aggregator.rounds import Federation
from twinfed.aggregator.store import FolderLock, Store
from twinfed.aggregator.verify import faults
from twinfed.wire import Compression, InputError, Refusal, Report, apply_update

Make = Callable[..., Any]


def test_a_round_closes_when_all_have_sent(room: Make) -> None:
    one = room(rounds=2)
    for seed, name in enumerate(("s1", "s2", "s3"), start=1):
        assert one.federation.instructions(name)["do"] == "train"
        assert one.send(name, one.update(name, seed))["state"] == "accepted"
        assert one.federation.instructions(name)["do"] == "wait"

    one.federation.advance()

    assert one.federation.current()["number"] == 2
    wanted = {key: value + sum(one_of(seed)[key] for seed in (1, 2, 3)) / 3 for key, value in one.model(1).items()}
    for key, value in one.model(2).items():
        assert np.max(np.abs(value - wanted[key])) < 1e-6
    assert list(faults(one.store.folder)) == []


def one_of(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    shapes = {"decoder.weight": (70_001,), "encoder.bias": (5,), "encoder.weight": (3, 4, 5)}
    return {name: (0.01 * random.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def test_the_deadline_closes_a_round_with_a_quorum_and_late_updates_are_told(room: Make) -> None:
    one = room(quorum=2, deadline_minutes=60)
    late = one.update("s3", 3)
    one.send("s1", one.update("s1", 1))
    one.send("s2", one.update("s2", 2))
    one.federation.advance()
    assert one.federation.current()["number"] == 1
    one.clock.time += 3601

    one.federation.advance()

    assert one.federation.current()["number"] == 2
    with pytest.raises(Refusal) as refusal:
        one.send("s3", late, number=1)
    assert refusal.value.code == "late"
    assert one.federation.instructions("s3")["do"] == "train"


def test_without_a_quorum_a_round_is_extended_and_says_so(room: Make) -> None:
    one = room(deadline_minutes=60)
    one.send("s1", one.update("s1", 1))
    for _ in range(3):
        one.clock.time += 3601
        one.federation.advance()

    row = one.federation.current()

    assert (row["number"], row["state"], row["extended"]) == (1, "open", 3)
    assert row["note"] == "Extended at 1 of 3 updates."


def test_a_site_that_skips_is_not_waited_for(room: Make) -> None:
    one = room(quorum=2)
    one.send("s1", one.update("s1", 1))
    one.intake.skip("s3", 1)
    one.send("s2", one.update("s2", 2))

    one.federation.advance()

    assert one.federation.current()["number"] == 2


def test_the_last_round_ends_the_federation_and_may_be_followed_by_more(room: Make) -> None:
    one = room(rounds=1)
    play(one)
    assert one.federation.instructions("s1")["do"] == "finished"

    one.config = type(one.config).from_dict({**one.config.to_dict(), "rounds": 2})
    one.open()
    one.federation.advance()

    assert one.federation.instructions("s1")["do"] == "train"


def play(one: Any, seeds: tuple[int, ...] = (1, 2, 3)) -> None:
    """A whole round of all sites."""
    for seed, name in zip(seeds, ("s1", "s2", "s3", "s4"), strict=False):
        one.send(name, one.update(name, seed))
    one.federation.advance()


@pytest.mark.parametrize("state", ["open", "closing", "aggregated"])
def test_a_restart_goes_on_in_the_same_round(room: Make, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, twin = room(rounds=2), room(rounds=2)
    for each in (one, twin):
        for seed, name in enumerate(("s1", "s2", "s3"), start=1):
            each.send(name, each.update(name, seed))
    if state == "closing":
        monkeypatch.setattr(one.federation, "_aggregate", stop)
    elif state == "aggregated":
        monkeypatch.setattr(one.federation, "_publish", stop)
    if state != "open":
        with pytest.raises(KeyboardInterrupt):
            one.federation.advance()
    assert one.federation.current()["state"] == state

    one.store.close()
    one.open()
    one.federation.advance()
    twin.federation.advance()

    assert one.federation.current()["number"] == 2
    assert one.federation.current()["bases"] == twin.federation.current()["bases"]


def stop(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "fedavgm"},
        {"name": "fedadam"},
        {"name": "fedexp"},
        {"name": "adaptive", "max_weight": 0.6},
        {"name": "trimmed-mean"},
        {"name": "median"},
        {"name": "clustered"},
        {"name": "fedprox", "mu": 0.1},
    ],
    ids=lambda strategy: strategy["name"],
)
def test_every_strategy_runs_three_rounds_and_verifies(room: Make, strategy: dict[str, Any]) -> None:
    one = room(rounds=3, strategy=strategy)
    for number in range(3):
        play(one, (10 * number + 1, 10 * number + 2, 10 * number + 3))

    assert one.federation.instructions("s1")["do"] == "finished"
    assert list(faults(one.store.folder)) == []


def test_clusters_get_a_model_each(room: Make, tensors: Make) -> None:
    one = room(rounds=3, quorum=4, sites=("s1", "s2", "s3", "s4"), strategy={"name": "clustered"})
    for _ in range(2):
        for seed, name in enumerate(("s1", "s2", "s3", "s4")):
            sign, noise = 1 if seed < 2 else -1, tensors(seed + 20, 0.002)
            one.send(name, one.update(name, seed, {key: sign * value + noise[key] for key, value in one_of(5).items()}))
        one.federation.advance()

    bases = [one.federation.instructions(name)["base"] for name in ("s1", "s2", "s3", "s4")]

    assert bases[0] == bases[1]
    assert bases[2] == bases[3]
    assert bases[0] != bases[2]
    assert list(faults(one.store.folder)) == []


def test_transfer_asks_one_site_at_a_time(room: Make) -> None:
    one = room(rounds=3, strategy={"name": "transfer"}, deadline_minutes=60)
    one.federation.advance()
    assert [one.federation.instructions(name)["do"] for name in ("s1", "s2", "s3")] == ["train", "wait", "wait"]
    with pytest.raises(Refusal, match="turn of s1"):
        one.send("s2", one.update("s2", 2))
    one.send("s1", one.update("s1", 1))
    one.federation.advance()
    assert one.federation.instructions("s2")["do"] == "train"

    one.clock.time += 3601
    one.federation.advance()

    assert one.federation.instructions("s3")["do"] == "train"
    assert "passed from s2 to s3" in one.federation.current()["note"]


def test_compressed_downloads_give_the_very_model(room: Make) -> None:
    one = room(rounds=3, keep_rounds=3, download={"keep": 0.2, "bits": 8, "entropy": True})
    for number in range(3):
        play(one, (10 * number + 1, 10 * number + 2, 10 * number + 3))

    for row in one.store.rows("SELECT * FROM deltas"):
        made = one.folder / "made"
        assert apply_update(one.store.file(row["base"]), one.store.file(row["file"]), made) == row["model"]
    assert len(one.store.rows("SELECT * FROM deltas")) == 3
    assert list(faults(one.store.folder)) == []


def test_compressed_uploads_are_taken(room: Make) -> None:
    one = room()
    path = one.update("s1", 1, how=Compression(keep=0.1, bits=8, entropy=True), residual={})

    assert path.stat().st_size < 20_000
    assert one.send("s1", path)["state"] == "accepted"


def hostile(value: float) -> dict[str, Any]:
    change = one_of(1)
    change["decoder.weight"][69_000] = value
    return change


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("not-finite", {"change": hostile(float("nan"))}),
        ("not-finite", {"change": hostile(float("inf"))}),
        ("value-too-large", {"change": hostile(1e30)}),
        ("empty-update", {"change": {key: value * 0 + np.float32(1e-40) for key, value in one_of(1).items()}}),
        ("wrong-shape", {"change": {**one_of(1), "encoder.bias": np.ones((5, 1), np.float32)}}),
        ("wrong-names", {"change": {key: value for key, value in one_of(1).items() if key != "encoder.bias"}}),
        ("wrong-names", {"change": {**one_of(1), "../../etc/passwd": np.ones(2, np.float32)}}),
        ("wrong-round", {"round": 7}),
        ("wrong-site", {"site": "s2"}),
        ("wrong-federation", {"federation": "another"}),
        ("stale-base", {"base": "0" * 64}),
        ("bad-samples", {"report": Report(samples=10**9)}),
    ],
)
def test_a_wrong_update_is_refused_logged_and_changes_nothing(room: Make, code: str, options: dict[str, Any]) -> None:
    one, options = room(), dict(options)
    path = one.update("s1", 1, options.pop("change", None), **options)

    with pytest.raises(Refusal) as refusal:
        one.send("s1", path)

    assert refusal.value.code == code
    assert not path.exists()
    (event,) = one.store.rows("SELECT * FROM events WHERE what = 'update-refused'")
    assert json.loads(event["details"])["code"] == code
    assert [file.name for file in (one.store.folder / "quarantine").iterdir()] == [json.loads(event["details"])["hash"]]
    assert one.store.rows("SELECT * FROM updates WHERE state = 'accepted'") == []
    assert one.send("s1", one.update("s1", 1))["state"] == "accepted"  # the site may mend it


def test_an_update_far_larger_than_usual_is_refused(room: Make, tensors: Make) -> None:
    one = room()
    play(one)

    with pytest.raises(Refusal) as refusal:
        one.send("s1", one.update("s1", 9, tensors(9, 1.0)))

    assert refusal.value.code == "norm-too-large"


def test_the_same_update_twice_is_one_and_a_replay_is_refused(room: Make) -> None:
    one = room()
    path = one.update("s1", 1)
    copy = Path(shutil.copy(path, path.with_suffix(".copy")))
    first = one.send("s1", path)

    assert one.intake.earlier_answer("s1", 1, first["hash"]) == first
    with pytest.raises(Refusal) as second:
        one.send("s1", one.update("s1", 2))
    assert second.value.code == "second-update"
    with pytest.raises(Refusal) as replay:
        one.send("s2", copy)
    assert replay.value.code == "replayed"


def test_a_site_that_only_sends_rubbish_is_stopped(room: Make) -> None:
    one = room(limits={"quarantine": 3})
    codes = []
    for seed in range(25):
        with pytest.raises(Refusal) as refusal:
            one.send("s1", one.update("s1", seed, round=9))
        codes.append(refusal.value.code)

    assert codes == ["wrong-round"] * 20 + ["too-many-refused"] * 5
    assert len(list((one.store.folder / "quarantine").iterdir())) == 3


def test_tokens_are_told_once_and_only_their_hash_is_kept(room: Make) -> None:
    one = room()
    token = one.federation.accounts.add("s4")

    assert one.federation.accounts.recognise(token) == "s4"
    assert token.encode() not in b"".join(file.read_bytes() for file in one.store.folder.glob("aggregator.sqlite*"))
    one.federation.accounts.revoke("s4")
    with pytest.raises(Refusal) as refusal:
        one.federation.accounts.recognise(token)
    assert refusal.value.code == "revoked"
    assert one.federation.accounts.recognise(one.federation.accounts.add("s4")) == "s4"


@pytest.mark.parametrize("name", ["", "../x", "a b", "a" * 41, "é", "-x"])
def test_names_that_are_none_are_refused(room: Make, name: str) -> None:
    with pytest.raises(InputError, match="no name"):
        room().federation.accounts.add(name)


def test_one_aggregator_a_folder(tmp_path: Path) -> None:
    with FolderLock(tmp_path), pytest.raises(InputError, match="another aggregator"):
        FolderLock(tmp_path)


def test_verify_finds_what_was_altered(room: Make) -> None:
    one = room(rounds=2)
    play(one)
    (update,) = one.store.rows("SELECT hash FROM updates WHERE site = 's1'")
    content = bytearray(one.store.file(update["hash"]).read_bytes())
    content[-1] ^= 1
    one.store.file(update["hash"]).write_bytes(content)

    found = list(faults(one.store.folder))

    assert len(found) == 1
    assert "s1" in found[0]


def test_the_log_can_neither_be_changed_nor_cut_unseen(room: Make) -> None:
    one = room()
    one.send("s1", one.update("s1", 1))
    with pytest.raises(sqlite3.IntegrityError, match="log is fixed"), one.store.transaction() as db:
        db.execute("DELETE FROM events WHERE number = 2")
    with one.store.transaction() as db:
        db.execute("DROP TRIGGER events_stay")
        db.execute("UPDATE events SET details = '{}' WHERE number = 3")

    assert list(faults(one.store.folder)) == ["The log is broken at entry 3."]


CONFIG = """
name = "trial"
task = "brats-glioma"
network = "small"
model = "initial.safetensors"
quorum = 3
[strategy]
name = "adaptive"
quality = 2.0
[upload]
keep = 0.05
bits = 8
entropy = true
[limits]
norm_factor = 5.0
"""


def test_a_federation_is_read_from_toml(tmp_path: Path) -> None:
    (tmp_path / "trial.toml").write_text(CONFIG)

    config = load_config(tmp_path / "trial.toml")

    assert config.model == str(tmp_path / "initial.safetensors")
    assert config.upload == Compression(keep=0.05, bits=8, entropy=True)
    assert config.make_strategy().name == "adaptive"
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "adaptive"', 'name = "magic"', "Unknown strategy"),
        ("quality = 2.0", "qualty = 2.0", "no such option"),
        ("quality = 2.0", "quality = 200.0", "must lie between"),
        ("bits = 8", "bits = 4", "not possible"),
        ("quorum = 3", "quorum = 0", "positive"),
        ("quorum = 3", "quorum = 2.5", "whole number"),
        ("quorum = 3", "quorom = 3", "quorom"),
        ('task = "brats-glioma"', "", "task"),
        ("norm_factor = 5.0", "norm_factor = -1", "positive"),
        ("[limits]", "[[", "cannot be read"),
    ],
)
def test_a_wrong_description_says_what_is_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "trial.toml").write_text(CONFIG.replace(old, new))

    with pytest.raises(InputError, match=message):
        load_config(tmp_path / "trial.toml")


def test_a_running_federation_keeps_its_strategy(room: Make) -> None:
    one = room()
    one.config = type(one.config).from_dict({**one.config.to_dict(), "strategy": {"name": "median"}})

    with pytest.raises(InputError, match="strategy"):
        Federation(one.store, one.config)


def test_a_new_folder_needs_a_description(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--config"):
        Federation(Store(tmp_path))
