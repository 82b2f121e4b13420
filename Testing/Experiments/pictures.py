"""Experiments with classified pictures: hospitals made from one set, a model from a source domain, a federation.

The federation is `twinfed.simulation`, the source's model comes by `twinseg.classification`. An arm's settings are
    target, source     folders of pictures by class; the target's has the parts train, valid and test
    source_classes     the source's classes; all its pictures are trained on pretrain_epochs times; 0: random weights
    sites, alpha       hospitals, made from the train part by a Dirichlet(alpha) draw of each class's shares
    rounds, epochs     a round is one training of every hospital, also where the strategy visits them in turn
    task, side (pixels), strategy, learning_rate, pretrain_learning_rate, converged (`picture_scores.converged_after`)
Hospitals hold training pictures only. The aggregator holds the valid part, and the round is chosen by it. Where
hospitals are served by different models, scores are means over hospitals by their training pictures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from picture_scores import converged_after, in_own_mix, mean_of, score_sites, served_models

from twinfed.aggregator.strategies import Transfer
from twinfed.client.initial_model import task_of, write_initial_model
from twinfed.simulation import simulate, simulation_of
from twinseg.cases import Case
from twinseg.classification import ClassificationConfig, ClassificationTrainer, network_description, start_classifier
from twinseg.classification_pictures import LabelledPictures, find_pictures, read_pictures
from twinseg.errors import InputError
from twinseg.inference import Report
from twinseg.model_file import save_model
from twinseg.tasks import Task
from twinseg.terminal import progress_bar

PARTS = ("train", "validation", "test")
CACHE = Path(tempfile.gettempdir()) / "twinseg-source-models"
OF_THE_SOURCE = ("source_classes", "side", "pretrain_epochs", "pretrain_learning_rate", "seed")
OF_THE_FEDERATION = ("seed", "epochs", "learning_rate", "strategy")
SMALLEST_SHARE = 0.2
"""Of an equal part: what every hospital is given at least."""


@dataclasses.dataclass(frozen=True)
class Target:
    """The target's pictures by part: their files, and as the network sees them."""

    task: Task
    cases: Mapping[str, Sequence[Case]]
    pictures: Mapping[str, LabelledPictures]

    @classmethod
    def read(cls, folder: Path, task: Task) -> Target:
        """Raises InputError where the folder or one of its parts is missing."""
        found = find_pictures(folder, task)
        cases = {part: [case for case in found if case.part == part] for part in PARTS}
        if missing := [part for part in PARTS if not cases[part]]:
            raise InputError(f"{folder}: it has no {missing[0]} part; give it the folders train, valid and test")
        return cls(task, cases, {part: read_pictures(cases[part], task) for part in PARTS})

    def without_copies(self, part: str) -> LabelledPictures:
        """A part without the pictures that are, pixel for pixel, training pictures."""
        pictures = self.pictures[part]
        new = ~pictures.copies_of(self.pictures["train"])
        return LabelledPictures(pictures.images[new], pictures.targets[new])


def run_arm(settings: Mapping[str, Any], beside: Path, device: str, told: str) -> dict[str, Any]:
    """One arm: the source's model, the federation from it, and the test scores of the round that validation chose.

    Raises InputError where a folder of pictures is missing.
    """
    started = time.perf_counter()
    task = task_of(settings["task"], {"patch": [settings["side"], settings["side"], 1]})
    target = Target.read((beside / settings["target"]).resolve(), task)
    counts = table_of_sites(target.pictures["train"].targets, settings["sites"], settings["alpha"], settings["seed"])
    with tempfile.TemporaryDirectory() as name, progress_bar(told) as bar:
        folder = Path(name)
        source = source_model(settings, beside, task, device, bar)
        write_initial_model(folder / "initial.safetensors", task, seed=settings["seed"], init=source)
        sites = write_sites(folder / "sites", target, counts, settings["seed"])
        turns = len(sites) if settings["strategy"]["name"] == Transfer.name else 1
        content = {
            **{key: settings[key] for key in OF_THE_FEDERATION},
            "name": f"{settings['name']}-{settings['seed']}",  # it seeds the trainings
            "task": task.name,
            "model": folder / "initial.safetensors",
            "sites": sites,
            "rounds": settings["rounds"] * turns,
        }
        clock = Clock(bar, device)
        measured = simulate(simulation_of(content, beside), folder / "run", device, clock)
        rounds = served_models(folder / "run/federation", list(sites))[turns - 1 :: turns]
        bar(0.98, "scoring the rounds")
        result = scores(rounds, target, counts, settings["converged"], clock.by_round(turns), device)
    sent = sum(row["bytes"]["up"] for row in measured["rounds"])
    # A hospital fetches a model when it is to train; the simulation fetches one after every round, too, to score it.
    result["measures"]["MB"] = (sent + settings["rounds"] * len(sites) * measured["model_bytes"]) / 1e6
    return {**result, "data": facts(target, sites, counts), "seconds": round(time.perf_counter() - started, 1)}


def scores(
    rounds: Sequence[Mapping[str, Path]],
    target: Target,
    counts: NDArray[np.int64],
    converged: Mapping[str, Any],
    seconds: Mapping[str, Sequence[float]],
    device: str,
) -> dict[str, Any]:
    """Each round's models on validation pictures; on test pictures those of the round that was best there."""
    names = list(rounds[0])
    shares = dict(zip(names, (counts.sum(1) / counts.sum()).tolist(), strict=True))
    mix = dict(zip(names, counts / counts.sum(1, keepdims=True), strict=True))
    validation = target.without_copies("validation")
    followed = [mean_of(score_sites(served, validation, target.task, device), shares) for served in rounds]
    accuracy, loss = [one["accuracy"] for one in followed], [one["loss"] for one in followed]
    best = max(range(len(rounds)), key=lambda number: (accuracy[number], -loss[number]))
    by_site = score_sites(rounds[best], target.pictures["test"], target.task, device)
    test = mean_of(by_site, shares)
    new = mean_of(score_sites(rounds[best], target.without_copies("test"), target.task, device), shares)
    until = converged_after(accuracy, loss, **converged)
    last = until or len(rounds)
    home = in_own_mix(by_site, mix)
    return {
        "measures": {
            "accuracy": test["accuracy"],
            "accuracy (de-duplicated)": new["accuracy"],
            **{name: test["macro"][name.lower()] for name in ("precision", "recall", "F1")},
            "rounds to convergence": last,
            "seconds to convergence": round(sum(seconds["in turn"][:last]), 1),
            "seconds, hospitals at once": round(sum(seconds["at once"][:last]), 1),
            "accuracy in own mix": sum(shares[site] * value for site, value in home.items()),
        },
        "curves": {"validation accuracy": accuracy, "validation loss": loss},
        "confusion": {
            "classes": list(target.task.classes),
            "published": test["confusion"],
            "de-duplicated": new["confusion"],
        },
        "test": {"published": test, "de-duplicated": new},
        "by_site": {site: {"accuracy": one["accuracy"], "in own mix": home[site]} for site, one in by_site.items()},
        "chosen": {"round": best + 1, "accuracy": accuracy[best], "loss": loss[best]},
        "converged": until is not None,
        "models": [len(set(served.values())) for served in rounds],
        "seconds_by_round": seconds,
    }


def table_of_sites(targets: NDArray[np.int64], sites: int, alpha: float, seed: int) -> NDArray[np.int64]:
    """How many pictures of each class each hospital is given (sites, classes): for each class a Dirichlet(alpha) draw.

    Drawn again until no hospital has less than a fifth of an equal part. Raises InputError where that does not come.
    """
    random = np.random.default_rng([seed, 2026])
    totals = np.bincount(targets)
    for _ in range(1000):
        shares = random.dirichlet([alpha] * sites, len(totals))
        ends = np.rint(shares.cumsum(1) * totals[:, None]).astype(np.int64)
        counts = np.diff(ends, axis=1, prepend=0).T
        if counts.sum(1).min() >= max(1, SMALLEST_SHARE * len(targets) / sites):
            return counts
    raise InputError(f"no draw gives each of {sites} hospitals enough of {len(targets)} pictures; raise alpha")


def write_sites(folder: Path, target: Target, counts: NDArray[np.int64], seed: int) -> dict[str, Path]:
    """Deal the training pictures, in random order, into a folder for each hospital: train/CLASS/NUMBER.png."""
    random = np.random.default_rng([seed, 2027])
    targets = target.pictures["train"].targets
    sites = {f"HOSPITAL-{number + 1}": folder / f"HOSPITAL-{number + 1}" for number in range(len(counts))}
    for kind, name in enumerate(target.task.classes):
        members = random.permutation(np.flatnonzero(targets == kind))
        for site, mine in zip(sites.values(), np.split(members, counts[:, kind].cumsum()[:-1]), strict=True):
            (site / "train" / name).mkdir(parents=True)
            for number in mine:
                (picture,) = target.cases["train"][number].images.values()
                shutil.copyfile(picture, site / "train" / name / f"{number:04}{picture.suffix}")
    return sites


def source_model(settings: Mapping[str, Any], beside: Path, task: Task, device: str, report: Report) -> Path | None:
    """A classifier of the source's pictures, trained once for all arms of a seed; None where none is wanted."""
    if not settings["pretrain_epochs"]:
        return None
    classes = tuple(settings["source_classes"])
    source = dataclasses.replace(task, name=f"{task.name}-source", classes=classes)
    pictures = read_pictures(find_pictures((beside / settings["source"]).resolve(), source), source)
    known = [{key: settings[key] for key in OF_THE_SOURCE}, task.to_toml(), pictures.hashes, pictures.targets.tolist()]
    path = CACHE / f"{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:24]}.safetensors"
    if path.exists():
        return path
    torch.manual_seed(settings["seed"])
    network, _ = start_classifier(source, None)
    config = ClassificationConfig(
        epochs=settings["pretrain_epochs"],
        learning_rate=settings["pretrain_learning_rate"],
        validations=1,
        seed=settings["seed"],
    )
    trainer = ClassificationTrainer(network, source, pictures, None, config, device)
    trainer.run(lambda progress: report(progress.done, f"learning the source, loss {progress.loss:.3f}"))
    CACHE.mkdir(exist_ok=True)
    save_model(
        path,
        trainer.averaged_weights,
        task=source,
        network=network_description(source),
        provenance={"seed": settings["seed"], "epochs": settings["pretrain_epochs"]},
    )
    return path


def facts(target: Target, sites: Mapping[str, Path], counts: NDArray[np.int64]) -> dict[str, Any]:
    """How many pictures there are of each part, and of each class at each hospital."""
    pictures = {part: len(target.pictures[part]) for part in PARTS}
    new = {f"{part}, de-duplicated": len(target.without_copies(part)) for part in PARTS[1:]}
    rows = [dict(zip(target.task.classes, row, strict=True)) for row in counts.tolist()]
    return {**pictures, **new, "hospitals": dict(zip(sites, rows, strict=True))}


class Clock:
    """Listens to a simulation's reports, hands them on, and keeps how long each hospital's training took.

    On a CPU in seconds of its processors, which other programs do not change; else in seconds of the clock.
    """

    TURN = re.compile(r"round (\d+) of \d+: ")

    def __init__(self, report: Report, device: str) -> None:
        self.report, self.now = report, time.process_time if device == "cpu" else time.perf_counter
        self.turns: list[tuple[int, float]] = []
        self._under_way: tuple[int, float] | None = None

    def __call__(self, done: float, stage: str) -> None:
        if self._under_way:
            number, since = self._under_way
            self.turns.append((number, self.now() - since))
        turn = self.TURN.match(stage)
        self._under_way = (int(turn.group(1)), self.now()) if turn else None
        self.report(done, stage)

    def by_round(self, turns: int) -> dict[str, list[float]]:
        """Seconds of each round, hospitals one after another ("in turn"), and as if they computed at once where the
        strategy lets them ("at once"); so many `turns` of the federation are a round."""
        last = max(number for number, _ in self.turns)
        each = [[seconds for number, seconds in self.turns if number == one] for one in range(1, last + 1)]
        return {
            name: [round(sum(map(total, each[first : first + turns])), 2) for first in range(0, last, turns)]
            for name, total in (("in turn", sum), ("at once", max))
        }
