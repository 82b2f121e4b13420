"""`twinseg train` for a classification task: from a folder of pictures to a model file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from twinseg.cases import split_cases
from twinseg.classification import (
    ClassificationConfig,
    ClassificationTrainer,
    network_description,
    start_classifier,
)
from twinseg.classification_pictures import LabelledPictures, find_pictures, read_pictures
from twinseg.errors import InputError
from twinseg.inference import Report
from twinseg.network import PRESETS
from twinseg.tasks import Task
from twinseg.training_run import TrainingRequest, check_output, run_to_model, split_file

DEFAULT_MINUTES = 15.0
SMALL_SIDE = 128
"""Longest side in pixels of the pictures that the preset `small` trains on; `base` takes the task's whole patch."""
SMALLEST_SIDE = 32
"""DenseNet-121 halves its input five times."""


def train_classifier(request: TrainingRequest, report: Report = lambda done, stage: None) -> dict[str, Any]:
    """Train a classifier on the training part of a folder; keep the weights best on its validation part.

    The test part is not looked at, and validation pictures that are copies of training pictures are left out. Returns
    what was measured. Raises InputError for data that cannot be trained on, Cancelled as `run_to_model`.
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
    config = ClassificationConfig(**request.options(DEFAULT_MINUTES))
    trainer = ClassificationTrainer(network, task, training, validation, config, request.device)
    return run_to_model(trainer, request, task, split, network=network_description(task), parent=parent, report=report)


def shrunk(task: Task, preset: str) -> Task:
    """The task at the preset's picture size. It goes into the model file, so that the model is always fed that size."""
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r} is unknown: use one of {', '.join(PRESETS)}")
    columns, rows, _ = task.patch
    factor = min(1.0, SMALL_SIDE / max(columns, rows)) if preset != "base" else 1.0
    columns, rows = round(columns * factor), round(rows * factor)
    if min(columns, rows) < SMALLEST_SIDE:
        raise InputError(f"task {task.name}: DenseNet-121 needs {SMALLEST_SIDE} pixels a side; give it a larger patch")
    return replace(task, patch=(columns, rows, 1))
