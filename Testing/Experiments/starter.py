"""Makes the starter model for brats-glioma: the small network, trained on synthetic patients alone.

    python Testing/Experiments/starter.py --output TwinSegSlicer/Resources/Models/brats-glioma.safetensors

Heads and tumours are grown first; images of them are taken anew at every step, with another scanner and another
tissue, half with physical contrast and half with random contrast, so that no image is seen twice. One head in ten has
no tumour. The model sees a grid of 2 mm, which two cores can train in the time.
It is chosen on synthetic validation patients; nothing real is looked at.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from twinseg.cases import LoadedCase
from twinseg.inference import choose_device
from twinseg.model_file import save_model
from twinseg.network import build_network, preset
from twinseg.phantom import HEALTHY, GrownPatient, Scanner, grow_patient, take_images
from twinseg.preprocessing import PreparedCase, label_values, prepare
from twinseg.tasks import Task, load_task
from twinseg.trainer import TrainingProgress
from twinseg.training import SegmentationConfig, SegmentationTrainer
from twinseg.training_run import commit_of_checkout, draw_curve
from twinseg.volumes import Volume

VALIDATION_SHARE = 0.1


def starter_task() -> Task:
    """brats-glioma on a 2 mm grid, a patch that holds a brain."""
    return dataclasses.replace(load_task("brats-glioma"), spacing=(2.0, 2.0, 2.0), patch=(80, 96, 80))


class FreshImages(Sequence[PreparedCase]):
    """Grown patients as cases whose images are taken anew each time that they are asked for."""

    def __init__(self, patients: Sequence[GrownPatient], task: Task, seed: int) -> None:
        self.patients, self.task, self.seed, self.taken = patients, task, seed, 0

    def __len__(self) -> int:
        return len(self.patients)

    def __getitem__(self, index: int) -> PreparedCase:  # type: ignore[override]
        self.taken += 1
        return synthetic_case(self.patients[index], (self.seed, self.taken), self.task)


def synthetic_case(patient: GrownPatient, seed: tuple[int, ...], task: Task) -> PreparedCase:
    """The patient as the network sees it, with the scanner, contrast and tissue of a seed."""
    contrast = "random" if np.random.default_rng((*seed, 98)).random() < 0.5 else "physical"
    images = take_images(patient, 0, Scanner.random((*seed, 99)), contrast, seed)
    reference = next(iter(images.values()))
    labels = Volume(patient.states[0][1].labels, reference.affine)
    return prepare(LoadedCase(images, reference, labels), task, name=f"synthetic-{seed[-1]:06d}")


def grown_patients(number: int, seed: int, anatomy: Path | None) -> list[GrownPatient]:
    """Heads with their tumours: half of the heads by rule, half from label maps where a folder is given."""
    started = time.perf_counter()
    patients = []
    for index in range(number):
        kind = HEALTHY if index % 10 == 9 else None
        folder = anatomy if index % 4 >= 2 else None
        patients.append(grow_patient((seed, index), size=104, spacing=2.0, anatomy=folder, kind=kind))
        if index % 20 == 19:
            print(f"{index + 1} of {number} patients, {time.perf_counter() - started:.0f} s", flush=True)
    return patients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="model file to write")
    parser.add_argument("--patients", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=50, help="of training, after the patients are grown")
    parser.add_argument("--anatomy", type=Path, help="folder of brain label maps that half of the heads are drawn from")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()

    task = starter_task()
    patients = grown_patients(options.patients, options.seed, options.anatomy)
    held_out = max(1, round(VALIDATION_SHARE * len(patients)))
    validation = [synthetic_case(p, (options.seed, 7, n), task) for n, p in enumerate(patients[:held_out])]
    training = FreshImages(patients[held_out:], task, options.seed)
    torch.manual_seed(options.seed)
    network = build_network(preset("small", len(task.sequences), len(label_values(task)), task.strides))
    config = SegmentationConfig(
        minutes=options.minutes, drop_probability=0.25, paste_probability=0.0, seed=options.seed, patience=99
    )
    trainer = SegmentationTrainer(network, task, training, validation, config, choose_device(options.device))

    losses: list[float] = []

    def report(progress: TrainingProgress) -> None:
        losses.append(progress.loss)
        if progress.score is not None:
            loss = float(np.mean(losses[-200:]))
            print(
                f"{progress.done:.0%}, step {progress.step}, loss {loss:.3f}, Dice {progress.score:.3f}",
                flush=True,
            )

    trainer.run(report)
    measured = {
        "steps": trainer.state.step,
        "minutes": round(trainer.state.seconds / 60, 1),
        "validation_dice_on_synthetic_patients": round(trainer.state.best_score or 0.0, 4),
    }
    provenance = {
        "data": f"{len(patients)} synthetic heads, images taken anew at each step, seed {options.seed}; no real image",
        "anatomy": "procedural" if options.anatomy is None else "procedural and warped healthy label maps",
        "made_by": "Testing/Experiments/starter.py",
        "commit": commit_of_checkout(Path(__file__)),
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
    draw_curve(options.output.with_suffix(".png"), trainer.state.history, task.title, trainer.score_name)
    print(measured)


if __name__ == "__main__":
    main()
