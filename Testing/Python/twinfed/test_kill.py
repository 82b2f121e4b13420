"""The aggregator as a process that is killed again and again: nothing that was acknowledged is lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from twinfed.aggregator.accounts import Accounts
from twinfed.aggregator.config import load_config
from twinfed.aggregator.intake import Intake
from twinfed.aggregator.rounds import Federation
from twinfed.aggregator.store import Store
from twinfed.aggregator.verify import faults
from twinfed.wire import ArrayTensors, write_model

SITES = ("ann", "ben", "cid", "dora", "emil")
SITE_PROCESS = Path(__file__).parent / "site_process.py"
PATH = os.pathsep.join([str(Path(__file__).parents[3] / "FederatedClient"), os.environ.get("PYTHONPATH", "")])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
STARTED: list[subprocess.Popen[bytes]] = []
CONFIG = """
name = "kill"
task = "t"
network = "n"
model = "initial.safetensors"
rounds = {rounds}
quorum = 5
deadline_minutes = 60
[strategy]
name = "adaptive"
max_weight = 0.9
[limits]
free_mb = 1
"""


def write_config(folder: Path, rounds: int) -> Path:
    path = folder / "federation.toml"
    path.write_text(CONFIG.format(rounds=rounds))
    return path


@pytest.fixture(autouse=True)
def running() -> Iterator[None]:
    """No process outlives its test."""
    yield
    for process in STARTED:
        process.kill()
        process.wait()
    STARTED.clear()


def start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """An aggregator that answers."""
    command = [sys.executable, "-m", "twinfed.cli", "aggregator", "--folder", str(folder / "aggregator")]
    command += ["--config", str(folder / "federation.toml"), "--port", str(port)]
    log = open(folder / "aggregator.log", "ab")  # noqa: SIM115 (the process holds it)
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
    STARTED.append(process)
    for _ in range(3000):
        if process.poll() is not None:
            raise RuntimeError((folder / "aggregator.log").read_text())
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return process
        except OSError:
            time.sleep(0.02)
    raise RuntimeError("the aggregator does not answer")


@contextmanager
def sites(folder: Path, port: int, tokens: dict[str, str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes = []
    for name, token in tokens.items():
        (folder / name).mkdir()
        command = [sys.executable, str(SITE_PROCESS), f"http://127.0.0.1:{port}", token, str(folder / name), name]
        processes.append(subprocess.Popen(command, env=ENVIRONMENT))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_kills_at_random_moments_lose_and_double_nothing(tmp_path: Path, kills: int) -> None:
    model = np.random.default_rng(0).standard_normal(70_001).astype(np.float32)
    write_model(tmp_path / "initial.safetensors", ArrayTensors({"w": model, "b": model[:5]}), {})
    config = write_config(tmp_path, rounds=10_000)
    store = Store(tmp_path / "aggregator")
    tokens = {name: Accounts(store).add(name) for name in SITES}
    moments = random.Random(kills)
    port = free_port()

    with sites(tmp_path, port, tokens) as processes:
        for _ in range(kills):
            aggregator = start(tmp_path, port)
            time.sleep(moments.uniform(0, 0.8))
            aggregator.send_signal(signal.SIGKILL)
            aggregator.wait()
        row = store.row("SELECT MAX(number) AS last FROM rounds")
        assert row is not None
        last = max(row["last"], 2)
        config = write_config(tmp_path, rounds=last)
        aggregator = start(tmp_path, port)
        for process in processes:
            assert process.wait(timeout=120) == 0
        aggregator.terminate()
        aggregator.wait(timeout=20)

    acknowledged = {
        (name, *line.split()) for name in SITES for line in (tmp_path / name / "acknowledged").read_text().splitlines()
    }
    accepted = store.rows("SELECT site, round, hash FROM updates WHERE state = 'accepted'")
    assert len(accepted) == 5 * last
    assert acknowledged == {(row["site"], str(row["round"]), row["hash"]) for row in accepted}
    assert list(faults(tmp_path / "aggregator")) == []
    assert not any(store.file(row["hash"]).exists() for row in accepted if row["round"] < last - 1)  # dropped

    other = Store(tmp_path / "without-kills")
    for name in SITES:
        Accounts(other).add(name)
    federation = Federation(other, load_config(config))
    for name in SITES:
        federation.accounts.register(name, 10 + len(name))
    for number in range(1, last + 1):
        for row in sorted((row for row in accepted if row["round"] == number), key=lambda row: row["hash"]):
            path = Path(shutil.copy(tmp_path / row["site"] / row["hash"], tmp_path / "copy"))
            Intake(federation).receive(row["site"], number, row["hash"], path)
        federation.advance()
    assert (
        federation.current()["models"] == store.rows("SELECT * FROM rounds ORDER BY number DESC LIMIT 1")[0]["models"]
    )
    print(f"{kills} kills over {last} rounds of {len(SITES)} sites")
