"""The site's process: killed, stopped, locked, without room; the next one goes on from what is on the disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twinfed.client.site_state import read_state
from twinseg.case_queue import CaseQueue

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")
Process = subprocess.Popen[bytes]


@pytest.fixture
def site(tmp_path: Path, cohort: Path, twinfed: Any) -> Callable[..., Process]:
    """Start the process of SITE-01: ``site(url, token)``."""

    def start(url: str, token: str, *words: str) -> Process:
        (tmp_path / "token").write_text(token + "\n")
        options = ["--token-file", tmp_path / "token", "--folder", tmp_path / "site", "--data", cohort / "SITE-01"]
        options += ["--device", "cpu", "--longest-poll", "0.2", "--learning-rate", "0.003", "--normal-priority"]
        started: Process = twinfed("join", url, *options, *words, log=tmp_path / "site.log")
        return started

    return start


def slow_line(seconds: float, least: int = 8000) -> Callable[[bytes, bool], bytes]:
    """Delays each large piece, so that a transfer lasts long enough to be killed in."""

    def fault(piece: bytes, up: bool) -> bytes:
        if len(piece) >= least:
            time.sleep(seconds)
        return piece

    return fault


def test_killed_in_download_training_and_upload_it_goes_on_and_is_counted_once(
    tmp_path: Path, aggregator: Any, proxy: Any, site: Any, until: Any
) -> None:
    there = aggregator(sites=("SITE-01",), rounds=1, epochs=60)
    line = proxy(there.url, fault=slow_line(0.5, 2000))
    folder = tmp_path / "site"

    def facts() -> dict[str, Any]:
        return dict(read_state(folder)["facts"])

    def killed_when(condition: Callable[[], Any]) -> None:
        process = site(line.url, there.tokens["SITE-01"])
        until(condition)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not there.finished

    killed_when(lambda: list((folder / "models").glob("*.part")) and facts().get("phase") == "fetching the model")
    assert list((folder / "models").glob("*.part"))
    line.fault = slow_line(0.0)
    killed_when(lambda: facts().get("phase") == "training" and list((folder / "checkpoints").glob("round-1-*")))
    line.fault = slow_line(0.5, 2000)
    killed_when(lambda: facts().get("phase") == "sending")
    made = read_state(folder)["rounds"][0]
    line.fault = slow_line(0.0)

    assert site(line.url, there.tokens["SITE-01"]).wait(timeout=300) == 0

    assert there.accepted() == ["SITE-01"]
    assert there.store.row("SELECT hash FROM updates")["hash"] == made["hash"]
    assert read_state(folder)["rounds"][0]["phase"] == "sent"


def test_it_stops_within_two_seconds_and_only_one_runs_in_a_folder(
    tmp_path: Path, aggregator: Any, site: Any, until: Any
) -> None:
    there = aggregator(sites=("SITE-01",), rounds=1, epochs=5000)
    token = there.tokens["SITE-01"]

    def training() -> bool:
        return read_state(tmp_path / "site")["facts"].get("phase") == "training"

    for how in ("signal", "file", "parent"):
        parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        process = site(there.url, token, "--parent", str(parent.pid))
        until(training)
        if how == "signal":
            second = site(there.url, token)
            assert second.wait(timeout=120) == 2
            assert "another process takes part from this folder" in (tmp_path / "site.log").read_text()
            process.terminate()
        elif how == "file":
            (tmp_path / "site" / "stop").touch()
        else:
            parent.kill()
            parent.wait()
        began = time.monotonic()
        assert process.wait(timeout=60) == 0
        took = time.monotonic() - began
        print(f"{how}: {took:.2f} s")
        assert took < 2, how
        assert read_state(tmp_path / "site")["facts"]["phase"] == "stopped"
        parent.kill()
        parent.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files of another process")
def test_a_full_disk_is_said_and_gone_on_from_when_there_is_room(
    tmp_path: Path, aggregator: Any, site: Any, until: Any
) -> None:
    import resource

    there = aggregator(sites=("SITE-01",), rounds=1, epochs=30)
    process = site(there.url, there.tokens["SITE-01"])
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))  # from the start
    until(lambda: "free some" in (tmp_path / "site.log").read_text())
    (tmp_path / "site.log").write_text("")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    until(lambda: read_state(tmp_path / "site")["facts"].get("phase") == "training")

    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    until(lambda: "free some" in (tmp_path / "site.log").read_text())
    assert process.poll() is None
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    assert process.wait(timeout=300) == 0
    assert there.accepted() == ["SITE-01"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
def test_it_goes_on_where_nothing_can_be_printed(tmp_path: Path, aggregator: Any, site: Any) -> None:
    there = aggregator(sites=("SITE-01",), rounds=1)
    (tmp_path / "site.log").symlink_to("/dev/full")

    site(there.url, there.tokens["SITE-01"]).wait(timeout=300)

    assert there.accepted() == ["SITE-01"]
    assert read_state(tmp_path / "site")["facts"]["phase"] == "finished"


def test_a_case_of_the_queue_whose_image_has_vanished_is_one_line_a_round_and_the_rounds_go_on(
    tmp_path: Path, cohort: Path, aggregator: Any, twinfed: Any, fill: Any
) -> None:
    queue = CaseQueue(tmp_path / "home" / "cases")
    gone, *others = fill(queue.folder, "SITE-01")
    image = queue.case(gone).image_files["flair"]
    image.unlink()
    there = aggregator(sites=("SITE-01",), rounds=2)
    (tmp_path / "token").write_text(there.tokens["SITE-01"])
    words = ["--token-file", tmp_path / "token", "--folder", tmp_path / "site", "--device", "cpu", "--normal-priority"]
    process = twinfed("join", there.url, *words, "--longest-poll", "0.2", log=tmp_path / "site.log")

    assert process.wait(timeout=300) == 0

    state = read_state(tmp_path / "site")
    assert [(row["phase"], row["report"]["samples"]) for row in state["rounds"]] == [("sent", len(others))] * 2
    told = [row["text"] for row in state["lines"] if row["level"] == "warning"]
    assert told[:1] == [f"{image}: it is gone, so its case is left out; restore or withdraw {gone}"]
    assert set(told) == set(told[:1])
    assert 2 <= len(told) <= 3  # once a round, and once more for the twin of the last
    assert {case.name for case in queue.cases(state="trained")} == set(others)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ftp://x", "--token-file", "token", "--folder", "f"], "this is no address"),
        (["http://127.0.0.1:9", "--token-file", "nowhere", "--folder", "f"], "cannot be read"),
        (["http://127.0.0.1:9", "--token-file", "token", "--folder", "f", "--hours", "late"], "these are no hours"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, twinfed: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text("twinfed-0123456789")

    process = twinfed("join", *words, log=tmp_path / "log")

    assert process.wait(timeout=120) == 2
    said = (tmp_path / "log").read_text().splitlines()
    assert len(said) == 1
    assert message in said[0]
