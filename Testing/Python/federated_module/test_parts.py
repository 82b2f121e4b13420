"""The parts of the federation module, each by itself."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path

import psutil
import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[3]
RESOURCES = REPOSITORY / "FederatedClient/Resources"


def report(before, after):
    return {"samples": 3, "labels": {}, "dice_before": before, "dice_after": after}


@pytest.fixture
def snapshot(module):
    from FederatedClientLib.SiteWatch import Snapshot

    return Snapshot(
        facts={"phase": "training", "site": "A", "weights": {"A": 0.25, "B": 0.75}, "round": 2, "rounds": 3},
        rounds=[
            {"number": 1, "phase": "sent", "report": report(0.1, 0.3)},
            {"number": 2, "phase": "training", "report": None},
        ],
        twins=[
            {"round": 1, "global_file": "g", "twin_file": "t", "global_dice": 0.5, "twin_dice": 0.6},
        ],
        traffic=[{"round": 1, "up": 2_000_000, "down": 500}],
    )


def test_scores_are_ordered_by_rounds_done(snapshot):
    from FederatedClientLib.DicePlot import scores

    assert scores(snapshot) == [(0, {"global": 0.1}), (1, {"local": 0.3, "global": 0.5, "twin": 0.6})]


def test_the_chart_is_brought_up_to_date_and_not_made_twice(slicer_host, snapshot):
    import slicer

    from FederatedClientLib import DicePlot

    charts = [DicePlot.update(snapshot) for _time in range(2)]

    assert charts[0] is charts[1]
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLPlotSeriesNode") == 3
    series = charts[0].GetNthPlotSeriesNode(2)
    table = series.GetTableNode().GetTable()
    assert math.isnan(table.GetColumnByName(series.GetYColumnName()).GetValue(0))
    assert table.GetColumnByName(series.GetYColumnName()).GetValue(1) == 0.6
    assert not charts[0].GetSaveWithScene()
    assert not charts[0].GetYAxisRangeAuto()  # a chart that was shown before may have had millilitres
    assert charts[0].GetYAxisRange()[1] < 1.5


def test_weights_and_traffic_are_shown(module, snapshot):
    ui = module.ui
    module.roundsPanel._onSnapshot(snapshot)
    module.sitePanel._onSnapshot(snapshot)

    texts = [[ui.weightsTable.item(row, column).text() for column in range(2)] for row in range(2)]
    assert texts == [["B", "75.0%"], ["A (this site)", "25.0%"]]
    assert ui.trafficLabel.text == "2.0 MB sent, 0.5 kB received"
    assert ui.stateLabel.text == "ended without being told to"


def test_what_is_chosen_is_kept_in_the_sites_folder(module, tmp_path):
    from FederatedClientLib.JoinSettings import JoinSettings

    settings = JoinSettings(address="https://there.org", hours="20-6", goesOn=True, longestPoll=3.0)
    settings.save(tmp_path / "site")

    assert JoinSettings.load(tmp_path / "site") == settings
    words = settings.words(tmp_path / "site")
    assert words[words.index("--hours") + 1] == "20-6"
    assert "--parent" not in words
    assert str(os.getpid()) in JoinSettings().words(tmp_path)


def test_a_folder_of_cases_that_was_taken_away_is_not_trained_on(module):
    edit, federation = module.ui.casesPathLineEdit, module.logic.federation
    edit.currentPath = "/data"
    assert federation.settings.cases == "/data"

    for typed in ("/dat", "/da", "/d", "/", ""):  # Backspace
        edit.currentPath = typed

    assert federation.settings.cases == ""
    assert "--data" not in federation.settings.words(federation.folder)


def test_the_sites_folder_is_taken_when_its_name_is_typed(slicer_host, module, until, tmp_path):
    edit, federation = module.ui.folderPathLineEdit, module.logic.federation
    edit.currentPath = f"{tmp_path}/site"
    until(lambda: federation.folder == tmp_path / "site")
    folders = []
    federation.siteChanged.connect(lambda: folders.append(federation.folder))
    line = edit.comboBox().lineEdit()
    line.cursorPosition = len(f"{tmp_path}/")

    for key in "second ":
        line.insert(key)
        slicer_host.process_events()
    until(lambda: folders)

    assert edit.currentPath == f"{tmp_path}/second site"
    assert folders == [tmp_path / "second site"]
    assert line.cursorPosition == len(f"{tmp_path}/second ")


def test_a_consent_that_is_given_while_still_typing_is_for_the_folder_that_was_typed(module, tmp_path):
    federation = module.logic.federation
    before = federation.folder
    module.ui.folderPathLineEdit.currentPath = f"{tmp_path}/typed"

    module.ui.consentCheckBox.click()

    assert federation.folder == tmp_path / "typed"
    assert (tmp_path / "typed/consent.json").is_file()
    assert not (before / "consent.json").exists()


@pytest.mark.parametrize("content", ["", "[1]", '{"address": 7, "hours": "20-6", "unknown": 1}', "\x00"])
def test_damaged_settings_are_as_new_ones(module, tmp_path, content):
    from FederatedClientLib.JoinSettings import JoinSettings

    (tmp_path / "join.json").write_text(content)

    assert JoinSettings.load(tmp_path).address == ""


@pytest.fixture
def child(module, monkeypatch, tmp_path):
    """Makes a process that runs a line of Python, noted in a folder; none outlives the test."""
    from FederatedClientLib.ChildProcess import ChildProcess, endTree

    made = []

    def make(code: str) -> ChildProcess:
        monkeypatch.setattr("FederatedClientLib.ChildProcess.PROGRAM", ("-c", code))
        made.append(ChildProcess(tmp_path / "folder with spaces", "site"))
        made[-1].start([])
        return made[-1]

    yield make
    for process in made:
        endTree(process.find())


def test_a_later_slicer_finds_the_process_and_ends_it(child, until, tmp_path):
    from FederatedClientLib.ChildProcess import ChildProcess, endTree

    started = child("import time; time.sleep(60)")
    later = ChildProcess(tmp_path / "folder with spaces", "site")

    assert later.isRunning
    endTree(later.find())
    until(lambda: not started.isRunning)
    assert not later.isRunning


def test_a_process_that_has_the_number_of_one_that_is_gone_is_not_taken_for_it(child, tmp_path):
    from FederatedClientLib.ChildProcess import ChildProcess

    note = tmp_path / "folder with spaces/site.process.json"
    note.parent.mkdir()
    note.write_text(json.dumps({"pid": os.getpid(), "started": psutil.Process().create_time() - 3600}))

    assert not ChildProcess(note.parent, "site").isRunning


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("import sys; print('twinfed: no such folder', file=sys.stderr); sys.exit(2)", "no such folder"),
        ("1/0", "ZeroDivisionError"),
        ("print('done')", ""),
        ("import os, signal; print('half'); os.kill(os.getpid(), signal.SIGTERM)", ""),
    ],
)
def test_why_a_process_ended_is_its_last_line(child, until, code, failure):
    process = child(code)

    until(lambda: not process.isRunning)

    assert process.failure.startswith(failure)
    assert bool(process.failure) == bool(failure)


def test_a_process_that_runs_stops_looking_like_it_when_it_is_a_zombie(child):
    process = child("pass")
    time.sleep(0.5)

    assert not process.isRunning


def packages(name: str) -> dict[str, Requirement]:
    lines = (RESOURCES / f"{name}-requirements.txt").read_text(encoding="utf-8").splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name: requirement for requirement in parsed}


def test_slicer_and_pip_are_asked_for_the_same_versions():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["aggregator"]
    known = {requirement.name: requirement for requirement in map(Requirement, asked)}

    assert {name: known[name] for name in packages("federation")} == packages("federation")
    assert {name: known[name] for name in packages("aggregator")} == packages("aggregator")


def test_without_the_packages_there_is_only_the_offer_to_install_them(slicer_host, home, monkeypatch):
    from TwinSegSlicerLib.Packages import Package

    monkeypatch.setattr(Package, "installedVersion", lambda self: None)
    widget = slicer_host.open(REPOSITORY / "FederatedClient/FederatedClient.py")

    assert not widget.ui.federationWidget.isVisible()
    assert "zstandard" in widget.installPanel.listLabel.text
    monkeypatch.undo()
    monkeypatch.setenv("TWINSEG_HOME", str(home))
    widget.installPanel.checkButton.click()
    assert widget.ui.federationWidget.isVisible()
    assert widget.ui.stateLabel.text == "not started yet"


def test_without_its_own_packages_an_aggregator_is_not_started(module, monkeypatch):
    from TwinSegSlicerLib.Packages import Package

    monkeypatch.setattr(Package, "installedVersion", lambda self: None)
    module.aggregatorInstallPanel.refresh()
    module.aggregatorPanel.update()

    assert not module.ui.startAggregatorButton.enabled
    assert "Install the packages" in module.ui.startAggregatorButton.toolTip
    monkeypatch.undo()
    module.aggregatorInstallPanel.checkButton.click()
    assert module.ui.startAggregatorButton.enabled


def test_a_port_that_is_taken_is_left_alone(module):
    import socket

    from FederatedClientLib.LocalAggregator import _freePort

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert _freePort(taken.getsockname()[1]) != taken.getsockname()[1]


def test_a_state_that_cannot_be_read_is_told(module, home, until):
    folder = home / "federation/site"
    folder.mkdir(parents=True)
    (folder / "site.sqlite").write_bytes(b"this is no database, but long enough to look at" * 50)

    module.logic.federation.watch.look()

    until(lambda: "cannot be read" in module.ui.troubleLabel.text)
