"""A site that takes part: what it says when something is wrong, and that it goes on as soon as that is mended."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinfed.aggregator.verify import faults
from twinfed.client import controls
from twinfed.client.case_source import CaseSource
from twinfed.client.connection import Connection, Server
from twinfed.client.errors import Unreachable
from twinfed.client.instructions import Instructions
from twinfed.client.site_loop import SiteLoop
from twinfed.client.site_settings import SiteSettings
from twinfed.client.site_state import read_state
from twinfed.errors import InputError
from twinfed.wire import ArrayTensors, hash_file, write_model
from twinseg.case_queue import CaseQueue
from twinseg.tasks import Task
from twinseg.volumes import read_image


def test_corrections_become_a_round_and_the_queue_knows(
    tmp_path: Path, fill: Any, aggregator: Any, join: Any, until: Any
) -> None:
    there = aggregator(sites=("SITE-01",), rounds=1)
    queue = CaseQueue(tmp_path / "home" / "cases")
    site = join(there.url, there.tokens["SITE-01"], "SITE-01", source=CaseSource(queue=queue.folder))
    until(lambda: any("submit corrected cases" in line for line in site.lines()))
    assert there.accepted() == []
    (site.folder / controls.PAUSE).touch()
    until(lambda: site.facts()["facts"]["phase"] == "paused")

    names = fill(queue.folder, "SITE-01")
    (site.folder / controls.PAUSE).unlink()
    until(lambda: there.finished and site.facts()["rounds"][0]["phase"] == "sent")

    assert {case.name for case in queue.cases(state="trained")} == set(names)
    assert site.facts()["rounds"][0]["report"]["samples"] == len(names)


def test_a_case_withdrawn_while_it_is_trained_on_is_not_in_the_update(
    tmp_path: Path, fill: Any, aggregator: Any, join: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinfed.client.site_loop.LOOK_AT_CASES", 0.0)
    there = aggregator(sites=("SITE-01",), rounds=1, epochs=40)
    queue = CaseQueue(tmp_path / "home" / "cases")
    names = fill(queue.folder, "SITE-01")
    site = join(there.url, there.tokens["SITE-01"], "SITE-01", source=CaseSource(queue=queue.folder))
    until(lambda: site.facts()["facts"].get("phase") == "training")

    queue.withdraw(names[0], "the patient objects")
    until(lambda: there.finished)

    assert any("it was withdrawn" in line for line in site.lines())
    assert queue.case(names[0]).state == "withdrawn"
    assert site.facts()["rounds"][0]["report"]["samples"] == len(names) - 1


def test_the_logs_heads_are_kept_to_hold_the_log_against(
    tmp_path: Path, aggregator: Any, join: Any, until: Any
) -> None:
    there = aggregator(sites=("SITE-01",), rounds=1)
    site = join(there.url, there.tokens["SITE-01"], "SITE-01", source=CaseSource(queue=tmp_path / "home" / "cases"))
    kept = site.folder / "log-heads.txt"
    until(lambda: kept.is_file() and len(kept.read_text().splitlines()) == 1)
    there.federation.accounts.add("SITE-02")
    until(lambda: len(kept.read_text().splitlines()) == 2)

    lines = [line.split() for line in kept.read_text().splitlines()]

    assert {number for number, _ in lines} == {"1"}
    assert list(faults(there.store.folder, heads=[head for _, head in lines])) == []
    assert "never ended in ffff" in next(faults(there.store.folder, heads=["f" * 64]))


def test_a_wrong_token_is_said_and_asked_again(cohort: Path, aggregator: Any, join: Any, until: Any) -> None:
    there = aggregator(sites=("SITE-01",), rounds=1)
    site = join(there.url, "twinfed-not-the-token", "SITE-01", cohort / "SITE-01")

    until(lambda: site.lines().count("the aggregator refuses: The token is not known here. Ask the operator for one."))

    assert site.thread.is_alive()
    assert site.facts()["facts"]["trouble"].startswith("the aggregator refuses")


def test_another_task_or_federation_is_said(cohort: Path, aggregator: Any, join: Any, until: Any) -> None:
    first = aggregator(sites=("SITE-01",), rounds=1)
    other = aggregator(sites=("SITE-01",), rounds=1, name="another")
    site = join(first.url, first.tokens["SITE-01"], "a", cohort / "SITE-01", task="lits-liver")
    until(lambda: any("is for the task brats-glioma, not lits-liver" in line for line in site.lines()))
    site.end()
    assert first.accepted() == []

    site = join(first.url, first.tokens["SITE-01"], "b", cohort / "SITE-01")
    until(lambda: first.finished)
    site.end()
    site = join(other.url, other.tokens["SITE-01"], "b", cohort / "SITE-01")

    until(lambda: any("belongs to the federation trial, not another" in line for line in site.lines()))
    assert site.thread.is_alive()


def test_a_model_that_cannot_be_trained_here_is_said(
    tmp_path: Path, cohort: Path, aggregator: Any, join: Any, until: Any
) -> None:
    write_model(tmp_path / "strange.safetensors", ArrayTensors({"w": np.ones(3, np.float32)}), {})
    there = aggregator(sites=("SITE-01",), model=tmp_path / "strange.safetensors")

    site = join(there.url, there.tokens["SITE-01"], "SITE-01", cohort / "SITE-01")

    until(lambda: any("does not say its task and network" in line for line in site.lines()))
    assert site.thread.is_alive()


def test_a_round_that_went_on_without_the_site_is_left_for_the_open_one(
    cohort: Path, aggregator: Any, join: Any, until: Any, proxy: Any
) -> None:
    there = aggregator(sites=("SITE-01", "SITE-02"), rounds=3, quorum=1)
    line = proxy(there.url)
    site = join(line.url, there.tokens["SITE-01"], "SITE-01", cohort / "SITE-01")
    until(lambda: there.accepted(1) == ["SITE-01"])
    line.down = True
    line.cut()
    other = join(there.url, there.tokens["SITE-02"], "SITE-02", cohort / "SITE-02")
    until(lambda: "SITE-02" in there.accepted())
    with there.store.transaction() as db:  # the deadline passes
        db.execute("UPDATE rounds SET deadline = 0")
    other.end()
    until(lambda: any("tried again" in text for text in site.lines()))
    number = until(lambda: there.round if there.round > 1 else 0)
    line.down = False

    until(lambda: "SITE-01" in there.accepted(there.round))
    assert there.round >= number
    until(lambda: site.facts()["rounds"][0]["phase"] == "sent")  # the answer to the first had been lost


def test_it_stands_still_when_told_to(
    tmp_path: Path, cohort: Path, aggregator: Any, join: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinfed.client.site_loop.TELL_PROGRESS", 0.05)
    there = aggregator(sites=("SITE-01",), rounds=1, epochs=200)
    site = join(there.url, there.tokens["SITE-01"], "SITE-01", cohort / "SITE-01")

    def phase() -> str:
        return str(site.facts()["facts"].get("phase"))

    def progress() -> float:
        return float(site.facts()["facts"].get("progress", 0))

    until(lambda: phase() == "training" and progress() > 0)
    (site.folder / controls.PAUSE).touch()
    until(lambda: phase() == "paused")
    there_then = progress()
    time.sleep(1.5)
    assert progress() == there_then
    (site.folder / controls.PAUSE).unlink()
    until(lambda: phase() == "training" and progress() > there_then)

    busy = tmp_path / "home" / controls.BUSY
    busy.mkdir(parents=True)
    (busy / str(os.getpid())).touch()
    until(lambda: phase() == "waiting for the viewer")
    (busy / str(os.getpid())).unlink()
    (busy / "999999999").touch()  # left by a killed process
    until(lambda: phase() == "training")

    controls.withdraw_consent(site.folder)
    until(lambda: phase() == "without consent")
    assert there.accepted() == []
    controls.give_consent(site.folder, there.url, "the panel")
    until(lambda: there.finished)


def test_hours_may_go_past_midnight() -> None:
    night, day, late = controls.Hours.parse("20-6"), controls.Hours.parse("8-18"), controls.Hours.parse("20-24")

    assert [hour for hour in range(24) if night.include(hour)] == [0, 1, 2, 3, 4, 5, 20, 21, 22, 23]
    assert [hour for hour in range(24) if day.include(hour)] == list(range(8, 18))
    assert [hour for hour in range(24) if late.include(hour)] == [20, 21, 22, 23]
    for wrong in ("", "night", "8-8", "25-3", "0-24"):
        with pytest.raises(InputError, match="no hours"):
            controls.Hours.parse(wrong)


def test_outside_of_the_hours_nothing_is_asked(
    cohort: Path, aggregator: Any, join: Any, until: Any, proxy: Any
) -> None:
    there = aggregator(sites=("SITE-01",), rounds=1)
    line = proxy(there.url)
    now = time.localtime().tm_hour
    elsewhen = controls.Hours((now + 2) % 24, (now + 3) % 24)

    site = join(line.url, there.tokens["SITE-01"], "SITE-01", cohort / "SITE-01", hours=elsewhen)

    until(lambda: site.facts()["facts"].get("phase") == f"waiting for {elsewhen.first}:00")
    assert line.connections == 0


def test_nothing_of_a_patient_is_in_what_is_sent(
    tmp_path: Path, cohort: Path, task: Task, aggregator: Any, join: Any, until: Any, proxy: Any
) -> None:
    there = aggregator(sites=("SITE-01",), rounds=2)
    line = proxy(there.url)
    folder = tmp_path / "Müller^Anna 1957-03-02"
    (cohort / "SITE-01").rename(folder)
    site = join(line.url, there.tokens["SITE-01"], "SITE-01", folder)
    until(lambda: there.finished)
    site.end()
    sent = bytes(line.sent)

    assert len(sent) > 50_000
    for secret in ("Müller", "Anna", "1957", str(tmp_path), tmp_path.name, "S01P0", ".nii", "1.2.840", "202"):
        for encoding in ("utf-8", "latin-1", "utf-16-le"):
            assert secret.encode(encoding) not in _outside_tensors(sent), secret
    assert b"Host: 127.0.0.1" in sent
    prepared = [case for part in site.loop.trainer.data.parts.values() for case in part]
    assert prepared
    for case in prepared:
        stored = [read_image(path).array for path in (folder / case.name).glob("*.nii.gz")] or [case.image]
        for array in (case.image, case.labels, *stored):
            for dtype in (array.dtype, np.float32, np.float16, np.int16, np.uint8):
                assert not _any_run(array.astype(dtype), sent)


def _outside_tensors(sent: bytes) -> bytes:
    """What was sent but for the tensors' numbers, in which any short word may stand by chance: heads of requests, JSON
    bodies, and the headers of the update files."""
    kept = bytearray()
    for part in sent.split(b"PUT /")[0:1] + [b"PUT /" + rest for rest in sent.split(b"PUT /")[1:]]:
        head, _, body = part.partition(b"\r\n\r\n")
        kept += head
        kept += body if b"octet-stream" not in head else body[: 8 + int.from_bytes(body[:8], "little") % 2**22]
    return bytes(kept)


def _any_run(array: Any, sent: bytes, length: int = 32) -> bool:
    """Whether a run of an array's bytes, one that is not constant, stands in what was sent."""
    content = np.ascontiguousarray(array).tobytes()
    runs = (content[start : start + length] for start in range(0, len(content) - length, 997 * length // 8))
    return any(len(set(run)) > 8 and run in sent for run in runs)


def test_a_slow_line_gets_a_smaller_update(cohort: Path, aggregator: Any, join: Any, until: Any, proxy: Any) -> None:
    there = aggregator(sites=("SITE-01",), rounds=1, deadline_minutes=0.1)

    def fault(piece: bytes, up: bool) -> bytes:
        time.sleep(len(piece) / 10_000)
        return piece

    line = proxy(there.url, fault=fault)
    site = join(line.url, there.tokens["SITE-01"], "SITE-01", cohort / "SITE-01")
    until(lambda: there.finished)

    assert any("of the update is sent, in" in text for text in site.lines())
    row = there.store.row("SELECT bytes FROM updates")
    assert row["bytes"] < 0.7 * there.final_model().stat().st_size


def paused_in_training(site: Any, until: Any) -> None:
    until(lambda: site.facts()["facts"].get("phase") == "training" and site.facts()["facts"].get("progress"))
    (site.folder / controls.PAUSE).touch()
    until(lambda: site.facts()["facts"]["phase"] == "paused")


def test_a_training_that_outlasts_the_deadline_has_the_time_by_which_the_round_was_extended(
    cohort: Path, aggregator: Any, join: Any, until: Any, proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinfed.client.site_loop.TELL_PROGRESS", 0.05)
    there = aggregator(sites=("SITE-01",), rounds=1, epochs=20, deadline_minutes=0.1)

    def fault(piece: bytes, up: bool) -> bytes:
        time.sleep(len(piece) / 10_000)
        return piece

    site = join(proxy(there.url, fault=fault).url, there.tokens["SITE-01"], "SITE-01", cohort / "SITE-01")
    paused_in_training(site, until)
    until(lambda: there.federation.current()["extended"])
    with there.store.transaction() as db:
        db.execute("UPDATE rounds SET deadline = ?", (time.time() + 3600,))
    (site.folder / controls.PAUSE).unlink()
    until(lambda: there.finished)

    assert not any("of the update is sent, in" in text for text in site.lines())
    assert there.store.row("SELECT bytes FROM updates")["bytes"] > 0.9 * there.final_model().stat().st_size


def test_nothing_of_an_update_is_sent_whose_round_ended_during_the_training(
    cohort: Path, aggregator: Any, join: Any, until: Any, proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinfed.client.site_loop.TELL_PROGRESS", 0.05)
    there = aggregator(sites=("SITE-01", "SITE-02"), rounds=2, quorum=1, epochs=20)
    line = proxy(there.url)
    site = join(line.url, there.tokens["SITE-01"], "SITE-01", cohort / "SITE-01")
    paused_in_training(site, until)
    other = join(there.url, there.tokens["SITE-02"], "SITE-02", cohort / "SITE-02")
    until(lambda: there.accepted(1))
    other.end()

    with there.store.transaction() as db:  # the deadline passes
        db.execute("UPDATE rounds SET deadline = 0 WHERE number = 1")
    until(lambda: there.round == 2)
    (site.folder / controls.PAUSE).unlink()
    until(lambda: there.accepted(2))

    assert site.facts()["rounds"][0]["phase"] == "late"
    assert b"PUT /api/v1/rounds/1/" not in line.sent


def test_an_update_that_another_process_sent_under_the_same_token_is_not_taken_for_the_own(
    cohort: Path, aggregator: Any, join: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinfed.client.site_loop.TELL_PROGRESS", 0.05)
    there = aggregator(sites=("SITE-01", "SITE-02"), rounds=1, epochs=20)
    second = join(there.url, there.tokens["SITE-01"], "second computer", cohort / "SITE-02")
    paused_in_training(second, until)
    first = join(there.url, there.tokens["SITE-01"], "first computer", cohort / "SITE-01")
    until(lambda: there.accepted())
    first.end()

    (second.folder / controls.PAUSE).unlink()
    row = until(lambda: next((row for row in second.facts()["rounds"] if row["ended"]), None))

    assert row["phase"] == "late"
    assert any("another process sent an update under this site's token" in line for line in second.lines())
    assert second.facts()["facts"].get("residual") is None


def test_an_earlier_form_of_an_update_that_was_taken_after_all_counts_as_sent(
    tmp_path: Path, cohort: Path, fill: Any, aggregator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = aggregator(sites=("SITE-01", "SITE-02"), rounds=1)
    queue = CaseQueue(tmp_path / "home" / "cases")
    names = fill(queue.folder, "SITE-01")
    controls.give_consent(tmp_path / "site", there.url, "a test")
    settings = SiteSettings(
        server=Server(there.url, there.tokens["SITE-01"]),
        folder=tmp_path / "site",
        source=CaseSource(queue=queue.folder),
        device="cpu",
        data_folder=tmp_path / "home",
    )
    loop = SiteLoop(settings, threading.Event())
    send, ask, first = Connection.upload, Connection.now, Path(tmp_path / "first.safetensors")

    def cut(self: Connection, number: int, path: Path, digest: str, largest_piece: int) -> None:
        shutil.copy(path, first)
        raise Unreachable("the line was cut")

    def late(self: Connection) -> Instructions:
        told = ask(self)
        send(self, 1, first, hash_file(first), 10**6)  # what was under way arrives after the question
        queue.withdraw(names[0], "the patient objects")  # so that the update is made anew
        monkeypatch.setattr(Connection, "now", ask)
        return told

    monkeypatch.setattr(Connection, "upload", cut)
    with pytest.raises(Unreachable):
        loop._step()
    monkeypatch.setattr(Connection, "upload", send)
    monkeypatch.setattr(Connection, "now", late)
    loop._step()

    (row,) = read_state(tmp_path / "site")["rounds"]
    assert row["phase"] == "sent"
    assert row["hash"] != there.store.row("SELECT hash FROM updates")["hash"] == hash_file(first)
    loop.state.close()
