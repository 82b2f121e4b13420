"""The synthetic sample: registered, made once, loaded as a study, without a download."""

from __future__ import annotations

import os

import numpy as np
import pytest


@pytest.fixture(scope="session")
def sampleHome(tmp_path_factory):
    """A data folder in which the sample is made once for all tests."""
    return tmp_path_factory.mktemp("données de test")


@pytest.fixture
def sampleSource(slicer_host, sampleHome, monkeypatch):
    """The module under test, with its data in a folder of the test and coarse, which is quick."""
    monkeypatch.setenv("TWINSEG_HOME", str(sampleHome))
    from TwinSegSlicerLib import SampleDataSource

    monkeypatch.setattr(SampleDataSource, "SIZE", (40, 48, 40))
    monkeypatch.setattr(SampleDataSource, "SPACING", 4.5)
    SampleDataSource.registerSampleData()
    return SampleDataSource


def sources():
    import slicer

    return slicer.modules.sampleDataSources["TwinSeg"]


def test_the_sample_is_registered_once_with_a_thumbnail(sampleSource):
    sampleSource.registerSampleData()

    assert [source.sampleName for source in sources()] == ["TwinSeg synthetic glioma"]
    assert os.path.isfile(sources()[0].thumbnailFileName)


def test_the_sample_loads_as_a_study_of_volumes_that_are_found_as_sequences(sampleSource):
    import slicer

    from twinseg.tasks import load_task
    from TwinSegSlicerLib.Sequences import findSequences

    nodes = sources()[0].customDownloader(sources()[0])

    assert [node.GetName() for node in nodes] == [f"SyntheticGlioma_{s}" for s in ("t1", "t1ce", "t2", "flair")]
    found = findSequences(load_task("brats-glioma"))
    assert {name: node.GetName() for name, node in found.items()} == {
        name: f"SyntheticGlioma_{name}" for name in ("t1", "t1ce", "t2", "flair")
    }
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    study = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(nodes[0]))
    assert hierarchy.GetItemLevel(study) == "Study"
    assert all(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study for node in nodes)
    composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    assert composite.GetBackgroundVolumeID() == found["flair"].GetID()


def test_the_images_are_kept_and_the_same_the_next_time(sampleSource):
    import slicer

    files = sampleSource.sampleFiles()
    times = {name: path.stat().st_mtime_ns for name, path in files.items()}

    nodes = sampleSource.loadSample() + sampleSource.loadSample()

    assert {name: path.stat().st_mtime_ns for name, path in files.items()} == times
    assert len({node.GetName() for node in nodes}) == 8
    first, second = (slicer.util.arrayFromVolume(node) for node in (nodes[0], nodes[4]))
    np.testing.assert_array_equal(first, second)


def test_the_nodes_lie_where_the_phantom_lies(sampleSource):
    import slicer
    import vtk

    from twinseg.volumes import read_image

    node = sampleSource.loadSample()[1]

    written = read_image(sampleSource.sampleFiles()["t1ce"])
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    np.testing.assert_allclose(slicer.util.arrayFromVTKMatrix(matrix), written.affine, atol=1e-6)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(node).T, written.array)


def test_a_sample_of_which_a_file_was_lost_is_made_anew(sampleSource, monkeypatch, tmp_path):
    monkeypatch.setenv("TWINSEG_HOME", str(tmp_path))
    files = sampleSource.sampleFiles()
    content = files["t2"].read_bytes()
    files["t2"].unlink()

    sampleSource.sampleFiles()

    assert files["t2"].read_bytes() == content
    assert sorted(path.name for path in files["t2"].parent.parent.iterdir()) == ["synthetic-glioma"]


def test_a_folder_that_cannot_be_written_is_said_in_one_line(sampleSource, monkeypatch, tmp_path):
    from twinseg.errors import InputError

    (tmp_path / "file").touch()
    monkeypatch.setenv("TWINSEG_HOME", str(tmp_path / "file"))

    with pytest.raises(InputError, match=r"synthetic-glioma.*TWINSEG_HOME"):
        sampleSource.loadSample()
