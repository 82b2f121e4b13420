"""The federation module as its user meets it, with a real aggregator and a real site process."""

from __future__ import annotations

import unittest
from pathlib import Path

import psutil
import pytest


@pytest.fixture
def snapshot(module):
    return lambda: module.logic.federation.watch.snapshot


def test_a_trial_from_the_first_press_to_the_twin(slicer_host, trial, until, snapshot):
    import slicer

    from TwinSegSlicerLib.Heartbeat import Heartbeat

    module = trial(rounds=2, epochs=40)
    ui = module.ui
    assert ui.addressLineEdit.text.startswith("http://127.0.0.1:")
    assert "kept" in ui.tokenLineEdit.placeholderText
    assert ui.startButton.toolTip == "Read what is sent, and agree to it"

    ui.previewButton.click()
    until(lambda: ui.previewBrowser.isVisible())
    before = ui.previewBrowser.toPlainText()
    assert "What the first update would hold" in before
    assert "samples" in before
    assert ".weight" in before
    ui.consentCheckBox.click()
    until(lambda: ui.startButton.enabled)
    heartbeat = Heartbeat(lambda: snapshot().phase == "training")
    ui.startButton.click()
    until(lambda: snapshot().phase == "finished")
    heartbeat.stop()
    assert len(heartbeat.watched) > 20
    assert heartbeat.longestButOne < 0.05
    until(lambda: not snapshot().isRunning)

    assert ui.roundLabel.text.startswith("2 of 2")
    assert ui.stateLabel.text == "finished"
    assert "all 2 rounds" in ui.logTextEdit.toPlainText()
    assert snapshot().sent > 0
    assert "Dice on this site's validation cases: twin 0." in ui.offerLabel.text
    ui.plotButton.click()
    chart = slicer.app.layoutManager().plotWidget(0).mrmlPlotViewNode().GetPlotChartNode()
    table = chart.GetNthPlotSeriesNode(0).GetTableNode()
    assert (table.GetNumberOfRows(), chart.GetNumberOfPlotSeriesNodes()) == (3, 3)
    ui.previewButton.click()
    assert not ui.previewBrowser.isVisible()
    ui.previewButton.click()
    until(lambda: "The update of round 2" in ui.previewBrowser.toPlainText())
    assert "dice_after" in ui.previewBrowser.toPlainText()
    slicer_host.close_scene()
    assert slicer.util.getNodesByClass("vtkMRMLPlotChartNode") != []

    for index in (ui.offerComboBox.findData("2 global"), 0):
        assert index >= 0
        ui.offerComboBox.setCurrentIndex(index)
        ui.offerComboBox.activated.emit(index)
        until(lambda: snapshot().offer.chosen == bool(index))  # noqa: B023 (waited for within the turn)
        assert ui.offerComboBox.currentIndex == index


def test_pause_withdraw_and_stop_while_it_trains(trial, until, snapshot):
    module = trial(rounds=1, epochs=500)
    ui, federation = module.ui, module.logic.federation
    ui.consentCheckBox.click()
    until(lambda: ui.startButton.enabled)
    ui.startButton.click()
    until(lambda: snapshot().phase == "training" and snapshot().facts.get("progress"))
    assert not ui.addressLineEdit.enabled

    ui.pauseButton.click()
    until(lambda: ui.stateLabel.text == "paused")
    ui.pauseButton.click()
    until(lambda: snapshot().phase == "training")
    ui.consentCheckBox.click()
    until(lambda: ui.stateLabel.text == "without consent")
    assert snapshot().sent == 0
    ui.consentCheckBox.click()
    until(lambda: snapshot().phase == "training")
    ui.stopButton.click()
    until(lambda: not snapshot().isRunning, seconds=20)

    assert ui.stateLabel.text == "stopped"
    assert ui.startButton.enabled
    assert not federation.site.isRunning()


def test_a_killed_process_is_told_of_and_goes_on_when_started_again(trial, until, snapshot):
    module = trial(rounds=1, epochs=60)
    ui, federation = module.ui, module.logic.federation
    ui.consentCheckBox.click()
    until(lambda: ui.startButton.enabled)
    ui.startButton.click()
    until(lambda: snapshot().phase == "training" and snapshot().facts.get("progress"))

    for process in (federation.site._child.find(), psutil.Process(snapshot().facts["pid"])):
        if process.is_running():
            process.kill()
    until(lambda: ui.stateLabel.text == "ended without being told to")
    assert "goes on from where it was" in ui.troubleLabel.text
    ui.startButton.click()
    until(lambda: snapshot().phase == "finished")

    assert [row["phase"] for row in snapshot().rounds] == ["sent"]


def test_it_survives_slicer_only_where_the_user_said_so(slicer_host, trial, until, snapshot):
    from FederatedClientLib.Federation import Federation

    module = trial(rounds=1, epochs=500)
    ui, federation = module.ui, module.logic.federation
    ui.goesOnCheckBox.click()
    ui.consentCheckBox.click()
    until(lambda: ui.startButton.enabled)
    ui.startButton.click()
    until(lambda: snapshot().phase == "training")

    module.cleanup()
    assert federation.site.isRunning()
    later = Federation()
    assert later.folder == federation.folder
    until(lambda: later.watch.snapshot.isRunning)
    assert later.aggregator.isRunning
    later.site.stopAndWait()
    later.stopAggregator()
    until(lambda: not later.watch.snapshot.isRunning)
    later.leave()

    assert not federation.site.isRunning()
    assert not federation.aggregator.isRunning


def test_slicers_end_ends_both(trial, until, snapshot):
    module = trial(rounds=1, epochs=500)
    ui, federation = module.ui, module.logic.federation
    ui.consentCheckBox.click()
    until(lambda: ui.startButton.enabled)
    ui.startButton.click()
    until(lambda: snapshot().phase == "training")

    module.cleanup()

    assert not federation.site.isRunning(snapshot().facts["pid"], snapshot().facts["started"])
    assert not federation.aggregator.isRunning


def test_another_aggregator_needs_another_consent(trial, until, snapshot):
    ui = trial().ui
    ui.consentCheckBox.click()
    until(lambda: snapshot().consent)

    ui.addressLineEdit.text = "https://elsewhere.example.org"
    ui.addressLineEdit.editingFinished.emit()
    until(lambda: not snapshot().consent)

    assert not ui.consentCheckBox.checked
    assert ui.startButton.toolTip == "Read what is sent, and agree to it"


def test_a_consent_that_another_address_has_is_told_and_can_be_withdrawn(trial, until, snapshot):
    from twinfed.client.controls import give_consent

    module = trial()
    ui, federation = module.ui, module.logic.federation
    give_consent(federation.folder, "https://elsewhere.example.org", "twinfed join")

    until(lambda: "https://elsewhere.example.org" in ui.consentLabel.text)
    assert not ui.startButton.enabled
    assert "What was agreed to is for https://elsewhere.example.org" in ui.whyNotLabel.text
    for _click in ("withdraw", "agree"):
        before = snapshot().consent
        ui.consentCheckBox.click()
        until(lambda: snapshot().consent != before)  # noqa: B023 (waited for within the turn)

    until(lambda: ui.startButton.enabled)
    assert ui.addressLineEdit.text in ui.consentLabel.text


def test_that_other_sites_get_its_own_model_is_agreed_to_besides(trial, until, snapshot):
    ui = trial().ui
    assert "fewer than three sites" in ui.statementLabel.text
    ui.consentCheckBox.click()
    until(lambda: snapshot().consent)
    assert not snapshot().consent.shares_local_model

    for shares in (True, False):
        ui.shareModelCheckBox.click()
        until(lambda: snapshot().consent and snapshot().consent.shares_local_model == shares)  # noqa: B023
        assert ui.shareModelCheckBox.checked == shares


@pytest.mark.parametrize(
    ("address", "token", "reason"),
    [
        ("", "", "Enter the aggregator's address"),
        ("elsewhere", "twinfed-12345678", "this is no address"),
        ("http://elsewhere.example.org:8600", "twinfed-12345678", "the token would cross the network in the clear"),
        ("https://elsewhere.example.org", "", "holds no token"),
        ("https://elsewhere.example.org", "twinfed-12345678", "Read what is sent"),
    ],
)
def test_why_it_cannot_start_is_in_the_panel(module, until, address, token, reason):
    ui = module.ui
    ui.addressLineEdit.text, ui.tokenLineEdit.text = address, token
    ui.addressLineEdit.editingFinished.emit()
    ui.tokenLineEdit.editingFinished.emit()
    module.sitePanel._onSnapshot(module.logic.federation.watch.snapshot)

    assert not ui.startButton.enabled
    assert reason in ui.startButton.toolTip
    assert reason in ui.whyNotLabel.text


def test_the_token_is_kept_for_this_user_only_and_not_shown(module, home):
    ui = module.ui
    ui.tokenLineEdit.text = " twinfed-secret-token \n"
    ui.tokenLineEdit.editingFinished.emit()

    file = home / "federation/site/token"
    assert file.read_text() == "twinfed-secret-token\n"
    assert file.stat().st_mode & 0o077 == 0
    assert ui.tokenLineEdit.text == ""


def test_what_an_unreachable_aggregator_means_for_the_preview(module, until):
    ui = module.ui
    ui.addressLineEdit.text, ui.tokenLineEdit.text = "http://127.0.0.1:9", "twinfed-12345678"
    ui.addressLineEdit.editingFinished.emit()
    ui.tokenLineEdit.editingFinished.emit()

    ui.previewButton.click()

    until(lambda: ui.previewBrowser.isVisible())
    assert "it cannot be reached" in ui.previewBrowser.toPlainText()


def test_a_model_file_that_is_none_is_told(slicer_host, module, tmp_path):
    (tmp_path / "none.safetensors").write_bytes(b"nothing")
    module.ui.modelPathLineEdit.currentPath = str(tmp_path / "none.safetensors")

    with slicer_host.faults.expect("none.safetensors"):
        module.ui.startAggregatorButton.click()

    assert module.logic.federation.aggregator is None


def test_the_panel_fits_400_pixels_and_every_control_says_what_it_does(slicer_host, module):
    import qt
    import slicer

    panel = slicer.util.getModule("FederatedClient").widgetRepresentation()
    slicer_host.process_events()

    assert panel.minimumSizeHint.width() <= 400
    kinds = (qt.QAbstractButton, qt.QComboBox, qt.QLineEdit, qt.QAbstractItemView, qt.QProgressBar, qt.QTextEdit)
    controls = [w for kind in kinds for w in panel.findChildren(kind)]
    named = [
        w for w in controls if w.objectName and not w.objectName.startswith("qt_") and "ollapsible" not in w.objectName
    ]
    assert len(named) > 15
    assert [w.objectName for w in named if not has_tool_tip(w)] == []


def has_tool_tip(widget):
    """Its own, or that of the control that it is a part of."""
    return bool(widget.toolTip) or bool(widget.parent() is not None and getattr(widget.parent(), "toolTip", ""))


def test_nothing_is_written_or_started_by_opening(module, home: Path, until):
    until(lambda: module.logic.federation.watch._task is None)

    assert not home.exists()
    assert not module.logic.federation.watch.snapshot.isRunning


def test_slicers_unit_tests_find_the_self_test_and_no_part_of_it(slicer_host, module):
    suite = unittest.TestLoader().loadTestsFromName("FederatedClient")  # as slicer.testing.runUnitTest does

    found = {test.id() for of_class in suite for test in of_class}
    assert found == {
        "FederatedClient.FederatedClientTest.runTest",
        "slicer.ScriptedLoadableModule.ScriptedLoadableModuleTest.runTest",
    }


@pytest.mark.slow
def test_the_self_test_passes(slicer_host, module):
    import slicer

    slicer.selfTests["FederatedClient"]()
