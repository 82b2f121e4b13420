"""The module's tests run in the host. Without slicer-core or PySide6 they are skipped."""

from __future__ import annotations

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from twinseg.phantom import Scanner, make_patient
from twinseg.tasks import load_task
from twinseg.twin.store import Twin
from twinseg.twin.timeline import add_scan

if find_spec("slicer_core") is None or find_spec("PySide6") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from SlicerHost.pytest_plugin import slicer_host  # noqa: F401

MODULE_FILE = Path(__file__).parents[3] / "TwinSegSlicer/TwinSegSlicer.py"
SECONDS = 240
BRATS_CASE = Path(__file__).parents[4] / "shared/data/brats-gli/BraTS-GLI-00000-000"


@pytest.fixture
def own_home(monkeypatch, tmp_path) -> Path:
    """A data folder of the test's own."""
    monkeypatch.setenv("TWINSEG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def module_widget(slicer_host, own_home):
    """The module, loaded and opened as the user would."""
    return slicer_host.open(MODULE_FILE)


@pytest.fixture(scope="session")
def shared_worker():
    """Holds one worker for all tests of the session, as importing torch is what takes long."""
    holder: list[Any] = []
    yield holder
    for worker in holder:
        worker.stop()


@pytest.fixture
def worker(slicer_host, shared_worker):
    """A worker process; a test may end it, the next one finds it started again. One whose class was loaded anew since,
    by a test of the module's reload, would raise errors that nobody knows any more: it is replaced."""
    from TwinSegSlicerLib.Worker import WorkerProcess

    if not shared_worker or type(shared_worker[-1]) is not WorkerProcess:
        for old in shared_worker:
            old.stop()
        shared_worker.append(WorkerProcess())
    return shared_worker[-1]


@pytest.fixture
def add_volume(slicer_host):
    """Adds a volume node of an array (K, J, I) with an index-to-RAS matrix."""
    import slicer

    def add(array: np.ndarray, matrix: np.ndarray | None = None, name: str = "flair") -> Any:
        node = slicer.util.addVolumeFromArray(np.ascontiguousarray(array), name=name)
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(np.eye(4) if matrix is None else matrix))
        return node

    return add


@pytest.fixture(scope="session")
def patient():
    """A small synthetic patient."""
    return make_patient(3, scanner=Scanner.for_site(0), size=(80, 96, 80), spacing=2.0, kind="ring")


@pytest.fixture
def phantom(patient, add_volume):
    """The patient's volume node by sequence, in the scene."""
    return {name: add_volume(image.array.T, image.affine, f"P1_{name}") for name, image in patient.images.items()}


@pytest.fixture
def parameters():
    """What the parameter node offers, by itself."""
    return SimpleNamespace(
        task="brats-glioma", model="", device="cpu", flips=False, uncertainty=True, reference="", replace=False
    )


@pytest.fixture
def add_result(add_volume):
    """Adds a volume and a segmentation of it, as a model might have drawn it: oedema around a core that enhances."""

    def add(name: str = "P1_flair", matrix: np.ndarray | None = None, uncertainty: float = 0.5, **options: Any) -> Any:
        from TwinSegSlicerLib.SegmentationResult import addToScene
        from TwinSegSlicerLib.VolumeBridge import nodeImage

        rng = np.random.default_rng(1)
        node = options.pop("volume", None) or add_volume(rng.normal(100, 9, (16, 20, 24)).astype("f4"), matrix, name)
        labels = np.zeros((24, 20, 16), np.uint8)
        labels[4:14, 5:15, 3:12] = 2
        labels[6:12, 7:13, 5:10] = 3
        labels[8:10, 9:11, 6:8] = 1
        labels = options.pop("labels", labels)
        prepared = prepared_result(labels, np.full(labels.shape, uncertainty, np.float32))
        task = load_task("brats-glioma")
        return addToScene(prepared, {"flair": node}, "flair", nodeImage(node), task, MADE, **options)

    return add


@pytest.fixture(scope="session")
def patients():
    """Two synthetic patients at two dates."""
    scanner = Scanner.for_site(0)
    return [make_patient((5, n), scanner=scanner, size=48, spacing=4.0, visits=2, kind="ring") for n in range(2)]


@pytest.fixture
def panel(slicer_host, module_widget, worker):
    """The tab of the twin, opened; with the worker of all tests, as importing torch is what takes long."""
    module_widget.ui.tabWidget.setCurrentIndex(1)
    module_widget.twinPanel.session._worker = worker
    return module_widget.twinPanel


@pytest.fixture
def wait(slicer_host, panel):
    """Waits until the present step is done; then no error was told."""

    def until_done():
        assert slicer_host.app.wait_until(lambda: not panel.session.isBusy, SECONDS)

    return until_done


@pytest.fixture
def select(slicer_host, module_widget, add_volume, add_result):
    """Puts a visit's FLAIR and a segmentation of it into the scene, and selects it as the user would."""

    def select_visit(visit, name="P1_flair"):
        flair = visit.images["flair"]
        node = add_result(volume=add_volume(flair.array.T, flair.affine, name), labels=visit.labels.array)
        module_widget.ui.segmentationSelector.setCurrentNode(node)
        slicer_host.process_events()
        return node

    return select_visit


@pytest.fixture(scope="session")
def two_scans(tmp_path_factory, patients) -> Path:
    """The folder of a twin of the first patient, with both visits, for tests to copy."""
    folder = tmp_path_factory.mktemp("twins") / "P-7"
    twin = Twin.create(folder, task="brats-glioma", pseudonym="P-7")
    for visit in patients[0].visits:
        add_scan(twin, visit.day, {"flair": visit.images["flair"]}, labels=visit.labels, origin="expert")
    return folder


@pytest.fixture(scope="session")
def grown():
    """A synthetic patient at three dates."""
    return make_patient((5, 0), scanner=Scanner.for_site(0), size=48, spacing=4.0, visits=3, kind="ring")


@pytest.fixture(scope="session")
def three_scans(tmp_path_factory, grown) -> Path:
    folder = tmp_path_factory.mktemp("twins") / "P-7"
    twin = Twin.create(folder, task="brats-glioma", pseudonym="P-7")
    for visit in grown.visits:
        add_scan(twin, visit.day, {"t1ce": visit.images["t1ce"]}, labels=visit.labels, origin="model")
    return folder


@pytest.fixture
def open_twin(panel, wait, own_home, two_scans):
    """A twin with two scans in the data folder, opened in the panel."""
    folder = shutil.copytree(two_scans, own_home / "twins/P-7")
    panel.listTwins()
    panel.ui.twinComboBox.setCurrentIndex(panel.ui.twinComboBox.findText("P-7"))
    wait()
    return folder


MADE = {
    "model": "0123456789abcdef",
    "model_title": "a model",
    "computed": "cpu, whole volume",
    "seconds": 3.21,
    "missing": ["t1", "t2"],
    "volumes_ml": {
        "WT": {"volume": 0.9, "low": 0.8, "high": 1.04, "level": 0.9},
        "TC": {"volume": 0.18, "low": 0.1, "high": 0.2, "level": 0.9},
        "ET": {"volume": 0.172, "low": 0.1, "high": 0.2, "level": 0.9},
    },
    "version": "0.1.0",
    "time": "2026-11-21T16:14:52+00:00",
}


def prepared_result(labels: np.ndarray, uncertainty: np.ndarray | None) -> Any:
    """Label map and uncertainty (I, J, K) by way of files, as they come from the worker."""
    from TwinSegSlicerLib.SegmentationResult import prepareResult

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "labels.npy", Path(folder) / "uncertainty.npy"]
        for file, array in zip(files, (labels, uncertainty), strict=True):
            if array is not None:
                np.save(file, array)
        return prepareResult(files[0], files[1] if uncertainty is not None else None, load_task("brats-glioma"))
