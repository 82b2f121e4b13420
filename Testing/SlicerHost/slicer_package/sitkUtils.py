"""Volumes between the scene and SimpleITK."""

from __future__ import annotations

from typing import Any

import SimpleITK as sitk
import slicer


def GetSlicerITKReadWriteAddress(nodeObjectOrName: Any) -> None:
    """Slicer's own reader of the scene is not in the host."""
    raise NotImplementedError("SlicerHost has no MRMLIDIO; use sitkUtils.PullVolumeFromSlicer")


def PullVolumeFromSlicer(nodeObjectOrName: Any) -> sitk.Image:
    """A volume node, itself or by name, as a SimpleITK image."""
    node = slicer.util.getNode(nodeObjectOrName) if isinstance(nodeObjectOrName, str) else nodeObjectOrName
    image = sitk.GetImageFromArray(slicer.util.arrayFromVolume(node).copy())
    directions = [[0.0] * 3 for _ in range(3)]
    node.GetIJKToRASDirections(directions)
    flip = (-1.0, -1.0, 1.0)  # SimpleITK is LPS
    image.SetSpacing(node.GetSpacing())
    image.SetOrigin([sign * value for sign, value in zip(flip, node.GetOrigin(), strict=True)])
    image.SetDirection([sign * value for sign, row in zip(flip, directions, strict=True) for value in row])
    return image


def PushVolumeToSlicer(
    sitkimage: sitk.Image,
    targetNode: Any = None,
    name: str | None = None,
    className: str = "vtkMRMLScalarVolumeNode",
) -> Any:
    """A SimpleITK image into a volume node, a new one unless it is given."""
    node = targetNode or slicer.mrmlScene.AddNewNodeByClass(
        className, slicer.mrmlScene.GenerateUniqueName(name or "Volume")
    )
    slicer.util.updateVolumeFromArray(node, sitk.GetArrayFromImage(sitkimage))
    flip = (-1.0, -1.0, 1.0)
    rows = [sitkimage.GetDirection()[start : start + 3] for start in (0, 3, 6)]
    node.SetIJKToRASDirections([[sign * value for value in row] for sign, row in zip(flip, rows, strict=True)])
    node.SetSpacing(sitkimage.GetSpacing())
    node.SetOrigin([sign * value for sign, value in zip(flip, sitkimage.GetOrigin(), strict=True)])
    node.CreateDefaultDisplayNodes()
    return node


PushToSlicer = PushVolumeToSlicer
PullFromSlicer = PullVolumeFromSlicer
