"""The walls of the house: who may import whom. Arrows run module -> Lib -> library, and twinfed.client -> twinseg."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SLICER = (
    "slicer",
    "qt",
    "ctk",
    "PythonQt",
    "TwinSegSlicer",
    "TwinSegSlicerLib",
    "FederatedClient",
    "FederatedClientLib",
)
TORCH = ("torch", "monai", "torchvision")


@dataclass(frozen=True)
class Wall:
    """Files under `room` (but not under the rooms in `but`) import none of the modules `forbidden`."""

    room: str
    forbidden: tuple[str, ...]
    but: tuple[str, ...] = ()


WALLS = (
    Wall("TwinSegSlicer/twinseg", (*SLICER, "twinfed")),
    Wall("FederatedClient/twinfed", SLICER),
    Wall(
        "FederatedClient/twinfed", ("twinseg",), ("FederatedClient/twinfed/client", "FederatedClient/twinfed/engines")
    ),
    # wire is the ground floor; the aggregator must not reach torch through the client or an engine either.
    Wall("FederatedClient/twinfed/wire", (*TORCH, "twinfed.aggregator", "twinfed.client", "twinfed.engines")),
    Wall("FederatedClient/twinfed/client", ("twinfed.aggregator",)),
    Wall("FederatedClient/twinfed/aggregator", (*TORCH, "twinfed.client", "twinfed.engines")),
)


def breaches(repository: Path) -> list[str]:
    """Every forbidden import under `repository`, as ``file:line imports module``."""
    return [
        f"{path.relative_to(repository)}:{line} imports {module}"
        for wall in WALLS
        for path in sorted((repository / wall.room).rglob("*.py"))
        if not any(path.is_relative_to(repository / room) for room in wall.but)
        for line, module in imports(path, package_root=repository / Path(wall.room).parts[0])
        if any(f"{module}.".startswith(f"{forbidden}.") for forbidden in wall.forbidden)
    ]


def imports(path: Path, package_root: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, anywhere in it: relative and by import_module too."""
    package = path.relative_to(package_root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value


def test_nobody_reaches_through_a_wall() -> None:
    assert (REPOSITORY / "TwinSegSlicer/twinseg/errors.py").is_file()
    assert (REPOSITORY / "FederatedClient/twinfed/__init__.py").is_file()

    assert breaches(REPOSITORY) == []


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("TwinSegSlicer/twinseg/volumes.py", "import slicer"),
        ("TwinSegSlicer/twinseg/volumes.py", "import numpy, qt.QtCore"),
        ("TwinSegSlicer/twinseg/twin/store.py", "def later():\n    from ctk import ctkDoubleSlider"),
        ("TwinSegSlicer/twinseg/twin/store.py", "from TwinSegSlicerLib.panels import Panel"),
        ("TwinSegSlicer/twinseg/twin/store.py", "import importlib\nimportlib.import_module('twinfed.wire')"),
        ("TwinSegSlicer/twinseg/cli.py", "from twinfed import cli"),
        ("FederatedClient/twinfed/cli.py", "import twinseg.tasks"),
        ("FederatedClient/twinfed/client/trainer.py", "import slicer"),
        ("FederatedClient/twinfed/aggregator/rounds.py", "from twinseg.tasks import load_task"),
        ("FederatedClient/twinfed/aggregator/rounds.py", "import torch.nn"),
        ("FederatedClient/twinfed/aggregator/rounds.py", "from ..client import trainer"),
        ("FederatedClient/twinfed/aggregator/pages/web.py", "from ... import engines"),
        (
            "FederatedClient/twinfed/wire/codec.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor",
        ),
        ("FederatedClient/twinfed/wire/codec.py", "from twinfed.aggregator import rounds"),
    ],
)
def test_a_breach_is_found(tmp_path: Path, file: str, code: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(code, encoding="utf-8")

    found = breaches(tmp_path)

    assert len(found) == 1
    assert found[0].startswith(f"{file}:")


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("TwinSegSlicer/twinseg/network.py", "import torch\nfrom .tasks import Task\nfrom . import volumes"),
        ("TwinSegSlicer/twinseg/network.py", "import slicerless, qtpy\nnote = 'import slicer'"),
        ("TwinSegSlicer/TwinSegSlicerLib/bridge.py", "import slicer, qt, twinseg.worker"),
        ("FederatedClient/twinfed/client/trainer.py", "import torch, twinseg.training\nfrom ..wire import codec"),
        ("FederatedClient/twinfed/engines/nvflare.py", "from twinseg import tasks"),
        ("FederatedClient/twinfed/aggregator/rounds.py", "import numpy\nfrom ..wire.codec import decode"),
    ],
)
def test_what_is_allowed_passes(tmp_path: Path, file: str, code: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(code, encoding="utf-8")

    assert breaches(tmp_path) == []
