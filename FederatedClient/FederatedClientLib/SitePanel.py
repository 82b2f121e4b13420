"""The part of the panel that tells what the site process is at, starts, pauses and stops it, and shows its log."""

from __future__ import annotations

import time
from typing import Any

import slicer
from slicer.i18n import tr as _

from .Federation import Federation
from .SiteWatch import Snapshot

WORKING = ("training", "fine-tuning the site twin")  # phases that tell how far they are


class SitePanel:
    """Shows each `Snapshot` of the site."""

    def __init__(self, ui: Any, federation: Federation) -> None:
        self._ui = ui
        self._federation = federation
        self._lines: list[dict[str, Any]] = []
        ui.startButton.connect("clicked(bool)", self._onStart)
        ui.pauseButton.connect("clicked(bool)", self._onPause)
        ui.stopButton.connect("clicked(bool)", self._onStop)
        federation.watch.changed.connect(self._onSnapshot)
        federation.watch.failed.connect(self._onFailed)
        self._onSnapshot(federation.watch.snapshot)

    def _onSnapshot(self, snapshot: Snapshot) -> None:
        facts = snapshot.facts
        self._ui.stateLabel.text = stateText(snapshot)
        self._tell(troubleText(snapshot))
        if facts.get("round"):
            text = _("{round} of {rounds}, {federation}, task {task}").format(
                round=min(facts["round"], facts["rounds"]),
                rounds=facts["rounds"],
                federation=facts.get("federation"),
                task=facts.get("task"),
            )
            self._ui.roundLabel.text = f"{text}, {engine}" if (engine := engineText(snapshot)) else text
        else:
            self._ui.roundLabel.text = "–"
        traffic = _("{up} sent, {down} received").format(up=sizeText(snapshot.sent), down=sizeText(snapshot.received))
        self._ui.trafficLabel.text = traffic
        self._ui.progressBar.setVisible(snapshot.isRunning and snapshot.phase in WORKING)
        self._ui.progressBar.setValue(round(100 * float(facts.get("progress") or 0)))
        self._showButtons(snapshot)
        self._showLog(snapshot.lines)

    def _showButtons(self, snapshot: Snapshot) -> None:
        running = snapshot.isRunning
        reason = _("It runs already") if running else self._whyNotStart(snapshot)
        notRunning = "" if running else _("It does not run")
        explained = {
            self._ui.startButton: (_("Starts a process that trains and exchanges updates beside Slicer"), reason),
            self._ui.pauseButton: (_("It stands still, and goes on from there when pressed again"), notRunning),
            self._ui.stopButton: (_("It stops within two seconds; what it was at is gone on with later"), notRunning),
        }
        for button, (toolTip, why) in explained.items():
            button.enabled = not why
            button.toolTip = why or toolTip
        self._ui.whyNotLabel.text = reason
        self._ui.whyNotLabel.setVisible(bool(reason) and not running)
        self._ui.pauseButton.checked = running and snapshot.isPaused

    def _whyNotStart(self, snapshot: Snapshot) -> str:
        if engineText(snapshot):
            return _("NVFlare starts it with each job; see Docs/nvflare.md")
        return self._federation.whyNotStart()

    def _showLog(self, lines: list[dict[str, Any]]) -> None:
        if lines == self._lines:
            return
        self._lines = lines
        self._ui.logTextEdit.setPlainText("\n".join(map(_logLine, lines)))
        bar = self._ui.logTextEdit.verticalScrollBar()
        bar.setValue(bar.maximum)

    def _tell(self, trouble: str) -> None:
        self._ui.troubleLabel.text = trouble
        self._ui.troubleLabel.setVisible(bool(trouble))

    def _onFailed(self, error: str) -> None:
        self._tell(_("The site's state cannot be read ({error}). It is tried again.").format(error=error))

    def _onStart(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("The site process could not be started.")):
            self._federation.start()

    def _onPause(self, paused: bool) -> None:
        with slicer.util.tryWithErrorDisplay(_("The site process could not be told.")):
            self._federation.site.pause(paused)
            self._federation.watch.look()

    def _onStop(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("The site process could not be told.")):
            self._federation.site.stop()
            self._federation.watch.look()


def stateText(snapshot: Snapshot) -> str:
    """What the site does, in a few words."""
    phase = snapshot.phase
    if not phase:
        return _("not started yet")
    if phase == "ended":
        return _("ended without being told to")
    if phase == WORKING[0] and snapshot.facts.get("stage"):
        return f"{phase}: {snapshot.facts['stage']}"
    return phase


def engineText(snapshot: Snapshot) -> str:
    """Which engine the site is joined to, "" for our own."""
    return _("under NVFlare") if snapshot.facts.get("engine") == "nvflare" else ""


def troubleText(snapshot: Snapshot) -> str:
    """What is wrong and what to do, "" if all is well."""
    if snapshot.isRunning and snapshot.isDiskFull:
        return _("The disk with the site's folder is full: free some room. It then goes on by itself.")
    if snapshot.isRunning:
        return str(snapshot.facts.get("trouble") or "")
    if snapshot.failure:
        return _("It could not go on: {failure}").format(failure=snapshot.failure)
    if snapshot.phase == "ended":
        if engineText(snapshot):
            return _("NVFlare starts it again with the next job.")
        return _("Press Start: it goes on from where it was.")
    return ""


def sizeText(size: int) -> str:
    """Bytes as they are read."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1000:.1f} kB"


def _logLine(line: dict[str, Any]) -> str:
    moment = time.strftime("%d.%m. %H:%M:%S", time.localtime(line["time"]))
    level = "" if line["level"] == "info" else f"{line['level']}: "
    return f"{moment}  {level}{line['text']}"
