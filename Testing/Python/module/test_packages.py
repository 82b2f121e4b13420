"""Missing packages are listed, and installed from a folder of wheels when the button is pressed, and only then."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

import pytest

CANCEL = 0x400000  # qt.QMessageBox.Cancel
PYTORCH_EXTENSION = '''
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleLogic
import slicer.packaging, slicer.util


class PyTorchUtils(ScriptedLoadableModule):
    pass


class PyTorchUtilsLogic(ScriptedLoadableModuleLogic):
    """As Slicer's PyTorch extension asks and installs, from the test's folder of wheels."""

    def installTorch(self, askConfirmation=False, torchVersionRequirement=None):
        if askConfirmation and not slicer.util.confirmOkCancelDisplay("PyTorch will be downloaded and installed"):
            return None
        slicer.packaging.pip_install(["torch" + torchVersionRequirement])
'''


def makeWheel(folder: Path, name: str, version: str, requires: str = "") -> Path:
    """A wheel of one empty module."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(slicer_host, tmp_path, monkeypatch) -> Path:
    """A folder of wheels that pip installs from, into a folder that Python looks in and that goes with the test."""
    import slicer.packaging

    wheels, target = tmp_path / "wheels", tmp_path / "site packages"
    wheels.mkdir()
    target.mkdir()
    makeWheel(wheels, "probealpha", "1.5")
    makeWheel(wheels, "probebeta", "2.0", requires="probealpha")
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": wheels, "TARGET": target, "RETRIES": "0"}.items():
        monkeypatch.setenv(f"PIP_{name}", str(value))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.syspath_prepend(str(target))
    monkeypatch.setattr(slicer.packaging, "allow_installation", True)
    slicer.packaging.installation_requests.clear()
    return wheels


@pytest.fixture
def requirements(tmp_path) -> Path:
    path = tmp_path / "requirements.txt"
    path.write_text("# What is needed.\n\n# 3 MB: reads <files>\nprobealpha>=1.0\n\n# 1 MB: more\nprobebeta>=2.0\n")
    return path


@pytest.fixture
def openPanel(index, requirements):
    """Opens a panel in a frame that is shown; the second value collects the calls of onReady."""
    import qt

    from TwinSegSlicerLib.Packages import InstallPanel

    frames = []

    def openPanel():
        calls: list[bool] = []
        frame = qt.QFrame()
        frames.append(frame)
        return InstallPanel(frame, lambda: calls.append(True), requirements), calls

    yield openPanel
    for frame in frames:
        frame.deleteLater()


def requests() -> list[str]:
    import slicer.packaging

    return slicer.packaging.installation_requests


def test_missing_packages_are_listed_with_size_and_reason_and_nothing_is_installed(openPanel):
    panel, ready = openPanel()

    assert not panel.ready
    assert "probealpha&gt;=1.0" in panel.listLabel.text
    assert "3 MB: reads &lt;files&gt;" in panel.listLabel.text
    assert panel.installButton.text == "Install 2 packages"
    assert panel.installButton.enabled
    assert requests() == []
    assert ready == []


def test_the_button_installs_and_then_the_module_is_told_once(openPanel):
    import importlib.metadata

    panel, ready = openPanel()

    panel.installButton.click()

    assert panel.ready
    assert ready == [True]
    assert importlib.metadata.version("probebeta") == "2.0"
    assert not panel._frame.isVisible()
    panel.refresh()
    assert ready == [True]


def test_where_all_is_there_the_frame_stays_hidden(openPanel, requirements):
    requirements.write_text("# 1 MB: arrays\nnumpy>=1.20\n")

    panel, ready = openPanel()

    assert panel.ready
    assert not panel._frame.isVisible()
    assert ready == []
    assert requests() == []


def test_a_version_that_is_too_old_is_named(openPanel, requirements):
    requirements.write_text("# 1 MB: arrays\nnumpy>=1000\n")

    panel, _ready = openPanel()

    assert re.search(r"numpy&gt;=1000.*version \d+\.\d+\S* is too old", panel.listLabel.text)


def test_what_is_left_of_a_broken_installation_is_no_package(openPanel, index, tmp_path):
    info = tmp_path / "site packages" / "probealpha-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: probealpha\nVersion: 1.5\n")

    panel, _ready = openPanel()

    assert "probealpha" in panel.listLabel.text


def test_a_refused_installation_leaves_a_panel_that_works(slicer_host, openPanel):
    panel, ready = openPanel()

    with slicer_host.dialogs.answer("Install", CANCEL):
        panel.installButton.click()

    assert requests() == []
    assert ready == []
    assert "Nothing was installed" in panel.statusLabel.text
    assert panel.installButton.enabled
    panel.installButton.click()
    assert ready == [True]
    assert panel.statusLabel.text == ""


def test_without_network_the_panel_says_what_to_do_and_works_once_there_is_one(openPanel, index, monkeypatch):
    panel, ready = openPanel()
    with monkeypatch.context() as offline:
        offline.delenv("PIP_NO_INDEX")
        offline.setenv("PIP_FIND_LINKS", "")
        offline.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")

        panel.installButton.click()

    assert ready == []
    assert "network" in panel.statusLabel.text
    assert "Python console" in panel.statusLabel.text
    assert panel.installButton.enabled
    panel.installButton.click()
    assert ready == [True]


def test_what_was_installed_before_a_failure_is_not_asked_for_again(openPanel, index):
    (index / "probebeta-2.0-py3-none-any.whl").write_bytes(b"broken off")
    panel, ready = openPanel()

    panel.installButton.click()

    assert ready == []
    assert "The installation failed" in panel.statusLabel.text
    makeWheel(index, "probebeta", "2.0", requires="probealpha")
    panel.installButton.click()
    assert ready == [True]


def test_pip_rather_refuses_than_changes_what_is_installed(index, tmp_path):
    import subprocess
    from importlib.metadata import version

    import slicer.packaging

    from TwinSegSlicerLib.Packages import _pinInstalled

    makeWheel(index, "greedy", "1.0", requires="packaging>=9999")
    makeWheel(index, "packaging", "9999")

    with pytest.raises(subprocess.CalledProcessError):
        slicer.packaging.pip_install(["greedy"], constraints=_pinInstalled(but={"greedy"}))

    assert version("packaging") != "9999"
    assert list((tmp_path / "site packages").iterdir()) == []


def test_a_package_installed_by_hand_is_found_by_check_again(openPanel, requirements, tmp_path):
    import subprocess

    panel, ready = openPanel()
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "probebeta"], check=True)

    panel.checkButton.click()

    assert ready == [True]
    assert requests() == []


def test_without_the_pytorch_extension_the_panel_says_how_to_get_it(openPanel, requirements):
    requirements.write_text("# 2 GB: runs the network\ntorch>=99\n\n# 1 MB: more\nprobebeta>=2.0\n")

    panel, _ready = openPanel()

    assert "Extensions Manager" in panel.listLabel.text
    assert not panel.installButton.enabled
    assert "PyTorch extension" in panel.installButton.toolTip


def test_a_slicer_that_cannot_install_says_so_before_pytorch_is_downloaded(
    pytorchExtension, openPanel, requirements, monkeypatch
):
    import slicer

    requirements.write_text("# 2 GB: runs the network\ntorch>=99\n")
    monkeypatch.delitem(sys.modules, "slicer.packaging")
    monkeypatch.setattr(slicer, "__path__", [])  # up to 5.10 there is no slicer/packaging.py

    panel, _ready = openPanel()

    assert "Slicer 5.12" in panel.listLabel.text
    assert not panel.installButton.enabled
    assert panel.installButton.toolTip == "Slicer 5.12 is needed"


@pytest.fixture
def pytorchExtension(slicer_host, tmp_path, index):
    """Slicer's PyTorch extension as far as it is called, and a PyTorch that it finds."""
    path = tmp_path / "PyTorchUtils.py"
    path.write_text(PYTORCH_EXTENSION)
    makeWheel(index, "torch", "99.1")
    yield slicer_host.load(path)
    sys.path.remove(str(tmp_path))


def test_pytorch_is_installed_first_and_by_its_extension(pytorchExtension, openPanel, requirements):
    requirements.write_text("# 1 MB: more\nprobebeta>=2.0\n\n# 2 GB: runs the network\ntorch>=99\n")
    panel, ready = openPanel()

    panel.installButton.click()

    assert [request.split()[1] for request in requests()] == ["torch>=99", "probebeta>=2.0"]
    assert ready == [True]


def test_where_pytorch_is_refused_nothing_that_would_draw_it_in_is_installed(
    slicer_host, pytorchExtension, openPanel, requirements
):
    requirements.write_text("# 2 GB: runs the network\ntorch>=99\n\n# 1 MB: more\nprobebeta>=2.0\n")
    panel, ready = openPanel()

    with slicer_host.dialogs.answer("PyTorch will be downloaded", CANCEL):
        panel.installButton.click()

    assert requests() == []
    assert ready == []
    assert "Still missing: torch, probebeta" in panel.statusLabel.text
    assert panel.installButton.enabled
