"""Makes the starter model for brats-glioma: the small network, trained on synthetic patients alone.

    python Testing/Experiments/starter.py --output TwinSegSlicer/Resources/Models/brats-glioma.safetensors

Heads and their tumours are grown once and kept in the work folder. At every step one of them is bent anew, keeps its
tumour or is given another, and is photographed by another scanner (`twinseg.phantom.synthesis`), so that no image is
seen twice. The model sees a grid of 2 mm. With --coarse-epochs the first of them are on one of 4 mm, an eighth of the
work (small images first: Tan and Le 2021, EfficientNetV2, section 4); what that costs in Dice is not measured yet.
It is chosen on synthetic validation patients; nothing real is looked at. --score tells of another model what it draws
of the same patients.

The training may be killed at any moment: the same command with --resume goes on from the last checkpoint, at most two
minutes earlier. --part-minutes stops it in good order before a machine is taken away. The same seed on the same machine
makes the same model.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from twinseg.errors import Cancelled
from twinseg.home import data_folder
from twinseg.inference import choose_device, predict
from twinseg.memory import keep_freed_memory
from twinseg.metrics import dice
from twinseg.model_file import load_model, save_model
from twinseg.network import ViTUNet, build_network, preset
from twinseg.phantom.heads import GrownHead, grow_heads
from twinseg.phantom.synthesis import Mixture, Synthesizer
from twinseg.preprocessing import PreparedCase, label_values, region_channels
from twinseg.tasks import Task, load_task
from twinseg.trainer import RandomSamples, Trainer
from twinseg.training import SegmentationConfig, SegmentationLoss, SegmentationTrainer
from twinseg.training_run import check_output, commit_of_checkout, draw_curve, run_with_checkpoints

VALIDATION_SHARE = 0.12
VALIDATION_SAMPLES = 40
VALIDATIONS = 20
WORTH_A_REGION_ML = 10.0
HALF_LOST = 0.002
"""Share of the patch: of 160 by 192 by 160 mm, as much as `WORTH_A_REGION_ML`."""
COARSER = 2
CUT_MM, WIDENED_MM = 24.0, 32.0
"""As much of a synthetic image may be cut off, or of its outermost slice repeated, on each of its six sides."""


def starter_task() -> Task:
    """brats-glioma on a 2 mm grid, a patch that holds a brain."""
    return dataclasses.replace(load_task("brats-glioma"), spacing=(2.0, 2.0, 2.0), patch=(80, 96, 80))


class SyntheticSamples(RandomSamples):
    """Grown heads, each another patient every time that it is met, and each batch in another frame: how much is empty
    around a head changes what instance norm makes of it, and scans come in all sizes."""

    def __init__(self, heads: Sequence[GrownHead], synthesizer: Synthesizer, seed: int, batch: int = 1) -> None:
        super().__init__(len(heads), seed)
        self.synthesizer, self.batch = synthesizer, batch
        self.heads = [head.to(synthesizer.patch.device) for head in heads]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = np.random.default_rng([self.seed, 2, index // self.batch])
        cut, widened = (round(mm / self.synthesizer.patch.spacing) for mm in (CUT_MM, WIDENED_MM))
        margins = random.integers(-cut, widened, 6, endpoint=True).tolist()
        return {name: framed(tensor, margins) for name, tensor in super().__getitem__(index).items()}

    def sample(self, number: int, random: np.random.Generator) -> dict[str, Tensor]:
        made = self.synthesizer.sample(self.heads[number], (int(random.integers(2**62)),))
        return {"image": made.image, "labels": made.labels[None]}


def framed(tensor: Tensor, margins: Sequence[int]) -> Tensor:
    """(C, X, Y, Z), cut by the negative of six margins (voxels; Z first) and continued by its last slices by others."""
    cut = functional.pad(tensor, [min(0, margin) for margin in margins])
    return functional.pad(cut[None].float(), [max(0, margin) for margin in margins], mode="replicate")[0].to(cut.dtype)


class CoarseThenFine(SyntheticSamples):
    """The same, but in the first epochs on a grid of `COARSER` times the spacing."""

    def __init__(
        self, heads: Sequence[GrownHead], fine: Synthesizer, coarse_epochs: int, seed: int, batch: int = 1
    ) -> None:
        super().__init__(heads, fine, seed, batch)
        patch = fine.patch
        x, y, z = (size // COARSER for size in patch.shape)
        coarse = Synthesizer((x, y, z), patch.spacing * COARSER, patch.device, fine.mixture)
        self.coarse, self.coarse_count = SyntheticSamples(heads, coarse, seed, batch), coarse_epochs * len(heads)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.coarse[index] if index < self.coarse_count else super().__getitem__(index)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What was drawn of a patient: Dice of each region that is there, mL of each that is not."""

    dice: list[float]
    false_ml: list[float]


def score_each(patients: Sequence[Drawn]) -> list[float]:
    """Dice of the regions that a patient has, less what is drawn of those that it lacks (`WORTH_A_REGION_ML` and more
    count as a whole region); divided so that the mean over the patients is 1 for all right and 0 for nothing drawn."""
    there = max(1, sum(len(one.dice) for one in patients)) / max(1, len(patients))
    return [(sum(one.dice) - sum(min(1.0, ml / WORTH_A_REGION_ML) for ml in one.false_ml)) / there for one in patients]


@dataclasses.dataclass(frozen=True)
class StarterConfig(SegmentationConfig):
    """How the starter is trained: `coarse_epochs` of its epochs, the first, are on the coarse grid."""

    coarse_epochs: int = 0


class StarterLoss(SegmentationLoss):
    """The same, but a region that a patient lacks costs by the volume that is drawn of it, half at `HALF_LOST` of the
    patch. Dice alone is as wrong there for one voxel as for thousands, and so tells no way back from them."""

    def region_loss(self, regions: Tensor, wanted: Tensor) -> Tensor:
        drawn, truth = regions.mean((2, 3, 4)), wanted.mean((2, 3, 4))
        false = torch.where(truth > 0, 0.0, drawn / (drawn + HALF_LOST))
        return super().region_loss(regions, wanted) + false.mean()


class StarterTrainer(SegmentationTrainer):
    """A segmentation trainer whose samples are made on the device that trains."""

    score_name = "validation score"

    def __init__(
        self,
        network: ViTUNet,
        task: Task,
        samples: RandomSamples,
        validation: Sequence[PreparedCase],
        config: SegmentationConfig,
        device: torch.device,
    ) -> None:
        Trainer.__init__(self, network, samples, config, device)
        self.task, self.validation = task, validation
        self.loss = StarterLoss(task, config.dice_weight)

    def drawn(self) -> list[Drawn]:
        """What the network as it stands draws of each validation patient."""
        return [self._drawn(case) for case in self.validation]

    def scores(self) -> list[float]:
        """`score_each` of the validation patients."""
        return score_each(self.drawn())

    def _drawn(self, case: PreparedCase) -> Drawn:
        assert case.labels is not None
        predicted = predict(self.network, case.image, self.task, self.device).argmax(0)
        voxel_ml = float(np.prod(case.spacing)) / 1000
        scores, false_ml = [], []
        for region in region_channels(self.task):
            found, wanted = np.isin(predicted, region), np.isin(case.labels, region)
            if wanted.any():
                scores.append(dice(found, wanted))
            else:
                false_ml.append(float(found.sum()) * voxel_ml)
        return Drawn(scores, false_ml)


def synthetic_patients(
    heads: Sequence[GrownHead], count: int, task: Task, seeds: tuple[int, ...], mixture: Mixture | None = None
) -> list[PreparedCase]:
    """Fixed patients of some heads; of the mixture that the starter is trained on, unless another is given."""
    synthesizer = Synthesizer(task.patch, task.spacing[0], mixture=mixture)
    affine, cases = np.diag([*task.spacing, 1.0]), []
    for number in range(count):
        made = synthesizer.sample(heads[number % len(heads)], (*seeds, number))
        image, labels = made.image.numpy(), made.labels.numpy()
        cases.append(PreparedCase(f"{made.kind}-{number:03d}", None, image, made.present, affine, labels))
    return cases


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    purpose = parser.add_mutually_exclusive_group(required=True)
    purpose.add_argument("--output", type=Path, help="model file to write")
    purpose.add_argument("--score", type=Path, help="model file of the same preset to score, instead of a training")
    parser.add_argument("--work", type=Path, help="folder for heads and checkpoint (default: in TwinSegSlicer's own)")
    parser.add_argument("--heads", type=int, default=400)
    parser.add_argument(
        "--epochs", type=int, default=42, help="passes over the heads; each time another patient is made"
    )
    parser.add_argument("--coarse-epochs", type=int, default=0, help="how many of them, the first, on the coarse grid")
    parser.add_argument("--part-minutes", type=float, help="stop after so many minutes; go on with --resume")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the work folder")
    parser.add_argument("--anatomy", type=Path, help="folder of brain label maps that half of the heads are drawn from")
    parser.add_argument("--init", type=Path, help="model to start from, of the same preset; else fresh weights")
    parser.add_argument("--preset", default="small", help="small or base")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--device", default="auto")
    return parser.parse_args(words)


def grown(options: argparse.Namespace, work: Path) -> list[GrownHead]:
    """The heads, from the work folder or grown now."""
    began = time.perf_counter()

    def tell(done: int) -> None:
        if done % 20 == 0:
            print(f"{done} of {options.heads} heads, {time.perf_counter() - began:.0f} s", flush=True)

    folder = work / "heads"
    return grow_heads(options.heads, options.seed, anatomy=options.anatomy, folder=folder, report=tell)


def make_trainer(options: argparse.Namespace, heads: Sequence[GrownHead], task: Task) -> StarterTrainer:
    """The trainer as it begins."""
    device = choose_device(options.device)
    held_out = max(1, round(VALIDATION_SHARE * len(heads)))
    validation = synthetic_patients(heads[:held_out], VALIDATION_SAMPLES, task, (options.seed, 7))
    fine = Synthesizer(task.patch, task.spacing[0], device)
    samples = CoarseThenFine(heads[held_out:], fine, options.coarse_epochs, options.seed, options.batch)
    torch.manual_seed(options.seed)
    network = build_network(preset(options.preset, len(task.sequences), len(label_values(task)), task.strides))
    if options.init is not None:
        network.load_state_dict(load_model(options.init, expected_task=task).tensors)
    config = StarterConfig(
        epochs=options.epochs,
        coarse_epochs=options.coarse_epochs,
        batch_size=options.batch,
        validations=VALIDATIONS,
        patience=99,
        seed=options.seed,
    )
    return StarterTrainer(network, task, samples, validation, config, device)


def main() -> None:
    options = parse_options()
    if options.output is not None:
        check_output(options.output)
    keep_freed_memory()
    work = options.work or data_folder() / "starter"
    work.mkdir(parents=True, exist_ok=True)
    task = starter_task()
    trainer = make_trainer(options, grown(options, work), task)
    if options.score is not None:
        print(on_synthetic_patients(trainer, load_model(options.score, expected_task=task).tensors))
        return
    checkpoint = work / f"{options.output.stem}.checkpoint"
    if train(trainer, options, checkpoint):
        write_model(trainer, options, task)
        checkpoint.unlink(missing_ok=True)


def train(trainer: StarterTrainer, options: argparse.Namespace, checkpoint: Path) -> bool:
    """Train to the end, or for as long as there is time; whether the end was reached."""
    began = time.monotonic()
    if options.resume and checkpoint.exists():
        trainer.resume(checkpoint)
    scored = len(trainer.state.history)

    def report(done: float, stage: str) -> bool:
        nonlocal scored
        if len(trainer.state.history) > scored:
            scored = len(trainer.state.history)
            print(f"{done:.0%}, {stage}, mean loss {trainer.state.history[-1]['loss']:.3f}", flush=True)
        return options.part_minutes is not None and time.monotonic() - began > 60 * options.part_minutes

    try:
        run_with_checkpoints(trainer, checkpoint, report)
    except Cancelled as stop:
        print(f"{trainer.done:.0%}: {stop}")
        return False
    return True


def on_synthetic_patients(trainer: StarterTrainer, weights: Mapping[str, Tensor]) -> dict[str, float]:
    """What a network of these weights draws of the validation patients: its score, and what that is made of."""
    trainer.network.load_state_dict(weights)
    drawn = trainer.drawn()
    dices = [value for one in drawn for value in one.dice]
    false_ml = [value for one in drawn for value in one.false_ml]
    return {
        "score": round(float(np.mean(score_each(drawn))), 4),
        "mean Dice of the regions that are there": round(float(np.mean(dices)), 4) if dices else math.nan,
        "mean mL of those that are not": round(float(np.mean(false_ml)), 2) if false_ml else math.nan,
    }


def write_model(trainer: StarterTrainer, options: argparse.Namespace, task: Task) -> None:
    """The best weights as a model file, and the training's curve beside it."""
    measured = {
        "steps": trainer.state.step,
        "minutes": round(trainer.state.seconds / 60, 1),
        "on synthetic validation patients": on_synthetic_patients(trainer, trainer.best_weights),
    }
    provenance = {
        "data": f"{options.heads} synthetic heads, made anew at each step, seed {options.seed}; no real image",
        "anatomy": "procedural" if options.anatomy is None else "procedural and warped healthy label maps",
        "made_by": "Testing/Experiments/starter.py",
        "epochs": {"all": options.epochs, "on the coarse grid": options.coarse_epochs},
        "parent": None if options.init is None else load_model(options.init).card.hash,
        "commit": commit_of_checkout(Path(__file__)),
        "metrics": measured,
    }
    save_model(
        options.output,
        trainer.best_weights,
        task=task,
        network=trainer.network.config.to_dict(),
        provenance=provenance,
        dtype="float16",
    )
    draw_curve(options.output.with_suffix(".png"), trainer.state.history, task.title, trainer.score_name)
    print(measured)


if __name__ == "__main__":
    main()
