"""The part of the twin's tab that shows the response to treatment, with the rules that fired, and takes a reader's
word instead."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from twinseg.twin.response import RESPONSES
from twinseg.twin.response_visits import CLINICAL

from .TwinSession import TwinSession
from .TwinWidgets import fillRow, offer, tell

UNKNOWN_DOSE = -1.0


class TwinResponsePanel:
    """A line a scan: by diameters and by volume."""

    def __init__(self, ui: Any, session: TwinSession) -> None:
        self._ui, self._session = ui, session
        ui.responseTable.setColumnCount(5)
        ui.responseTable.setHorizontalHeaderLabels([_("Day"), "mm²", _("2D"), "mL", _("3D")])
        for column, width in enumerate((45, 55, 95, 50)):
            ui.responseTable.setColumnWidth(column, width)
        ui.clinicalComboBox.addItem(_("not known"), "")
        for status in CLINICAL:
            ui.clinicalComboBox.addItem(_(status), status)
        for response in RESPONSES:
            ui.overrideComboBox.addItem(response, response)
        ui.steroidsSpinBox.value = UNKNOWN_DOSE
        ui.responseTable.connect("itemSelectionChanged()", self._onSelected)
        ui.assessButton.connect("clicked(bool)", self._onAssess)
        ui.overrideButton.connect("clicked(bool)", self._onOverride)
        session.changed.connect(self._onChanged)
        tell(self._ui.traceLabel, "")

    def update(self, reason: str) -> None:
        """reason: why nothing can be pressed; "" if it can."""
        record = self._session.record
        noScan = "" if record is not None and record.segmented else _("The twin has no segmented scan yet")
        notAssessed = record.notAssessed if record is not None else ""
        baseline = _("Select a scan after the baseline in the table") if self._row < 1 else ""
        offer(self._ui.assessButton, _("Applies the rules to all scans"), reason or notAssessed or noScan)
        offer(
            self._ui.overrideButton,
            _("Replaces the rules' response of the selected scan by the reader's; both are kept"),
            reason or notAssessed or noScan or baseline,
        )

    def clear(self) -> None:
        """Nothing of it is in the scene."""

    @property
    def _row(self) -> int:
        """The selected line; -1 if none is."""
        table = self._ui.responseTable
        return int(table.currentRow()) if table.selectedItems() else -1

    @property
    def _scan(self) -> str:
        """The selected time point, else the last one."""
        scans = self._session.record.segmented
        return str(scans[self._row if self._row >= 0 else -1].name)

    def _onChanged(self) -> None:
        """Show the newest assessments; scans that came later are shown as not assessed."""
        record, table = self._session.record, self._ui.responseTable
        scans = record.segmented if record is not None else ()
        row = self._row if table.rowCount == len(scans) else -1
        table.setRowCount(len(scans))
        table.setVisible(bool(scans))
        for number, scan in enumerate(scans):
            texts = [f"{scan.day:g}"]
            for measure in ("2D", "3D"):
                one = self._assessment(measure, scan.name)
                texts += ["", _("not assessed")] if one is None else [_size(one.size), one.words]
            fillRow(table, number, texts)
        if scans:
            table.selectRow(row if row >= 0 else len(scans) - 1)
        self._onSelected()

    def _assessment(self, measure: str, scan: str) -> Any:
        record = self._session.record
        return next((one for one in record.assessed.get(measure, ()) if one.timepoint == scan), None)

    def _onSelected(self) -> None:
        """Say why the selected scan was assessed so, by both measures."""
        record = self._session.record
        lines = [record.notAssessed] if record is not None and record.notAssessed else []
        if record is not None and record.segmented:
            for measure in ("2D", "3D"):
                if (one := self._assessment(measure, self._scan)) is not None:
                    lines.append(f"{measure}: {' '.join(one.trace)}")
        tell(self._ui.traceLabel, "\n".join(lines))
        self.update(_("Wait until the present step is done") if self._session.isBusy else "")

    def _onAssess(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("The response was not assessed.")):
            clinical, dose = self._ui.clinicalComboBox.currentData, self._ui.steroidsSpinBox.value
            self._session.assess(
                {self._scan: clinical} if clinical else None, {self._scan: dose} if dose >= 0 else None
            )
            self._ui.clinicalComboBox.setCurrentIndex(0)
            self._ui.steroidsSpinBox.value = UNKNOWN_DOSE

    def _onOverride(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("The response was not overridden.")):
            reason = self._ui.reasonLineEdit.text
            self._session.assess(override=(self._scan, self._ui.overrideComboBox.currentData, reason))
            self._ui.reasonLineEdit.text = ""


def _size(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"
