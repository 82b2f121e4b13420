"""A result in the scene: the segmentation, its uncertainty, its volumes, and what made it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from slicer.i18n import tr as _
from vtk.util.numpy_support import numpy_to_vtk

from twinseg.tasks import Label, Region, Task

from .Sequences import RESULT_ATTRIBUTE
from .ShareOverlay import drawAsShares
from .VolumeBridge import NodeImage, imageArray

# Attributes of the segmentation node; they are saved with the scene.
TASK, MODEL, MODEL_TITLE, COMPUTED = "TwinSeg.Task", "TwinSeg.Model", "TwinSeg.ModelTitle", "TwinSeg.Computed"
VERSION, TIME, SECONDS, MISSING = "TwinSeg.Version", "TwinSeg.Time", "TwinSeg.Seconds", "TwinSeg.MissingSequences"
MEAN_UNCERTAINTY, REFERENCE, SUBMITTED = "TwinSeg.MeanUncertainty", "TwinSeg.Reference", "TwinSeg.Submitted"
DELTA, DELTA_TWIN = "TwinSeg.Delta", "TwinSeg.DeltaTwin"  # adapted model: its name in the twin, the twin's pseudonym
# Nodes that the segmentation node refers to; images as IMAGE + the sequence's name.
UNCERTAINTY, TABLE, MODEL_LABELS, IMAGE = "TwinSegUncertainty", "TwinSegTable", "TwinSegModelLabels", "TwinSegImage_"
PARTS = (UNCERTAINTY, TABLE, MODEL_LABELS)
OVERLAY_OPACITY = 0.6
SHOWN_UNCERTAINTY = 0.25  # half of what a toss-up between two of four classes gives; below, the image stays clear

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class PreparedResult:
    """What the worker wrote, made ready in the background. labels: (K, J, I); masks: for each region, its box in the
    label map and its voxels (uint8) in that box; uncertainty: (K, J, I) float32; meanUncertainty: over the tumour."""

    labels: NDArray[Any]
    box: Box
    masks: dict[str, tuple[Box, NDArray[np.uint8]]]
    uncertainty: NDArray[np.float32] | None
    meanUncertainty: float


def prepareResult(labelsFile: Path, uncertaintyFile: Path | None, task: Task) -> PreparedResult:
    """Read the worker's files, (I, J, K), and cut out what is drawn. For a thread: touches neither scene nor widget."""
    prepared = prepareLabels(np.ascontiguousarray(np.load(labelsFile, allow_pickle=False).T), task)
    if uncertaintyFile is None:
        return prepared
    uncertainty = np.ascontiguousarray(np.load(uncertaintyFile, allow_pickle=False).T)
    box = prepared.box
    drawn = uncertainty[box][prepared.labels[box] > 0]
    # Where nothing was drawn, the voxel that came closest to a tumour decides how worthwhile a look is.
    mean = float(drawn.mean() if drawn.size else uncertainty.max())
    return replace(prepared, uncertainty=uncertainty, meanUncertainty=mean)


def prepareLabels(labels: NDArray[Any], task: Task) -> PreparedResult:
    """A label map (K, J, I), contiguous, ready to be drawn. For a thread."""
    box = drawnBox(labels > 0)
    masks = {}
    for region in task.regions:
        inside = np.isin(labels[box], region.labels)
        part = drawnBox(inside)
        whole = tuple(slice(b.start + p.start, b.start + p.stop) for b, p in zip(box, part, strict=True))
        masks[region.name] = (whole, inside[part].astype(np.uint8))
    return PreparedResult(labels, box, masks, None, 0.0)


def drawnBox(mask: NDArray[np.bool_]) -> Box:
    """The smallest box that holds all true voxels; an empty one where there are none."""
    spans = []
    for axis in range(3):
        where = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        spans.append(slice(int(where[0]), int(where[-1]) + 1) if where.size else slice(0, 0))
    return spans[0], spans[1], spans[2]


def addToScene(
    prepared: PreparedResult,
    images: Mapping[str, Any],
    reference: str,
    grid: NodeImage,
    task: Task,
    made: Mapping[str, Any],
    replaced: Any = None,
) -> Any:
    """Put a result into the scene, beside its reference volume; returns the segmentation node.

    images: volume node by sequence; reference: the sequence on whose grid (`grid`) the result lies; made: the worker's
    answer (`volumes_ml`, `model`, `computed`, …) with `version` and `time`; replaced: an earlier segmentation node,
    removed with its parts. Where that fails, the scene is as it was.
    """
    if replaced is None:
        name = slicer.mrmlScene.GenerateUniqueName(f"{images[reference].GetName()} {task.name}")
    else:
        name = replaced.GetName()
    with _allOrNothing():
        node = _addSegmentation(name, prepared, images, reference, grid, task)
        _noteOrigin(node, task, made, prepared)
        matrix = slicer.util.vtkMatrixFromArray(grid.localMatrix)
        parts = {TABLE: _addTable(name, task, made["volumes_ml"])}
        parts[MODEL_LABELS] = _addModelLabels(name, prepared, matrix)
        if prepared.uncertainty is not None:
            parts[UNCERTAINTY] = _addUncertainty(name, prepared.uncertainty, matrix)
        for role, part in parts.items():
            part.SetAttribute(RESULT_ATTRIBUTE, role)
            if role != TABLE:
                _place(part, node.GetParentTransformNode())
            node.SetNodeReferenceID(role, part.GetID())
        _fileBeside(images[reference], [node, *parts.values()])
    if replaced is not None:
        removeResult(replaced)
    return node


@contextmanager
def _allOrNothing() -> Iterator[None]:
    """Where the block fails, take out of the scene what it has added."""
    before = set(slicer.util.getNodesByClass("vtkMRMLNode"))
    try:
        yield
    except Exception:
        for node in set(slicer.util.getNodesByClass("vtkMRMLNode")) - before:
            slicer.mrmlScene.RemoveNode(node)
        raise


def _addSegmentation(
    name: str, prepared: PreparedResult, images: Mapping[str, Any], reference: str, grid: NodeImage, task: Task
) -> Any:
    """The segmentation node, on the grid of its reference and under the same transform."""
    referenceNode = images[reference]
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    wasModifying = node.StartModify()
    _place(node, None if grid.isResampled else referenceNode.GetParentTransformNode())
    _setReferenceGeometry(node, referenceNode, grid)
    addSegments(node, prepared, task, slicer.util.vtkMatrixFromArray(grid.localMatrix))
    node.SetAttribute(REFERENCE, reference)
    for sequence, image in images.items():
        node.SetNodeReferenceID(IMAGE + sequence, image.GetID())
    node.EndModify(wasModifying)
    setDisplay(node, task)
    return node


def removeResult(node: Any) -> None:
    """Take a segmentation and all that was made with it out of the scene."""
    parts = [node, *(part for role in PARTS if (part := node.GetNodeReference(role)) is not None)]
    shown = [part for part in parts if part.IsA("vtkMRMLDisplayableNode")]
    displays = [part.GetNthDisplayNode(index) for part in shown for index in range(part.GetNumberOfDisplayNodes())]
    for part in [*parts, *displays]:  # which would stay behind
        slicer.mrmlScene.RemoveNode(part)


def results(task: str = "") -> list[Any]:
    """The segmentation nodes of the scene that this module made, in the order of the scene."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    return [node for node in nodes if (made := node.GetAttribute(TASK)) and task in ("", made)]


def imagesOf(node: Any) -> dict[str, Any]:
    """Sequence name -> volume node that a segmentation was made from, for those that are still in the scene."""
    roles: list[str] = []
    node.GetNodeReferenceRoles(roles)
    found = {role.removeprefix(IMAGE): node.GetNodeReference(role) for role in roles if role.startswith(IMAGE)}
    return {sequence: image for sequence, image in found.items() if image is not None}


def show3D(node: Any, shown: bool) -> None:
    """Show or hide a segmentation's surfaces in the 3D views; they are made when they are first shown."""
    if shown:
        node.CreateClosedSurfaceRepresentation()
    node.GetDisplayNode().SetVisibility3D(shown)


def showUncertainty(node: Any, shown: bool) -> None:
    """Lay a segmentation's uncertainty over the images in the slice views, or take it away."""
    volume = node.GetNodeReference(UNCERTAINTY)
    if shown and volume is not None:
        slicer.util.setSliceViewerLayers(foreground=volume, foregroundOpacity=OVERLAY_OPACITY)
    elif not shown:
        slicer.util.setSliceViewerLayers(foreground=None)


def updateRegions(node: Any, labels: NDArray[Any], task: Task, matrix: Any) -> None:
    """Make the regions' segments anew from a label map (K, J, I) whose index-to-RAS matrix is given."""
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    for name, region in regionSegments(task).items():
        if node.GetSegmentation().GetSegment(name) is not None:
            mask = np.isin(labels, region.labels)
            box = drawnBox(mask) if mask.any() else (slice(0, 1),) * 3  # VTK knows no image without voxels
            drawn = orientedImage(mask[box].astype(np.uint8), box, matrix)
            logic.SetBinaryLabelmapToSegment(drawn, node, name, logic.MODE_REPLACE)


def regionSegments(task: Task) -> dict[str, Region]:
    """Segment name -> region, for those regions that are more than one label (which has a segment of its own)."""
    return {region.name: region for region in task.regions if len(region.labels) > 1}


def regionColor(region: Region, task: Task) -> tuple[int, int, int]:
    """The colour of the label that a region has and the next smaller one within it has not."""
    within = [set(r.labels) for r in task.regions if set(r.labels) < set(region.labels)]
    inner = max(within, key=len, default=set())
    own = next(label for label in task.labels if label.value in set(region.labels) - inner)
    return own.color


def regionTerminology(region: Region, task: Task) -> str:
    """Slicer's terminology of a union of labels: "Neoplasm" at their place if all are lesions, else the first one's."""
    first = next(label for label in task.labels if label.value in region.labels)
    parts = first.terminology.split("~")
    if len(parts) < 6 or not set(region.labels) <= set(task.lesions):
        return first.terminology
    neoplasm = ["SCT^49755003^Morphologically Altered Structure", "SCT^108369006^Neoplasm", "^^"]
    return "~".join([parts[0], *neoplasm, *parts[4:]])


def _place(node: Any, transformNode: Any) -> None:
    node.SetAndObserveTransformNodeID(transformNode.GetID() if transformNode is not None else None)


def _setReferenceGeometry(node: Any, reference: Any, grid: NodeImage) -> None:
    """The image whose grid new segments get, and that a DICOM export refers to."""
    node.SetReferenceImageGeometryParameterFromVolumeNode(reference)
    if grid.isResampled:
        geometry = slicer.vtkOrientedImageData()
        i, j, k = grid.shape
        geometry.SetExtent(0, i - 1, 0, j - 1, 0, k - 1)
        geometry.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(grid.localMatrix))
        node.GetSegmentation().SetConversionParameter(
            slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName(),
            slicer.vtkSegmentationConverter.SerializeImageGeometry(geometry),
        )


def addSegments(node: Any, prepared: PreparedResult, task: Task, matrix: Any) -> None:
    """Regions that nest get a layer each; the labels, which exclude each other, share one."""
    for region in regionSegments(task).values():
        box, mask = prepared.masks[region.name]
        segment = _segment(region, 1, regionColor(region, task), regionTerminology(region, task))
        segment.AddRepresentation(_binaryLabelmap(), orientedImage(mask, box, matrix))
        node.GetSegmentation().AddSegment(segment, region.name)
    shared = orientedImage(prepared.labels[prepared.box], prepared.box, matrix)
    for label in task.labels:
        segment = _segment(label, label.value, label.color, label.terminology)
        segment.AddRepresentation(_binaryLabelmap(), shared)
        node.GetSegmentation().AddSegment(segment, label.name)


def orientedImage(array: NDArray[Any], box: Box, matrix: Any) -> Any:
    """A vtkOrientedImageData of the voxels of a box (K, J, I) of the grid whose index-to-RAS matrix is given."""
    k, j, i = box
    oriented = slicer.vtkOrientedImageData()
    oriented.SetExtent(i.start, i.stop - 1, j.start, j.stop - 1, k.start, k.stop - 1)
    oriented.GetPointData().SetScalars(_vtkArray(array.copy()))  # what is edited must not change its origin
    oriented.SetGeometryFromImageToWorldMatrix(matrix)
    return oriented


def _segment(part: Label | Region, value: int, color: tuple[int, int, int], terminology: str) -> Any:
    segment = slicer.vtkSegment()
    segment.SetName(part.name)
    segment.SetLabelValue(value)
    segment.SetColor(*(channel / 255 for channel in color))
    segment.SetNameAutoGenerated(False)
    segment.SetColorAutoGenerated(False)
    if terminology:
        segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), terminology)
    return segment


def _binaryLabelmap() -> str:
    return slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


def setDisplay(node: Any, task: Task) -> None:
    """Labels are filled in the slices, regions outlined; in 3D the outer regions are seen through."""
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    nested = regionSegments(task)
    wasModifying = display.StartModify()
    display.SetVisibility3D(False)  # until it is asked for
    display.SetOpacity2DFill(0.4)
    for name in nested:
        display.SetSegmentVisibility2DFill(name, False)
        display.SetSegmentOpacity3D(name, 0.25)
    for label in task.labels:
        display.SetSegmentVisibility2DOutline(label.name, not nested)
        alone = any(region.labels == (label.value,) for region in task.regions)
        display.SetSegmentVisibility3D(label.name, alone or not nested)
    display.EndModify(wasModifying)


def _noteOrigin(node: Any, task: Task, made: Mapping[str, Any], prepared: PreparedResult) -> None:
    title = made["model_title"]
    if delta := made.get("delta"):
        title = _("{model}, adapted to {twin} by delta {delta}").format(model=title, twin=made["twin"], delta=delta)
    notes = {
        TASK: task.name,
        MODEL: made["model"],
        MODEL_TITLE: title,
        DELTA: delta or "",
        DELTA_TWIN: made.get("twin") or "",
        COMPUTED: made["computed"],
        VERSION: made["version"],
        TIME: made["time"],
        SECONDS: f"{made['seconds']:.1f}",
        MISSING: " ".join(made["missing"]),
        MEAN_UNCERTAINTY: f"{prepared.meanUncertainty:.4f}",
    }
    with slicer.util.NodeModify(node):  # told once: every node selector of the window looks at its list each time
        for name, text in notes.items():
            node.SetAttribute(name, text)


def _addTable(name: str, task: Task, volumes: Mapping[str, Mapping[str, float]]) -> Any:
    """Volumes of the regions in mL, with the interval that the worker gives and the share that it should hold."""
    table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", f"{name} volumes")
    numeric = {title: vtk.vtkDoubleArray() for title in (_("mL"), _("from"), _("to"))}
    columns = {_("Region"): vtk.vtkStringArray(), **numeric, _("interval"): vtk.vtkStringArray()}
    for title, column in columns.items():
        column.SetName(title)
    for region in (region for region in task.regions if region.name in volumes):
        measured = volumes[region.name]
        numbers = [measured[key] for key in ("volume", "low", "high")]
        level = f"{100 * measured['level']:.0f} %"
        row = [f"{region.name}  {region.title}", *(round(mL, 2 if mL < 10 else 1) for mL in numbers), level]
        for column, value in zip(columns.values(), row, strict=True):
            column.InsertNextValue(value)
    for column in columns.values():
        table.AddColumn(column)
    table.SetUseColumnTitleAsColumnHeader(True)
    table.SetLocked(True)
    return table


def _addModelLabels(name: str, prepared: PreparedResult, matrix: Any) -> Any:
    """What the model drew, kept to compare a correction with; it is not shown."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", f"{name} (uncorrected)")
    setVoxels(node, prepared.labels, matrix)
    return node


def _addUncertainty(name: str, array: NDArray[np.float32], matrix: Any) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", f"{name} uncertainty")
    setVoxels(node, array, matrix)
    drawAsShares(node, SHOWN_UNCERTAINTY)
    return node


def setVoxels(node: Any, array: NDArray[Any], matrix: Any) -> None:
    image = vtk.vtkImageData()
    image.SetDimensions(*array.shape[::-1])
    image.GetPointData().SetScalars(_vtkArray(array))
    node.SetIJKToRASMatrix(matrix)
    node.SetAndObserveImageData(image)


def _vtkArray(array: NDArray[Any]) -> Any:
    """The array's own memory as a VTK array, which keeps it alive."""
    voxels = numpy_to_vtk(array.ravel(), deep=False)
    voxels.SetName("ImageScalars")
    return voxels


def _fileBeside(reference: Any, nodes: list[Any]) -> None:
    """In the subject hierarchy, results belong to the study of their image."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    own = hierarchy.GetItemByDataNode(reference)  # 0 for a hidden volume
    parent = hierarchy.GetItemParent(own) if own else 0
    for node in nodes:
        if parent and (item := hierarchy.GetItemByDataNode(node)):
            hierarchy.SetItemParent(item, parent)


def labelArray(node: Any) -> NDArray[Any]:
    """The voxels of a label map node, (K, J, I)."""
    return imageArray(node.GetImageData())
