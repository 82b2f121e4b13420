"""Running command line modules. The host has only those of ``SlicerHost.cli_modules``, which run at once."""

from __future__ import annotations

from typing import Any

import slicer


def createNode(cliModule: Any, parameters: Any = None) -> Any:
    """A node that holds a run, in the scene; None without a module."""
    if cliModule is None:
        return None
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLCommandLineModuleNode", cliModule.name)
    setNodeParameters(node, parameters)
    return node


def setNodeParameters(node: Any, parameters: Any) -> None:
    """Keep the parameters with the node, as text."""
    for key, value in (parameters or {}).items():
        node.SetAttribute(f"CommandLine.{key}", value.GetID() if hasattr(value, "GetID") else str(value))


def run(
    module: Any,
    node: Any = None,
    parameters: Any = None,
    wait_for_completion: bool = False,
    delete_temporary_files: bool = True,
    update_display: bool = True,
    hide_window: bool = True,
) -> Any:
    """Run a module, and return its node, which is completed already."""
    if node is None:
        node = createNode(module, parameters)
    else:
        setNodeParameters(node, parameters)
    if node is not None:
        module.run(node, parameters or {})
    return node


def runSync(module: Any, node: Any = None, parameters: Any = None, **options: Any) -> Any:
    """As :func:`run`."""
    return run(module, node, parameters, True, **options)


def cancel(node: Any) -> None:
    """Nothing is left running."""
