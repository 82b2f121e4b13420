"""The module's self-test: a synthetic patient is segmented, corrected and submitted to a queue of its own."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleTest

from twinseg.tasks import load_task

from .Corrections import Corrections, correctedCase
from .Packages import missingPackages
from .ParameterNode import TwinSegSlicerParameterNode
from .SegmentationResult import TABLE, UNCERTAINTY, show3D, showUncertainty
from .Sequences import findSequences

TIMEOUT_SECONDS = 300


class SelfTest(ScriptedLoadableModuleTest):
    """`makeLogic` is the module's logic class."""

    makeLogic: ClassVar[Any] = None

    def runTest(self) -> None:
        """The one test: Slicer's unit tests call this method only where no other one's name begins with "test"."""
        if missing := missingPackages():  # a test installs nothing: a build machine has no PyTorch
            self.delayDisplay(f"Left out: install {', '.join(package.name for package in missing)} first")
            return
        slicer.mrmlScene.Clear()
        self.logic = type(self).makeLogic()
        try:
            with tempfile.TemporaryDirectory(prefix="TwinSegSlicer-test-") as folder:
                self._segmentCorrectSubmit(Path(folder))
        finally:
            self.logic.stop()

    def _segmentCorrectSubmit(self, folder: Path) -> None:
        self.delayDisplay("Making a synthetic patient")
        task = load_task("brats-glioma")
        makePhantom()
        volumes = findSequences(task)
        self.assertEqual(set(volumes), {"t1", "t1ce", "t2", "flair"})

        self.delayDisplay("Segmenting")
        parameters: TwinSegSlicerParameterNode = self.logic.getParameterNode()
        ended: list[Any] = []
        self.logic.segment(volumes, parameters, ended.append, ended.append)
        self._wait(ended)
        segmentation = ended[0]
        self.assertIsInstance(segmentation, slicer.vtkMRMLSegmentationNode)
        self.assertEqual(segmentation.GetNodeReference(TABLE).GetNumberOfRows(), 3)
        self.assertIsNotNone(segmentation.GetNodeReference(UNCERTAINTY))
        showUncertainty(segmentation, True)
        show3D(segmentation, True)

        self.delayDisplay("Correcting and submitting")
        drawInto(segmentation, "ED", volumes["flair"])
        onScreen = correctedCase(segmentation)
        queue = makeQueue(folder)
        ended = []
        Corrections(lambda: queue).submit(segmentation, "phantom", "self-test", "", ended.append, ended.append)
        self._wait(ended)
        self.assertNotIsInstance(ended[0], Exception)
        self._checkStored(ended[0].labels, onScreen.labels)
        self.delayDisplay("Test passed")

    def _checkStored(self, file: Path, expected: Any) -> None:
        """The file holds what was on the screen, voxel for voxel."""
        from twinseg.volumes import read_labels

        stored = read_labels(file)
        np.testing.assert_array_equal(stored.array, expected.array)
        np.testing.assert_allclose(stored.affine, expected.affine, atol=1e-4)

    def _wait(self, ended: list[Any]) -> None:
        limit = time.monotonic() + TIMEOUT_SECONDS
        while not ended:
            self.assertLess(time.monotonic(), limit, "nothing came back")
            slicer.app.processEvents()
            time.sleep(0.005)


def makeQueue(folder: Path) -> Any:
    """A case queue in a folder of its own."""
    from twinseg.case_queue import CaseQueue

    return CaseQueue(folder / "cases")


def makePhantom(seed: int = 3) -> dict[str, Any]:
    """A small synthetic patient in the scene: volume node by sequence."""
    from twinseg.phantom import Scanner, make_patient

    patient = make_patient(seed, scanner=Scanner.for_site(0), size=(80, 96, 80), spacing=2.0, kind="ring")
    nodes = {}
    for sequence, image in patient.images.items():
        node = slicer.util.addVolumeFromArray(np.ascontiguousarray(image.array.T), name=f"phantom_{sequence}")
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(image.affine))
        nodes[sequence] = node
    return nodes


def drawInto(segmentation: Any, name: str, volume: Any) -> None:
    """Add a block of voxels, far from the middle, to one of a segmentation's segments."""
    drawn = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, name, volume)
    drawn[2:6, 2:6, 2:6] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, segmentation, name, volume)
