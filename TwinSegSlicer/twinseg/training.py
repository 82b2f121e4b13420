"""Training of a segmentation network: random crops, Dice and cross-entropy, scored by Dice."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional

from twinseg.augmentation import training_transform
from twinseg.errors import InputError
from twinseg.inference import predict
from twinseg.lesion_mixing import change_core, paste_lesion
from twinseg.metrics import dice
from twinseg.network import ViTUNet, pad_to_multiple
from twinseg.preprocessing import PreparedCase, label_values, region_channels
from twinseg.tasks import Task
from twinseg.trainer import ExtraLoss, RandomSamples, Trainer, TrainingConfig


@dataclass(frozen=True)
class SegmentationConfig(TrainingConfig):
    """How a segmentation network is trained, beyond what holds for any.

    Attributes:
        dice_weight: λ, the share of the Dice loss: λ · Dice + (1 − λ) · cross-entropy.
        drop_probability: how often a sequence is left out in training.
        paste_probability: how often another patient's lesion is put into a case (`lesion_mixing`).
        core_probability: how often the core of a case's lesions is made brighter or darker.
    """

    dice_weight: float = 0.5
    drop_probability: float = 0.1
    paste_probability: float = 0.4
    core_probability: float = 0.2


class SegmentationLoss(nn.Module):
    """λ · Dice over the task's regions + (1 − λ) · cross-entropy over its labels.

    The Dice loss (Milletari et al. 2016, V-Net) is taken on each nested region, whose probability is the sum of its
    labels', so that what is trained is what is reported. Logits (N, 1 + labels, X, Y, Z), labels (N, 1, X, Y, Z).
    """

    def __init__(self, task: Task, dice_weight: float) -> None:
        super().__init__()
        self.dice_weight = dice_weight
        self.regions = region_channels(task)
        self.dice = DiceLoss(smooth_nr=1.0, smooth_dr=1.0)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits.float()
        probabilities = logits.softmax(1)
        regions = torch.stack([probabilities[:, values].sum(1) for values in self.regions], 1)
        wanted = torch.stack([torch.isin(labels[:, 0], labels.new_tensor(values)) for values in self.regions], 1)
        entropy = functional.cross_entropy(logits, labels[:, 0].long())
        return self.dice_weight * self.region_loss(regions, wanted.float()) + (1 - self.dice_weight) * entropy

    def region_loss(self, regions: Tensor, wanted: Tensor) -> Tensor:
        """The Dice loss of probabilities and truth of the regions, both (N, regions, X, Y, Z)."""
        return self.dice(regions, wanted)


class RandomCrops(RandomSamples):
    """Random crops of prepared cases, one of each case an epoch."""

    def __init__(self, cases: Sequence[PreparedCase], task: Task, config: SegmentationConfig) -> None:
        super().__init__(len(cases), config.seed)
        self.cases, self.config = cases, config
        self.lesions = [label_values(task).index(value) for value in task.lesions]
        self.transform = training_transform(task, config.drop_probability)

    def sample(self, number: int, random: np.random.Generator) -> dict[str, Tensor]:
        case = self._mixed(self.cases[number], random)
        assert case.labels is not None
        self.transform.set_random_state(seed=int(random.integers(2**31)))
        labels = torch.from_numpy(case.labels)[None]
        whole = {"image": torch.from_numpy(case.image), "labels": labels, "present": case.present}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Num foregrounds")  # MONAI's, of each case without a tumour
            (changed,) = self.transform(whole)  # MONAI's cropping transforms give a list of samples
        return {"image": torch.as_tensor(changed["image"]), "labels": torch.as_tensor(changed["labels"])}

    def _mixed(self, case: PreparedCase, random: np.random.Generator) -> PreparedCase:
        if self.lesions and random.random() < self.config.paste_probability:
            case = paste_lesion(case, self.cases[int(random.integers(len(self.cases)))], self.lesions, random)
        if self.lesions and random.random() < self.config.core_probability:
            case = change_core(case, self.lesions, random)
        return case


class SegmentationTrainer(Trainer[ViTUNet]):
    """Trains a segmentation network on prepared cases with label maps. Raises InputError where there is none."""

    score_name = "validation Dice"

    def __init__(
        self,
        network: ViTUNet,
        task: Task,
        training: Sequence[PreparedCase],
        validation: Sequence[PreparedCase],
        config: SegmentationConfig,
        device: torch.device | str = "cpu",
        extra_loss: ExtraLoss | None = None,
    ) -> None:
        if not training:
            raise InputError("no labelled case to train on: add cases with a label map, or name another folder")
        super().__init__(network, RandomCrops(training, task, config), config, device, extra_loss)
        self.task, self.validation = task, validation
        self.loss = SegmentationLoss(task, config.dice_weight)

    def supervised_loss(self, outputs: Tensor | list[Tensor], labels: Tensor) -> Tensor:
        if isinstance(outputs, Tensor):
            return self.loss(outputs, labels)
        # Deep supervision (Lee et al. 2015): each coarser prediction counts half as much as the one above.
        total = self.loss(outputs[0], labels)
        whole = pad_to_multiple(labels.float(), self.network.config.total_stride)  # as the network did with the image
        for level, output in enumerate(outputs[1:], start=1):
            coarse = functional.interpolate(whole, output.shape[2:], mode="nearest").to(labels.dtype)
            total = total + 0.5**level * self.loss(output, coarse)
        return total

    def scores(self) -> list[float]:
        """Dice of each validation case, mean over regions, on the grid that the network sees."""
        return [self._dice(case) for case in self.validation]

    def _dice(self, case: PreparedCase) -> float:
        assert case.labels is not None
        predicted = predict(self.network, case.image, self.task, self.device).argmax(0)
        regions = region_channels(self.task)
        return float(np.mean([dice(np.isin(predicted, region), np.isin(case.labels, region)) for region in regions]))
