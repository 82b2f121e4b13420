"""The part of the panel that runs an aggregator on this computer, to try a federation out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from twinseg.home import resource_folders

from .Federation import Federation
from .LocalAggregator import AGGREGATOR
from .SiteWatch import Snapshot

STARTER = "brats-glioma.safetensors"


class AggregatorPanel:
    """Shows the aggregator of the trial. `isReady()` tells whether the packages that it needs are installed."""

    def __init__(self, ui: Any, federation: Federation, isReady: Callable[[], bool]) -> None:
        self._ui = ui
        self._federation = federation
        self._isReady = isReady
        starters = [folder / STARTER for folder in resource_folders("Models") if (folder / STARTER).is_file()]
        ui.modelPathLineEdit.currentPath = str(starters[-1]) if starters else ""
        ui.startAggregatorButton.connect("clicked(bool)", self._onStart)
        ui.stopAggregatorButton.connect("clicked(bool)", self._onStop)
        ui.pageButton.connect("clicked(bool)", self._onPage)
        federation.watch.changed.connect(lambda _snapshot: self.update())
        federation.siteChanged.connect(self.update)
        self.update()

    def update(self) -> None:
        """Show whether it runs, where, and what can be pressed."""
        aggregator, snapshot = self._federation.aggregator, self._federation.watch.snapshot
        running = aggregator is not None and aggregator.isRunning
        reason = ""
        if not self._isReady():
            reason = _("Install the packages that an aggregator needs first: see above")
        elif running:
            reason = _("It runs already")
        elif snapshot.isRunning:
            reason = _("Stop the site process first")
        text = _("Makes an aggregator that only this computer can reach, and a token for this site")
        for button, why, toolTip in (
            (self._ui.startAggregatorButton, reason, text),
            (self._ui.stopAggregatorButton, "" if running else _("It does not run"), _("What was sent is kept")),
            (self._ui.pageButton, "" if running else _("It does not run"), _("Its rounds and sites, in the browser")),
        ):
            button.enabled = not why
            button.toolTip = why or toolTip
        self._ui.aggregatorLabel.text = self._text(running, snapshot)
        folder = "" if aggregator is None else str(aggregator.trial / AGGREGATOR)
        self._ui.aggregatorLabel.toolTip = folder or _("Whether it runs, and where")

    def _text(self, running: bool, snapshot: Snapshot) -> str:
        aggregator = self._federation.aggregator
        if aggregator is None:
            return _("Other sites of this computer may join it, too: see Docs/federation.md.")
        if running and snapshot.aggregatorAnswers:
            return _("It runs at {address}. Address and token are filled in above.").format(address=aggregator.address)
        if running:
            return _("It starts …")
        if aggregator.failure:
            return _("It could not run: {failure}").format(failure=aggregator.failure)
        return _("It does not run. Start goes on with the trial {name}.").format(name=aggregator.trial.name)

    def _onStart(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("The aggregator could not be started.")):
            model = Path(self._ui.modelPathLineEdit.currentPath)
            boxes = (self._ui.roundsSpinBox, self._ui.epochsSpinBox, self._ui.sitesSpinBox)
            self._federation.startAggregator(model, *(int(box.value) for box in boxes))

    def _onStop(self) -> None:
        self._federation.stopAggregator()
        self.update()

    def _onPage(self) -> None:
        if self._federation.aggregator is not None:
            qt.QDesktopServices.openUrl(qt.QUrl(self._federation.aggregator.address))
