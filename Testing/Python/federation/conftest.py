"""Three small synthetic hospitals, an aggregator for them, and a line between that can be cut and listened to."""

from __future__ import annotations

import os

# Before torch is imported, here and in the processes that tests start: on such small arrays threads only wait.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import contextlib
import queue
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray

from twinfed.aggregator.config import FederationConfig
from twinfed.aggregator.rounds import Federation
from twinfed.aggregator.server import Address, configuration
from twinfed.aggregator.store import Store
from twinfed.aggregator.web import make_app
from twinfed.client.case_source import CaseSource
from twinfed.client.connection import Server
from twinfed.client.controls import give_consent
from twinfed.client.initial_model import task_of, write_initial_model
from twinfed.client.site_loop import SiteLoop
from twinfed.client.site_settings import SiteSettings
from twinseg.case_queue import CaseQueue
from twinseg.cases import find_cases
from twinseg.phantom import write_cohort
from twinseg.tasks import Task, load_task
from twinseg.volumes import read_image, read_labels

NETWORK = {"channels": [4, 8], "embedding": 16, "depth": 1, "heads": 2}
SITES = ("SITE-01", "SITE-02", "SITE-03")
RATE = 3e-3
LIBRARIES = [str(Path(__file__).parents[3] / room) for room in ("TwinSegSlicer", "FederatedClient")]
PACKET = 1448  # bytes of a TCP packet on an Ethernet
COMMAND = [sys.executable, "-m", "twinfed.cli"]


@pytest.fixture(scope="session")
def task() -> Task:
    """The glioma task on a coarse grid, with two levels of strides."""
    import dataclasses

    coarse = task_of("brats-glioma", {"spacing": 5.0, "patch": 16})
    return dataclasses.replace(coarse, strides=coarse.strides[:2])


@pytest.fixture(scope="session")
def original_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, sites=3, patients=5, size=32, spacing=5.0, seed=3)
    return folder


@pytest.fixture
def cohort(original_cohort: Path, tmp_path: Path) -> Path:
    """Folders of cases by site, of which a test may do what it likes."""
    return Path(shutil.copytree(original_cohort, tmp_path / "cohort"))


@pytest.fixture
def fill(cohort: Path) -> Callable[[Path, str], list[str]]:
    """Put a site's cases into a queue; the names of those to train on."""

    def put(folder: Path, site: str) -> list[str]:
        task, queue = load_task("brats-glioma"), CaseQueue(folder)
        (folder.parent / "pseudonyms.key").write_text("03" * 32)  # a key that leaves three of five patients in training
        for case in find_cases(cohort / site, task, require_labels=True):
            assert case.labels is not None
            images = {name: read_image(path) for name, path in case.images.items()}
            queue.add(task=task, patient=case.patient, images=images, labels=read_labels(case.labels), allow_empty=True)
        return [case.name for case in queue.cases_for_training(task.name, "train")]

    return put


@pytest.fixture(scope="session")
def initial_model(tmp_path_factory: pytest.TempPathFactory, task: Task) -> Path:
    path = tmp_path_factory.mktemp("model") / "initial.safetensors"
    write_initial_model(path, task, NETWORK, seed=1)
    return path


def read_model(path: Path) -> dict[str, NDArray[np.float32]]:
    from safetensors.numpy import load_file

    return load_file(path)


@pytest.fixture
def read() -> Callable[[Path], dict[str, NDArray[np.float32]]]:
    return read_model


def wait_until(what: Callable[[], Any], seconds: float = 240.0) -> Any:
    """What `what` gives as soon as that is true."""
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)
    return found


@pytest.fixture
def until() -> Callable[..., Any]:
    return wait_until


@dataclass
class Aggregator:
    """An aggregator in this process, which answers at `url`."""

    store: Store
    federation: Federation
    url: str
    tokens: dict[str, str]
    server: uvicorn.Server

    def accepted(self, number: int | None = None) -> list[str]:
        """The sites whose updates were taken, in a round or in all."""
        rows = self.store.rows("SELECT site FROM updates WHERE state = 'accepted' AND round = ifnull(?, round)", number)
        return sorted(row["site"] for row in rows)

    @property
    def round(self) -> int:
        return int(self.federation.current()["number"])

    @property
    def finished(self) -> bool:
        return bool(self.federation.current()["state"] == "published")

    def final_model(self) -> Path:
        assert self.finished
        return self.store.file(self.federation.instructions(SITES[0])["base"])


@pytest.fixture
def aggregator(tmp_path: Path, initial_model: Path) -> Iterator[Callable[..., Aggregator]]:
    """Start an aggregator: ``aggregator(rounds=2, sites=(...), strategy={...})``."""
    with contextlib.ExitStack() as stack:

        def make(sites: tuple[str, ...] = SITES, model: Path = initial_model, **options: Any) -> Aggregator:
            facts = {"name": "trial", "task": "brats-glioma", "network": "tiny", "model": str(model), "rounds": 2}
            facts |= {"quorum": len(sites), "limits": {"free_mb": 1}, **options}
            store = Store(tmp_path / f"aggregator-{random.random()}")
            federation = Federation(store, FederationConfig.from_dict(facts))
            tokens = {name: federation.accounts.add(name) for name in sites}
            made = Aggregator(store, federation, "", tokens, uvicorn.Server(uvicorn.Config("")))
            return start_server(made, stack, free_port())

        yield make


def start_server(made: Aggregator, stack: contextlib.ExitStack, port: int) -> Aggregator:
    made.server = uvicorn.Server(configuration(make_app(made.federation), Address(host="127.0.0.1", port=port)))
    thread = threading.Thread(target=made.server.run, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{port}"

    def end() -> None:
        made.server.should_exit = True
        thread.join(20)

    stack.callback(end)
    wait_until(lambda: made.server.started)
    return made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def port() -> int:
    """A port where nobody listens."""
    return free_port()


@dataclass
class Site:
    """A site that takes part in a thread of this process."""

    loop: SiteLoop
    stop: threading.Event
    thread: threading.Thread
    folder: Path

    def end(self) -> None:
        self.stop.set()
        self.thread.join(60)
        assert not self.thread.is_alive()

    def facts(self) -> dict[str, Any]:
        from twinfed.client.site_state import read_state

        return read_state(self.folder)

    def lines(self) -> list[str]:
        return [row["text"] for row in self.facts()["lines"]]


@pytest.fixture
def join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Site]]:
    """Let a site take part: ``join(url, token, name, cases)``; other settings by name."""
    monkeypatch.setattr("twinfed.client.site_loop.LATEST", 2.0)
    monkeypatch.setattr("twinfed.client.site_loop.LATEST_REFUSED", 2.0)
    started: list[Site] = []

    def make(url: str, token: str, name: str, cases: Path | None = None, **options: Any) -> Site:
        folder = tmp_path / "folders" / name
        give_consent(folder, url, "a test", share_local_model=options.pop("shares", False))
        source = options.pop("source", None) or CaseSource(folder=cases)
        given = {"device": "cpu", "longest_poll": 0.1, "learning_rate": RATE, "data_folder": tmp_path / "home"}
        settings = SiteSettings(server=Server(url, token), folder=folder, source=source, **{**given, **options})
        stop, ready = threading.Event(), threading.Event()
        loops: list[SiteLoop] = []

        def run() -> None:
            loops.append(SiteLoop(settings, stop))
            ready.set()
            loops[0].run()
            loops[0].state.close()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        assert ready.wait(60)
        started.append(Site(loops[0], stop, thread, folder))
        return started[-1]

    yield make
    for site in started:
        site.end()


class Shape:
    """A slow line, each way by itself: `rate` bytes a second, `delay` seconds late, and a share `loss` of the packets
    lost, each of which holds up all that follows by a round trip, as TCP sends it again."""

    def __init__(self, rate: float, delay: float, loss: float, seed: int = 0) -> None:
        self.rate, self.delay, self.loss = rate, delay, loss
        self._chance, self._lock, self._free = random.Random(seed), threading.Lock(), {True: 0.0, False: 0.0}

    def through(self, count: int, up: bool) -> float:
        """When a packet that comes now has left the near end; packets of all connections stand in one queue."""
        with self._lock:
            held_up = 2 * self.delay if self._chance.random() < self.loss else 0.0
            self._free[up] = max(time.monotonic(), self._free[up]) + count / self.rate + held_up
            return self._free[up]


@dataclass
class Proxy:
    """A TCP line to a port of this machine. What the sites send is recorded; `fault` may break what passes.

    fault: called with each piece and whether it goes up; gives the piece to pass on, or None to cut the connection.
    shape: of a slow line.
    """

    target: int
    port: int = 0
    fault: Callable[[bytes, bool], bytes | None] = lambda piece, up: piece
    shape: Shape | None = None
    down: bool = False
    sent: bytearray = field(default_factory=bytearray)
    connections: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Cut all connections, as a cable that is pulled."""
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.down = True
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                if self.down:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self.target), timeout=60)
            except OSError:
                if self._listener.fileno() < 0:
                    return
                with contextlib.suppress(OSError, UnboundLocalError):
                    client.close()
                continue
            self.connections += 1
            self._open |= {client, server}
            carry = self._pass_on if self.shape is None else self._pass_on_slowly
            for source, sink, up in ((client, server, True), (server, client, False)):
                threading.Thread(target=carry, args=(source, sink, up), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(16384):
                if up:
                    self.sent += piece
                changed = None if self.down else self.fault(piece, up)
                if changed is None:
                    break
                sink.sendall(changed)
        self._hang_up(source, sink)

    def _pass_on_slowly(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        assert self.shape is not None
        under_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        threading.Thread(target=self._arrive, args=(under_way, source, sink), daemon=True).start()
        with contextlib.suppress(OSError):
            while packet := source.recv(PACKET):
                through = self.shape.through(len(packet), up)
                under_way.put((through + self.shape.delay, packet))
                time.sleep(max(0.0, through - time.monotonic()))  # no more is taken than the line carries
        under_way.put((0.0, b""))

    def _arrive(
        self, under_way: queue.SimpleQueue[tuple[float, bytes]], source: socket.socket, sink: socket.socket
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, packet = under_way.get()
                if not packet:
                    break
                time.sleep(max(0.0, due - time.monotonic()))
                sink.sendall(packet)
        self._hang_up(source, sink)

    def _hang_up(self, *sockets: socket.socket) -> None:
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
            self._open.discard(one)


@pytest.fixture
def proxy() -> Iterator[Callable[..., Proxy]]:
    """Lay a line to an aggregator: ``proxy(url, fault=...)``, or a slow one, ``shape=(rate, delay, loss)``."""
    laid: list[Proxy] = []

    def make(url: str, shape: tuple[float, float, float] | None = None, **options: Any) -> Proxy:
        laid.append(Proxy(int(url.rpartition(":")[2]), shape=Shape(*shape) if shape else None, **options))
        return laid[-1]

    yield make
    for one in laid:
        one.close()


@pytest.fixture
def twinfed(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the command as a process of its own: ``twinfed("join", url, ..., log=PATH)``. None outlives its test."""
    started: list[subprocess.Popen[bytes]] = []
    path = os.pathsep.join([*LIBRARIES, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "TWINSEG_HOME": str(tmp_path / "home")}

    def start(*words: str | Path, log: Path) -> subprocess.Popen[bytes]:
        with open(log, "ab") as file:
            process = subprocess.Popen([*COMMAND, *map(str, words)], env=environment, stdout=file, stderr=file)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
