"""`twinseg evaluate` for a classification task: how well a model tells the pictures of a folder apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from twinseg.cases import split_cases
from twinseg.classification import class_probabilities, load_classifier
from twinseg.classification_pictures import find_pictures, read_pictures
from twinseg.evaluation import choose_part
from twinseg.inference import Report
from twinseg.metrics import classification_metrics
from twinseg.training_run import split_file


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
