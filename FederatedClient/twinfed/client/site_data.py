"""What a site learns from, in memory: the seam between a federation and what is learnt, segmentation or classes.

`SegmentationData` is here; `site_pictures.PictureData` does the same for classification.
"""

from __future__ import annotations

import hashlib
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from twinfed.client.case_source import PARTS
from twinfed.wire.messages import thousandths
from twinseg.cases import Case, load_case
from twinseg.errors import InputError
from twinseg.inference import predict_anywhere
from twinseg.metrics import segmentation_metrics
from twinseg.network import NetworkConfig, build_network
from twinseg.preprocessing import PreparedCase, label_values, prepare
from twinseg.tasks import Task
from twinseg.trainer import ExtraLoss, Trainer
from twinseg.training import SegmentationConfig, SegmentationTrainer

logger = logging.getLogger(__name__)
Fingerprint = tuple[Any, ...]
LONGEST_DISTANCE = 1000.0
"""mm: what a report may hold at most; no body part is longer."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a site trains at a time.

    Attributes:
        epochs: passes over the training cases.
        seed: of the order of the cases and of every random change.
        learning_rate: the highest; None for the training's own default.
        validations: how often the validation part is scored, to keep the best weights; 0 keeps the last ones.
        part: where on the whole course of the learning rate this training begins and ends, 0 to 1.
    """

    epochs: int
    seed: int
    learning_rate: float | None = None
    validations: int = 0
    part: tuple[float, float] = (0.0, 1.0)

    def options(self) -> dict[str, Any]:
        """As a `TrainingConfig` takes it. Nothing is stopped early: the rounds are short."""
        rate = {} if self.learning_rate is None else {"learning_rate": self.learning_rate}
        chosen = max(1, self.validations)
        stop = {"validations": chosen, "patience": chosen + 1}
        return {"epochs": self.epochs, "seed": self.seed, "part": self.part, **stop, **rate}


@dataclass(frozen=True)
class Score:
    """How good a model is on one case: means over regions; of a classification, Dice is 1 if it is right, else 0.

    Attributes:
        hd95: 95th percentile of the Hausdorff distance, mm.
        sensitivity: share of the region's voxels that are found; None where there are none.
        specificity: share of the other voxels that are not taken for it.
    """

    dice: float
    hd95: float | None = None
    sensitivity: float | None = None
    specificity: float | None = None


class SiteData(ABC):
    """The cases of a site by part of the split, ready for a network.

    Attributes:
        task: what is learnt.
        names: of the training cases, for the queue; they never leave the site.
        key: tells this set of training cases, and versions of their labels, from any other.
    """

    def __init__(self, task: Task, training: Sequence[Fingerprint]) -> None:
        self.task = task
        self.names = [name for name, *_ in training]
        self.key = hashlib.sha256(repr(list(training)).encode()).hexdigest()

    @property
    def samples(self) -> int:
        """Training cases."""
        return len(self.names)

    @property
    @abstractmethod
    def labels(self) -> dict[str, int]:
        """For each label (class) by name, its share of the labelled voxels (pictures) in training, in thousandths."""

    @abstractmethod
    def network(self, description: Mapping[str, Any]) -> nn.Module:
        """A network as a model file describes it. Raises InputError for one that cannot learn this task."""

    @abstractmethod
    def trainer(
        self, network: nn.Module, schedule: Schedule, device: torch.device, extra_loss: ExtraLoss | None = None
    ) -> Trainer[Any]:
        """A trainer of the network on the training part; scored on the validation part if the schedule says so."""

    @abstractmethod
    def scores(self, network: nn.Module, part: str, device: torch.device) -> list[Score]:
        """How good the network is on each case of a part."""


class SegmentationData(SiteData):
    """Cases with label maps. One whose files have vanished or are damaged is left out, and said once.

    Args:
        known: cases that are prepared already, by `fingerprint`; brought up to date, so that only new ones are read.
    """

    def __init__(
        self, task: Task, cases: Mapping[str, Sequence[Case]], known: dict[Fingerprint, PreparedCase] | None = None
    ) -> None:
        known = {} if known is None else known
        before = dict(known)
        known.clear()
        usable: dict[str, list[Fingerprint]] = {part: [] for part in PARTS}
        for part in PARTS:
            for case in cases[part]:
                try:
                    mark = fingerprint(case)
                    known[mark] = before.get(mark) or prepare(load_case(case, task), task, name=case.name)
                    usable[part].append(mark)
                except InputError as error:
                    logger.warning("%s (the case is left out)", error)
        self.parts = {part: [known[mark] for mark in marks] for part, marks in usable.items()}
        super().__init__(task, usable["train"])

    @property
    def labels(self) -> dict[str, int]:
        names = [label.name for label in self.task.labels]
        counts = np.zeros(1 + len(names), np.int64)
        for case in self.parts["train"]:
            if case.labels is not None:
                counts += np.bincount(case.labels.ravel(), minlength=len(counts))
        return thousandths(dict(zip(names, counts[1:].tolist(), strict=True)))

    def network(self, description: Mapping[str, Any]) -> nn.Module:
        try:
            config = NetworkConfig.from_dict(description)
            network = build_network(config)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"the model describes no network that is known here ({error}); update TwinSeg") from error
        wanted = len(self.task.sequences), len(label_values(self.task))
        if (config.in_channels, config.out_channels) != wanted:
            raise InputError(
                f"the model has {config.in_channels} inputs and {config.out_channels} outputs, its task "
                f"{self.task.name} has {wanted[0]} and {wanted[1]}; tell the aggregator's operator"
            )
        return network

    def trainer(
        self, network: nn.Module, schedule: Schedule, device: torch.device, extra_loss: ExtraLoss | None = None
    ) -> Trainer[Any]:
        chosen_by = self.parts["validation"] if schedule.validations else []
        config = SegmentationConfig(**schedule.options())
        training: Any = network
        return SegmentationTrainer(training, self.task, self.parts["train"], chosen_by, config, device, extra_loss)

    def scores(self, network: nn.Module, part: str, device: torch.device) -> list[Score]:
        values = np.asarray(label_values(self.task))
        found = []
        learnt: Any = network
        for case in self.parts[part]:
            predicted = predict_anywhere(learnt, case.image, self.task, device)[0].argmax(0)
            regions = segmentation_metrics(values[predicted], values[case.labels], self.task, case.spacing).values()
            distance = float(np.mean([region["hd95"] for region in regions]))
            dice = float(np.mean([region["dice"] for region in regions]))
            rates = (_mean_of_known(region[name] for region in regions) for name in ("sensitivity", "specificity"))
            found.append(Score(dice, min(distance, LONGEST_DISTANCE), *rates))
        return found


def fingerprint(case: Case) -> Fingerprint:
    """The case's name and what changes when one of the case's files does. Raises InputError where one is gone."""
    files = sorted({*case.images.values(), *([case.labels] if case.labels else [])})
    return (case.name, *((str(path), _changed(path)) for path in files))


def _mean_of_known(values: Iterable[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else None


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise InputError(f"{path}: it is gone ({error.strerror}); restore it, or withdraw its case") from error
