"""The part of the panel where the user says which federation, reads what is sent, and agrees to it or not."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from twinfed.client.controls import STATEMENT
from TwinSegSlicerLib.Background import BackgroundTask

from .Federation import Federation
from .JoinSettings import TOKEN
from .Preview import Preview, makePreview
from .SiteWatch import Snapshot

TYPING_MS = 500  # a pause in typing that is this long ends it
DEVICES = ("auto", "cpu", "cuda", "cuda:1", "mps")


class JoinPanel:
    """Shows and keeps the settings of the site's folder. While the process runs they cannot be changed."""

    def __init__(self, ui: Any, federation: Federation) -> None:
        self._ui = ui
        self._federation = federation
        self._isUpdating = False
        self._preview: BackgroundTask | None = None
        self._texts = {"address": ui.addressLineEdit, "hours": ui.hoursLineEdit}
        self._paths = {
            "authority": ui.authorityPathLineEdit,
            "certificate": ui.certificatePathLineEdit,
            "key": ui.keyPathLineEdit,
            "cases": ui.casesPathLineEdit,
        }
        ui.deviceComboBox.addItems(DEVICES)
        ui.statementLabel.text = " ".join(STATEMENT.split())
        for edit in self._texts.values():
            edit.connect("editingFinished()", self._onEdited)
        for path in self._paths.values():
            path.connect("currentPathChanged(QString)", self._onEdited)
            path.connect("validInputChanged(bool)", self._onEdited)  # an emptied field tells only this
        ui.deviceComboBox.connect("currentIndexChanged(int)", self._onEdited)
        ui.goesOnCheckBox.connect("toggled(bool)", self._onEdited)
        ui.tokenLineEdit.connect("editingFinished()", self._onToken)
        self._typing = qt.QTimer(ui.folderPathLineEdit)  # whose child it is: it ends with the panel
        self._typing.setSingleShot(True)
        self._typing.setInterval(TYPING_MS)
        self._typing.connect("timeout()", self._takeFolder)
        ui.folderPathLineEdit.connect("currentPathChanged(QString)", self._onFolder)
        for button in (ui.startButton, ui.previewButton, ui.consentCheckBox, ui.shareModelCheckBox):
            button.connect("pressed()", self._endTyping)  # comes before clicked: what it does is for that folder
        ui.previewButton.connect("clicked(bool)", self._onPreview)
        ui.consentCheckBox.connect("clicked(bool)", self._onConsent)
        ui.shareModelCheckBox.connect("clicked(bool)", self._onShareModel)
        federation.siteChanged.connect(self.showSettings)
        federation.watch.changed.connect(self._onSnapshot)
        self.showSettings()
        self._onSnapshot(federation.watch.snapshot)

    def showSettings(self) -> None:
        """Show what the site's folder holds."""
        self._isUpdating = True
        settings = self._federation.settings
        for name, edit in self._texts.items():
            edit.text = getattr(settings, name)
        for name, path in self._paths.items():
            if path.currentPath != getattr(settings, name):  # even the same text would move the cursor
                path.currentPath = getattr(settings, name)
        if self._ui.deviceComboBox.findText(settings.device) < 0:
            self._ui.deviceComboBox.addItem(settings.device)
        self._ui.deviceComboBox.setCurrentText(settings.device)
        self._ui.goesOnCheckBox.checked = settings.goesOn
        if Path(self._ui.folderPathLineEdit.currentPath) != self._federation.folder:
            self._ui.folderPathLineEdit.currentPath = str(self._federation.folder)
        self._ui.tokenLineEdit.text = ""
        self._ui.shareModelCheckBox.checked = False
        self._showToken()
        self._hidePreview()
        self._isUpdating = False

    def _onSnapshot(self, snapshot: Snapshot) -> None:
        locked = _("Stop the site process to change this") if snapshot.isRunning else ""
        for widget in (*self._texts.values(), *self._paths.values(), self._ui.tokenLineEdit, self._ui.deviceComboBox):
            widget.enabled = not locked
        self._ui.goesOnCheckBox.enabled = not locked
        self._ui.consentCheckBox.checked = bool(snapshot.consent)
        if snapshot.consent:
            self._ui.shareModelCheckBox.checked = snapshot.consent.shares_local_model
            text = _("Agreed on {when}, for {address}. Take the tick away to withdraw.").format(
                when=snapshot.consent.when[:16].replace("T", " "), address=snapshot.consent.address
            )
        else:
            text = _("Without consent nothing is trained or sent.")
        self._ui.consentLabel.text = text
        self._ui.consentLabel.toolTip = locked or text

    def _onEdited(self, *_value: Any) -> None:
        if self._isUpdating:
            return
        values: dict[str, Any] = {name: edit.text.strip() for name, edit in self._texts.items()}
        values |= {name: path.currentPath for name, path in self._paths.items()}
        values |= {"device": self._ui.deviceComboBox.currentText, "goesOn": bool(self._ui.goesOnCheckBox.checked)}
        with slicer.util.tryWithErrorDisplay(_("The settings could not be kept.")):
            self._federation.setSettings(replace(self._federation.settings, **values))

    def _onToken(self) -> None:
        token = self._ui.tokenLineEdit.text.strip()
        if token:
            with slicer.util.tryWithErrorDisplay(_("The token could not be kept.")):
                self._federation.setToken(token)
            self._ui.tokenLineEdit.text = ""
        self._showToken()

    def _showToken(self) -> None:
        there = (self._federation.folder / TOKEN).is_file()
        text = _("kept; paste another one to replace it") if there else _("paste what twinfed site add printed")
        self._ui.tokenLineEdit.placeholderText = text

    def _onFolder(self) -> None:
        if not self._isUpdating:
            self._typing.start()  # anew with each key

    def _endTyping(self) -> None:
        self._typing.stop()
        self._takeFolder()

    def _takeFolder(self) -> None:
        if path := self._ui.folderPathLineEdit.currentPath:
            self._federation.setFolder(Path(path))

    def _onPreview(self) -> None:
        if self._ui.previewBrowser.isVisible():
            self._hidePreview()
            return
        self._ui.previewButton.enabled = False
        folder, settings = self._federation.folder, self._federation.settings
        self._preview = BackgroundTask(lambda: makePreview(folder, settings), self._showPreview, self._onNoPreview)

    def _showPreview(self, preview: Preview) -> None:
        self._tellPreview(preview.toHtml())

    def _onNoPreview(self, error: Exception) -> None:
        self._tellPreview(html.escape(_("It cannot be shown yet: {error}").format(error=error)))

    def _tellPreview(self, text: str) -> None:
        self._preview = None
        self._ui.previewButton.enabled = True
        self._ui.previewButton.text = _("Hide it")
        self._ui.previewBrowser.setHtml(text)
        self._ui.previewBrowser.setVisible(True)

    def _hidePreview(self) -> None:
        if self._preview is not None:
            self._preview.abandon()
            self._preview = None
        self._ui.previewButton.enabled = True
        self._ui.previewButton.text = _("Show the actual numbers and tensor names")
        self._ui.previewBrowser.setVisible(False)

    def _onConsent(self, agreed: bool) -> None:
        with slicer.util.tryWithErrorDisplay(_("The consent could not be noted.")):
            if agreed:
                self._federation.agree(bool(self._ui.shareModelCheckBox.checked))
            else:
                self._federation.disagree()

    def _onShareModel(self, agreed: bool) -> None:
        """Agreed to anew, with this or without; before the consent it is only chosen."""
        if self._ui.consentCheckBox.checked:
            with slicer.util.tryWithErrorDisplay(_("The consent could not be noted.")):
                self._federation.agree(agreed)
