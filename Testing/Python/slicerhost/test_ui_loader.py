"""``.ui`` files with Slicer's widgets."""

from __future__ import annotations

import pytest

FORM = """<?xml version="1.0"?><ui version="4.0"><class>F</class><widget class="qMRMLWidget" name="F">
<layout class="QVBoxLayout" name="layout">{}</layout></widget><resources/><connections>{}</connections></ui>"""


def load(tmp_path, widgets, connections=""):
    import slicer

    path = tmp_path / "form with spaces é.ui"
    path.write_text(FORM.format("".join(f"<item>{widget}</item>" for widget in widgets), connections), encoding="utf-8")
    return slicer.util.loadUI(str(path))


def test_the_form_of_the_sample_module(slicer_host, sample_module):
    import ctk
    import slicer

    form = slicer.util.loadUI(str(sample_module.parent / "Resources/UI/HostSample.ui"))
    ui = slicer.util.childWidgetVariables(form)
    assert type(ui.inputSelector) is slicer.qMRMLNodeComboBox
    assert ui.inputSelector.nodeTypes == ("vtkMRMLScalarVolumeNode",)
    assert ui.inputSelector.SlicerParameterName == "inputVolume"
    assert (ui.imageThresholdSliderWidget.minimum, ui.imageThresholdSliderWidget.maximum) == (-100, 500)
    assert ui.advancedCollapsibleButton.collapsed
    assert ui.folderEdit.filters & ctk.ctkPathLineEdit.Dirs
    assert not ui.applyButton.enabled
    form.setMRMLScene(slicer.mrmlScene)
    assert ui.outputSelector.mrmlScene() is slicer.mrmlScene


def test_an_unknown_class_is_an_error_that_names_it(slicer_host, tmp_path):
    with pytest.raises(RuntimeError, match="qMRMLNoSuchWidget"):
        load(tmp_path, ['<widget class="qMRMLNoSuchWidget" name="w"/>'])


def test_limits_are_set_before_the_value(slicer_host, tmp_path):
    form = load(
        tmp_path,
        ['<widget class="ctkDoubleSpinBox" name="box"><property name="value"><double>250</double></property>'
         '<property name="maximum"><double>1000</double></property></widget>'],
    )  # fmt: skip
    assert form.findChild("ctkDoubleSpinBox", "box").value == 250


def test_connections_between_widgets(slicer_host, tmp_path):
    form = load(
        tmp_path,
        ['<widget class="QCheckBox" name="check"/>', '<widget class="ctkSliderWidget" name="slider"/>'],
        "<connection><sender>check</sender><signal>toggled(bool)</signal>"
        "<receiver>slider</receiver><slot>setDisabled(bool)</slot></connection>",
    )
    form.findChild("QCheckBox").checked = True
    assert not form.findChild("ctkSliderWidget").enabled


def test_a_missing_file_is_named(slicer_host, tmp_path):
    import slicer

    with pytest.raises(RuntimeError, match=r"missing\.ui"):
        slicer.util.loadUI(str(tmp_path / "missing.ui"))


def test_two_widgets_of_one_name_keep_their_own_properties(slicer_host, tmp_path):
    form = load(
        tmp_path,
        [
            '<widget class="QLabel" name="twice"><property name="text"><string>label</string></property></widget>',
            '<widget class="ctkCollapsibleButton" name="twice">'
            '<property name="collapsed"><bool>true</bool></property></widget>',
        ],
    )
    assert form.findChild("QLabel", "twice").text == "label"
    assert form.findChild("ctkCollapsibleButton", "twice").collapsed
