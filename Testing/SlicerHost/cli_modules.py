"""Command line modules that run in the process, written for the host: the one that Slicer's module template calls.

Slicer's own are executables of its build, which slicer-core does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import slicer


def threshold_scalar_volume(parameters: dict[str, Any]) -> None:
    """Set the voxels below, above or outside a threshold to ``OutsideValue``."""
    source = slicer.mrmlScene.GetNodeByID(parameters["InputVolume"])
    target = slicer.mrmlScene.GetNodeByID(parameters["OutputVolume"])
    array = slicer.util.arrayFromVolume(source)
    kind, value = parameters.get("ThresholdType", "Outside"), float(parameters.get("ThresholdValue", 128))
    low, high = float(parameters.get("Lower", 1)), float(parameters.get("Upper", 200))
    is_outside = {"Below": array < value, "Above": array > value, "Outside": (array < low) | (array > high)}[kind]
    if parameters.get("Negate"):
        is_outside = ~is_outside
    result = np.where(is_outside, array.dtype.type(parameters.get("OutsideValue", 0)), array)
    slicer.util.updateVolumeFromArray(target, result)
    target.CopyOrientation(source)
    target.CreateDefaultDisplayNodes()


class CommandLineModule:
    """A command line module: ``slicer.cli.run`` calls its function with the parameters, nodes as their IDs."""

    def __init__(self, name: str, function: Callable[[dict[str, Any]], None]):
        self.name = self.title = name
        self.path = ""
        self.hidden = False
        self._function = function

    def logic(self) -> None:
        """None: there is no executable that a logic would start."""
        return None

    def widgetRepresentation(self) -> None:
        """None: there is no panel."""
        return None

    def run(self, node: Any, parameters: dict[str, Any]) -> None:
        """Compute; the node's status tells how it ended, an error is its error text."""
        values = {key: value.GetID() if hasattr(value, "GetID") else value for key, value in parameters.items()}
        try:
            self._function(values)
        except (KeyError, ValueError, AttributeError) as error:
            node.SetErrorText(f"{self.name}: {error}", False)
            node.SetStatus(node.CompletedWithErrors)
            return
        node.SetStatus(node.Completed)


COMMAND_LINE_MODULES = {"ThresholdScalarVolume": threshold_scalar_volume}


def make_modules() -> dict[str, CommandLineModule]:
    """All command line modules, by name."""
    return {name: CommandLineModule(name, function) for name, function in COMMAND_LINE_MODULES.items()}
