"""How many threads a site computes on, and that they do not burn the processor while they wait for each other."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from twinfed.client.threads import threads_for

SMOKE = Path(__file__).parents[2] / "Experiments" / "smoke.toml"
HOG = "while True: pass"


@pytest.fixture
def three_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("patch", "network", "threads"),
    [
        ((32, 32, 32), {"channels": [8, 16]}, 1),
        ((80, 96, 80), {"channels": [16, 32, 64, 96]}, 3),
        ((224, 224, 1), {"kind": "densenet121"}, 3),
    ],
    ids=["small", "as it ships", "classifier"],
)
def test_a_small_network_computes_on_one_thread(
    three_threads: None, patch: tuple[int, ...], network: dict[str, Any], threads: int
) -> None:
    with threads_for(patch, network):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts processor time as Linux does")
def test_a_simulation_beside_other_programs_takes_no_more_of_the_processor(tmp_path: Path) -> None:
    free = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-m", "twinfed.cli", "simulate", str(SMOKE), "--output", str(tmp_path / "out")]
    rooms = [str(Path(__file__).parents[3] / room) for room in ("TwinSegSlicer", "FederatedClient")]
    environment = {**free, "PYTHONPATH": os.pathsep.join(rooms)}
    hogs = [subprocess.Popen([sys.executable, "-c", HOG]) for _ in range(os.cpu_count() or 1)]
    try:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=environment, check=True, timeout=400)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    finally:
        for hog in hogs:
            hog.kill()
    taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    for hog in hogs:
        hog.wait()
    print(f"{taken:.0f} s of the processor")
    assert taken < 60  # alone, on one thread, some 25 s
