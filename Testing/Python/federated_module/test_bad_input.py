"""Bad input, from the panel to the real site process and back: a line that says what to do, and the process goes on."""

from __future__ import annotations

import contextlib
import shutil
import time

import psutil
import pytest

from twinseg.case_queue import CaseQueue
from twinseg.cases import find_cases
from twinseg.tasks import load_task
from twinseg.volumes import read_image, read_labels


@pytest.fixture
def small_home(monkeypatch, tmp_path, mount_small_disk):
    """A data folder on a disk of 320 MB; the aggregator takes no upload where less than 256 MB are free."""
    monkeypatch.setenv("TWINSEG_HOME", str(tmp_path / "disk"))
    return mount_small_disk(tmp_path / "disk", "320m")


@pytest.fixture
def queued(cases, home):
    """Puts the cases into the queue; the names of those to train on."""

    def fill():
        task, queue = load_task("brats-glioma"), CaseQueue(home / "cases")
        for case in find_cases(cases, task, require_labels=True):
            images = {name: read_image(path) for name, path in case.images.items()}
            queue.add(task=task, patient=case.patient, images=images, labels=read_labels(case.labels), allow_empty=True)
        return queue, [case.name for case in queue.cases_for_training(task.name, "train")]

    return fill


def start(module, until):
    """Agree, and press Start."""
    module.ui.consentCheckBox.click()
    until(lambda: module.ui.startButton.enabled)
    module.ui.startButton.click()


def test_an_empty_queue_then_one_with_an_image_that_has_vanished(trial, until, queued, home):
    module = trial(rounds=1, epochs=1)
    ui, snapshot = module.ui, lambda: module.logic.federation.watch.snapshot
    ui.casesPathLineEdit.currentPath = ""
    start(module, until)
    until(lambda: "no training case of the task brats-glioma; submit corrected cases" in ui.troubleLabel.text)
    assert ui.troubleLabel.isVisible()
    assert snapshot().isRunning

    ui.pauseButton.click()
    until(lambda: ui.stateLabel.text == "paused")
    queue, (gone, *others) = queued()
    queue.case(gone).image_files["t2"].unlink()
    ui.pauseButton.click()
    until(lambda: snapshot().phase == "finished")

    line = f"it is gone, so its case is left out; restore or withdraw {gone}"
    assert line in ui.logTextEdit.toPlainText()
    assert [row["report"]["samples"] for row in snapshot().rounds if row["phase"] == "sent"] == [len(others)]


def test_a_token_that_the_aggregator_does_not_know(trial, until):
    module = trial(rounds=1, epochs=1)
    ui = module.ui
    ui.tokenLineEdit.text = "twinfed-not-the-token"
    ui.tokenLineEdit.editingFinished.emit()

    start(module, until)

    until(lambda: ui.troubleLabel.text.endswith("The token is not known here. Ask the operator for one."))
    assert module.logic.federation.watch.snapshot.isRunning


def test_a_full_disk_is_told_and_the_process_goes_on_when_there_is_room(home, small_home, trial, until):
    module = trial(rounds=3, epochs=20)
    ui, watch = module.ui, module.logic.federation.watch
    assert small_home in module.logic.federation.folder.parents
    start(module, until)
    until(lambda: watch.snapshot.phase == "training")
    assert ui.troubleLabel.text == ""

    fill(small_home / "filler")
    until(lambda: "free some room" in ui.troubleLabel.text)
    assert shutil.disk_usage(small_home).free == 0
    process = psutil.Process(watch.snapshot.facts["pid"])
    wait = time.monotonic() + 5  # of rounds that cannot be written
    until(lambda: time.monotonic() > wait)
    assert process.is_running()
    (small_home / "filler").unlink()

    until(lambda: watch.snapshot.phase == "finished")
    assert ui.troubleLabel.text == ""
    assert [row["phase"] for row in watch.snapshot.rounds] == ["sent"] * 3


def fill(path):
    """Take all the room on the disk."""
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**20))  # the last one as far as there is room
