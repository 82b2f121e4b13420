"""A federation of real processes through thirty random faults: all rounds are finished, no update counts twice, and no
case is lost."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twinfed.aggregator.accounts import Accounts
from twinfed.aggregator.store import Store
from twinfed.aggregator.verify import faults
from twinfed.client.site_state import read_state
from twinseg.case_queue import CaseQueue
from twinseg.cases import find_cases
from twinseg.tasks import load_task
from twinseg.volumes import read_image, read_labels

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="limits another process's files")]
SITES = ("SITE-01", "SITE-02", "SITE-03")
SEED = 6
FAULTS = 30
CONFIG = """
name = "faults"
task = "brats-glioma"
network = "tiny"
model = "{model}"
rounds = {rounds}
quorum = 2
epochs = 3
deadline_minutes = 60
[upload]
keep = 0.5
bits = 8
entropy = true
[limits]
free_mb = 1
"""


class Line:
    """What is wrong with the line to the aggregator, which a test changes while data pass."""

    def __init__(self, seed: int) -> None:
        self.moments, self.wrong = random.Random(seed), ""

    def __call__(self, piece: bytes, up: bool) -> bytes | None:
        if self.wrong == "cuts" and self.moments.random() < 0.1:
            return None
        if self.wrong == "delays":
            time.sleep(self.moments.uniform(0, 0.4))
        if self.wrong == "throttles":
            time.sleep(len(piece) / 50_000)
        if self.wrong == "corrupts" and len(piece) > 2000 and self.moments.random() < 0.3:
            place = self.moments.randrange(600, len(piece))
            return piece[:place] + bytes([piece[place] ^ 0x55]) + piece[place + 1 :]
        return piece


class Stage:
    """The aggregator and the sites as processes, which can be killed and started again."""

    def __init__(self, folder: Path, initial_model: Path, cohort: Path, twinfed: Any, port: int) -> None:
        self.folder, self.model, self.cohort, self.twinfed, self.port = folder, initial_model, cohort, twinfed, port
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.url = ""
        store = Store(folder / "aggregator")
        for name in SITES:
            (folder / f"{name}.token").write_text(Accounts(store).add(name))
        store.close()

    def start_aggregator(self, rounds: int) -> None:
        config = self.folder / "federation.toml"
        config.write_text(CONFIG.format(model=self.model, rounds=rounds))
        words = ["aggregator", "--folder", self.folder / "aggregator", "--config", config, "--port", str(self.port)]
        self.running["aggregator"] = self.twinfed(*words, log=self.folder / "aggregator.log")

    def start_site(self, name: str) -> None:
        words = ["join", self.url, "--token-file", self.folder / f"{name}.token", "--folder", self.folder / name]
        words += ["--device", "cpu", "--longest-poll", "0.3", "--normal-priority", "--no-twins"]
        if name != "SITE-01":  # whose cases are in the queue
            words += ["--data", self.cohort / name]
        self.running[name] = self.twinfed(*words, log=self.folder / f"{name}.log")

    def kill(self, name: str) -> None:
        assert self.running[name].poll() is None, f"{name} had ended by itself"
        self.running[name].send_signal(signal.SIGKILL)
        self.running[name].wait()

    def rounds(self) -> int:
        with sqlite3.connect(self.folder / "aggregator" / "aggregator.sqlite", timeout=30) as db:
            return int(db.execute("SELECT ifnull(MAX(number), 0) FROM rounds").fetchone()[0])


@pytest.fixture
def queue(tmp_path: Path, cohort: Path) -> CaseQueue:
    """The cases of SITE-01, corrected."""
    task, made = load_task("brats-glioma"), CaseQueue(tmp_path / "home" / "cases")
    for case in find_cases(cohort / "SITE-01", task, require_labels=True):
        assert case.labels is not None
        images = {name: read_image(path) for name, path in case.images.items()}
        made.add(task=task, patient=case.patient, images=images, labels=read_labels(case.labels), allow_empty=True)
    return made


def test_thirty_faults(
    tmp_path: Path,
    cohort: Path,
    queue: CaseQueue,
    initial_model: Path,
    twinfed: Any,
    proxy: Any,
    until: Callable[..., Any],
    port: int,
) -> None:
    import resource

    before = {(case.name, case.labels.read_bytes()) for case in queue.cases()}
    chance, line = random.Random(SEED), Line(SEED)
    stage = Stage(tmp_path, initial_model, cohort, twinfed, port)
    stage.url = proxy(f"http://127.0.0.1:{port}", fault=line).url
    stage.start_aggregator(rounds=10_000)
    for name in SITES:
        stage.start_site(name)
    until(lambda: stage.rounds() > 1, 600)

    done: Counter[str] = Counter()
    hits = 0  # kills that came at the very moment that was meant; the others came at another one
    phases = ("fetching the model", "training", "sending")
    kinds = [*(f"site killed in {phase}" for phase in phases), "aggregator killed", "line", "disk", "clock"]
    for number in range(FAULTS):
        kind = kinds[number % len(kinds)]
        name = chance.choice(SITES)
        if kind.startswith("site killed"):
            wanted, give_up = kind.removeprefix("site killed in "), time.monotonic() + 20
            while time.monotonic() < give_up:
                if read_state(tmp_path / name, lines=0)["facts"].get("phase") == wanted:
                    hits += 1
                    break
                time.sleep(0.005)
            stage.kill(name)
            time.sleep(chance.uniform(0, 2))
            stage.start_site(name)
        elif kind == "aggregator killed":
            time.sleep(chance.uniform(0, 2))
            stage.kill("aggregator")
            time.sleep(chance.uniform(0, 3))
            stage.start_aggregator(rounds=10_000)
        elif kind == "line":
            line.wrong = ("cuts", "delays", "throttles", "corrupts")[done[kind] % 4]
            time.sleep(chance.uniform(8, 15))
            line.wrong = ""
        elif kind == "disk":
            victim = stage.running[chance.choice([*SITES, "aggregator"])].pid
            resource.prlimit(victim, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            time.sleep(chance.uniform(3, 8))
            resource.prlimit(victim, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        else:  # the aggregator's clock jumps past the deadline
            with sqlite3.connect(tmp_path / "aggregator" / "aggregator.sqlite", timeout=30) as db:
                db.execute("UPDATE rounds SET deadline = 0 WHERE state = 'open'")
        done[kind] += 1
        print(f"{number + 1:2} {kind}: round {stage.rounds()}", flush=True)

    assert hits >= 5
    stage.kill("aggregator")
    last = stage.rounds() + 2
    stage.start_aggregator(rounds=last)
    for name in SITES:
        assert stage.running[name].wait(timeout=900) == 0, (tmp_path / f"{name}.log").read_text()[-3000:]
    stage.running["aggregator"].terminate()
    stage.running["aggregator"].wait(timeout=60)

    with sqlite3.connect(tmp_path / "aggregator" / "aggregator.sqlite") as db:
        states = dict(db.execute("SELECT number, state FROM rounds").fetchall())
        accepted = db.execute("SELECT round, site, hash FROM updates WHERE state = 'accepted'").fetchall()
    assert states == dict.fromkeys(range(1, last + 1), "published")
    assert len({(number, site) for number, site, _ in accepted}) == len(accepted)
    assert len({digest for _, _, digest in accepted}) == len(accepted)
    assert min(Counter(number for number, _, _ in accepted).values()) >= 2
    assert list(faults(tmp_path / "aggregator")) == []
    for name in SITES:
        sent = {(row["number"], row["hash"]) for row in read_state(tmp_path / name)["rounds"] if row["phase"] == "sent"}
        assert sent == {(number, digest) for number, site, digest in accepted if site == name}
        assert not [row for row in read_state(tmp_path / name)["lines"] if row["level"] == "error"]
    assert {(case.name, case.labels.read_bytes()) for case in CaseQueue(queue.folder).cases()} == before
    print(f"{FAULTS} faults {dict(done)}, {last} rounds, {len(accepted)} updates, {hits} kills in the phase meant")
