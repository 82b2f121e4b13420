"""A twin's scans in the scene: by patient and date, stepped through by a sequence browser; and maps over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import qt
import slicer
from numpy.typing import NDArray
from slicer.i18n import tr as _

from twinseg.tasks import Task, load_task
from twinseg.volumes import Volume, resample_to

from .Background import BackgroundTask
from .BatchCases import removeWithDisplay
from .Corrections import editLabels, labelsOf
from .SegmentationResult import PreparedResult, addSegments, prepareLabels, regionSegments, setDisplay, setVoxels
from .ShareOverlay import drawAsShares
from .TwinNodes import TwinNodes, copyInto, makeColors
from .TwinRecord import TwinRecord
from .VolumeBridge import nodeImage

SCAN, BROWSER, CHANGE, PROBABILITY = "scan", "browser", "change", "probability"
KINDS = {  # the first is what the browser goes by
    "image": "vtkMRMLScalarVolumeNode",
    "to baseline": "vtkMRMLLinearTransformNode",
    "segmentation": "vtkMRMLSegmentationNode",
}
CHANGES = (
    ("never tumour", (0.0, 0.0, 0.0, 0.0)),
    ("gone", (0.20, 0.55, 0.95, 1.0)),
    ("stayed", (0.95, 0.85, 0.35, 1.0)),
    ("new", (0.85, 0.12, 0.15, 1.0)),
)
OPACITY = 0.6
SHOWN_PROBABILITY = 0.05
OPENED = "TwinSeg.opened"
"""Attribute of a segmentation that was opened to be edited, and is not handed back."""


@dataclass(frozen=True)
class _Loaded:
    """A scan, read: its image, the grey values from black to white, and its segmentation, all on its grid."""

    image: Volume
    voxels: NDArray[Any]
    window: tuple[float, float]
    drawn: PreparedResult


class TwinLoader:
    """Loads the scans of a twin, one image of each, beside the window; then `onDone(browser)` or `onError`.

    Each scan lies below its day in the subject hierarchy, under the transform to the baseline; a browser steps through
    copies of them that share their voxels.
    """

    def __init__(
        self, record: TwinRecord, sequence: str, onDone: Callable[[Any], None], onError: Callable[[Exception], None]
    ) -> None:
        self._record, self._sequence = record, sequence
        self._task = load_task(record.twin.task)
        self._nodes = TwinNodes(record.pseudonym)
        self._onDone, self._onError = onDone, onError
        self._waiting = [scan for scan in record.scans if sequence in scan.images]
        self._sequences: dict[str, Any] = {}
        self._background: BackgroundTask | None = None
        self._isAbandoned = self._isFinished = False
        self._inSteps(self._prepare())

    def abandon(self) -> None:
        """Stop; what is loaded stays."""
        self._isAbandoned = True
        if self._background is not None:
            self._background.abandon()

    def _inSteps(self, steps: Iterator[None]) -> None:
        """Take one step, and the others when the window had its turn; then the next scan."""
        if self._isAbandoned:
            return
        try:
            next(steps)
        except StopIteration:
            self._next()
        except Exception as error:  # whatever it is, the panel must not wait for ever
            self._onError(error)
        else:
            qt.QTimer.singleShot(0, lambda: self._inSteps(steps))

    def _prepare(self) -> Iterator[None]:
        shown = [shownNode(self._record, kind) for kind in KINDS]
        if (browser := self._nodes.find(BROWSER)) is not None:
            slicer.mrmlScene.RemoveNode(browser)  # first, or it would make anew what it shows
        for node in [*shown, *self._nodes.all(BROWSER), *self._nodes.all(SCAN)]:
            removeWithDisplay([node])
            yield
        for kind in KINDS:
            self._sequences[kind] = self._makeSequence(kind)
            yield

    def _makeSequence(self, kind: str) -> Any:
        name = _("{what} by day").format(what=self._title(kind))
        node = self._nodes.make("vtkMRMLSequenceNode", f"{BROWSER} {kind}", name)
        node.SetIndexName("day")
        node.SetIndexUnit("d")
        node.SetIndexType(slicer.vtkMRMLSequenceNode.NumericIndex)
        return node

    def _next(self) -> None:
        if not self._waiting:
            if not self._isFinished:
                self._isFinished = True
                self._inSteps(self._finish())
            return
        scan = self._waiting.pop(0)
        record, sequence, task = self._record, self._sequence, self._task
        self._background = BackgroundTask(
            lambda: _read(record, scan, sequence, task),
            lambda loaded: self._inSteps(self._add(scan, loaded)),
            self._onError,
        )

    def _add(self, scan: Any, loaded: _Loaded) -> Iterator[None]:
        transform = self._make("to baseline", scan)
        transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(scan.to_baseline))
        copyInto(self._sequences["to baseline"], transform, f"{scan.day:g}")
        yield
        volume = self._make("image", scan)
        yield
        with slicer.util.NodeModify(volume):
            setVoxels(volume, loaded.voxels, slicer.util.vtkMatrixFromArray(loaded.image.affine))
            _setWindow(volume, loaded.window)
            volume.SetAndObserveTransformNodeID(transform.GetID())
        yield
        shared, image = self._sequences["image"], volume.GetImageData()
        volume.SetAndObserveImageData(None)  # not to be copied
        copy = copyInto(shared, volume, f"{scan.day:g}")
        for node in (copy, volume):
            node.SetAndObserveImageData(image)
        yield
        segmentation = self._make("segmentation", scan)
        yield
        with slicer.util.NodeModify(segmentation):
            segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
            addSegments(segmentation, loaded.drawn, self._task, slicer.util.vtkMatrixFromArray(loaded.image.affine))
            setDisplay(segmentation, self._task)
            segmentation.GetDisplayNode().SetVisibility(False)  # the browser shows the scan's copy
            segmentation.SetAndObserveTransformNodeID(transform.GetID())
        yield
        copyInto(self._sequences["segmentation"], segmentation, f"{scan.day:g}")
        yield
        for name in regionSegments(self._task):  # its labels are what is edited; regions are made of them
            segmentation.GetSegmentation().RemoveSegment(name)

    def _make(self, kind: str, scan: Any) -> Any:
        name = _("day {day:g} {what}").format(day=scan.day, what=self._title(kind))
        return self._nodes.make(KINDS[kind], f"{SCAN} {scan.name} {kind}", name, scan.day)

    def _title(self, kind: str) -> str:
        return self._sequence if kind == "image" else _(kind)

    def _finish(self) -> Iterator[None]:
        browser = self._nodes.make("vtkMRMLSequenceBrowserNode", BROWSER, _("scans"))
        yield
        shown = [kind for kind in KINDS if self._sequences[kind].GetNumberOfDataNodes()]
        for kind in shown:
            browser.AddSynchronizedSequenceNode(self._sequences[kind])
            yield
        slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
        yield
        proxies = {kind: browser.GetProxyNode(self._sequences[kind]) for kind in shown}
        for kind, proxy in proxies.items():
            with slicer.util.NodeModify(proxy):
                proxy.SetName(
                    _("{patient} {what}, shown").format(patient=self._nodes.pseudonym, what=self._title(kind))
                )
                if kind != "to baseline":
                    proxy.SetAndObserveTransformNodeID(proxies["to baseline"].GetID())
            self._nodes.file(proxy)
            yield
        if "segmentation" in proxies:
            proxies["segmentation"].CreateDefaultDisplayNodes()
            setDisplay(proxies["segmentation"], self._task)
            yield
        slicer.util.setSliceViewerLayers(background=proxies["image"], fit=True)
        yield
        self._onDone(browser)


def _read(record: TwinRecord, scan: Any, sequence: str, task: Task) -> _Loaded:
    image, labels = record.twin.image(scan, sequence), record.twin.labels(scan)
    if labels is None:
        labels = Volume(np.zeros(image.shape, np.uint8), image.affine)
    image = resample_to(image, labels.affine, labels.shape)  # a sequence may have another grid than what was drawn on
    drawn = prepareLabels(np.ascontiguousarray(labels.array.T), task)
    low, high = np.percentile(image.array[::2, ::2, ::2], (1, 99.5))
    return _Loaded(image, np.ascontiguousarray(image.array.T), (float(low), float(high)), drawn)


def _setWindow(volume: Any, window: tuple[float, float]) -> None:
    """Give a volume a display with these grey values from black to white."""
    display = volume.GetDisplayNode()
    if display is None:  # not by CreateDefaultDisplayNodes, which first looks at all voxels
        display = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeDisplayNode")
        display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
        volume.SetAndObserveDisplayNodeID(display.GetID())
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(*window)


def shownNode(record: TwinRecord, kind: str) -> Any:
    """The node by which the browser shows its scan's part, one of `KINDS`; None before the scans were loaded."""
    nodes = TwinNodes(record.pseudonym)
    browser, sequence = nodes.find(BROWSER), nodes.find(f"{BROWSER} {kind}")
    return browser.GetProxyNode(sequence) if browser is not None and sequence is not None else None


def shownScan(record: TwinRecord) -> Any:
    """The scan that the browser shows; None where its image and its segmentation are not in the scene."""
    browser = TwinNodes(record.pseudonym).find(BROWSER)
    if browser is None:
        return None
    value = browser.GetMasterSequenceNode().GetNthIndexValue(browser.GetSelectedItemNumber())
    scan = next((scan for scan in record.scans if f"{scan.day:g}" == value), None)
    return scan if scan is not None and None not in _ownNodes(record, scan) else None


def showScan(record: TwinRecord, scan: Any) -> None:
    """Step the browser to a scan, and the slice views to its largest lesion."""
    nodes = TwinNodes(record.pseudonym)
    _hideEdited(record)
    if (browser := nodes.find(BROWSER)) is not None:
        browser.SetSelectedItemByIndexValue(f"{scan.day:g}", True)
    shown, own = shownNode(record, "image"), _ownNodes(record, scan)[0]
    if shown is not None and own is not None:  # scanners differ in what is white
        display = own.GetDisplayNode()
        _setWindow(shown, (display.GetWindowLevelMin(), display.GetWindowLevelMax()))
    jumpTo(record, scan.name)


def editScan(record: TwinRecord, scan: Any) -> None:
    """Open a scan's own segmentation in the Segment Editor, over its image and in place of the browser's copy."""
    image, node = _ownNodes(record, scan)
    _showSegmentation(record, False)
    node.SetDisplayVisibility(True)
    node.SetAttribute(OPENED, "1")
    slicer.util.setSliceViewerLayers(background=image)
    editLabels(node, image, load_task(record.twin.task))


def openedScans(record: TwinRecord) -> list[Any]:
    """The scans that were opened to be edited and are not handed back: what is drawn there stands in the scene only."""
    nodes = ((scan, _ownNodes(record, scan)[1]) for scan in record.scans)
    return [scan for scan, node in nodes if node is not None and node.GetAttribute(OPENED)]


def handedBack(record: TwinRecord, scan: Any) -> None:
    """What was drawn into a scan is in the twin now."""
    if (node := _ownNodes(record, scan)[1]) is not None:
        node.RemoveAttribute(OPENED)


def drawnLabels(record: TwinRecord, scan: Any) -> Volume:
    """The labels of a scan's own segmentation, on the grid of its image. Raises ValueError where they are off it."""
    image, node = _ownNodes(record, scan)
    if node.GetParentTransformNode() is not image.GetParentTransformNode():
        text = _("{name} is under another transform than {image}: put both under the same one")
        raise ValueError(text.format(name=node.GetName(), image=image.GetName()))
    grid = nodeImage(image)
    return Volume(labelsOf(node, grid, load_task(record.twin.task)).T, grid.localMatrix)


def showCorrected(record: TwinRecord, scan: Any, labels: Volume) -> None:
    """Show a scan's corrected labels by the browser, with the regions that they make; what was edited is hidden."""
    nodes, task, node = TwinNodes(record.pseudonym), load_task(record.twin.task), _ownNodes(record, scan)[1]
    if shownScan(record) is None or node is None:
        return  # it was taken out of the scene meanwhile
    copy = copyInto(nodes.find(f"{BROWSER} segmentation"), node, f"{scan.day:g}")
    copy.GetSegmentation().RemoveAllSegments()
    prepared = prepareLabels(np.ascontiguousarray(labels.array.T), task)
    addSegments(copy, prepared, task, slicer.util.vtkMatrixFromArray(labels.affine))
    _hideEdited(record)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(nodes.find(BROWSER))


def _hideEdited(record: TwinRecord) -> None:
    """Let the browser's copy be seen again in place of the segmentation that was edited."""
    for node in TwinNodes(record.pseudonym).all(SCAN):
        if node.IsA("vtkMRMLSegmentationNode") and node.GetDisplayVisibility():
            node.SetDisplayVisibility(False)
            _showSegmentation(record, True)


def _ownNodes(record: TwinRecord, scan: Any) -> tuple[Any, Any]:
    """A scan's image and segmentation that lie below its day; None for what is not in the scene."""
    nodes = TwinNodes(record.pseudonym)
    return nodes.find(f"{SCAN} {scan.name} image"), nodes.find(f"{SCAN} {scan.name} segmentation")


def jumpTo(record: TwinRecord, scan: str) -> None:
    """Let the slice views show the largest lesion of a scan."""
    if (centre := record.centre(scan)) is not None:
        slicer.modules.markups.logic().JumpSlicesToLocation(*centre, True)


def showChange(record: TwinRecord, change: Volume, before: Any, after: Any) -> Any:
    """Lay the change of a region between two scans (`twinseg.twin.timeline.change_map`) over the images."""
    nodes = TwinNodes(record.pseudonym)
    name = _("change from day {before:g} to {after:g}").format(before=before.day, after=after.day)
    node = nodes.make("vtkMRMLLabelMapVolumeNode", CHANGE, name)
    node.SetName(f"{record.pseudonym} {name}")
    setVoxels(node, np.ascontiguousarray(change.array.T), slicer.util.vtkMatrixFromArray(change.affine))
    colors = makeColors(nodes, "colours of the change", _("change"), [(_(title), rgba) for title, rgba in CHANGES])
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAndObserveColorNodeID(colors.GetID())
    slicer.util.setSliceViewerLayers(label=node, labelOpacity=OPACITY)
    _showSegmentation(record, False)  # whose colours would mix with these
    jumpTo(record, after.name)
    return node


def showProbability(record: TwinRecord, probability: Volume, day: float, scenario: str) -> Any:
    """Lay the probability of tumour on a day, if treated so, over the images: from 5 % (yellow) to certainty (red)."""
    nodes = TwinNodes(record.pseudonym)
    name = _("probability of tumour on day {day:g}, {scenario}").format(day=day, scenario=scenario)
    node = nodes.make("vtkMRMLScalarVolumeNode", PROBABILITY, name)
    node.SetName(f"{record.pseudonym} {name}")
    setVoxels(node, np.ascontiguousarray(probability.array.T), slicer.util.vtkMatrixFromArray(probability.affine))
    drawAsShares(node, SHOWN_PROBABILITY)
    slicer.util.setSliceViewerLayers(foreground=node, foregroundOpacity=OPACITY)
    _showSegmentation(record, False)  # which would cover it
    return node


def hideMaps(record: TwinRecord | None) -> None:
    """Take change and probability out of the slice views."""
    slicer.util.setSliceViewerLayers(foreground=None, label=None)
    if record is not None:
        _showSegmentation(record, True)


def _showSegmentation(record: TwinRecord, shown: bool) -> None:
    """Show or hide the segmentation of the scan that the browser shows."""
    node = shownNode(record, "segmentation")
    if node is not None:
        node.GetDisplayNode().SetVisibility(shown)
