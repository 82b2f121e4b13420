"""`twinseg evaluate`: how well a model draws the cases of a folder, each on its own grid."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from twinseg.cases import Case, find_cases, split_cases
from twinseg.errors import InputError
from twinseg.inference import Report, segment
from twinseg.metrics import segmentation_metrics, summarize
from twinseg.segmentation import LoadedModel, loaded_cases
from twinseg.training_run import split_file


def evaluate(
    data: Path,
    model: LoadedModel,
    *,
    part: str = "test",
    device: torch.device | str = "cpu",
    flips: bool = True,
    report: Report = lambda done, stage: None,
) -> dict[str, Any]:
    """Metrics of each labelled case of a part (train, validation, test or all) of a folder, and their summary.

    Raises InputError for an empty part, Cancelled when `report` asks for it.
    """
    cases = find_cases(data, model.task, require_labels=True)
    chosen = choose_part(cases, data, part)
    rows = []
    for case, loaded in loaded_cases(chosen, model.task, "evaluating", report):
        started = time.perf_counter()
        result = segment(model.network, loaded, model.task, device=device, flips=flips)
        seconds = time.perf_counter() - started
        assert loaded.labels is not None
        drawn, truth, grid = result.labels.array, loaded.labels.array, loaded.reference
        metrics = segmentation_metrics(drawn, truth, model.task, grid.spacing, grid.voxel_ml)
        rows.append({"case": case.name, "site": case.site, "seconds": round(seconds, 3), "regions": metrics})
    return {"model": model.hash, "part": part, "n": len(rows), "cases": rows, "summary": summarize(rows)}


def choose_part(cases: Sequence[Case], data: Path, part: str) -> list[Case]:
    """The cases of one part of the folder's own split."""
    if part == "all":
        return list(cases)
    names = set(getattr(split_cases(split_file(data), list(cases)), part))
    chosen = [case for case in cases if case.name in names]
    if not chosen:
        raise InputError(f"{data}: its {part} part is empty; use --split all, or add patients")
    return chosen
