"""Real DICOM series of synthetic heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DSfloat
from scipy.spatial.transform import Rotation

from twinseg.volumes import Volume

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Head:
    """A scan. pixels: (columns, rows, slices), uint16; labels: its label map, on the same grid."""

    pixels: np.ndarray
    labels: Volume

    def save(self, folder: Path, **attributes: Any) -> Path:
        """Save it as an MR series, in files whose names say nothing of their order; attributes: by DICOM keyword."""
        folder.mkdir(parents=True, exist_ok=True)
        lps = LPS @ self.labels.affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        same = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
        for index, name in enumerate(np.random.default_rng(1).permutation(self.pixels.shape[2])):
            header = Dataset()
            header.file_meta = FileMetaDataset()
            header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            header.SpecificCharacterSet = "ISO_IR 100"
            header.SOPClassUID, header.SOPInstanceUID = MRImageStorage, generate_uid()
            header.Modality, header.PatientName, header.PatientID = "MR", "Müller^Zoë", "4711-secret"
            header.PatientBirthDate, header.PatientSex, header.StudyDate = "19560402", "F", "20240117"
            header.SeriesNumber, header.InstanceNumber = 7, index + 1
            header.ImagePositionPatient = _decimals((lps @ [0, 0, index, 1])[:3])
            header.ImageOrientationPatient = _decimals((lps[:3, :2] / spacing[:2]).T.ravel())
            header.PixelSpacing = _decimals(spacing[1::-1])
            header.Columns, header.Rows = self.pixels.shape[:2]
            header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
            header.BitsAllocated = header.BitsStored = 16
            header.HighBit, header.PixelRepresentation = 15, 0
            header.PixelData = np.ascontiguousarray(self.pixels[..., index].T).tobytes()
            for keyword, value in {**same, **attributes}.items():
                setattr(header, keyword, value)
            header.save_as(folder / f"IM{name:04d}", enforce_file_format=True)
        return folder


@pytest.fixture(scope="session")
def grid() -> Callable[..., np.ndarray]:
    """Makes the affine (RAS, mm) of a series; by default an oblique one with pixels that are not square."""

    def make(
        angles: tuple[float, ...] = (0.2, -0.3, 0.1),
        spacing: tuple[float, ...] = (0.9, 1.1, 3.0),
        corner: tuple[float, ...] = (-20.0, 31.5, 12.25),
    ) -> np.ndarray:
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler("xyz", angles).as_matrix() * spacing
        affine[:3, 3] = corner
        return affine

    return make


@pytest.fixture(scope="session")
def make_head(grid: Callable[..., np.ndarray]) -> Callable[..., Head]:
    """Makes a head: noise in an ellipsoid, so that no two are alike, and a tumour that no turn or flip leaves as it is:
    a core (1) and an enhancing spot (3) in oedema (2)."""

    def make(affine: np.ndarray | None = None, shape: tuple[int, ...] = (20, 16, 10), seed: int = 0) -> Head:
        size = np.array(shape).reshape(3, 1, 1, 1)
        inside = (((np.indices(shape) - (size - 1) / 2) / (size / 2)) ** 2).sum(0) < 0.9
        pixels = np.where(inside, np.random.default_rng(seed).integers(200, 1000, shape), 3).astype(np.uint16)
        labels = np.zeros(shape, np.uint8)
        x, y, z = (n // 4 for n in shape)
        labels[x : 3 * x, y : 2 * y + 1, z : 2 * z + 2] = 2
        labels[x : x + 2, y, z] = 1
        labels[x + 2, y, z : z + 2] = 3
        return Head(pixels, Volume(labels, grid() if affine is None else affine))

    return make


@pytest.fixture
def head(make_head: Callable[..., Head]) -> Head:
    """A head of 20 columns, 16 rows and 10 slices."""
    return make_head()


@pytest.fixture
def series(tmp_path: Path, head: Head) -> Path:
    """Its series, with a file in the folder that is no DICOM, in a folder with an odd name."""
    folder = head.save(tmp_path / "Prof. Ärztin's PACS" / "7")
    (folder / "README.txt").write_text("no DICOM", "utf-8")
    return folder


def _decimals(values: np.ndarray) -> list[DSfloat]:
    return [DSfloat(float(value), auto_format=True) for value in values]
