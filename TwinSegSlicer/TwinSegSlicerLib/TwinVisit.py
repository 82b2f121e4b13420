"""A scan on its way into a twin: what is on the screen as arrays for the worker, and the day that DICOM dates tell."""

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

from twinseg.volumes import Volume

from .Background import BackgroundTask
from .Corrections import CorrectedCase, correctedCase, patientOf
from .SegmentationResult import DELTA, DELTA_TWIN, REFERENCE, imagesOf


class VisitFiles:
    """What a segmentation node shows, as files of a temporary folder, and the fields of `add_time_point` that name
    them."""

    def __init__(
        self, node: Any, onDone: Callable[[dict[str, Any]], None], onError: Callable[[Exception], None]
    ) -> None:
        """Written beside the window, then `onDone(fields)`. Raises ValueError, at once, for what cannot be added."""
        case, delta = correctedCase(node), node.GetAttribute(DELTA) or None
        self._folder = tempfile.TemporaryDirectory(
            prefix="TwinSegSlicer-", dir=slicer.app.temporaryPath, ignore_cleanup_errors=True
        )
        self._task = BackgroundTask(lambda: _write(case, delta, Path(self._folder.name)), onDone, onError)

    def remove(self) -> None:
        """Delete the files, once what is still being written is written."""
        self._task.abandon(then=self._folder.cleanup)


def _write(case: CorrectedCase, delta: str | None, folder: Path) -> dict[str, Any]:
    """The fields of a case, with who has drawn its labels: the model, or who has edited them."""

    def entry(name: str, volume: Volume) -> dict[str, Any]:
        file = folder / f"{name}.npy"
        np.save(file, volume.array)
        return {"array": str(file), "affine": volume.affine.tolist()}

    unchanged = case.predicted is not None and np.array_equal(case.predicted.array, case.labels.array)
    return {
        "images": {sequence: entry(sequence, image) for sequence, image in case.images.items()},
        "segmentation": entry("segmentation", case.labels),
        "origin": "model" if unchanged else "edited",
        "model": case.model or None if unchanged else None,
        "delta": delta if unchanged else None,
    }


def refuseOtherPatients(node: Any, pseudonym: str) -> None:
    """Raise ValueError for a segmentation that another patient's adapted model has drawn."""
    owner = node.GetAttribute(DELTA_TWIN)
    if owner and owner != pseudonym:
        text = _("The adapted model of {owner} has drawn this: segment it again with the model of {patient}, or none")
        raise ValueError(text.format(owner=owner, patient=pseudonym))


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
