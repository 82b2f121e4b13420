"""``import qt`` behaves as under PythonQt."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture
def qt(slicer_host):
    import qt

    return qt


def test_a_property_is_an_attribute_and_its_setter_stays(qt):
    button = qt.QPushButton("Apply")
    button.enabled = False
    button.setText("Cancel")
    assert button.text == "Cancel"
    assert not button.isEnabled()
    assert button.sizeHint.width() > 0


def test_an_attribute_that_does_not_exist_is_refused(qt):
    button = qt.QPushButton()
    with pytest.raises(AttributeError, match="txt"):
        button.txt = "Apply"
    with pytest.raises(AttributeError, match="setText"):
        button.setText = None
    with pytest.raises(AttributeError, match="tooltip"):
        _ = button.tooltip


def test_a_class_derived_in_python_takes_new_attributes(qt):
    class Panel(qt.QWidget):
        def __init__(self):
            super().__init__()
            self.rows = 3

        def sizeHint(self):
            return qt.QSize(30, 40)

    panel = Panel()
    assert panel.rows == 3
    frame = qt.QWidget()
    layout = qt.QVBoxLayout(frame)
    layout.addWidget(panel)
    assert layout.sizeHint().height() >= 40


def test_name_is_the_object_name_and_dynamic_properties_are_attributes(qt):
    widget = qt.QWidget()
    widget.name = "panel"
    widget.setProperty("SlicerParameterName", "threshold")
    assert widget.objectName == "panel"
    assert widget.SlicerParameterName == "threshold"


def test_a_setter_takes_what_pythonqt_converts(qt):
    label, box = qt.QLabel(), qt.QSpinBox()
    label.text = 5
    box.value = 3.7
    box.enabled = None
    assert (label.text, box.value, box.enabled) == ("5", 3, False)


def test_enumerations_are_integers(qt):
    box = qt.QCheckBox()
    states = []
    box.connect("stateChanged(int)", states.append)
    box.checked = True
    assert states == [qt.Qt.Checked] == [2]
    assert qt.QSizePolicy.Preferred == 5


def test_connect_by_signature_hands_over_its_arguments(qt):
    button = qt.QPushButton()
    button.checkable = True
    got = []
    button.connect("clicked(bool)", lambda checked: got.append(checked))
    button.connect("clicked()", lambda *arguments: got.append(arguments))
    button.toggled.connect(lambda: got.append("toggled"))
    button.click()
    assert got == ["toggled", True, ()]


def test_disconnect_undoes_connect(qt):
    button = qt.QPushButton()
    got = []

    class Receiver:
        def slot(self):
            got.append("slot")

    receiver = Receiver()
    button.connect("clicked()", receiver.slot)
    assert button.disconnect("clicked()", receiver.slot)
    button.click()
    assert got == []
    assert not button.disconnect("clicked()", receiver.slot)


def test_a_connection_keeps_its_receiver_alive(qt):
    button = qt.QPushButton()
    got = []

    class Receiver:
        def slot(self):
            got.append("slot")

    button.clicked.connect(Receiver().slot)
    gc.collect()
    button.click()
    assert got == ["slot"]


def test_a_receiver_with_a_slot_by_name(qt):
    edit, label = qt.QLineEdit(), qt.QLabel()
    edit.connect("textChanged(QString)", label, "setText(QString)")
    edit.text = "glioma"
    assert label.text == "glioma"


def test_signals_of_qt5_find_those_of_qt6(qt):
    box, group, radio = qt.QComboBox(), qt.QButtonGroup(), qt.QRadioButton()
    group.addButton(radio, 7)
    got = []
    box.connect("currentIndexChanged(QString)", got.append)
    group.connect("buttonClicked(int)", got.append)
    box.addItems(["a"])
    radio.click()
    assert got == ["a", 7]


def test_an_unknown_signal_is_not_connected(qt, caplog):
    assert not qt.QPushButton().connect("pushed()", print)
    assert "pushed()" in caplog.text


def test_an_exception_in_a_slot_is_a_fault(qt, slicer_host):
    button = qt.QPushButton()
    button.connect("clicked()", lambda: 1 / 0)
    with slicer_host.faults.expect("ZeroDivisionError") as caught:
        button.click()
    assert "test_qt_manners.py" in caught[0].details


def test_a_fault_that_nothing_expects_fails(qt, slicer_host):
    button = qt.QPushButton()
    button.connect("clicked()", lambda: 1 / 0)
    button.click()
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        slicer_host.faults.check()


def test_an_abstract_view_can_be_made_for_its_constants(qt, slicer_host):
    assert qt.QAbstractItemView().DragDrop == 3
    assert isinstance(qt.QTreeView(), qt.QAbstractItemView)


def test_timers_and_find_child(qt, slicer_host):
    fired = []
    qt.QTimer.singleShot(0, lambda: fired.append(1))
    slicer_host.app.wait_until(lambda: fired, 5)
    window = qt.QWidget()
    child = qt.QPushButton(window)
    child.objectName = "apply"
    assert fired
    assert window.findChild(qt.QPushButton, "apply") is child
    assert window.findChildren("QPushButton") == [child]


def test_a_process_runs_and_tells_its_end(qt, slicer_host):
    import sys

    process = qt.QProcess()
    ended = []
    process.connect("finished(int,QProcess::ExitStatus)", lambda code, status: ended.append((code, status)))
    process.start(sys.executable, ["-c", "print('hello')"])
    assert slicer_host.app.wait_until(lambda: ended, 30)
    assert ended == [(0, qt.QProcess.NormalExit)]
    assert process.readAllStandardOutput().data().strip() == b"hello"
