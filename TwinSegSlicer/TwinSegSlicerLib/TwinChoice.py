"""The choice, beside the model, of the patient whose adapted model segments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slicer.i18n import tr as _

from .Packages import missingPackages
from .Segmenter import Worker
from .TwinRecord import listTwins
from .TwinWidgets import tell
from .Worker import WorkerError

SEGMENTATION_TAB = 0


class TwinChoice:
    """Offers, in the module's first tab, those twins of this computer that have an accepted delta in use on the chosen
    model; the worker knows which. `parameters()` gives the parameter node, or None. The default is none."""

    def __init__(self, ui: Any, worker: Worker, parameters: Callable[[], Any]) -> None:
        self._ui, self._worker, self._parameters = ui, worker, parameters
        self._offers: dict[str, str] = {}  # the twin's folder's name -> what is shown
        self._asked: tuple[str, str] | None = None  # the task and the model that the offers are for
        self._reason = ""
        self._isUpdating = False
        ui.patientTwinComboBox.connect("currentIndexChanged(int)", self._onChosen)
        ui.tabWidget.connect("currentChanged(int)", lambda _index: self.refresh())
        tell(ui.patientTwinLabel, "")

    def refresh(self) -> None:
        """Look again which twins there are: one may have been adapted, rolled back, added or taken away."""
        self._asked = None
        self.update()

    def update(self) -> None:
        """Show what the parameter node holds; where it names another task or model, look which twins fit that."""
        parameters = self._parameters()
        if parameters is None:
            self._asked = None
        elif self._ui.tabWidget.currentIndex == SEGMENTATION_TAB and self._asked != (parameters.task, parameters.model):
            self._ask(parameters.task, parameters.model)
        self._show()

    def _ask(self, task: str, model: str) -> None:
        self._asked = asked = (task, model)
        twins = {str(folder): folder.name for folder in listTwins()}

        def answered(answer: dict[str, Any]) -> None:
            if asked == self._asked:
                found = answer["deltas"].items()
                self._take({twins[folder]: _title(delta) for folder, delta in found}, _("No patient has one for it"))

        def refused(error: WorkerError) -> None:
            if asked == self._asked:
                self._reason = str(error)
                self._show()

        self._offers = {}
        if not twins:
            self._take({}, _("There is no twin on this computer yet: see the tab Patient twin"))
        elif missingPackages():
            self._reason = _("Install the missing packages first")
        else:
            self._reason = _("Looking for adapted models …")
            message = {"do": "deltas", "task": task, "model": model or None, "twins": list(twins)}
            self._worker.request(message, answered, refused)

    def _take(self, offers: dict[str, str], reason: str) -> None:
        """Offer these; a choice that is not among them any more is taken back, and that is said."""
        self._offers, self._reason = offers, "" if offers else reason
        parameters = self._parameters()
        chosen = parameters.twin if parameters is not None else ""
        if chosen and chosen not in offers:
            parameters.twin = ""
            text = _("{name} has no accepted delta in use on this model: no patient is chosen.")
            tell(self._ui.patientTwinLabel, text.format(name=chosen))
        self._show()

    def _show(self) -> None:
        parameters = self._parameters()
        chosen = parameters.twin if parameters is not None else ""
        box, offers = self._ui.patientTwinComboBox, dict(self._offers)
        if chosen:
            offers.setdefault(chosen, chosen)
        self._isUpdating = True
        box.clear()
        box.addItem(_("none"), "")
        for name, title in sorted(offers.items(), key=lambda offer: offer[1]):
            box.addItem(title, name)
        box.setCurrentIndex(box.findData(chosen))
        self._isUpdating = False
        box.enabled = bool(offers)
        box.toolTip = TIP if not self._reason else f"{TIP} {self._reason}"

    def _onChosen(self) -> None:
        parameters = self._parameters()
        if not self._isUpdating and parameters is not None and self._ui.patientTwinComboBox.currentIndex >= 0:
            tell(self._ui.patientTwinLabel, "")
            parameters.twin = self._ui.patientTwinComboBox.currentData


TIP = _("The patient whose adapted model segments: only for scans of this very patient.")


def _title(offer: dict[str, Any]) -> str:
    """A twin and its delta. A twin keeps no dates: the day of the newest scan that was learnt from stands for it."""
    if offer["day"] is None:
        return _("{patient}, delta {name}").format(patient=offer["pseudonym"], name=offer["delta"])
    return _("{patient}, delta of day {day:g}").format(patient=offer["pseudonym"], day=offer["day"])
