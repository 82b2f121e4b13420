"""The worker's protocol: every request is answered once, whatever else is printed, asked or cancelled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

# Requests as later ones will join: those here do nothing but take their time.
SLOW = """
import os, subprocess, time
from twinseg.worker_requests import REQUESTS

def count(request):
    for step in range(600):
        request.progress(step / 600, "counting")
        time.sleep(0.05)
    return {}

def sleep(request):
    request.progress(0, "asleep")
    time.sleep(3)
    with request.publishing():
        open(request.fields["file"], "w").close()
    return {}

def print_noise(request):
    print("{not json", flush=True)
    sys.__stdout__.write("to the old stdout")
    sys.__stdout__.flush()
    os.write(1, b"from C")
    subprocess.run(["echo", "from a child"])
    return {"read": sys.stdin.read()}

def fail(request):
    raise KeyError("two\\nlines")

def exhaust(request):
    raise MemoryError

REQUESTS |= {"count": count, "sleep": sleep, "noise": print_noise, "fail": fail, "exhaust": exhaust}
"""


@pytest.fixture(scope="module")
def slow(start: Callable[..., Any]) -> Any:
    """A worker that also has requests that take their time."""
    return start(before=SLOW)


def test_hello_tells_who_answers_and_where_it_can_compute(worker: Any) -> None:
    answer = worker.answer("hello")

    assert answer["type"] == "result"
    value = answer["value"]
    assert value["protocol"] == 1
    assert {"version", "torch", "devices"} <= value.keys()
    cpu = value["devices"][0]
    assert cpu["name"] == "cpu"
    assert cpu["title"].startswith("CPU, ")
    assert cpu["free_bytes"] > 10**6


@pytest.mark.parametrize(
    ("line", "number", "said"),
    [
        (b"segment please", None, "this line is no JSON"),
        (b"\xff\xfe\x00", None, "this line is no JSON"),
        (b"[" * 100_000, None, "this line is no JSON"),
        (b'{"id": 7, "do": "segment", "fields": "' + b"x" * 3_000_000 + b'"}', None, "this line is no JSON"),
        (b"[1, 2]", None, "does not say what to do"),
        (b'{"id": 701}', 701, "does not say what to do"),
        (b'{"do": "hello"}', None, "hello: the field 'id' is missing"),
        (b'{"id": true, "do": "hello"}', None, "the field 'id' is missing"),
        (b'{"id": "seven", "do": "dance"}', "seven", "dance: unknown; it can do hello, segment"),
        (b'{"id": 702, "do": "segment"}', 702, "segment: the field 'task' is missing"),
        (b'{"id": 703, "do": "segment", "task": 5}', 703, "the field 'task' must be text, not '5'"),
        (b'{"id": 704, "do": "segment", "task": "brats-glioma", "images": [1]}', 704, "the field 'labels' is missing"),
    ],
)
def test_a_bad_line_is_answered_and_the_worker_goes_on(worker: Any, line: bytes, number: object, said: str) -> None:
    worker.write(line)

    answer = worker.until_answered(number)[-1]
    assert (answer["type"], answer["kind"]) == ("error", "input")
    assert said in answer["message"]
    assert "\n" not in answer["message"]
    assert worker.answer("hello")["type"] == "result"


def test_blank_lines_are_no_requests(worker: Any) -> None:
    worker.write(b"\n  \n")

    assert worker.answer("hello")["type"] == "result"


def test_nothing_that_is_printed_breaks_the_protocol(slow: Any) -> None:
    assert slow.answer("noise")["value"] == {"read": ""}  # nor can a library read the requests away

    assert slow.answer("hello")["type"] == "result"
    assert slow.printed("{not json", "to the old stdout", "from C", "from a child")


def test_a_defect_is_one_line_and_its_traceback_goes_to_stderr(slow: Any) -> None:
    answer = slow.answer("fail")

    assert (answer["kind"], answer["message"]) == ("fault", "KeyError: 'two\\nlines'")
    assert slow.answer("hello")["type"] == "result"
    assert slow.printed("Traceback")


def test_memory_that_runs_out_is_told_as_such(slow: Any) -> None:
    assert slow.answer("exhaust")["kind"] == "memory"


def test_cancel_stops_what_runs_and_the_worker_goes_on(slow: Any) -> None:
    number = slow.ask("count")
    assert slow.hear()["type"] == "progress"
    began = time.monotonic()

    cancel = slow.ask("cancel", target=number)

    answers = {m["id"]: m for m in slow.until_answered(number) if m["type"] != "progress"}
    assert time.monotonic() - began < 1
    assert answers[cancel]["value"] == {"found": True}
    assert answers[number]["kind"] == "cancelled"
    assert slow.answer("hello")["type"] == "result"


def test_cancel_answers_in_time_even_where_the_work_does_not_look(slow: Any, tmp_path: Any) -> None:
    number = slow.ask("sleep", file=str(tmp_path / "result"))
    assert slow.hear()["stage"] == "asleep"
    began = time.monotonic()

    slow.ask("cancel", target=number)

    assert slow.until_answered(number)[-1]["kind"] == "cancelled"
    assert time.monotonic() - began < 1
    assert slow.answer("hello")["id"] == slow._number  # nothing more was said of the cancelled one
    assert not (tmp_path / "result").exists()


def test_what_waits_is_cancelled_before_what_runs_is_done(slow: Any) -> None:
    running, waiting = slow.ask("count"), slow.ask("count")

    slow.ask("cancel", target=waiting)
    answered = slow.until_answered(waiting)
    slow.ask("cancel", target=running)

    assert answered[-1]["kind"] == "cancelled"
    assert slow.until_answered(running)[-1]["kind"] == "cancelled"


@pytest.mark.parametrize("target", [None, 12345, True, [1], "nobody"])
def test_cancel_of_what_is_not_there(worker: Any, target: object) -> None:
    assert worker.answer("cancel", target=target)["value"] == {"found": False}


def test_an_id_that_is_under_way_is_not_taken_twice(slow: Any) -> None:
    number = slow.ask("count")

    slow.write(json.dumps({"id": number, "do": "hello"}).encode())

    assert f"id {number}: a request of this id is under way" in slow.until_answered(None)[-1]["message"]
    slow.ask("cancel", target=number)
    assert slow.until_answered(number)[-1]["kind"] == "cancelled"


def test_quit_ends_everything(start: Callable[..., Any]) -> None:
    child = start(before=SLOW)
    running, waiting = child.ask("count"), child.ask("hello")
    child.hear()

    child.ask("quit")

    assert child.until_answered(running)[-1]["kind"] == "cancelled"
    assert child.until_answered(waiting)[-1]["kind"] == "cancelled"
    assert child.wait() == 0


def test_it_leaves_when_stdin_ends(start: Callable[..., Any]) -> None:
    child = start(before=SLOW)
    child.ask("sleep", file=os.devnull)
    child.hear()
    began = time.monotonic()

    child.process.stdin.close()

    assert child.wait() == 0
    assert time.monotonic() - began < 2


def test_it_leaves_when_nobody_reads(start: Callable[..., Any], environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", f"import sys\n{SLOW}\nfrom twinseg.worker import main\nmain()"]
    child = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b'{"id": 1, "do": "count"}\n')
    child.stdin.flush()
    child.stdout.readline()

    child.stdout.close()

    assert child.wait(120) == 0


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-m", "twinseg.worker"], stdin=int(sys.argv[1]))
print(child.pid, flush=True)
time.sleep(600)
"""


def gone_within(process: psutil.Process, seconds: float) -> bool:
    try:
        process.wait(seconds)
    except psutil.TimeoutExpired:
        process.kill()
        return False
    return True


@pytest.mark.skipif(sys.platform == "win32", reason="passes a pipe by its number")
def test_it_leaves_when_its_parent_is_killed_though_stdin_stays_open(environment: dict[str, str]) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(reading)], env=environment, stdout=subprocess.PIPE, close_fds=False
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    os.write(writing, b'{"id": 1, "do": "cancel"}\n')
    assert json.loads(parent.stdout.readline())["id"] == 1  # it is up

    parent.kill()
    parent.wait()

    assert gone_within(child, 20)
    os.close(reading)
    os.close(writing)


def test_it_leaves_when_the_program_behind_a_launcher_is_gone(start: Callable[..., Any]) -> None:
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    child = start("--parent", str(program.pid))
    assert child.answer("cancel")["type"] == "result"

    program.send_signal(signal.SIGTERM)

    assert child.wait() == 0  # before its parent, this process, has read the other's end: it is a zombie still
    program.wait()


def test_a_parent_that_is_gone_already(start: Callable[..., Any]) -> None:
    program = subprocess.Popen([sys.executable, "-c", ""])
    program.wait()

    assert start("--parent", str(program.pid)).wait() == 0
