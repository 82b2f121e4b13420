"""A scan on its way into a twin: what is on the screen as files, and the day that DICOM dates tell."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from twinseg.volumes import Volume, resample_to, write_volume

from .Background import BackgroundTask
from .Corrections import CorrectedCase, correctedCase, patientOf
from .SegmentationResult import REFERENCE, imagesOf


class VisitFiles:
    """The images and the segmentation of a segmentation node as files of a temporary folder, and the options of
    `twinseg twin add` that name them."""

    def __init__(self, node: Any, onDone: Callable[[list[str]], None], onError: Callable[[Exception], None]) -> None:
        """Written beside the window, then `onDone(options)`. Raises ValueError, at once, for what cannot be added."""
        case = correctedCase(node)
        self._folder = tempfile.TemporaryDirectory(prefix="TwinSegSlicer-", ignore_cleanup_errors=True)
        self._task = BackgroundTask(lambda: _write(case, Path(self._folder.name)), onDone, onError)

    def remove(self) -> None:
        """Delete the files; what is still being written is forgotten."""
        self._task.abandon()
        self._folder.cleanup()


def _write(case: CorrectedCase, folder: Path) -> list[str]:
    """Images on the grid of the labels, as the library keeps a case."""
    options = []
    for sequence, image in case.images.items():
        file = folder / f"{sequence}.nii"
        write_volume(file, resample_to(image, case.labels.affine, case.labels.shape))
        options += ["--image", f"{sequence}={file}"]
    write_volume(folder / "labels.nii", Volume(case.labels.array, case.labels.affine))
    unchanged = case.predicted is not None and np.array_equal(case.predicted.array, case.labels.array)
    return [*options, "--segmentation", str(folder / "labels.nii"), "--origin", "model" if unchanged else "edited"]


def proposedDay(node: Any, today: date | None = None) -> tuple[float, str] | None:
    """Days from the patient's earliest study in the subject hierarchy to the node's, and where that comes from; None
    where DICOM dates do not tell. The dates themselves are not kept. Raises InputError for a date of the future."""
    from twinseg.twin.store_records import days_since

    study = _study(node)
    scanned = _studyDate(study)
    if scanned is None:
        return None
    hierarchy = _hierarchy()
    children = vtk.vtkIdList()
    hierarchy.GetItemChildren(hierarchy.GetItemParent(study), children)
    dates = [found for n in range(children.GetNumberOfIds()) if (found := _studyDate(children.GetId(n))) is not None]
    day = days_since(min(dates), scanned, today or date.today())
    if len(dates) < 2:
        return None
    return float(day), _("from the dates of {count} studies of this patient in the scene").format(count=len(dates))


def pseudonymOf(node: Any) -> str:
    """What stands for a segmentation's patient on this computer: the same as in its case queue; "" if unknown."""
    from twinseg.pseudonyms import load_pseudonyms

    patient = patientOf(node) if node is not None else ""
    return load_pseudonyms().patient(patient) if patient else ""


def _hierarchy() -> Any:
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)


def _study(node: Any) -> int:
    """The item of the study of the image that a segmentation was made of; 0 where it has none."""
    image = imagesOf(node).get(node.GetAttribute(REFERENCE)) if node is not None else None
    item = _hierarchy().GetItemByDataNode(image) if image is not None else 0
    level = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMLevelStudy()
    return int(_hierarchy().GetItemAncestorAtLevel(item, level)) if item else 0


def _studyDate(study: int) -> date | None:
    """The DICOM date of a study of the subject hierarchy; None where it has none that can be read."""
    if not study:
        return None
    name = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMStudyDateAttributeName()
    text = (_hierarchy().GetItemAttribute(study, name) or "").replace("-", "")
    try:
        return datetime.strptime(text, "%Y%m%d").date()
    except ValueError:
        return None
