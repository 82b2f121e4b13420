"""A scan that is in the twin is corrected: shown, drawn into, and handed back."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from twinseg.twin.store import Twin
from twinseg.twin.store_verify import verify

SECONDS = 120


@pytest.fixture
def show_scans(slicer_host, panel):
    """Loads the scans of the open twin as the user would, and waits until the last one is shown."""

    def show():
        panel.ui.scansButton.click()
        assert slicer_host.app.wait_until(lambda: panel.ui.editScanButton.enabled, SECONDS)

    return show


def own_nodes(scan):
    """The image and the segmentation of a scan that lie below its day."""
    from TwinSegSlicerLib.TwinNodes import TwinNodes

    return tuple(TwinNodes("P-7").find(f"scan {scan} {what}") for what in ("image", "segmentation"))


EDITOR = """
from slicer.ScriptedLoadableModule import *

class SegmentEditor(ScriptedLoadableModule):
    pass

class SegmentEditorWidget(ScriptedLoadableModuleWidget):
    pass
"""


@pytest.fixture
def edit(slicer_host, panel, tmp_path):
    """Opens the shown scan in the Segment Editor, draws a block of 4 x 4 x 4 voxels far from the tumour, and comes
    back."""
    import slicer

    from TwinSegSlicerLib.SelfTest import drawInto

    (tmp_path / "SegmentEditor.py").write_text(EDITOR)  # Slicer's own is C++ beneath and not in the host
    slicer_host.load(tmp_path / "SegmentEditor.py")

    def run():
        panel.ui.editScanButton.click()
        assert slicer.util.selectedModule() == "SegmentEditor"
        editor = slicer.mrmlScene.GetSingletonNode("SegmentEditor", "vtkMRMLSegmentEditorNode")
        drawInto(editor.GetSegmentationNode(), "ET", editor.GetSourceVolumeNode())
        slicer.util.selectModule("TwinSegSlicer")

    return run


def test_a_scan_is_corrected_and_its_correction_counts(slicer_host, panel, wait, open_twin, show_scans, edit):
    import slicer

    from TwinSegSlicerLib.TwinScene import shownNode

    ui, before = panel.ui, panel.session.record
    assert (ui.correctButton.enabled, ui.correctButton.toolTip) == (False, "Show the scans first: under Timeline")
    ui.chartButton.click()
    show_scans()
    assert ui.correctButton.text == f"Correct day {before.scans[1].day:g}"
    edit()
    image, segmentation = own_nodes("001")
    shown = shownNode(before, "segmentation")
    assert list(segmentation.GetSegmentation().GetSegmentIDs()) == ["NCR", "ED", "ET"]
    assert (segmentation.GetDisplayVisibility(), shown.GetDisplayVisibility()) == (1, 0)
    ui.expertCheckBox.checked = True
    ui.correctButton.click()
    wait()

    now = panel.session.record
    scan, block = now.scans[1], 64 * np.prod(image.GetSpacing()) / 1000
    assert [drawn.origin for drawn in scan.segmentations] == ["expert", "expert"]
    assert now.twin.labels(scan).array[3, 3, 3] == 3
    assert now.total("001")[0] == pytest.approx(before.total("001")[0] + block)
    was, became = ({x.id: x.centre for x in record.history.lesions["001"]} for record in (before, now))
    assert {number: became[number] for number in was} == was
    assert len(became) == len(was) + 1
    assert verify(open_twin).whole

    volumes = [f"{record.total('001')[0]:.1f} mL" for record in (now, before)]
    assert f"{now.region} {volumes[0]}, {volumes[1]} before" in ui.stepLabel.text
    assert f"Lesions so far: {len(now.lesions)}" in ui.twinLabel.text
    table = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLTableNode").GetTable()
    assert table.GetColumnByName("all lesions").GetValue(1) == pytest.approx(now.total("001")[0])
    for name in ("WT", "ET"):
        assert slicer.util.arrayFromSegmentBinaryLabelmap(shown, name, shownNode(now, "image"))[3, 3, 3] == 1
    assert (segmentation.GetDisplayVisibility(), shown.GetDisplayVisibility()) == (0, 1)


def test_what_is_drawn_and_not_kept_is_not_dropped_without_asking(
    slicer_host, panel, wait, open_twin, show_scans, edit
):
    question = "drawn into day 70 and not kept by Correct is lost"
    show_scans()
    edit()
    with slicer_host.dialogs.answer(question, 0x00400000):  # Cancel
        panel.ui.scansButton.click()
    panel.ui.correctButton.click()
    wait()
    assert panel.session.record.scans[1].segmentations[-1].origin == "edited"

    show_scans()
    assert sum(question in text for text in slicer_host.dialogs.shown) == 1
    edit()
    show_scans()
    assert sum(question in text for text in slicer_host.dialogs.shown) == 2


def test_labels_that_the_twin_has_are_not_written_again(slicer_host, panel, wait, open_twin, show_scans):
    revision = panel.session.record.twin.revision
    show_scans()
    with slicer_host.faults.expect("These labels are what the twin has"):
        panel.ui.correctButton.click()
        wait()

    assert "\n" not in panel.ui.stepLabel.text
    assert Twin.open(open_twin).revision == revision


def test_an_expert_vouches_for_what_a_model_has_drawn(slicer_host, panel, wait, show_scans, three_scans, own_home):
    panel.session.open(shutil.copytree(three_scans, own_home / "twins/P-7"))
    wait()
    show_scans()
    panel.ui.expertCheckBox.checked = True
    panel.ui.correctButton.click()
    wait()

    assert [drawn.origin for drawn in panel.session.record.scans[2].segmentations] == ["model", "expert"]


def test_a_correction_by_no_expert_is_kept_but_an_experts_counts(slicer_host, panel, wait, open_twin, show_scans, edit):
    before = panel.session.record
    show_scans()
    edit()
    panel.ui.correctButton.click()
    wait()

    now = panel.session.record
    assert [drawn.origin for drawn in now.scans[1].segmentations] == ["expert", "edited"]
    assert now.total("001") == before.total("001")
    assert panel.ui.stepLabel.text.startswith("Kept; but an expert has drawn day")


def test_a_correction_that_is_being_written_is_not_said_to_be_cancelled(panel, wait, open_twin, show_scans):
    before = panel.session.record
    show_scans()
    panel.ui.changeButton.click()
    wait()
    own_nodes("001")[1].GetSegmentation().RemoveSegment("NCR")
    panel.ui.expertCheckBox.checked = True
    panel.ui.correctButton.click()
    panel.ui.stopButton.click()
    assert "cannot be stopped" in panel.ui.stepLabel.text
    wait()

    assert panel.session.record.total("001")[0] < before.total("001")[0]
    assert panel.ui.stepLabel.text.startswith("Day 70 corrected")
    assert not panel.ui.changeButton.checked  # that change is no longer right


def test_a_segmentation_that_does_not_lie_on_the_scan_is_refused(
    slicer_host, panel, open_twin, show_scans, add_volume, add_result
):
    revision = panel.session.record.twin.revision
    show_scans()
    image, segmentation = own_nodes("001")
    with slicer_host.faults.expect("put both under the same one"):
        segmentation.SetAndObserveTransformNodeID(None)
        panel.ui.correctButton.click()
    segmentation.SetAndObserveTransformNodeID(image.GetTransformNodeID())
    other = add_result(volume=add_volume(np.random.default_rng(1).normal(9, 1, (16, 20, 24))))
    segmentation.GetSegmentation().DeepCopy(other.GetSegmentation())
    with slicer_host.faults.expect("it lies on another grid than its image: set the segmentation's geometry to that"):
        panel.ui.correctButton.click()

    assert not panel.session.isBusy
    assert Twin.open(open_twin).revision == revision


def test_a_scan_without_tumour_must_be_meant(slicer_host, panel, wait, open_twin, show_scans):
    show_scans()
    own_nodes("001")[1].GetSegmentation().RemoveAllSegments()
    with slicer_host.faults.expect("the segmentation is empty"):
        panel.ui.correctButton.click()
        wait()
    panel.ui.noTumourCheckBox.checked = panel.ui.expertCheckBox.checked = True
    panel.ui.correctButton.click()
    wait()

    assert panel.session.record.total("001")[0] == 0


def test_a_scan_that_nobody_has_drawn_yet_can_be_drawn(slicer_host, panel, wait, open_twin, show_scans, patients, edit):
    images = {"flair": patients[0].visits[1].images["flair"]}
    Twin.open(open_twin).add_timepoint(900, images, to_baseline=np.eye(4))
    panel.session.open(open_twin)
    wait()
    show_scans()
    edit()
    panel.ui.correctButton.click()
    wait()

    scan = panel.session.record.scans[2]
    assert scan.segmentation.origin == "edited"
    assert np.count_nonzero(panel.session.record.twin.labels(scan).array) == 64


def test_stepping_to_another_scan_and_back_keeps_what_was_drawn(slicer_host, panel, wait, open_twin, show_scans, edit):
    from TwinSegSlicerLib.TwinScene import drawnLabels, shownNode

    record = panel.session.record
    show_scans()
    edit()
    panel.ui.scanSlider.value = 0
    assert panel.ui.correctButton.text == "Correct day 0"
    assert not own_nodes("001")[1].GetDisplayVisibility()
    assert shownNode(record, "segmentation").GetDisplayVisibility()
    panel.ui.scanSlider.value = 1

    assert panel.ui.correctButton.text != "Correct day 0"
    assert drawnLabels(record, record.scans[1]).array[3, 3, 3] == 3
    slicer_host.close_scene()
    assert not panel.ui.correctButton.enabled
