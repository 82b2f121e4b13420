"""Between volume nodes and arrays: what a volume holds, where its voxels lie, and what cannot be segmented."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from slicer.i18n import tr as _
from vtk.util.numpy_support import vtk_to_numpy

from twinseg.volumes import Volume, resample_to

SAME_VOXEL = 0.01  # voxels, at the far corner: grids that differ by less are the same


@dataclass(frozen=True, eq=False)
class NodeImage:
    """A volume node's voxels and place.

    array: (K, J, I), the node's own memory; localMatrix: 4x4, voxel index (i, j, k) to RAS mm below the node's
    transforms; worldMatrix: the same with all of them applied; isResampled: the node is under a nonlinear transform, so
    that this is a copy on a grid of its own, in world coordinates.
    """

    array: NDArray[Any]
    localMatrix: NDArray[np.float64]
    worldMatrix: NDArray[np.float64]
    isResampled: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along i, j and k."""
        k, j, i = self.array.shape
        return i, j, k

    def save(self, path: Path) -> None:
        """Write the array as .npy, in the order (I, J, K) and without a copy. May run in a thread."""
        np.save(path, self.array.T, allow_pickle=False)


def refusal(node: Any) -> str:
    """Why a node cannot be segmented, in words; empty where it can."""
    if node is None:
        return _("No volume is selected")
    name = node.GetName()
    if node.IsA("vtkMRMLSequenceNode"):
        return _("{name} is a sequence of volumes: choose the volume that shows one of them, or use Batch").format(
            name=name
        )
    if not node.IsA("vtkMRMLScalarVolumeNode"):
        return _("{name} is no image volume").format(name=name)
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        return _("{name} is a label map, not an image: choose the image that it was drawn on").format(name=name)
    image = node.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0 or image.GetPointData().GetScalars() is None:
        return _("{name} is empty: load its images again").format(name=name)
    if image.GetNumberOfScalarComponents() > 1:
        return _("{name} has {count} values a voxel (4D, vector or colour): extract one of them as a volume").format(
            name=name, count=image.GetNumberOfScalarComponents()
        )
    if min(image.GetDimensions()) < 2:
        return _("{name} is a single slice: a volume is needed").format(name=name)
    low, high = image.GetScalarRange()
    if low == high:
        return _("{name} is empty: every voxel is {value:g}").format(name=name, value=low)
    return ""


def nodeImage(node: Any) -> NodeImage:
    """The voxels and the place of a volume node. Raises ValueError for what `refusal` refuses.

    A linear transform is only multiplied; below a nonlinear one a copy is resampled, and lies in world coordinates.
    """
    if reason := refusal(node):
        raise ValueError(reason)
    transformNode = node.GetParentTransformNode()
    toWorld = np.eye(4)
    isResampled = transformNode is not None and not transformNode.IsTransformToWorldLinear()
    if isResampled:
        node = _hardenedCopy(node)
    elif transformNode is not None:
        matrix = vtk.vtkMatrix4x4()
        transformNode.GetMatrixTransformToWorld(matrix)
        toWorld = slicer.util.arrayFromVTKMatrix(matrix)
    local = localMatrix(node)
    return NodeImage(imageArray(node.GetImageData()), local, toWorld @ local, isResampled)


def localMatrix(node: Any) -> NDArray[np.float64]:
    """A volume node's 4x4 matrix, voxel index (i, j, k) to RAS mm, without the transforms that it is under."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def imageArray(image: Any) -> NDArray[Any]:
    """A vtkImageData's voxels as (K, J, I), without a copy."""
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])


def onGrid(oriented: Any, matrix: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[Any]:
    """A vtkOrientedImageData's voxels as (K, J, I) on the grid of a matrix (index to RAS) and a shape (I, J, K).

    Its axes may be turned round or exchanged, and it may be a part: 0 is put where it has no voxels. Raises ValueError
    where its voxels lie between those of the grid, or where it has something outside of the grid.
    """
    i0, i1, j0, j1, k0, k1 = oriented.GetExtent()
    if i1 < i0 or j1 < j0 or k1 < k0:
        return np.zeros(shape[::-1], np.uint8)
    toWorld = vtk.vtkMatrix4x4()
    oriented.GetImageToWorldMatrix(toWorld)
    own = slicer.util.arrayFromVTKMatrix(toWorld)
    own[:3, 3] += own[:3, :3] @ (i0, j0, k0)
    array = imageArray(oriented)
    moved = np.linalg.inv(matrix) @ own
    whole = np.rint(moved)
    oneToOne = np.array_equal(np.abs(whole[:3, :3]).sum(axis=0), np.ones(3))
    if not oneToOne or np.max(np.abs(moved - whole)[:3] @ [*array.shape[::-1], 1]) > SAME_VOXEL:
        raise ValueError(_("it lies on another grid than its image"))
    placed = resample_to(Volume(array.T, matrix @ whole), matrix, shape, "nearest", fill=0).array.T
    if np.count_nonzero(placed) != np.count_nonzero(array):
        raise ValueError(_("it reaches out of its image"))
    return placed


def _hardenedCopy(node: Any) -> Any:
    """A copy of a volume, outside of the scene, resampled through its transforms."""
    transform = vtk.vtkGeneralTransform()
    node.GetParentTransformNode().GetTransformToWorld(transform)
    copy = slicer.mrmlScene.CreateNodeByClass(node.GetClassName())
    copy.UnRegister(None)
    copy.CopyContent(node)
    copy.ApplyTransform(transform)
    return copy
