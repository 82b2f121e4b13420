"""Views are rendered by Slicer's displayable managers, and pictures show them."""

from __future__ import annotations

import numpy as np
import pytest


def pixels(path):
    """A PNG as an array (rows, columns, RGB)."""
    from PySide6 import QtGui

    image = QtGui.QImage(str(path)).convertToFormat(QtGui.QImage.Format.Format_RGB888)
    rows = np.frombuffer(image.constBits(), np.uint8).reshape(image.height(), image.bytesPerLine())
    return rows[:, : image.width() * 3].reshape(image.height(), image.width(), 3).astype(int)


def is_red(picture):
    return picture[..., 0] > np.maximum(picture[..., 1], picture[..., 2]) + 50


def quarter(picture, row, column):
    """One of the four views of the four-up layout, without the bar above it."""
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    return picture[row * height + 22 : (row + 1) * height - 4, column * width + 4 : (column + 1) * width - 4]


def test_slices_and_surface_show_the_volume_and_the_segmentation(
    slicer_host, tumor_segmentation, head_volume, tmp_path
):
    import slicer

    slicer.util.setSliceViewerLayers(background=head_volume, fit=True)
    slicer.util.resetThreeDViews()
    slicer_host.captureViews(tmp_path / "views.png")
    picture = pixels(tmp_path / "views.png")
    red, threed, green = quarter(picture, 0, 0), quarter(picture, 0, 1), quarter(picture, 1, 0)
    for view in (red, green):
        gray = (abs(view[..., 0] - view[..., 1]) < 4) & (view[..., 0] > 60)
        assert 0.1 < gray.mean() < 0.9
        assert 0.002 < is_red(view).mean() < 0.3
        assert view[is_red(view)].min(axis=1).max() > 30  # the volume shines through
    assert 0.02 < is_red(threed).mean() < 0.5
    assert (threed[..., 2] > threed[..., 0] + 20).mean() > 0.3  # Slicer's blue background

    tumor_segmentation.GetDisplayNode().SetVisibility(False)
    slicer_host.captureViews(tmp_path / "hidden.png")
    assert is_red(pixels(tmp_path / "hidden.png")[22:]).mean() < 0.01


def test_another_slice_is_another_picture(slicer_host, head_volume, tmp_path):
    import slicer

    slicer.util.setSliceViewerLayers(background=head_volume, fit=True)
    widget = slicer.app.layoutManager().sliceWidget("Red")
    slicer_host.captureWidget(tmp_path / "middle.png", widget.sliceView())
    widget.sliceController().setSliceOffsetValue(28)
    slicer_host.captureWidget(tmp_path / "top.png", widget.sliceView())
    middle, top = pixels(tmp_path / "middle.png"), pixels(tmp_path / "top.png")
    assert (top > 40).sum() < (middle > 40).sum()


def test_a_plot_is_drawn_in_its_layout(slicer_host, tmp_path):
    import slicer

    data = np.array([[0.0, 2.0], [30.0, 5.0], [60.0, 3.0]])
    chart = slicer.util.plot(data, xColumnIndex=0, columnNames=["day", "volume"], title="Tumor volume")
    assert slicer.app.layoutManager().plotViewCount == 1
    view = slicer.app.layoutManager().plotWidget(0).plotView()
    assert view.chart().GetTitle() == "Tumor volume"
    chart.GetNthPlotSeriesNode(0).SetColor(1, 0, 0)
    chart.GetNthPlotSeriesNode(0).SetLineWidth(6)
    slicer_host.captureWidget(tmp_path / "plot.png", view)
    picture = pixels(tmp_path / "plot.png")
    assert (picture.min(axis=2) > 240).mean() > 0.5
    assert is_red(picture).sum() > 100


def test_layouts(slicer_host):
    import slicer

    manager, layouts = slicer.app.layoutManager(), slicer.vtkMRMLLayoutNode
    changes = []
    manager.connect("layoutChanged(int)", changes.append)
    manager.setLayout(layouts.SlicerLayoutOneUpRedSliceView)
    assert manager.layout == layouts.SlicerLayoutOneUpRedSliceView
    assert manager.sliceWidget("Red").mrmlSliceNode().IsMappedInLayout()
    assert not manager.sliceWidget("Yellow").mrmlSliceNode().IsMappedInLayout()
    assert set(manager.sliceViewNames()) >= {"Red", "Green", "Yellow"}
    assert changes == [layouts.SlicerLayoutOneUpRedSliceView]


def test_a_custom_layout(slicer_host, tmp_path):
    import slicer

    description = """<layout type="horizontal"><item><view class="vtkMRMLSliceNode" singletontag="Before">
        <property name="orientation" action="default">Axial</property></view></item>
        <item><view class="vtkMRMLTableViewNode" singletontag="TableView1"/></item></layout>"""
    manager = slicer.app.layoutManager()
    manager.layoutLogic().GetLayoutNode().AddLayoutDescription(901, description)
    manager.setLayout(901)
    assert manager.sliceWidget("Before").mrmlSliceNode().GetOrientation() == "Axial"
    table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode")
    slicer.util.updateTableFromArray(table, np.array([[1.0, 2.0]]), ["a", "b"])
    slicer.app.applicationLogic().GetSelectionNode().SetActiveTableID(table.GetID())
    slicer.app.applicationLogic().PropagateTableSelection()
    assert manager.tableWidget(0).tableView().model().columnCount() == 2


def test_the_panel_and_the_window_can_be_captured(slicer_host, sample_module, tmp_path):
    slicer_host.open(sample_module)
    slicer_host.captureWidget(tmp_path / "panel.png")
    slicer_host.captureWindow(tmp_path / "window.png")
    panel, window = pixels(tmp_path / "panel.png"), pixels(tmp_path / "window.png")
    assert panel.std() > 5
    assert window.shape[1] > panel.shape[1]


def test_views_survive_closing_the_scene(slicer_host, head_volume, tmp_path):
    import slicer

    slicer.util.setSliceViewerLayers(background=head_volume, fit=True)
    slicer_host.close_scene()
    slicer_host.captureViews(tmp_path / "empty.png")
    assert quarter(pixels(tmp_path / "empty.png"), 0, 0).max() < 60


def test_cameras_and_coordinates(slicer_host, head_volume):
    import slicer

    manager = slicer.app.layoutManager()
    view = manager.threeDWidget(0).threeDView()
    view.rotateToViewAxis(5)
    position, focal = view.cameraNode().GetPosition(), view.cameraNode().GetFocalPoint()
    assert position[2] > focal[2]
    slicer.util.setSliceViewerLayers(background=head_volume, fit=True)
    slice_view = manager.sliceWidget("Red").sliceView()
    ras = slice_view.convertXYZToRAS([10, 20, 0])
    assert slice_view.convertRASToXYZ(ras) == pytest.approx([10, 20, 0], abs=1e-6)
