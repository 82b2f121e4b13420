"""From volume nodes to a segmentation in the scene: checks, hands over to the worker, takes the result in."""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import slicer
from slicer.i18n import tr as _

import twinseg
from twinseg.tasks import Task, load_task

from .Background import BackgroundTask
from .Models import hasStarter
from .ParameterNode import SegmentParameters
from .SegmentationResult import IMAGE, PreparedResult, addToScene, prepareResult, results
from .TwinRecord import twinsFolder
from .VolumeBridge import NodeImage, nodeImage, refusal
from .Worker import Signal, WorkerError

OnFinished = Callable[[Any], None]
OnError = Callable[[WorkerError], None]


class Worker(Protocol):
    """What the segmenter needs of the worker process."""

    def request(
        self,
        message: dict[str, Any],
        onResult: Callable[[dict[str, Any]], None],
        onError: Callable[[WorkerError], None],
        onProgress: Callable[[float, str], None] = ...,
        onNotice: Callable[[str], None] = ...,
    ) -> int: ...

    def cancel(self, number: int) -> None: ...


@dataclass
class _Run:
    """One segmentation under way."""

    task: Task
    nodes: dict[str, Any]
    images: dict[str, NodeImage]
    reference: str
    message: dict[str, Any]
    replaced: Any
    folder: Any
    started: float
    onFinished: OnFinished
    onError: OnError
    background: BackgroundTask | None = None
    request: int = 0
    done: float = 0.0

    @property
    def kind(self) -> tuple[str, str, bool]:
        """What decides how long it takes."""
        return self.task.name, self.message["device"], self.message["flips"]

    @property
    def uncertaintyFile(self) -> Path | None:
        return Path(file) if (file := self.message["uncertainty"]) else None


class Segmenter:
    """Segments one case at a time, beside the window. Nothing is put into the scene before the result is whole.

    Signals: `progressed(done, stage)`, done from 0 to 1; `noticed(message)`, such as a fall-back to the CPU;
    `runningChanged()`.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._run: _Run | None = None
        self._durations: dict[tuple[str, str, bool], float] = {}
        self.progressed, self.noticed, self.runningChanged = Signal(), Signal(), Signal()

    @property
    def isRunning(self) -> bool:
        return self._run is not None

    @property
    def secondsLeft(self) -> float | None:
        """How long the present run will take, as the last one of its kind did; without one, as fast as so far."""
        if self._run is None:
            return None
        elapsed = time.monotonic() - self._run.started
        if (expected := self._durations.get(self._run.kind)) is not None:
            return max(0.0, expected - elapsed)
        return elapsed * (1 / self._run.done - 1) if self._run.done > 0.1 else None

    def whyNot(self, volumes: Mapping[str, Any], parameters: SegmentParameters) -> str:
        """Why these volumes cannot be segmented, in words; empty where they can."""
        if self.isRunning:
            return _("A segmentation is running")
        try:
            task = load_task(parameters.task)
        except ValueError as error:
            return str(error)
        chosen = {sequence.name: node for sequence in task.sequences if (node := volumes.get(sequence.name))}
        if not chosen:
            return _("Select at least one of {names}").format(names=", ".join(s.title for s in task.sequences))
        for name, node in chosen.items():
            if reason := refusal(node):
                return reason
            if twin := next((other for other in chosen if other != name and chosen[other] is node), None):
                return _("{volume} is selected twice, as {first} and {second}: select another for one of them").format(
                    volume=node.GetName(), first=name, second=twin
                )
        if parameters.reference and parameters.reference not in chosen:
            return _("The result should lie on the grid of {name}, which is not selected").format(
                name=parameters.reference
            )
        if not parameters.model and not hasStarter(task):
            return _("No model for {task} is on this computer: train one, or choose another task").format(
                task=task.title
            )
        if parameters.model and not Path(parameters.model).is_file():
            return _("{path}: this model is not on this computer; choose another").format(path=parameters.model)
        if (twin := twinFolder(parameters)) is not None and not twin.is_dir():
            return _("The twin {name} is not on this computer: choose another patient, or none").format(name=twin.name)
        return ""

    def segment(
        self, volumes: Mapping[str, Any], parameters: SegmentParameters, onFinished: OnFinished, onError: OnError
    ) -> None:
        """Start to segment; returns at once. Ends with `onFinished(segmentation node)` or `onError(WorkerError)`.

        Raises ValueError where `whyNot` names a reason.
        """
        if reason := self.whyNot(volumes, parameters):
            raise ValueError(reason)
        task = load_task(parameters.task)
        nodes = {sequence.name: node for sequence in task.sequences if (node := volumes.get(sequence.name))}
        images = {name: nodeImage(node) for name, node in nodes.items()}
        reference = parameters.reference or finestSequence(images)
        folder = tempfile.TemporaryDirectory(
            prefix="TwinSegSlicer-", dir=slicer.app.temporaryPath, ignore_cleanup_errors=True
        )
        path = Path(folder.name)
        twin = twinFolder(parameters)
        message = {
            "do": "segment",
            "task": task.name,
            "model": parameters.model or None,
            "device": parameters.device,
            "flips": parameters.flips,
            "twin": str(twin) if twin is not None else None,
            "images": {
                name: {"array": str(path / f"{name}.npy"), "affine": image.worldMatrix.tolist()}
                for name, image in images.items()
            },
            "reference": reference,
            "labels": str(path / "labels.npy"),
            "uncertainty": str(path / "uncertainty.npy") if parameters.uncertainty else None,
        }
        replaced = earlierResult(nodes[reference], reference, task.name) if parameters.replace else None
        started = time.monotonic()
        self._run = _Run(task, nodes, images, reference, message, replaced, folder, started, onFinished, onError)
        self.runningChanged.emit()
        self.progressed.emit(0.0, _("handing the images over"))
        self._run.background = BackgroundTask(lambda: saveImages(images, path), self._onSaved, self._onFault)

    def cancel(self) -> None:
        """Stop; `onError` is called with the kind "cancelled" within a second, and the scene stays as it was."""
        run = self._run
        if run is None:
            return
        if run.request:
            self._worker.cancel(run.request)
        if run.background is not None:  # it writes or reads files: nothing to wait for
            self._fail(WorkerError("cancelled", _("Cancelled; the scene is as it was.")))

    def abandon(self) -> None:
        """Forget the run and tell nobody: the module goes. To be called when the worker was stopped."""
        if self._run is not None:
            self._end()

    def _onSaved(self, _nothing: Any) -> None:
        run = self._run
        assert run is not None
        run.background = None
        run.request = self._worker.request(run.message, self._onAnswer, self._fail, self._onProgress, self.noticed.emit)

    def _onProgress(self, done: float, stage: str) -> None:
        assert self._run is not None
        self._run.done = done
        self.progressed.emit(done, stage)

    def _onAnswer(self, answer: dict[str, Any]) -> None:
        run = self._run
        assert run is not None
        run.request = 0
        if run.message["twin"] and not answer["delta"]:
            self.noticed.emit(_("The patient's adapted model is not in use any more: the model itself has segmented."))
        self.progressed.emit(1.0, _("putting the result into the scene"))
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        made = {**answer, "version": twinseg.__version__, "time": now}
        run.background = BackgroundTask(
            lambda: prepareResult(Path(run.message["labels"]), run.uncertaintyFile, run.task),
            lambda prepared: self._take(prepared, made),
            self._onFault,
        )

    def _take(self, prepared: PreparedResult, made: dict[str, Any]) -> None:
        run = self._run
        assert run is not None
        run.background = None
        if not all(slicer.mrmlScene.IsNodePresent(node) for node in run.nodes.values()):
            self._fail(WorkerError("input", _("The images were taken out of the scene while they were segmented.")))
            return
        replaced = run.replaced if run.replaced and slicer.mrmlScene.IsNodePresent(run.replaced) else None
        grid = run.images[run.reference]
        try:
            node = addToScene(prepared, run.nodes, run.reference, grid, run.task, made, replaced)
        except Exception as error:
            self._onFault(error)
            raise
        self._durations[run.kind] = time.monotonic() - run.started
        self._end()
        run.onFinished(node)

    def _onFault(self, error: Exception) -> None:
        assert self._run is not None
        self._run.background = None
        self._fail(WorkerError("fault", f"{type(error).__name__}: {error}"))

    def _fail(self, error: WorkerError) -> None:
        run = self._run
        assert run is not None
        self._end()
        run.onError(error)

    def _end(self) -> None:
        run, self._run = self._run, None
        assert run is not None
        if run.background is not None:  # it may still write: the folder goes when it has done so
            run.background.abandon(then=run.folder.cleanup)
        else:
            run.folder.cleanup()
        self.runningChanged.emit()


def twinFolder(parameters: SegmentParameters) -> Path | None:
    """The folder of the twin whose adapted model is to segment; None: no patient's."""
    name = getattr(parameters, "twin", "")
    return twinsFolder() / name if name else None


def saveImages(images: Mapping[str, NodeImage], folder: Path) -> None:
    """Write each image as .npy for the worker. For a thread."""
    for name, image in images.items():
        image.save(folder / f"{name}.npy")


def finestSequence(images: Mapping[str, NodeImage]) -> str:
    """The sequence with the smallest voxels; of equal ones, the first."""
    return min(images, key=lambda name: round(abs(np.linalg.det(images[name].worldMatrix[:3, :3])), 3))


def earlierResult(reference: Any, sequence: str, task: str) -> Any:
    """The last segmentation that was made of this image for this task; None where there is none."""
    made = [node for node in results(task) if node.GetNodeReference(IMAGE + sequence) is reference]
    return made[-1] if made else None
