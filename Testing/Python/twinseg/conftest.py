"""Small real files for the tests of twinseg."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from twinseg.tasks import Task, load_task


@pytest.fixture
def glioma() -> Task:
    return load_task("brats-glioma")


@pytest.fixture
def save_nifti() -> Callable[..., Path]:
    """Save an array (default: a ramp that no axis of which looks like another) as NIfTI; folders are made."""

    def save(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if array is None:
            array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
        return path

    return save
