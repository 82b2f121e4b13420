"""Command line modules. The host has none: their executables belong to Slicer's build."""

from __future__ import annotations

from typing import Any


def _refuse(module: Any) -> None:
    name = getattr(module, "name", module)
    raise NotImplementedError(f"SlicerHost can not run the command line module {name}: its executable is Slicer's")


def run(module: Any, node: Any = None, parameters: Any = None, *arguments: Any, **options: Any) -> None:
    """Not available."""
    _refuse(module)


def runSync(module: Any, node: Any = None, parameters: Any = None, *arguments: Any, **options: Any) -> None:
    """Not available."""
    _refuse(module)


def createNode(cliModule: Any, parameters: Any = None) -> None:
    """Not available."""
    _refuse(cliModule)
