"""The handle on the worker process: it answers, is cancelled, is killed, and comes back."""

from __future__ import annotations

import json
import time

import psutil
import pytest

WORKER_SECONDS = 120


class Ended:
    """How a request ended."""

    def __init__(self):
        self.results, self.errors = [], []

    def __bool__(self):
        return bool(self.results or self.errors)


@pytest.fixture
def ask(slicer_host):
    """Sends a request; the answer comes into what it returns."""

    def send(worker, message):
        ended = Ended()
        ended.number = worker.request(message, ended.results.append, ended.errors.append)
        return ended

    return send


@pytest.fixture
def fresh_worker(slicer_host):
    from TwinSegSlicerLib.Worker import WorkerProcess

    worker = WorkerProcess()
    yield worker
    worker.stop()


def test_it_says_which_devices_there_are(slicer_host, worker, ask):
    ended = ask(worker, {"do": "hello"})

    assert slicer_host.app.wait_until(lambda: ended, WORKER_SECONDS)
    assert ended.results[0]["devices"][0]["name"] == "cpu"
    assert ended.results[0]["devices"][0]["free_bytes"] > 0


def test_a_request_that_it_does_not_know_is_an_error_and_it_goes_on(slicer_host, worker, ask):
    unknown = ask(worker, {"do": "dance"})
    hello = ask(worker, {"do": "hello"})

    assert slicer_host.app.wait_until(lambda: unknown and hello, WORKER_SECONDS)
    assert unknown.errors[0].kind == "input"
    assert "dance" in str(unknown.errors[0])
    assert hello.results


def test_a_kill_is_one_clear_error_and_the_next_request_starts_it_again(slicer_host, fresh_worker, ask):
    ended = ask(fresh_worker, {"do": "hello"})
    first = fresh_worker.processId
    psutil.Process(first).kill()

    assert slicer_host.app.wait_until(lambda: ended, 10)
    assert [error.kind for error in ended.errors] == ["crashed"]
    assert "ended unexpectedly" in str(ended.errors[0])
    assert "The scene is as it was" in str(ended.errors[0])

    ask(fresh_worker, {"do": "hello"})
    assert fresh_worker.isRunning
    assert fresh_worker.processId != first


def test_a_crash_tells_the_last_thing_that_it_said(slicer_host, ask):
    from TwinSegSlicerLib.Worker import WorkerProcess

    ended = ask(WorkerProcess(("-c", "raise SystemExit('no room for the model')")), {"do": "hello"})

    assert slicer_host.app.wait_until(lambda: ended, 10)
    assert "no room for the model" in str(ended.errors[0])


def test_a_python_that_is_not_there_is_told(slicer_host, ask, monkeypatch, fresh_worker):
    monkeypatch.setattr("TwinSegSlicerLib.Worker.pythonProgram", lambda: "/no/such/PythonSlicer")

    ended = ask(fresh_worker, {"do": "hello"})

    assert slicer_host.app.wait_until(lambda: ended, 10)
    assert [error.kind for error in ended.errors] == ["crashed"]
    assert "/no/such/PythonSlicer" in str(ended.errors[0])


def test_lines_that_are_no_messages_are_passed_over(slicer_host, ask):
    from TwinSegSlicerLib.Worker import WorkerProcess

    says = 'print(\'hello\'); print(\'{}\'); print(\'[1]\'); print(\'{"id": 1, "type": "result", "value": {"ok": 1}}\')'
    ended = ask(WorkerProcess(("-c", says)), {"do": "hello"})

    assert slicer_host.app.wait_until(lambda: ended, 10)
    assert ended.results == [{"ok": 1}]


def test_progress_and_fall_backs_are_passed_on_as_they_come(slicer_host):
    from TwinSegSlicerLib.Worker import WorkerProcess

    says = [
        {"id": 1, "type": "progress", "done": 0.5, "stage": "segmenting"},
        {"id": 1, "type": "notice", "message": "cuda ran out of memory; a smaller way is taken"},
        {"id": 1, "type": "result", "value": {}},
    ]
    told = []
    WorkerProcess(("-c", "\n".join(f"print({json.dumps(line)!r})" for line in says))).request(
        {"do": "segment"}, told.append, told.append, lambda *progress: told.append(progress), told.append
    )

    assert slicer_host.app.wait_until(lambda: len(told) == 3, 10)
    assert told == [(0.5, "segmenting"), "cuda ran out of memory; a smaller way is taken", {}]


def test_cancelling_takes_less_than_a_second_even_while_it_starts(slicer_host, fresh_worker, ask):
    ended = ask(fresh_worker, {"do": "hello"})
    started = time.monotonic()

    fresh_worker.cancel(ended.number)

    assert slicer_host.app.wait_until(lambda: ended, 10)
    assert [error.kind for error in ended.errors] == ["cancelled"]
    assert time.monotonic() - started < 1.5  # a second, and what a busy machine takes to end a process


def test_a_worker_that_does_not_listen_is_ended_when_it_is_cancelled(slicer_host, ask):
    from TwinSegSlicerLib.Worker import WorkerProcess

    deaf = WorkerProcess(("-c", "import time; time.sleep(60)"))
    ended = ask(deaf, {"do": "hello"})
    deaf.cancel(ended.number)

    assert slicer_host.app.wait_until(lambda: ended, 10)
    assert [error.kind for error in ended.errors] == ["cancelled"]
    assert slicer_host.app.wait_until(lambda: not deaf.isRunning, 5)


def test_stopping_leaves_no_process_behind(slicer_host, ask, fresh_worker):
    ended = ask(fresh_worker, {"do": "hello"})
    child = psutil.Process(fresh_worker.processId)

    fresh_worker.stop()

    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert not ended  # whoever asked is gone as well
