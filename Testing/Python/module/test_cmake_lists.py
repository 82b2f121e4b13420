"""The extension as Slicer builds it: every file is listed, installed flat, and the self-test passes from there."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[3]
SLICER_DIR = REPOSITORY / "Testing/SlicerHost/cmake"
MODULES = [name for name in ("TwinSegSlicer", "FederatedClient") if (REPOSITORY / name / "CMakeLists.txt").is_file()]
NOT_INSTALLED = ("CMakeLists.txt", "*.svg", "*.pyc", ".*", "Testing")  # sources of pictures, tests, caches
# What Slicer's Python comes with (SuperBuild/External_python-*.cmake), and what only the command line needs.
OF_SLICER = {"numpy", "scipy", "requests", "packaging", "PIL", "SimpleITK", "slicer", "qt", "ctk", "vtk"}
OF_THE_COMMAND_LINE = {"typer", "rich", "click", "highdicom", "pydicom"}
OLDER_PYTHON_ONLY = {"tomli"}
OTHER_EXTENSIONS = {"PyTorchUtils", "SampleData"}


def tool(name: str) -> str | None:
    """cmake or ctest of the virtual environment, else the system's."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    """The extension, configured with the host's SlicerConfig.cmake."""
    build = tmp_path_factory.mktemp("build")
    command = [tool("cmake"), "-S", REPOSITORY, "-B", build]
    command += [f"-DSlicer_DIR={SLICER_DIR}", f"-DSlicer_HOST_PYTHON={sys.executable}"]
    configured = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)
    assert configured.returncode == 0, configured.stderr
    return build


def installed(build: Path) -> set[str]:
    folder = next(build.glob("lib/Slicer-*/qt-scripted-modules"))
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def in_folder(module: str) -> set[str]:
    """All files of a module's folder that belong to the installed module."""
    root = REPOSITORY / module
    files = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return {
        file.as_posix() for file in files if not any(Path(p).match(skip) for p in file.parts for skip in NOT_INSTALLED)
    }


def test_the_lists_name_every_file_of_the_folder(build):
    wanted = set().union(*(in_folder(module) for module in MODULES))

    unlisted = sorted(wanted - installed(build))
    assert not unlisted, "add to the module's CMakeLists.txt:\n  " + "\n  ".join(unlisted)
    assert installed(build) == wanted


def test_the_installed_module_passes_its_tests(build):
    tested = subprocess.run(
        [str(tool("ctest")), "--test-dir", str(build), "--output-on-failure"], capture_output=True, text=True
    )

    assert tested.returncode == 0, tested.stdout
    assert "100% tests passed" in tested.stdout
    for name in ("py_TwinSegSlicerGenericTest", "py_TwinSegSlicer", "py_test_installed_files"):
        assert name in tested.stdout


def test_the_entry_of_the_extensions_index_is_whole():
    entry = json.loads((REPOSITORY / "TwinSegSlicer.json").read_text(encoding="utf-8"))
    cmake = (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8")

    known = {"$schema", "category", "scm_url", "scm_revision", "scm_type", "build_dependencies", "build_subdirectory"}
    assert {"$schema", "category", "scm_url"} <= set(entry) <= known | {"enabled", "tier"}
    assert entry["$schema"].endswith("slicer-extension-catalog-entry-schema-v1.0.1.json#")
    assert "project(TwinSegSlicer)" in cmake
    assert f'set(EXTENSION_CATEGORY "{entry["category"]}")' in cmake
    assert f'set(EXTENSION_DEPENDS "{" ".join(entry["build_dependencies"])}")' in cmake
    assert f'set(EXTENSION_HOMEPAGE "{entry["scm_url"].removesuffix(".git")}")' in cmake


def test_the_pictures_that_the_index_names_are_there():
    from PIL import Image

    cmake = (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8")
    urls = re.search(r'EXTENSION_ICONURL "(.*)"', cmake)[1], re.search(r'EXTENSION_SCREENSHOTURLS "(.*)"', cmake)[1]
    for url in (address for text in urls for address in text.split()):
        assert (REPOSITORY / url.split("/main/")[1]).is_file(), url
    for icon in (REPOSITORY / "TwinSegSlicer.png", REPOSITORY / "TwinSegSlicer/Resources/Icons/TwinSegSlicer.png"):
        assert Image.open(icon).size == (128, 128)


def requirements() -> dict[str, Requirement]:
    lines = (REPOSITORY / "TwinSegSlicer/Resources/requirements.txt").read_text(encoding="utf-8").splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name: requirement for requirement in parsed}


def test_slicer_and_pip_are_asked_for_the_same_versions():
    content = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    project = {requirement.name: requirement for requirement in map(Requirement, content["project"]["dependencies"])}

    for name, requirement in requirements().items():
        assert requirement == project[name]


def imported(path: Path) -> Iterator[str]:
    """The top-level names of everything that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0]


def test_every_package_that_is_imported_is_slicers_or_asked_for():
    allowed = OF_SLICER | OF_THE_COMMAND_LINE | OLDER_PYTHON_ONLY | OTHER_EXTENSIONS | set(requirements())
    allowed |= {"twinseg", "TwinSegSlicerLib"} | sys.stdlib_module_names

    root = REPOSITORY / "TwinSegSlicer"
    files = [path for path in root.rglob("*.py") if "Testing" not in path.parts]
    unknown = {f"{path.relative_to(root)}: {name}" for path in files for name in imported(path) if name not in allowed}

    assert len(files) > 30
    assert unknown == set()
