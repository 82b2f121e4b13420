"""The trainer that every training runs by: steps, learning rate, averaged weights, validation, checkpoints.

It knows nothing of files of cases or of hospitals, nor of what is learnt: `training.SegmentationTrainer` and
`classification.ClassificationTrainer` bring samples, loss and scores. A command, a patient's twin and a federation's
site drive the same code.
"""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch
from monai.data import get_track_meta, set_track_meta
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from twinseg.errors import InputError
from twinseg.inference import autocast
from twinseg.volumes import write_atomically

Network = TypeVar("Network", bound=nn.Module)
ExtraLoss = Callable[[nn.Module], Tensor]
"""A term that is added to each step's loss, from the network as it stands: for instance a pull to given weights."""


@dataclass(frozen=True)
class TrainingConfig:
    """How any network is trained.

    Attributes:
        epochs: passes over the training samples; or
        minutes: train until the clock says so (the learning rate then follows the clock, and no two runs are alike).
        batch_size: samples a step.
        learning_rate: the highest; it rises over the first 2 % and falls to zero by half a cosine.
        part: where on that cosine this training begins and ends, 0 to 1: a round is a part of a federation's training.
        weight_decay: of AdamW.
        average_decay: decay a step of the exponential moving average of the weights, which is what is kept.
        validations: how often the validation samples are scored, evenly over the training.
        patience: stop after so many scores in a row without a better one.
        loader_processes: processes that make the samples; on a CPU none, for they halve the speed there.
        seed: of the order of the samples and of every random change.
    """

    epochs: int | None = None
    minutes: float | None = None
    batch_size: int = 1
    learning_rate: float = 1e-3
    part: tuple[float, float] = (0.0, 1.0)
    weight_decay: float = 1e-2
    average_decay: float = 0.999
    validations: int = 20
    patience: int = 8
    loader_processes: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.minutes is None):
            raise ValueError("a training is given either epochs or minutes")
        if self.validations < 1:
            raise ValueError("a training is validated at least once, as the weights to keep are chosen then")


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training stands: `done` of 1, the step's loss, the validation score if it was just taken."""

    done: float
    step: int
    seconds: float
    loss: float
    score: float | None = None


@dataclass
class TrainingState:
    """What a checkpoint holds beside the tensors. `best_score` is None as long as nothing was scored."""

    step: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_steps: int = 0
    best_score: float | None = None
    without_gain: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


_untracked = threading.Lock()


@contextmanager
def untracked() -> Iterator[None]:
    """MONAI keeps no record of each transform's step: seven times faster. One thread at a time, as MONAI's switch is
    the process's: two threads that set and restored it in turn would leave it off for good."""
    with _untracked:
        tracked = get_track_meta()
        set_track_meta(False)
        try:
            yield
        finally:
            set_track_meta(tracked)


MOST_WASTED = 20
"""Steps in a row without a finite gradient after which a training is given up."""


class RandomSamples(Dataset[dict[str, Tensor]], ABC):
    """Training samples without end, `count` of them an epoch, each once, in random order and changed at random.

    Sample i is a function of the seed and of i alone, so any loader may make it, and a resumed training meets the
    samples that it would have met without the stop.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        epoch, place = divmod(index, self.count)
        number = np.random.default_rng([self.seed, epoch]).permutation(self.count)[place]
        with untracked():
            return self.sample(int(number), np.random.default_rng([self.seed, 1, index]))

    @abstractmethod
    def sample(self, number: int, random: np.random.Generator) -> dict[str, Tensor]:
        """`image` and `labels` of the training case or picture of this number, changed as `random` says."""


class Trainer(ABC, Generic[Network]):
    """Trains the parameters of a network that ask for a gradient; the others stay as they are.

    `run` may be stopped by its callback and called again; `save` and `resume` carry it over a restart, on the CPU bit
    for bit. `averaged_weights` are the exponential moving average, `best_weights` those of them that had the best
    validation score, or the last where there is nothing to validate on.

    A kind of training says what is learnt by `supervised_loss` and how good it is by `scores`.
    """

    score_name: ClassVar[str]
    """What the mean of `scores` is called, for instance "validation Dice"."""

    def __init__(
        self,
        network: Network,
        samples: RandomSamples,
        config: TrainingConfig,
        device: torch.device | str = "cpu",
        extra_loss: ExtraLoss | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.network = network.to(self.device)
        self.samples, self.config, self.extra_loss = samples, config, extra_loss
        self.trainable = {name: one for name, one in self.network.named_parameters() if one.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trainable.values(), config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.state, self._wasted = TrainingState(), 0
        self.averaged_weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        self.best_weights = {name: tensor.clone() for name, tensor in self.averaged_weights.items()}

    @abstractmethod
    def supervised_loss(self, outputs: Tensor | list[Tensor], labels: Tensor) -> Tensor:
        """The loss of a batch's outputs, a scalar."""

    @abstractmethod
    def scores(self) -> list[float]:
        """The score of each validation sample with the network as it stands, higher being better; empty without any."""

    @property
    def done(self) -> float:
        """Share of the training that is behind, 0 to 1."""
        if self.config.epochs is not None:
            steps = self.config.epochs * math.ceil(len(self.samples) / self.config.batch_size)
            return min(1.0, self.state.step / max(1, steps))
        assert self.config.minutes is not None
        return min(1.0, self.state.seconds / (60 * self.config.minutes))

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: all is done, or patience is at its end."""
        return self.done >= 1 or self.state.without_gain >= self.config.patience

    def run(self, report: Callable[[TrainingProgress], bool | None] = lambda progress: None) -> None:
        """Train to the end; `report` is called after each step and stops the training by returning True."""
        batches = iter(self._loader())
        while not self.finished:
            started = time.perf_counter()
            scored = int(self.done * self.config.validations)
            loss = self._step(next(batches))
            self.state.loss_sum += loss
            self.state.loss_steps += 1
            self.state.seconds += time.perf_counter() - started
            score = None
            if int(self.done * self.config.validations) > scored:
                started = time.perf_counter()
                score = self._validate()
                self.state.seconds += time.perf_counter() - started
            if report(TrainingProgress(self.done, self.state.step, self.state.seconds, loss, score)):
                break

    def validation_scores(self, weights: dict[str, Tensor]) -> list[float]:
        """`scores` with these weights; the network keeps its own."""
        own = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.network.load_state_dict(weights)
        try:
            return self.scores()
        finally:
            self.network.load_state_dict(own)

    def save(self, path: Path) -> None:
        """Write a checkpoint: one safetensors file, replaced as a whole."""
        tensors = self._weights()
        moments = self.optimizer.state_dict()["state"]
        for index, name in enumerate(self.trainable):
            tensors |= {f"optimizer.{name}.{key}": tensor for key, tensor in moments.get(index, {}).items()}
        metadata = {"state": json.dumps(asdict(self.state)), "config": json.dumps(asdict(self.config))}
        write_atomically(path, serialize({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint of the same network, samples and configuration; InputError for any other file."""
        try:
            with safe_open(path, "pt", str(self.device)) as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            config, state = json.loads(metadata["config"]), TrainingState(**json.loads(metadata["state"]))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: this is no whole checkpoint ({error}); start without it") from error
        if config != json.loads(json.dumps(asdict(self.config))):
            raise InputError(f"{path}: was made with other training settings; use the same, or start without it")
        weights = self._weights()
        stored = {name: tensor.shape for name, tensor in tensors.items() if not name.startswith("optimizer.")}
        if stored != {name: tensor.shape for name, tensor in weights.items()}:
            raise InputError(f"{path}: was made with another network; use the same preset, or start without it")
        trained = {name.removeprefix("optimizer.").rpartition(".")[0] for name in tensors.keys() - weights.keys()}
        if trained and trained != set(self.trainable):
            raise InputError(f"{path}: other parameters were trained in it; train the same, or start without it")
        # Copies, as what was read hangs on the file, which is soon written anew.
        copies = {name: torch.empty_like(tensor).copy_(tensors[name]) for name, tensor in weights.items()}
        network, self.averaged_weights, self.best_weights = (
            {name.removeprefix(part): tensor for name, tensor in copies.items() if name.startswith(part)}
            for part in ("network.", "average.", "best.")
        )
        self.network.load_state_dict(network)
        self._load_moments({name: tensors[name] for name in tensors.keys() - weights.keys()})
        self.state = state

    def _load_moments(self, stored: dict[str, Tensor]) -> None:
        """Give the optimizer the moments of a checkpoint, by the names that they have there."""
        moments: dict[int, dict[str, Tensor]] = {}
        for index, (name, parameter) in enumerate(self.trainable.items()):
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if (tensor := stored.get(f"optimizer.{name}.{key}")) is not None:
                    # The fused AdamW walks through memory, so a moment must lie there as its parameter does.
                    like = parameter.detach() if tensor.dim() else tensor
                    moments.setdefault(index, {})[key] = torch.empty_like(like).copy_(tensor)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def _weights(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, but for the optimizer's, by the names that they have there."""
        parts = {"network": self.network.state_dict(), "average": self.averaged_weights, "best": self.best_weights}
        return {f"{part}.{name}": tensor for part, weights in parts.items() for name, tensor in weights.items()}

    def _loader(self) -> DataLoader[dict[str, Tensor]]:
        endless = itertools.count(self.state.step * self.config.batch_size)
        workers = self.config.loader_processes
        return DataLoader(self.samples, self.config.batch_size, sampler=endless, num_workers=workers)

    def _step(self, batch: dict[str, Tensor]) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * schedule(self.done, self.config.part)
        self.network.train()
        image, labels = batch["image"].to(self.device), batch["labels"].to(self.device)
        with autocast(self.device):
            outputs = self.network(image)
        loss = self.supervised_loss(outputs, labels)
        if self.extra_loss is not None:
            loss = loss + self.extra_loss(self.network)
        self.optimizer.zero_grad()
        loss.backward()
        self._change(nn.utils.clip_grad_norm_(self.trainable.values(), 1.0))
        self.state.step += 1
        self._average()
        return float(loss.detach())

    def _change(self, norm: Tensor) -> None:
        """Change the weights, but not by a gradient that is no number, which would spoil all that was learnt."""
        if torch.isfinite(norm):
            self.optimizer.step()
            self._wasted = 0
            return
        self._wasted += 1
        if self._wasted == MOST_WASTED:
            raise InputError(f"no gradient was a number in {MOST_WASTED} steps; take a lower learning rate")

    @torch.no_grad()
    def _average(self) -> None:
        # A short memory at first, so that the average is not held back by the random start.
        decay = min(self.config.average_decay, (1 + self.state.step) / (10 + self.state.step))
        for name, tensor in self.network.state_dict().items():
            self.averaged_weights[name].lerp_(tensor, 1 - decay)

    def _validate(self) -> float | None:
        scores = self.validation_scores(self.averaged_weights)
        score = float(np.mean(scores)) if scores else None
        state = self.state
        row = {"step": state.step, "seconds": state.seconds, "loss": state.loss_sum / state.loss_steps}
        state.loss_sum, state.loss_steps = 0.0, 0
        state.history.append(row if score is None else {**row, "score": score})
        if score is None or state.best_score is None or score > state.best_score:
            self.best_weights = {name: tensor.clone() for name, tensor in self.averaged_weights.items()}
            state.best_score, state.without_gain = score, 0
        else:
            state.without_gain += 1
        return score


def schedule(done: float, part: tuple[float, float] = (0.0, 1.0)) -> float:
    """Factor of the learning rate at a share of the training: up over the first 2 %, then along a part of half a cosine
    (Loshchilov, Hutter 2017, equation 5)."""
    begin, end = part
    return min(1.0, 0.02 + done / 0.02) * 0.5 * (1 + math.cos(math.pi * (begin + done * (end - begin))))
