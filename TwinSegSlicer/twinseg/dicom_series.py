"""DICOM series: the slices of one scan in a folder, and where they lie in the world (RAS, mm).

Grid as in DICOM PS3.3, C.7.6.2.1.1: a voxel's first index counts columns, its second rows, its third slices.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from twinseg.errors import InputError
from twinseg.itk_files import LPS
from twinseg.volumes import Volume, overlap, resample_to

if TYPE_CHECKING:
    from pydicom import Dataset

MODALITIES = ("MR", "CT")  # what else lies in the folder (reports, segmentations) is no slice of a scan
LENGTHS = {"Rows": 1, "Columns": 1, "PixelSpacing": 2, "ImageOrientationPatient": 6, "ImagePositionPatient": 3}
NEEDED = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"),
    *LENGTHS,
)
SHARED = ("StudyInstanceUID", "PatientID", "FrameOfReferenceUID", "Rows", "Columns")
# May be empty but not missing (type 2), as they often are in anonymised series.
MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
COMMON_FIELD = 0.9  # share of the field of view that a scan and its source have in common at least
# Correlation within the head of a scan and its source. Of 7 real patients with 2 dates each, on one grid, it was at
# most 0.43 for another patient, 0.54 for another date; of one real patient's four sequences, 0.33 at most. The source
# itself has 1, with a bias field of ±40 % taken out 0.89, with its histogram equalised 0.73.
CORRELATION = 0.65


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """One scan. slices: the headers, along the third axis; affine: 4x4, indices of column, row and slice to RAS mm;
    shape: columns, rows, slices."""

    folder: Path
    slices: tuple[Dataset, ...]
    affine: np.ndarray
    shape: tuple[int, int, int]

    @property
    def modality(self) -> str:
        """MR or CT."""
        return str(self.slices[0].Modality)

    def pixels(self) -> Volume:
        """The intensities, float32. Raises InputError where a slice is damaged or compressed in an unknown way."""
        from pydicom import dcmread
        from pydicom.pixels import apply_rescale

        planes = []
        for header in self.slices:
            try:
                with quiet():
                    whole = dcmread(str(header.filename))
                    planes.append(np.asarray(apply_rescale(whole.pixel_array, whole), np.float32).T)
            except Exception as error:  # pydicom and its decoders have no error in common
                raise InputError(
                    f"{header.filename}: its pixels cannot be read ({line(error)}); export it again, uncompressed"
                ) from error
        return Volume(np.stack(planes, -1), self.affine)


def read_series(folder: str | Path) -> DicomSeries:
    """Find the slices of the one MR or CT series in a folder (not in folders inside it); other files are passed over.

    Raises InputError where pydicom is missing, for none or several series, a damaged file, missing or doubled slices,
    slices that lie at different angles, and multi-frame images.
    """
    folder = Path(folder)
    headers = _headers(folder)
    series: dict[str, list[Dataset]] = {}
    for header in headers:
        series.setdefault(str(header.SeriesInstanceUID), []).append(header)
    if len(series) > 1:
        found = ", ".join(f"number {s[0].get('SeriesNumber', '?')} with {len(s)} slices" for s in series.values())
        raise InputError(f"{folder}: it holds {len(series)} series ({found}); put the wanted one into its own folder")
    if len(headers) < 2:
        raise InputError(f"{folder}: it holds {len(headers)} slices of an MR or CT; name the folder of a whole series")
    for name in SHARED:
        if len({str(header.get(name, "")) for header in headers}) > 1:
            raise InputError(f"{folder}: its slices differ in {name}, so they are not one scan; export the series anew")
    slices, affine = _stacked(folder, headers)
    return DicomSeries(folder, tuple(slices), affine, (int(slices[0].Columns), int(slices[0].Rows), len(slices)))


def check_source(series: DicomSeries, images: Mapping[str, Volume]) -> tuple[str, float]:
    """Which of a scan's images was made from the series, and its correlation with it. Raises InputError where the
    scan lies elsewhere, or none of its images shows what the series shows."""
    pixels = series.pixels()
    shared = {name: overlap(image, pixels) for name, image in images.items()}
    near = [name for name, share in shared.items() if share >= COMMON_FIELD]
    if not near:
        raise InputError(
            f"{series.folder}: only {max(shared.values()):.0%} of its field of view is common with the scan; name the "
            "series that one of the scan's images was made from"
        )
    found = {name: _correlation(images[name], pixels) for name in near}
    best = max(found, key=lambda name: found[name])
    if found[best] < CORRELATION:
        raise InputError(
            f"{series.folder}: it does not show what the scan shows (correlation {found[best]:.2f} with {best}, at "
            f"least {CORRELATION} is needed); is it another patient's, date's or sequence's? Name the scan's own source"
        )
    return best, found[best]


def _correlation(image: Volume, pixels: Volume) -> float:
    """Pearson's correlation of the image with the series, over the image's head or body; 0 where one is flat."""
    other = resample_to(pixels, image.affine, image.shape).array
    above = image.array - image.array.min()
    inside = above > np.percentile(above, 99) / 10
    if np.ptp(image.array[inside]) == 0 or np.ptp(other[inside]) == 0:
        return 0.0
    return float(np.corrcoef(image.array[inside], other[inside])[0, 1])


def _headers(folder: Path) -> list[Dataset]:
    """The headers of all MR and CT slices in a folder."""
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: it cannot be read as a folder ({error.strerror}); check the path") from error
    headers = [header for path in files if (header := _header(path)) is not None]
    for header in headers:
        if str(header.get("NumberOfFrames") or 1) != "1":
            raise InputError(
                f"{header.filename}: multi-frame DICOM is not read; export the series as single slices (classic DICOM)"
            )
        if lacking := [name for name in NEEDED if not header.get(name)]:
            raise InputError(f"{header.filename}: it lacks {lacking[0]}; copy the slice again, or remove the file")
    return headers


def _header(path: Path) -> Dataset | None:
    """The header of an MR or CT slice, with every value checked; None for another kind of file."""
    try:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
        from pydicom.uid import MediaStorageDirectoryStorage
    except ImportError as error:
        raise missing_package(error) from error
    try:
        with quiet():
            header = dcmread(path, stop_before_pixels=True)
            if header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
                return None
            if header.Modality not in MODALITIES:
                return None
            for name, length in LENGTHS.items():
                values = np.ravel(np.array(header.get(name) or [1.0] * length, float))
                if len(values) != length or not np.all(np.isfinite(values)):
                    raise ValueError(f"{name} holds no {length} numbers")
            for name in MAY_BE_EMPTY:
                header.setdefault(name, "")
            header.decode()  # names, to Unicode
    except InvalidDicomError as error:
        if path.suffix.lower() != ".dcm":
            return None
        raise InputError(f"{path}: this is no DICOM file; copy it again, or remove it") from error
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror or line(error)}); check its rights") from error
    except Exception as error:  # pydicom raises what the damage makes of it
        raise InputError(f"{path}: the file is damaged ({line(error)}); copy the slice again") from error
    return header


def _stacked(folder: Path, headers: list[Dataset]) -> tuple[list[Dataset], np.ndarray]:
    """The slices in order along the normal of the first, and the affine of their grid. Raises InputError where they do
    not lie one behind the other at equal distances."""
    from pydicom.valuerep import DSfloat

    orientation = np.array([header.ImageOrientationPatient for header in headers], float)
    spacing = np.array([header.PixelSpacing for header in headers], float)
    row, column = orientation[0, :3], orientation[0, 3:]
    if np.ptp(orientation, axis=0).max() > 1e-3 or np.ptp(spacing, axis=0).max() > 1e-3:
        raise InputError(
            f"{folder}: its slices differ in angle or pixel size (a localizer?); name a folder of one volume"
        )
    if abs(row @ column) > 1e-3 or max(abs(row @ row - 1), abs(column @ column - 1)) > 1e-3 or spacing.min() <= 0:
        raise InputError(f"{folder}: its slices' angles or pixel sizes are not valid; export the series again")
    positions = np.array([header.ImagePositionPatient for header in headers], float)
    order = np.argsort(positions @ np.cross(row, column), kind="stable")
    slices, positions = [headers[i] for i in order], positions[order]
    _check_distances(folder, slices, positions @ np.cross(row, column))
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row * spacing[0, 1], column * spacing[0, 0], step], axis=1)
    affine[:3, 3] = positions[0]
    expected = positions[0] + np.outer(np.arange(len(slices)), step)
    if np.abs(positions - expected).max() > _tolerance(float(np.linalg.norm(step))):
        raise InputError(f"{folder}: its slices do not lie in one straight stack; name a folder of one volume")
    # As measured: some headers lack the thickness, and some scanners write the gap between slices for their distance.
    distance = DSfloat(float(step @ np.cross(row, column)), auto_format=True)
    for header in slices:
        header.SpacingBetweenSlices = distance
        header.SliceThickness = header.get("SliceThickness") or distance
    return slices, LPS @ affine


def _check_distances(folder: Path, slices: list[Dataset], along: np.ndarray) -> None:
    """Raises InputError for slices at the same place, missing ones, and unequal distances; along: mm, ascending."""
    gaps = np.diff(along)
    rounded, counts = np.unique(np.round(gaps, 1), return_counts=True)
    usual = float(np.median(gaps[np.round(gaps, 1) == rounded[np.argmax(counts)]]))  # the most frequent
    if gaps.min() <= _tolerance(usual):
        raise InputError(
            f"{folder}: several slices lie at the same place (echoes or times of one series?); keep one volume of them"
        )
    wrong = np.flatnonzero(np.abs(gaps - usual) > _tolerance(usual))
    if wrong.size:
        at = int(wrong[np.argmax(gaps[wrong])])
        names = " and ".join(Path(str(header.filename)).name for header in slices[at : at + 2])
        fault = "slices are missing" if gaps[at] > 1.5 * usual else "the slices are unevenly spaced"
        raise InputError(
            f"{folder}: {fault} between {names} ({gaps[at]:.2f} mm instead of {usual:.2f}); copy the whole series"
        )


def _tolerance(spacing: float) -> float:
    """By how many mm a slice may be off: positions are written with few decimals."""
    return max(0.02 * spacing, 0.02)


def missing_package(error: ImportError) -> InputError:
    """What to tell where a package for DICOM is not installed."""
    return InputError(f"DICOM needs the package {error.name} (pip install highdicom)")


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of pydicom's and highdicom's on values that break the standard: scanners do, and names show."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
