"""Volume nodes as arrays with a place in the world, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture
def noise():
    return np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)


def vector_volume(slicer):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "colours")
    slicer.util.updateVolumeFromArray(node, np.random.default_rng(0).integers(0, 255, (3, 4, 5, 3)).astype(np.uint8))
    return node


def label_map(slicer):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "seg")
    slicer.util.updateVolumeFromArray(node, np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
    return node


def volume(slicer, array):
    return slicer.util.addVolumeFromArray(array, name="scan")


REFUSED = {
    "colours has 3 values a voxel": vector_volume,
    "seg is a label map": label_map,
    "a volume is needed": lambda slicer: volume(slicer, np.arange(20.0).reshape(1, 4, 5)),
    "every voxel is 7": lambda slicer: volume(slicer, np.full((3, 4, 5), 7.0)),
    "scan is empty": lambda slicer: slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "scan"),
    "series is a sequence": lambda slicer: slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "series"),
    "tree is no image volume": lambda slicer: slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "tree"),
    "No volume is selected": lambda slicer: None,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_segmented_is_refused_with_the_reason(slicer_host, reason):
    import slicer

    from TwinSegSlicerLib.VolumeBridge import nodeImage, refusal

    node = REFUSED[reason](slicer)

    assert reason in refusal(node)
    with pytest.raises(ValueError, match=reason):
        nodeImage(node)


def test_the_array_is_the_nodes_own_memory_and_is_saved_by_columns(slicer_host, add_volume, noise, tmp_path):
    import slicer

    from TwinSegSlicerLib.VolumeBridge import nodeImage

    node = add_volume(noise)
    found = nodeImage(node)
    found.save(tmp_path / "image.npy")

    assert np.shares_memory(found.array, slicer.util.arrayFromVolume(node))
    assert found.shape == (6, 5, 4)
    np.testing.assert_array_equal(np.load(tmp_path / "image.npy"), noise.T)


def test_linear_transforms_are_multiplied(slicer_host, add_volume, noise):
    import slicer

    from TwinSegSlicerLib.VolumeBridge import nodeImage

    outer, inner = np.diag([1.0, -1.0, 1.0, 1.0]), np.eye(4)
    inner[:3, 3] = 10, 20, 30
    nodes = [slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode") for _ in range(2)]
    for node, matrix in zip(nodes, (outer, inner), strict=True):
        node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    nodes[1].SetAndObserveTransformNodeID(nodes[0].GetID())
    own = np.diag([2.0, 3.0, 4.0, 1.0])
    volume_node = add_volume(noise, own)
    volume_node.SetAndObserveTransformNodeID(nodes[1].GetID())

    found = nodeImage(volume_node)

    np.testing.assert_allclose(found.worldMatrix, outer @ inner @ own)
    np.testing.assert_allclose(found.localMatrix, own)
    assert not found.isResampled


def test_below_a_nonlinear_transform_a_copy_is_resampled(slicer_host, add_volume):
    import slicer
    import vtk

    from TwinSegSlicerLib.VolumeBridge import nodeImage

    array = np.zeros((20, 20, 20), np.float32)
    array[8:12, 8:12, 8:12] = 100
    node = add_volume(array)
    warp = vtk.vtkThinPlateSplineTransform()
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for point in ((0, 0, 0), (19, 0, 0), (0, 19, 0), (0, 0, 19), (19, 19, 19)):
        source.InsertNextPoint(point)
        target.InsertNextPoint(point[0] + 3, point[1], point[2])
    warp.SetSourceLandmarks(source)
    warp.SetTargetLandmarks(target)
    warp.SetBasisToR()
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    transform.SetAndObserveTransformToParent(warp)
    node.SetAndObserveTransformNodeID(transform.GetID())

    found = nodeImage(node)

    assert found.isResampled
    k, j, i = (axis.mean() for axis in np.nonzero(found.array > 50))
    np.testing.assert_allclose((found.worldMatrix @ (i, j, k, 1))[:3], (12.5, 9.5, 9.5), atol=0.5)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(node), array)
    assert len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")) == 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from((-1, 1))] * 3),
    start=st.tuples(*[st.integers(0, 2)] * 3),
)
def test_a_part_with_its_axes_turned_lies_on_the_grid_where_it_was(slicer_host, order, signs, start):
    import slicer

    from TwinSegSlicerLib.SegmentationResult import orientedImage
    from TwinSegSlicerLib.VolumeBridge import onGrid

    rng = np.random.default_rng(0)
    shape = (9, 8, 7)
    grid = np.array([[0.9, -0.1, 0, 5], [0.1, 0.9, 0, -7], [0, 0, 3, 11], [0, 0, 0, 1]], float)
    whole = np.zeros(shape, np.uint8)
    part = tuple(slice(s, s + 4) for s in start)
    whole[part] = rng.integers(0, 2, (4, 4, 4))
    # The same voxels in an array of its own, whose axis a runs along the grid's axis order[a], turned round or not.
    turned = whole[part].transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    moved = np.zeros((4, 4))
    moved[3, 3] = 1
    for axis, (along, sign) in enumerate(zip(order, signs, strict=True)):
        moved[along, axis] = sign
        moved[along, 3] = start[along] + (3 if sign < 0 else 0)
    oriented = orientedImage(turned.T, (slice(0, 4),) * 3, slicer.util.vtkMatrixFromArray(grid @ moved))

    np.testing.assert_array_equal(onGrid(oriented, grid, shape), whole.T)


def test_what_lies_between_the_voxels_or_outside_is_told(slicer_host):
    import slicer

    from TwinSegSlicerLib.SegmentationResult import orientedImage
    from TwinSegSlicerLib.VolumeBridge import onGrid

    box = (slice(0, 3),) * 3
    between, outside = np.eye(4), np.eye(4)
    between[0, 3], outside[0, 3] = 0.5, 4

    for matrix, reason in ((between, "another grid"), (outside, "reaches out")):
        drawn = orientedImage(np.ones((3, 3, 3), np.uint8), box, slicer.util.vtkMatrixFromArray(matrix))
        with pytest.raises(ValueError, match=reason):
            onGrid(drawn, np.eye(4), (6, 6, 6))
