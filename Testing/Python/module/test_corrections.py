"""Correcting a segmentation and submitting it: what is refused, what is stored, what comes next."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def queue(tmp_path):
    from twinseg.case_queue import CaseQueue

    return CaseQueue(tmp_path / "cases")


@pytest.fixture
def submit(slicer_host, queue):
    """Submits a segmentation; returns the queued case, or raises what refused it."""
    from TwinSegSlicerLib.Corrections import Corrections

    corrections = Corrections(lambda: queue)

    def run(node, patient="Ada Lovelace", note=""):
        ended = []
        corrections.submit(node, patient, "Dr. Who", note, ended.append, ended.append)
        assert slicer_host.app.wait_until(lambda: ended, 30)
        if isinstance(ended[0], Exception):
            raise ended[0]
        return ended[0]

    return run


def image(node):
    return node.GetNodeReference("TwinSegImage_flair")


def draw(node, segment, place, value=1):
    """Set a block of voxels, (K, J, I), of a segment."""
    import slicer

    drawn = slicer.util.arrayFromSegmentBinaryLabelmap(node, segment, image(node))
    drawn[place] = value
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, node, segment, image(node))


CORNER = (slice(0, 2), slice(0, 2), slice(0, 2))
CORE = (slice(6, 7), slice(9, 10), slice(8, 9))


def test_a_correction_is_a_case_of_the_queue(slicer_host, add_result, submit, queue):
    node = add_result()
    draw(node, "ED", CORNER)

    case = submit(node, note="edge of the bed of the tumour")

    (listed,) = queue.cases()
    assert listed == case
    newest = case.corrections[-1]
    assert (newest.who, newest.note, newest.model) == ("Dr. Who", "edge of the bed of the tumour", "0123456789abcdef")
    assert newest.change["WT"]["change_ml"] == pytest.approx(0.008)
    assert newest.change["ET"]["dice"] == 1.0
    assert node.GetAttribute("TwinSeg.Submitted") == case.name
    assert not any(b"Lovelace" in file.read_bytes() for file in queue.folder.rglob("*") if file.is_file())


def test_a_second_correction_is_a_second_version(slicer_host, add_result, submit):
    node = add_result()
    draw(node, "ED", CORNER)
    first = submit(node)
    draw(node, "ED", CORNER, 0)
    draw(node, "NCR", CORNER)

    second = submit(node)

    assert second.name == first.name
    assert len(second.corrections) == 2


def test_a_second_correction_may_be_elsewhere(slicer_host, add_result, submit):
    node = add_result()
    draw(node, "ED", CORNER)
    submit(node)  # the regions have the corner now, and are the model's no more
    draw(node, "ED", (slice(-2, None),) * 3)

    assert submit(node).corrections[-1].change["WT"]["change_ml"] == pytest.approx(0.016)


def test_regions_follow_the_labels_when_they_are_submitted(slicer_host, add_result, submit):
    import slicer

    node = add_result()
    draw(node, "ED", CORNER)
    submit(node)

    assert slicer.util.arrayFromSegmentBinaryLabelmap(node, "WT", image(node))[CORNER].all()


def test_a_region_that_is_emptied_is_no_error_of_vtk(slicer_host, add_result, submit, capfd):
    import slicer

    node = add_result()
    for segment in ("NCR", "ET"):
        draw(node, segment, ..., 0)
    capfd.readouterr()

    submit(node)

    assert "ERR" not in capfd.readouterr().err.upper()
    assert not slicer.util.arrayFromSegmentBinaryLabelmap(node, "TC", image(node)).any()


def unchanged(node):
    pass


def emptied(node):
    for segment in ("NCR", "ED", "ET"):
        draw(node, segment, ..., 0)


def overlapping(node):
    node.GetSegmentation().RemoveSegment("NCR")
    add_copy(node, "ED", "NCR", "NCR")


def with_another_segment(node):
    add_copy(node, "ET", "Segment_1", "Cyst")


def add_copy(node, segment, new, name):
    """Add a segment with the voxels of another one, in a layer of its own."""
    import slicer

    labels = slicer.vtkOrientedImageData()
    node.GetBinaryLabelmapRepresentation(segment, labels)
    copy = slicer.vtkSegment()
    copy.SetName(name)
    copy.AddRepresentation(slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName(), labels)
    node.GetSegmentation().AddSegment(copy, new)


def drawn_in_a_region(node):
    draw(node, "WT", CORNER)


def moved(node):
    import slicer

    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    node.SetAndObserveTransformNodeID(transform.GetID())


def off_grid(node):
    import slicer

    matrix = np.eye(4)
    matrix[:3, 3] = 0.5
    image(node).SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))


def without_its_image(node):
    import slicer

    slicer.mrmlScene.RemoveNode(image(node))


REFUSED = {
    "unchanged": unchanged,
    "empty": emptied,
    "overlaps another label": overlapping,
    "The segment Cyst is none of NCR, ED, ET": with_another_segment,
    "WT was changed, but it is made of NCR, ED, ET": drawn_in_a_region,
    "under another transform": moved,
    "another grid": off_grid,
    "taken out of the scene": without_its_image,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_correction_is_refused_with_the_reason(slicer_host, add_result, submit, queue, reason):
    node = add_result()
    REFUSED[reason](node)

    with pytest.raises(ValueError, match=reason):
        submit(node)

    assert queue.cases() == []
    assert node.GetAttribute("TwinSeg.Submitted") is None


def shifted() -> np.ndarray:
    matrix = np.eye(4)
    matrix[0, 3] = 2.5
    return matrix


def turned() -> np.ndarray:
    return np.array([[0, -1, 0, 3], [1, 0, 0, 5], [0, 0, 1, 0], [0, 0, 0, 1]], float)


@pytest.mark.parametrize("matrix", [shifted(), turned()], ids=["shift", "turn"])
def test_a_hardened_transform_makes_no_correction_and_hides_none(slicer_host, add_result, submit, matrix):
    import slicer

    node = add_result()
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    for moved_node in (node, image(node)):
        moved_node.SetAndObserveTransformNodeID(transform.GetID())
        moved_node.HardenTransform()

    with pytest.raises(ValueError, match="unchanged"):
        submit(node)
    draw(node, "ED", CORNER)

    change = submit(node).corrections[-1].change
    assert change["WT"]["change_ml"] == pytest.approx(0.008)
    assert change["ET"]["dice"] == 1.0


def test_a_segmentation_from_elsewhere_is_refused(slicer_host, submit):
    import slicer

    with pytest.raises(ValueError, match="made here"):
        submit(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode"))


def test_a_label_whose_segment_was_deleted_is_empty(slicer_host, add_result, submit):
    node = add_result()
    node.GetSegmentation().RemoveSegment("NCR")

    case = submit(node)

    assert case.corrections[-1].change["TC"]["change_ml"] == pytest.approx(-0.008)


def test_the_least_certain_is_next_to_correct(slicer_host, add_result, submit):
    from TwinSegSlicerLib.Corrections import nextToCorrect

    assert nextToCorrect() is None
    _sure = add_result("A_flair", uncertainty=0.1)
    unsure = add_result("B_flair", uncertainty=0.6)
    middling = add_result("C_flair", uncertainty=0.3)

    assert nextToCorrect() is unsure
    draw(unsure, "ED", CORNER)
    submit(unsure)
    assert nextToCorrect() is middling


def test_the_patient_is_known_from_the_hierarchy_or_the_name(slicer_host, add_volume, add_result):
    import slicer

    from TwinSegSlicerLib.Corrections import patientOf

    assert patientOf(add_result("P1_flair")) == "p1"
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Ada")
    study = hierarchy.CreateStudyItem(patient, "2019")
    volume = add_volume(np.random.default_rng(0).normal(size=(16, 20, 24)), name="FLAIR")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volume), study)
    assert patientOf(add_result(volume=volume)) == "Ada"


EDITOR = """
from slicer.ScriptedLoadableModule import *

class SegmentEditor(ScriptedLoadableModule):
    pass

class SegmentEditorWidget(ScriptedLoadableModuleWidget):
    pass
"""


@pytest.fixture
def segment_editor(slicer_host, tmp_path):
    """A module of that name: Slicer's own is C++ beneath and not in the host."""
    (tmp_path / "SegmentEditor.py").write_text(EDITOR)
    slicer_host.load(tmp_path / "SegmentEditor.py")


def visible(node):
    display = node.GetDisplayNode()
    return [name for name in node.GetSegmentation().GetSegmentIDs() if display.GetSegmentVisibility(name)]


def test_the_segment_editor_opens_on_the_labels(slicer_host, add_result, segment_editor):
    import slicer

    from TwinSegSlicerLib.Corrections import openInSegmentEditor

    node = add_result()

    openInSegmentEditor(node)

    editor = slicer.mrmlScene.GetSingletonNode("SegmentEditor", "vtkMRMLSegmentEditorNode")
    assert slicer.util.selectedModule() == "SegmentEditor"
    assert editor.GetSegmentationNode() is node
    assert editor.GetSourceVolumeNode() is image(node)
    assert editor.GetOverwriteMode() == editor.OverwriteVisibleSegments
    assert visible(node) == ["NCR", "ED", "ET"]


def test_regions_are_shown_again_when_the_user_comes_back(slicer_host, module_widget, add_result, segment_editor):
    import slicer

    node = add_result()
    node.GetDisplayNode().SetSegmentVisibility("TC", False)  # by the user, and so it stays
    module_widget.ui.segmentationSelector.setCurrentNode(node)
    for _twice in range(2):
        module_widget.ui.editButton.click()
        assert visible(node) == ["NCR", "ED", "ET"]
        slicer.util.selectModule("TwinSegSlicer")
        assert visible(node) == ["WT", "NCR", "ED", "ET"]

    slicer.util.selectModule("SegmentEditor")  # past the button: what is painted would be taken from what is shown
    assert visible(node) == ["NCR", "ED", "ET"]
