"""Training of a segmentation network: Dice and cross-entropy, AdamW, averaged weights, checkpoints that resume exactly.

The trainer knows nothing of files of cases or of hospitals: it is given prepared cases, so that the command line, a
patient's twin and a federation's site train by the same code.
"""

from __future__ import annotations

import itertools
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import get_track_meta, set_track_meta
from monai.losses import DiceLoss
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from twinseg.augmentation import training_transform
from twinseg.errors import InputError
from twinseg.inference import autocast, predict
from twinseg.lesion_mixing import change_core, paste_lesion
from twinseg.metrics import dice
from twinseg.network import ViTUNet
from twinseg.preprocessing import PreparedCase, label_values, region_channels
from twinseg.tasks import Task
from twinseg.volumes import write_atomically


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained.

    Attributes:
        epochs: passes over the training cases, one random crop of each case a pass; or
        minutes: train until the clock says so (the learning rate then follows the clock, and no two runs are alike).
        batch_size: crops a step.
        learning_rate: the highest; it rises over the first 2 % and falls to zero by half a cosine.
        dice_weight: λ, the share of the Dice loss: λ · Dice + (1 − λ) · cross-entropy.
        average_decay: decay a step of the exponential moving average of the weights, which is what is kept.
        drop_probability: how often a sequence is left out in training.
        paste_probability: how often another patient's lesion is put into a case (`lesion_mixing`).
        core_probability: how often the core of a case's lesions is made brighter or darker.
        validations: how often the validation cases are scored, evenly over the training.
        patience: stop after so many scores in a row without a better one.
        loader_processes: processes that make the crops; on a CPU none, for they halve the speed of the training there.
        seed: of the order of the cases and of every random change.
    """

    epochs: int | None = None
    minutes: float | None = None
    batch_size: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    dice_weight: float = 0.5
    average_decay: float = 0.999
    drop_probability: float = 0.1
    paste_probability: float = 0.4
    core_probability: float = 0.2
    validations: int = 20
    patience: int = 8
    loader_processes: int = 0
    seed: int = 0


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training stands: `done` of 1, the step's loss, the validation Dice if it was just scored."""

    done: float
    step: int
    seconds: float
    loss: float
    validation_dice: float | None = None


@dataclass
class TrainingState:
    """What a checkpoint holds beside the tensors."""

    step: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_steps: int = 0
    best_dice: float = -1.0
    without_gain: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


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
        return self.dice_weight * self.dice(regions, wanted.float()) + (1 - self.dice_weight) * entropy


class RandomCrops(Dataset[dict[str, Any]]):
    """Random crops of prepared cases: item i is a function of the seed and of i alone, so any loader may make it."""

    def __init__(self, cases: Sequence[PreparedCase], task: Task, config: TrainingConfig) -> None:
        self.cases, self.task, self.config = cases, task, config
        self.lesions = [label_values(task).index(value) for value in task.lesions]
        self.transform = training_transform(task, config.drop_probability)

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, place = divmod(index, len(self.cases))
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.cases))
        random = np.random.default_rng([self.config.seed, 1, index])
        case = self._mixed(self.cases[order[place]], random)
        assert case.labels is not None
        self.transform.set_random_state(seed=int(random.integers(2**31)))
        labels = torch.from_numpy(case.labels)[None]
        sample = {"image": torch.from_numpy(case.image), "labels": labels, "present": case.present}
        tracked = get_track_meta()
        set_track_meta(False)  # seven times faster; what MONAI would keep of each step is not used here
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Num foregrounds")  # MONAI's, of each case without a tumour
                (changed,) = self.transform(sample)  # MONAI's cropping transforms give a list of samples
        finally:
            set_track_meta(tracked)
        return {"image": torch.as_tensor(changed["image"]), "labels": torch.as_tensor(changed["labels"])}

    def _mixed(self, case: PreparedCase, random: np.random.Generator) -> PreparedCase:
        if self.lesions and random.random() < self.config.paste_probability:
            case = paste_lesion(case, self.cases[int(random.integers(len(self.cases)))], self.lesions, random)
        if self.lesions and random.random() < self.config.core_probability:
            case = change_core(case, self.lesions, random)
        return case


class Trainer:
    """Trains one network on prepared cases.

    `run` may be stopped by its callback and called again; `save` and `resume` carry it over a restart, on the CPU bit
    for bit. `averaged_weights` are the exponential moving average; `best_weights` those with the best validation Dice.
    """

    def __init__(
        self,
        network: ViTUNet,
        task: Task,
        training: Sequence[PreparedCase],
        validation: Sequence[PreparedCase],
        config: TrainingConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        if not training:
            raise InputError("no labelled case to train on: add cases with a label map, or name another folder")
        if (config.epochs is None) == (config.minutes is None):
            raise ValueError("a training is given either epochs or minutes")
        self.device = torch.device(device)
        self.network = network.to(self.device)
        self.task, self.validation, self.config = task, validation, config
        self.crops = RandomCrops(training, task, config)
        self.steps_an_epoch = -(-len(training) // config.batch_size)
        self.loss = SegmentationLoss(task, config.dice_weight)
        self.optimizer = torch.optim.AdamW(
            network.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.state = TrainingState()
        self.averaged_weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        self.best_weights = {name: tensor.clone() for name, tensor in self.averaged_weights.items()}

    @property
    def done(self) -> float:
        """Share of the training that is behind, 0 to 1."""
        if self.config.epochs is not None:
            return min(1.0, self.state.step / max(1, self.config.epochs * self.steps_an_epoch))
        assert self.config.minutes is not None
        return min(1.0, self.state.seconds / (60 * self.config.minutes))

    def run(self, report: Callable[[TrainingProgress], bool | None] = lambda progress: None) -> None:
        """Train to the end; `report` is called after each step and stops the training by returning True."""
        batches = iter(self._loader())
        while self.done < 1 and self.state.without_gain < self.config.patience:
            started = time.perf_counter()
            scored = int(self.done * self.config.validations)
            loss = self._step(next(batches))
            self.state.loss_sum += loss
            self.state.loss_steps += 1
            self.state.seconds += time.perf_counter() - started
            dice = None
            if int(self.done * self.config.validations) > scored:
                started = time.perf_counter()
                dice = self._validate()
                self.state.seconds += time.perf_counter() - started
            if report(TrainingProgress(self.done, self.state.step, self.state.seconds, loss, dice)):
                break

    def save(self, path: Path) -> None:
        """Write a checkpoint: one safetensors file, replaced as a whole."""
        tensors = self._weights()
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in values.items()}
        metadata = {"state": json.dumps(asdict(self.state)), "config": json.dumps(asdict(self.config))}
        write_atomically(path, serialize({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint of the same network, cases and configuration; InputError for any other file."""
        try:
            with safe_open(path, "pt", str(self.device)) as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            config, state = json.loads(metadata["config"]), TrainingState(**json.loads(metadata["state"]))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: this is no whole checkpoint ({error}); start without it") from error
        if config != asdict(self.config):
            raise InputError(f"{path}: was made with other training settings; use the same, or start without it")
        weights = self._weights()
        stored = {name: tensor.shape for name, tensor in tensors.items() if not name.startswith("optimizer.")}
        if stored != {name: tensor.shape for name, tensor in weights.items()}:
            raise InputError(f"{path}: was made with another network; use the same preset, or start without it")
        # Copies, as what was read hangs on the file, which is soon written anew.
        copies = {name: torch.empty_like(tensor).copy_(tensors[name]) for name, tensor in weights.items()}
        network, self.averaged_weights, self.best_weights = (
            {name.removeprefix(part): tensor for name, tensor in copies.items() if name.startswith(part)}
            for part in ("network.", "average.", "best.")
        )
        self.network.load_state_dict(network)
        moments: dict[int, dict[str, Tensor]] = {}
        parameters = self.optimizer.param_groups[0]["params"]
        for name in tensors.keys() - weights.keys():
            _, index, key = name.split(".")
            # The fused AdamW walks through memory, so a moment must lie there as its parameter does.
            like = parameters[int(index)] if tensors[name].dim() else tensors[name]
            moments.setdefault(int(index), {})[key] = torch.empty_like(like).copy_(tensors[name])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.state = state

    def _weights(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, but for the optimizer's, by the names that they have there."""
        parts = {"network": self.network.state_dict(), "average": self.averaged_weights, "best": self.best_weights}
        return {f"{part}.{name}": tensor for part, weights in parts.items() for name, tensor in weights.items()}

    def _loader(self) -> DataLoader[dict[str, Tensor]]:
        first = self.state.step * self.config.batch_size
        endless = itertools.count(first)
        workers = self.config.loader_processes
        return DataLoader(self.crops, self.config.batch_size, sampler=endless, num_workers=workers)

    def _step(self, batch: dict[str, Tensor]) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * schedule(self.done)
        self.network.train()
        image, labels = batch["image"].to(self.device), batch["labels"].to(self.device)
        with autocast(self.device):
            outputs = self.network(image)
        loss = self._supervised_loss(outputs, labels)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.state.step += 1
        self._average()
        return float(loss.detach())

    def _supervised_loss(self, outputs: Tensor | list[Tensor], labels: Tensor) -> Tensor:
        if isinstance(outputs, Tensor):
            return self.loss(outputs, labels)
        # Deep supervision (Lee et al. 2015): each coarser prediction counts half as much as the one above.
        total = self.loss(outputs[0], labels)
        for level, output in enumerate(outputs[1:], start=1):
            coarse = functional.interpolate(labels.float(), output.shape[2:], mode="nearest").to(labels.dtype)
            total = total + 0.5**level * self.loss(output, coarse)
        return total

    @torch.no_grad()
    def _average(self) -> None:
        # A short memory at first, so that the average is not held back by the random start.
        decay = min(self.config.average_decay, (1 + self.state.step) / (10 + self.state.step))
        for name, tensor in self.network.state_dict().items():
            self.averaged_weights[name].lerp_(tensor, 1 - decay)

    def _validate(self) -> float | None:
        scores = self.validation_scores(self.averaged_weights)
        dice = float(np.mean(scores)) if scores else None
        loss = self.state.loss_sum / self.state.loss_steps
        self.state.loss_sum, self.state.loss_steps = 0.0, 0
        row = {"step": self.state.step, "seconds": self.state.seconds, "loss": loss}
        self.state.history.append(row if dice is None else {**row, "validation_dice": dice})
        if dice is None or dice > self.state.best_dice:
            self.best_weights = {name: tensor.clone() for name, tensor in self.averaged_weights.items()}
            self.state.best_dice, self.state.without_gain = -1.0 if dice is None else dice, 0
        else:
            self.state.without_gain += 1
        return dice

    def validation_scores(self, weights: dict[str, Tensor]) -> list[float]:
        """Dice of each validation case, mean over regions, on the grid that the network sees, with these weights."""
        own = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.network.load_state_dict(weights)
        try:
            return [self._dice(case) for case in self.validation]
        finally:
            self.network.load_state_dict(own)

    def _dice(self, case: PreparedCase) -> float:
        assert case.labels is not None
        predicted = predict(self.network, case.image, self.task, self.device).argmax(0)
        regions = region_channels(self.task)
        return float(np.mean([dice(np.isin(predicted, region), np.isin(case.labels, region)) for region in regions]))


def schedule(done: float) -> float:
    """Factor of the learning rate at a share of the training: up over the first 2 %, then down by half a cosine."""
    return min(1.0, 0.02 + done / 0.02) * 0.5 * (1 + math.cos(math.pi * done))
