"""What the user has chosen, kept in the scene and saved with it."""

from __future__ import annotations

from typing import Protocol

from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import parameterNodeWrapper


class SegmentParameters(Protocol):
    """How to segment. The parameter node fits, and so does any object with these attributes.

    task: its name; model: a model file, "" for the task's starter model; device: as the worker names it, or "auto";
    flips: average over mirrored copies; uncertainty: make an uncertainty volume, too; reference: the sequence on whose
    grid the result lies, "" for the one with most voxels a millilitre; replace: remove the segmentation of the same
    image and task that was made before. It may also have `twin`, the folder's name, in this computer's twins, of the
    patient whose adapted model segments; a batch, which is of many patients, has none.
    """

    task: str
    model: str
    device: str
    flips: bool
    uncertainty: bool
    reference: str
    replace: bool


@parameterNodeWrapper
class TwinSegSlicerParameterNode:
    """`SegmentParameters`, the input volumes by sequence, and the segmentation that is shown and corrected."""

    task: str = "brats-glioma"
    model: str = ""
    device: str = "auto"
    flips: bool = False
    uncertainty: bool = True
    reference: str = ""
    replace: bool = False
    twin: str = ""
    volumes: dict[str, vtkMRMLScalarVolumeNode]
    segmentation: vtkMRMLSegmentationNode
