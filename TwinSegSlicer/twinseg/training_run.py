"""`twinseg train`: from a folder of labelled cases to a model file, its checkpoint and its curve.

`train` is that of a segmentation; what any training needs stands below it, from `run_to_model` on, and serves
`classification_run` too.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import logging
import math
import os
import platform
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twinseg import __version__
from twinseg.calibration import Calibration
from twinseg.calibration_measures import calibrate_on
from twinseg.cases import Case, Split, find_cases, load_case, split_cases
from twinseg.errors import Cancelled, InputError
from twinseg.home import data_folder
from twinseg.inference import Report
from twinseg.model_file import ModelCard, load_model, save_model
from twinseg.network import NetworkConfig, ViTUNet, build_network, count_parameters, preset
from twinseg.pictures import png
from twinseg.preprocessing import SPACING_TOLERANCE, PreparedCase, label_values, prepare
from twinseg.segmentation import LoadedModel
from twinseg.tasks import Task
from twinseg.trainer import Trainer, TrainingProgress
from twinseg.training import SegmentationConfig, SegmentationTrainer
from twinseg.transfer import take_weights
from twinseg.volumes import read_image, to_ras, write_atomically

logger = logging.getLogger(__name__)

DEFAULT_MINUTES = {"tiny": 10.0, "small": 50.0, "base": 480.0}
"""How long a training lasts when neither epochs nor minutes are given."""

CHECKPOINT_SECONDS = 120.0


@dataclass(frozen=True)
class TrainingRequest:
    """What `twinseg train` was asked for; see the command's help for the meaning of each."""

    data: Path
    task: Task
    output: Path
    init: Path | None = None
    preset: str = "small"
    epochs: int | None = None
    minutes: float | None = None
    learning_rate: float | None = None
    device: torch.device | str = "cpu"
    seed: int = 0
    resume: bool = False

    @property
    def checkpoint(self) -> Path:
        """Where the training can be gone on from."""
        return self.output.with_suffix(".checkpoint")

    @property
    def curve(self) -> Path:
        """The picture of the training."""
        return self.output.with_suffix(".png")

    def options(self, default_minutes: float) -> dict[str, Any]:
        """What a `TrainingConfig` is told: for how long, at which rate, from which seed; else its own defaults."""
        rate = {} if self.learning_rate is None else {"learning_rate": self.learning_rate}
        if self.epochs is not None:
            return {"epochs": self.epochs, "seed": self.seed, **rate}
        return {"minutes": default_minutes if self.minutes is None else self.minutes, "seed": self.seed, **rate}


def train(request: TrainingRequest, report: Report = lambda done, stage: None) -> dict[str, Any]:
    """Train a segmentation model on the training part of a folder; keep the weights best on its validation part.

    The volume intervals are calibrated on the validation part too (`twinseg.calibration`). It chose the weights, so its
    patients are not wholly new to the network; the choice is one among few, and costs the intervals little. With fewer
    than nine such patients the intervals stay as they are.

    The test part is not looked at. Returns what was measured. Raises InputError for data that cannot be trained on,
    Cancelled as `run_to_model`.
    """
    check_output(request.output)
    cases = find_cases(request.data, request.task, require_labels=True)
    torch.manual_seed(request.seed)
    network, parent = start(request)
    split = split_cases(split_file(request.data), cases)
    task = fit_to_data(request.task, [case for case in cases if case.name in split.train])
    if parent is not None and not np.allclose(parent.task.spacing, task.spacing, rtol=SPACING_TOLERANCE):
        made, now = (" × ".join(f"{size:g}" for size in one.spacing) for one in (parent.task, task))
        logger.warning("%s was trained at a spacing of %s mm; this training is at %s mm", request.init, made, now)
    training = prepare_all(cases, split.train, task, report)
    validation = prepare_all(cases, split.validation, task, report)
    config = SegmentationConfig(**request.options(DEFAULT_MINUTES[request.preset]))
    trainer = SegmentationTrainer(network, task, training, validation, config, request.device)
    parent_hash = None if parent is None else parent.hash
    description = network.config.to_dict()

    def calibrate(weights: dict[str, Tensor], told: Report) -> Calibration:
        network.load_state_dict(weights)
        chosen = [case for case in cases if case.name in split.validation]
        data, best = request.data.resolve().name, LoadedModel(network, task, hash="")
        return calibrate_on(chosen, best, data=data, part="validation", device=request.device, report=told)[0]

    return run_to_model(
        trainer,
        request,
        task,
        split,
        network=description,
        parent=parent_hash,
        calibrate=calibrate if split.validation else None,
        report=report,
    )


def fit_to_data(task: Task, cases: Sequence[Case]) -> Task:
    """The task on a coarser grid where most of its images are coarser than it asks for: finer holds nothing more.

    The patch keeps its size in mm, to the next multiple of the network's strides.
    """
    spacings = []
    for case in cases[:50]:
        name = next(sequence.name for sequence in task.sequences if sequence.name in case.images)
        spacings.append(to_ras(read_image(case.images[name], case.channels.get(name))).spacing)
    wanted = np.asarray(task.spacing)
    median = np.median(spacings or [task.spacing], axis=0)
    spacing = np.where(median > wanted * (1 + SPACING_TOLERANCE), median.round(4), wanted)
    steps = [math.prod(stride[axis] for stride in task.strides) for axis in range(3)]
    scaled = task.patch * wanted / spacing
    patch = [step * max(1, math.ceil(size / step)) for size, step in zip(scaled, steps, strict=True)]
    return dataclasses.replace(task, spacing=tuple(spacing.tolist()), patch=tuple(patch))


def prepare_all(cases: Sequence[Case], names: Sequence[str], task: Task, report: Report) -> list[PreparedCase]:
    """The named cases as the network sees them, in memory. Raises Cancelled when `report` asks for it."""
    by_name = {case.name: case for case in cases}
    prepared = []
    for name in names:
        if report(0.0, f"reading {name}"):
            raise Cancelled("stopped while reading the cases")
        prepared.append(prepare(load_case(by_name[name], task), task, name=name, site=by_name[name].site))
    return prepared


def start(request: TrainingRequest) -> tuple[ViTUNet, ModelCard | None]:
    """The network to train, with fresh weights or those of `init`, and the card of the model that it came from."""
    task = request.task
    config = preset(request.preset, len(task.sequences), len(label_values(task)), task.strides)
    if request.init is None:
        return build_network(config), None
    parent = load_model(request.init)
    if parent.card.task.name == task.name and parent.card.task.kind == "segmentation":
        own_config = NetworkConfig.from_dict(parent.card.network)
        config = dataclasses.replace(own_config, in_channels=config.in_channels, out_channels=config.out_channels)
    network = build_network(config)
    take_weights(network, task, parent, request.init)
    return network, parent.card


def run_to_model(
    trainer: Trainer[Any],
    request: TrainingRequest,
    task: Task,
    split: Split,
    *,
    network: Mapping[str, Any],
    parent: str | None,
    calibrate: Callable[[dict[str, Tensor], Report], Calibration] | None = None,
    report: Report,
) -> dict[str, Any]:
    """Run a trainer to its end and write the model file and the curve. Returns what was measured.

    When `report` or Ctrl-C stops it, a checkpoint is left beside the output and Cancelled raised; a request to resume
    goes on from there. network: what the model file says of the network; parent: hash of the model it started from;
    calibrate: gives the calibration of these weights, for the model's card.
    """
    commit = commit_of_checkout(Path(__file__))  # now, as the files may be others when the training ends
    if request.resume and request.checkpoint.exists():
        trainer.resume(request.checkpoint)
    run_with_checkpoints(trainer, request.checkpoint, report)
    best = trainer.state.best_score
    measured: dict[str, Any] = {
        "steps": trainer.state.step,
        "minutes": round(trainer.state.seconds / 60, 2),
        "parameters": count_parameters(trainer.network),
        trainer.score_name.lower().replace(" ", "_"): best,
        "validation": "nothing to validate on" if best is None else f"{trainer.score_name} {best:.3f}",
        "cases": {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)},
    }
    # No patient is named in it: a model may leave the house.
    provenance = {
        "program": f"twinseg {__version__}",
        "commit": commit,
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {request.device}, {torch.get_num_threads()} threads",
        "date": datetime.date.today().isoformat(),
        "data": request.data.resolve().name,
        "parent": parent,
        "seed": request.seed,
        "preset": request.preset,
        "metrics": measured,
    }
    weights, told = trainer.best_weights, {}
    if calibrate is not None:
        trainer.save(request.checkpoint)  # so that a stop while calibrating costs no training
        with interrupt_between_steps() as interrupted:
            try:
                calibration = calibrate(weights, lambda done, said: bool(report(1.0, said)) or interrupted())
            except Cancelled as stop:
                raise Cancelled(f"{stop}; go on with --resume (checkpoint {request.checkpoint})") from stop
        provenance["calibration"] = calibration.to_json()
        told = {"calibration": provenance["calibration"], "intervals": calibration.words}
    digest = save_model(request.output, weights, task=task, network=network, provenance=provenance)
    draw_curve(request.curve, trainer.state.history, task.title, trainer.score_name)
    request.checkpoint.unlink(missing_ok=True)
    return {**measured, **told, "model_hash": digest}


def run_with_checkpoints(trainer: Trainer[Any], checkpoint: Path, report: Report) -> None:
    """Run a trainer, with a checkpoint every two minutes and when `report` or Ctrl-C stops it; then Cancelled."""
    saved, best, stopped = time.monotonic(), "", False

    def step(progress: TrainingProgress) -> bool:
        nonlocal saved, best, stopped
        if progress.score is not None:
            best = f", {trainer.score_name} {progress.score:.3f} (best {trainer.state.best_score:.3f})"
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            trainer.save(checkpoint)
            saved = time.monotonic()
        asked = report(progress.done, f"step {progress.step}, loss {progress.loss:.3f}{best}")
        stopped = bool(asked) or interrupted()
        return stopped

    with interrupt_between_steps() as interrupted:
        trainer.run(step)
        if stopped and not trainer.finished:
            trainer.save(checkpoint)
            raise Cancelled(f"stopped; go on with --resume (checkpoint {checkpoint})")


@contextmanager
def interrupt_between_steps() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a flag, so that it never tears a step in two; a second one interrupts as usual."""
    asked = threading.Event()

    def note(*_: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    # Only the main thread may set handlers, and who ignores Ctrl-C or has a handler of their own keeps it.
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def check_output(path: Path) -> None:
    """Raise InputError where no model can be written to `path`: now, not after an hour of training."""
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a model file ends in .safetensors; give the output such a name")
    if not path.parent.is_dir():
        raise InputError(f"{path}: its folder does not exist; make it first")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: it cannot be written; choose another name or folder")


def split_file(data: Path) -> Path:
    """Where the split of a data folder is kept: in it, or in TwinSeg's own folder for data that is read-only."""
    folder = data if data.is_dir() else data.parent
    # Root may write anywhere, so for root the rights that are set tell what is meant.
    marked = bool(folder.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    writable = marked and os.access(folder, os.W_OK)
    if writable or (folder / "splits.json").exists():
        return folder / "splits.json"
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    own = data_folder() / "splits"
    own.mkdir(parents=True, exist_ok=True)
    return own / f"{folder.resolve().name}-{name}.json"


def commit_of_checkout(file: Path) -> str | None:
    """The git commit of the checkout that a source file is in, with "-dirty" where its folder differs from the commit;
    None where the file is in no checkout of its own."""

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(file.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # else it may be installed inside another repository
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def draw_curve(path: Path, history: Sequence[Mapping[str, float]], title: str, score_name: str) -> None:
    """The training's loss and validation score over its minutes, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.add_subplot(xlabel="minutes", ylabel="training loss", title=f"{title}: training")
    left.plot([row["seconds"] / 60 for row in history], [row["loss"] for row in history], color="tab:gray")
    left.set_ylim(bottom=0)
    scored = [(row["seconds"] / 60, row["score"]) for row in history if "score" in row]
    if scored:
        right = left.twinx()
        right.plot(*zip(*scored, strict=True), color="tab:blue", marker="o", markersize=3)
        right.set_ylabel(score_name, color="tab:blue")
        right.set_ylim(0, 1)
    write_atomically(path, png(figure))
