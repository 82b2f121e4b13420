"""The federation module's tests run in the host, with a real aggregator and a real site process on loopback."""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # on such small arrays threads only wait

REPOSITORY = Path(__file__).parents[3]
if find_spec("slicer_core") is None or find_spec("PySide6") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from SlicerHost.pytest_plugin import slicer_host  # noqa: F401

MODULE_FILE = REPOSITORY / "FederatedClient/FederatedClient.py"
SECONDS = 300


@pytest.fixture
def home(monkeypatch, tmp_path) -> Path:
    """A data folder of the test's own."""
    monkeypatch.setenv("TWINSEG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def module(slicer_host, home):
    """The module's widget, opened as the user would. No process outlives the test."""
    import qt

    qt.QSettings().remove("FederatedClient/Folder")
    widget = slicer_host.open(MODULE_FILE)
    yield widget
    federation = widget.logic.federation
    federation.site.stopAndWait()
    federation.stopAggregator()


@pytest.fixture(scope="session")
def cases(tmp_path_factory) -> Path:
    """A folder of small synthetic patients, labelled."""
    from twinseg.phantom import write_cohort

    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, sites=1, patients=5, size=32, spacing=5.0, seed=3)
    return next(path for path in sorted(folder.iterdir()) if path.is_dir())


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A network of a few thousand random weights."""
    import dataclasses

    from twinfed.client.initial_model import task_of, write_initial_model

    coarse = task_of("brats-glioma", {"spacing": 5.0, "patch": 16})
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    network = {"channels": [4, 8], "embedding": 16, "depth": 1, "heads": 2}
    write_initial_model(path, dataclasses.replace(coarse, strides=coarse.strides[:2]), network, seed=1)
    return path


@pytest.fixture
def until(slicer_host):
    """Runs the window's event loop until something holds."""

    def wait(condition, seconds: float = SECONDS):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not happen in time"
            slicer_host.app.processEvents()
            time.sleep(0.01)  # the process that is waited for has the lowest priority

    return wait


@pytest.fixture
def trial(module, model, cases, until):
    """A local aggregator that was started by the panel; the cases are in a folder, and nothing is agreed to yet."""

    def start(rounds: int = 2, epochs: int = 2):
        ui = module.ui
        ui.modelPathLineEdit.currentPath = str(model)
        ui.roundsSpinBox.value, ui.epochsSpinBox.value = rounds, epochs
        ui.startAggregatorButton.click()
        ui.casesPathLineEdit.currentPath = str(cases)
        ui.deviceComboBox.setCurrentText("cpu")
        until(lambda: module.logic.federation.watch.snapshot.aggregatorAnswers)
        return module

    return start
