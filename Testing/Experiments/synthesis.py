"""Trains a network by synthesis and scores it on patients it never saw: the arms of the experiments of kind synthesis.

What an arm changes is the mixture that its patients are drawn from. Each is trained from random weights by the trainer
of the starter model (`starter.py`), for as many minutes of one core, synthesis and validation with them. What chooses
is synthetic patients of the arm's own mixture; measured are synthetic patients of heads that neither trained nor chose,
with contrast all at random and all by the signal equations, and real patients, scored as the starter is.

Settings: `mixture` (fields of `synthesis.Mixture`); `heads` and `head_seed` (one set of heads for all arms and seeds),
`work` (a folder that keeps them, relative to the experiment's file; else each run grows them anew); `patients`
(synthetic ones of each validation); `spacing` in mm, the same along all axes, `patch` in voxels; `minutes`,
`validations`, `learning_rate`; `data` (a folder of real cases of the task lgg-flair); `threads`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from calibration import real_patients
from networks import EqualTimeTrainer, configuration, in_own_process, stop_with_parent
from starter import StarterTrainer, SyntheticSamples, on_synthetic_patients, synthetic_patients
from starter_on_real import WAYS, scored_patients, summary

from twinfed.client.initial_model import task_of
from twinseg.errors import InputError
from twinseg.inference import choose_device
from twinseg.network import build_network, preset
from twinseg.phantom.heads import GrownHead, grow_heads
from twinseg.phantom.synthesis import Mixture, Synthesizer
from twinseg.preprocessing import label_values
from twinseg.tasks import Task, load_task
from twinseg.terminal import progress_bar

HELD_OUT = 0.12
"""Share of the heads whose patients choose the weights, and share of those whose patients are measured."""
CHOOSING, MEASURING = 11, 12
KINDS = {
    "random": Mixture(random_contrast=1.0, blended_contrast=0.0),
    "physical": Mixture(random_contrast=0.0, blended_contrast=0.0),
}
OF_TRAINING = ("minutes", "validations", "learning_rate")
OF_PATIENTS = ("mixture", "heads", "head_seed", "work", "patients", "spacing", "patch", "data")
OF_A_RUN = ("name", "seed", "threads")


class EqualTimeSynthesis(EqualTimeTrainer, StarterTrainer):
    """The starter's trainer by the clock that `networks` compares by."""


def run_arm(settings: Mapping[str, Any], beside: Path, device: str, told: str) -> dict[str, Any]:
    """Train and score one network in a process of its own.

    Returns measures, seconds, curves, facts on the data and the real patients' scores. Raises InputError for settings
    that cannot be, or a folder of real cases that is not there.
    """
    return in_own_process(train_and_score, settings, {*OF_TRAINING, *OF_PATIENTS, *OF_A_RUN}, beside, device, told)


def train_and_score(settings: Mapping[str, Any], beside: Path, device_name: str, told: str) -> dict[str, Any]:
    """What `run_arm` returns."""
    started = time.monotonic()
    torch.set_num_threads(settings.get("threads", 1))
    device = choose_device(device_name)
    task = task_of("brats-glioma", settings)
    real = real_patients(beside / settings["data"], load_task("lgg-flair"), sys.maxsize)
    with progress_bar(f"{told}, heads") as bar:
        heads = parts(grown(settings, beside, bar))
    trainer = make_trainer(settings, task, heads, device)
    with progress_bar(told) as bar:
        trainer.run(lambda progress: stop_with_parent(progress, bar))
    trainer.network.load_state_dict(trainer.best_weights)
    with progress_bar(f"{told}, real patients") as bar:
        rows = list(scored_patients(trainer.network, task, real, device, bar))
    found = {way: summary(rows, way) for way in WAYS}
    scores = {}
    for kind, mixture in KINDS.items():
        seeds = (settings["head_seed"], MEASURING)
        trainer.validation = synthetic_patients(heads["measured"], settings["patients"], task, seeds, mixture)
        scores[kind] = on_synthetic_patients(trainer, trainer.best_weights)["score"]
    return {
        "measures": {
            **{f"real, {way}": found[way]["dice_mean"] for way in WAYS},
            **{f"real missed, {way}": found[way]["missed_share"] for way in WAYS},
            **{f"synthetic, {kind}": score for kind, score in scores.items()},
            "own validation": trainer.state.best_score,
            "steps": trainer.state.step,
            "minutes": trainer.spent / 60,
        },
        "seconds": round(time.monotonic() - started, 1),
        "curves": {"score of own validation": [row["score"] for row in trainer.state.history]},
        "data": {
            **{f"heads {part}": len(those) for part, those in heads.items()},
            **{"real patients": len(rows), "spacing": task.spacing, "patch": task.patch},
        },
        "patients": rows,
    }


def grown(settings: Mapping[str, Any], beside: Path, report: Callable[[float, str], Any]) -> list[GrownHead]:
    """The heads, from the work folder or grown now."""
    count, folder = settings["heads"], beside / settings["work"] if "work" in settings else None

    def tell(done: int) -> None:
        report(done / count, f"head {done} of {count}")

    return grow_heads(count, settings["head_seed"], folder=folder, report=tell)


def parts(heads: Sequence[GrownHead]) -> dict[str, Sequence[GrownHead]]:
    """Heads that choose, that are measured and that train. Raises InputError where there are too few."""
    some = max(1, round(HELD_OUT * len(heads)))
    if len(heads) <= 2 * some:
        raise InputError(f"{len(heads)} heads cannot be parted in three; ask for more")
    return {"chosen by": heads[:some], "measured": heads[some : 2 * some], "trained on": heads[2 * some :]}


def make_trainer(
    settings: Mapping[str, Any], task: Task, heads: Mapping[str, Sequence[GrownHead]], device: torch.device
) -> EqualTimeSynthesis:
    """The trainer as it begins, with random weights of the seed. Raises InputError for settings that cannot be."""
    try:
        mixture = Mixture(**settings["mixture"])
    except TypeError as error:
        raise InputError(f"{settings['name']}: {error}; correct the experiment") from error
    seeds = (settings["head_seed"], CHOOSING)
    validation = synthetic_patients(heads["chosen by"], settings["patients"], task, seeds, mixture)
    synthesizer = Synthesizer(task.patch, task.spacing[0], device, mixture)
    samples = SyntheticSamples(heads["trained on"], synthesizer, settings["seed"])
    torch.manual_seed(settings["seed"])
    network = build_network(preset("small", len(task.sequences), len(label_values(task)), task.strides))
    return EqualTimeSynthesis(network, task, samples, validation, configuration(settings), device)
