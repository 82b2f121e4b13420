"""Classification of 2-D pictures by a DenseNet-121 (Huang et al. 2017): training, model files and evaluation.

`ClassifierTrainer` knows nothing of folders: it is given prepared arrays, so that the command line and a federation's
site train by the same code.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.data import get_track_meta, set_track_meta
from monai.networks.nets import DenseNet121
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandAffine,
    RandFlip,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandScaleIntensity,
    RandShiftIntensity,
)
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from twinseg.cases import Case, find_cases, split_cases
from twinseg.errors import Cancelled, InputError
from twinseg.evaluation import choose_part
from twinseg.inference import Report
from twinseg.layouts import PICTURES, SPLIT_NAMES
from twinseg.metrics import classification_metrics
from twinseg.model_file import load_model, save_model
from twinseg.network import PRESETS, count_parameters
from twinseg.preprocessing import normalize
from twinseg.tasks import Task
from twinseg.training import Trainer, TrainingConfig, TrainingProgress, TrainingState
from twinseg.training_run import CHECKPOINT_SECONDS, TrainingRequest, check_output, provenance, split_file
from twinseg.volumes import read_picture

DEFAULT_MINUTES = 15.0
SMALL_SIDE = 128
"""Longest side in pixels of the pictures that the preset `small` trains on; `base` takes the task's whole patch."""
SMALLEST_SIDE = 32
"""DenseNet-121 halves its input five times."""


# --- pictures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures as the network sees them, and their classes.

    Attributes:
        images: (N, 1, rows, columns) float32, normalised.
        targets: (N,) int64, the indices of their classes.
        hashes: SHA-256 (hex) of each picture's own pixels, by which copies of one picture are found; may be empty.
    """

    images: NDArray[np.float32]
    targets: NDArray[np.int64]
    hashes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    def copies_of(self, other: LabelledPictures) -> NDArray[np.bool_]:
        """(N,) flags: which of these are, pixel for pixel, among the others."""
        return np.isin(np.array(self.hashes, str), np.array(other.hashes, str))


def find_pictures(data: Path, task: Task) -> list[Case]:
    """The pictures in the class folders of `data`. Raises InputError, for a folder of an unknown class too."""
    cases = find_cases(data, task, require_labels=True)
    known = {path for case in cases for path in case.images.values()}
    for path in sorted(data.rglob("*")):
        folder = path.parent
        stray = folder == data or folder.name.lower() in SPLIT_NAMES or path.name.startswith(".")
        if path.suffix.lower() in PICTURES and path not in known and not stray:
            wanted = ", ".join(task.classes)
            raise InputError(f"{folder}: no class of {task.name} has this name ({wanted}); rename or remove the folder")
    return cases


def read_pictures(cases: Sequence[Case], task: Task, report: Report = lambda done, stage: None) -> LabelledPictures:
    """Read and prepare pictures. Raises InputError for a file that is no whole picture, Cancelled by `report`."""
    images, hashes = [np.zeros((0, 1, task.patch[1], task.patch[0]), np.float32)], []
    for case in cases:
        if report(0.0, f"reading {case.name}"):
            raise Cancelled("stopped while reading the pictures")
        picture = read_picture(case.images[task.sequences[0].name])
        hashes.append(hashlib.sha256(str(picture.shape).encode() + picture.tobytes()).hexdigest())
        images.append(prepare_picture(picture, task)[None])
    targets = np.array([case.target for case in cases], np.int64)
    return LabelledPictures(np.concatenate(images), targets, tuple(hashes))


def prepare_picture(picture: NDArray[np.float32], task: Task) -> NDArray[np.float32]:
    """A picture (rows, columns) as the network sees it: (1, rows, columns) of the task's patch, normalised.

    It keeps its proportions; what they leave of the patch is filled evenly with the darkest value.
    """
    room = np.array([task.patch[1], task.patch[0]])
    rows, columns = np.maximum(1, np.rint(np.array(picture.shape) * (room / picture.shape).min()).astype(int))
    tensor = torch.from_numpy(picture)[None, None]
    fitted = functional.interpolate(tensor, (int(rows), int(columns)), mode="bilinear", antialias=True)[0]
    margins = [(0, 0), *((int(free) // 2, int(free) - int(free) // 2) for free in room - (rows, columns))]
    return normalize(np.pad(fitted.numpy(), margins, constant_values=picture.min()), task)


def picture_transform(task: Task) -> Compose:
    """The random changes to one training picture (1, rows, columns): where the body lies, how the scanner was set."""
    shift = [0.08 * side for side in (task.patch[1], task.patch[0])]
    return Compose(
        [
            RandAffine(
                prob=0.8,
                rotate_range=np.deg2rad(15.0),
                scale_range=(0.15, 0.15),
                translate_range=shift,
                mode="bilinear",
                padding_mode="border",
            ),
            # A picture's rows run from front to back, its columns from side to side.
            *(RandFlip(0.5, 1 - axis) for axis in task.flip_axes if axis < 2),
            RandAdjustContrast(prob=0.3, gamma=(0.7, 1.5)),
            RandScaleIntensity(0.2, prob=0.5),
            RandShiftIntensity(0.1, prob=0.5),
            RandGaussianSmooth((0.3, 1.0), (0.3, 1.0), prob=0.15),
            RandGaussianNoise(prob=0.2, std=0.05),
        ]
    )


class RandomPictures(Dataset[dict[str, Tensor]]):
    """Training pictures in random order, changed at random: item i is a function of the seed and of i alone."""

    def __init__(self, pictures: LabelledPictures, task: Task, seed: int) -> None:
        self.pictures, self.seed, self.transform = pictures, seed, picture_transform(task)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        epoch, place = divmod(index, len(self.pictures))
        number = np.random.default_rng([self.seed, epoch]).permutation(len(self.pictures))[place]
        self.transform.set_random_state(seed=int(np.random.default_rng([self.seed, 1, index]).integers(2**31)))
        tracked = get_track_meta()
        set_track_meta(False)
        try:
            image = self.transform(torch.from_numpy(self.pictures.images[number]))
        finally:
            set_track_meta(tracked)
        return {"image": torch.as_tensor(image), "labels": torch.tensor(self.pictures.targets[number])}


# --- the network -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedClassifier:
    """A classification network with its weights, what it was made for and its content hash."""

    network: DenseNet121
    task: Task
    hash: str


def network_description(task: Task) -> dict[str, Any]:
    """What a model file says of the network."""
    return {"kind": "densenet121", "spatial_dims": 2, "in_channels": 1, "out_channels": len(task.classes)}


def build_classifier(task: Task) -> DenseNet121:
    """A DenseNet-121 with random weights: images (N, 1, rows, columns) to logits (N, classes)."""
    network = DenseNet121(spatial_dims=2, in_channels=1, out_channels=len(task.classes))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            # The counter as a float, so that a mean of weights, here or in a federation, needs no exception for it.
            layer.num_batches_tracked = torch.zeros(())
    return cast(DenseNet121, network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]


def load_classifier(path: Path, task: Task | None = None) -> LoadedClassifier:
    """The classification network of a model file. Raises InputError for a damaged file or another kind of model."""
    model = load_model(path, expected_task=task)
    own = model.card.task
    if own.kind != "classification" or model.card.network != network_description(own):
        raise InputError(f"{path}: this model is no classifier of 2-D pictures; name one that twinseg train made")
    network = build_classifier(own)
    try:
        network.load_state_dict(model.tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: its tensors do not fit its network ({reason}); use another model file") from error
    return LoadedClassifier(network.eval(), own, model.card.hash)


def start_classifier(task: Task, init: Path | None) -> tuple[DenseNet121, str | None]:
    """The network to train: fresh, or from a model file, whose last layer is kept if its classes are the same."""
    network = build_classifier(task)
    if init is None:
        return network, None
    parent = load_classifier(init)
    weights = parent.network.state_dict()
    if parent.task.classes != task.classes:
        weights |= {name: new for name, new in network.state_dict().items() if name.startswith("class_layers.")}
    network.load_state_dict(weights)
    return network, parent.hash


def class_probabilities(
    network: nn.Module,
    images: NDArray[np.float32],
    device: torch.device | str = "cpu",
    report: Report = lambda done, stage: None,
) -> NDArray[np.float32]:
    """Probabilities (N, classes) of images (N, 1, rows, columns), in float32, so that each machine gives the same."""
    network = network.to(device).eval()
    parts: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        for batch in torch.from_numpy(images).split(32):
            if report(32 * len(parts) / len(images), "classifying"):
                raise Cancelled("stopped while classifying")
            parts.append(network(batch.to(device)).softmax(1).cpu().numpy())
    return np.concatenate(parts)


# --- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassifierConfig(TrainingConfig):
    """How a classifier is trained: as a segmentation network is, but for these values and the label smoothing."""

    batch_size: int = 16
    average_decay: float = 0.995
    validations: int = 40
    patience: int = 16
    label_smoothing: float = 0.05


class ClassifierTrainer(Trainer):
    """Trains a classifier on prepared pictures by cross-entropy; `best_weights` are those of the best accuracy.

    `run`, `save` and `resume` are those of `training.Trainer`.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        training: LabelledPictures,
        validation: LabelledPictures | None,
        config: ClassifierConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        if not len(training):
            raise InputError("no picture to train on: add pictures in folders named for their classes")
        if (config.epochs is None) == (config.minutes is None):
            raise ValueError("a training is given either epochs or minutes")
        self.device = torch.device(device)
        self.network: Any = network.to(self.device)
        self.task, self.config = task, config
        self.pictures, self.validation_pictures = RandomPictures(training, task, config.seed), validation
        self.label_smoothing = config.label_smoothing
        self.steps_an_epoch = -(-len(training) // config.batch_size)
        self.optimizer = torch.optim.AdamW(
            network.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.state = TrainingState()
        self.averaged_weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        self.best_weights = {name: tensor.clone() for name, tensor in self.averaged_weights.items()}

    def validation_scores(self, weights: dict[str, Tensor]) -> list[float]:
        """1 for each validation picture that these weights classify rightly, else 0: the mean is the accuracy."""
        if not self.validation_pictures:
            return []
        own = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.network.load_state_dict(weights)
        try:
            predicted = class_probabilities(self.network, self.validation_pictures.images, self.device).argmax(1)
        finally:
            self.network.load_state_dict(own)
        return [float(right) for right in predicted == self.validation_pictures.targets]

    def _loader(self) -> DataLoader[dict[str, Tensor]]:
        first = self.state.step * self.config.batch_size
        workers = self.config.loader_processes
        return DataLoader(self.pictures, self.config.batch_size, sampler=itertools.count(first), num_workers=workers)

    def _supervised_loss(self, outputs: Tensor | list[Tensor], labels: Tensor) -> Tensor:
        assert isinstance(outputs, Tensor)
        return functional.cross_entropy(outputs.float(), labels, label_smoothing=self.label_smoothing)


def train_classifier(request: TrainingRequest, report: Report = lambda done, stage: None) -> dict[str, Any]:
    """Train a classifier on the training part of a folder; keep the weights best on its validation part.

    The test part is not looked at, and validation pictures that are copies of training pictures are left out. When
    `report` stops it, a checkpoint is left beside the output. Returns what was measured. Raises InputError for data
    that cannot be trained on.
    """
    check_output(request.output)
    task = shrunk(request.task, request.preset)
    cases = find_pictures(request.data, task)
    split = split_cases(split_file(request.data), cases)
    chosen = {name: [case for case in cases if case.name in getattr(split, name)] for name in ("train", "validation")}
    if empty := set(range(len(task.classes))) - {case.target for case in chosen["train"]}:
        name = task.classes[min(empty)]
        raise InputError(f"{request.data}: no training picture is of the class {name}; add some in a folder {name}")
    training = read_pictures(chosen["train"], task, report)
    validation = read_pictures(chosen["validation"], task, report)
    new = ~validation.copies_of(training)
    validation = LabelledPictures(validation.images[new], validation.targets[new])
    torch.manual_seed(request.seed)
    network, parent = start_classifier(task, request.init)
    trainer = ClassifierTrainer(network, task, training, validation, classifier_config(request), request.device)
    if request.resume and request.checkpoint.exists():
        trainer.resume(request.checkpoint)
    _run(trainer, request.checkpoint, report)
    accuracy = trainer.state.best_dice if len(validation) else None  # the trainer's score is an accuracy here
    measured: dict[str, Any] = {
        "steps": trainer.state.step,
        "minutes": round(trainer.state.seconds / 60, 2),
        "parameters": count_parameters(network),
        "validation_accuracy": accuracy,
        "validation": "no validation pictures" if accuracy is None else f"validation accuracy {accuracy:.3f}",
        "cases": {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)},
    }
    measured["model_hash"] = save_model(
        request.output,
        trainer.best_weights,
        task=task,
        network=network_description(task),
        provenance=provenance(request, split, parent, measured),
    )
    _draw_curve(request.curve, trainer.state.history, task)
    request.checkpoint.unlink(missing_ok=True)
    return measured


def shrunk(task: Task, preset: str) -> Task:
    """The task at the preset's picture size. It goes into the model file, so that the model is always fed that size."""
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r} is unknown: use one of {', '.join(PRESETS)}")
    columns, rows, _ = task.patch
    factor = min(1.0, SMALL_SIDE / max(columns, rows)) if preset == "small" else 1.0
    columns, rows = round(columns * factor), round(rows * factor)
    if min(columns, rows) < SMALLEST_SIDE:
        raise InputError(f"task {task.name}: DenseNet-121 needs {SMALLEST_SIDE} pixels a side; give it a larger patch")
    return replace(task, patch=(columns, rows, 1))


def classifier_config(request: TrainingRequest) -> ClassifierConfig:
    """Epochs or minutes as asked, else 15 minutes."""
    if request.epochs is not None:
        return ClassifierConfig(epochs=request.epochs, seed=request.seed)
    return ClassifierConfig(minutes=request.minutes or DEFAULT_MINUTES, seed=request.seed)


def _run(trainer: ClassifierTrainer, checkpoint: Path, report: Report) -> None:
    """Run the trainer, with a checkpoint every two minutes and when it is stopped, by Ctrl-C too."""
    saved, best, stopped = time.monotonic(), "", False

    def step(progress: TrainingProgress) -> bool:
        nonlocal saved, best, stopped
        if progress.validation_dice is not None:
            best = f", validation accuracy {progress.validation_dice:.3f} (best {trainer.state.best_dice:.3f})"
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            trainer.save(checkpoint)
            saved = time.monotonic()
        stopped = bool(report(progress.done, f"step {progress.step}, loss {progress.loss:.3f}{best}"))
        return stopped

    try:
        trainer.run(step)
    except KeyboardInterrupt:
        stopped = True
    if stopped and trainer.done < 1:
        trainer.save(checkpoint)
        raise Cancelled(f"stopped; go on with --resume (checkpoint {checkpoint})")


def _draw_curve(path: Path, history: Sequence[dict[str, float]], task: Task) -> None:
    """The training's loss and validation accuracy over its minutes, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.add_subplot(xlabel="minutes", ylabel="training loss", title=f"{task.title}: training")
    left.plot([row["seconds"] / 60 for row in history], [row["loss"] for row in history], color="tab:gray")
    left.set_ylim(bottom=0)
    scored = [(row["seconds"] / 60, row["validation_dice"]) for row in history if "validation_dice" in row]
    if scored:
        right = left.twinx()
        right.plot(*zip(*scored, strict=True), color="tab:blue", marker="o", markersize=3)
        right.set(ylabel="validation accuracy", ylim=(0, 1))
    figure.savefig(path, dpi=110)


# --- evaluation ------------------------------------------------------------------------------------------------------


def evaluate_classifier(
    data: Path,
    model_path: Path,
    *,
    part: str = "test",
    device: torch.device | str = "cpu",
    report: Report = lambda done, stage: None,
) -> dict[str, Any]:
    """Metrics (`metrics.classification_metrics`) of a model on a part (train, validation, test or all) of a folder.

    Where pictures of the validation or test part are, pixel for pixel, training pictures of the same folder, the same
    metrics without them stand under "deduplicated" ({"n": 0} where nothing else is left).
    """
    model = load_classifier(model_path)
    cases = find_pictures(data, model.task)
    pictures = read_pictures(choose_part(cases, data, part), model.task, report)
    predicted = class_probabilities(model.network, pictures.images, device, report).argmax(1)
    measured = classification_metrics(predicted, pictures.targets, model.task.classes)
    measured |= {"part": part, "model": model.hash}
    if part in ("validation", "test"):
        training = set(split_cases(split_file(data), cases).train)
        seen = read_pictures([case for case in cases if case.name in training], model.task, report)
        new = ~pictures.copies_of(seen)
        if not new.any():
            measured["deduplicated"] = {"n": 0}
        elif not new.all():
            measured["deduplicated"] = classification_metrics(predicted[new], pictures.targets[new], model.task.classes)
    report(1.0, "done")
    return measured
