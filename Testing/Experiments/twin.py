"""Does the twin foresee the next scan? Volume error and interval coverage, beside persistence and extrapolation.

    python Testing/Experiments/twin.py [--data FOLDER] [--phantoms N] [--members N] [--output FILE.md]

Real patients (a folder a patient, in it a folder a date with `t1ce` and `seg`): the last date is sealed. Its forecast
is made and kept before its segmentation is opened. With one earlier date the twin has its prior only, and
log-linear extrapolation does not exist. Brain and tissue are not segmented there: the brain is what is inside the
head's outline, and every voxel counts as half white, half grey matter.

Phantoms (`twinseg.phantom`, which has its own solver, tissue, mass effect and painted labels): three visits are known,
the fourth is sealed. Their treatment, where there was one, is not told. For the first of them the scenarios are told
too: nobody treated it, so that nothing but the prior says what treatment would do.

A trial: what the prior says of the time to progression of patients in general, beside what was published.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_closing, binary_erosion, binary_fill_holes, gaussian_filter, label

from twinseg.errors import InputError
from twinseg.phantom.anatomy import SOLID_BRAIN, WHITE_MATTER, lookup
from twinseg.phantom.cohort import grow_patient
from twinseg.twin.coarse_grid import Brain
from twinseg.twin.forecast import forecast, joined, scenarios
from twinseg.twin.growth_curves import GrowthCurve
from twinseg.twin.outlook_table import forecast_table
from twinseg.twin.posterior import GrowthModel, Visit
from twinseg.twin.spatial_growth import VISIBLE_ENHANCING, VISIBLE_ON_FLAIR, SpatialGrowth
from twinseg.twin.treatments import Radiotherapy, Treatments, radiotherapy_60_gy_with_temozolomide, weekdays
from twinseg.volumes import read_image, read_labels, write_atomically

ROOT = Path(__file__).resolve().parents[2]
NOISE = 0.06
UNKNOWN = Treatments()


@dataclass(frozen=True)
class Sealed:
    """A patient whose last visit is not opened until `measure` is called, after the forecast was kept."""

    name: str
    known: tuple[Visit, ...]
    brain: Brain
    visible_density: float
    day: float
    measure: Callable[[], float]


def real_patients(folder: Path) -> Iterator[Sealed]:
    """The patients of a folder, all dates but the last as known visits."""
    for patient in sorted(path for path in folder.iterdir() if path.is_dir()):
        dates = sorted(path for path in patient.iterdir() if path.is_dir())
        first = date.fromisoformat(dates[0].name)
        image = read_image(dates[0] / "t1ce.nii.gz")
        spacing = tuple(float(step) for step in np.linalg.norm(image.affine[:3, :3], axis=0))
        brain = Brain.of_unknown_tissue(inside_of_head(image.array, spacing), (spacing[0], spacing[1], spacing[2]))
        visits = []
        for folder_of_date in dates[:-1]:
            mask = read_labels(folder_of_date / "seg.nii.gz").array > 0
            days = float((date.fromisoformat(folder_of_date.name) - first).days)
            visits.append(visit(days, mask, brain))

        def measure(path: Path = dates[-1] / "seg.nii.gz", brain: Brain = brain) -> float:
            return float((read_labels(path).array > 0).sum()) * brain.voxel_ml

        last = float((date.fromisoformat(dates[-1].name) - first).days)
        yield Sealed(f"patient {patient.name}", tuple(visits), brain, VISIBLE_ENHANCING, last, measure)


def inside_of_head(image: NDArray[Any], spacing: tuple[float, ...]) -> NDArray[np.bool_]:
    """The head's outline less 8 mm of scalp and skull (X,Y,Z)."""
    smooth = gaussian_filter(image.astype(np.float32), [2.0 / step for step in spacing])
    bright = smooth > 0.15 * np.quantile(smooth, 0.98)
    parts, count = label(bright)
    if count == 0:
        raise InputError("the image is empty; choose another")
    head = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    slices = [binary_fill_holes(binary_closing(head[..., z], iterations=4)) for z in range(head.shape[2])]
    depth = round(8.0 / spacing[0])
    return np.stack([binary_erosion(one, iterations=depth) for one in slices], axis=2)


def phantoms(count: int) -> Iterator[Sealed]:
    """Synthetic patients with four visits; the whole visible tumour on FLAIR."""
    for seed in range(count):
        patient = grow_patient((2026, seed), size=72, spacing=2.5, visits=4)
        tissues = patient.head.tissues
        solid, white = lookup(SOLID_BRAIN)[tissues], lookup(WHITE_MATTER)[tissues]
        brain = Brain(white.astype(np.float32), (solid & ~white).astype(np.float32), patient.head.grid.spacing)
        masks = [state.labels > 0 for _, state in patient.states]
        days = [float(day) for day, _ in patient.states]
        errors = np.exp(NOISE * np.random.default_rng(seed).standard_normal(4))
        known = tuple(visit(*one, brain, error) for *one, error in zip(days[:-1], masks[:-1], errors[:-1], strict=True))
        volume = float(masks[-1].sum()) * brain.voxel_ml * errors[-1]
        treated = patient.truth["treatment"] is not None
        name = f"phantom {seed}" + (" (treated once, not told)" if treated else "")
        yield Sealed(name, known, brain, VISIBLE_ON_FLAIR, days[-1], lambda volume=volume: volume)


def visit(day: float, mask: NDArray[np.bool_], brain: Brain, error: float = 1.0) -> Visit:
    """A visit whose volume is the mask's times an error, said to be known to 6 %."""
    volume = float(mask.sum()) * brain.voxel_ml * error
    return Visit(day, volume, NOISE * volume, mask)


def try_patient(patient: Sealed, members: int) -> list[dict[str, Any]]:
    """One row for each way to forecast: the error |ln(forecast / measured)| and whether the 90 % band held it."""
    kept = {}
    for name, model in growth_models(patient, members).items():
        posterior = model.fit(patient.known, UNKNOWN)
        kept[name] = forecast(posterior, [patient.day], members=min(members, 200))
    # Only now the last date is opened
    measured = patient.measure()
    rows = []
    for name, result in kept.items():
        band = result.bands[1]
        rows.append(row(patient, name, measured, float(result.median[0]), float(band.low[0]), float(band.high[0])))
        rows[-1]["informed"] = result.informed
    persistence, log_linear = result.persistence, result.log_linear
    rows.append(row(patient, "persistence", measured, float(persistence[0])))
    if log_linear is not None:
        rows.append(row(patient, "log-linear", measured, float(log_linear[0])))
    return rows


def growth_models(patient: Sealed, members: int) -> dict[str, GrowthModel]:
    """The growth models by name, started at the first known visit."""
    space = SpatialGrowth(patient.known[0], patient.brain, visible_density=patient.visible_density, members=members)
    return {"twin, in space": space, "twin, Gompertz curve": GrowthCurve(patient.known[0], "gompertz")}


def what_if(patient: Sealed, members: int) -> str:
    """Markdown: the scenarios for a patient who was never treated, by each model, and what is said with them."""
    last, untreated = patient.known[-1], Treatments.none_given()
    days = [last.day + 30.0 * n for n in range(1, 13)]
    lines, said = [], []
    for model_name, model in growth_models(patient, members).items():
        posterior = model.fit(patient.known, untreated)
        told = [
            forecast(posterior, days, plan, scenario=name, members=min(members, 200)).to_json()
            for name, plan in scenarios(last.day + 14.0, given=untreated).items()
        ]
        header, rows = forecast_table({"scenarios": told, "last": {"day": last.day}})
        if not lines:
            lines = [f"| {' | '.join(['model', *header])} |", "|---" * (len(header) + 1) + "|"]
        lines += [f"| {' | '.join([model_name, *cells])} |" for cells in rows]
        said += [note for one in told for note in one["notes"]]
    notes = "".join(f"- {note}\n" for note in dict.fromkeys(said))
    return f"{patient.name}, {last.volume_ml:.1f} mL at the last known visit:\n\n" + "\n".join(lines) + f"\n\n{notes}"


def against_trial() -> str:
    """Markdown: months to progression by the prior of the volume curves, and as Stupp et al. 2005 found them."""
    untreated, start = Treatments.none_given(), Visit(0.0, 20.0, NOISE * 20.0)
    radiotherapy = (Radiotherapy(weekdays(14.0, 30), (2.0,) * 30),)
    arms = {
        "no treatment": (untreated, "–"),
        "60 Gy in 30 fractions": (joined(untreated, Treatments(radiotherapy, (), (), ())), "5.0"),
        "60 Gy in 30 fractions with temozolomide": (
            joined(untreated, radiotherapy_60_gy_with_temozolomide(14.0)),
            "6.9",
        ),
    }
    posterior = GrowthCurve(start, members=1000).fit([start], untreated)
    lines = ["| arm | prior: median (90 %), months | trial: median, months |", "|---|---|---|"]
    for arm, (plan, published) in arms.items():
        said = forecast(posterior, [365.0, 1095.0], plan, members=1000).time_to_progression
        low, median, high = (days / 30.4 for days in (said.low90, said.median, said.high90))
        lines.append(f"| {arm} | {median:.1f} ({low:.1f}–{high:.1f}) | {published} |")
    return "\n".join(lines) + "\n"


def row(
    patient: Sealed, method: str, measured: float, said: float, low: float | None = None, high: float | None = None
) -> dict[str, Any]:
    """One forecast, scored."""
    return {
        "patient": patient.name,
        "method": method,
        "known_visits": len(patient.known),
        "days_ahead": patient.day - patient.known[-1].day,
        "last_ml": patient.known[-1].volume_ml,
        "measured_ml": measured,
        "forecast_ml": said,
        "low90_ml": low,
        "high90_ml": high,
        "log_error": float(abs(np.log((said + 0.1) / (measured + 0.1)))),
        "in_90": None if low is None or high is None else bool(low <= measured <= high),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: every patient and method, then each method's median error and coverage."""
    lines = [
        "| patient | visits | days ahead | last, mL | measured, mL | method | forecast, mL | 90 % band, mL | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        band = (
            "–" if r["in_90"] is None else f"{r['low90_ml']:.1f}–{r['high90_ml']:.1f}" + (" ✓" if r["in_90"] else " ✗")
        )
        lines.append(
            f"| {r['patient']} | {r['known_visits']} | {r['days_ahead']:.0f} | {r['last_ml']:.1f} "
            f"| {r['measured_ml']:.1f} | {r['method']} | {r['forecast_ml']:.1f} | {band} | {r['log_error']:.2f} |"
        )
    lines += ["", "| method | forecasts | median error | in the 90 % band |", "|---|---|---|---|"]
    for name, summary in summaries(rows).items():
        inside = "–" if summary["in_90"] is None else f"{summary['in_90']} of {summary['count']}"
        lines.append(f"| {name} | {summary['count']} | {summary['median_log_error']:.3f} | {inside} |")
    return "\n".join(lines) + "\n"


def summaries(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each method the number of forecasts, the median error, and how many lay in the 90 % band."""
    result = {}
    for name in dict.fromkeys(r["method"] for r in rows):
        mine = [r for r in rows if r["method"] == name]
        banded = mine[0]["in_90"] is not None
        result[name] = {
            "count": len(mine),
            "median_log_error": float(np.median([r["log_error"] for r in mine])),
            "in_90": sum(r["in_90"] for r in mine) if banded else None,
        }
    return result


def report(real: list[dict[str, Any]], synthetic: list[dict[str, Any]], scenarios_told: str) -> str:
    """The page for Docs/results."""
    parts = [
        "# The twin's forecasts, scored\n",
        "Made by `Testing/Experiments/twin.py`. The error is |ln(forecast / measured)|: 0.1 is about 10 %. "
        "Research only: not for treatment decisions.\n",
    ]
    if real:
        parts += [
            "## Real patients: glioblastoma after treatment, two dates each\n",
            "TCIA Brain-Tumor-Progression (CC BY 3.0); enhancing tumour. With one earlier date **the twin has its "
            "prior only**: it knows nothing of this patient's growth, and log-linear extrapolation does not exist. "
            "Treatment is not known: what it may take of the growth comes from published trials alone, none of it from "
            "these patients. Voxel sizes are nominal, and white and grey matter are not told apart.\n",
            table(real),
        ]
    else:
        parts.append("Real patients: the folder was not there, so none were tried.\n")
    if synthetic:
        parts += [
            "## Synthetic patients: three visits known, the fourth sealed\n",
            "From the phantoms' own solver, with mass effect and uneven tissue that the twin does not know of. "
            "Every volume, the sealed one too, has a measurement error of 6 %.\n",
            table(synthetic),
            "## What if\n",
            "Median volume in mL, with the 90 % band; progression is 40 % above the smallest volume to come.\n",
            scenarios_told,
        ]
    parts += [
        "## The prior against a trial\n",
        "Time from the scan to progression of a tumour of 20 mL, treatment from the 14th day on, beside the median "
        "progression-free survival that Stupp et al. 2005 published (after surgery, from randomisation: not quite the "
        "same). Radiotherapy's effect is not fitted to it; temozolomide's prior was derived from it.\n",
        against_trial(),
    ]
    return "\n".join(parts)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Score the twin's forecasts on real and synthetic patients.")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/progression", help="the real patients")
    parser.add_argument("--phantoms", type=int, default=8, help="how many synthetic patients")
    parser.add_argument("--members", type=int, default=200, help="posterior members")
    parser.add_argument("--output", type=Path, default=ROOT / "Docs/results/twin.md", help="the page; JSON beside it")
    options = parser.parse_args()
    real: list[dict[str, Any]] = []
    synthetic: list[dict[str, Any]] = []
    if options.data.is_dir():
        for patient in real_patients(options.data):
            real += try_patient(patient, options.members)
            print(patient.name, flush=True)
    else:
        print(f"{options.data} is not there: synthetic patients only")
    scenarios_told = ""
    for patient in phantoms(options.phantoms):
        try:
            scenarios_told = scenarios_told or what_if(patient, options.members)
            synthetic += try_patient(patient, options.members)
            print(patient.name, flush=True)
        except InputError as error:
            print(f"{patient.name}: left out ({error})")
    page = report(real, synthetic, scenarios_told)
    print(page)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.output, page.encode())
    measured = {
        "members": options.members,
        "real": {"summary": summaries(real), "rows": real},
        "synthetic": {"summary": summaries(synthetic), "rows": synthetic},
    }
    write_atomically(options.output.with_suffix(".json"), (json.dumps(measured, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
