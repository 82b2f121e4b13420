"""The experiments are scripts that lie in a folder of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from twinseg.phantom.cohort import write_cohort

sys.path.insert(0, str(Path(__file__).parents[2] / "Experiments"))


@pytest.fixture(scope="session")
def write_flat_cohort() -> Callable[[Path], None]:
    """Writes two patients at two sites whose labels are those of lgg/: tumour or none."""

    def write(folder: Path) -> None:
        write_cohort(folder, sites=2, patients=1, size=32, spacing=5.0, seed=3)
        for path in folder.rglob("seg.nii.gz"):
            labels = nibabel.load(path)
            flat = (np.asarray(labels.dataobj) > 0).astype(np.uint8)
            nibabel.save(nibabel.Nifti1Image(flat, labels.affine), path)

    return write
