"""A result in the scene: segments, volumes, uncertainty, provenance; saved and loaded again."""

from __future__ import annotations

import numpy as np
import pytest

from twinseg.tasks import load_task

OBLIQUE = np.array([[0.9, -0.3, 0.1, -40], [0.28, 0.93, 0.05, 12], [-0.15, -0.02, 4.9, 33], [0, 0, 0, 1]])
OBLIQUE[:3, :3] = np.linalg.qr(OBLIQUE[:3, :3])[0] @ np.diag([0.5, 0.5, 5.0])
LEFT_HANDED = np.diag([-1.0, -1.0, -2.0, 1.0])


def voxels(node, segment):
    import slicer

    return slicer.util.arrayFromSegmentBinaryLabelmap(node, segment, node.GetNodeReference("TwinSegImage_flair")) > 0


def test_labels_and_regions_are_segments_with_names_colours_and_terminology(slicer_host, add_result):
    node = add_result()
    segmentation = node.GetSegmentation()
    task = load_task("brats-glioma")

    assert segmentation.GetSegmentIDs() == ("WT", "TC", "NCR", "ED", "ET")
    for label in task.labels:
        segment = segmentation.GetSegment(label.name)
        assert np.allclose(np.array(segment.GetColor()) * 255, label.color)
        assert terminology(segment) == label.terminology
    assert "~SCT^108369006^Neoplasm~" in terminology(segmentation.GetSegment("WT"))
    assert "~SCT^12738006^Brain~" in terminology(segmentation.GetSegment("TC"))


def terminology(segment):
    import slicer
    import vtk

    text = vtk.reference("")
    segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), text)
    return str(text)


def test_regions_hold_their_labels_voxels(slicer_host, add_result):
    node = add_result()

    necrosis, oedema, enhancing = (voxels(node, name) for name in ("NCR", "ED", "ET"))

    assert [int(part.sum()) for part in (necrosis, oedema, enhancing)] == [8, 900 - 180, 180 - 8]
    np.testing.assert_array_equal(voxels(node, "WT"), necrosis | oedema | enhancing)
    np.testing.assert_array_equal(voxels(node, "TC"), necrosis | enhancing)


def test_a_task_whose_regions_are_single_labels_has_one_segment_each(slicer_host):
    from TwinSegSlicerLib.SegmentationResult import regionSegments

    assert regionSegments(load_task("lgg-flair")) == {}
    assert list(regionSegments(load_task("brats-glioma"))) == ["WT", "TC"]


def test_the_table_tells_millilitres_with_an_interval(slicer_host, add_result):
    table = add_result().GetNodeReference("TwinSegTable")

    names = [table.GetTable().GetColumnName(column) for column in range(5)]
    assert names == ["Region", "mL", "from", "to", "interval"]
    assert table.GetCellText(0, 4) == "90 %"
    assert table.GetCellText(0, 0) == "WT  Whole tumour"
    assert [table.GetTable().GetValue(0, column).ToDouble() for column in (1, 2, 3)] == [0.9, 0.8, 1.04]


def test_the_uncertainty_is_an_overlay_on_request(slicer_host, add_result):
    import slicer

    from TwinSegSlicerLib.SegmentationResult import showUncertainty

    node = add_result()
    volume = node.GetNodeReference("TwinSegUncertainty")
    composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()

    assert composite.GetForegroundVolumeID() != volume.GetID()
    showUncertainty(node, True)
    assert composite.GetForegroundVolumeID() == volume.GetID()
    assert volume.GetDisplayNode().GetLowerThreshold() > 0  # where it is sure, the image stays clear
    showUncertainty(node, False)
    assert composite.GetForegroundVolumeID() is None


def test_surfaces_are_made_when_they_are_asked_for(slicer_host, add_result):
    from TwinSegSlicerLib.SegmentationResult import show3D

    node = add_result()

    assert not node.GetSegmentation().ContainsRepresentation("Closed surface")
    show3D(node, True)
    assert node.GetClosedSurfaceInternalRepresentation("ET").GetNumberOfPoints() > 0
    assert node.GetDisplayNode().GetVisibility3D()
    show3D(node, False)
    assert not node.GetDisplayNode().GetVisibility3D()


def test_runs_do_not_overwrite_each_other_unless_asked(slicer_host, add_result):
    import slicer

    first = add_result()
    image = first.GetNodeReference("TwinSegImage_flair")
    before = {node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLStorableNode")}

    second = add_result(volume=image)
    assert second.GetName() != first.GetName()
    assert before <= {node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLStorableNode")}

    name = second.GetName()
    third = add_result(volume=image, replaced=second)
    assert third.GetName() == name
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 2
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLTableNode") == 2
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLLabelMapVolumeNode") == 2


def test_nothing_drawn_is_a_result_too(slicer_host, add_result):
    node = add_result(labels=np.zeros((24, 20, 16), np.uint8))

    assert node.GetSegmentation().GetSegmentIDs() == ("WT", "TC", "NCR", "ED", "ET")
    assert not voxels(node, "WT").any()


def test_results_lie_in_the_study_of_their_image(slicer_host, add_volume, add_result):
    import slicer

    image = add_volume(np.random.default_rng(0).normal(size=(16, 20, 24)), name="flair")
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "2019")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(image), study)

    node = add_result(volume=image)

    for part in (node, node.GetNodeReference("TwinSegUncertainty"), node.GetNodeReference("TwinSegTable")):
        assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(part)) == study


@pytest.mark.parametrize("matrix", [np.eye(4), OBLIQUE, LEFT_HANDED], ids=["plain", "oblique", "left-handed"])
def test_all_of_it_survives_saving_the_scene(slicer_host, add_result, tmp_path, matrix):
    import slicer

    from TwinSegSlicerLib.Corrections import correctedCase
    from TwinSegSlicerLib.SegmentationResult import results

    node = add_result(matrix=matrix)
    attributes = {name: node.GetAttribute(name) for name in node.GetAttributeNames()}
    before = correctedCase(node)
    slicer.util.saveScene(str(tmp_path / "scene with spaces é.mrb"))
    slicer.mrmlScene.Clear()
    slicer.util.loadScene(str(tmp_path / "scene with spaces é.mrb"))

    (loaded,) = results()
    assert {name: loaded.GetAttribute(name) for name in attributes} == attributes
    assert loaded.GetNodeReference("TwinSegTable").GetCellText(2, 0) == "ET  Enhancing tumour"
    assert loaded.GetNodeReference("TwinSegUncertainty").GetDisplayNode().GetColorNode().GetNumberOfColors() == 256
    after = correctedCase(loaded)
    # Slicer turns a left-handed image round when it reads it: the voxels' places count, not their order.
    np.testing.assert_allclose(places(after.labels), places(before.labels), atol=1e-3)
    np.testing.assert_allclose(places(after.predicted), places(before.predicted), atol=1e-3)


def places(volume):
    """World coordinates and label of every voxel that is drawn, sorted."""
    drawn = np.argwhere(volume.array)
    world = drawn @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    rows = np.column_stack([world.round(3), volume.array[tuple(drawn.T)]])
    return rows[np.lexsort(rows.T)]
