"""A federation of three sites over plain arrays, and over phantoms."""

from __future__ import annotations

import os

# Before torch is imported, here and in the processes that tests start: on such small arrays threads only wait.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from twinfed.aggregator.config import FederationConfig
from twinfed.engines.nvflare.exchange import write_text
from twinfed.engines.nvflare.job_federation import JobFederation
from twinfed.wire import ArrayTensors, Report, write_model

if find_spec("slicer_core") is None or find_spec("PySide6") is None:
    collect_ignore_glob = ["test_panel.py"]
else:
    from SlicerHost.pytest_plugin import slicer_host  # noqa: F401

SITES = ("SITE-01", "SITE-02", "SITE-03")
Arrays = dict[str, NDArray[Any]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of two tensors."""
    random = np.random.default_rng(0)
    tensors = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    write_model(tmp_path / "initial.safetensors", ArrayTensors(tensors), {"task": "t", "network": "n"})
    return tmp_path / "initial.safetensors"


@pytest.fixture
def toml(tmp_path: Path, model: Path, request: pytest.FixtureRequest) -> Path:
    """The federation's file that the test's module holds as TOML, beside its model."""
    path = tmp_path / "federation.toml"
    path.write_text(request.module.TOML, encoding="utf-8")
    return path


SHAPES = {"bias": (2,), "weight": (7, 5)}


@pytest.fixture
def config(model: Path) -> Callable[..., FederationConfig]:
    """A federation of three rounds of that model, with changes."""

    def make(strategy: str = "adaptive", **changes: Any) -> FederationConfig:
        values = {"name": "trial", "task": "t", "network": "n", "model": str(model), "rounds": 3, "quorum": 2}
        return FederationConfig.from_dict({**values, "strategy": {"name": strategy}, **changes})

    return make


@pytest.fixture
def begun(config: Callable[..., FederationConfig], tmp_path: Path) -> Callable[..., JobFederation]:
    """A job's federation in which three sites are registered, with 10, 20 and 30 cases."""

    def make(strategy: str = "adaptive", **changes: Any) -> JobFederation:
        federation = JobFederation(tmp_path / "federation", config(strategy, **changes))
        for position, site in enumerate(SITES, start=1):
            federation.register(site, {"samples": 10 * position})
        federation.begin()
        return federation

    return make


@pytest.fixture
def change() -> Callable[[int, str], Arrays]:
    """What a site learnt in a round: small numbers that depend on both."""

    def make(number: int, site: str) -> Arrays:
        random = np.random.default_rng([number, SITES.index(site)])
        return {name: 0.01 * random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}

    return make


@pytest.fixture
def said() -> Callable[..., dict[str, str]]:
    """What a site says of its update, as metadata."""

    def make(job: JobFederation, site: str, form: str = "differences", **changes: Any) -> dict[str, str]:
        told = job.message()["instructions"]
        report = Report(samples=10 * (SITES.index(site) + 1), labels={"ED": 4, "ET": 2}, dice_after=0.7, hd95_after=5.0)
        content = {"form": form, "federation": "trial", "round": told["round"], "base": told["base"]}
        return write_text({**content, "report": report.to_dict(), **changes})

    return make
