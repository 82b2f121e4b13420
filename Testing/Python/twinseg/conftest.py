"""Small real files for the tests of twinseg."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from twinseg.tasks import Label, Region, Sequence, Task, load_task

# Before torch is imported, here and in the commands that tests start: on such small arrays threads only wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def glioma() -> Task:
    return load_task("brats-glioma")


@pytest.fixture(scope="session")
def toy() -> Task:
    """A task for small arrays, whose label values (2, 7) are not the network's channels (1, 2)."""
    return Task(
        name="toy",
        title="Toy",
        kind="segmentation",
        modality="MR",
        sequences=(Sequence("t1", "T1"), Sequence("flair", "FLAIR")),
        spacing=(1.0, 1.0, 1.0),
        patch=(16, 16, 16),
        labels=(Label(2, "ED", "Oedema", (140, 224, 228)), Label(7, "ET", "Enhancing tumour", (230, 120, 80))),
        regions=(Region("WT", "Whole tumour", (2, 7)), Region("ET", "Enhancing tumour", (7,))),
        strides=((2, 2, 2), (2, 2, 2)),
        flip_axes=(0,),
    )


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
