"""The part of the panel that starts and stops a segmentation and tells how far it is."""

from __future__ import annotations

import math
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from .ParameterNode import TwinSegSlicerParameterNode
from .Segmenter import Segmenter
from .Worker import WorkerError, WorkerProcess

REFRESH_MS = 500


class SegmentPanel:
    """Shows devices, progress, notices and errors. The buttons' slots are connected by the module's widget."""

    def __init__(self, ui: Any, segmenter: Segmenter, worker: WorkerProcess) -> None:
        self._ui = ui
        self._segmenter = segmenter
        self._worker = worker
        self._parameters: TwinSegSlicerParameterNode | None = None
        self._devices: list[dict[str, Any]] = []
        self._isWarm = self._isUpdating = False
        self._stage = ""
        self._timer = qt.QTimer()
        self._timer.setInterval(REFRESH_MS)
        self._timer.connect("timeout()", self._showStage)
        segmenter.progressed.connect(self._onProgress)
        segmenter.noticed.connect(self._onNotice)
        segmenter.runningChanged.connect(self._onRunning)
        ui.deviceComboBox.connect("currentIndexChanged(int)", self._onDevice)
        for widget in (ui.progressBar, ui.stageLabel, ui.noticeLabel):
            widget.setVisible(False)

    def setParameterNode(self, parameters: TwinSegSlicerParameterNode | None) -> None:
        """Show another parameter node's device."""
        self._parameters = parameters
        self._showDevices()

    def setReason(self, reason: str) -> None:
        """Why Segment cannot be pressed, "" if it can. The first time that it can, the worker is started, so that it is
        warm when the button is pressed, and says which devices there are."""
        self._ui.segmentButton.enabled = not reason
        self._ui.segmentButton.toolTip = reason or _("Segments the selected volumes; Slicer can be used meanwhile")
        running = self._segmenter.isRunning
        self._ui.cancelButton.enabled = running
        self._ui.cancelButton.toolTip = (
            _("Stops within a second; the scene stays as it was") if running else _("Nothing is running")
        )
        if not reason and not self._isWarm:
            self._isWarm = True
            self._askForDevices()

    def showFinished(self, seconds: str) -> None:
        """Tell that a run came to its end, and how long it took."""
        self._stage = _("Done in {seconds} s").format(seconds=seconds)
        self._showStage()

    def showError(self, error: WorkerError) -> None:
        """Tell why a run ended without a result; a dialog, unless the user cancelled it."""
        self._stage = str(error)
        self._showStage()
        if error.kind != "cancelled":
            slicer.util.errorDisplay(_("The segmentation failed.") + f"\n\n{error}")

    def _askForDevices(self) -> None:
        def noted(answer: dict[str, Any]) -> None:
            self._devices = answer["devices"]
            self._showDevices()

        # What is wrong with the worker is told when something is to be segmented.
        self._worker.request({"do": "hello"}, noted, lambda error: self._onNotice(str(error)))

    def _showDevices(self) -> None:
        box = self._ui.deviceComboBox
        self._isUpdating = True
        box.clear()
        box.addItem(_("Automatic"), "auto")
        for device in self._devices:
            free = device["free_bytes"] / 1e9
            title = _("{title} ({free:.1f} GB free)").format(title=device["title"], free=free)
            box.addItem(title, device["name"])
        chosen = self._parameters.device if self._parameters is not None else "auto"
        if box.findData(chosen) < 0:
            box.addItem(chosen, chosen)
        box.setCurrentIndex(box.findData(chosen))
        self._isUpdating = False

    def _onDevice(self) -> None:
        if not self._isUpdating and self._parameters is not None:
            self._parameters.device = self._ui.deviceComboBox.currentData

    def _onRunning(self) -> None:
        running = self._segmenter.isRunning
        self._ui.progressBar.setVisible(running)
        if running:
            self._ui.noticeLabel.setVisible(False)
            self._timer.start()
        else:
            self._timer.stop()
            self._askAgain()

    def _askAgain(self) -> None:
        """Free memory is another after a run."""
        if self._worker.isRunning:
            self._askForDevices()

    def _onProgress(self, done: float, stage: str) -> None:
        self._ui.progressBar.setValue(round(100 * done))
        self._stage = stage
        self._showStage()

    def _showStage(self) -> None:
        left = self._segmenter.secondsLeft
        # Steps of five seconds: a count that jumps up and down says less.
        if left is None or left < 1:
            self._ui.stageLabel.text = self._stage
        else:
            text = _("{stage}, about {seconds} s left")
            self._ui.stageLabel.text = text.format(stage=self._stage, seconds=5 * math.ceil(left / 5))
        self._ui.stageLabel.setVisible(bool(self._stage))

    def _onNotice(self, message: str) -> None:
        self._ui.noticeLabel.text = message
        self._ui.noticeLabel.setVisible(True)
