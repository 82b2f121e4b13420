"""The module's self-test: a local aggregator, a real site process on synthetic patients, two rounds and a twin."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import qt
import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleTest

from TwinSegSlicerLib.Heartbeat import Heartbeat
from TwinSegSlicerLib.Packages import missingPackages

TIMEOUT_SECONDS = 300
ROUNDS, EPOCHS = 2, 20
RESOURCES = Path(__file__).resolve().parents[1] / "Resources"
LONGEST_PAUSE = 0.05  # seconds


class SelfTest(ScriptedLoadableModuleTest):
    """`makeLogic` is the module's logic class. What needs packages is imported when it runs."""

    makeLogic: ClassVar[Any] = None

    def runTest(self) -> None:
        """The one test: Slicer's unit tests call this method only where no other one's name begins with "test"."""
        missing = [package for file in RESOURCES.glob("*-requirements.txt") for package in missingPackages(file)]
        if missing:  # a test installs nothing: a build machine has no PyTorch
            self.delayDisplay(f"Left out: install {', '.join(package.name for package in missing)} first")
            return
        slicer.mrmlScene.Clear()
        with (
            tempfile.TemporaryDirectory(prefix="FederatedClient-test-", ignore_cleanup_errors=True) as home,
            mock.patch.dict("os.environ", {"TWINSEG_HOME": home}),
        ):
            from .JoinSettings import FOLDER_SETTING

            before = qt.QSettings().value(FOLDER_SETTING)
            qt.QSettings().remove(FOLDER_SETTING)
            self.logic = type(self).makeLogic()
            try:
                self._takePart(Path(home))
            finally:
                self.logic.stop()
                if before is not None:
                    qt.QSettings().setValue(FOLDER_SETTING, before)

    def _takePart(self, home: Path) -> None:
        from . import DicePlot

        self.delayDisplay("Making synthetic patients and a small network")
        cases, model = makePhantoms(home / "phantoms"), makeModel(home / "first.safetensors")
        federation = self.logic.federation

        self.delayDisplay("Starting an aggregator and agreeing")
        federation.startAggregator(model, ROUNDS, EPOCHS)
        federation.setSettings(replace(federation.settings, cases=str(cases), device="cpu"))
        self.assertIn("agree", federation.whyNotStart())
        federation.agree()
        self.assertEqual(federation.whyNotStart(), "")

        self.delayDisplay("Taking part")
        heartbeat = Heartbeat(lambda: federation.watch.snapshot.phase == "training")
        federation.start()
        self._wait(lambda: federation.watch.snapshot.phase == "finished")
        snapshot = federation.watch.snapshot
        heartbeat.stop()
        self.assertTrue(heartbeat.watched)
        self.assertLess(heartbeat.longestButOne, LONGEST_PAUSE)
        self.assertEqual([row["phase"] for row in snapshot.rounds], ["sent"] * ROUNDS)
        self.assertIsNotNone(snapshot.offer)
        self.assertGreater(snapshot.sent, 0)
        DicePlot.show(DicePlot.update(snapshot))
        self._wait(lambda: not federation.watch.snapshot.isRunning)
        self.delayDisplay("Test passed")

    def _wait(self, condition: Callable[[], bool]) -> None:
        limit = time.monotonic() + TIMEOUT_SECONDS
        while not condition():
            self.assertLess(time.monotonic(), limit, str(self.logic.federation.watch.snapshot))
            slicer.app.processEvents()
            time.sleep(0.01)  # the process that is waited for has the lowest priority


def makePhantoms(folder: Path) -> Path:
    """A folder of small synthetic patients, labelled."""
    from twinseg.phantom import write_cohort

    write_cohort(folder, sites=1, patients=5, size=32, spacing=5.0, seed=3)
    return next(path for path in sorted(folder.iterdir()) if path.is_dir())


def makeModel(path: Path, channels: Sequence[int] = (4, 8), patch: int = 16) -> Path:
    """A small network of random weights, for glioma on a coarse grid."""
    from twinfed.client.initial_model import task_of, write_initial_model

    coarse = task_of("brats-glioma", {"spacing": 5.0, "patch": patch})
    network = {"channels": list(channels), "embedding": 3 * channels[-1] // 2, "depth": 1, "heads": 2}
    write_initial_model(path, replace(coarse, strides=coarse.strides[:2]), network, seed=1)
    return path
