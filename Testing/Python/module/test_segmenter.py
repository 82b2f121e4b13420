"""A segmentation from the press to the scene, with the real worker: checked, cancelled, killed, taken in."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from twinseg.tasks import load_task

SECONDS = 120


class Ended(list):
    """Takes what a run ends with."""

    @property
    def kinds(self):
        return [getattr(end, "kind", "finished") for end in self]


@pytest.fixture
def segmenter(worker, own_home):
    from TwinSegSlicerLib.Segmenter import Segmenter

    return Segmenter(worker)


@pytest.fixture
def start(slicer_host, segmenter, parameters):
    def begin(volumes, **changes):
        vars(parameters).update(changes)
        ended = Ended()
        segmenter.segment(volumes, parameters, ended.append, ended.append)
        return ended

    return begin


def scene_nodes():
    import slicer

    return sorted(node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLNode"))


def leftovers():
    import slicer

    return list(Path(slicer.app.temporaryPath).glob("TwinSegSlicer-*"))


def test_what_the_library_draws_is_what_stands_in_the_scene(slicer_host, phantom, start, parameters):
    import slicer

    from twinseg.cases import LoadedCase
    from twinseg.inference import segment
    from twinseg.segmentation import load_network, starter_model
    from twinseg.volumes import Volume
    from TwinSegSlicerLib.SegmentationResult import imagesOf

    ended = start(phantom, reference="flair")
    assert slicer_host.app.wait_until(lambda: ended, SECONDS)

    (node,) = ended
    assert imagesOf(node) == phantom
    images = {}
    for name, volume in phantom.items():
        matrix = slicer.util.arrayFromVTKMatrix(ijk_to_ras(volume))
        images[name] = Volume(slicer.util.arrayFromVolume(volume).T.astype(np.float32), matrix)
    model = load_network(starter_model("brats-glioma"))
    expected = segment(model.network, LoadedCase(images, images["flair"], None), model.task, uncertainty=True)
    labels = np.zeros(images["flair"].shape, np.uint8)
    for label in load_task("brats-glioma").labels:
        drawn = slicer.util.arrayFromSegmentBinaryLabelmap(node, label.name, phantom["flair"]).T
        labels[drawn > 0] = label.value
    np.testing.assert_array_equal(labels, expected.labels.array)
    uncertainty = slicer.util.arrayFromVolume(node.GetNodeReference("TwinSegUncertainty")).T
    np.testing.assert_allclose(uncertainty, expected.uncertainty.array, atol=1e-6)
    assert node.GetAttribute("TwinSeg.Model") == model.hash
    assert leftovers() == []


def ijk_to_ras(node):
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return matrix


def test_two_sequences_of_four_suffice(slicer_host, phantom, start):
    ended = start({name: phantom[name] for name in ("t1ce", "flair")}, uncertainty=False)
    assert slicer_host.app.wait_until(lambda: ended, SECONDS)

    assert ended[0].GetAttribute("TwinSeg.MissingSequences") == "t1 t2"
    assert ended[0].GetNodeReference("TwinSegUncertainty") is None


def test_why_it_cannot_be_segmented_is_said(slicer_host, phantom, segmenter, parameters, add_result):
    def reason(volumes, **changes):
        return segmenter.whyNot(volumes, type(parameters)(**{**vars(parameters), **changes}))

    flair = {"flair": phantom["flair"]}
    labels = add_result(volume=phantom["flair"]).GetNodeReference("TwinSegModelLabels")

    assert reason(flair) == ""
    assert reason({}) == "Select at least one of T1, T1 with contrast, T2, FLAIR"
    assert "is selected twice" in reason({**flair, "t2": phantom["flair"]})
    assert "is a label map" in reason({**flair, "t1": labels})
    assert "not selected" in reason(flair, reference="t1")
    assert "not on this computer" in reason(flair, model="/elsewhere/model.safetensors")
    assert "no such task" in reason(flair, task="brats-2031")
    with pytest.raises(ValueError, match="Select at least one"):
        segmenter.segment({}, parameters, print, print)


def test_one_at_a_time(slicer_host, phantom, start, segmenter, parameters):
    ended = start(phantom)
    assert segmenter.whyNot(phantom, parameters) == "A segmentation is running"
    segmenter.cancel()
    assert slicer_host.app.wait_until(lambda: ended, 10)
    assert segmenter.whyNot(phantom, parameters) == ""


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05])
def test_cancel_takes_a_second_at_most_and_leaves_the_scene_as_it_was(
    slicer_host, phantom, start, segmenter, share, worker
):
    hello = []  # the worker is warm: how long torch takes to start is not measured here
    worker.request({"do": "hello"}, hello.append, hello.append)
    assert slicer_host.app.wait_until(lambda: hello, SECONDS)
    before, reached = scene_nodes(), []
    segmenter.progressed.connect(lambda done, stage: reached.append(done))

    ended = start(phantom)
    assert slicer_host.app.wait_until(lambda: max(reached) >= share, SECONDS)
    pressed = time.monotonic()
    segmenter.cancel()
    assert slicer_host.app.wait_until(lambda: ended, 10)

    assert ended.kinds == ["cancelled"]
    assert time.monotonic() - pressed < 1.5  # a second, and what a busy machine adds
    assert scene_nodes() == before
    assert slicer_host.app.wait_until(lambda: leftovers() == [], 10)  # once what was being written is written


def test_a_press_taken_back_while_the_images_are_written_leaves_no_images_behind(
    slicer_host, start, add_volume, segmenter
):
    large = add_volume(np.arange(200 * 256 * 256, dtype="f4").reshape(200, 256, 256), np.eye(4), "large_flair")

    for _ in range(5):
        ended = start({"flair": large})
        segmenter.cancel()
        assert ended.kinds == ["cancelled"]

    assert leftovers() != []
    assert slicer_host.app.wait_until(lambda: leftovers() == [], 20)


def test_after_a_kill_one_error_is_told_and_the_next_press_works(slicer_host, phantom, start, worker, segmenter):
    before, reached = scene_nodes(), []
    segmenter.progressed.connect(lambda done, stage: reached.append(done))
    ended = start(phantom)
    assert slicer_host.app.wait_until(lambda: reached and max(reached) > 0, SECONDS)
    psutil.Process(worker.processId).kill()
    assert slicer_host.app.wait_until(lambda: ended, 10)

    assert ended.kinds == ["crashed"]
    assert scene_nodes() == before
    assert leftovers() == []

    again = start(phantom)
    assert slicer_host.app.wait_until(lambda: again, SECONDS)
    assert again.kinds == ["finished"]


def test_what_the_worker_refuses_is_told_in_its_words(slicer_host, phantom, start, add_volume):
    elsewhere = np.diag([2.0, 2.0, 2.0, 1.0])
    elsewhere[:3, 3] = 5000
    far = add_volume(np.random.default_rng(0).normal(size=(80, 96, 80)).astype("f4"), elsewhere, "far_t2")

    ended = start({"flair": phantom["flair"], "t2": far})
    assert slicer_host.app.wait_until(lambda: ended, SECONDS)

    assert ended.kinds == ["input"]
    assert "field of view" in str(ended[0])


def test_images_that_go_meanwhile_are_told(slicer_host, phantom, start):
    import slicer

    ended = start(phantom)
    slicer.mrmlScene.RemoveNode(phantom["t1"])
    assert slicer_host.app.wait_until(lambda: ended, SECONDS)

    assert "taken out of the scene" in str(ended[0])


def test_a_result_that_cannot_be_put_into_the_scene_leaves_nothing_behind(slicer_host, phantom, start, monkeypatch):
    from TwinSegSlicerLib import SegmentationResult

    def fail(*arguments):
        raise MemoryError("no memory for the uncertainty")

    monkeypatch.setattr(SegmentationResult, "_addUncertainty", fail)
    before = scene_nodes()

    with slicer_host.faults.expect("no memory for the uncertainty"):
        ended = start(phantom)
        assert slicer_host.app.wait_until(lambda: ended, SECONDS)

    assert ended.kinds == ["fault"]
    assert scene_nodes() == before
    assert leftovers() == []


def test_replacing_takes_the_earlier_result_of_the_same_image(slicer_host, phantom, start):
    from TwinSegSlicerLib.SegmentationResult import results

    first = start(phantom, uncertainty=False)
    assert slicer_host.app.wait_until(lambda: first, SECONDS)
    number, name = len(scene_nodes()), first[0].GetName()

    second = start(phantom, replace=True)
    assert slicer_host.app.wait_until(lambda: second, SECONDS)

    assert results() == list(second)
    assert second[0].GetName() == name
    assert len(scene_nodes()) == number
