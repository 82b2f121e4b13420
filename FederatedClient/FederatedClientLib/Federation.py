"""What the module can do, without its panel: one site's folder, its process, and the aggregator of a trial."""

from __future__ import annotations

from pathlib import Path

from twinfed.client import controls
from TwinSegSlicerLib.Worker import Signal

from .JoinSettings import JoinSettings, chooseFolder, chosenFolder, writeToken
from .LocalAggregator import LocalAggregator
from .SiteProcess import SiteProcess
from .SiteWatch import SiteWatch


class Federation:
    """The site that this computer takes part as. `siteChanged` is emitted when another folder is chosen. Methods raise
    ValueError, in one line, for what cannot be."""

    def __init__(self) -> None:
        self.siteChanged = Signal()
        self.aggregator: LocalAggregator | None = None
        self.settings: JoinSettings
        self.watch = SiteWatch(lambda: self.aggregator is not None and self.aggregator.answers())
        self._use(chosenFolder())

    @property
    def folder(self) -> Path:
        """The site's: state, models, updates, settings, token."""
        return self.site.folder

    def setFolder(self, folder: Path) -> None:
        """Take part from another folder from now on. The process of the one before goes on."""
        if folder != self.folder:
            chooseFolder(folder)
            self._use(folder)

    def setSettings(self, settings: JoinSettings) -> None:
        """Keep the settings. A consent holds for one aggregator only: with another address it is withdrawn."""
        if settings == self.settings:
            return
        if settings.address != self.settings.address:
            controls.withdraw_consent(self.folder)
        settings.save(self.folder)
        self.settings = settings
        self.watch.look()

    def setToken(self, token: str) -> None:
        """Keep the site's token."""
        writeToken(self.folder, token)
        self.watch.look()

    def whyNotStart(self) -> str:
        """Why the site process cannot be started, "" if it can."""
        return self.site.whyNot(self.settings)

    def start(self) -> None:
        """Start the site process."""
        self.site.start(self.settings)
        self.watch.look()

    def agree(self, sharesLocalModel: bool = False) -> None:
        """Give consent to what `controls.STATEMENT` says, and to `controls.OWN_MODEL` or not."""
        controls.withdraw_consent(self.folder)  # which may have been to more
        controls.give_consent(self.folder, self.settings.address, "in Slicer", share_local_model=sharesLocalModel)
        self.watch.look()

    def disagree(self) -> None:
        """Withdraw consent: from the next step on nothing is trained or sent."""
        controls.withdraw_consent(self.folder)
        self.watch.look()

    def startAggregator(self, model: Path, rounds: int, epochs: int, sites: int = 1) -> None:
        """Start the aggregator of this folder's trial; a new trial where there is none, or it is finished."""
        trial = self.aggregator
        if trial is None or self.watch.snapshot.phase == "finished":
            if trial is not None:
                trial.stop()
            trial = LocalAggregator.make(model, rounds, epochs, sites)
        trial.start()
        chooseFolder(trial.site)
        self._use(trial.site)

    def stopAggregator(self) -> None:
        """End the aggregator of the trial; it can be started again."""
        if self.aggregator is not None:
            self.aggregator.stop()
        self.watch.look()

    def leave(self) -> None:
        """For Slicer's end: end what is not to go on."""
        self.watch.stop()
        if not self.settings.goesOn:
            self.site.stopAndWait()
            self.stopAggregator()

    def _use(self, folder: Path) -> None:
        self.site, self.settings = SiteProcess(folder), JoinSettings.load(folder)
        current = self.aggregator
        self.aggregator = current if current and current.site == folder else LocalAggregator.of(folder)
        self.siteChanged.emit()
        self.watch.watch(self.site)
