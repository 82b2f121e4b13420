"""``slicer.modules``: the logics of Slicer's own modules, as slicer-core has them, and the scripted modules."""

from __future__ import annotations

from typing import Any

import slicer

# Module -> class of its logic, in the order in which Slicer sets them up.
BUILT_IN_LOGICS = {
    "Units": "vtkSlicerUnitsLogic",
    "Colors": "vtkSlicerColorLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "Annotations": "vtkSlicerAnnotationModuleLogic",
    "Cameras": "vtkSlicerCamerasModuleLogic",
    "CropVolume": "vtkSlicerCropVolumeLogic",
    "Data": "vtkSlicerDataModuleLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Models": "vtkSlicerModelsLogic",
    "Plots": "vtkSlicerPlotsLogic",
    "Reformat": "vtkSlicerReformatLogic",
    "SceneViews": "vtkSlicerSceneViewsModuleLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "Sequences": "vtkSlicerSequencesLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Texts": "vtkSlicerTextsLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "ViewControllers": "vtkSlicerViewControllersLogic",
    "VolumeRendering": "vtkSlicerVolumeRenderingLogic",
    "Volumes": "vtkSlicerVolumesLogic",
}


class BuiltInModule:
    """A module of Slicer's own, as far as the host has it: its name and its logic, without a panel."""

    def __init__(self, name: str, logic: Any):
        self.name = name
        self.title = name
        self.path = ""
        self.hidden = False
        self._logic = logic

    def logic(self) -> Any:
        """The C++ logic."""
        return self._logic

    def widgetRepresentation(self) -> None:
        """None: the panels of Slicer's own modules are C++."""
        return None

    createNewWidgetRepresentation = widgetRepresentation


class Modules:
    """``slicer.modules``: a module is an attribute under its name in lower case."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"slicer.modules has no {name!r}: SlicerHost has {', '.join(sorted(vars(self)))}")


def make_logics(scene: Any, application_logic: Any, share_directory: str) -> dict[str, BuiltInModule]:
    """Create the logics, each knowing the scene and the application's logic, as Slicer does at its start."""
    modules = {}
    for name, class_name in BUILT_IN_LOGICS.items():
        logic = getattr(slicer, class_name)()
        if hasattr(logic, "SetModuleShareDirectory"):
            logic.SetModuleShareDirectory(share_directory)
        logic.SetMRMLApplicationLogic(application_logic)
        logic.SetMRMLScene(scene)
        application_logic.SetModuleLogic(name, logic)
        modules[name] = BuiltInModule(name, logic)
    return modules
