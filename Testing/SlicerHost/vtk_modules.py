"""The import names under which Slicer's Python finds its C++ libraries, and the files that the logics read at start."""

from __future__ import annotations

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
    "vtkITK": "vtkITK",
    "vtkITKPython": "vtkITK",
    "vtkSlicerSegmentationsModuleLogicPython": "vtkSlicerSegmentationsModuleLogic",
    "vtkSlicerSegmentationsModuleMRMLPython": "vtkSlicerSegmentationsModuleMRML",
    "vtkSlicerMarkupsModuleMRMLPython": "vtkSlicerMarkupsModuleMRML",
    "vtkSlicerVolumesModuleLogicPython": "vtkSlicerVolumesModuleLogic",
    "vtkSlicerTerminologiesModuleLogicPython": "vtkSlicerTerminologiesModuleLogic",
}


def install(home: str) -> None:
    """Make the names importable; ``mrml`` and ``slicer.logic`` collect what Slicer collects there."""
    import slicer_core

    for name, source in ALIASES.items():
        if hasattr(slicer_core, source):
            sys.modules.setdefault(name, getattr(slicer_core, source))
    mrml = ModuleType("mrml")
    mrml.__dict__.update({name: value for name, value in vars(slicer).items() if name.startswith("vtkMRML")})
    sys.modules.setdefault("mrml", mrml)
