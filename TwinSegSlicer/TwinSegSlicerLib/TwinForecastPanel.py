"""The part of the twin's tab where its model is adapted to the patient, and where it forecasts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

from .Background import BackgroundTask
from .TwinChart import progressionText, scenarioColor, showChart
from .TwinScene import SHOWN_PROBABILITY, hideMaps, showProbability
from .TwinSession import TwinSession, inWords
from .TwinWidgets import fillRow, offer, tell

STEPS = 12  # dates that a forecast is drawn at
ADAPT_TIP = _(
    "Lets the model learn from this patient's corrected scans, under a test; then choose the patient beside the model"
)


class TwinForecastPanel:
    """Asks the worker and shows its answers. `parameters()` gives the choice of model and device."""

    def __init__(self, ui: Any, session: TwinSession, parameters: Callable[[], Any]) -> None:
        self._ui, self._session, self._parameters = ui, session, parameters
        self._reading: BackgroundTask | None = None
        self._shown = ""
        ui.scenarioTable.setColumnCount(2)
        ui.scenarioTable.setHorizontalHeaderLabels([_("Treatment"), _("Progression after")])
        ui.scenarioTable.setColumnWidth(0, 200)
        ui.adaptButton.connect("clicked(bool)", self._onAdapt)
        ui.rollBackButton.connect("clicked(bool)", self._onRollBack)
        ui.forecastButton.connect("clicked(bool)", self._onForecast)
        ui.scenarioTable.connect("itemSelectionChanged()", self._onScenario)
        ui.mapButton.connect("clicked(bool)", self._onMap)
        session.changed.connect(self._onChanged)
        self._forget()

    def update(self, reason: str) -> None:
        """reason: why nothing can be pressed; "" if it can."""
        record = self._session.record
        noScan = "" if record is not None and record.segmented else _("The twin has no segmented scan yet")
        noModel = "" if record is not None and record.models else _("No model was adapted to this patient yet")
        offer(self._ui.adaptButton, ADAPT_TIP, reason or noScan)
        offer(self._ui.rollBackButton, _("Takes the adapted model out of use"), reason or noModel)
        tip = _("Forecasts the volume under each treatment, with 50 and 90 % bands")
        offer(self._ui.forecastButton, tip, reason or noScan)
        tip = _("Lays the probability of tumour on that day over the images, for the treatment selected in the table")
        offer(self._ui.mapButton, tip, reason or self._whyNoMap())

    def _whyNoMap(self) -> str:
        """Why there is no map of the selected scenario; "" if there is."""
        if self._scenario is None:
            return _("Press Forecast first")
        return "" if self._scenario["probability_file"] else _("This forecast has no map")

    @property
    def _scenario(self) -> dict[str, Any] | None:
        """The forecast of the selected scenario; None before there is any."""
        row = self._ui.scenarioTable.currentRow()
        return self._session.forecasts[row] if 0 <= row < len(self._session.forecasts) else None

    def clear(self) -> None:
        """The scene goes."""
        self._stopReading()
        self._ui.mapButton.checked = False
        tell(self._ui.mapLabel, "")

    def _onChanged(self) -> None:
        record = self._session.record
        name = record.pseudonym if record is not None else ""
        if name != self._shown or not self._session.forecasts:
            self._shown = name
            self._forget()
        tell(self._ui.adaptLabel, modelText(record.models[-1].content) if record is not None and record.models else "")

    def _forget(self) -> None:
        """No forecast was made of the open twin."""
        if self._ui.mapButton.checked:
            self._ui.mapButton.checked = False
            self._onMap(False)
        self._ui.scenarioTable.setRowCount(0)
        self._ui.scenarioTable.setVisible(False)
        for label in (self._ui.verdictLabel, self._ui.adaptLabel, self._ui.mapLabel):
            tell(label, "")

    def _onAdapt(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("The model was not adapted.")):
            self._session.adapt(self._parameters().model, self._parameters().device)

    def _onRollBack(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("The model was not rolled back.")):
            self._session.rollBack(self._parameters().model)

    def _onForecast(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("There is no forecast.")):
            last = self._session.record.segmented[-1].day
            days = (last + np.linspace(0, self._ui.horizonSpinBox.value, STEPS + 1)[1:]).tolist()
            self._session.forecast(days, last + self._ui.mapDaySpinBox.value, self.showForecast)

    def showForecast(self, answer: Mapping[str, Any]) -> None:
        """Show an answer to the request "forecast": chart, times to progression, verdict, map."""
        forecasts = answer["forecasts"]
        table = self._ui.scenarioTable
        table.setRowCount(len(forecasts))
        for row, forecast in enumerate(forecasts):
            fillRow(table, row, (forecast["scenario"], progressionText(forecast)))
            table.item(row, 0).setForeground(qt.QBrush(qt.QColor.fromRgbF(*scenarioColor(row))))
        table.setVisible(True)
        notes = [note for note in answer["notes"] if note != answer["verdict"]]
        scored = [one["words"] for one in answer.get("scored", ())]
        warning = "⚠ " if answer["beats_both"] is not True else ""
        tell(self._ui.verdictLabel, "\n".join([f"{warning}{answer['verdict']}", *notes, *scored]))
        self._ui.mapButton.checked = bool(forecasts[0]["probability_file"])
        if not self._ui.mapButton.checked:
            self._onMap(False)
        table.clearSelection()
        table.selectRow(0)  # which draws the chart, and the map

    def _onScenario(self) -> None:
        """Draw the bands of the selected scenario, and its map if maps are shown."""
        if self._session.forecasts and self._ui.scenarioTable.selectedItems():
            showChart(self._session.record, self._session.forecasts, self._ui.scenarioTable.currentRow())
            if self._ui.mapButton.checked:
                self._onMap(True)
            self.update(_("Wait until the present step is done") if self._session.isBusy else "")

    def _onMap(self, shown: bool) -> None:
        self._stopReading()
        tell(self._ui.mapLabel, "")
        record, scenario = self._session.record, self._scenario
        if not shown or scenario is None or not scenario["probability_file"]:
            hideMaps(record)
            return
        name, row = self._session.forecastName, self._ui.scenarioTable.currentRow()

        def show(probability: Any) -> None:
            self._reading = None
            showProbability(record, probability, scenario["probability_day"], scenario["scenario"])
            tell(self._ui.mapLabel, mapText(scenario, float(probability.array.max())))

        self._reading = BackgroundTask(lambda: record.probability(name, row), show, self._onUnread)

    def _onUnread(self, error: Exception) -> None:
        self._reading = None
        self._ui.mapButton.checked = False
        slicer.util.errorDisplay(_("The map could not be shown.") + f"\n\n{inWords(error)}")

    def _stopReading(self) -> None:
        if self._reading is not None:
            self._reading.abandon()
            self._reading = None


def mapText(scenario: Mapping[str, Any], highest: float) -> str:
    """Which map is shown, and how to read it. highest: its largest probability."""
    title = _("Day {day:g}, {scenario}").format(day=scenario["probability_day"], scenario=scenario["scenario"])
    if highest < SHOWN_PROBABILITY:
        return _("{title}: tumour is nowhere more probable than 5 %, so there is nothing to show.").format(title=title)
    return _("{title}: probability of tumour from 5 % (yellow) to 100 % (red).").format(title=title)


def modelText(content: Mapping[str, Any]) -> str:
    """What became of the model last: accepted or rejected and why, or rolled back."""
    if content.get("kind") == "rolled back":
        return _("Rolled back: the model before it is used again.")
    verdict = _("In use.") if content.get("accepted") else _("Kept, but not used.")
    return f"{verdict} {content.get('reason', '')}".strip()
