"""The site trainer: trains a federation's model on a site's own cases, as any engine of federated learning drives it.

It implements MONAI's `ClientAlgo`. What it gives out are tensors, and numbers about its cases; never a case or a name.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.fl.client import ClientAlgo
from monai.fl.utils.constants import WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from numpy.typing import NDArray
from torch import Tensor, nn

from twinfed.client.case_source import CaseSource
from twinfed.client.errors import Changed, Stopped
from twinfed.client.site_data import Schedule, Score, SegmentationData, SiteData
from twinfed.client.threads import threads_for
from twinseg.errors import InputError
from twinseg.preprocessing import PreparedCase
from twinseg.tasks import Task, load_task
from twinseg.trainer import Trainer, TrainingProgress

logger = logging.getLogger(__name__)

SHARE_OF_SAVING = 0.02
"""Checkpoints may take up to this share of the time of training."""
SOONEST_SAVING = 1.0
"""Seconds between two checkpoints at least."""

Watch = Callable[[float, str], None]
"""Told after each step the share that is done (0 to 1) and the stage in words; it may wait, or raise to end it."""


class ProximalTerm:
    """mu / 2 * ||w - w_global||^2 over the parameters that are trained (FedProx: Li et al. 2020, equation 2)."""

    def __init__(self, mu: float, weights: Mapping[str, Tensor]) -> None:
        self.mu, self.weights = mu, weights

    def __call__(self, network: nn.Module) -> Tensor:
        distances = [
            (one - self.weights[name].to(one.device)).square().sum()
            for name, one in network.named_parameters()
            if one.requires_grad
        ]
        return 0.5 * self.mu * torch.stack(distances).sum()


class SiteTrainer(ClientAlgo):
    """Trains and scores models on the cases of one site.

    Args:
        source: where the cases come from; they are looked up anew by each `initialize`.
        device: where it computes.
        checkpoints: folder for the training under way, which a killed process goes on from; without it, none is kept.
        learning_rate: the highest of each training; None for the training's own.
        watch: see `Watch`. What it raises leaves `train` after a checkpoint.
    """

    def __init__(
        self,
        source: CaseSource,
        *,
        device: torch.device | str = "cpu",
        checkpoints: Path | None = None,
        learning_rate: float | None = None,
        watch: Watch = lambda done, stage: None,
    ) -> None:
        self.source, self.device, self.checkpoints = source, torch.device(device), checkpoints
        self.learning_rate, self.watch = learning_rate, watch
        self._prepared: dict[Any, PreparedCase] = {}
        self._aborted = False

    def initialize(self, extra: Mapping[str, Any] | None = None) -> None:
        """Take up a model and the site's cases for it.

        Args:
            extra: "task" and "network" as the metadata of a model file hold them: TOML and JSON.

        Raises:
            InputError: a model that does not say these, or that cannot be trained here.
        """
        extra, self._aborted = extra or {}, False
        if not {"task", "network"} <= extra.keys():
            raise InputError(
                "the aggregator's model does not say its task and network; its operator has to begin with a model file "
                "that twinseg made"
            )
        task = Task.from_toml(extra["task"], "the aggregator's model")
        check_own_task(task)
        try:
            self.description = dict(json.loads(extra["network"]))
        except (ValueError, TypeError) as error:
            raise InputError(f"the aggregator's model describes no network ({error}); tell its operator") from error
        self.data = self._read(task)
        self.data.network(self.description)
        self._weights: dict[str, Tensor] | None = None
        self._base: dict[str, Tensor] = {}

    def train(self, data: ExchangeObject, extra: Mapping[str, Any] | None = None) -> None:
        """Train from the global weights; goes on from the checkpoint of the same training, if there is one.

        Args:
            data: with `weights`, the global model: name -> float32 array.
            extra: "epochs"; "seed"; "proximal_mu" (0: none); "part" of the federation's whole training, (0, 1) if left
                out; "name" of the training, for its checkpoint.

        Raises:
            InputError: the weights do not fit the network, or there is no case to train on.
            Stopped: `abort` was called. What `watch` raises comes through, too.
        """
        extra = extra or {}
        self._base = self._tensors(data)
        network = self._network(self._base)
        schedule = Schedule(
            int(extra.get("epochs", 1)),
            int(extra.get("seed", 0)),
            self.learning_rate,
            part=extra.get("part", (0.0, 1.0)),
        )
        mu = float(extra.get("proximal_mu", 0))
        trainer = self.data.trainer(
            network, schedule, self.device, ProximalTerm(mu, self._on_device(self._base)) if mu else None
        )
        self._run(trainer, f"{extra.get('name', 'training')}-{self.data.key[:16]}")
        # Averaged over the last steps: the learning rate does not fall to zero in a round, and single steps are noise.
        self._weights = {name: tensor.detach().cpu() for name, tensor in trainer.averaged_weights.items()}

    def get_weights(self, extra: Mapping[str, Any] | None = None) -> ExchangeObject:
        """The change from the global to the local weights, as `change` gives it."""
        return ExchangeObject(weights=self.change(), weight_type=WeightType.WEIGHT_DIFF)

    def change(self) -> dict[str, NDArray[np.float32]]:
        """Local minus global weights by name. Raises InputError before any training."""
        if self._weights is None:
            raise InputError("nothing was trained yet; call train first")
        return {name: (self._weights[name].float() - base).numpy() for name, base in self._base.items()}

    def evaluate(self, data: ExchangeObject, extra: Mapping[str, Any] | None = None) -> ExchangeObject:
        """Score weights on the site's own cases.

        Args:
            data: with `weights`; without them the local ones are scored.
            extra: "part" of the split; validation if left out.

        Returns:
            `metrics`: the mean over cases of each value of `Score`, None where none is known; "n" cases; "each" case's
            Dice.
        """
        part = (extra or {}).get("part", "validation")
        weights = self._tensors(data) if data.weights else self._weights
        if weights is None:
            raise InputError("nothing was trained yet; give the weights to score")
        with threads_for(self.data.task.patch, self.description):
            scores = self.data.scores(self._network(weights), part, self.device)
        means: dict[str, Any] = {}
        for field in fields(Score):
            known = [value for score in scores if (value := getattr(score, field.name)) is not None]
            means[field.name] = float(np.mean(known)) if known else None
        return ExchangeObject(metrics={**means, "n": len(scores), "each": [score.dice for score in scores]})

    def get_data_stats(self, extra: Mapping[str, Any] | None = None) -> ExchangeObject:
        """`statistics`: "samples" (training cases), "labels" (their shares, in thousandths), nothing else."""
        return ExchangeObject(statistics={"samples": self.data.samples, "labels": self.data.labels})

    def fine_tune(self, weights: Mapping[str, Any], schedule: Schedule, name: str) -> tuple[dict[str, Tensor], float]:
        """Weights fine-tuned on the training part, those that were best on the validation part, and their Dice there.

        Raises InputError where there is nothing to validate on; otherwise as `train`.
        """
        trainer = self.data.trainer(self._network(weights), schedule, self.device)
        self._run(trainer, f"{name}-{self.data.key[:16]}")
        if trainer.state.best_score is None:
            raise InputError("there is no validation case to choose by; add cases of more patients")
        return {key: tensor.cpu() for key, tensor in trainer.best_weights.items()}, trainer.state.best_score

    def abort(self, extra: Mapping[str, Any] | None = None) -> None:
        """End the training under way after its step; from any thread."""
        self._aborted = True

    def finalize(self, extra: Mapping[str, Any] | None = None) -> None:
        """Let go of cases and weights."""
        self._prepared.clear()
        self._weights, self._base = None, {}

    def check_cases(self) -> None:
        """Raises Changed where a case that is trained on was withdrawn."""
        if gone := self.source.withdrawn(self.data.names):
            raise Changed(f"{gone[0]}: it was withdrawn; the training begins anew without it")

    def _read(self, task: Task) -> SiteData:
        cases = self.source.find(task)
        if task.kind == "segmentation":
            return SegmentationData(task, cases, self._prepared)
        from twinfed.client.site_pictures import PictureData

        return PictureData(task, cases)

    def _network(self, weights: Mapping[str, Any]) -> nn.Module:
        network = self.data.network(self.description)
        own = network.state_dict()
        given = {name: torch.as_tensor(tensor) for name, tensor in weights.items()}
        stored = {name for name in own if name in given or not name.endswith("num_batches_tracked")}
        if stored != set(given) or any(given[name].shape != own[name].shape for name in given):
            raise InputError("the aggregator's model has other tensors than its network; tell its operator")
        network.load_state_dict({**own, **given})
        return network.to(self.device)

    def _tensors(self, data: ExchangeObject) -> dict[str, Tensor]:
        weights: Mapping[str, Any] = data.weights or {}
        return {name: torch.as_tensor(array, dtype=torch.float32).cpu() for name, array in weights.items()}

    def _on_device(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in weights.items()}

    def _run(self, trainer: Trainer[Any], name: str) -> None:
        """Train to the end, with checkpoints; others of the folder are of trainings that are over."""
        checkpoint = None if self.checkpoints is None else self.checkpoints / f"{name}.checkpoint"
        if checkpoint is not None:
            for old in checkpoint.parent.glob("*.checkpoint"):
                if old != checkpoint:
                    old.unlink(missing_ok=True)
            if checkpoint.exists():
                self._resume(trainer, checkpoint)
        saved, wait = time.monotonic(), SOONEST_SAVING

        def step(progress: TrainingProgress) -> None:
            nonlocal saved, wait
            try:
                self.watch(progress.done, f"step {progress.step}, loss {progress.loss:.3f}")
                if self._aborted:
                    raise Stopped("the training was ended; it can be gone on with")
            except Stopped:
                if checkpoint is not None:
                    trainer.save(checkpoint)
                raise
            if checkpoint is not None and time.monotonic() - saved > wait:
                started = time.monotonic()
                trainer.save(checkpoint)
                saved = time.monotonic()
                wait = max(SOONEST_SAVING, (saved - started) / SHARE_OF_SAVING)

        with threads_for(self.data.task.patch, self.description):
            trainer.run(step)

    @staticmethod
    def _resume(trainer: Trainer[Any], checkpoint: Path) -> None:
        try:
            trainer.resume(checkpoint)
        except InputError as error:
            logger.warning("%s (it is removed; the training begins anew)", error)
            checkpoint.unlink(missing_ok=True)


def check_own_task(task: Task) -> None:
    """Raises InputError where a task of this name means something else on this machine, as its cases would, too."""
    try:
        own = load_task(task.name)
    except InputError:
        return  # not known here: it is as the model says

    def meaning(one: Task) -> object:
        labels = sorted((label.value, label.name) for label in one.labels)
        return one.kind, [sequence.name for sequence in one.sequences], labels, one.classes

    if meaning(own) != meaning(task):
        raise InputError(
            f"the aggregator's task {task.name} has other sequences, labels or classes than this machine's; "
            "agree on one task file with its operator"
        )
