"""What a trial starts is ended with it, and may listen on this machine alone."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from twinfed.engines.nvflare import processes as room
from twinfed.engines.nvflare.processes import Processes, listening, wait_until
from twinfed.errors import InputError

PROGRAM = """
import os, socket, subprocess, sys, time
if len(sys.argv) > 1:
    grandchild = subprocess.Popen([sys.executable, __file__], start_new_session=True)
    print(grandchild.pid, flush=True)
    if sys.argv[1] == "leave":
        time.sleep(1.5)
        sys.exit()
server = socket.create_server(("127.0.0.1", 0))
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "sleeping_program.py").write_text(PROGRAM, encoding="utf-8")
    return tmp_path


def up(log: Path, lines: int) -> bool:
    return len(log.read_text().splitlines()) >= lines


@pytest.mark.parametrize("what", ["stay", "leave"])
def test_children_and_their_children_are_ended_by_an_error(program: Path, what: str) -> None:
    log = program / "log"

    def interrupted() -> None:
        with Processes({"PYTHONPATH": str(program)}) as processes:
            child = processes.start(["sleeping_program", what], log, program)
            wait_until(lambda: up(log, 3 if what == "stay" else 2), processes, 60, "Starting", every=0.1)
            if what == "leave":
                wait_until(lambda: child.poll() is not None, processes, 60, "Leaving", every=0.1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    grandchild = next(int(line) for line in log.read_text().splitlines() if line.isdecimal())
    assert not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE


def test_processes_and_memory_are_counted_and_loopback_is_fine(program: Path) -> None:
    log = program / "log"
    with Processes({"PYTHONPATH": str(program)}) as processes:
        child = processes.start(["sleeping_program"], log, program)
        wait_until(lambda: up(log, 1), processes, 60, "Starting", every=0.1)

        processes.look()

        assert listening(psutil.Process(child.pid)) == ["127.0.0.1"]
    assert processes.most_processes == 1
    assert 10**6 < processes.most_memory < 10**9


def test_a_program_that_listens_elsewhere_is_refused_and_ended(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LOOPBACK", ("10.",))  # so that no test listens to the network
    log = program / "log"

    def run() -> None:
        with Processes({"PYTHONPATH": str(program)}) as processes:
            processes.start(["sleeping_program"], log, program)
            wait_until(lambda: False, processes, 60, "Nothing", every=0.1)

    with pytest.raises(InputError, match=r"listened on 127.0.0.1, not on this machine alone; it was stopped"):
        run()


def test_waiting_ends(program: Path) -> None:
    with Processes({}) as processes, pytest.raises(InputError, match="The job took more than 0 seconds"):
        wait_until(lambda: False, processes, 0.2, "The job", every=0.1)


def test_a_child_has_the_environment_and_no_input(program: Path) -> None:
    (program / "telling_program.py").write_text("import os, sys\nprint(os.environ['FOR_IT'], sys.stdin.read())")
    with Processes({"PYTHONPATH": str(program), "FOR_IT": "told"}) as processes:
        child = processes.start(["telling_program"], program / "log", program)
        end = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < end:
            time.sleep(0.05)

    assert (program / "log").read_text().strip() == "told"
    assert "FOR_IT" not in os.environ
    assert sys.executable == child.args[0]  # type: ignore[index]
