"""Trains a network on one folder of cases and scores it: the arms of the experiments of kind "networks".

What chooses is the validation part alone; the test part is scored once, at the end, with the weights that validation
chose. Every run is a process of its own, so that its peak memory is its own. All networks have the same trainer, that
of `twinseg train`: cases, split, random changes, loss (no deep supervision), optimiser, bfloat16 where it is faster.

Settings: `data` (a folder, relative to the experiment's file) or, also where that folder is missing, `phantoms` (what
`write_cohort` takes); `task`, `spacing` in mm, `patch` in voxels; `network` (see `networks_peers.build`); `minutes` or
`epochs`, `validations`, `drop_probability`, `learning_rate`; `threads`. `time_inference` adds the seconds a case;
`drop_sequences` scores each sequence and each pair left out instead, on the test patients that have all sequences.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from networks_peers import build, clock, take_faster_layout
from torch import Tensor

from twinfed.client.initial_model import task_of
from twinfed.client.simulated_site import phantom_sites
from twinseg.cases import Case, find_cases, load_case, split_cases
from twinseg.errors import Cancelled, InputError
from twinseg.inference import choose_device, predict
from twinseg.machine import peak_memory
from twinseg.metrics import segmentation_metrics
from twinseg.network import count_parameters
from twinseg.preprocessing import PreparedCase, label_values, prepare
from twinseg.tasks import Task
from twinseg.terminal import progress_bar
from twinseg.trainer import TrainingProgress
from twinseg.training import SegmentationConfig, SegmentationTrainer
from twinseg.training_run import split_file

Cases = Mapping[str, Sequence[Case]]
"""Cases by part of the split."""

OF_TRAINING = ("minutes", "epochs", "validations", "drop_probability", "learning_rate")
OF_DATA = ("data", "phantoms", "task", "spacing", "patch")
OF_A_RUN = ("name", "seed", "network", "threads", "time_inference", "drop_sequences")


def run_arm(settings: Mapping[str, Any], beside: Path, device: str, told: str) -> dict[str, Any]:
    """Train and score one network in a process of its own.

    Returns measures, seconds, curves, facts on the data and the test patients' scores. Raises InputError
    for settings that cannot be, or a folder of cases that is not there.
    """
    return in_own_process(train_and_score, settings, {*OF_TRAINING, *OF_DATA, *OF_A_RUN}, beside, device, told)


def in_own_process(
    work: Callable[..., dict[str, Any]], settings: Mapping[str, Any], known: Set[str], *more: Any
) -> dict[str, Any]:
    """What some work returns of an arm's settings. Raises InputError for a setting that is not among the known."""
    if unknown := sorted(settings.keys() - known):
        raise InputError(f"{settings['name']}: the setting {unknown[0]} is not known here; correct the experiment")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, dict(settings), *more).result()


def train_and_score(settings: Mapping[str, Any], beside: Path, device_name: str, told: str) -> dict[str, Any]:
    """What `run_arm` returns."""
    started = time.monotonic()
    torch.set_num_threads(settings.get("threads", 1))
    device, task = choose_device(device_name), task_of(settings["task"], settings)
    with tempfile.TemporaryDirectory() as scratch:
        cases = read_cases(settings, task, beside, Path(scratch))
        training, validation = (prepared(cases[part], task) for part in ("train", "validation"))
        torch.manual_seed(settings["seed"])
        network: Any = build(settings["network"], task)
        layout = take_faster_layout(network, len(task.sequences), task.patch, device)
        trainer = EqualTimeTrainer(network, task, training, validation, configuration(settings), device)
        with progress_bar(told) as bar:
            trainer.run(lambda progress: stop_with_parent(progress, bar))
        network.load_state_dict(trainer.best_weights)
        found = dropped_scores if settings.get("drop_sequences") else test_scores
        measures, detail = found(trainer, cases["test"])
        if settings.get("time_inference"):
            measures["seconds a case"] = mean(seconds_a_pass(trainer, case) for case in prepared(cases["test"], task))
    return {
        "measures": measures,
        "seconds": round(time.monotonic() - started, 1),
        "curves": {"validation Dice": [row["score"] for row in trainer.state.history]},
        "data": {
            **{part: len(of_part) for part, of_part in cases.items()},
            "spacing": task.spacing,
            "patch": task.patch,
        },
        "parameters": count_parameters(network),
        "steps": trainer.state.step,
        "layout": layout,
        **detail,
    }


class EqualTimeTrainer(SegmentationTrainer):
    """The trainer whose minutes are those of `clock`, validation with them: each network has as much of the machine."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.began, self.spent = clock(self.device), 0.0

    @property
    def done(self) -> float:
        if self.config.minutes is None:
            return super().done
        return min(1.0, self.spent / (60 * self.config.minutes))

    def _step(self, batch: dict[str, Tensor]) -> float:
        loss = super()._step(batch)
        self.spent = clock(self.device) - self.began  # here alone, as `done` must not move between steps
        return loss


def configuration(settings: Mapping[str, Any]) -> SegmentationConfig:
    """How long and how a network is trained; never stopped early, so that arms are alike. Raises InputError."""
    options = {key: settings[key] for key in OF_TRAINING if key in settings}
    try:
        config = SegmentationConfig(seed=settings["seed"], **options)
        return dataclasses.replace(config, patience=config.validations + 1)
    except (TypeError, ValueError) as error:
        raise InputError(f"{settings['name']}: {error}; correct the experiment") from error


def read_cases(settings: Mapping[str, Any], task: Task, beside: Path, scratch: Path) -> dict[str, list[Case]]:
    """The labelled cases of each part of the split; phantoms are written to `scratch`. Raises InputError."""
    folder = beside / settings["data"] if "data" in settings else None
    if folder is None or not folder.is_dir():
        if "phantoms" not in settings:
            raise InputError(f"{folder}: there is no such folder of cases; put the data there, or name phantoms")
        folder = scratch / "phantoms"
        phantom_sites(folder, settings["phantoms"], settings["seed"])
    cases = find_cases(folder, task, require_labels=True)
    split = split_cases(split_file(folder), cases)
    parts = {part: [case for case in cases if case.name in names] for part, names in vars(split).items()}
    if empty := [part for part, of_part in parts.items() if not of_part]:
        raise InputError(f"{folder}: no case is left for {empty[0]}; add patients")
    return parts


def prepared(cases: Sequence[Case], task: Task, without: Sequence[str] = ()) -> list[PreparedCase]:
    """The cases as a network sees them, as if they had never had the sequences `without`."""
    found = []
    for case in cases:
        images = {name: path for name, path in case.images.items() if name not in without}
        left = dataclasses.replace(case, images=images)
        found.append(prepare(load_case(left, task), task, name=case.name, site=case.site))
    return found


def stop_with_parent(progress: TrainingProgress, bar: Any) -> None:
    """Tell how far the training is. Raises Cancelled where nobody is left to hand the result to."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise Cancelled("the experiment was stopped")
    bar(progress.done, f"step {progress.step}, loss {progress.loss:.3f}")


def scores(trainer: SegmentationTrainer, cases: Sequence[PreparedCase]) -> list[dict[str, Any]]:
    """Site, Dice and HD95 (mm) of each case, mean over regions, on the grid that the network sees."""
    values, found = np.asarray(label_values(trainer.task)), []
    for case in cases:
        assert case.labels is not None
        drawn = predict(trainer.network, case.image, trainer.task, trainer.device).argmax(0)
        regions = segmentation_metrics(values[drawn], values[case.labels], trainer.task, case.spacing).values()
        each = {name: mean(region[name] for region in regions) for name in ("dice", "hd95")}
        found.append({"site": case.site, **each})
    return found


def test_scores(trainer: EqualTimeTrainer, cases: Sequence[Case]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns of a table of networks, and the scores of each test patient."""
    each = scores(trainer, prepared(cases, trainer.task))
    measures = {
        "Dice (test)": mean(row["dice"] for row in each),
        "Dice (validation)": trainer.state.best_score,
        "HD95 mm": mean(row["hd95"] for row in each),
        "parameters (M)": count_parameters(trainer.network) / 1e6,
        "minutes": trainer.spent / 60,
        "steps": trainer.state.step,
        "peak GB": peak_memory(trainer.device),
    }
    return measures, {"patients": each}


def seconds_a_pass(trainer: SegmentationTrainer, case: PreparedCase) -> float:
    """Of the network over a whole prepared case of a size that it has met before."""
    predict(trainer.network, case.image, trainer.task, trainer.device)
    started = clock(trainer.device)
    predict(trainer.network, case.image, trainer.task, trainer.device)
    return clock(trainer.device) - started


def dropped_scores(trainer: EqualTimeTrainer, cases: Sequence[Case]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Test Dice with all sequences, without each and without each pair, and what one and what two cost on average."""
    names = [sequence.name for sequence in trainer.task.sequences]
    complete = [case for case in cases if set(names) <= case.images.keys()]
    if not complete:
        raise InputError("no test patient has all sequences, so none can be left out; use other data")
    dice: dict[tuple[str, ...], float] = {}
    for count in range(min(3, len(names))):
        for without in combinations(names, count):
            each = scores(trainer, prepared(complete, trainer.task, without))
            dice[without] = mean(row["dice"] for row in each)
    told = {"no " + ", no ".join(without): value for without, value in dice.items() if without}
    costs = {
        f"{word} missing costs": dice[()] - mean(value for without, value in dice.items() if len(without) == count)
        for count, word in ((1, "one"), (2, "two"))
        if count < len(names)
    }
    measures = {"all sequences": dice[()], **told, **costs, "Dice (validation)": trainer.state.best_score}
    return measures, {"complete test patients": len(complete)}
