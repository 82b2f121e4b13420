"""The worker: a child process that keeps models warm and computes for a program that must not stand still.

    python -m twinseg.worker [--parent PID]

Requests come on stdin and messages go to stdout, one JSON object a line, UTF-8. What libraries print goes to stderr.
Volumes cross as .npy files. A request is ``{"id": 1, "do": "segment", …}``; `twinseg.worker_requests` says what can be
done and what each needs, `twinseg.worker_twin_requests` for patients' twins. Requests are done one after the other. Two
are heard at once, whatever is being computed:

- ``{"id": 2, "do": "cancel", "target": 1}``: request 1 ends with an error of the kind "cancelled" within a second.
  Answered by ``{"found": true}``, or false where no such request is under way (it may just have ended).
- ``{"id": 3, "do": "quit"}``: what is under way ends as cancelled, and the worker leaves.

Each request is answered by any number of ``{"id", "type": "progress", "done": 0 to 1, "stage": words}`` and ``{"id",
"type": "notice", "message"}``, and exactly one ``{"id", "type": "result", "value": {…}}`` or ``{"id", "type": "error",
"kind", "message"}``; kind is "input" (the request, its images, or a package that is not installed), "cancelled",
"memory" (or disk space) or "fault" (a defect; its traceback is on stderr). A line that is no request is answered by an
error of the kind "input". The worker leaves when stdin ends, or when its parent (and the process PID, where a launcher
stands between) is gone.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, NoReturn, TypeGuard

import psutil

from twinseg.errors import Cancelled, InputError, OutOfSpaceError
from twinseg.home import data_folder
from twinseg.memory import keep_freed_memory

logger = logging.getLogger(__name__)

ANSWER_AFTER = 0.6
"""Seconds after which a cancelled request is answered though its computation has not come to a stop yet."""
LONGEST_LINE = 2**20
OWN = ("", "twinseg")  # modules that nobody but a defect makes missing
Id = int | str


class Request:
    """A request under way, as those who do it see it: they tell how far they are and learn that it was cancelled."""

    def __init__(self, worker: Worker, fields: dict[str, Any]) -> None:
        self.fields = fields
        self.id: Id = fields["id"]
        self.cancelled = False
        self.published = False
        self._worker = worker

    def check(self) -> None:
        """Raise Cancelled where nobody waits for the result any longer."""
        if self.cancelled:
            raise Cancelled("cancelled; nothing was changed")

    def progress(self, done: float, stage: str) -> None:
        """Tell the share that is done (0 to 1) and the stage in words. Raises Cancelled."""
        self.check()
        self._worker.send(self, {"type": "progress", "done": round(done, 4), "stage": stage})

    def notice(self, message: str) -> None:
        """Tell what the user should know although the work goes on."""
        self._worker.send(self, {"type": "notice", "message": one_line(message)})

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Put results where they are wanted; from then on it is too late to cancel. Raises Cancelled if it was done
        before, so that the files of a cancelled request never appear."""
        with self._worker.lock:
            self.check()
            yield
            self.published = True


class Worker:
    """Reads requests in a thread of its own, does them in the thread that calls `run`, and writes messages."""

    def __init__(self, requests: BinaryIO, messages: BinaryIO) -> None:
        self.lock = threading.RLock()  # of the messages, the requests under way and the results' files
        self._requests, self._messages = requests, messages
        self._under_way: dict[Id, Request] = {}
        self._queue: queue.SimpleQueue[Request] = queue.SimpleQueue()

    def run(self) -> NoReturn:
        """Do requests until the process ends."""
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            self._do(self._queue.get())

    def send(self, request: Request, message: dict[str, Any]) -> None:
        """Write a message that belongs to a request, unless that has been answered."""
        with self.lock:
            if self._under_way.get(request.id) is request:
                self._write({"id": request.id, **message})

    def leave(self) -> NoReturn:
        """Answer what is under way as cancelled and end the process, but not while files are being put in place."""
        with self.lock:
            for request in list(self._under_way.values()):
                self._end(request, error_message(Cancelled("cancelled: the worker leaves")))
            # At once: the other threads wait or compute, and to take torch down takes longer than it is worth.
            os._exit(0)

    def _read(self) -> None:
        """Hear requests until stdin ends."""
        for line in lines(self._requests):
            try:
                fields = parse_request(line)
                if fields["do"] == "quit":
                    self._write({"id": fields["id"], "type": "result", "value": {}})
                    break
                if fields["do"] == "cancel":
                    found = self._cancel(fields.get("target"))
                    self._write({"id": fields["id"], "type": "result", "value": {"found": found}})
                else:
                    self._accept(Request(self, fields))
            except InputError as error:
                self._write({"id": id_of(line), **error_message(error)})
        self.leave()

    def _accept(self, request: Request) -> None:
        with self.lock:
            if request.id in self._under_way:
                # Under that id the answer would end the other request.
                fault = InputError(f"id {request.id!r}: a request of this id is under way; use a new id for each")
                self._write({"id": None, **error_message(fault)})
                return
            self._under_way[request.id] = request
        self._queue.put(request)

    def _cancel(self, target: object) -> bool:
        """Let a request stop at its next look; it is answered then, or after `ANSWER_AFTER` seconds."""
        with self.lock:
            request = self._under_way.get(target) if is_id(target) else None
            if request is None or request.published:
                return False
            request.cancelled = True
        timer = threading.Timer(ANSWER_AFTER, self._end, (request, error_message(Cancelled("cancelled"))))
        timer.daemon = True
        timer.start()
        return True

    def _do(self, request: Request) -> None:
        notices = Notices(request)
        logging.getLogger("twinseg").addHandler(notices)
        try:
            request.check()
            from twinseg.worker_requests import REQUESTS  # torch with it: seconds, in which requests are heard already

            if (do := REQUESTS.get(request.fields["do"])) is None:
                raise InputError(f"{request.fields['do']}: unknown; it can do {', '.join(REQUESTS)}, cancel and quit")
            with marked_busy():
                message = {"type": "result", "value": do(request)}
        except Exception as error:
            message = error_message(error)
        finally:
            logging.getLogger("twinseg").removeHandler(notices)
        self._end(request, message)

    def _end(self, request: Request, message: dict[str, Any]) -> None:
        with self.lock:
            self.send(request, message)
            if self._under_way.get(request.id) is request:
                del self._under_way[request.id]

    def _write(self, message: dict[str, Any]) -> None:
        """Write a line: in ASCII, as a path may hold bytes that are no UTF-8."""
        with self.lock:
            try:
                self._messages.write(json.dumps(message).encode() + b"\n")
                self._messages.flush()
            except OSError:  # nobody reads any longer
                os._exit(0)


@contextmanager
def marked_busy() -> Iterator[None]:
    """While it computes, the process has a file in the data folder, so that a federation's site stands still."""
    mark = data_folder() / "busy" / str(os.getpid())
    with suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    try:
        yield
    finally:
        with suppress(OSError):
            mark.unlink(missing_ok=True)


class Notices(logging.Handler):
    """Passes on what the library warns of, such as a smaller way that was taken, to who made the request."""

    def __init__(self, request: Request) -> None:
        super().__init__(logging.WARNING)
        self.request = request

    def emit(self, record: logging.LogRecord) -> None:
        self.request.notice(record.getMessage())


def lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a stream, blank ones left out; of one that is far too long, the beginning."""
    while line := stream.readline(LONGEST_LINE):
        rest = line
        while not rest.endswith(b"\n") and rest:
            rest = stream.readline(LONGEST_LINE)
        if line.strip():
            yield line


def parse_request(line: bytes) -> dict[str, Any]:
    """The fields of a request, with an id and something to do. Raises InputError."""
    try:
        fields = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"this line is no JSON ({one_line(str(error))}); write one object a line") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("do"), str):
        raise InputError('this line does not say what to do; write {"id": 1, "do": "hello"} or the like')
    if not is_id(fields.get("id")):
        raise InputError(f"{fields['do']}: the field 'id' is missing; use a new number for each request")
    return fields


def id_of(line: bytes) -> Id | None:
    """The id of a line that is no request, where it has one."""
    try:
        fields = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    found = fields.get("id") if isinstance(fields, dict) else None
    return found if is_id(found) else None


def is_id(value: object) -> TypeGuard[Id]:
    return isinstance(value, Id) and not isinstance(value, bool)


def error_message(error: Exception) -> dict[str, Any]:
    """An exception as the message that ends a request; a defect is logged whole."""
    text = one_line(str(error))
    if isinstance(error, Cancelled):
        kind = "cancelled"
    elif isinstance(error, OutOfSpaceError):
        kind = "memory"
    elif isinstance(error, MemoryError):
        kind, text = "memory", "not enough memory: close other programs, or use a machine with more"
    elif isinstance(error, InputError):
        kind = "input"
    elif isinstance(error, ModuleNotFoundError) and (package := (error.name or "").split(".")[0]) not in OWN:
        kind = "input"
        text = f"the Python package {package} is not installed: in Slicer, install it at the top of the module's panel"
        text += f" (elsewhere: pip install {package}), then try again"
    else:
        kind, text = "fault", f"{type(error).__name__}: {text}"
        logger.error("a request failed", exc_info=error)
    return {"type": "error", "kind": kind, "message": text}


def one_line(text: str) -> str:
    return " ".join(text.split())


def private_streams() -> tuple[BinaryIO, BinaryIO]:
    """Stdin and stdout for the protocol alone: what else is printed, by C code too, goes to stderr."""
    requests, messages = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # a program with windows and no console, on Windows, may have no stderr to pass on
        os.dup2(nothing, 1)
    sys.stdout = sys.stderr
    return requests, messages


def leave_with(processes: set[int], worker: Worker) -> NoReturn:
    """Wait until one of the processes is gone, then leave."""
    parent = os.getppid()
    with suppress(psutil.NoSuchProcess):
        watched = [psutil.Process(number) for number in processes]
        # A parent that is gone is replaced by another on Linux and macOS, and on Windows it does not run any longer.
        while os.getppid() == parent and all(runs(process) for process in watched):
            time.sleep(0.5)
    worker.leave()


def runs(process: psutil.Process) -> bool:
    """Whether a process is there and more than an entry that its parent has not read yet."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True


def main() -> NoReturn:
    """Entry point: streams first, before anything can print."""
    streams = private_streams()
    parser = argparse.ArgumentParser(prog="python -m twinseg.worker", description="Computes for another program.")
    parser.add_argument("--parent", type=int, action="append", default=[], help="Leave when this process is gone, too.")
    parents = {*parser.parse_args().parent, os.getppid()} - {0}  # 0: the parent is outside of a container
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    keep_freed_memory()
    worker = Worker(*streams)
    threading.Thread(target=leave_with, args=(parents, worker), daemon=True).start()
    try:
        worker.run()
    except KeyboardInterrupt:
        worker.leave()


if __name__ == "__main__":
    main()
