"""Loading, opening, driving, reloading and leaving a scripted module."""

from __future__ import annotations

import sys
import textwrap

import pytest


@pytest.fixture
def module(tmp_path):
    """Writes the script of a module whose widget class has the given body."""

    def write(name, widget_body="pass", extra=""):
        path = tmp_path / f"{name}.py"
        path.write_text(
            f"import qt, ctk, slicer\nfrom slicer.ScriptedLoadableModule import *\n"
            f"class {name}(ScriptedLoadableModule):\n    pass\n"
            f"class {name}Widget(ScriptedLoadableModuleWidget):\n"
            + textwrap.indent(textwrap.dedent(widget_body).strip(), "    ")
            + "\n"
            + textwrap.dedent(extra)
        )
        return path

    return write


def test_a_module_is_known_under_its_name(slicer_host, sample_module):
    import slicer

    widget = slicer_host.open(sample_module)
    assert slicer.modules.hostsample.title == "Host Sample"
    assert slicer.modules.HostSampleWidget is widget
    assert "HostSample" in slicer.util.moduleNames()
    assert slicer.util.modulePath("HostSample") == str(sample_module)
    assert slicer.util.getModuleLogic("HostSample") is widget.logic
    assert slicer.util.selectedModule() == "HostSample"
    assert not slicer.modules.hostsample.icon.isNull()


def test_the_panel_computes(slicer_host, sample_module, head_volume):
    import slicer

    widget = slicer_host.open(sample_module)
    assert widget.ui.inputSelector.currentNode() is head_volume
    assert not widget.ui.applyButton.enabled
    assert "output" in widget.ui.applyButton.toolTip
    widget.ui.outputSelector.addNode()
    widget.ui.imageThresholdSliderWidget.value = 150
    assert widget.ui.applyButton.enabled
    widget.ui.applyButton.click()
    output = slicer.util.arrayFromVolume(widget.ui.outputSelector.currentNode())
    assert set(output[output > 0]) == {200}


def test_an_error_is_shown_and_counted_once(slicer_host, sample_module, head_volume):
    widget = slicer_host.open(sample_module)
    widget.ui.outputSelector.addNode()
    head_volume.SetAndObserveImageData(None)
    with slicer_host.faults.expect("The input volume is empty") as caught:
        widget.ui.applyButton.click()
    assert [fault.kind for fault in caught] == ["dialog"]
    assert "Failed to compute results." in caught[0].text
    assert slicer_host.dialogs.shown


def test_parameters_outlive_a_reload_and_end_with_the_scene(slicer_host, sample_module, head_volume):
    import slicer

    first = slicer_host.open(sample_module)
    first.ui.imageThresholdSliderWidget.value = 42
    first.onReload()
    second = slicer.modules.HostSampleWidget
    assert second is not first
    assert second.ui.imageThresholdSliderWidget.value == 42
    slicer_host.close_scene()
    assert second.ui.imageThresholdSliderWidget.value == 100
    assert second.ui.inputSelector.currentNode() is None


def test_the_scene_is_saved_and_loaded_with_the_panel(slicer_host, sample_module, head_volume, tmp_path):
    import slicer

    widget = slicer_host.open(sample_module)
    widget.ui.invertOutputCheckBox.checked = True
    assert slicer.util.saveScene(str(tmp_path / "scène saved.mrb"))
    slicer_host.close_scene()
    assert not widget.ui.invertOutputCheckBox.checked
    slicer.util.loadScene(str(tmp_path / "scène saved.mrb"))
    widget.initializeParameterNode()
    assert widget.ui.invertOutputCheckBox.checked
    assert widget.ui.inputSelector.currentNode().GetName() == "Head"


def test_enter_and_exit_are_called_in_turn(slicer_host, module):
    import slicer

    body = """
        calls = []
        def enter(self): self.calls.append("enter " + self.moduleName)
        def exit(self): self.calls.append("exit " + self.moduleName)
        def cleanup(self): self.calls.append("cleanup " + self.moduleName)
    """
    first = slicer_host.open(module("FirstModule", body))
    second = slicer_host.open(module("SecondModule", body))
    slicer.util.selectModule("FirstModule")
    slicer_host.app.moduleManager().unload("FirstModule")
    assert first.calls == [f"{call} FirstModule" for call in ("enter", "exit", "enter", "exit", "cleanup")]
    assert second.calls == ["enter SecondModule", "exit SecondModule"]
    assert not hasattr(slicer.modules, "firstmodule")


def test_the_self_test_runs(slicer_host, sample_module):
    import slicer

    slicer_host.load(sample_module)
    slicer.selfTests["HostSample"](msec=0)


def test_a_failing_self_test_fails(slicer_host, module):
    import slicer

    extra = """
        class FailingModuleTest(ScriptedLoadableModuleTest):
            def test_sum(self): self.assertEqual(1 + 1, 3)
    """
    slicer_host.load(module("FailingModule", extra=extra))
    with pytest.raises(AssertionError):
        slicer.selfTests["FailingModule"](msec=0)


def test_a_script_with_an_error_does_not_become_a_module(slicer_host, tmp_path):
    import slicer

    path = tmp_path / "Broken.py"
    path.write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        slicer_host.load(path)
    assert "Broken" not in slicer.util.moduleNames()


def test_a_module_without_a_panel(slicer_host, tmp_path):
    path = tmp_path / "Headless.py"
    path.write_text("from slicer.ScriptedLoadableModule import *\nclass Headless(ScriptedLoadableModule):\n    pass\n")
    assert slicer_host.open(path) is None


def test_developer_mode_adds_the_reload_buttons(slicer_host, module):
    import qt

    qt.QSettings().setValue("Developer/DeveloperMode", True)
    try:
        widget = slicer_host.open(module("Developed", "def setup(self): super().setup()"))
    finally:
        qt.QSettings().remove("Developer/DeveloperMode")
    widget.reloadButton.click()
    import slicer

    assert slicer.modules.DevelopedWidget is not widget


def test_a_child_process_reports_without_blocking(slicer_host):
    import slicer

    lines, codes = [], []
    script = "import time; print('one', flush=True); time.sleep(0.2); print('two'); raise SystemExit(3)"
    slicer.util.launchConsoleProcess(
        [sys.executable, "-c", script], blocking=False, logCallback=lines.append, completedCallback=codes.append
    )
    assert slicer_host.app.wait_until(lambda: codes, 60)
    assert (lines, codes) == (["one", "two"], [3])


def test_quitting_unloads_the_modules_and_shows_processes_that_were_left(slicer_host, module):
    body = """
        def setup(self):
            import subprocess, sys
            self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        def cleanup(self):
            if self.stopsItsProcess: self.process.kill(); self.process.wait()
    """
    widget = slicer_host.open(module("Starter", body))
    widget.stopsItsProcess = False
    slicer_host.app.quit()
    assert [child.pid for child in slicer_host.app.child_processes()] == [widget.process.pid]
    widget.stopsItsProcess = True
    widget.cleanup()
    assert slicer_host.app.child_processes() == []


def test_questions_are_answered(slicer_host):
    import slicer

    assert slicer.util.confirmOkCancelDisplay("Install torch?")
    with slicer_host.dialogs.answer("Install torch", 0x00400000):  # Cancel
        assert not slicer.util.confirmOkCancelDisplay("Install torch?")
    assert any("Install torch?" in text for text in slicer_host.dialogs.shown)


@pytest.mark.parametrize("testing", [False, True])
def test_an_error_dialog_is_a_fault_also_where_slicer_only_logs_it(slicer_host, testing):
    import slicer

    slicer_host.app.set_testing(testing)
    with slicer_host.faults.expect("lost"):
        slicer.util.errorDisplay("lost")
    assert bool(slicer_host.dialogs.shown) is not testing
    slicer_host.app.set_testing(False)


def test_a_module_that_leaves_its_observers_does_not_disturb_the_next(slicer_host, module):

    body = """
        def setup(self):
            self.label = qt.QLabel(self.parent)
            slicer.mrmlScene.AddObserver(slicer.mrmlScene.EndCloseEvent, lambda *_: self.label.setText("closed"))
    """
    widget = slicer_host.open(module("Forgetful", body))
    slicer_host.close_scene()
    assert widget.label.text == "closed"
    slicer_host.reset()
    with pytest.raises(RuntimeError, match="deleted"):
        widget.label.setText("after the panel is gone")
    slicer_host.close_scene()


def test_the_hierarchy_is_saved_and_loaded(slicer_host, tmp_path):
    import slicer

    def items():
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        return hierarchy, hierarchy.GetItemChildWithName(hierarchy.GetSceneItemID(), "Patient")

    points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Points")
    hierarchy, _ = items()
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Patient")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(points), patient)
    slicer.util.saveScene(str(tmp_path / "scene.mrml"))
    slicer_host.close_scene()
    assert items()[0].GetNumberOfItems() == 0
    slicer.util.loadScene(str(tmp_path / "scene.mrml"))
    hierarchy, patient = items()
    item = hierarchy.GetItemByDataNode(slicer.util.getNode("Points"))
    assert hierarchy.GetItemName(patient) == "Patient"
    assert hierarchy.GetItemParent(item) == patient
