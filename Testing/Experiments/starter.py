"""Makes the starter model for brats-glioma: the small network, trained on synthetic patients alone.

    python Testing/Experiments/starter.py --output TwinSegSlicer/Resources/Models/brats-glioma.safetensors

Patients are made first, half with physical contrast and half with random contrast, each with a scanner of its own. The
model sees a grid of 2 mm, which two cores can train in the time.
It is chosen on synthetic validation patients; nothing real is looked at.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch

from twinseg.cases import LoadedCase
from twinseg.inference import choose_device
from twinseg.model_file import save_model
from twinseg.network import build_network, preset
from twinseg.phantom import Scanner, make_patient
from twinseg.preprocessing import PreparedCase, label_values, prepare
from twinseg.tasks import Task, load_task
from twinseg.training import Trainer, TrainingConfig, TrainingProgress
from twinseg.training_run import draw_curve

VALIDATION_SHARE = 0.1


def starter_task() -> Task:
    """brats-glioma on a 2 mm grid, a patch that holds a brain."""
    return dataclasses.replace(load_task("brats-glioma"), spacing=(2.0, 2.0, 2.0), patch=(80, 96, 80))


def synthetic_case(number: int, seed: int, task: Task, anatomy: Path | None) -> PreparedCase:
    """Patient `number` of the cohort as the network sees it. Odd ones have random contrast."""
    patient = make_patient(
        (seed, number),
        scanner=Scanner.random((seed, number, 99)),
        size=104,
        spacing=2.0,
        anatomy=anatomy if number % 4 >= 2 else None,
        contrast="random" if number % 2 else "physical",
    )
    case = LoadedCase(patient.images, next(iter(patient.images.values())), patient.labels)
    return prepare(case, task, name=f"synthetic-{number:04d}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="model file to write")
    parser.add_argument("--patients", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=45, help="of training, after the patients are made")
    parser.add_argument("--anatomy", type=Path, help="folder of brain label maps that half of the heads are drawn from")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()

    task = starter_task()
    started = time.perf_counter()
    cases = []
    for number in range(options.patients):
        cases.append(synthetic_case(number, options.seed, task, options.anatomy))
        if number % 20 == 19:
            print(f"{number + 1} of {options.patients} patients, {time.perf_counter() - started:.0f} s", flush=True)
    held_out = max(1, round(VALIDATION_SHARE * len(cases)))
    torch.manual_seed(options.seed)
    network = build_network(preset("small", len(task.sequences), len(label_values(task)), task.strides))
    config = TrainingConfig(minutes=options.minutes, drop_probability=0.2, seed=options.seed, patience=99)
    trainer = Trainer(network, task, cases[held_out:], cases[:held_out], config, choose_device(options.device))

    losses: list[float] = []

    def report(progress: TrainingProgress) -> None:
        losses.append(progress.loss)
        if progress.validation_dice is not None:
            loss = float(np.mean(losses[-200:]))
            print(
                f"{progress.done:.0%}, step {progress.step}, loss {loss:.3f}, Dice {progress.validation_dice:.3f}",
                flush=True,
            )

    trainer.run(report)
    measured = {
        "steps": trainer.state.step,
        "minutes": round(trainer.state.seconds / 60, 1),
        "validation_dice_on_synthetic_patients": round(trainer.state.best_dice, 4),
    }
    provenance = {
        "data": f"{len(cases)} synthetic patients, seed {options.seed}; no real image",
        "anatomy": "procedural" if options.anatomy is None else "procedural and warped healthy label maps",
        "made_by": "Testing/Experiments/starter.py",
        "metrics": measured,
    }
    save_model(
        options.output,
        trainer.best_weights,
        task=task,
        network=network.config.to_dict(),
        provenance=provenance,
        dtype="float16",
    )
    draw_curve(options.output.with_suffix(".png"), trainer.state.history, task)
    print(measured)


if __name__ == "__main__":
    main()
