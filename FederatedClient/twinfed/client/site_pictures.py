"""Pictures as a site learns from them: the classification tasks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from twinfed.client.case_source import PARTS
from twinfed.client.site_data import Schedule, Score, SiteData, fingerprint
from twinfed.wire.messages import thousandths
from twinseg.cases import Case
from twinseg.classification import (
    ClassificationConfig,
    ClassificationTrainer,
    build_classifier,
    class_probabilities,
    network_description,
)
from twinseg.classification_pictures import LabelledPictures, read_pictures
from twinseg.errors import InputError
from twinseg.tasks import Task
from twinseg.trainer import ExtraLoss, Trainer

logger = logging.getLogger(__name__)
STEPS = 16
"""Of an epoch, where there are pictures enough."""
SMALLEST_BATCH = 4


class PictureData(SiteData):
    """Pictures of classes. Validation and test pictures that are copies of training pictures are left out."""

    def __init__(self, task: Task, cases: Mapping[str, Sequence[Case]]) -> None:
        usable = {part: [case for case in cases[part] if _readable(case, task)] for part in PARTS}
        super().__init__(task, [fingerprint(case) for case in usable["train"]])
        self.parts = {part: read_pictures(usable[part], task) for part in PARTS}
        for part in PARTS[1:]:
            pictures = self.parts[part]
            new = ~pictures.copies_of(self.parts["train"])
            self.parts[part] = LabelledPictures(pictures.images[new], pictures.targets[new])

    @property
    def labels(self) -> dict[str, int]:
        targets = self.parts["train"].targets
        return thousandths({name: int((targets == number).sum()) for number, name in enumerate(self.task.classes)})

    def network(self, description: Mapping[str, Any]) -> nn.Module:
        if dict(description) != network_description(self.task):
            raise InputError(f"the model is no classifier of {self.task.name}; tell the aggregator's operator")
        return build_classifier(self.task)

    def trainer(
        self, network: nn.Module, schedule: Schedule, device: torch.device, extra_loss: ExtraLoss | None = None
    ) -> Trainer[Any]:
        chosen_by = self.parts["validation"] if schedule.validations else None
        # A site with few pictures takes fewer at a time: else a round would be a handful of steps.
        batch = min(ClassificationConfig.batch_size, max(SMALLEST_BATCH, self.samples // STEPS))
        config = ClassificationConfig(**schedule.options(), batch_size=batch)
        return ClassificationTrainer(network, self.task, self.parts["train"], chosen_by, config, device, extra_loss)

    def scores(self, network: nn.Module, part: str, device: torch.device) -> list[Score]:
        pictures = self.parts[part]
        if not len(pictures):
            return []
        predicted = class_probabilities(network, pictures.images, device).argmax(1)
        return [Score(float(right)) for right in predicted == pictures.targets]


def _readable(case: Case, task: Task) -> bool:
    try:
        fingerprint(case)
        read_pictures([case], task)
    except InputError as error:
        logger.warning("%s (the picture is left out)", error)
        return False
    return True
