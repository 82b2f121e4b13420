"""Does a model's uncertainty mean something? Reliability of its probabilities, and how often volume intervals hold.

    python Testing/Experiments/calibration.py [--model FILE] [--data FOLDER --task TASK] [--patients N] [--synthetic N]

Two cohorts: real patients (TCGA-LGG, the whole tumour against the FLAIR abnormality; left out where the folder is
missing) and synthetic ones made now. Every patient is predicted once and the few numbers kept in calibration.json, so
that the command goes on where it was stopped. Then the patients are split at random into halves, 200 times: the margins
come from one half, as `twinseg calibrate` makes them, and the intervals are tried on the other. Two harder trials
follow: margins from the other institutions, and margins from the synthetic patients, tried on the real ones. Writes
calibration.json, .md and .png.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from twinseg.calibration import FLOOR_ML, LEVEL, RegionMeasure, Reliability, conformal_margin, fewest_patients, widened
from twinseg.calibration_measures import Measured, first_dates, measure
from twinseg.calibration_run import draw_reliability, reliability_by_region
from twinseg.cases import LoadedCase, find_cases, load_case
from twinseg.inference import choose_device
from twinseg.phantom import Scanner, make_patient
from twinseg.region_volumes import LEVEL_SETS
from twinseg.segmentation import LoadedModel, load_network, starter_model
from twinseg.tasks import Task, load_task
from twinseg.terminal import progress_bar
from twinseg.training_run import commit_of_checkout
from twinseg.volumes import write_atomically

HOUSE = Path(__file__).resolve().parents[2]
LGG = HOUSE.parent / "shared/data/lgg"
SEED = 7_100_000
HALVES = 200
REAL, SYNTHETIC = "real", "synthetic"

Row = dict[str, Any]
"""A patient: "patient" (a hash of the name), "site", "regions"."""


# --- patients --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Patient:
    """One to predict; `name` is a hash where the patient is real."""

    name: str
    site: str | None
    load: Callable[[], LoadedCase]


def real_patients(folder: Path, task: Task, count: int) -> list[Patient]:
    """In an order that has nothing to do with sites or names."""
    found = []
    for case in first_dates(find_cases(folder, task, require_labels=True)):
        name = hashlib.sha256(case.patient.encode()).hexdigest()[:10]
        found.append(Patient(name, case.site, partial(load_case, case, task)))
    return sorted(found, key=lambda one: one.name)[:count]


def synthetic_patients(count: int) -> list[Patient]:
    """Patients of four sites, at one date each."""

    def made(number: int) -> LoadedCase:
        scanner = Scanner.for_site(number % 4, SEED)
        visit = make_patient((SEED, number), scanner=scanner, size=88, spacing=2.0, visits=1).visits[0]
        return LoadedCase(visit.images, next(iter(visit.images.values())), visit.labels)

    return [Patient(f"synthetic-{n:04d}", f"scanner {n % 4}", partial(made, n)) for n in range(count)]


def measured_row(model: LoadedModel, patient: Patient, regions: Sequence[str], device: Any) -> Row:
    """What is kept of a patient."""
    measures = measure(model, patient.load(), device)
    kept = {region: dataclasses.asdict(measures[region]) for region in regions}
    return {"patient": patient.name, "site": patient.site, "regions": kept}


def measures_of(row: Row) -> Measured:
    """The measures that a row keeps."""
    measures: Measured = {}
    for region, kept in row["regions"].items():
        counts: dict[str, Any] = {
            name: tuple(one) if isinstance(one, list) else one for name, one in kept["reliability"].items()
        }
        measures[region] = RegionMeasure(**{**kept, "reliability": Reliability(**counts)})
    return measures


# --- trials ----------------------------------------------------------------------------------------------------------


def holds(one: RegionMeasure, margin: float) -> bool:
    """Whether the interval with the margin holds the truth."""
    low, high = widened(one.volume_ml, one.low_ml, one.high_ml, margin)
    return low <= one.true_ml <= high


def width_ml(one: RegionMeasure, margin: float) -> float:
    """From end to end of the interval with the margin."""
    low, high = widened(one.volume_ml, one.low_ml, one.high_ml, margin)
    return high - low


def random_halves(patients: Sequence[RegionMeasure]) -> dict[str, Any] | None:
    """Coverage and width over random halves; None where a half is too small for a margin."""
    half = len(patients) // 2
    if half < fewest_patients():
        return None
    random, held, margins, widths = np.random.default_rng(SEED), [], [], []
    for _ in range(HALVES):
        order = random.permutation(len(patients))
        margin = conformal_margin([patients[index].score for index in order[:half]])
        tested = [patients[index] for index in order[half:]]
        held.append(float(np.mean([holds(one, margin) for one in tested])))
        margins.append(margin)
        widths.append(float(np.mean([width_ml(one, margin) for one in tested])))
    return {
        "calibrated_on": half,
        "coverage_mean": float(np.mean(held)),
        "coverage_5_to_95": np.quantile(held, [0.05, 0.95]).tolist(),
        "coverage_lowest_highest": [min(held), max(held)],
        "margin_median": float(np.median(margins)),
        "width_ml_mean": float(np.mean(widths)),
    }


def other_sites(rows: Sequence[Row], region: str) -> list[dict[str, Any]]:
    """Each institution's patients with margins from all others."""
    trials = []
    for site in sorted({row["site"] for row in rows if row["site"]}):
        others = [measures_of(row)[region].score for row in rows if row["site"] != site]
        margin, own = conformal_margin(others), [measures_of(row)[region] for row in rows if row["site"] == site]
        if math.isfinite(margin):
            held = sum(holds(one, margin) for one in own)
            trials.append({"site": site, "patients": len(own), "held": held, "margin": margin})
    return trials


def from_synthetic(real: Sequence[Row], synthetic: Sequence[Row], region: str) -> dict[str, Any] | None:
    """The real patients with the margin that the synthetic ones give: what a model that ships could bring along."""
    margin = conformal_margin([measures_of(row)[region].score for row in synthetic])
    if not (real and math.isfinite(margin)):
        return None
    held = float(np.mean([holds(measures_of(row)[region], margin) for row in real]))
    return {"margin": margin, "coverage": held, "patients": len(real), "calibrated_on": len(synthetic)}


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """By region: reliability, and what the uncalibrated and the calibrated intervals hold."""
    patients = [measures_of(row) for row in rows]
    found = {}
    for region, reliability in reliability_by_region(patients).items():
        own = [one[region] for one in patients]
        found[region] = {
            "patients": len(own),
            "expected_calibration_error": reliability.error,
            "missed_share": reliability.missed_share,
            "uncalibrated_coverage": float(np.mean([holds(one, 0.0) for one in own])),
            "uncalibrated_width_ml_mean": float(np.mean([width_ml(one, 0.0) for one in own])),
            "halves": random_halves(own),
            "other_sites": other_sites(rows, region),
        }
    return found


# --- report ----------------------------------------------------------------------------------------------------------


def share(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.0f} %"


def report(content: Mapping[str, Any]) -> str:
    """The Markdown page."""
    lines = [
        "# Does the uncertainty mean something?",
        "",
        f"Made by `Testing/Experiments/calibration.py` with the model {content['model'][:12]} ({content['commit']}).",
        "The real patients are TCGA-LGG at four institutions, the whole tumour against the FLAIR abnormality; spacing "
        "there is nominal. The synthetic ones were made for this page.",
        "",
        f"**{share(LEVEL)} intervals.** Split conformal, on log(mL + {FLOOR_ML:g}): the margin comes from a random "
        f"half of the patients and is tried on the other, {HALVES} times. The promise is the mean; how far single "
        "halves stray is what so few patients allow. Uncalibrated: the level sets 0.9 and 0.1, "
        f"which would hold {share(LEVEL_SETS)} if the probabilities were right.",
        "",
        "| cohort | region | patients | uncalibrated holds | calibrated holds, mean (5th to 95th centile) | lowest to "
        "highest | ends move by | mean width before → after, mL |",
        "|---|---|---|---|---|---|---|---|",
    ]
    regions = [(name, region, one) for name, found in content["summary"].items() for region, one in found.items()]
    for name, region, one in regions:
        row = [name, region, str(one["patients"]), share(one["uncalibrated_coverage"])]
        if (halves := one["halves"]) is None:
            row += [f"fewer than {2 * fewest_patients()} patients", "–", "–", "–"]
        else:
            few, many = map(share, halves["coverage_5_to_95"])
            row += [f"**{share(halves['coverage_mean'])}** ({few} to {many})"]
            row += [" to ".join(map(share, halves["coverage_lowest_highest"]))]
            row += [f"× {math.exp(halves['margin_median']):.2f}"]
            row += [f"{one['uncalibrated_width_ml_mean']:.1f} → {halves['width_ml_mean']:.1f}"]
        lines.append(f"| {' | '.join(row)} |")
    elsewhere = [
        f"| {name}, {region}, {trial['site']} | the other sites | {trial['held']} of {trial['patients']} |"
        for name, region, one in regions
        for trial in one["other_sites"]
    ]
    if (moved := content["from_synthetic"]) is not None:
        told = f"{share(moved['coverage'])} of {moved['patients']}"
        elsewhere.append(f"| {REAL}, {moved['region']} | {moved['calibrated_on']} synthetic patients | {told} |")
    if elsewhere:
        lines += ["", "**Where it is not promised.** Margins from elsewhere:", "", "| tried on | margin from | holds |"]
        lines += ["|---|---|---|", *elsewhere]
    lines += ["", "**Reliability.** Of the voxels with probability p, a share p should belong to the region; voxels"]
    lines += ["below 0.01 are left aside, and those of the region among them told as missed.", ""]
    lines += ["| cohort | region | expected calibration error | missed |", "|---|---|---|---|"]
    for name, region, one in regions:
        error, missed = one["expected_calibration_error"], share(one["missed_share"])
        lines.append(f"| {name} | {region} | {error:.3f} | {missed} |")
    return "\n".join([*lines, "", "![Reliability diagram](calibration.png)", ""])


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model file; else the starter model of brats-glioma")
    parser.add_argument("--data", type=Path, default=LGG, help="folder of real labelled cases")
    parser.add_argument("--task", default="lgg-flair", help="task whose names and labels that folder has")
    parser.add_argument("--patients", type=int, default=10_000, help="at most so many real ones")
    parser.add_argument("--synthetic", type=int, default=100, help="so many synthetic ones")
    parser.add_argument("--output", type=Path, default=HOUSE / "Docs/results", help="folder to write")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    options.output.mkdir(parents=True, exist_ok=True)
    model, device = load_network(options.model or starter_model("brats-glioma")), choose_device(options.device)
    file, task = options.output / "calibration.json", load_task(options.task)
    # Of another task's labels only the whole lesion means the same.
    every = [region.name for region in model.task.regions]
    regions = {REAL: every if task.name == model.task.name else every[:1], SYNTHETIC: every}
    wanted = {SYNTHETIC: synthetic_patients(options.synthetic)}
    if options.data.is_dir():
        wanted |= {REAL: real_patients(options.data, task, options.patients)}
    else:
        print(f"{options.data}: not there, so only synthetic patients are tried")
    content: dict[str, Any] = {"model": model.hash, "commit": commit_of_checkout(Path(__file__))}
    kept = kept_rows(file, model)
    queue = [(name, patient) for name in kept for patient in wanted.get(name, [])]
    with progress_bar("predicting") as bar:
        for number, (name, patient) in enumerate(queue):
            bar(number / len(queue), f"{number + 1} of {len(queue)}, {name}")
            if patient.name not in kept[name]:
                kept[name][patient.name] = measured_row(model, patient, regions[name], device)
                write(file, {**content, "cohorts": kept})
    rows = {name: [kept[name][patient.name] for patient in wanted[name]] for name in kept if wanted.get(name)}
    content |= {"cohorts": kept, "summary": {name: summary(those) for name, those in rows.items()}}
    moved = from_synthetic(rows.get(REAL, []), rows.get(SYNTHETIC, []), every[0])
    content["from_synthetic"] = None if moved is None else {**moved, "region": every[0]}
    write(file, content)
    (options.output / "calibration.md").write_text(report(content), encoding="utf-8")
    drawn = {
        f"{name}, {region}": one
        for name, those in rows.items()
        for region, one in reliability_by_region([measures_of(row) for row in those]).items()
    }
    draw_reliability(options.output / "calibration.png", drawn, f"model {model.hash[:12]}")
    print(options.output / "calibration.md")


def kept_rows(file: Path, model: LoadedModel) -> dict[str, dict[str, Row]]:
    """By cohort and patient, what an earlier run with the same model has measured."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    same = known.get("cohorts", {}) if known.get("model") == model.hash else {}
    return {name: same.get(name, {}) for name in (REAL, SYNTHETIC)}


def write(file: Path, content: Mapping[str, Any]) -> None:
    defined = json.loads(json.dumps(content), parse_constant=lambda name: None)
    write_atomically(file, (json.dumps(defined) + "\n").encode())


if __name__ == "__main__":
    main()
