"""`twinseg train`: from a folder of labelled cases to a model file, its checkpoint and its curve."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import math
import os
import platform
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twinseg import __version__
from twinseg.cases import Case, Split, find_cases, load_case, split_cases
from twinseg.errors import Cancelled, InputError
from twinseg.home import data_folder
from twinseg.inference import Report
from twinseg.model_file import Model, load_model, save_model
from twinseg.network import NetworkConfig, ViTUNet, build_network, count_parameters, preset
from twinseg.pictures import png
from twinseg.preprocessing import SPACING_TOLERANCE, PreparedCase, label_values, prepare
from twinseg.tasks import Task
from twinseg.training import Trainer, TrainingConfig, TrainingProgress
from twinseg.volumes import read_image, to_ras, write_atomically

DEFAULT_MINUTES = {"small": 50.0, "base": 480.0}
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


def train(request: TrainingRequest, report: Report = lambda done, stage: None) -> dict[str, Any]:
    """Train a segmentation model on the training part of a folder; keep the weights best on its validation part.

    The test part is not looked at. When `report` stops it, a checkpoint is left beside the output. Returns what was
    measured. Raises InputError for data that cannot be trained on.
    """
    check_output(request.output)
    cases = find_cases(request.data, request.task, require_labels=True)
    torch.manual_seed(request.seed)
    network, parent = start(request)
    split = split_cases(split_file(request.data), cases)
    task = fit_to_data(request.task, [case for case in cases if case.name in split.train])
    training = prepare_all(cases, split.train, task, report)
    validation = prepare_all(cases, split.validation, task, report)
    trainer = Trainer(network, task, training, validation, training_config(request), request.device)
    if request.resume and request.checkpoint.exists():
        trainer.resume(request.checkpoint)
    _run(trainer, request.checkpoint, report)
    if trainer.done < 1 and trainer.state.without_gain < trainer.config.patience:
        raise Cancelled(f"stopped; go on with --resume (checkpoint {request.checkpoint})")
    measured: dict[str, Any] = {
        "steps": trainer.state.step,
        "minutes": round(trainer.state.seconds / 60, 2),
        "parameters": count_parameters(network),
        "validation_dice": trainer.state.best_dice if validation else None,
        "validation": f"validation Dice {trainer.state.best_dice:.3f}" if validation else "no validation cases",
        "cases": {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)},
    }
    measured["model_hash"] = save_model(
        request.output,
        trainer.best_weights,
        task=task,
        network=network.config.to_dict(),
        provenance=provenance(request, split, parent, measured),
    )
    draw_curve(request.curve, trainer.state.history, task)
    request.checkpoint.unlink(missing_ok=True)
    return measured


def _run(trainer: Trainer, checkpoint: Path, report: Report) -> None:
    """Run the trainer, with a checkpoint every two minutes and when it is stopped, by Ctrl-C too."""
    saved = time.monotonic()
    best = ""

    def step(progress: TrainingProgress) -> bool | None:
        nonlocal saved, best
        if progress.validation_dice is not None:
            best = f", validation Dice {progress.validation_dice:.3f} (best {trainer.state.best_dice:.3f})"
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            trainer.save(checkpoint)
            saved = time.monotonic()
        return report(progress.done, f"step {progress.step}, loss {progress.loss:.3f}{best}")

    try:
        trainer.run(step)
    except KeyboardInterrupt:
        trainer.save(checkpoint)
        raise Cancelled(f"stopped; go on with --resume (checkpoint {checkpoint})") from None
    if trainer.done < 1:
        trainer.save(checkpoint)


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


def start(request: TrainingRequest) -> tuple[ViTUNet, str | None]:
    """The network to train, with fresh weights or those of `init`, and the hash of the model that it came from."""
    task = request.task
    config = preset(request.preset, len(task.sequences), len(label_values(task)), task.strides)
    if request.init is None:
        return build_network(config), None
    parent = load_model(request.init)
    if parent.card.task.name == task.name and parent.card.task.kind == "segmentation":
        own_config = NetworkConfig.from_dict(parent.card.network)
        config = dataclasses.replace(own_config, in_channels=config.in_channels, out_channels=config.out_channels)
    network = build_network(config)
    fitting = fitted_weights(parent, network.state_dict(), task)
    if 2 * sum(tensor.numel() for tensor in fitting.values()) < count_parameters(network):
        raise InputError(f"{request.init}: its network is too different to start from; use another model")
    network.load_state_dict({**network.state_dict(), **fitting})
    return network, parent.card.hash


def fitted_weights(parent: Model, own: Mapping[str, Tensor], task: Task) -> dict[str, Tensor]:
    """The parent's tensors that serve a network of other sequences or other slices.

    The first layer's input channels are matched by their sequences' names; a kernel that reaches over slices is added
    up along them where the own one does not (the same answer where the slices are alike). What else differs in shape
    is left out.
    """
    names = [sequence.name for sequence in parent.card.task.sequences]
    fitting: dict[str, Tensor] = {}
    for name in own.keys() & parent.tensors.keys():
        wanted, tensor = own[name], parent.tensors[name].float()
        if tensor.dim() == wanted.dim() == 5:
            for axis in (2, 3, 4):
                if wanted.shape[axis] == 1:
                    tensor = tensor.sum(axis, keepdim=True)
        same_kernels = tensor.shape[:1] + tensor.shape[2:] == wanted.shape[:1] + wanted.shape[2:]
        if name == "stem.convolution.weight" and same_kernels:
            matched = wanted.clone()
            for channel, sequence in enumerate(task.sequences):
                if sequence.name in names:
                    matched[:, channel] = tensor[:, names.index(sequence.name)]
            tensor = matched
        if tensor.shape == wanted.shape:
            fitting[name] = tensor
    return fitting


def training_config(request: TrainingRequest) -> TrainingConfig:
    """Epochs or minutes as asked, else the preset's minutes."""
    if request.epochs is not None:
        return TrainingConfig(epochs=request.epochs, seed=request.seed)
    minutes = DEFAULT_MINUTES[request.preset] if request.minutes is None else request.minutes
    return TrainingConfig(minutes=minutes, seed=request.seed)


def provenance(request: TrainingRequest, split: Split, parent: str | None, measured: dict[str, Any]) -> dict[str, Any]:
    """What the model file says of how it came to be. No patient is named in it: a model may leave the house."""
    return {
        "program": f"twinseg {__version__}",
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {request.device}, {torch.get_num_threads()} threads",
        "date": datetime.date.today().isoformat(),
        "data": request.data.resolve().name,
        "parent": parent,
        "seed": request.seed,
        "preset": request.preset,
        "metrics": measured,
    }


def draw_curve(path: Path, history: Sequence[dict[str, float]], task: Task) -> None:
    """The training's loss and validation Dice over its minutes, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.add_subplot()
    minutes = np.array([row["seconds"] for row in history]) / 60
    left.plot(minutes, [row["loss"] for row in history], color="tab:gray", label="training loss")
    left.set_xlabel("minutes")
    left.set_ylabel("training loss")
    left.set_ylim(bottom=0)
    scored = [(row["seconds"] / 60, row["validation_dice"]) for row in history if "validation_dice" in row]
    if scored:
        right = left.twinx()
        right.plot(*zip(*scored, strict=True), color="tab:blue", marker="o", markersize=3, label="validation Dice")
        right.set_ylabel("validation Dice", color="tab:blue")
        right.set_ylim(0, 1)
    left.set_title(f"{task.title}: training")
    write_atomically(path, png(figure))
