"""An extension is configured and tested as Slicer builds it: only what its CMake lists is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SLICER_DIR = Path(__file__).parents[2] / "SlicerHost/cmake"


def tool(name):
    """cmake or ctest of the virtual environment, else the system's."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


pytestmark = pytest.mark.skipif(tool("cmake") is None, reason="there is no cmake")


def configure(source, build):
    command = [
        tool("cmake"),
        "-S",
        source,
        "-B",
        build,
        f"-DSlicer_DIR={SLICER_DIR}",
        f"-DSlicer_HOST_PYTHON={sys.executable}",
    ]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)


def run_tests(build, *options):
    command = [tool("ctest"), "--test-dir", build, "--output-on-failure", *options]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600)


@pytest.fixture
def extension(sample_extension, tmp_path):
    """A copy of the sample extension that a test may break."""
    return Path(shutil.copytree(sample_extension, tmp_path / "my extension"))


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_listed_files_are_installed_flat_and_the_self_test_passes_there(extension, tmp_path):
    build = tmp_path / "build"
    configured = configure(extension, build)
    assert configured.returncode == 0, configured.stderr
    folder = next(build.glob("lib/Slicer-*/qt-scripted-modules"))
    installed = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert installed == {
        "HostSample.py",
        "HostSampleLib/__init__.py",
        "HostSampleLib/threshold.py",
        "Resources/Icons/HostSample.png",
        "Resources/UI/HostSample.ui",
    }
    tested = run_tests(build)
    assert tested.returncode == 0, tested.stdout
    assert "100% tests passed" in tested.stdout
    for name in ("py_HostSampleGenericTest", "py_HostSample", "py_test_threshold"):
        assert name in tested.stdout


def test_a_file_that_is_needed_and_not_listed_fails_the_self_test(extension, tmp_path):
    edit(extension / "HostSample/CMakeLists.txt", "  HostSampleLib/threshold.py\n", "")
    assert configure(extension, tmp_path / "build").returncode == 0
    tested = run_tests(tmp_path / "build", "-R", "py_HostSample$")
    assert tested.returncode != 0
    assert "HostSampleLib.threshold" in tested.stdout


def test_a_file_that_is_listed_and_missing_stops_the_configuration(extension, tmp_path):
    (extension / "HostSample/Resources/UI/HostSample.ui").unlink()
    configured = configure(extension, tmp_path / "build")
    assert configured.returncode != 0
    assert "HostSample.ui" in configured.stderr


def test_a_name_that_differs_from_the_project_is_refused(extension, tmp_path):
    (extension / "SampleExtension.json").rename(extension / "Other.json")
    configured = configure(extension, tmp_path / "build")
    assert configured.returncode != 0
    assert "SampleExtension.json" in configured.stderr
