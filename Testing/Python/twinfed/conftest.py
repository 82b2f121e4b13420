"""A small federation for the tests: a model of three tensors, sites with tokens, updates of a given seed."""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from twinfed.aggregator.config import FederationConfig
from twinfed.aggregator.intake import Intake
from twinfed.aggregator.rounds import Federation
from twinfed.aggregator.server import Address, configuration
from twinfed.aggregator.store import Store
from twinfed.aggregator.web import make_app
from twinfed.wire import ArrayTensors, Header, Report, TensorFile, hash_file, write_model, write_update

SHAPES = {"decoder.weight": (70_001,), "encoder.bias": (5,), "encoder.weight": (3, 4, 5)}  # the first takes two blocks


@dataclass
class Clock:
    """Seconds since 1970 that pass when a test says so."""

    time: float = 1_000_000_000.0

    def __call__(self) -> float:
        return self.time


@dataclass
class Room:
    """A federation in a folder, and what a test does with it."""

    folder: Path
    clock: Clock = field(default_factory=Clock)
    options: dict[str, Any] = field(default_factory=dict)
    store: Store = field(init=False)
    federation: Federation = field(init=False)
    intake: Intake = field(init=False)

    def __post_init__(self) -> None:
        model = self.folder / "initial.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_model(model, ArrayTensors(arrays(0)), {"task": "a task", "content_hash": "of the initial model"})
        self.config = FederationConfig.from_dict(
            {"name": "trial", "task": "brats-glioma", "network": "small", "model": str(model), **self.options}
        )
        self.open()

    def open(self) -> None:
        """Start, or start again, as a new process would."""
        self.store = Store(self.folder / "aggregator", self.clock)
        self.federation = Federation(self.store, self.config)
        self.intake = Intake(self.federation)

    def join(self, *names: str, samples: int = 10) -> None:
        for name in names:
            self.federation.accounts.add(name)
            self.federation.accounts.register(name, samples)

    def update(
        self, site: str, seed: int, change: dict[str, NDArray[np.float32]] | None = None, /, **options: Any
    ) -> Path:
        """Write the update of a site for the round that is open."""
        current = self.federation.instructions(site)
        facts = {"federation": "trial", "round": current["round"], "site": site, "base": current["base"]}
        report = options.pop("report", Report(samples=10, dice_before=0.5 + seed / 1000))
        facts |= {key: options.pop(key) for key in list(facts) if key in options}
        path = self.folder / f"{site}.{seed}.update"
        write_update(path, change or arrays(seed, 0.01), Header(**facts, report=report), **options)
        return path

    def send(self, site: str, path: Path, number: int | None = None) -> dict[str, Any]:
        """Hand an update to the federation without HTTP; ``path`` is gone afterwards."""
        number = number or self.federation.current()["number"]
        self.intake.check_may_send(site, number, hash_file(path))
        return self.intake.receive(site, number, hash_file(path), path)

    def play(self, rounds: int) -> None:
        """Whole rounds of three sites."""
        for _ in range(rounds):
            number = self.federation.current()["number"]
            for seed, name in enumerate(("s1", "s2", "s3"), start=10 * number):
                self.send(name, self.update(name, seed))
            self.federation.advance()

    def model(self, number: int, cluster: str = "0") -> dict[str, NDArray[np.float32]]:
        """The model that round ``number`` began from."""
        row = self.store.row("SELECT bases FROM rounds WHERE number = ?", number)
        assert row is not None
        return read(self.store.file(json.loads(row["bases"])[cluster]))


@dataclass
class Web:
    """A federation behind its routes."""

    room: Room
    client: TestClient
    tokens: dict[str, str]

    @classmethod
    def of(cls, room: Room, tokens: dict[str, str]) -> Web:
        """Asked from this machine; nothing happens by itself."""
        app = make_app(room.federation)
        here = ("127.0.0.1", 50000)
        return cls(
            room, TestClient(app, base_url="http://127.0.0.1:8600", client=here, raise_server_exceptions=False), tokens
        )

    def restarted(self) -> Web:
        """As after a new start of the process."""
        self.room.open()
        return Web.of(self.room, self.tokens)

    def headers(self, site: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[site]}"}

    def wait(self, number: int) -> None:
        """Until round ``number`` is open: aggregation goes on behind the answers."""
        until = time.monotonic() + 20
        while self.room.federation.current()["number"] < number and time.monotonic() < until:
            self.room.federation.advance()
            time.sleep(0.01)
        assert self.room.federation.current()["number"] == number

    def get(self, address: str, site: str = "s1", **headers: str) -> httpx.Response:
        return self.client.get(address, headers={**self.headers(site), **headers})

    def put(
        self,
        site: str,
        content: bytes,
        digest: str,
        number: int = 1,
        offset: int = 0,
        length: int | None = None,
        **more: str,
    ) -> httpx.Response:
        headers = {
            **self.headers(site),
            "Upload-Offset": str(offset),
            "Upload-Length": str(len(content) if length is None else length),
            "Upload-Checksum": f"{zlib.crc32(content):08x}",
            **more,
        }
        return self.client.put(f"/api/v1/rounds/{number}/update/{digest}", content=content, headers=headers)

    def send(self, site: str, path: Path, number: int = 1) -> httpx.Response:
        return self.put(site, path.read_bytes(), hash_file(path), number)

    @staticmethod
    def refused(answer: httpx.Response) -> str:
        """The code of a refusal, which has a reason and a remedy."""
        content = answer.json()
        assert content.keys() == {"code", "reason", "remedy"}, content
        assert all(content.values())
        assert 400 <= answer.status_code < 500 or answer.status_code == 507
        return str(content["code"])


def arrays(seed: int, scale: float = 1.0) -> dict[str, NDArray[np.float32]]:
    """Tensors of the test model's shapes, normally distributed."""
    random = np.random.default_rng(seed)
    return {name: (scale * random.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}


def read(path: Path) -> dict[str, NDArray[np.float32]]:
    """A model file's tensors, by the format's own library: what we write, everybody can read."""
    from safetensors.numpy import load_file

    assert TensorFile(path).shapes == SHAPES
    return load_file(path)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Callable[..., Room]]:
    """Make a federation: ``room(rounds=2, strategy={...})``, sites s1, s2, s3."""
    made: list[Room] = []

    def make(*, sites: tuple[str, ...] = ("s1", "s2", "s3"), samples: int = 10, **options: Any) -> Room:
        made.append(Room(tmp_path / f"room{len(made)}", options={"quorum": 3, **options}))
        made[-1].join(*sites, samples=samples)
        return made[-1]

    yield make
    for one in made:
        one.store.close()


@pytest.fixture
def tensors() -> Callable[..., dict[str, NDArray[np.float32]]]:
    """Tensors of the test model's shapes: ``tensors(seed, scale)``."""
    return arrays


@pytest.fixture
def web(room: Callable[..., Room]) -> Iterator[Callable[..., Web]]:
    """Make a federation behind its routes: ``web(rounds=2)``, asked from this machine."""
    with ExitStack() as stack:

        def make(**options: Any) -> Web:
            one = room(sites=(), **options)
            tokens = {name: one.federation.accounts.add(name) for name in ("s1", "s2", "s3")}
            for name in tokens:
                one.federation.accounts.register(name, 10)
            made = Web.of(one, tokens)
            stack.enter_context(made.client)
            return made

        yield make


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    """Let a federation listen on a free port of this machine, which is returned: ``serve(web(), certificate=...)``."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def listen(one: Web, **options: Any) -> int:
        server = uvicorn.Server(configuration(one.client.app, Address(port=0, **options)))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        until = time.monotonic() + 60
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        return int(server.servers[0].sockets[0].getsockname()[1])

    yield listen
    for server, thread in running:
        server.should_exit = True
        thread.join()
