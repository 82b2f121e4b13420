"""The import names under which Slicer's Python finds its C++ libraries, and the files that the logics read at start."""

from __future__ import annotations

import colorsys
import sys
from pathlib import Path
from types import ModuleType

import slicer

SHARE = Path(__file__).parent / "share"  # terminologies
# Import name in Slicer -> module of slicer-core that has the same classes.
ALIASES = {
    "MRMLCorePython": "MRMLCore",
    "MRMLLogicPython": "MRMLLogic",
    "MRMLDisplayableManagerPython": "MRMLDisplayableManager",
    "vtkSegmentationCore": "vtkSegmentationCore",
    "vtkSegmentationCorePython": "vtkSegmentationCore",
    "vtkTeem": "vtkTeem",
    "vtkTeemPython": "vtkTeem",
    "vtkAddon": "vtkAddonPython",
    "vtkAddonPython": "vtkAddonPython",
    "vtkITK": "vtkITK",
    "vtkITKPython": "vtkITK",
    "vtkSlicerSegmentationsModuleLogicPython": "vtkSlicerSegmentationsModuleLogic",
    "vtkSlicerSegmentationsModuleMRMLPython": "vtkSlicerSegmentationsModuleMRML",
    "vtkSlicerMarkupsModuleMRMLPython": "vtkSlicerMarkupsModuleMRML",
    "vtkSlicerVolumesModuleLogicPython": "vtkSlicerVolumesModuleLogic",
    "vtkSlicerTerminologiesModuleLogicPython": "vtkSlicerTerminologiesModuleLogic",
}


def write_generic_colors(folder: Path, count: int = 256) -> None:
    """The colour table that Slicer shows label maps with: "label_1" and so on, neighbours far apart in hue."""
    lines = ["# GenericColors", "0 background 0 0 0 0"]
    for index in range(1, count):
        red, green, blue = colorsys.hsv_to_rgb(index * 0.618 % 1, 0.45 + 0.1 * (index % 4), 0.95 - 0.1 * (index % 3))
        lines.append(f"{index} label_{index} {red * 255:.0f} {green * 255:.0f} {blue * 255:.0f} 255")
    (folder / "GenericColors.txt").write_text("\n".join(lines) + "\n")


def install(home: Path) -> None:
    """Make the names importable, and write the files that are too simple to be shipped."""
    import slicer_core

    write_generic_colors(home / "share/ColorFiles")

    for name, source in ALIASES.items():
        if hasattr(slicer_core, source):
            sys.modules.setdefault(name, getattr(slicer_core, source))
    mrml = ModuleType("mrml")
    mrml.__dict__.update({name: value for name, value in vars(slicer).items() if name.startswith("vtkMRML")})
    sys.modules.setdefault("mrml", mrml)
