"""Workers in real processes, and small images and models for them."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twinseg.model_file import save_model
from twinseg.network import NetworkConfig, build_network
from twinseg.phantom import Scanner, make_patient
from twinseg.tasks import Task

LIBRARY = Path(__file__).resolve().parents[4] / "TwinSegSlicer"
PATIENCE = 120  # seconds; other work on the machine may slow a worker down


class Child:
    """A worker and what it said. Requests get the numbers 1, 2, …"""

    def __init__(self, *command: str, environment: dict[str, str], stdin: int = subprocess.PIPE) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command], env=environment, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.said: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.errors: list[str] = []
        self._number = 0
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._read_errors, daemon=True).start()

    def write(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def ask(self, do: str, **fields: Any) -> int:
        self._number += 1
        self.write(json.dumps({"id": self._number, "do": do, **fields}).encode())
        return self._number

    def hear(self) -> dict[str, Any]:
        """The next message."""
        message = self.said.get(timeout=PATIENCE)
        assert message is not None, "the worker left: " + "".join(self.errors)
        return message

    def until_answered(self, number: int | None) -> list[dict[str, Any]]:
        """All messages up to the one that ends a request."""
        messages = [self.hear()]
        while messages[-1]["id"] != number or messages[-1]["type"] not in ("result", "error"):
            messages.append(self.hear())
        return messages

    def answer(self, do: str, **fields: Any) -> dict[str, Any]:
        return self.until_answered(self.ask(do, **fields))[-1]

    def printed(self, *expected: str) -> bool:
        """Whether all of that comes on stderr, which is read by another thread than the answers."""
        until = time.monotonic() + PATIENCE
        while missing := [one for one in expected if one not in "".join(self.errors)]:
            if time.monotonic() > until:
                break
            time.sleep(0.01)
        return not missing

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.put(json.loads(line))
        self.said.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(line.decode(errors="replace") for line in self.process.stderr)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory, toy: Task) -> dict[str, str]:
    """A home with the task `toy`."""
    home = tmp_path_factory.mktemp("home")
    (home / "tasks").mkdir()
    (home / "tasks" / "toy.toml").write_text(toy.to_toml(), encoding="utf-8")
    path = os.pathsep.join([str(LIBRARY), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "TWINSEG_HOME": str(home)}


@pytest.fixture(scope="session")
def start(environment: dict[str, str]) -> Iterator[Callable[..., Child]]:
    """Start a worker; with `before`, Python that is run in it first. None outlives the tests."""
    children = []

    def start(*options: str, before: str = "", stdin: int = subprocess.PIPE) -> Child:
        script = f"import sys\n{before}\nfrom twinseg.worker import main\nmain()"
        command = ("-c", script) if before else ("-m", "twinseg.worker")
        children.append(Child(*command, *options, environment=environment, stdin=stdin))
        return children[-1]

    yield start
    for child in children:
        child.process.kill()
        child.process.wait()


@pytest.fixture(scope="session")
def worker(start: Callable[..., Child]) -> Child:
    """One that many tests ask: as in use, it goes on whatever it was asked before."""
    return start()


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory, toy: Task) -> Callable[..., Path]:
    """A model file of an untrained network."""

    def make(path: Path | None = None, seed: int = 0) -> Path:
        torch.manual_seed(seed)
        config = NetworkConfig(2, 3, channels=(4, 6), strides=((2, 2, 2),) * 2, embedding=24, depth=1, heads=2)
        path = path or tmp_path_factory.mktemp("modèles") / "toy 1.safetensors"
        tensors = build_network(config).state_dict()
        save_model(path, tensors, task=toy, network=config.to_dict(), provenance={})
        return path

    return make


@pytest.fixture
def wanted(tmp_path: Path, make_model: Callable[..., Path]) -> dict[str, Any]:
    """The fields of a request to segment a phantom by the untrained network, in a folder as people name them."""
    folder = tmp_path / "Ärzte & Söhne 1"
    folder.mkdir()
    patient = make_patient(3, scanner=Scanner.for_site(0, 0), size=32, spacing=5.0)
    images = {}
    for name in ("t1", "flair"):
        np.save(folder / f"{name}.npy", patient.images[name].array)
        # A head of a few cm, as the task wants voxels of 1 mm and a large image would take its time.
        images[name] = {"array": str(folder / f"{name}.npy"), "affine": np.diag([1.0, 1, 1, 1]).tolist()}
    return {
        "task": "toy",
        "model": str(make_model()),
        "device": "cpu",
        "flips": False,
        "images": images,
        "reference": "flair",
        "labels": str(folder / "labels.npy"),
        "uncertainty": str(folder / "uncertainty.npy"),
    }
