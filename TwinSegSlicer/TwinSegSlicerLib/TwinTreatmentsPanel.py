"""The part of the twin's tab where treatments are written down."""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from .TwinSession import TwinSession
from .TwinTreatments import KINDS, Line, linesOf, noneGiven, treatmentsOf
from .TwinWidgets import fillRow

FIRST = {
    "surgery": ("0", "?", "subtotal"),
    "radiotherapy": ("30 weekdays from 28", "2", ""),
    "chemotherapy": ("28 to 69", "75", "temozolomide"),
    "steroids": ("0 to ?", "?", ""),
}
AMOUNTS = {
    "surgery": _("mL of tumour left"),
    "radiotherapy": _("Gy each fraction"),
    "chemotherapy": _("mg per m² each dose"),
    "steroids": _("mg of dexamethasone equivalent a day"),
}
DETAILS = {"surgery": _("biopsy, partial, subtotal or gross total"), "chemotherapy": _("the drug")}


class TwinTreatmentsPanel:
    """A table with a line a course; nothing is written before Save is pressed."""

    def __init__(self, ui: Any, session: TwinSession) -> None:
        self._ui, self._session = ui, session
        self._lines: list[Line] = []
        self._shown: Any = None
        self._none = {kind: getattr(ui, f"none{kind.capitalize()}CheckBox") for kind in KINDS}
        ui.treatmentsTable.setColumnCount(4)
        ui.treatmentsTable.setHorizontalHeaderLabels([_("Kind"), _("Days"), _("Amount"), _("Detail")])
        for column, width in enumerate((95, 130, 65)):
            ui.treatmentsTable.setColumnWidth(column, width)
        for kind in KINDS:
            ui.kindComboBox.addItem(_(kind), kind)
        ui.addLineButton.connect("clicked(bool)", self._onAddLine)
        ui.removeLineButton.connect("clicked(bool)", self._onRemoveLine)
        ui.saveTreatmentsButton.connect("clicked(bool)", self._onSave)
        session.changed.connect(self._onChanged)

    def update(self, reason: str) -> None:
        """reason: why nothing can be changed; "" if it can."""
        ui = self._ui
        for widget in (ui.treatmentsTable, ui.addLineButton, ui.removeLineButton, *self._none.values()):
            widget.enabled = not reason
        ui.saveTreatmentsButton.enabled = not reason

    def clear(self) -> None:
        """Nothing of it is in the scene."""

    def _onChanged(self) -> None:
        """Show what the twin says, unless it still says the same: what is being typed stays."""
        record = self._session.record
        treatments = record.treatments if record is not None else None
        if treatments == self._shown and treatments is not None:
            return
        self._shown = treatments
        self._fill(linesOf(treatments) if treatments is not None else [])
        none = noneGiven(treatments) if treatments is not None else set()
        for kind, box in self._none.items():
            box.checked = kind in none

    def _fill(self, lines: list[Line]) -> None:
        self._lines = lines
        table = self._ui.treatmentsTable
        table.setRowCount(len(lines))
        for row, line in enumerate(lines):
            tips = ("", _("Days since the baseline scan"), AMOUNTS[line.kind], DETAILS.get(line.kind, ""))
            texts = (_(line.kind), line.days, line.amount, line.detail)
            fillRow(table, row, texts, tips)
            table.item(row, 0).setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable)

    def _typed(self) -> list[Line]:
        """The lines as they stand in the table."""
        table = self._ui.treatmentsTable
        return [
            Line(line.kind, *(table.item(row, column).text() for column in (1, 2, 3)), line.course)
            for row, line in enumerate(self._lines)
        ]

    def _onAddLine(self) -> None:
        kind = self._ui.kindComboBox.currentData
        self._none[kind].checked = False
        self._fill([*self._typed(), Line(kind, *FIRST[kind])])

    def _onRemoveLine(self) -> None:
        row = self._ui.treatmentsTable.currentRow()
        self._fill([line for number, line in enumerate(self._typed()) if number != row])

    def _onSave(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("The treatments were not saved.")):
            none = {kind for kind, box in self._none.items() if box.checked}
            self._session.setTreatments(treatmentsOf(self._typed(), none))
