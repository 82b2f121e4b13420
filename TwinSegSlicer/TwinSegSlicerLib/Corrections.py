"""Correcting a segmentation and submitting it to this machine's case queue. Nothing leaves the machine here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
from numpy.typing import NDArray
from slicer.i18n import tr as _

from twinseg.tasks import Region, Task, load_task
from twinseg.volumes import Volume, resample_to

from .Background import BackgroundTask
from .SegmentationResult import (
    IMAGE,
    MEAN_UNCERTAINTY,
    MODEL,
    MODEL_LABELS,
    REFERENCE,
    SUBMITTED,
    TASK,
    imagesOf,
    labelArray,
    regionSegments,
    results,
    updateRegions,
)
from .Sequences import matchSequence
from .VolumeBridge import NodeImage, localMatrix, nodeImage, onGrid

if TYPE_CHECKING:
    from twinseg.case_queue import CaseQueue

HIDDEN = "TwinSeg.HiddenRegions"  # attribute of a segmentation node: those that `openInSegmentEditor` hides


@dataclass(frozen=True)
class CorrectedCase:
    """A case as it is on the screen. Arrays are (I, J, K), in world coordinates (RAS, mm); images: each on its own
    grid; labels: on that of the reference sequence; predicted: what the model drew, None where that was deleted."""

    task: Task
    images: dict[str, Volume]
    labels: Volume
    predicted: Volume | None
    model: str
    grid: NodeImage


def localQueue() -> CaseQueue:
    """The queue in this computer's data folder."""
    from twinseg.case_queue import CaseQueue  # needs packages that are installed later

    return CaseQueue()


class Corrections:
    """Submits corrected segmentations and lists what was submitted.

    `makeQueue` is called when the queue is first needed, as it makes a folder.
    """

    def __init__(self, makeQueue: Callable[[], CaseQueue] = localQueue) -> None:
        self._makeQueue = makeQueue
        self._queue: CaseQueue | None = None
        self._task: BackgroundTask | None = None

    @property
    def queue(self) -> CaseQueue:
        if self._queue is None:
            self._queue = self._makeQueue()
        return self._queue

    @property
    def isSubmitting(self) -> bool:
        return self._task is not None

    def submit(
        self,
        node: Any,
        patient: str,
        who: str,
        note: str,
        onDone: Callable[[Any], None],
        onError: Callable[[Exception], None],
    ) -> None:
        """Write the case that a segmentation node shows into the queue; the files are written beside the window.

        Ends with `onDone(queued case)` or `onError(exception)`. Raises ValueError, at once, for what cannot be
        submitted; the queue refuses labels that are unchanged or empty.
        """
        if self.isSubmitting:
            raise ValueError(_("A correction is being written"))
        case = correctedCase(node)
        queue = self.queue

        def add() -> Any:
            images = {name: _onto(image, case.labels) for name, image in case.images.items()}
            return queue.add(
                task=case.task,
                patient=patient,
                images=images,
                labels=case.labels,
                predicted=case.predicted,
                model=case.model or None,
                who=who,
                note=note,
            )

        def done(queued: Any) -> None:
            self._task = None
            if slicer.mrmlScene.IsNodePresent(node):
                node.SetAttribute(SUBMITTED, queued.name)
                matrix = slicer.util.vtkMatrixFromArray(case.grid.localMatrix)
                updateRegions(node, case.labels.array.T, case.task, matrix)
            onDone(queued)

        def failed(error: Exception) -> None:
            self._task = None
            onError(error)

        self._task = BackgroundTask(add, done, failed)


def nextToCorrect(task: str = "") -> Any:
    """The segmentation that was not submitted yet and of which the model was least sure; None where there is none."""
    waiting = [node for node in results(task) if node.GetAttribute(SUBMITTED) is None]
    return max(waiting, key=lambda node: float(node.GetAttribute(MEAN_UNCERTAINTY) or 0), default=None)


def openInSegmentEditor(node: Any) -> None:
    """Open a segmentation in Slicer's Segment Editor, with its regions hidden: its labels are what is corrected."""
    task, display = load_task(node.GetAttribute(TASK)), node.GetDisplayNode()
    hidden = [name for name in regionSegments(task) if name in _hidden(node) or display.GetSegmentVisibility(name)]
    node.SetAttribute(HIDDEN, "|".join(hidden))
    editLabels(node, imagesOf(node).get(node.GetAttribute(REFERENCE)), task)
    showRegions(node, False)


def showRegions(node: Any, shown: bool) -> None:
    """Show again, or hide again, the regions of a segmentation that the Segment Editor was opened on."""
    for name in _hidden(node):
        node.GetDisplayNode().SetSegmentVisibility(name, shown)


def inSegmentEditor() -> Any:
    """The segmentation node that the Segment Editor works on; None where there is none."""
    editor = slicer.mrmlScene.GetSingletonNode("SegmentEditor", "vtkMRMLSegmentEditorNode")
    return editor.GetSegmentationNode() if editor is not None else None


def _hidden(node: Any) -> list[str]:
    """The regions that were hidden, without those that were deleted since."""
    names = (node.GetAttribute(HIDDEN) or "").split("|")
    return [name for name in names if node.GetSegmentation().GetSegment(name) is not None]


def editLabels(node: Any, image: Any, task: Task) -> None:
    """Open a segmentation's labels in the Segment Editor, over their image."""
    editor = slicer.mrmlScene.GetSingletonNode("SegmentEditor", "vtkMRMLSegmentEditorNode")
    if editor is None:
        editor = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
        editor.UnRegister(None)
        editor.SetSingletonTag("SegmentEditor")
        editor = slicer.mrmlScene.AddNode(editor)
    editor.SetAndObserveSegmentationNode(node)
    editor.SetAndObserveSourceVolumeNode(image)
    editor.SetSelectedSegmentID(task.labels[-1].name)
    # A voxel has one label; painting one takes it from the others, but not from the regions, which are hidden.
    editor.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteVisibleSegments)
    slicer.util.selectModule("SegmentEditor")


def patientOf(node: Any) -> str:
    """The patient of a segmentation: the id or name of the subject hierarchy, else what its image's name says beside
    the sequence; "" where nothing is known."""
    image = imagesOf(node).get(node.GetAttribute(REFERENCE))
    if image is None:
        return ""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    constants = slicer.vtkMRMLSubjectHierarchyConstants
    item = hierarchy.GetItemByDataNode(image)
    if item and (patient := hierarchy.GetItemAncestorAtLevel(item, constants.GetDICOMLevelPatient())):
        return hierarchy.GetItemUID(patient, constants.GetDICOMUIDName()) or hierarchy.GetItemName(patient)
    match = matchSequence(image.GetName(), load_task(node.GetAttribute(TASK)))
    return match[2] if match else image.GetName()


def correctedCase(node: Any) -> CorrectedCase:
    """What a segmentation node shows, as a case. Raises ValueError that says why it cannot be submitted."""
    if node is None or node.GetAttribute(TASK) is None:
        raise ValueError(_("Select a segmentation that was made here"))
    task, images = load_task(node.GetAttribute(TASK)), imagesOf(node)
    missing = [role for role in _imageRoles(node) if role.removeprefix(IMAGE) not in images]
    reference = node.GetAttribute(REFERENCE)
    if missing or reference not in images:
        raise ValueError(_("Images of this case were taken out of the scene: load them again, then segment again"))
    loaded = {name: nodeImage(image) for name, image in images.items()}
    grid = loaded[reference]
    expected = None if grid.isResampled else images[reference].GetParentTransformNode()
    if node.GetParentTransformNode() is not expected:
        raise ValueError(
            _("{name} is under another transform than {image}: put both under the same one").format(
                name=node.GetName(), image=images[reference].GetName()
            )
        )
    predicted = _predicted(node, grid)
    labels = labelsOf(node, grid, task)
    _checkRegions(node, grid, task, labels, predicted)
    return CorrectedCase(
        task,
        {name: Volume(image.array.T, image.worldMatrix) for name, image in loaded.items()},
        Volume(labels.T, grid.worldMatrix),
        Volume(predicted.T, grid.worldMatrix) if predicted is not None else None,
        node.GetAttribute(MODEL) or "",
        grid,
    )


def _imageRoles(node: Any) -> list[str]:
    roles: list[str] = []
    node.GetNodeReferenceRoles(roles)
    return [role for role in roles if role.startswith(IMAGE)]


def labelsOf(node: Any, grid: NodeImage, task: Task) -> NDArray[Any]:
    """The label map (K, J, I) of the labels' segments. Raises ValueError for overlaps and for other segments."""
    known = {label.name: label.value for label in task.labels}
    labels = np.zeros(grid.array.shape, np.uint8 if max(known.values()) < 256 else np.uint16)
    segmentation = node.GetSegmentation()
    for segmentId in segmentation.GetSegmentIDs():
        name = segmentation.GetSegment(segmentId).GetName()
        if segmentId in regionSegments(task):
            continue
        mask = _segmentMask(node, segmentId, grid)
        if segmentId not in known:
            if mask.any():
                raise ValueError(
                    _("The segment {name} is none of {labels}: delete it, or add it to one of them").format(
                        name=name, labels=", ".join(known)
                    )
                )
            continue
        if both := np.count_nonzero(labels[mask]):
            raise ValueError(
                _("{name} overlaps another label in {count} voxels: take them out of one of the two").format(
                    name=name, count=both
                )
            )
        labels[mask] = known[segmentId]
    return labels


def _segmentMask(node: Any, segmentId: str, grid: NodeImage) -> NDArray[np.bool_]:
    """A segment's voxels (K, J, I) on the image's grid. Raises ValueError where it is off that grid."""
    drawn = slicer.vtkOrientedImageData()
    if not node.GetBinaryLabelmapRepresentation(segmentId, drawn):
        return np.zeros(grid.array.shape, bool)  # nothing was ever drawn in it
    try:
        return onGrid(drawn, grid.localMatrix, grid.shape) > 0
    except ValueError as error:
        name = node.GetSegmentation().GetSegment(segmentId).GetName()
        raise ValueError(
            _("{name} cannot be submitted, as {reason}: set the segmentation's geometry to that of its image").format(
                name=name, reason=error
            )
        ) from error


def _predicted(node: Any, grid: NodeImage) -> NDArray[Any] | None:
    """What the model drew (K, J, I), on the image's grid."""
    kept = node.GetNodeReference(MODEL_LABELS)
    if kept is None or kept.GetImageData() is None:
        return None
    drawn = labelArray(kept)
    if drawn.shape == grid.array.shape:  # made on these voxels; its own place is wrong once a transform was hardened
        return drawn
    return resample_to(Volume(drawn.T, localMatrix(kept)), grid.localMatrix, grid.shape, "nearest").array.T


def _checkRegions(node: Any, grid: NodeImage, task: Task, labels: NDArray[Any], predicted: NDArray[Any] | None) -> None:
    """Raise ValueError where a region was drawn in: it is made of labels, and the drawing would be lost.

    Where a label differs from the model's, the region may be the model's, that of an earlier correction, or neither."""
    if predicted is None:
        return
    asPredicted = labels == predicted
    for name, region in regionSegments(task).items():
        if node.GetSegmentation().GetSegment(name) is None:
            continue
        if np.any(asPredicted & (_segmentMask(node, name, grid) != np.isin(labels, region.labels))):
            raise ValueError(
                _("{name} was changed, but it is made of {labels}: change those instead").format(
                    name=name, labels=_names(region, task)
                )
            )


def _names(region: Region, task: Task) -> str:
    return ", ".join(label.name for label in task.labels if label.value in region.labels)


def _onto(image: Volume, reference: Volume) -> Volume:
    """An image on the reference's grid."""
    return resample_to(image, reference.affine, reference.shape)
