"""The part of the panel where segmentations are corrected and submitted to this machine's case queue."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from twinseg.home import data_folder

from .Corrections import Corrections, inSegmentEditor, nextToCorrect, openInSegmentEditor, patientOf, showRegions
from .SegmentationResult import TASK, results

AUTHOR_SETTING = "TwinSegSlicer/Author"
WITHDRAWN = "withdrawn"


class CorrectionPanel:
    """Corrects and submits one segmentation node, and lists what was submitted.

    `select(node)` is called to make another segmentation the chosen one.
    """

    def __init__(self, ui: Any, corrections: Corrections, select: Callable[[Any], None]) -> None:
        self._ui = ui
        self._corrections = corrections
        self._select = select
        self._node: Any = None
        self._filledFor = ""  # the node's ID for which patient and note were filled in
        information = slicer.app.applicationLogic().GetUserInformation()
        name = information.GetName() if information is not None else ""
        ui.authorLineEdit.text = slicer.util.settingsValue(AUTHOR_SETTING, name or "")
        ui.casesTable.setColumnCount(4)
        ui.casesTable.setHorizontalHeaderLabels([_("Case"), _("State"), _("By"), _("When")])
        ui.casesTable.setWordWrap(False)
        for column, width in enumerate((90, 70, 60)):
            ui.casesTable.setColumnWidth(column, width)
        ui.editButton.connect("clicked(bool)", self._onEdit)
        ui.nextButton.connect("clicked(bool)", self._onNext)
        ui.submitButton.connect("clicked(bool)", self._onSubmit)
        ui.withdrawButton.connect("clicked(bool)", self._onWithdraw)
        ui.casesTable.connect("itemSelectionChanged()", self.updateButtons)
        ui.submitLabel.setVisible(False)
        self.show(None)

    def show(self, node: Any) -> None:
        """Correct and submit this segmentation node. None: there is none, or the module is left for a while, as for
        the Segment Editor; what was typed is kept until another node comes."""
        if node is not None and node.GetID() != self._filledFor:
            self._fill(node.GetID(), patientOf(node))
        self._node = node
        self.updateButtons()

    def enter(self) -> None:
        """The user is back, it may be from the Segment Editor."""
        for node in results():
            showRegions(node, True)
        self.listCases()

    def exit(self) -> None:
        """The user leaves, it may be for the Segment Editor, which takes what is painted from all that is shown."""
        if (node := inSegmentEditor()) is not None:
            showRegions(node, False)

    def clear(self) -> None:
        """The scene goes: the nodes of the next one may have the same IDs."""
        self._fill("", "")

    def _fill(self, nodeId: str, patient: str) -> None:
        self._filledFor = nodeId
        self._ui.patientLineEdit.text = patient
        self._ui.noteLineEdit.text = ""

    def updateButtons(self) -> None:
        """Which buttons can be pressed, and why not the others."""
        notMade = (
            "" if self._node is not None and self._node.GetAttribute(TASK) else _("Select a segmentation made here")
        )
        busy = _("A correction is being written") if self._corrections.isSubmitting else ""
        noneWaits = "" if nextToCorrect() is not None else _("No segmentation of this scene waits to be corrected")
        state = self._selectedCase(column=1)
        notSelected = "" if state else _("Select a submitted case first")
        withdrawn = _("This case was withdrawn already") if state == WITHDRAWN else ""
        _offer(self._ui.editButton, _("Opens the segmentation in the Segment Editor"), notMade)
        _offer(
            self._ui.nextButton,
            _("Selects the segmentation that was not submitted yet and of which the model is least sure"),
            noneWaits,
        )
        _offer(
            self._ui.submitButton,
            _("Puts images, corrected labels and the change into this computer's case queue. Nothing is sent."),
            notMade or busy,
        )
        _offer(
            self._ui.withdrawButton,
            _("Takes the selected case out of the queue for good: it is never trained on again"),
            notSelected or withdrawn,
        )

    def listCases(self) -> None:
        """Show the cases of the queue, newest first; a queue that is not there yet is not made."""
        table = self._ui.casesTable
        cases: list[Any] = []
        if (data_folder() / "cases").is_dir():
            try:
                cases = sorted(self._corrections.queue.cases(), key=lambda case: case.since, reverse=True)
            except (ImportError, ValueError) as error:  # packages are missing, or the queue cannot be read
                logging.warning("TwinSegSlicer: the submitted cases cannot be listed: %s", error)
        table.setRowCount(len(cases))
        for row, case in enumerate(cases):
            newest = case.corrections[-1]
            for column, text in enumerate((case.name, case.state, newest.who, newest.when[:16].replace("T", " "))):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(_changeText(newest.change) if column else case.name)
                table.setItem(row, column, item)
        table.setVisible(bool(cases))
        self._ui.withdrawButton.setVisible(bool(cases))
        self.updateButtons()

    def _onEdit(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("The Segment Editor could not be opened.")):
            openInSegmentEditor(self._node)

    def _onNext(self) -> None:
        if (node := nextToCorrect()) is not None:
            self._select(node)

    def _onSubmit(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("The correction was not submitted."), waitCursor=True):
            author = self._ui.authorLineEdit.text
            qt.QSettings().setValue(AUTHOR_SETTING, author)
            patient, note = self._ui.patientLineEdit.text, self._ui.noteLineEdit.text
            self._corrections.submit(self._node, patient, author, note, self._onSubmitted, self._onRefused)
        self._tell(_("Writing the case …"))

    def _onSubmitted(self, case: Any) -> None:
        change = _changeText(case.corrections[-1].change)
        self._tell(_("Submitted as {name}. {change}").format(name=case.name, change=change))
        self.listCases()

    def _onRefused(self, error: Exception) -> None:
        self._tell("")
        slicer.util.errorDisplay(_("The correction was not submitted.") + f"\n\n{error}")

    def _onWithdraw(self) -> None:
        name = self._selectedCase()
        question = _("Take {name} out of the queue for good? It is never trained on again.").format(name=name)
        if name and slicer.util.confirmOkCancelDisplay(question):
            with slicer.util.tryWithErrorDisplay(_("The case was not withdrawn.")):
                self._corrections.queue.withdraw(name, _("withdrawn in Slicer"))
            self.listCases()

    def _selectedCase(self, column: int = 0) -> str:
        """The name (or another column) of the case that is selected in the list; "" if none is."""
        table = self._ui.casesTable
        item = table.item(table.currentRow(), column) if table.selectedItems() else None
        return item.text() if item is not None else ""

    def _tell(self, text: str) -> None:
        self._ui.submitLabel.text = text
        self._ui.submitLabel.setVisible(bool(text))
        self.updateButtons()


def _offer(button: Any, toolTip: str, reason: str) -> None:
    """Enable a button, unless there is a reason not to, which its tool tip then tells."""
    button.enabled = not reason
    button.toolTip = reason or toolTip


def _changeText(change: dict[str, dict[str, float]]) -> str:
    """What a correction changed, by region: "WT 49.2 to 51.3 mL, Dice 0.97"."""
    parts = []
    for region, measured in change.items():
        if "predicted_ml" in measured:
            parts.append(
                _("{region} {before:.1f} to {after:.1f} mL, Dice {dice:.2f}").format(
                    region=region,
                    before=measured["predicted_ml"],
                    after=measured["corrected_ml"],
                    dice=measured["dice"],
                )
            )
        else:
            parts.append(_("{region} {after:.1f} mL").format(region=region, after=measured["corrected_ml"]))
    return "; ".join(parts)
