"""The starter model on real scans that it never saw: Dice by patient, by site, and what the failures look like.

    python Testing/Experiments/starter_on_real.py [--model FILE] [--data FOLDER] [--pictures FOLDER] [--failures TEXT]

The BraTS-GLI case, and all lower-grade gliomas of TCGA-LGG: the whole tumour (any label) against the FLAIR abnormality,
with all sequences that a patient has and with FLAIR alone. Writes starter.json and starter.md. A model is scored once:
what starter.json holds of the same model is not computed again, so the command goes on where it was stopped, and may
draw its pictures later. Nothing may be chosen by these numbers.

The pictures of the worst patients derive from non-commercial images: write them outside of the project, look at them,
and say by --failures what they show.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adaptation import interval
from calibration import HOUSE, Patient, real_patients
from experiment import RESULTS, circumstances

from twinseg.cases import LoadedCase
from twinseg.errors import InputError
from twinseg.evaluation import evaluate
from twinseg.inference import choose_device, segment
from twinseg.metrics import dice
from twinseg.network import ViTUNet
from twinseg.pictures import lesion_centre, png
from twinseg.segmentation import LoadedModel, load_network
from twinseg.tasks import Task, load_task
from twinseg.terminal import progress_bar
from twinseg.volumes import to_ras, write_atomically

SHIPPED = HOUSE / "TwinSegSlicer/Resources/Models/brats-glioma.safetensors"
ALL, FLAIR = "all sequences", "FLAIR alone"
WAYS = (ALL, FLAIR)
BARS = {"BraTS, WT": 0.80, "BraTS, TC": 0.60, "BraTS, ET": 0.60, f"LGG, {ALL}": 0.70, f"LGG, {FLAIR}": 0.60}
"""Set before the model was made: Dice of the case, mean Dice of the patients."""
MISSED = 0.1
"""A patient with a lower Dice is missed altogether."""
WORST = 6

Row = dict[str, Any]
"""A patient: `site`, `number` within it, `sequences`, `truth_ml` (nominal); by way `dice` and `false_ml`, which is what
is drawn outside the truth."""


# --- scoring ---------------------------------------------------------------------------------------------------------


def seen_in(way: str, case: LoadedCase) -> LoadedCase:
    """The case with the sequences of a way, on the grid that it has. Raises InputError where it lacks FLAIR."""
    if way == ALL:
        return case
    if "flair" not in case.images:
        raise InputError("a patient has no FLAIR image; leave the patient out")
    return dataclasses.replace(case, images={"flair": case.images["flair"]})


def scored(network: ViTUNet, task: Task, case: LoadedCase, device: torch.device) -> Row:
    """The row of a labelled case, but for who it is."""
    assert case.labels is not None
    truth, voxel_ml = case.labels.array > 0, case.reference.voxel_ml
    row: Row = {"sequences": sorted(case.images), "truth_ml": round(voxel_ml * int(truth.sum()), 2)}
    for way in WAYS:
        drawn = segment(network, seen_in(way, case), task, device=device).labels.array > 0
        false_ml = voxel_ml * int(np.count_nonzero(drawn & ~truth))
        row[way] = {"dice": round(dice(drawn, truth), 4), "false_ml": round(false_ml, 2)}
    return row


def scored_patients(
    network: ViTUNet,
    task: Task,
    patients: Sequence[Patient],
    device: torch.device,
    report: Callable[[float, str], Any],
    known: int = 0,
) -> Iterator[Row]:
    """The row of each patient after the first `known`, in their order."""
    numbers: Counter[str | None] = Counter(patient.site for patient in patients[:known])
    for index, patient in enumerate(patients[known:], start=known):
        report(index / len(patients), f"{index + 1} of {len(patients)}")
        numbers[patient.site] += 1
        yield {"site": patient.site, "number": numbers[patient.site], **scored(network, task, patient.load(), device)}


def summary(rows: Sequence[Row], way: str) -> dict[str, Any]:
    """What a group of patients comes to."""
    scores, false_ml = ([row[way][name] for row in rows] for name in ("dice", "false_ml"))
    average, low, high = interval(scores)
    return {
        "patients": len(rows),
        "dice_mean": average,
        "dice_mean_95": [low, high],
        "dice_median": float(np.median(scores)),
        "missed_share": float(np.mean(np.asarray(scores) < MISSED)),
        "false_ml_mean": float(np.mean(false_ml)),
        "false_ml_median": float(np.median(false_ml)),
    }


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """All patients, those of each site, and thirds by the size of the tumour."""
    sites = sorted({row["site"] for row in rows if row["site"]})
    found = {"all": list(rows), **{site: [row for row in rows if row["site"] == site] for site in sites}}
    by_size = np.array_split(sorted(rows, key=lambda row: row["truth_ml"]), 3)
    for name, third in zip(("smallest", "middle", "largest"), by_size, strict=True):
        if len(third):
            found[f"{name} third, {third[0]['truth_ml']:.0f} to {third[-1]['truth_ml']:.0f} mL"] = list(third)
    return found


def brats_dice(folder: Path, model: LoadedModel, device: torch.device) -> dict[str, float]:
    """Dice of each region of the one case."""
    regions = evaluate(folder, model, part="all", device=device, flips=False)["summary"]["all"]
    return {region: round(metrics["dice"]["mean"], 4) for region, metrics in regions.items()}


# --- page ------------------------------------------------------------------------------------------------------------

CAVEATS = """The lower-grade gliomas are TCGA-LGG at four institutions (images: TCIA; masks of the FLAIR abnormality:
Buda et al. 2019, "Association of genomic subtypes of lower-grade gliomas with shape features automatically extracted by
a deep learning algorithm"). Their spacing is nominal (240 mm field of view, 150 mm over the slices), so mL are nominal
too; not every patient is skull-stripped; they have no T2, and some lack T1 or T1 with contrast. The one BraTS case is a
smoke test and never a score. Scores are on the images' own grid, without mirrored copies, as the module segments."""


def table(content: Mapping[str, Any]) -> list[str]:
    """The lines that the model card shows too."""
    brats = content["brats"]
    lines = [
        "| patients | n | sequences | mean Dice (95 % interval) | median | missed | false mL, mean, median |",
        "|---|---|---|---|---|---|---|",
    ]
    for group, ways in content["summary"].items():
        for way, one in ways.items():
            low, high = one["dice_mean_95"]
            lines.append(
                f"| {group} | {one['patients']} | {way} | {one['dice_mean']:.3f} ({low:.3f} to {high:.3f}) "
                f"| {one['dice_median']:.3f} | {100 * one['missed_share']:.0f} % "
                f"| {one['false_ml_mean']:.1f}, {one['false_ml_median']:.1f} |"
            )
    return [*lines, "", "BraTS case: " + ", ".join(f"{region} {value:.3f}" for region, value in brats.items()) + "."]


def verdicts(content: Mapping[str, Any]) -> list[str]:
    """Each bar beside what was measured."""
    found = {f"BraTS, {region}": value for region, value in content["brats"].items()}
    found |= {f"LGG, {way}": one["dice_mean"] for way, one in content["summary"]["all"].items()}
    lines = ["| Dice | bar | here | |", "|---|---|---|---|"]
    for name, bar in BARS.items():
        verdict = "reached" if found[name] >= bar else "not reached"
        lines.append(f"| {name} | {bar:.2f} | {found[name]:.3f} | {verdict} |")
    return lines


def page(content: Mapping[str, Any]) -> str:
    """The Markdown page."""
    lines = [
        "# The starter model on real scans that it never saw",
        "",
        f"Made by `Testing/Experiments/starter_on_real.py`, {content['date']}, {content['machine']}, commit "
        f"{(content['commit'] or 'unknown')[:7]}, with the model {content['model']}.",
        "The model was trained on synthetic patients alone.",
        "",
        CAVEATS,
        "",
        *table(content),
        "",
        f"Missed: altogether, with a Dice below {MISSED}. False mL: what is drawn outside the truth. Intervals are by "
        "bootstrap over patients.",
        "",
        *verdicts(content),
    ]
    if failures := content.get("failures"):
        lines += ["", "## What the failures look like", "", failures]
    lines += ["", "## Patient by patient", ""]
    lines += ["| patient | sequences | truth, mL | " + " | ".join(f"Dice, {way} | false mL" for way in WAYS) + " |"]
    lines += ["|---|---|---|" + "---|---|" * len(WAYS)]
    for row in content["patients"]:
        cells = [f"{row[way]['dice']:.3f} | {row[way]['false_ml']:.1f}" for way in WAYS]
        name = f"{row['site']} {row['number']}"
        lines.append(f"| {name} | {', '.join(row['sequences'])} | {row['truth_ml']:.1f} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


# --- pictures --------------------------------------------------------------------------------------------------------


def worst(rows: Sequence[Row], way: str) -> list[int]:
    """Places of the worst patients; of equally bad ones the larger tumours first."""
    return sorted(range(len(rows)), key=lambda place: (rows[place][way]["dice"], -rows[place]["truth_ml"]))[:WORST]


def failures_picture(
    rows: Sequence[Row], patients: Sequence[Patient], way: str, model: LoadedModel, device: torch.device
) -> bytes:
    """PNG of the worst patients: FLAIR where the truth and where the prediction is largest, with both outlines."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(11, 9), layout="constrained", facecolor="black")
    pairs = figure.subplots(WORST // 2, 4).reshape(WORST, 2)
    colors = {"truth": "yellow", "prediction": "cyan"}
    for pair, place in zip(pairs, worst(rows, way), strict=False):
        case, row = patients[place].load(), rows[place]
        assert case.labels is not None
        drawn = segment(model.network, seen_in(way, case), model.task, device=device).labels
        masks = {"truth": to_ras(case.labels).array > 0, "prediction": to_ras(drawn).array > 0}
        flair = to_ras(case.images["flair"])
        high = float(np.percentile(flair.array, 99.5))
        for axes, (name, shown) in zip(pair, masks.items(), strict=True):
            level = lesion_centre(shown)[2]
            aspect = flair.spacing[1] / flair.spacing[0]
            axes.imshow(flair.array[:, :, level].T, cmap="gray", vmin=0, vmax=high, origin="lower", aspect=aspect)
            for other, mask in masks.items():
                if mask[:, :, level].any():
                    axes.contour(mask[:, :, level].T, levels=[0.5], colors=[colors[other]], linewidths=1.1)
            axes.invert_xaxis()
            told = f"{row['site']} {row['number']}, Dice {row[way]['dice']:.2f}\n" if name == "truth" else "\n"
            where = f"largest {name}" if shown.any() else f"no {name}: middle"
            axes.set_title(f"{told}{where}, slice {level}", color="white", fontsize=8, loc="left")
    for axes in pairs.flat:
        axes.set_axis_off()
    handles = [Line2D([], [], color=color, label=name) for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, labelcolor="white", facecolor="black")
    figure.suptitle(f"The worst patients, {way}", color="white", fontsize=11)
    return png(figure)


# --- command ---------------------------------------------------------------------------------------------------------


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SHIPPED, help="model file")
    parser.add_argument("--data", type=Path, default=HOUSE.parent / "shared/data", help="holds brats-gli/ and lgg/")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of starter.json and starter.md")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures of the worst patients; never commit it")
    parser.add_argument("--failures", help="what those pictures show, in words, for the page")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def run(options: argparse.Namespace) -> None:
    """Score what is not scored yet, then write the page and the pictures. Raises InputError."""
    file = options.output / "starter.json"
    model, device = load_network(options.model), choose_device(options.device)
    patients = real_patients(options.data / "lgg", load_task("lgg-flair"), sys.maxsize)
    content = kept(file, model) or {**circumstances(device.type), "model": model.hash, "patients": []}
    options.output.mkdir(parents=True, exist_ok=True)
    if "brats" not in content:
        content["brats"] = brats_dice(options.data / "brats-gli", model, device)
    rows = content["patients"]
    if len(rows) > len(patients):
        raise InputError(
            f"{file}: it holds {len(rows)} patients, the data {len(patients)}; remove it, or name the data"
        )
    with progress_bar("scoring") as bar:
        for row in scored_patients(model.network, model.task, patients, device, bar, known=len(rows)):
            rows.append(row)
            write(file, content)
    content["summary"] = {name: {way: summary(some, way) for way in WAYS} for name, some in groups(rows).items()}
    if options.failures:
        content["failures"] = options.failures
    write(file, content)
    write_atomically(options.output / "starter.md", page(content).encode())
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        for way, name in ((ALL, "starter-failures.png"), (FLAIR, "starter-failures-flair.png")):
            write_atomically(options.pictures / name, failures_picture(rows, patients, way, model, device))
    print(options.output / "starter.md")


def kept(file: Path, model: LoadedModel) -> dict[str, Any] | None:
    """What an earlier run has found of the same model. Raises InputError for a damaged file."""
    if not file.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        same, _rows = content["model"] == model.hash, content["patients"]
        return content if same else None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: this holds no scores ({error}); remove it") from error


def write(file: Path, content: Mapping[str, Any]) -> None:
    write_atomically(file, (json.dumps(content, indent=1) + "\n").encode())


def main() -> int:
    try:
        run(parse_options())
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
