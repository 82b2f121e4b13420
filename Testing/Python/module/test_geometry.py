"""Whatever way a volume lies in the world, what is drawn in it lies there too.

A bright ball at a known place stands in for a tumour, and a threshold for the model: of a trained one nobody knows
where exactly it draws. All else is the real way through the module: files, affines, segments, transforms.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from twinseg.volumes import Volume, read_labels

CENTRE, RADIUS = np.array([12.0, -18.0, 9.0]), 11.0  # RAS, mm


class ThresholdWorker:
    """Draws ED where the reference image is bright; answers as `WorkerProcess` does, at once."""

    def request(self, message, onResult, onError, onProgress=None, onNotice=None):
        image = np.load(message["images"][message["reference"]]["array"])
        self.affines = {name: np.array(entry["affine"]) for name, entry in message["images"].items()}
        self.drawn = Volume(np.where(image > 50, 2, 0).astype(np.uint8), self.affines[message["reference"]])
        np.save(message["labels"], self.drawn.array)
        np.save(message["uncertainty"], (image / 200).astype(np.float32))
        volumes = {name: {"volume": 1.0, "low": 1.0, "high": 1.0, "level": 0.8} for name in ("WT", "TC", "ET")}
        onResult(
            {
                "model": "threshold",
                "model_title": "threshold",
                "computed": "cpu",
                "seconds": 0.0,
                "missing": [],
                "volumes_ml": volumes,
            }
        )
        return 1

    def cancel(self, number):
        """It is over before anybody could."""


def rotation(axis, degrees):
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(4)
    a, b = [other for other in range(3) if other != axis]
    matrix[a, a] = matrix[b, b] = cosine
    matrix[a, b], matrix[b, a] = -sine, sine
    return matrix


def centred(linear, shape):
    """The matrix whose grid of a shape (I, J, K) has the ball near its middle."""
    matrix = np.eye(4)
    matrix[:3, :3] = linear[:3, :3]
    matrix[:3, 3] = CENTRE - matrix[:3, :3] @ (np.array(shape) / 2 - 1.3)
    return matrix


OBLIQUE = rotation(0, 17) @ rotation(2, 17)
PERMUTED = np.array([[0, 0, 1.5, 0], [1.0, 0, 0, 0], [0, 1.2, 0, 0], [0, 0, 0, 1]])
TRANSFORM = rotation(1, 25) @ rotation(0, -40)
TRANSFORM[:3, 3] = 30, -12, 5
GEOMETRIES = {
    "oblique, 17 degrees about two axes": (OBLIQUE, (44, 40, 42), None),
    "0.5 x 0.5 x 5 mm": (np.diag([0.5, 0.5, 5.0, 1.0]), (80, 84, 12), None),
    "axes permuted": (PERMUTED, (40, 44, 36), None),
    "left-handed": (np.diag([-1.0, 1.0, 1.0, 1.0]), (40, 44, 42), None),
    "left-handed, as NIfTI of FSL's kind": (np.diag([-1.0, -1.0, -2.0, 1.0]), (44, 42, 30), None),
    "under a transform": (np.diag([1.0, 1.0, 2.0, 1.0]), (44, 40, 24), TRANSFORM),
    "oblique, thick, left-handed and under a transform": (
        OBLIQUE @ np.diag([0.5, -0.5, 5.0, 1.0]), (80, 84, 14), TRANSFORM,
    ),
}  # fmt: skip


def ball(matrix, shape):
    """The ball on a grid, (K, J, I): 100 within, falling off over a voxel's breadth, 0 outside."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = index @ matrix[:3, :3].T + matrix[:3, 3]
    distance = np.linalg.norm(world - CENTRE, axis=-1)
    return (100 * np.clip(RADIUS - distance + 0.5, 0, 1)).T.astype(np.float32)


@pytest.fixture(params=GEOMETRIES)
def case(request, slicer_host, add_volume):
    """Volume node and world matrix of the ball on one of the grids; the node's own matrix lies below its transform."""
    import slicer

    linear, shape, transform = GEOMETRIES[request.param]
    world = centred(linear if transform is None else transform @ linear, shape)
    own = world if transform is None else np.linalg.inv(transform) @ world
    node = add_volume(ball(world, shape), own, "P1_flair")
    if transform is not None:
        transformNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        transformNode.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(transform))
        node.SetAndObserveTransformNodeID(transformNode.GetID())
    return node, world


@pytest.fixture
def segment(slicer_host, parameters):
    from TwinSegSlicerLib.Segmenter import Segmenter

    def run(volumes):
        worker, ended = ThresholdWorker(), []
        Segmenter(worker).segment(volumes, parameters, ended.append, ended.append)
        assert slicer_host.app.wait_until(lambda: ended, 30)
        if isinstance(ended[0], Exception):
            raise ended[0]
        return ended[0], worker

    return run


def test_a_segments_centroid_lies_where_the_ball_is(case, segment):
    import slicer

    node, world = case

    segmentation, worker = segment({"flair": node})

    np.testing.assert_allclose(worker.affines["flair"], world, atol=1e-9)
    toIndex = np.linalg.inv(world[:3, :3])
    for name in ("ED", "WT"):
        centre = np.array(segmentation.GetSegmentCenterRAS(name))  # of the voxels' bounds, in world coordinates
        assert np.all(np.abs(toIndex @ (centre - CENTRE)) <= 1.0)
    drawn = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, "ED", node)
    centroid = world[:3, :3] @ np.argwhere(drawn.T).mean(axis=0) + world[:3, 3]
    assert np.all(np.abs(toIndex @ (centroid - CENTRE)) <= 0.5)


def test_voxels_on_the_screen_are_those_that_were_drawn(case, segment):
    import slicer

    node, _ = case

    segmentation, worker = segment({"flair": node})

    shown = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, "WT", node)
    np.testing.assert_array_equal(shown.T > 0, worker.drawn.array > 0)
    uncertainty = segmentation.GetNodeReference("TwinSegUncertainty")
    np.testing.assert_allclose(slicer.util.arrayFromVolume(uncertainty), slicer.util.arrayFromVolume(node) / 200)
    assert uncertainty.GetParentTransformNode() is node.GetParentTransformNode()
    assert segmentation.GetParentTransformNode() is node.GetParentTransformNode()


def test_a_correction_is_stored_as_it_is_on_the_screen(case, segment, slicer_host, tmp_path):
    import slicer

    from twinseg.case_queue import CaseQueue
    from TwinSegSlicerLib.Corrections import Corrections
    from TwinSegSlicerLib.SelfTest import drawInto

    node, world = case
    segmentation, worker = segment({"flair": node})
    drawInto(segmentation, "ED", node)
    expected = worker.drawn.array.copy()
    expected[2:6, 2:6, 2:6] = 2

    ended = []
    queue = CaseQueue(tmp_path / "cases")
    Corrections(lambda: queue).submit(segmentation, "P1", "me", "", ended.append, ended.append)
    assert slicer_host.app.wait_until(lambda: ended, 30)

    assert not isinstance(ended[0], Exception), ended
    stored = read_labels(Path(ended[0].labels))
    np.testing.assert_array_equal(stored.array, expected)
    np.testing.assert_allclose(stored.affine, world, atol=1e-4)
    np.testing.assert_array_equal(
        slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, "WT", node).T > 0, expected > 0
    )


def test_sequences_under_different_transforms_meet_in_the_world(slicer_host, add_volume, segment, tmp_path):
    import slicer

    from twinseg.case_queue import CaseQueue
    from twinseg.volumes import read_image
    from TwinSegSlicerLib.Corrections import Corrections
    from TwinSegSlicerLib.SelfTest import drawInto

    flair_world, t1_world = centred(OBLIQUE, (44, 40, 42)), centred(np.diag([2.0, 2.0, 2.0, 1]), (24, 24, 24))
    flair = add_volume(ball(flair_world, (44, 40, 42)), flair_world, "P1_flair")
    t1 = add_volume(ball(t1_world, (24, 24, 24)), np.linalg.inv(TRANSFORM) @ t1_world, "P1_t1")
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(TRANSFORM))
    t1.SetAndObserveTransformNodeID(transform.GetID())

    segmentation, worker = segment({"flair": flair, "t1": t1})
    np.testing.assert_allclose(worker.affines["t1"], t1_world, atol=1e-9)

    drawInto(segmentation, "ED", flair)
    ended = []
    queue = CaseQueue(tmp_path / "cases")
    Corrections(lambda: queue).submit(segmentation, "P1", "me", "", ended.append, ended.append)
    assert slicer_host.app.wait_until(lambda: ended, 30)
    images = {name: read_image(file) for name, file in ended[0].image_files.items()}
    np.testing.assert_allclose(images["t1"].affine, images["flair"].affine)
    bright = images["flair"].array > 99
    assert images["t1"].array[bright].mean() > 90
    assert images["t1"].array[~bright].mean() < 5
