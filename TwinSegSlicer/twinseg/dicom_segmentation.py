"""A label map as DICOM Segmentation (PS3.3, A.51), which a PACS shows beside the series that it was drawn on.

It carries the patient's and the study's attributes of that series, and so the patient's identity: it belongs where the
series belongs, and never into a twin's folder.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twinseg import __version__
from twinseg.dicom_series import DicomSeries, line, missing_package, quiet
from twinseg.errors import InputError
from twinseg.tasks import Label, Task
from twinseg.volumes import Volume, resample_to, write_atomically

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept

ALGORITHMS = {"model": "AUTOMATIC", "edited": "SEMIAUTOMATIC", "expert": "MANUAL"}  # by who drew it
OUTSIDE = 0.01  # share of the labelled voxels that may lie outside of the series
SERIES_NUMBER = 1000  # behind those of the scanner


def write_dicom_segmentation(
    labels: Volume,
    task: Task,
    series: DicomSeries,
    path: str | Path,
    *,
    origin: str = "model",
    description: str | None = None,
    model: str | None = None,
    delta: str | None = None,
) -> dict[str, Any]:
    """Write a label map as a DICOM Segmentation of a series, on the series' grid (nearest voxel): a segment a label.

    origin: who drew it, "model", "edited" or "expert"; description: of the new series; model: hash of the model that
    drew it; delta: the adapted model of the patient. Returns what was written, without anything of the patient: the
    segments (number, name, voxels, mL, mL before), the labels that were lost on the series' grid, and the frames.

    Raises InputError where highdicom is missing, for an empty label map, a label that the task does not know or has no
    DICOM codes for, a series of another modality or that does not show the whole segmentation, a file that is a slice
    of the series or cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".dcm":
        raise InputError(f"{path}: the output must end in .dcm")
    if path.resolve() in {Path(str(header.filename)).resolve() for header in series.slices}:
        raise InputError(f"{path}: this is a slice of the series, which is never overwritten; name another output")
    if series.modality != task.modality:
        raise InputError(f"{series.folder}: this is a {series.modality} series, but {task.name} needs {task.modality}")
    drawn = _drawn(labels, task)
    placed = _on_grid(labels, series)
    kept = [label for label in drawn if np.any(placed.array == label.value)]
    if not kept:
        raise InputError(f"{series.folder}: its slices are so far apart that nothing of the segmentation is left on it")
    numbers = np.zeros(int(placed.array.max()) + 1, np.uint16)
    for number, label in enumerate(kept, 1):
        numbers[label.value] = number
    algorithm = {key: value for key, value in (("model", model), ("delta", delta)) if value}
    description = description or f"TwinSegSlicer: {task.title}"
    content, frames = _encoded(numbers[placed.array], kept, series, ALGORITHMS[origin], algorithm, description[:64])
    write_atomically(path, content)
    return {
        "segments": [_measured(number, label, labels, placed) for number, label in enumerate(kept, 1)],
        "lost": [label.name for label in drawn if label not in kept],
        "frames": frames,
        "slices": len(series.slices),
        "algorithm": ALGORITHMS[origin],
    }


def written_text(written: dict[str, Any]) -> str:
    """What `write_dicom_segmentation` wrote, in a line."""
    volumes = ", ".join(f"{segment['label']} {segment['ml']:.1f} mL" for segment in written["segments"])
    lost = f", without {', '.join(written['lost'])} (too small for these slices)" if written["lost"] else ""
    kept = "it carries the patient's identity: keep it where the series is kept"
    return f"{volumes} on {written['slices']} slices{lost}; {kept}"


def _drawn(labels: Volume, task: Task) -> list[Label]:
    """The task's labels that occur. Raises InputError where none does, or another one."""
    values = {int(value) for value in np.unique(labels.array)} - {0}
    known = {label.value: label for label in task.labels}
    if unknown := values - set(known):
        raise InputError(
            f"the segmentation holds the label {min(unknown)}, which the task {task.name} does not know; relabel it"
        )
    if not values:
        raise InputError("the segmentation is empty, so there is nothing to write; segment first")
    return [label for value, label in known.items() if value in values]


def _on_grid(labels: Volume, series: DicomSeries) -> Volume:
    """The label map on the series' grid. Raises InputError where much of it lies outside."""
    voxels = np.argwhere(labels.array > 0)
    matrix = np.linalg.inv(series.affine) @ labels.affine
    there = voxels @ matrix[:3, :3].T + matrix[:3, 3]
    outside = float(np.mean(np.any((there < -0.501) | (there > np.array(series.shape) - 0.499), axis=1)))
    if outside > OUTSIDE:
        raise InputError(
            f"{series.folder}: {outside:.0%} of the segmentation lies outside of this series; it is not what the "
            "segmentation was drawn on, or slices are missing at its ends"
        )
    return resample_to(labels, series.affine, series.shape, mode="nearest", fill=0)


def _encoded(
    numbers: np.ndarray, labels: list[Label], series: DicomSeries, kind: str, algorithm: dict[str, str], words: str
) -> tuple[bytes, int]:
    """The file's content and its count of frames. numbers: segment numbers (columns, rows, slices)."""
    try:
        from highdicom.seg import Segmentation, SegmentationTypeValues
        from pydicom.uid import generate_uid
    except ImportError as error:
        raise missing_package(error) from error
    described = [_described(number, label, kind, algorithm) for number, label in enumerate(labels, 1)]
    try:
        with quiet():
            segmentation = Segmentation(
                source_images=series.slices,
                pixel_array=np.ascontiguousarray(numbers.transpose(2, 1, 0)),
                segmentation_type=SegmentationTypeValues.BINARY,
                segment_descriptions=described,
                series_instance_uid=generate_uid(),
                series_number=SERIES_NUMBER,
                sop_instance_uid=generate_uid(),
                instance_number=1,
                manufacturer="TwinSegSlicer",
                manufacturer_model_name="twinseg",
                software_versions=__version__,
                device_serial_number="0",  # must be there; software has none
                series_description=words,
                specific_character_set="ISO_IR 192",  # UTF-8, whatever the scanner's is
            )
            segmentation.ContentCreatorName = ""  # must be there too; who drew it is named nowhere
            content = BytesIO()
            segmentation.save_as(content, enforce_file_format=True)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{series.folder}: its headers do not allow a DICOM Segmentation ({line(error)}); correct them, or export "
            "the series again"
        ) from error
    return content.getvalue(), int(segmentation.NumberOfFrames)


def _described(number: int, label: Label, kind: str, algorithm: dict[str, str]) -> SegmentDescription:
    """A segment's name, codes, colour and how it was drawn."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    category, kind_code, modifier, region, region_modifier = _codes(label)
    identification = AlgorithmIdentificationSequence(
        "TwinSegSlicer", codes.DCM.ArtificialIntelligence, __version__, parameters=algorithm or None
    )
    segment = SegmentDescription(
        segment_number=number,
        segment_label=label.title[:64],
        segmented_property_category=category,
        segmented_property_type=kind_code,
        algorithm_type=kind,
        algorithm_identification=None if kind == "MANUAL" else identification,
        anatomic_regions=None if region is None else [region],
        display_color=CIELabColor.from_rgb(*label.color),
    )
    if modifier is not None:
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    if region is not None and region_modifier is not None:
        segment.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [region_modifier]
    return segment


def _codes(label: Label) -> tuple[Any, Any, CodedConcept | None, CodedConcept | None, CodedConcept | None]:
    """Category, type, its modifier, anatomic region and its modifier from a terminology string of Slicer's: seven
    parts with ~ between them, of which five are codes SCHEME^VALUE^MEANING. Raises InputError."""
    from highdicom.sr import CodedConcept

    parts = [*label.terminology.split("~"), *[""] * 7]
    codes = [[*part.split("^"), "", ""][:3] for part in (*parts[1:4], *parts[5:7])]
    found = [CodedConcept(value, scheme, meaning) if value else None for scheme, value, meaning in codes]
    if not all(codes[0] + codes[1]):
        raise InputError(
            f"the label {label.name} has no DICOM codes; give its terminology in the task's file, as built-in tasks do"
        )
    category, kind, modifier, region, region_modifier = found
    return category, kind, modifier, region, region_modifier


def _measured(number: int, label: Label, before: Volume, after: Volume) -> dict[str, Any]:
    """What JSON tells of a segment."""
    voxels = [int(np.count_nonzero(volume.array == label.value)) for volume in (before, after)]
    ml = [n * v.voxel_ml for n, v in zip(voxels, (before, after), strict=True)]
    volumes = {"ml": round(ml[1], 4), "ml_before": round(ml[0], 4)}
    return {"number": number, "label": label.name, "voxels": voxels[1], **volumes}
