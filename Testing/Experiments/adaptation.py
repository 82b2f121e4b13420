"""Does a model that learnt from a patient's corrected scans draw the next scan better, and others no worse?

    python Testing/Experiments/adaptation.py [--patients N] [--parameters NAME ...] [--quick] [--json FILE]

Synthetic patients with three visits on one scanner each, scanners as of four sites. The first two visits come with
their true labels into a twin, which adapts the starter model (or --model) as `twinseg twin adapt` does; the third is
the next scan. Two gains in Dice (mean over regions) on it are told, with a 95 % confidence interval by bootstrap over
patients: of the adapted model itself, and of what a user gets, where a rejected model is not used. The general drop is
measured on synthetic patients that neither training, gate nor choice of parameters has seen.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twinseg.cases import LoadedCase
from twinseg.inference import choose_device, predict
from twinseg.metrics import dice
from twinseg.network import count_parameters
from twinseg.phantom import Patient, Scanner, make_patient
from twinseg.preprocessing import PreparedCase, prepare, region_channels
from twinseg.segmentation import LoadedModel, load_network, starter_model
from twinseg.tasks import Task
from twinseg.twin.adaptation import PARAMETERS, AdaptationConfig, adapt
from twinseg.twin.adaptation_general import general_set
from twinseg.twin.store import Twin
from twinseg.volumes import write_atomically

SEED = 5_500_000


def synthetic_patient(number: int, visits: int) -> Patient:
    """A patient of one of four sites."""
    return make_patient((SEED, number), scanner=Scanner.for_site(number % 4, SEED), size=88, spacing=2.0, visits=visits)


def seen_by_network(patient: Patient, visit: int, task: Task) -> PreparedCase:
    """One visit as the network sees it."""
    taken = patient.visits[visit]
    return prepare(LoadedCase(taken.images, next(iter(taken.images.values())), taken.labels), task)


def mean_dice(model: LoadedModel, case: PreparedCase, device: Any) -> float:
    """Dice, mean over regions."""
    assert case.labels is not None
    drawn = predict(model.network, case.image, model.task, device).argmax(0)
    regions = region_channels(model.task)
    return float(np.mean([dice(np.isin(drawn, region), np.isin(case.labels, region)) for region in regions]))


def try_patient(
    number: int, base: LoadedModel, others: Sequence[PreparedCase], config: AdaptationConfig, device: Any
) -> dict[str, Any]:
    """One patient: adapted on two visits, tried on the third and on others."""
    patient = synthetic_patient(number, 3)
    with tempfile.TemporaryDirectory() as folder:
        twin = Twin.create(Path(folder) / "twin", task=base.task.name)
        for visit in patient.visits[:2]:
            twin.add_timepoint(visit.day, visit.images, to_baseline=np.eye(4), segmentation=(visit.labels, "expert"))
        started = time.process_time()
        adapted = adapt(twin, base, config=config, device=device)
        cpu = time.process_time() - started
    network = copy.deepcopy(base.network)
    network.load_state_dict({**base.network.state_dict(), **adapted.tensors})
    new, next_scan = LoadedModel(network, base.task, base.hash), seen_by_network(patient, 2, base.task)
    scores = {
        name: (mean_dice(model, next_scan, device), np.mean([mean_dice(model, one, device) for one in others]))
        for name, model in (("base", base), ("adapted", new))
    }
    return {
        "patient": number,
        "parameters": config.parameters,
        "next_base": scores["base"][0],
        "next_adapted": scores["adapted"][0],
        "general_base": float(scores["base"][1]),
        "general_adapted": float(scores["adapted"][1]),
        "accepted": adapted.accepted,
        "strength": adapted.strength,
        "reason": adapted.reason,
        "seconds": round(adapted.seconds, 1),
        "cpu_seconds": round(cpu, 1),
    }


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the 95 % confidence interval of it, by bootstrap."""
    random = np.random.default_rng(0)
    drawn = random.choice(np.asarray(values), (10_000, len(values))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(np.mean(values)), float(low), float(high)


def summary(rows: Sequence[dict[str, Any]], parameters: str, base: LoadedModel) -> dict[str, Any]:
    """Gains, drops and costs of one choice of parameters."""
    mine = [row for row in rows if row["parameters"] == parameters]
    gains = [row["next_adapted"] - row["next_base"] for row in mine]
    used = [gain if row["accepted"] else 0.0 for row, gain in zip(mine, gains, strict=True)]
    drops = [row["general_base"] - row["general_adapted"] for row in mine]
    trained = sum(one.numel() for name, one in base.network.named_parameters() if PARAMETERS[parameters](name))
    return {
        "parameters": parameters,
        "numbers_trained": trained,
        "patients": len(mine),
        "next_base": float(np.mean([row["next_base"] for row in mine])),
        "gain": interval(gains),
        "gain_in_use": interval(used),
        "accepted": sum(row["accepted"] for row in mine),
        "general_drop": interval(drops),
        "general_drop_in_use": interval([d if row["accepted"] else 0.0 for row, d in zip(mine, drops, strict=True)]),
        "largest_general_drop_in_use": max([d for row, d in zip(mine, drops, strict=True) if row["accepted"]] or [0.0]),
        "median_seconds": float(np.median([row["seconds"] for row in mine])),
        "median_cpu_seconds": float(np.median([row["cpu_seconds"] for row in mine])),
    }


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """Markdown, a line for each choice of parameters."""
    lines = [
        "| trained | numbers | patients | next scan, base | gain (95 % CI) | accepted | gain in use "
        "| general drop in use | CPU seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in summaries:
        gain, used, drop = (
            f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
            for mean, low, high in (one["gain"], one["gain_in_use"], one["general_drop_in_use"])
        )
        lines.append(
            f"| {one['parameters']} | {one['numbers_trained']} | {one['patients']} | {one['next_base']:.3f} | {gain} "
            f"| {one['accepted']} | {used} | {drop} | {one['median_cpu_seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=16)
    parser.add_argument("--first", type=int, default=0, help="number of the first patient")
    parser.add_argument("--parameters", nargs="+", choices=PARAMETERS, default=[AdaptationConfig().parameters])
    parser.add_argument("--steps", type=int, default=AdaptationConfig().steps)
    parser.add_argument("--rate", type=float, default=AdaptationConfig().learning_rate)
    parser.add_argument("--others", type=int, default=24, help="synthetic patients for the general drop")
    parser.add_argument("--model", type=Path, help="base model; else the starter model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="one patient, few steps")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    if options.quick:
        options.patients, options.steps, options.others = 1, 8, 1
    device = choose_device(options.device)
    base = load_network(options.model or starter_model("brats-glioma"))
    general_set(base.task, "rehearsal"), general_set(base.task, "test")  # once, and not on a patient's clock
    others = [seen_by_network(synthetic_patient(10_000 + n, 1), 0, base.task) for n in range(options.others)]
    rows = []
    for parameters in options.parameters:
        config = AdaptationConfig(parameters=parameters, steps=options.steps, learning_rate=options.rate)
        for number in range(options.first, options.first + options.patients):
            rows.append(try_patient(number, base, others, config, device))
            print(json.dumps(rows[-1]), flush=True)
    summaries = [summary(rows, parameters, base) for parameters in options.parameters]
    print(table(summaries))
    if options.json is not None:
        config_used = dataclasses.asdict(AdaptationConfig(steps=options.steps, learning_rate=options.rate))
        facts = {"base": base.hash, "base_parameters": count_parameters(base.network), "config": config_used}
        content = {**facts, "summary": summaries, "rows": rows}
        write_atomically(options.json, (json.dumps(content, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
