"""The demonstration, stopped while its processes run, leaves none behind and nothing broken."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from twinfed.client.initial_model import write_initial_model
from twinseg.tasks import load_task

HOUSE = Path(__file__).parents[3]

FEDERATION = """
name = "trial"
task = "brats-glioma"
network = "as the model says"
model = "first.safetensors"
quorum = 1
"""
STOPPED = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from Demo import federation
from Demo.commands import Commands, side_by_side
from Demo.page import Page

place = Path(sys.argv[2])
commands = Commands(Page("a trial", ""))
with side_by_side(commands):
    words = ("--folder", place / "aggregator", "--config", place / "federation.toml", "--port", "0")
    aggregator = commands.start("twinfed", "aggregator", *words, log=place / "log")
    print("running at", federation.address(aggregator, place / "log"), flush=True)
    time.sleep(300)
"""


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal")
def test_ctrl_c_ends_what_runs_beside(tmp_path: Path) -> None:
    network = {"channels": [4, 4, 4, 4], "embedding": 12, "depth": 1, "heads": 1}
    write_initial_model(tmp_path / "first.safetensors", load_task("brats-glioma"), network, seed=0)
    (tmp_path / "federation.toml").write_text(FEDERATION)
    words = [sys.executable, "-c", STOPPED, str(HOUSE / "Testing"), str(tmp_path)]
    rooms = os.pathsep.join(str(HOUSE / room) for room in ("TwinSegSlicer", "FederatedClient"))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": rooms}) as demo:
        assert demo.stdout is not None
        line = next(line for line in demo.stdout if line.startswith("running"))
        host, port = re.search(r"http://([\d.]+):(\d+)", line).groups()
        assert answers(host, int(port))
        demo.send_signal(signal.SIGINT)
        demo.wait(timeout=30)

    assert demo.returncode != 0
    assert not answers(host, int(port))
    verified = [sys.executable, "-m", "twinfed.cli", "verify", "--folder", str(tmp_path / "aggregator")]
    assert subprocess.run(verified, env={**os.environ, "PYTHONPATH": rooms}, timeout=60).returncode == 0


def answers(host: str, port: int) -> bool:
    """Whether something listens there."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True
