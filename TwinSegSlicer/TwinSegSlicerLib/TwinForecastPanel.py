"""The part of the twin's tab where its model is adapted to the patient, and where it forecasts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

from twinseg.volumes import Volume

from .TwinChart import progressionText, scenarioColor, showChart
from .TwinScene import hideMaps, showProbability
from .TwinSession import TwinSession
from .TwinWidgets import fillRow, offer, tell

STEPS = 12  # dates that a forecast is drawn at


class TwinForecastPanel:
    """Asks the worker and shows its answers. `parameters()` gives the choice of model and device."""

    def __init__(self, ui: Any, session: TwinSession, parameters: Callable[[], Any]) -> None:
        self._ui, self._session, self._parameters = ui, session, parameters
        self._map: tuple[Volume, float] | None = None
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
        noMap = "" if self._map is not None else _("Press Forecast first")
        offer(self._ui.adaptButton, _("Lets the model learn from this patient's corrected scans"), reason or noScan)
        offer(self._ui.rollBackButton, _("Takes the adapted model out of use"), reason or noModel)
        tip = _("Forecasts the volume under each treatment, with 50 and 90 % bands")
        offer(self._ui.forecastButton, tip, reason or noScan)
        offer(self._ui.mapButton, _("Lays the probability of tumour on that day over the images"), reason or noMap)

    def clear(self) -> None:
        """The scene goes."""
        self._ui.mapButton.checked = False

    def _onChanged(self) -> None:
        record = self._session.record
        name = record.pseudonym if record is not None else ""
        if name != self._shown or not self._session.forecasts:
            self._shown = name
            self._forget()
        tell(self._ui.adaptLabel, modelText(record.models[-1].content) if record is not None and record.models else "")

    def _forget(self) -> None:
        """No forecast was made of the open twin."""
        self._map = None
        self._ui.mapButton.checked = False
        self._ui.scenarioTable.setRowCount(0)
        self._ui.scenarioTable.setVisible(False)
        tell(self._ui.verdictLabel, "")
        tell(self._ui.adaptLabel, "")

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

    def showForecast(self, answer: Mapping[str, Any], probability: Volume | None) -> None:
        """Show an answer to "forecast" (see `TwinSession.Worker`): chart, times to progression, verdict, map."""
        forecasts = answer["forecasts"]
        table = self._ui.scenarioTable
        table.setRowCount(len(forecasts))
        for row, forecast in enumerate(forecasts):
            fillRow(table, row, (forecast["scenario"], progressionText(forecast)))
            table.item(row, 0).setForeground(qt.QBrush(qt.QColor.fromRgbF(*scenarioColor(row))))
        table.setVisible(True)
        table.selectRow(0)  # which draws the chart
        notes = [note for note in answer["notes"] if note != answer["verdict"]]
        scored = [one["words"] for one in answer.get("scored", ())]
        warning = "⚠ " if answer["beats_both"] is not True else ""
        tell(self._ui.verdictLabel, "\n".join([f"{warning}{answer['verdict']}", *notes, *scored]))
        day = next((f["probability_day"] for f in forecasts if f["probability_day"] is not None), None)
        self._map = (probability, day) if probability is not None and day is not None else None
        self._ui.mapButton.checked = self._map is not None
        self._onMap(self._map is not None)
        self.update("")

    def _onScenario(self) -> None:
        """Draw the bands of the selected scenario."""
        if self._session.forecasts and self._ui.scenarioTable.selectedItems():
            showChart(self._session.record, self._session.forecasts, self._ui.scenarioTable.currentRow())

    def _onMap(self, shown: bool) -> None:
        if shown and self._map is not None:
            with slicer.util.tryWithErrorDisplay(_("The map could not be shown.")):
                showProbability(self._session.record, *self._map)
        else:
            hideMaps(self._session.record)


def modelText(content: Mapping[str, Any]) -> str:
    """What became of the model last: accepted or rejected and why, or rolled back."""
    if content.get("kind") == "rolled back":
        return _("Rolled back: the model before it is used again.")
    verdict = _("In use.") if content.get("accepted") else _("Kept, but not used.")
    return f"{verdict} {content.get('reason', '')}".strip()
