"""Draws the pictures of the modules: the icons, and what Docs/tutorial.md and Docs/federation.md show, in the host.

    python Testing/screenshots.py              # or make screenshots
    python Testing/screenshots.py --only icons

Everything is made here: the patient is synthetic, the data folder a temporary one.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

REPOSITORY = Path(__file__).resolve().parents[1]
MODULE = REPOSITORY / "TwinSegSlicer"
FEDERATION = REPOSITORY / "FederatedClient"
ICONS = MODULE / "Resources/Icons"
PICTURES = REPOSITORY / "Docs/pictures"
SECONDS = 300
SPLIT_KEY = 20  # by it, of the eight patients of the federation's pictures two are to validate with and one to test
sys.path[:0] = [str(Path(__file__).parent), str(MODULE), str(FEDERATION)]

if TYPE_CHECKING:
    from SlicerHost.host import Host


def draw_icons() -> None:
    """The modules' icons, 128 pixels, and the extension's, which is the first one's."""
    federation = FEDERATION / "Resources/Icons/FederatedClient.svg"
    draw_icon(ICONS / "TwinSegSlicer.svg", ICONS / "TwinSegSlicer.png", REPOSITORY / "TwinSegSlicer.png")
    draw_icon(federation, federation.with_suffix(".png"))


def draw_icon(drawing: Path, *pictures: Path) -> None:
    """Paint an SVG file into PNG files."""
    from PySide6.QtCore import Qt
    from PySide6.QtGui import QImage, QPainter
    from PySide6.QtSvg import QSvgRenderer

    image = QImage(128, 128, QImage.Format.Format_ARGB32)
    image.fill(Qt.GlobalColor.transparent)
    painter = QPainter(image)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    QSvgRenderer(str(drawing)).render(painter)
    painter.end()
    for path in pictures:
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


def draw_federation(host: Host) -> None:
    """What Docs/federation.md shows: three sites of synthetic patients, with a real aggregator and real processes."""
    with tempfile.TemporaryDirectory(prefix="TwinSeg-pictures-", ignore_cleanup_errors=True) as home:
        os.environ["TWINSEG_HOME"] = home
        pictures = FederationPictures(host)
        try:
            pictures.draw(Path(home))
        finally:
            pictures.widget.cleanup()


class FederationPictures:
    """Drives the federation module as a user would. Two more sites take part as processes of their own."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.window.resize(1400, 900)
        self.widget = host.open(FEDERATION / "FederatedClient.py")
        self.ui = self.widget.ui
        self.federation = self.widget.logic.federation

    def draw(self, home: Path) -> None:
        from twinseg.phantom import write_cohort

        self.open_parts("join", "site", "rounds")
        self.take("start", self.widget.parent)
        write_cohort(home / "phantoms", sites=3, patients=8, size=36, spacing=5.0, seed=3)
        own, *others = sorted(path for path in (home / "phantoms").iterdir() if path.is_dir())
        fill_queue(own)
        self.start_aggregator(home)
        self.open_parts("aggregator")
        self.take("aggregator", self.ui.aggregatorCollapsibleButton)
        self.open_parts("join")
        self.ui.previewButton.click()
        self.wait(self.ui.previewBrowser.isVisible)
        self.take("join", self.ui.joinCollapsibleButton)
        self.ui.previewButton.click()
        self.ui.consentCheckBox.click()
        joined = [self.join(home / f"HOSPITAL-{letter}", cases) for letter, cases in zip("BC", others, strict=True)]
        self.wait(lambda: self.ui.startButton.enabled)
        self.ui.startButton.click()
        self.wait(lambda: self.federation.watch.snapshot.phase == "finished")
        self.ui.plotButton.click()
        self.open_parts("site", "rounds", "cases", "log")
        self.take("rounds")
        for process in joined:
            self.wait(lambda process=process: not process.isRunning)

    def start_aggregator(self, home: Path) -> None:
        from dataclasses import replace

        from FederatedClientLib.SelfTest import makeModel

        model = makeModel(home / "first model.safetensors", channels=(8, 16), patch=32)
        self.ui.modelPathLineEdit.currentPath = str(model)
        self.ui.roundsSpinBox.value, self.ui.epochsSpinBox.value, self.ui.sitesSpinBox.value = 5, 12, 3
        self.ui.startAggregatorButton.click()
        self.federation.setSettings(replace(self.federation.settings, learningRate=3e-3))
        self.wait(lambda: self.federation.watch.snapshot.aggregatorAnswers)

    def join(self, folder: Path, cases: Path) -> Any:
        """Another site takes part, by the command."""
        from dataclasses import replace

        from FederatedClientLib.ChildProcess import ChildProcess
        from FederatedClientLib.JoinSettings import writeToken
        from twinfed.aggregator.accounts import Accounts
        from twinfed.aggregator.store import Store

        store = Store(self.federation.aggregator.trial / "aggregator")
        writeToken(folder, Accounts(store).add(folder.name))
        store.close()
        process = ChildProcess(folder, "site")
        process.start(replace(self.federation.settings, cases=str(cases)).words(folder))
        return process

    def open_parts(self, *parts: str) -> None:
        """Only these parts of the panel are open."""
        for name in ("join", "site", "rounds", "cases", "log", "aggregator"):
            getattr(self.ui, f"{name}CollapsibleButton").collapsed = name not in parts
        self.host.process_events(0.3)

    def take(self, name: str, widget: Any = None) -> None:
        """Write a picture of the window, or of a widget in it."""
        path = PICTURES / f"federation-{name}.png"
        self.host.process_events(0.5)
        if widget is None:
            self.host.captureWindow(path)
        else:
            self.host.captureWidget(path, widget)
        print(path.relative_to(REPOSITORY))

    def wait(self, condition: Callable[[], Any]) -> None:
        """Until it holds; what is waited for runs at the lowest priority, so that this must not spin."""
        end = time.monotonic() + SECONDS
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"not done within {SECONDS} s: {self.federation.watch.snapshot}")
            self.host.app.processEvents()
            time.sleep(0.01)


def fill_queue(folder: Path) -> None:
    """Submit the labelled cases of a folder, as a radiologist would correct and submit them."""
    from twinseg.case_queue import CaseQueue
    from twinseg.cases import find_cases
    from twinseg.tasks import load_task
    from twinseg.volumes import read_image, read_labels

    queue = CaseQueue()
    (queue.folder.parent / "pseudonyms.key").write_text(f"{SPLIT_KEY:064x}")
    task = load_task("brats-glioma")
    for case in find_cases(folder, task, require_labels=True):
        assert case.labels is not None
        images = {name: read_image(path) for name, path in case.images.items()}
        labels = read_labels(case.labels)
        queue.add(task=task, patient=case.patient, images=images, labels=labels, who="A. Reader", allow_empty=True)


def draw_twin(host: Host) -> None:
    """What the tutorial shows of the patient twin: a synthetic patient at three dates."""
    with tempfile.TemporaryDirectory(prefix="TwinSeg-pictures-", ignore_cleanup_errors=True) as home:
        os.environ["TWINSEG_HOME"] = home
        TwinPictures(host).draw(Path(home))


class TwinPictures(Pictures):
    """Drives the tab of the twin as a user would."""

    def draw(self, folder: Path) -> None:
        self.panel = self.widget.twinPanel
        self.twin = self.panel.ui
        self.ui.tabWidget.setCurrentIndex(1)
        self.take("twin-empty", self.widget.parent)
        make_twin(folder / "twins/P-07")
        self.panel.listTwins()
        self.twin.twinComboBox.setCurrentIndex(self.twin.twinComboBox.findText("P-07"))
        self.wait_for_step()
        self.twin.chartButton.click()
        self.twin.scansButton.click()
        self.wait(lambda: self.twin.scanSlider.enabled)
        self.open_twin_parts("twin", "add", "timeline")
        self.take("twin-timeline")
        self.twin.assessButton.click()
        self.wait_for_step()
        self.twin.changeButton.click()
        self.wait_for_step()
        self.open_twin_parts("timeline", "response")
        self.take("twin-response")
        self.open_twin_parts("treatments")
        self.take("twin-treatments", self.twin.treatmentsCollapsibleButton)
        self.twin.changeButton.click()
        self.twin.forecastButton.click()
        self.wait_for_step()
        self.open_twin_parts("forecast")
        self.take("twin-forecast")
        self.widget.cleanup()

    def wait_for_step(self) -> None:
        self.wait(lambda: not self.panel.session.isBusy)

    def open_twin_parts(self, *parts: str) -> None:
        """Only these parts of the twin's tab are open."""
        for name in ("twin", "add", "treatments", "timeline", "response", "forecast"):
            getattr(self.twin, f"{name}CollapsibleButton").collapsed = name not in parts
        self.host.process_events(0.3)


def make_twin(folder: Path) -> None:
    """A twin of a synthetic patient with three scans after a biopsy and radiotherapy."""
    from twinseg.phantom import Scanner, make_patient
    from twinseg.twin.store import Twin
    from twinseg.twin.timeline import add_scan
    from twinseg.twin.treatments import Radiotherapy, Surgery, Treatments, weekdays

    patient = make_patient((5, 0), scanner=Scanner.for_site(0), size=72, spacing=2.7, visits=3, kind="ring")
    twin = Twin.create(folder, task="brats-glioma", pseudonym=folder.name)
    for visit in patient.visits:
        add_scan(twin, visit.day, visit.images, labels=visit.labels, origin="expert")
    course = Radiotherapy(weekdays(-50.0, 30), (2.0,) * 30)
    known = Treatments(surgery=(Surgery(-70.0, "biopsy"),), radiotherapy=(course,), chemotherapy=())
    twin.set_document("treatments.json", known.to_json())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("icons", "module", "twin", "federation"), help="draw a part of the pictures")
    options = parser.parse_args()
    from SlicerHost.host import start  # before anything that imports PySide6

    host = start()
    if options.only in (None, "icons"):
        draw_icons()
        draw_thumbnail()
    if options.only in (None, "module"):
        draw_module(host)
    if options.only in (None, "twin"):
        draw_twin(host)
    if options.only in (None, "federation"):
        draw_federation(host)


if __name__ == "__main__":
    main()
