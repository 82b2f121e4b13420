"""What the tutorial shows of segmenting, step by step, with a synthetic patient."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from Screenshots.pictures import REPOSITORY, Pictures


class ModulePictures(Pictures):
    """Drives the module as a user would, and takes the pictures on the way."""

    module = REPOSITORY / "TwinSegSlicer/TwinSegSlicer.py"
    prefix = "module"
    parts = ("inputs", "segment", "result", "correct", "batch")

    def draw(self, folder: Path) -> None:
        self.open_parts()
        self.draw_packages()
        self.draw_inputs()
        self.draw_segmentation()
        self.draw_result()
        self.draw_correction()
        self.draw_batch(folder)

    def draw_packages(self) -> None:
        """The first start, when Slicer has the PyTorch extension, which is installed along, and no package yet."""
        import slicer

        from TwinSegSlicerLib.Packages import Package

        panel = self.widget.installPanel
        with (
            mock.patch.object(Package, "installedVersion", return_value=None),
            mock.patch.object(slicer.modules, "pytorchutils", create=True),
        ):
            panel.refresh()
            self.take("packages", self.ui.installFrame)
        panel.refresh()

    def draw_inputs(self) -> None:
        from TwinSegSlicerLib.SampleDataSource import loadSample

        loadSample()
        self.ui.findButton.click()
        self.open_parts("inputs", "segment")
        self.take("inputs")

    def draw_segmentation(self) -> None:
        """Pressed, and half done."""
        stages: list[float] = []
        self.widget.logic.segmenter.progressed.connect(lambda done, stage: stages.append(done))
        self.ui.segmentButton.click()
        self.wait(lambda: stages and stages[-1] >= 0.2)
        self.take("running", self.ui.segmentCollapsibleButton, settle=0.0)
        self.wait(lambda: not self.widget.logic.segmenter.isRunning)

    def draw_result(self) -> None:
        import slicer

        self.ui.show3DButton.click()
        centre = self.centre_of_tumour()
        slicer.modules.markups.logic().JumpSlicesToLocation(*centre, True)
        self.open_parts("segment", "result")
        self.take("result")
        self.ui.uncertaintyButton.click()
        self.take("uncertainty", slicer.app.layoutManager().viewport())
        self.ui.uncertaintyButton.click()

    def centre_of_tumour(self) -> list[float]:
        """RAS mm."""
        segmentation = self.widget.logic.getParameterNode().segmentation
        return list(segmentation.GetSegmentCenterRAS("WT"))

    def draw_correction(self) -> None:
        """Some voxels of oedema are painted, and the correction is submitted."""
        from twinseg.tasks import load_task
        from TwinSegSlicerLib.SelfTest import drawInto
        from TwinSegSlicerLib.Sequences import findSequences

        segmentation = self.widget.logic.getParameterNode().segmentation
        drawInto(segmentation, "ED", findSequences(load_task("brats-glioma"))["flair"])
        self.ui.patientLineEdit.text, self.ui.authorLineEdit.text = "Patient 12", "A. Reader"
        self.ui.noteLineEdit.text = "oedema reaches further"
        self.open_parts("correct")
        self.ui.submitButton.click()
        self.wait(lambda: not self.widget.logic.corrections.isSubmitting)
        self.take("correct", self.ui.correctCollapsibleButton)

    def draw_batch(self, home: Path) -> None:
        from twinseg.phantom import write_cohort

        folder = home / "Glioma cohort"
        write_cohort(folder, sites=1, patients=3, size=48, spacing=4.0, seed=5)
        panel = self.widget.batchPanel
        self.open_parts("batch")
        panel.sourceSelector.currentIndex = 1
        panel.folderEdit.currentPath = str(folder)
        panel.findButton.click()
        panel.startButton.click()
        self.wait(lambda: not panel.isRunning)
        self.take("batch", self.ui.batchCollapsibleButton)
