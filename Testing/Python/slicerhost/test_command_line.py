"""``python -m SlicerHost`` as a developer runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTING = Path(__file__).parents[2]


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "SlicerHost", *map(str, arguments)],
        cwd=TESTING, capture_output=True, text=True, timeout=600, env={**os.environ, **environment},
    )  # fmt: skip


def test_a_module_is_tested_and_photographed(sample_module, tmp_path):
    result = run("--module", sample_module, "--test", "--screenshot", tmp_path / "window.png")
    assert result.returncode == 0, result.stderr
    assert "HostSample: self-test passed" in result.stdout
    assert (tmp_path / "window.png").stat().st_size > 5000


FAILURES = {
    "an exception that Qt would only print": (
        "qt.QTimer.singleShot(0, lambda: 1 / 0)",
        "HostFault: exception: ZeroDivisionError: division by zero",
    ),
    "an error dialog": ("slicer.util.errorDisplay('no image')", "HostFault: dialog: no image"),
    "a syntax error": ("x = = 1", "Broken.py, line 5: invalid syntax"),
    "the end of Python": ("raise SystemExit(0)", "the module ended Python: sys.exit(0)"),
    "an exit code": ("slicer.util.exit(4)", "RuntimeError: the module ended the application with exit code 4"),
    "a process left behind": (
        "self.process = qt.QProcess(); self.process.start('sleep', ['60'])",
        "RuntimeError: still running when the application quit: sleep (process",
    ),
    "an installation": ("slicer.util.pip_install('left-pad')", "InstallationRefused: pip install left-pad:"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_what_goes_wrong_is_told_in_one_line(slicer_host, failure, tmp_path, capsys):
    from SlicerHost.__main__ import main

    code, message = FAILURES[failure]
    path = tmp_path / "a folder" / "Broken.py"
    path.parent.mkdir()
    path.write_text(
        "import qt, slicer; from slicer.ScriptedLoadableModule import *\n"
        "class Broken(ScriptedLoadableModule): pass\n"
        "class BrokenWidget(ScriptedLoadableModuleWidget):\n"
        f"    def enter(self):\n        {code}\n"
    )
    assert main(["--module", str(path)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Broken: failed: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_a_failure_is_exit_code_1(tmp_path):
    path = tmp_path / "Broken.py"
    path.write_text("import no_such_package\n")
    result = run("--module", path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "Broken: failed: ModuleNotFoundError: No module named 'no_such_package'"


def test_a_missing_module_is_exit_code_2(tmp_path):
    result = run("--module", tmp_path / "missing.py")
    assert result.returncode == 2
    assert "missing.py" in result.stderr


def test_slicers_own_files_take_the_place_of_the_hosts(sample_module, tmp_path):
    result = run("--module", sample_module, SLICER_PYTHON_DIR=tmp_path)
    assert result.returncode == 1
    assert "no slicer/ScriptedLoadableModule.py there" in result.stderr


@pytest.mark.skipif(
    "SLICER_PYTHON_DIR" not in os.environ, reason="SLICER_PYTHON_DIR: no folder of Slicer's Python files"
)
@pytest.mark.parametrize("name", ["wrapper", "wrapper_guis", "wrapper_gui_creation"])
def test_slicers_own_tests_of_the_parameter_node(name):
    folder = Path(os.environ["SLICER_PYTHON_DIR"])
    script = folder / f"slicer/tests/test_slicer_parameter_node_{name}.py"
    result = subprocess.run(
        [sys.executable, "-m", "SlicerHost.run_script", "--unittest", str(script)],
        cwd=TESTING, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
