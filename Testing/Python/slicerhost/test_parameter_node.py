"""Typed parameters in a node of the scene, and in widgets."""

import enum
import pathlib
from typing import Annotated

import pytest


class Quality(enum.Enum):
    FAST = "fast"
    FINE = "fine"


@pytest.fixture
def node(slicer_host):
    import slicer

    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")


@pytest.fixture
def parameters(node):
    """A wrapper with a field of every kind, around a new parameter node."""
    import slicer
    from slicer.parameterNodeWrapper import (
        Choice,
        Default,
        FloatRange,
        Minimum,
        RangeBounds,
        WithinRange,
        parameterNodeWrapper,
    )

    @parameterNodeWrapper
    class Parameters:
        volume: slicer.vtkMRMLScalarVolumeNode
        surface: slicer.vtkMRMLModelNode | slicer.vtkMRMLSegmentationNode | None
        threshold: Annotated[float, WithinRange(0, 10)] = 5
        iterations: Annotated[int, Minimum(1)] = 1
        name: str = "result"
        invert: bool
        method: Annotated[str, Choice(["mean", "median"])] = "mean"
        quality: Quality = Quality.FINE
        folder: pathlib.Path
        limit: int | None
        window: Annotated[FloatRange, RangeBounds(-100, 100), Default(FloatRange(-10, 10))]
        names: list[str]
        weights: dict[str, float]
        size: tuple[int, int]

    return Parameters(node)


def test_defaults(parameters):
    assert (parameters.volume, parameters.surface, parameters.limit) == (None, None, None)
    assert (parameters.threshold, parameters.iterations, parameters.name) == (5, 1, "result")
    assert (parameters.invert, parameters.quality, parameters.size) == (False, Quality.FINE, (0, 0))
    assert parameters.folder == pathlib.Path()
    assert parameters.default("method").value == "mean"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threshold", 11),
        ("iterations", 0),
        ("method", "mode"),
        ("name", 3),
        ("invert", None),
        ("size", (1,)),
        ("names", [1]),
    ],
)
def test_what_the_type_does_not_allow_is_refused_and_changes_nothing(parameters, field, value):
    before = getattr(parameters, field)
    with pytest.raises((TypeError, ValueError)):
        setattr(parameters, field, value)
    assert getattr(parameters, field) == before


def test_values_are_in_the_node(parameters, node):
    parameters.threshold = 2.5
    parameters.quality = Quality.FAST
    parameters.limit = 4
    again = type(parameters)(node)
    assert node.GetParameter("threshold") == "2.5"
    assert (again.threshold, again.quality, again.limit) == (2.5, Quality.FAST, 4)


def test_a_node_reference_goes_with_the_node(parameters, slicer_host):
    import slicer

    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    parameters.volume = volume
    assert parameters.volume is volume
    with pytest.raises(TypeError):
        parameters.volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode")
    slicer.mrmlScene.RemoveNode(volume)
    assert parameters.volume is None


def test_a_list_that_was_read_writes_its_changes(parameters, node):
    names = parameters.names
    names.append("T1")
    names += ["T2"]
    names[0] = "FLAIR"
    assert type(parameters)(node).names == ["FLAIR", "T2"]
    with pytest.raises(NotImplementedError):
        _ = names + list("T1")


def test_a_dictionary_that_was_read_writes_its_changes(parameters, node):
    parameters.weights["site"] = 0.5
    assert dict(type(parameters)(node).weights) == {"site": 0.5}
    del parameters.weights["site"]
    assert not type(parameters)(node).weights


def test_packs_nest_and_write_their_changes(node):
    from slicer.parameterNodeWrapper import isParameterPack, nestedParameterNames, parameterNodeWrapper, parameterPack

    @parameterPack
    class Point:
        x: float
        y: float = 1

    @parameterPack
    class Box:
        corner: Point
        label: str = "roi"

    @parameterNodeWrapper
    class Parameters:
        box: Box

    parameters = Parameters(node)
    parameters.box.corner.x = 3
    parameters.setValue("box.corner.y", 4)
    assert type(parameters)(node).box == Box(Point(3, 4), "roi")
    assert nestedParameterNames(Box) == ["corner.x", "corner.y", "label"]
    assert isParameterPack(parameters.box)
    with pytest.raises(AttributeError):
        parameters.box.colour = "red"
    with pytest.raises(ValueError, match="'z'"):
        parameters.setValue("box.corner.z", 4)


def test_two_wrappers_share_a_node_under_prefixes(node):
    from slicer.parameterNodeWrapper import parameterNodeWrapper

    @parameterNodeWrapper
    class Parameters:
        x: int

    first, second = Parameters(node, prefix="first."), Parameters(node, prefix="second.")
    first.x, second.x = 1, 2
    assert (first.x, second.x) == (1, 2)


def test_widgets_and_parameters_follow_each_other(parameters, slicer_host):
    import ctk
    import qt
    import slicer

    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    widgets = {
        "threshold": ctk.ctkSliderWidget(),
        "iterations": qt.QSpinBox(),
        "name": qt.QLineEdit(),
        "invert": qt.QCheckBox(),
        "method": qt.QComboBox(),
        "quality": qt.QComboBox(),
        "folder": ctk.ctkPathLineEdit(),
        "window": ctk.ctkRangeWidget(),
        "volume": slicer.qMRMLNodeComboBox(),
    }
    widgets["volume"].setMRMLScene(slicer.mrmlScene)
    tag = parameters.connectParametersToGui(widgets)

    widgets["threshold"].value = 7
    widgets["name"].text = "core"
    widgets["invert"].checked = True
    widgets["method"].currentIndex = 1
    widgets["quality"].currentIndex = 0
    widgets["folder"].currentPath = "/data"
    widgets["window"].setValues(-5, 5)
    widgets["volume"].setCurrentNode(volume)
    assert (parameters.threshold, parameters.name, parameters.invert, parameters.method) == (7, "core", True, "median")
    assert (parameters.quality, parameters.folder, parameters.volume) == (Quality.FAST, pathlib.Path("/data"), volume)
    assert (parameters.window.minimum, parameters.window.maximum) == (-5, 5)

    parameters.threshold = 3
    parameters.volume = None
    parameters.iterations = 9
    assert (widgets["threshold"].value, widgets["iterations"].value) == (3, 9)
    assert widgets["volume"].currentNode() is None
    assert (widgets["threshold"].minimum, widgets["threshold"].maximum) == (0, 10)

    parameters.disconnectGui(tag)
    widgets["threshold"].value = 8
    parameters.iterations = 2
    assert (parameters.threshold, widgets["iterations"].value) == (3, 9)
    widgets["volume"].setMRMLScene(None)


def test_a_widget_that_can_not_show_the_type_is_an_error(parameters):
    import qt

    with pytest.raises(RuntimeError, match="QCheckBox"):
        parameters.connectParametersToGui({"threshold": qt.QCheckBox()})


def test_widgets_are_made_for_types(slicer_host):
    import ctk
    import qt
    import slicer
    from slicer.parameterNodeWrapper import WithinRange, createGui

    assert type(createGui(Annotated[float, WithinRange(0, 1)])) is ctk.ctkSliderWidget
    assert type(createGui(bool)) is qt.QCheckBox
    assert type(createGui(slicer.vtkMRMLModelNode)) is slicer.qMRMLNodeComboBox


@pytest.mark.parametrize("ending", ["mrml", "mrb"])
def test_parameters_are_saved_with_the_scene(parameters, node, slicer_host, tmp_path, ending):
    import slicer

    parameters.threshold = 1.5
    parameters.names = ["T1", "T2"]
    parameters.volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "MR")
    node.SetName("Saved")
    path = tmp_path / f"scene.{ending}"
    assert slicer.util.saveScene(str(path))
    slicer_host.close_scene()
    slicer.util.loadScene(str(path))
    loaded = type(parameters)(slicer.util.getNode("Saved"))
    assert (loaded.threshold, loaded.names, loaded.volume.GetName()) == (1.5, ["T1", "T2"], "MR")
