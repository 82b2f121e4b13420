"""NRRD and MetaImage files, by way of SimpleITK: Slicer brings it, elsewhere it is optional. See `volumes`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from twinseg.errors import InputError

ENDINGS = (".nrrd", ".mha")
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's world points left and posterior, ours (RAS) right and anterior


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Array (X, Y, Z), or (X, Y, Z, channels), and its 4x4 affine to RAS mm. Raises InputError."""
    itk = _simple_itk(path)
    try:
        image = itk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(f"{path}: the file is damaged or not what its name says; export it again") from error
    array = itk.GetArrayFromImage(image)
    dimension = image.GetDimension()
    # SimpleITK hands out (Z, Y, X), with the components of a voxel last.
    array = array.transpose(*reversed(range(dimension)), *range(dimension, array.ndim))
    if dimension < 3:
        return array, np.eye(4)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (dimension, dimension))[:3, :3] * image.GetSpacing()[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    return array, LPS @ affine


def to_bytes(path: Path, array: np.ndarray, affine: np.ndarray) -> bytes:
    """The content of a file with `path`'s ending. Raises InputError where SimpleITK is missing."""
    itk = _simple_itk(path)
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = itk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"volume{path.suffix.lower()}"
        itk.WriteImage(image, str(file), True)
        return file.read_bytes()


def _simple_itk(path: Path) -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise InputError(f"{path}: this file type needs SimpleITK (pip install SimpleITK); or use .nii.gz") from error
    return SimpleITK
