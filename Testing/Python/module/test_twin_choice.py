"""Which patient's adapted model segments: offered where one is in use, sent to the worker, told with the result."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from twinseg.model_file import read_card
from twinseg.segmentation import starter_model
from twinseg.twin.adaptation_delta import keep_delta, roll_back
from twinseg.twin.store import Twin

SECONDS = 120
ALL_OEDEMA = {"heads.0.bias": torch.tensor([-50.0, -50.0, 50.0, -50.0])}  # a delta whose mark cannot be missed


@pytest.fixture
def base():
    """The hash of the starter model."""
    return read_card(starter_model("brats-glioma")).hash


@pytest.fixture
def make_twin(own_home):
    """Makes a twin in the data folder."""

    def make(name, task="brats-glioma"):
        return Twin.create(own_home / "twins" / name, task=task, pseudonym=name)

    return make


@pytest.fixture
def adapted(make_twin, base):
    """A twin with an accepted delta on the starter model."""
    twin = make_twin("P-7")
    keep_delta(twin, base, ALL_OEDEMA, {"accepted": True})
    return twin


@pytest.fixture
def look(slicer_host, module_widget, worker):
    """Lets the choice look again, as when the tab is chosen, and waits for the worker; returns what is offered. The
    worker is that of all tests, as importing torch is what takes long."""
    box = module_widget.ui.patientTwinComboBox
    module_widget.twinPanel.choice._worker = worker

    def offered():
        module_widget.ui.tabWidget.setCurrentIndex(1)
        module_widget.ui.tabWidget.setCurrentIndex(0)
        assert slicer_host.app.wait_until(lambda: "Looking" not in box.toolTip, SECONDS)
        return {box.itemData(row): box.itemText(row) for row in range(box.count)}

    return offered


def test_without_a_twin_it_is_disabled_and_says_why(module_widget, worker, look, monkeypatch):
    asked = []
    monkeypatch.setattr(worker, "request", lambda message, *calls: asked.append(message))
    assert look() == {"": "none"}
    box = module_widget.ui.patientTwinComboBox
    assert not box.enabled
    assert "There is no twin on this computer yet" in box.toolTip
    assert asked == []


def test_only_accepted_deltas_in_use_on_the_chosen_model_are_offered(module_widget, look, make_twin, adapted, base):
    keep_delta(make_twin("rejected"), base, ALL_OEDEMA, {"accepted": False})
    keep_delta(make_twin("foreign"), "0" * 64, ALL_OEDEMA, {"accepted": True})
    make_twin("new")
    rolled = make_twin("rolled")
    keep_delta(rolled, base, ALL_OEDEMA, {"accepted": True})
    roll_back(rolled, base)

    (record,) = adapted.records("models")
    assert look() == {"": "none", "P-7": f"P-7, delta {record.name}"}
    box = module_widget.ui.patientTwinComboBox
    assert box.enabled
    assert box.currentText == "none"

    roll_back(Twin.open(adapted.folder), base)
    assert look() == {"": "none"}
    assert not box.enabled
    assert "No patient has one for it" in box.toolTip


def test_the_day_of_the_newest_scan_that_it_learnt_from_stands_for_its_date(look, make_twin, base, patient):
    twin = make_twin("P-9")
    scan = {"flair": patient.images["flair"]}
    for day in (0, 84):
        twin.add_timepoint(day, scan, to_baseline=np.eye(4), segmentation=(patient.labels, "expert"))
    keep_delta(twin, base, ALL_OEDEMA, {"accepted": True, "learnt_from": ["000", "001"]})

    assert look()["P-9"] == "P-9, delta of day 84"


def test_the_chosen_patients_model_segments_and_the_result_says_so(slicer_host, module_widget, look, adapted, phantom):
    import slicer

    widget, ui = module_widget, module_widget.ui
    widget.inputsPanel.findSequences()
    look()
    ui.patientTwinComboBox.setCurrentIndex(ui.patientTwinComboBox.findData("P-7"))
    assert widget.logic.getParameterNode().twin == "P-7"
    ui.segmentButton.click()
    assert slicer_host.app.wait_until(lambda: not widget.logic.segmenter.isRunning, SECONDS)

    (record,) = adapted.records("models")
    node = widget.logic.getParameterNode().segmentation
    assert node.GetAttribute("TwinSeg.Delta") == record.name
    assert node.GetAttribute("TwinSeg.DeltaTwin") == "P-7"
    assert ui.originLabel.text.startswith(f"Model brats-glioma, adapted to P-7 by delta {record.name} (")
    drawn = slicer.util.arrayFromSegmentBinaryLabelmap(node, "ED", phantom["flair"])
    assert (drawn > 0).mean() > 0.1
    for other in ("NCR", "ET"):
        assert not slicer.util.arrayFromSegmentBinaryLabelmap(node, other, phantom["flair"]).any()

    ui.patientTwinComboBox.setCurrentIndex(0)
    ui.segmentButton.click()
    assert slicer_host.app.wait_until(lambda: not widget.logic.segmenter.isRunning, SECONDS)
    plain = widget.logic.getParameterNode().segmentation
    assert plain.GetAttribute("TwinSeg.Delta") == ""
    assert ui.originLabel.text.startswith("Model brats-glioma (")


def test_the_choice_is_saved_with_the_scene(slicer_host, module_widget, look, adapted, phantom, tmp_path):
    import slicer

    widget, ui = module_widget, module_widget.ui
    look()
    ui.patientTwinComboBox.setCurrentIndex(ui.patientTwinComboBox.findData("P-7"))
    slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer_host.close_scene()
    assert ui.patientTwinComboBox.currentData == ""
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    slicer_host.process_events()

    assert widget.logic.getParameterNode().twin == "P-7"
    look()
    assert ui.patientTwinComboBox.currentText.startswith("P-7, delta")


def test_a_choice_that_does_not_hold_any_more_is_taken_back_and_that_is_said(
    slicer_host, module_widget, look, adapted, base
):
    ui = module_widget.ui
    look()
    ui.patientTwinComboBox.setCurrentIndex(ui.patientTwinComboBox.findData("P-7"))
    roll_back(Twin.open(adapted.folder), base)
    look()

    assert module_widget.logic.getParameterNode().twin == ""
    assert ui.patientTwinComboBox.currentText == "none"
    assert ui.patientTwinLabel.text == "P-7 has no accepted delta in use on this model: no patient is chosen."
    assert ui.patientTwinLabel.isVisible()


def test_another_task_takes_the_choice_back(slicer_host, module_widget, look, adapted):
    ui = module_widget.ui
    look()
    ui.patientTwinComboBox.setCurrentIndex(ui.patientTwinComboBox.findData("P-7"))

    ui.taskComboBox.setCurrentIndex(ui.taskComboBox.findData("lgg-flair"))

    assert module_widget.logic.getParameterNode().twin == ""


def test_a_twin_that_is_gone_is_told_before_anything_starts(slicer_host, segmenter, phantom, parameters):
    parameters.twin = "P-99"

    reason = segmenter.whyNot({"flair": phantom["flair"]}, parameters)

    assert reason == "The twin P-99 is not on this computer: choose another patient, or none"


def test_a_delta_that_was_rolled_back_in_the_meantime_is_told(
    slicer_host, segmenter, phantom, parameters, adapted, base
):
    roll_back(adapted, base)
    noticed, ended = [], []
    segmenter.noticed.connect(noticed.append)
    parameters.twin = "P-7"

    segmenter.segment({"flair": phantom["flair"]}, parameters, ended.append, ended.append)
    assert slicer_host.app.wait_until(lambda: ended, SECONDS)

    assert ended[0].GetAttribute("TwinSeg.Delta") == ""
    assert any("adapted model is not in use any more" in message for message in noticed)


def test_a_batch_is_of_many_patients_and_uses_no_ones_own_model(slicer_host, module_widget):
    from TwinSegSlicerLib.BatchCases import BatchParameters
    from TwinSegSlicerLib.Segmenter import twinFolder

    chosen = module_widget.logic.getParameterNode()
    chosen.twin = "P-7"

    assert twinFolder(chosen).name == "P-7"
    assert twinFolder(BatchParameters.of(chosen)) is None


@pytest.fixture
def segmenter(worker, own_home):
    from TwinSegSlicerLib.Segmenter import Segmenter

    return Segmenter(worker)
