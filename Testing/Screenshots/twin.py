"""What the tutorial shows of the patient twin: a synthetic patient at three dates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from Screenshots.pictures import REPOSITORY, Pictures


class TwinPictures(Pictures):
    """Drives the tab of the twin as a user would."""

    module = REPOSITORY / "TwinSegSlicer/TwinSegSlicer.py"
    prefix = "module"
    parts = ("twin", "add", "treatments", "timeline", "response", "forecast")

    @property
    def panel_ui(self) -> Any:
        return self.widget.twinPanel.ui

    def draw(self, folder: Path) -> None:
        self.panel, self.twin = self.widget.twinPanel, self.panel_ui
        self.ui.tabWidget.setCurrentIndex(1)
        self.take("twin-empty", self.widget.parent)
        make_twin(folder / "twins/P-07")
        self.panel.listTwins()
        self.twin.twinComboBox.setCurrentIndex(self.twin.twinComboBox.findText("P-07"))
        self.wait_for_step()
        self.twin.chartButton.click()
        self.twin.scansButton.click()
        self.wait(lambda: self.twin.scanSlider.enabled)
        self.open_parts("twin", "add", "timeline")
        self.take("twin-timeline")
        self.twin.assessButton.click()
        self.wait_for_step()
        self.twin.changeButton.click()
        self.wait_for_step()
        self.open_parts("timeline", "response")
        self.take("twin-response")
        self.open_parts("treatments")
        self.take("twin-treatments", self.twin.treatmentsCollapsibleButton)
        self.twin.changeButton.click()
        self.twin.forecastButton.click()
        self.wait_for_step()
        self.open_parts("forecast")
        self.take("twin-forecast")

    def wait_for_step(self) -> None:
        self.wait(lambda: not self.panel.session.isBusy)


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
