"""The import names under which Slicer's Python finds its C++ libraries, and the files that the logics read at start.

Older modules take a widget from the library that it is built in, such as ``qMRMLWidgetsPythonQt``, or Qt from
``PythonQt``; the host's classes are all in ``slicer``, ``ctk`` and ``qt``.
"""

from __future__ import annotations

import colorsys
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

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
# Libraries of Slicer's widgets and plugins, whose names end with PythonQt.
WIDGET_LIBRARIES = (
    "qMRMLWidgets",
    "qSlicerBaseQTCLI",
    "qSlicerBaseQTCore",
    "qSlicerBaseQTGUI",
    "qSlicerMarkupsModuleWidgets",
    "qSlicerSegmentationsEditorEffects",
    "qSlicerSegmentationsModuleWidgets",
    "qSlicerSubjectHierarchyModuleWidgets",
    "qSlicerTerminologiesModuleWidgets",
)


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
    _install_module("mrml", {name: value for name, value in vars(slicer).items() if name.startswith("vtkMRML")})


def install_widget_libraries(qt_modules: tuple[ModuleType, ...]) -> None:
    """Make ``qMRMLWidgetsPythonQt`` and its like importable, and ``PythonQt`` with the modules of Qt in it."""
    widgets = {name: value for name, value in vars(slicer).items() if name.startswith(("qMRML", "qSlicer"))}
    for library in WIDGET_LIBRARIES:
        _install_module(f"{library}PythonQt", widgets)
    parts = {module.__name__.rpartition(".")[2]: module for module in qt_modules}
    _install_module("PythonQt", parts).__path__ = []
    for name, module in parts.items():
        sys.modules.setdefault(f"PythonQt.{name}", module)


def _install_module(name: str, contents: dict[str, Any]) -> ModuleType:
    module = sys.modules.setdefault(name, ModuleType(name))
    vars(module).update(contents)
    return module
