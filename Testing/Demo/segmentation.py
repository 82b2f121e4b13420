"""Segment synthetic patients with the shipped model; train it further on real ones, where they are at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from Demo.commands import Commands
from twinseg.cases import find_cases, load_case
from twinseg.pictures import slices_picture
from twinseg.segmentation import starter_model
from twinseg.tasks import load_task
from twinseg.volumes import read_labels

STARTER = "brats-glioma"
"""The task whose model is shipped."""
RATE = "2e-4"
"""Learning rate: low, as in minutes at the usual one it would forget more than it learns."""


def show_synthetic(commands: Commands, folder: Path) -> None:
    """Two hospitals' synthetic patients, as a new user segments them: with the shipped model as it is."""
    page, cohort = commands.page, folder / "phantoms"
    page.heading("Segmentation: two hospitals, synthetic patients")
    commands.run("twinseg", "phantom", cohort, "--sites", "2", "--patients", "8", "--size", "88", "--spacing", "2")
    page.text("The shipped model, as it is, on all of them; it has seen none:")
    dice, patients = _score(commands, cohort, STARTER, starter_model(STARTER), folder, "all")
    page.result(f"Dice {dice:.2f}", f"whole tumour, {patients} synthetic patients, with the shipped model")


def show_real(commands: Commands, folder: Path, data: Path, minutes: float) -> None:
    """Real lower-grade gliomas, where they are at hand: the shipped model, trained further for another task."""
    page = commands.page
    if not data.is_dir():
        page.text(f"The real cases ({data.name}) are not here: that part was left out.", "note")
        return
    page.heading("Segmentation: real lower-grade gliomas of four institutions")
    task, start = "lgg-flair", starter_model(STARTER)
    model, schedule = folder / f"{task}.safetensors", ("--minutes", f"{minutes:g}", "--learning-rate", RATE)
    commands.run("twinseg", "train", data, "--task", task, "--output", model, "--init", start, *schedule)
    page.picture(model.with_suffix(".png").read_bytes(), "training curve")
    page.text("Patients that the model has not seen:")
    dice, patients = _score(commands, data, task, model, folder, "test")
    page.text(f"Trained for {minutes:g} minutes only; the README has a whole training.", "note")
    page.result(f"Dice {dice:.2f}", f"{patients} real patients not seen, after {minutes:g} minutes of training")


def _score(commands: Commands, data: Path, task: str, model: Path, folder: Path, split: str) -> tuple[float, int]:
    """Score a part of the patients and draw the middle one: the mean Dice of the first region, and their number."""
    page, scores, picture = commands.page, folder / f"{task}-scores.json", folder / f"{task}.nii.gz"
    commands.run("twinseg", "evaluate", data, "--model", model, "--split", split, "--json", scores)
    measured: dict[str, Any] = json.loads(scores.read_text(encoding="utf-8"))
    everywhere = measured["summary"]["all"]
    regions = list(everywhere)
    page.table(
        ["site", *regions, "patients"],
        [
            [site, *(f"{means[region]['dice']['mean']:.3f}" for region in regions), str(means[regions[0]]["dice"]["n"])]
            for site, means in [*measured["summary"]["sites"].items(), ("all", everywhere)]
        ],
    )
    ranked = sorted(measured["cases"], key=lambda row: float(row["regions"][regions[0]]["dice"]))
    _segment(commands, data, task, ranked[len(ranked) // 2]["case"], model, picture)
    first = everywhere[regions[0]]["dice"]
    return float(first["mean"]), int(first["n"])


def _segment(commands: Commands, data: Path, task: str, name: str, model: Path, picture: Path) -> None:
    """Segment one case, and draw it."""
    loaded_task = load_task(task)
    case = next(case for case in find_cases(data, loaded_task) if case.name == name)
    folder = next(iter(case.images.values())).parent
    commands.run("twinseg", "segment", folder, "--output", picture, "--model", model)
    shown = load_case(case, loaded_task)
    image = shown.images.get("flair", shown.reference)
    drawn = slices_picture(image, loaded_task, read_labels(picture), shown.labels, f"{name}: FLAIR")
    commands.page.picture(drawn, "slices with outlines")
    commands.page.text("The patient with the middle Dice. Coloured: the model; white, dashed: the reference.", "note")
