"""The part of the panel that shows what the rounds brought: weights, Dice, the site twin, and the cases behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from twinfed.client.site_twin import choose, choose_newest

from . import DicePlot
from .Federation import Federation
from .SiteWatch import Snapshot

MOST_ROWS, ROW_HEIGHT = 6, 22


class RoundsPanel:
    """Shows each `Snapshot` of the site."""

    def __init__(self, ui: Any, federation: Federation) -> None:
        self._ui = ui
        self._federation = federation
        self._isUpdating = False
        ui.plotButton.connect("clicked(bool)", self._onPlot)
        ui.offerComboBox.connect("activated(int)", self._onOffer)
        for table, titles in (
            (ui.weightsTable, (_("Site"), _("Weight in the last model"))),
            (ui.casesTable, (_("Case"), _("State"), _("Part"), _("Since"))),
        ):
            table.setColumnCount(len(titles))
            table.setHorizontalHeaderLabels(titles)
            table.verticalHeader().setVisible(False)
            table.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
            table.horizontalHeader().setStretchLastSection(True)
            table.setWordWrap(False)
        for column, width in enumerate((120, 80, 70)):
            ui.casesTable.setColumnWidth(column, width)
        ui.weightsTable.setColumnWidth(0, 180)
        federation.watch.changed.connect(self._onSnapshot)
        self._onSnapshot(federation.watch.snapshot)

    def updatePlot(self) -> None:
        """Make the chart of the scene anew, as after the scene was closed."""
        DicePlot.update(self._federation.watch.snapshot)

    def _onSnapshot(self, snapshot: Snapshot) -> None:
        self._showWeights(snapshot)
        self._showOffer(snapshot)
        self._showCases(snapshot)
        chart = DicePlot.update(snapshot)
        self._ui.plotButton.enabled = chart is not None
        shown = _("Shows Dice on this site's validation cases by round, beside the images")
        self._ui.plotButton.toolTip = shown if chart is not None else _("No round has been scored yet")

    def _showWeights(self, snapshot: Snapshot) -> None:
        weights: dict[str, float] = snapshot.facts.get("weights") or {}
        own = snapshot.facts.get("site")
        rows = [
            (_("{site} (this site)").format(site=site) if site == own else site, f"{share:.1%}")
            for site, share in sorted(weights.items(), key=lambda entry: -entry[1])
        ]
        _fill(self._ui.weightsTable, rows)
        if own in weights:
            text = _("This site weighed {share:.1%} in the last model.").format(share=weights[own])
        elif rows:
            text = _("This site had no part in the last model.")
        else:
            text = _("How much each site weighs in the last model is shown after the first round.")
        self._ui.weightsLabel.text = text

    def _showOffer(self, snapshot: Snapshot) -> None:
        """The models to choose from, the newest first; that a twin is worse stands beside it."""
        self._isUpdating = True
        box, offer = self._ui.offerComboBox, snapshot.offer
        box.clear()
        box.addItem(_("Automatic: the better one of the newest round"), None)
        for row in reversed(snapshot.twins):
            for kind, title in (("twin", _("site twin")), ("global", _("global model"))):
                if row[f"{kind}_file"] is not None:
                    dice = "–" if row[f"{kind}_dice"] is None else f"{row[f'{kind}_dice']:.3f}"
                    text = _("Round {round}: {title}, Dice {dice}").format(round=row["round"], title=title, dice=dice)
                    box.addItem(text, f"{row['round']} {kind}")
        chosen = box.findData(f"{offer.round} {offer.kind}") if offer is not None and offer.chosen else 0
        box.setCurrentIndex(max(0, chosen))
        box.enabled = bool(snapshot.twins)
        self._ui.offerLabel.text = offer.words if offer is not None else _("There is a model after the first round.")
        self._isUpdating = False

    def _showCases(self, snapshot: Snapshot) -> None:
        cases = snapshot.cases
        rows = [(case.name, case.state, case.part, case.since[5:16].replace("T", " ")) for case in cases]
        _fill(self._ui.casesTable, rows)
        if self._federation.settings.cases:
            text = _("Trained on is the folder {folder}, not the queue.").format(folder=self._federation.settings.cases)
        elif cases:
            trained = sum(case.part == "train" and case.state != "withdrawn" for case in cases)
            text = _("{count} cases in the queue, {trained} of them to train on").format(
                count=len(cases), trained=trained
            )
        else:
            text = _("The queue is empty: submit corrected segmentations in the module TwinSeg Segmentation.")
        self._ui.casesLabel.text = text

    def _onPlot(self) -> None:
        if (chart := DicePlot.update(self._federation.watch.snapshot)) is not None:
            DicePlot.show(chart)

    def _onOffer(self, index: int) -> None:
        if self._isUpdating:
            return
        data = self._ui.offerComboBox.itemData(index)
        with slicer.util.tryWithErrorDisplay(_("The model could not be chosen.")):
            if data is None:
                choose_newest(self._federation.folder)
            else:
                number, kind = data.split()
                choose(self._federation.folder, int(number), kind)
        self._federation.watch.look()


def _fill(table: Any, rows: Sequence[tuple[str, ...]]) -> None:
    """Show these rows, some of them without scrolling; no table where there are none."""
    table.setRowCount(len(rows))
    for row, texts in enumerate(rows):
        for column, text in enumerate(texts):
            item = qt.QTableWidgetItem(text)
            item.setToolTip(text)
            table.setItem(row, column, item)
    table.setVisible(bool(rows))
    height = table.horizontalHeader().sizeHint.height() + 4
    table.setFixedHeight(height + sum(table.rowHeight(row) for row in range(min(len(rows), MOST_ROWS))))
