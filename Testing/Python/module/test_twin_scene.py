"""A twin in the scene: its chart, its scans by patient and date, maps over them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from twinseg.twin.forecast import Band, Forecast, TimeToProgression
from twinseg.twin.timeline import change_map
from twinseg.volumes import Volume

SECONDS = 120


@pytest.fixture
def record(slicer_host, three_scans, tmp_path):
    """A copy of that patient's twin, read as the panel reads it."""
    from TwinSegSlicerLib.TwinRecord import readTwin

    return readTwin(shutil.copytree(three_scans, tmp_path / "P-7"))


@pytest.fixture
def load(slicer_host, record):
    """Loads the scans and waits until they are there; returns the browser."""
    from TwinSegSlicerLib.TwinScene import TwinLoader

    def run():
        ended = []
        TwinLoader(record, "t1ce", ended.append, ended.append)
        assert slicer_host.app.wait_until(lambda: bool(ended), SECONDS)
        return ended[0]

    return run


def hierarchy():
    import slicer

    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)


def test_the_chart_shows_the_lesions_and_their_sum_with_its_error(slicer_host, record):
    import slicer

    from TwinSegSlicerLib.TwinChart import showChart, volumeColumns

    chart = showChart(record)

    columns = volumeColumns(record)
    assert columns["day"] == [scan.day for scan in record.scans]
    assert columns["all lesions"] == pytest.approx(
        [sum(x.volume_ml for x in record.history.lesions[scan.name]) for scan in record.scans]
    )
    for low, middle, high in zip(columns["all - 1 SD"], columns["all lesions"], columns["all + 1 SD"], strict=True):
        assert 0 < low < middle < high
    series = [chart.GetNthPlotSeriesNode(number) for number in range(chart.GetNumberOfPlotSeriesNodes())]
    assert {node.GetYColumnName() for node in series} >= {"all lesions", "all - 1 SD", "all + 1 SD"}
    table = series[0].GetTableNode()
    drawn = [table.GetTable().GetColumnByName("all lesions").GetValue(row) for row in range(3)]
    assert drawn == pytest.approx(columns["all lesions"])
    view = slicer.app.layoutManager().plotWidget(0)
    assert view.mrmlPlotViewNode().GetPlotChartNode() is chart
    assert chart.GetYAxisRange()[0] == 0
    assert chart.GetYAxisRange()[1] > max(columns["all + 1 SD"])


def test_the_chart_drawn_again_leaves_nothing_behind(slicer_host, record):
    import slicer

    from TwinSegSlicerLib.TwinChart import showChart

    chart = showChart(record)
    before = slicer.mrmlScene.GetNumberOfNodes()

    assert showChart(record) is chart
    assert slicer.mrmlScene.GetNumberOfNodes() == before


def test_a_forecast_is_drawn_with_its_bands_and_what_needs_no_model(slicer_host, record):
    from TwinSegSlicerLib.TwinChart import progressionText, showChart

    forecasts = [forecast_of(record, name).to_json() for name in ("no further treatment", "40 Gy in 15 fractions")]
    chart = showChart(record, forecasts)

    series = [chart.GetNthPlotSeriesNode(number) for number in range(chart.GetNumberOfPlotSeriesNodes())]
    names = [node.GetName() for node in series]
    for scenario in ("no further treatment", "40 Gy in 15 fractions"):
        assert scenario in names
    assert {"as the last scan", "going on as before", "50% band", "90% band"} <= set(names)
    median = next(node for node in series if node.GetName() == "no further treatment").GetTableNode().GetTable()
    assert median.GetColumnByName("day").GetValue(0) == record.scans[-1].day
    assert median.GetColumnByName("no further treatment").GetValue(0) == pytest.approx(record.total("002")[0])
    assert progressionText(forecasts[0]) == "50 d (20 d to > 180 d)"


def forecast_of(record, scenario: str) -> Forecast:
    """What the library might forecast."""
    days = record.scans[-1].day + np.arange(30.0, 181.0, 30.0)
    median = np.linspace(90, 160, len(days))
    bands = tuple(Band(level, median * (1 - level / 2), median * (1 + level)) for level in (0.5, 0.9))
    time = TimeToProgression(50.0, 20.0, float("inf"), 0.1, 180.0)
    return Forecast(scenario, days, median, bands, median, median, time, True, ("Research only.",), days[1])


def test_scans_are_filed_by_patient_and_day(slicer_host, record, load):
    load()

    tree = hierarchy()
    patient = tree.GetItemChildWithName(tree.GetSceneItemID(), "P-7")
    assert tree.GetItemLevel(patient) == "Patient"
    for scan in record.scans:
        study = tree.GetItemChildWithName(patient, f"Day {scan.day:g}")
        assert tree.GetItemLevel(study) == "Study"
        for what in ("t1ce", "segmentation", "to baseline"):
            assert tree.GetItemChildWithName(study, f"P-7 day {scan.day:g} {what}")


def test_the_browser_steps_through_image_segmentation_and_transform(slicer_host, record, load, grown):
    import slicer

    from TwinSegSlicerLib.TwinScene import shownNode, showScan

    browser = load()
    image, drawn = shownNode(record, "image"), shownNode(record, "segmentation")
    assert browser.GetMasterSequenceNode().GetNumberOfDataNodes() == 3
    for scan, visit in zip(record.scans, grown.visits, strict=True):
        showScan(record, scan)
        slicer_host.process_events()
        np.testing.assert_array_equal(slicer.util.arrayFromVolume(image).T, record.twin.image(scan, "t1ce").array)
        moved = slicer.util.arrayFromVTKMatrix(transform_of(image))
        np.testing.assert_allclose(moved, scan.to_baseline, atol=1e-6)
        assert drawn.GetParentTransformNode() is image.GetParentTransformNode()
        enhancing = slicer.util.arrayFromSegmentBinaryLabelmap(drawn, "ET", image).T
        np.testing.assert_array_equal(enhancing > 0, visit.labels.array == 3)


def transform_of(node):
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetParentTransformNode().GetMatrixTransformToParent(matrix)
    return matrix


def test_the_browsers_copies_share_their_voxels(slicer_host, record, load):
    from TwinSegSlicerLib.TwinNodes import TwinNodes

    frames = load().GetMasterSequenceNode()
    for number, scan in enumerate(record.scans):
        own = TwinNodes("P-7").find(f"scan {scan.name} image")
        assert frames.GetNthDataNode(number).GetImageData() is own.GetImageData()


def test_scans_loaded_again_replace_the_ones_before(slicer_host, load):
    import slicer

    load()
    before = slicer.mrmlScene.GetNumberOfNodes()
    load()

    assert slicer.mrmlScene.GetNumberOfNodes() == before


def test_scans_of_a_twin_are_no_inputs_of_a_segmentation(slicer_host, load):
    from TwinSegSlicerLib.Sequences import sceneCandidates

    load()

    assert sceneCandidates() == []


def test_a_change_is_a_label_map_in_three_colours_over_the_images(slicer_host, record, load):
    import slicer

    from TwinSegSlicerLib.TwinScene import hideMaps, showChange, shownNode

    load()
    change, counts = change_map(record.twin, "000", "002")
    node = showChange(record, change, record.scans[0], record.scans[2])

    shown = slicer.util.arrayFromVolume(node)
    voxel = np.prod(node.GetSpacing()) / 1000
    for value, name in ((1, "gone"), (2, "stayed"), (3, "new")):
        assert np.count_nonzero(shown == value) * voxel == pytest.approx(counts[name])
        assert node.GetDisplayNode().GetColorNode().GetColorName(value) == name
    composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    assert composite.GetLabelVolumeID() == node.GetID()
    segmentation = shownNode(record, "segmentation")
    assert not segmentation.GetDisplayNode().GetVisibility()
    hideMaps(record)
    assert composite.GetLabelVolumeID() is None
    assert segmentation.GetDisplayNode().GetVisibility()


def test_a_probability_lies_over_the_images_where_it_is_above_five_per_cent(slicer_host, record):
    import slicer

    from TwinSegSlicerLib.TwinScene import showProbability

    frame = record.twin.frame
    share = np.linspace(0, 1, np.prod(frame.shape), dtype=np.float32).reshape(frame.shape)
    node = showProbability(record, Volume(share, frame.affine), 200.0, "no further treatment")

    np.testing.assert_array_equal(slicer.util.arrayFromVolume(node).T, share)
    assert node.GetDisplayNode().GetLowerThreshold() == pytest.approx(0.05)
    composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    assert composite.GetForegroundVolumeID() == node.GetID()
    assert "day 200, no further treatment" in node.GetName()
    assert showProbability(record, Volume(share, frame.affine), 230.0, "no further treatment") is node


def test_all_of_it_is_saved_with_the_scene(slicer_host, record, load, tmp_path):
    import slicer

    from TwinSegSlicerLib.TwinChart import showChart
    from TwinSegSlicerLib.TwinNodes import TwinNodes

    load()
    showChart(record)
    slicer.util.saveScene(str(tmp_path / "scene é.mrb"))
    slicer.mrmlScene.Clear()
    assert TwinNodes("P-7").all() == []
    slicer.util.loadScene(str(tmp_path / "scene é.mrb"))

    nodes = TwinNodes("P-7")
    assert nodes.find("chart").GetNumberOfPlotSeriesNodes() == 3
    assert nodes.find("browser").GetMasterSequenceNode().GetNumberOfDataNodes() == 3
    assert nodes.find("scan 002 image").GetParentTransformNode() is nodes.find("scan 002 to baseline")
