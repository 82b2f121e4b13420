"""The part of the twin's tab that shows it over time: chart, scans, change between two of them."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from .TwinChart import showChart
from .TwinNodes import TwinNodes
from .TwinScene import BROWSER, TwinLoader, editScan, hideMaps, openedScans, showChange, shownScan, showScan
from .TwinSession import TwinSession, inWords
from .TwinWidgets import offer, tell

PREFERRED = ("t1ce", "flair")
EDIT_TIP = _("Opens this scan's segmentation in the Segment Editor; then come back, and press Correct above")
CORRECT_TIP = _("Keeps what was drawn into the scan shown under Timeline; its earlier segmentations stay on record")


class TwinTimelinePanel:
    """Puts the open twin's chart and scans into the scene when it is asked to."""

    def __init__(self, ui: Any, session: TwinSession) -> None:
        self._ui, self._session = ui, session
        self._loader: TwinLoader | None = None
        self._shown: Any = None
        ui.chartButton.connect("clicked(bool)", self._onChart)
        ui.scansButton.connect("clicked(bool)", self._onScans)
        ui.scanSlider.connect("valueChanged(int)", self._onScan)
        ui.editScanButton.connect("clicked(bool)", self._onEdit)
        ui.changeButton.connect("clicked(bool)", self._onChange)
        session.changed.connect(self._onChanged)
        tell(self._ui.changeLabel, "")

    @property
    def scan(self) -> Any:
        """The scan that is shown, whose segmentation can be edited; None where there is none."""
        return shownScan(self._session.record) if self._session.record is not None and self._loader is None else None

    def update(self, reason: str) -> None:
        """reason: why nothing can be pressed; "" if it can."""
        record = self._session.record
        drawn = len(record.segmented) if record is not None else 0
        noScan = "" if drawn else _("The twin has no segmented scan yet")
        loading = _("The scans are being loaded") if self._loader is not None else ""
        offer(self._ui.chartButton, _("Draws each lesion's volume over the days"), reason or noScan)
        offer(self._ui.scansButton, _("Loads all scans, aligned to the baseline"), reason or noScan or loading)
        scan = self.scan
        notShown = _("Show the scans first: under Timeline") if scan is None else ""
        offer(self._ui.editScanButton, EDIT_TIP, reason or notShown)
        offer(self._ui.correctButton, CORRECT_TIP, reason or notShown)
        self._ui.correctButton.text = _("Correct day {day:g}").format(day=scan.day) if scan else _("Correct scan")
        single = "" if drawn > 1 else _("The twin has no two segmented scans yet")
        tip = _("Lays over the images what is gone (blue), what stayed (yellow) and what is new (red)")
        offer(self._ui.changeButton, tip, reason or single)
        for box in (self._ui.beforeComboBox, self._ui.afterComboBox):
            box.enabled = drawn > 1
        self._ui.imageComboBox.enabled = bool(drawn)

    def hideChange(self) -> None:
        """Take the change between two scans out of the views: it lies over what is drawn, or is no longer right."""
        if self._ui.changeButton.checked:
            self._ui.changeButton.click()

    def clear(self) -> None:
        """The scene goes."""
        if self._loader is not None:
            self._loader.abandon()
            self._loader = None
        self._ui.changeButton.checked = False
        self._ui.scanSlider.enabled = False
        self._ui.scanDayLabel.text = ""
        tell(self._ui.changeLabel, "")

    def _onChanged(self) -> None:
        record = self._session.record
        scans = record.segmented if record is not None else ()
        for box, chosen in ((self._ui.beforeComboBox, len(scans) - 2), (self._ui.afterComboBox, len(scans) - 1)):
            box.clear()
            for scan in scans:
                box.addItem(_("day {day:g}").format(day=scan.day), scan.name)
            box.setCurrentIndex(max(0, chosen))
        names = list(dict.fromkeys(name for scan in scans for name in scan.images))
        chosen = self._ui.imageComboBox.currentText
        self._ui.imageComboBox.clear()
        self._ui.imageComboBox.addItems(names)
        wanted = next((name for name in (chosen, *PREFERRED) if name in names), names[0] if names else "")
        self._ui.imageComboBox.setCurrentIndex(self._ui.imageComboBox.findText(wanted))
        if record is None or self._shown is None or record.pseudonym != self._shown.pseudonym:
            self.clear()  # what is in the scene is another patient's
        elif TwinNodes(record.pseudonym).find("chart") is not None and record.segmented:
            showChart(record, self._session.forecasts)
        self._shown = record

    def _onChart(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("The chart could not be drawn.")):
            showChart(self._session.record, self._session.forecasts)

    def _onScans(self) -> None:
        if days := ", ".join(f"{scan.day:g}" for scan in openedScans(self._session.record)):
            question = _("Load the scans again? What was drawn into day {days} and not kept by Correct is lost.")
            if not slicer.util.confirmOkCancelDisplay(question.format(days=days)):
                return
        with slicer.util.tryWithErrorDisplay(_("The scans could not be loaded.")):
            record, sequence = self._session.record, self._ui.imageComboBox.currentText
            self._loader = TwinLoader(record, sequence, self._onLoaded, self._onRefused)
        tell(self._ui.changeLabel, _("Loading the scans …"))
        self.update("")

    def _onLoaded(self, browser: Any) -> None:
        self._loader = None
        count = browser.GetMasterSequenceNode().GetNumberOfDataNodes()
        self._ui.scanSlider.enabled = count > 1
        self._ui.scanSlider.minimum, self._ui.scanSlider.maximum = 0, count - 1
        tell(self._ui.changeLabel, "")
        self._ui.scanSlider.value = count - 1
        self._onScan(count - 1)
        self.update("")

    def _onRefused(self, error: Exception) -> None:
        self._loader = None
        tell(self._ui.changeLabel, "")
        self.update("")
        slicer.util.errorDisplay(_("The scans could not be loaded.") + f"\n\n{inWords(error)}")

    def _onScan(self, number: int) -> None:
        record = self._session.record
        browser = TwinNodes(record.pseudonym).find(BROWSER) if record is not None else None
        if browser is None:
            return
        value = browser.GetMasterSequenceNode().GetNthIndexValue(number)
        self._ui.scanDayLabel.text = _("day {day}").format(day=value)
        scan = next((scan for scan in record.scans if f"{scan.day:g}" == value), None)
        if scan is not None:
            showScan(record, scan)

    def _onEdit(self) -> None:
        self.hideChange()
        with slicer.util.tryWithErrorDisplay(_("The Segment Editor could not be opened.")):
            editScan(self._session.record, self.scan)

    def _onChange(self, shown: bool) -> None:
        if not shown:
            hideMaps(self._session.record)
            tell(self._ui.changeLabel, "")
            return
        record = self._session.record
        before, after = (
            record.twin.timepoint(box.currentData) for box in (self._ui.beforeComboBox, self._ui.afterComboBox)
        )

        def done(change: Any, counts: dict[str, float]) -> None:
            showChange(record, change, before, after)
            text = _("{region}: {gone:.1f} mL gone (blue), {stayed:.1f} mL stayed (yellow), {new:.1f} mL new (red)")
            tell(self._ui.changeLabel, text.format(region=record.region, **counts))

        with slicer.util.tryWithErrorDisplay(_("The two scans could not be compared.")):
            self._session.changeMap(before.name, after.name, done)
