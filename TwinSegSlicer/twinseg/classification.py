"""Classification of 2-D pictures by a DenseNet-121 (Huang et al. 2017): the network, and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.networks.nets import DenseNet121
from monai.transforms import Compose, RandAffine, RandFlip, RandScaleIntensity, RandShiftIntensity
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from twinseg.classification_pictures import LabelledPictures
from twinseg.errors import Cancelled, InputError
from twinseg.inference import Report
from twinseg.model_file import load_model
from twinseg.tasks import Task
from twinseg.trainer import ExtraLoss, RandomSamples, Trainer, TrainingConfig


@dataclass(frozen=True)
class ClassificationConfig(TrainingConfig):
    """How a classifier is trained: as any network, but for these values and the label smoothing."""

    batch_size: int = 16
    average_decay: float = 0.995
    validations: int = 40
    patience: int = 16
    label_smoothing: float = 0.05


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


def picture_transform(task: Task) -> Compose:
    """The random changes to one training picture (1, rows, columns): where the body lies, how bright it was printed.

    Small ones: with twice these, mirror images, gamma, blur and noise, a network learnt chest CT far more slowly, to a
    validation accuracy of 0.66 and not 0.81 after 15 passes.
    """
    shift = [0.04 * side for side in (task.patch[1], task.patch[0])]
    return Compose(
        [
            RandAffine(
                prob=0.8,
                rotate_range=np.deg2rad(8.0),
                scale_range=(0.08, 0.08),
                translate_range=shift,
                mode="bilinear",
                padding_mode="border",
            ),
            # A picture's rows run from front to back, its columns from side to side.
            *(RandFlip(0.5, 1 - axis) for axis in task.flip_axes if axis < 2),
            RandScaleIntensity(0.1, prob=0.5),
            RandShiftIntensity(0.05, prob=0.5),
        ]
    )


class RandomPictures(RandomSamples):
    """Training pictures, changed at random, each once an epoch."""

    def __init__(self, pictures: LabelledPictures, task: Task, seed: int) -> None:
        super().__init__(len(pictures), seed)
        self.pictures, self.transform = pictures, picture_transform(task)

    def sample(self, number: int, random: np.random.Generator) -> dict[str, Tensor]:
        self.transform.set_random_state(seed=int(random.integers(2**31)))
        image = self.transform(torch.from_numpy(self.pictures.images[number]))
        return {"image": torch.as_tensor(image), "labels": torch.tensor(self.pictures.targets[number])}


class ClassificationTrainer(Trainer[nn.Module]):
    """Trains a classifier on prepared pictures by cross-entropy. Raises InputError where there is no picture."""

    score_name = "validation accuracy"

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        training: LabelledPictures,
        validation: LabelledPictures | None,
        config: ClassificationConfig,
        device: torch.device | str = "cpu",
        extra_loss: ExtraLoss | None = None,
    ) -> None:
        if not len(training):
            raise InputError("no picture to train on: add pictures in folders named for their classes")
        super().__init__(network, RandomPictures(training, task, config.seed), config, device, extra_loss)
        self.validation, self.label_smoothing = validation, config.label_smoothing

    def supervised_loss(self, outputs: Tensor | list[Tensor], labels: Tensor) -> Tensor:
        assert isinstance(outputs, Tensor)
        return functional.cross_entropy(outputs.float(), labels, label_smoothing=self.label_smoothing)

    def scores(self) -> list[float]:
        """1 for each validation picture that is classified rightly, else 0: the mean is the accuracy."""
        if not self.validation:
            return []
        predicted = class_probabilities(self.network, self.validation.images, self.device).argmax(1)
        return [float(right) for right in predicted == self.validation.targets]
