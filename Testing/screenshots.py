"""Draws the pictures of the module: the icons, and what Docs/tutorial.md shows, from the module in the host.

    python Testing/screenshots.py              # or make screenshots
    python Testing/screenshots.py --only icons

Everything is made here: the patient is synthetic, the data folder a temporary one.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

REPOSITORY = Path(__file__).resolve().parents[1]
MODULE = REPOSITORY / "TwinSegSlicer"
ICONS = MODULE / "Resources/Icons"
PICTURES = REPOSITORY / "Docs/pictures"
SECONDS = 300
sys.path[:0] = [str(Path(__file__).parent), str(MODULE)]

if TYPE_CHECKING:
    from SlicerHost.host import Host


def draw_icons() -> None:
    """The module's icon, 128 pixels, and the extension's, which is the same."""
    from PySide6.QtCore import Qt
    from PySide6.QtGui import QImage, QPainter
    from PySide6.QtSvg import QSvgRenderer

    image = QImage(128, 128, QImage.Format.Format_ARGB32)
    image.fill(Qt.GlobalColor.transparent)
    painter = QPainter(image)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    QSvgRenderer(str(ICONS / "TwinSegSlicer.svg")).render(painter)
    painter.end()
    for path in (ICONS / "TwinSegSlicer.png", REPOSITORY / "TwinSegSlicer.png"):
        image.save(str(path))


def draw_thumbnail() -> None:
    """The sample's picture in the Sample Data module: FLAIR and T1 with contrast, where the tumour is largest."""
    import numpy as np
    from PIL import Image

    from TwinSegSlicerLib.SampleDataSource import THUMBNAIL, makePatient

    patient = makePatient()
    z = int(np.argmax((patient.labels.array > 0).sum(axis=(0, 1))))
    halves = []
    for sequence in ("flair", "t1ce"):
        array = patient.images[sequence].array[14:-14, 14:-14, z].T[::-1, ::-1]
        halves.append(np.clip(array / np.percentile(array, 99.8), 0, 1) * 255)
    Image.fromarray(np.hstack(halves).astype(np.uint8)).save(THUMBNAIL, optimize=True)


def draw_module(host: Host) -> None:
    """What the tutorial shows, step by step, with a synthetic patient and a data folder of its own."""
    with tempfile.TemporaryDirectory(prefix="TwinSeg-pictures-") as home:
        os.environ["TWINSEG_HOME"] = home
        Pictures(host).draw(Path(home))


class Pictures:
    """Drives the module as a user would, and takes the pictures on the way."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.window.resize(1400, 900)
        self.widget = host.open(MODULE / "TwinSegSlicer.py")
        self.ui = self.widget.ui
        self.open_parts()

    def draw(self, folder: Path) -> None:
        self.draw_packages()
        self.draw_inputs()
        self.draw_segmentation()
        self.draw_result()
        self.draw_correction()
        self.draw_batch(folder)
        self.widget.cleanup()

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
        self.open_parts(self.ui.inputsCollapsibleButton, self.ui.segmentCollapsibleButton)
        self.take("inputs")

    def draw_segmentation(self) -> None:
        """Pressed, and half done."""
        stages: list[float] = []
        self.widget.logic.segmenter.progressed.connect(lambda done, stage: stages.append(done))
        self.ui.segmentButton.click()
        self.wait(lambda: stages and stages[-1] >= 0.2)
        self.take("running", self.ui.segmentCollapsibleButton)
        self.wait(lambda: not self.widget.logic.segmenter.isRunning)

    def draw_result(self) -> None:
        import slicer

        self.ui.show3DButton.click()
        centre = self.centre_of_tumour()
        slicer.modules.markups.logic().JumpSlicesToLocation(*centre, True)
        self.open_parts(self.ui.segmentCollapsibleButton, self.ui.resultCollapsibleButton)
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
        self.open_parts(self.ui.correctCollapsibleButton)
        self.ui.submitButton.click()
        self.wait(lambda: not self.widget.logic.corrections.isSubmitting)
        self.take("correct", self.ui.correctCollapsibleButton)

    def draw_batch(self, home: Path) -> None:
        from twinseg.phantom import write_cohort

        folder = home / "Glioma cohort"
        write_cohort(folder, sites=1, patients=3, size=48, spacing=4.0, seed=5)
        panel = self.widget.batchPanel
        self.open_parts(self.ui.batchCollapsibleButton)
        panel.sourceSelector.currentIndex = 1
        panel.folderEdit.currentPath = str(folder)
        panel.findButton.click()
        panel.startButton.click()
        self.wait(lambda: not panel.isRunning)
        self.take("batch", self.ui.batchCollapsibleButton)

    def open_parts(self, *parts: Any) -> None:
        """Only these parts of the panel are open."""
        for name in ("inputs", "segment", "result", "correct", "batch"):
            button = getattr(self.ui, f"{name}CollapsibleButton")
            button.collapsed = button not in parts
        self.host.process_events(0.3)

    def take(self, name: str, widget: Any = None) -> None:
        """Write a picture of the window, or of a widget in it."""
        path = PICTURES / f"module-{name}.png"
        self.host.process_events(0.5)
        if widget is None:
            self.host.captureWindow(path)
        else:
            self.host.captureWidget(path, widget)
        print(path.relative_to(REPOSITORY))

    def wait(self, condition: Callable[[], Any]) -> None:
        if not self.host.app.wait_until(lambda: bool(condition()), SECONDS):
            raise TimeoutError(f"not done within {SECONDS} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("icons", "module"), help="draw a part of the pictures")
    options = parser.parse_args()
    from SlicerHost.host import start  # before anything that imports PySide6

    host = start()
    if options.only != "module":
        draw_icons()
        draw_thumbnail()
    if options.only != "icons":
        draw_module(host)


if __name__ == "__main__":
    main()
