"""What a batch is made of: cases of the scene, of a folder of image files, and the frames of a sequence browser."""

from __future__ import annotations

import csv
import io
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import slicer
import vtk
from slicer.i18n import tr as _

from twinseg.cases import Case, LoadedCase, find_cases, load_case
from twinseg.errors import InputError
from twinseg.tasks import Task
from twinseg.volumes import Volume, write_atomically, write_volume

from .Background import BackgroundTask
from .ParameterNode import SegmentParameters
from .SegmentationResult import COMPUTED, MISSING, MODEL, MODEL_LABELS, PARTS, SECONDS, TABLE, UNCERTAINTY, labelArray
from .Sequences import Candidate, chooseSequences, matchSequence, sceneCandidates

OnVolumes = Callable[[dict[str, Any]], None]
OnDone = Callable[[], None]
OnError = Callable[[Exception], None]
logger = logging.getLogger(__name__)


class BatchCase(Protocol):
    """One row of a batch. `load` gives the volume node of each sequence, `store` takes the segmentation node; both
    return at once and end with a call. `fail` is told why there is no result. `release` takes out of the scene what
    only the batch needed."""

    @property
    def name(self) -> str: ...
    @property
    def sequences(self) -> tuple[str, ...]: ...
    @property
    def withUncertainty(self) -> bool: ...

    def load(self, onLoaded: OnVolumes, onError: OnError) -> None: ...
    def store(self, segmentation: Any, onDone: OnDone, onError: OnError) -> None: ...
    def fail(self, error: Exception) -> None: ...
    def release(self) -> None: ...


# --- the scene -------------------------------------------------------------------------------------------------------


@dataclass
class SceneCase:
    """Volumes that are in the scene; their result stays there, beside them."""

    name: str
    volumes: dict[str, Any]
    withUncertainty: bool = True

    @property
    def sequences(self) -> tuple[str, ...]:
        return tuple(self.volumes)

    def load(self, onLoaded: OnVolumes, onError: OnError) -> None:
        if all(slicer.mrmlScene.IsNodePresent(node) for node in self.volumes.values()):
            onLoaded(self.volumes)
        else:
            onError(InputError(_("its volumes are no longer in the scene; press Find cases again")))

    def store(self, segmentation: Any, onDone: OnDone, onError: OnError) -> None:
        onDone()

    def fail(self, error: Exception) -> None:
        """The table says it."""

    def release(self) -> None:
        """Nothing is only the batch's."""


def sceneCases(task: Task) -> list[SceneCase]:
    """The scene's volumes by study of the subject hierarchy, or, without one, by what their names have in common."""
    groups: dict[tuple[int, str], list[Candidate]] = defaultdict(list)
    for candidate in sceneCandidates():
        matches = [match for text in candidate.texts if (match := matchSequence(text, task))]
        if matches:
            groups[candidate.group, "" if candidate.group else max(matches, key=lambda m: m[1])[2]].append(candidate)
        elif len(task.sequences) == 1:  # every volume may be the one image that such a task wants
            groups[0, candidate.node.GetName()].append(candidate)
    chosen = {key: chooseSequences(task, candidates) for key, candidates in groups.items()}
    names = [name for volumes in chosen.values() for name in volumes]
    if len(names) == len(set(names)) == len(chosen) > 1:  # no name has anything in common: parts of one case
        return [SceneCase(_("Volumes of the scene"), {k: v for volumes in chosen.values() for k, v in volumes.items()})]
    return [SceneCase(_sceneName(key, volumes), volumes) for key, volumes in chosen.items() if volumes]


def _sceneName(key: tuple[int, str], volumes: dict[str, Any]) -> str:
    """The patient and study in the subject hierarchy, what the names have in common, or the first volume's name."""
    study, common = key
    if not study:
        return common or next(iter(volumes.values())).GetName()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    patient = hierarchy.GetItemParent(study)
    names = [hierarchy.GetItemName(item) for item in (patient, study) if item != hierarchy.GetSceneItemID()]
    return ", ".join(name for name in names if name)


# --- a folder --------------------------------------------------------------------------------------------------------


@dataclass
class FolderCase:
    """Image files of one patient at one date. Read and written beside the window; the scene is as before afterwards."""

    case: Case
    task: Task
    results: ResultFolder
    withUncertainty: bool = True
    _nodes: list[Any] = field(default_factory=list)
    _loaded: LoadedCase | None = None
    _background: BackgroundTask | None = None

    @property
    def name(self) -> str:
        return self.case.name

    @property
    def sequences(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.task.sequences if s.name in self.case.images)

    def load(self, onLoaded: OnVolumes, onError: OnError) -> None:
        def addToScene(loaded: LoadedCase) -> None:
            self._loaded = loaded
            volumes = {sequence: _addHidden(f"{self.name} {sequence}", v) for sequence, v in loaded.images.items()}
            self._nodes = list(volumes.values())
            onLoaded(volumes)

        self._background = BackgroundTask(
            lambda: load_case(self.case, self.task, with_labels=False), addToScene, onError
        )

    def store(self, segmentation: Any, onDone: OnDone, onError: OnError) -> None:
        assert self._loaded is not None
        row = self._row() | summary(segmentation)
        affine = self._loaded.reference.affine
        parts = {"": MODEL_LABELS, "_uncertainty": UNCERTAINTY}
        arrays = {
            suffix: labelArray(node).T.copy()
            for suffix, role in parts.items()
            if (node := segmentation.GetNodeReference(role)) is not None
        }
        removeWithDisplay([segmentation, *(segmentation.GetNodeReference(role) for role in PARTS)])

        def write() -> None:
            for suffix, array in arrays.items():
                self.results.write(f"{self.name}{suffix}.nii.gz", Volume(array, affine))
            self.results.addRow(row)

        self._background = BackgroundTask(write, lambda _nothing: onDone(), onError)

    def fail(self, error: Exception) -> None:
        try:
            self.results.addRow(self._row() | {"failed": str(error)})
        except InputError as second:  # such as a full disk, which may be why it failed
            logger.warning("batch: %s", second)

    def _row(self) -> dict[str, Any]:
        case = self.case
        return {"case": case.name, "patient": case.patient, "site": case.site, "date": case.date, "failed": ""}

    def release(self) -> None:
        if self._background is not None:
            self._background.abandon()  # it is read in vain; what is being written is written to the end
            self._background = None
        removeWithDisplay(self._nodes)
        self._nodes, self._loaded = [], None


@dataclass
class ResultFolder:
    """Where a batch writes: a folder of its own beside that of the images, which is never written to."""

    path: Path
    _rows: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def beside(images: Path) -> ResultFolder:
        """A name that is not taken yet; the folder is made when the first result is written."""
        images = images.resolve()
        if not images.name:
            raise InputError(_("{folder}: name a folder in it, not the whole disk").format(folder=images))
        number = 1
        while (path := images.with_name(f"{images.name}-twinseg{f'-{number}' if number > 1 else ''}")).exists():
            number += 1
        return ResultFolder(path)

    def write(self, name: str, volume: Volume) -> None:
        """Write a volume. Raises InputError where the folder cannot be made or written to."""
        self._make()
        write_volume(self.path / name, volume)

    def _make(self) -> None:
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            text = _("{folder}: it cannot be made ({reason}); copy the images to where you may write")
            raise InputError(text.format(folder=self.path, reason=error.strerror)) from error

    def addRow(self, row: dict[str, Any]) -> None:
        """Add a case to volumes.csv, which is whole after each case. Raises InputError like `write`."""
        self._make()
        self._rows.append(row)
        columns = list(dict.fromkeys(column for entry in self._rows for column in entry))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomically(self.path / "volumes.csv", text.getvalue().encode("utf-8-sig"))  # Excel wants the mark


def folderCases(folder: Path, task: Task) -> tuple[list[FolderCase], ResultFolder]:
    """The cases of a folder, and where their results go. Raises InputError where there is none."""
    results = ResultFolder.beside(folder)
    return [FolderCase(case, task, results) for case in find_cases(folder, task)], results


def summary(segmentation: Any) -> dict[str, Any]:
    """What is worth a line of a table: the regions' volumes in mL with their intervals, and what made them."""
    entries: dict[str, Any] = {}
    table = segmentation.GetNodeReference(TABLE)
    for row in range(table.GetNumberOfRows()):
        region = table.GetCellText(row, 0).split()[0]
        for column, title in enumerate(("mL", "mL from", "mL to"), start=1):
            entries[f"{region} {title}"] = table.GetTable().GetValue(row, column).ToDouble()
        entries[f"{region} interval"] = table.GetCellText(row, 4)
    attributes = {"missing": MISSING, "model": MODEL, "computed": COMPUTED, "seconds": SECONDS}
    return entries | {title: segmentation.GetAttribute(name) for title, name in attributes.items()}


# --- a sequence browser ----------------------------------------------------------------------------------------------


@dataclass
class FrameCase:
    """One frame of a sequence browser. Its segmentation is put into a sequence that the browser shows with the rest."""

    name: str
    frames: dict[str, Any]  # sequence name -> vtkMRMLSequenceNode
    indexValue: str
    browser: Any
    task: Task
    withUncertainty: bool = False  # a browser shows one result a frame
    _nodes: list[Any] = field(default_factory=list)

    @property
    def sequences(self) -> tuple[str, ...]:
        return tuple(self.frames)

    def load(self, onLoaded: OnVolumes, onError: OnError) -> None:
        if not all(slicer.mrmlScene.IsNodePresent(node) for node in (self.browser, *self.frames.values())):
            onError(InputError(_("its sequence is no longer in the scene; press Find cases again")))
            return
        volumes = {name: self._copyFrame(name, frames) for name, frames in self.frames.items()}
        self._nodes = list(volumes.values())
        onLoaded(volumes)

    def _copyFrame(self, sequence: str, frames: Any) -> Any:
        volume = frames.GetDataNodeAtValue(self.indexValue, False)
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", f"{self.name} {sequence}")
        node.SetHideFromEditors(True)
        node.CopyContent(volume, False)
        return node

    def store(self, segmentation: Any, onDone: OnDone, onError: OnError) -> None:
        name = f"{self.browser.GetName()} {self.task.name}"
        results = next((n for n in self._synchronized() if n.GetName() == name), None)
        if results is None:
            results = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
            master = self.browser.GetMasterSequenceNode()
            results.SetIndexName(master.GetIndexName())
            results.SetIndexUnit(master.GetIndexUnit())
            results.SetIndexType(master.GetIndexType())
        results.SetDataNodeAtValue(segmentation, self.indexValue)
        removeWithDisplay([segmentation, *(segmentation.GetNodeReference(role) for role in PARTS)])
        if results not in self._synchronized():
            self.browser.AddSynchronizedSequenceNode(results)
        onDone()

    def fail(self, error: Exception) -> None:
        """The table says it."""

    def _synchronized(self) -> list[Any]:
        return synchronizedSequences(self.browser)

    def release(self) -> None:
        removeWithDisplay(self._nodes)
        self._nodes = []


def frameCases(browser: Any, task: Task) -> list[FrameCase]:
    """The frames of a browser. Several sequences of volumes are the task's by their names, a single one is its only
    one. Raises InputError where none fits."""
    volumes = [
        node
        for node in synchronizedSequences(browser)
        if node.GetNumberOfDataNodes() and node.GetNthDataNode(0).IsA("vtkMRMLScalarVolumeNode")
    ]
    found = {match[0]: node for node in volumes if (match := matchSequence(node.GetName(), task))}
    if not found and len(volumes) == len(task.sequences) == 1:
        found = {task.sequences[0].name: volumes[0]}
    if not found:
        wanted = ", ".join(sequence.name for sequence in task.sequences)
        text = _("{browser}: none of its sequences is named {wanted}; rename them in the Data module")
        raise InputError(text.format(browser=browser.GetName(), wanted=wanted))
    master = browser.GetMasterSequenceNode()
    values = [master.GetNthIndexValue(index) for index in range(master.GetNumberOfDataNodes())]
    unit = master.GetIndexUnit() or ""
    return [
        FrameCase(f"{browser.GetName()} {value} {unit}".strip(), frames, value, browser, task)
        for value in values
        if (frames := {name: node for name, node in found.items() if node.GetDataNodeAtValue(value, False)})
    ]


def synchronizedSequences(browser: Any) -> list[Any]:
    """The sequences that a browser steps through together, the master first."""
    collection = vtk.vtkCollection()
    browser.GetSynchronizedSequenceNodes(collection, True)
    return [collection.GetItemAsObject(index) for index in range(collection.GetNumberOfItems())]


# --- nodes -----------------------------------------------------------------------------------------------------------


def _addHidden(name: str, volume: Volume) -> Any:
    """A volume node that only the batch sees: not shown, not offered in any selector."""
    node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScalarVolumeNode")
    node.UnRegister(None)
    node.SetName(name)
    node.SetHideFromEditors(True)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(volume.affine))
    slicer.mrmlScene.AddNode(node)
    slicer.util.updateVolumeFromArray(node, volume.array.T)
    return node


def removeWithDisplay(nodes: list[Any]) -> None:
    """Take nodes out of the scene together with their display and storage nodes, which would stay behind."""
    for node in [node for node in nodes if node is not None and slicer.mrmlScene.IsNodePresent(node)]:
        parts = [node.GetNthDisplayNode(i) for i in range(node.GetNumberOfDisplayNodes())] if _isShown(node) else []
        parts += [node.GetNthStorageNode(i) for i in range(node.GetNumberOfStorageNodes())]
        for part in [node, *(part for part in parts if part is not None)]:
            slicer.mrmlScene.RemoveNode(part)


def _isShown(node: Any) -> bool:
    return bool(node.IsA("vtkMRMLDisplayableNode"))


# --- parameters ------------------------------------------------------------------------------------------------------


@dataclass
class BatchParameters:
    """`SegmentParameters` as they were when the batch was started."""

    task: str
    model: str = ""
    device: str = "auto"
    flips: bool = False
    uncertainty: bool = True
    reference: str = ""
    replace: bool = False

    @staticmethod
    def of(parameters: SegmentParameters) -> BatchParameters:
        """A copy of what the user has chosen."""
        return BatchParameters(**{f.name: getattr(parameters, f.name) for f in fields(BatchParameters)})

    def fitting(self, case: BatchCase, volumes: dict[str, Any]) -> BatchParameters:
        """As far as they fit a case: the sequence that the user chose as reference may be missing in it."""
        reference = self.reference if self.reference in volumes else ""
        return replace(self, reference=reference, uncertainty=self.uncertainty and case.withUncertainty)
