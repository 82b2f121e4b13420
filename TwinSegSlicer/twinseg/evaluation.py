"""`twinseg evaluate`: how well a model draws the cases of a folder, each on its own grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from twinseg.cases import Case, find_cases, load_case, split_cases
from twinseg.errors import InputError
from twinseg.inference import segment
from twinseg.metrics import segmentation_metrics, summarize
from twinseg.model_file import load_model
from twinseg.network import NetworkConfig, ViTUNet, build_network
from twinseg.tasks import Task
from twinseg.training_run import split_file


@dataclass(frozen=True)
class LoadedModel:
    """A network with its weights, ready to segment, and what it was made for."""

    network: ViTUNet
    task: Task
    hash: str


def load_network(path: Path, task: Task | None = None) -> LoadedModel:
    """The segmentation network of a model file. Raises InputError for a damaged file or a model for another task."""
    model = load_model(path, expected_task=task)
    if model.card.task.kind != "segmentation":
        raise InputError(f"{path}: this model classifies, it does not segment; name a segmentation model")
    network = build_network(NetworkConfig.from_dict(model.card.network))
    network.load_state_dict(model.tensors)
    return LoadedModel(network.eval(), model.card.task, model.card.hash)


def evaluate(
    data: Path,
    model: LoadedModel,
    *,
    part: str = "test",
    device: torch.device | str = "cpu",
    flips: bool = True,
    report: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> dict[str, Any]:
    """Metrics of each labelled case of a part (train, validation, test or all) of a folder, and their summary."""
    cases = find_cases(data, model.task, require_labels=True)
    chosen = choose_part(cases, data, part)
    rows = []
    for number, case in enumerate(chosen):
        report(number, len(chosen), case.name)
        loaded = load_case(case, model.task)
        started = time.perf_counter()
        result = segment(model.network, loaded, model.task, device=device, flips=flips)
        seconds = time.perf_counter() - started
        assert loaded.labels is not None
        metrics = segmentation_metrics(result.labels.array, loaded.labels.array, model.task, loaded.reference.spacing)
        rows.append({"case": case.name, "site": case.site, "seconds": round(seconds, 3), "regions": metrics})
    report(len(chosen), len(chosen), "")
    return {"model": model.hash, "part": part, "cases": rows, "summary": summarize(rows)}


def choose_part(cases: Sequence[Case], data: Path, part: str) -> list[Case]:
    """The cases of one part of the folder's own split."""
    if part == "all":
        return list(cases)
    names = set(getattr(split_cases(split_file(data), list(cases)), part))
    chosen = [case for case in cases if case.name in names]
    if not chosen:
        raise InputError(f"{data}: its {part} part is empty; use --split all, or add patients")
    return chosen
