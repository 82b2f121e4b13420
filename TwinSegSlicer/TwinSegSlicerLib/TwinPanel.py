"""The tab of the patient twin: which twin is open, a scan that is added to it, its report; the rest are parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from twinseg.tasks import load_task
from twinseg.volumes import Volume

from .SegmentationResult import TASK
from .TwinChoice import TwinChoice
from .TwinForecastPanel import TwinForecastPanel
from .TwinRecord import TwinRecord, listTwins
from .TwinResponsePanel import TwinResponsePanel
from .TwinScene import drawnLabels, handedBack, showCorrected
from .TwinSession import TwinSession, inWords, isCancelled
from .TwinTimelinePanel import TwinTimelinePanel
from .TwinTreatmentsPanel import TwinTreatmentsPanel
from .TwinVisit import proposedDay, pseudonymOf
from .TwinWidgets import offer, tell
from .Worker import WorkerProcess

UI_FILE = Path(__file__).resolve().parents[1] / "Resources/UI/PatientTwin.ui"


class TwinPanel:
    """Fills the module's tab and shows one session. `parameters()` gives the choice of task, model and device;
    `openFile(path)` shows a report to the user."""

    def __init__(
        self,
        moduleUi: Any,
        worker: WorkerProcess,
        parameters: Callable[[], Any],
        openFile: Callable[[Path], None] | None = None,
    ) -> None:
        widget = slicer.util.loadUI(str(UI_FILE))
        moduleUi.twinTab.layout().addWidget(widget)
        moduleUi.tabWidget.tabBar().setToolTip(_("One scan and its segmentation, or one patient over time"))
        moduleUi.tabWidget.connect("currentChanged(int)", lambda _index: self.listTwins())
        self.ui = slicer.util.childWidgetVariables(widget)
        self.session = TwinSession(worker)
        self.choice = TwinChoice(moduleUi, worker, parameters)
        self._parameters = parameters
        self._openFile = openFile or _openInBrowser
        self._node: Any = None
        self._proposedFor = ""  # the node's ID for which the day was filled in
        self._isListing = False
        self._timeline = TwinTimelinePanel(self.ui, self.session)
        self._parts = [
            TwinTreatmentsPanel(self.ui, self.session),
            self._timeline,
            TwinResponsePanel(self.ui, self.session),
            TwinForecastPanel(self.ui, self.session, parameters),
        ]
        self.session.changed.connect(self._onChanged)
        self.session.changed.connect(self.choice.refresh)
        self.session.stepped.connect(self._onStep)
        self.session.failed.connect(self._onFailed)
        self.ui.twinComboBox.connect("currentIndexChanged(int)", self._onChosen)
        self.ui.createButton.connect("clicked(bool)", self._onCreate)
        self.ui.addButton.connect("clicked(bool)", self._onAdd)
        self.ui.correctButton.connect("clicked(bool)", self._onCorrect)
        self.ui.scanSlider.connect("valueChanged(int)", lambda _number: self._update())
        self.ui.reportButton.connect("clicked(bool)", self._onReport)
        self.ui.stopButton.connect("clicked(bool)", lambda _checked=False: self.session.cancel())
        self.listTwins()
        self.session.changed.emit()
        self.session.stepped.emit()

    def show(self, node: Any) -> None:
        """Offer this segmentation node to be added as a time point. None: there is none, or the module is left for a
        while; a day that was typed is kept until another node comes."""
        self._node = node
        if node is not None and node.GetID() != self._proposedFor:
            self._proposedFor = node.GetID()
            self._proposeDay()
        self.choice.update()
        self._update()

    def clear(self) -> None:
        """The scene goes, and with it all that was shown of the twin in it; the twin itself stays open."""
        self._proposedFor = ""  # the next scene's nodes may have the same IDs
        for part in self._parts:
            part.clear()

    def stop(self) -> None:
        """The module goes."""
        self.session.stop()

    def listTwins(self) -> None:
        """Show the twins of this computer; the open one stays chosen."""
        opened = self.session.record.twin.folder if self.session.record is not None else None
        self._isListing = True
        self.ui.twinComboBox.clear()
        self.ui.twinComboBox.addItem(_("none is open"), "")
        for folder, pseudonym in listTwins().items():
            self.ui.twinComboBox.addItem(pseudonym, str(folder))
        self.ui.twinComboBox.setCurrentIndex(max(0, self.ui.twinComboBox.findData(str(opened))))
        self._isListing = False

    # --- the twin ----------------------------------------------------------------------------------------------------

    def _onChosen(self) -> None:
        if self._isListing:
            return
        if folder := self.ui.twinComboBox.currentData:
            self.session.open(Path(folder))
        else:
            self.session.close()

    def _onCreate(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("The twin was not made.")):
            given = self.ui.pseudonymLineEdit.text.strip()
            taken = set(listTwins().values())
            own = "" if given else pseudonymOf(self._node)
            self.session.create(given or ("" if own in taken else own), self._task)

    @property
    def _task(self) -> str:
        made = self._node.GetAttribute(TASK) if self._node is not None else None
        return str(made or self._parameters().task)

    def _onReport(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("The report was not written.")):
            self.session.report(self._openFile)

    # --- a scan ------------------------------------------------------------------------------------------------------

    def _proposeDay(self) -> None:
        """Fill in the day where DICOM dates tell it, else that of the baseline or nothing new."""
        isBaseline = self.session.record is None or not self.session.record.scans
        try:
            found = proposedDay(self._node)
        except ValueError as error:
            self.ui.dayLabel.text = str(error)
            return
        if isBaseline:
            self.ui.daySpinBox.value = 0
            self.ui.dayLabel.text = _("The first scan is the baseline: day 0.")
        elif found is not None:
            self.ui.daySpinBox.value = found[0]
            self.ui.dayLabel.text = _("Day {day:g}, {source}. Check it.").format(day=found[0], source=found[1])
        else:
            self.ui.dayLabel.text = _("The scene has no DICOM dates that tell the day: type it. No date is stored.")

    def _onAdd(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("The scan was not added.")):
            self.session.addTimePoint(
                self._node,
                self.ui.daySpinBox.value,
                self.ui.dayUncertaintySpinBox.value,
                byExpert=self.ui.expertCheckBox.checked,
                noTumour=self.ui.noTumourCheckBox.checked,
            )

    def _onCorrect(self) -> None:
        before, scan = self.session.record, self._timeline.scan
        with slicer.util.tryWithErrorDisplay(_("The scan was not corrected.")):
            labels = drawnLabels(before, scan)
            self.session.correct(
                scan.name,
                labels,
                lambda: self._onCorrected(scan.name, labels, before),
                byExpert=self.ui.expertCheckBox.checked,
                noTumour=self.ui.noTumourCheckBox.checked,
            )

    def _onCorrected(self, name: str, labels: Volume, before: TwinRecord) -> None:
        now = self.session.record
        scan = now.twin.timepoint(name)
        handedBack(now, scan)
        if scan.segmentation == scan.segmentations[-1]:
            self._timeline.hideChange()
            showCorrected(now, scan, labels)
            text = _("Day {day:g} corrected: {region} {now:.1f} mL, {before:.1f} mL before.")
            volumes = {"now": now.total(name)[0], "before": before.total(name)[0]}
            tell(self.ui.stepLabel, text.format(day=scan.day, region=now.region, **volumes))
        else:
            text = _("Kept; but an expert has drawn day {day:g}, which counts. Tick the box if yours is an expert's.")
            tell(self.ui.stepLabel, text.format(day=scan.day))

    # --- what is shown -----------------------------------------------------------------------------------------------

    def _onChanged(self) -> None:
        record = self.session.record
        if record is not None and self.ui.twinComboBox.currentData != str(record.twin.folder):
            self.listTwins()
        self.ui.pseudonymLineEdit.text = ""
        if record is None:
            self.ui.twinLabel.text = _("Open a twin, or make one for this patient.")
        elif not record.scans:
            self.ui.twinLabel.text = _("Task {task}. No scan yet: add the baseline below.").format(
                task=load_task(record.twin.task).title
            )
        else:
            self.ui.twinLabel.text = _("Scans on day {days}. Lesions so far: {lesions}. Task {task}.").format(
                days=", ".join(f"{scan.day:g}" for scan in record.scans),
                lesions=len(record.lesions),
                task=load_task(record.twin.task).title,
            )
        self._proposeDay()
        self._update()

    def _onStep(self) -> None:
        busy, done = self.session.isBusy, self.session.done
        self.ui.stepProgressBar.maximum = 0 if done is None else 100  # 0: that it goes on, not how far it is
        self.ui.stepProgressBar.setValue(0 if done is None else round(100 * done))
        self.ui.stepProgressBar.setVisible(busy)
        self.ui.stopButton.setVisible(busy)
        tell(self.ui.stepLabel, f"{self.session.step} …" if busy else "")
        self._update()

    def _onFailed(self, step: str, error: Exception) -> None:
        self.listTwins()
        tell(self.ui.stepLabel, inWords(error))
        if not isCancelled(error):
            slicer.util.errorDisplay(_("This failed: {step}.").format(step=step) + f"\n\n{inWords(error)}")

    def _update(self) -> None:
        """Which buttons can be pressed, and why not the others."""
        record, busy = self.session.record, self.session.isBusy
        waiting = _("Wait until the present step is done") if busy else ""
        notOpen = _("Open a twin first") if record is None else ""
        noScan = _("The twin has no scan yet") if record is not None and not record.scans else ""
        for widget in (self.ui.twinComboBox, self.ui.pseudonymLineEdit):
            widget.enabled = not busy
        offer(self.ui.createButton, _("Makes an empty twin in the data folder of this computer"), waiting)
        offer(self.ui.reportButton, REPORT_TIP, notOpen or noScan or waiting)
        offer(self.ui.addButton, ADD_TIP, notOpen or self._whyNotAdd() or waiting)
        name = self._node.GetName() if self._node is not None else _("none is selected")
        self.ui.scanLabel.text = _("Segmentation: {name}").format(name=name)
        for part in self._parts:
            part.update(notOpen or waiting)

    def _whyNotAdd(self) -> str:
        """Why the selected segmentation cannot be added; "" if it can."""
        if self._node is None or self._node.GetAttribute(TASK) is None:
            return _("Select a segmentation in the other tab first")
        record = self.session.record
        if record is not None and self._node.GetAttribute(TASK) != record.twin.task:
            return _("The segmentation is of another task than the twin")
        return ""


REPORT_TIP = _("Writes a page with timeline, pictures, response and provenance, as HTML and PDF, and opens it")
ADD_TIP = _("Registers the scan to the baseline, follows the lesions, and keeps it all; nothing is sent")


def _openInBrowser(file: Path) -> None:
    qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(file)))
