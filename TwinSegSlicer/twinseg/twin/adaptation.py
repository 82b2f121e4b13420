"""Adaptation: a base model learns from the patient's own corrected scans, under a gate.

Only few parameters are trained (`PARAMETERS`), on small crops, half of them of synthetic patients, so that the model
does not forget what others look like. A part of the patient is held out: the oldest corrected scan where there are
several, else the upper third of the tumour. The delta is kept whatever came of it, but it is used only if the Dice on
that part is better than the base model's by `GAIN` (one that helps nobody may still harm), and that on the general set
(other synthetic patients, of fixed seeds) worse by no more than `TOLERANCE`; else a half and a quarter of the change
are tried.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinseg.cases import LoadedCase, put_on_grid
from twinseg.errors import Cancelled, InputError
from twinseg.inference import Report, predict
from twinseg.metrics import dice
from twinseg.network import ViTUNet
from twinseg.preprocessing import PreparedCase, prepare, region_channels
from twinseg.segmentation import LoadedModel
from twinseg.tasks import Task
from twinseg.trainer import TrainingProgress
from twinseg.training import SegmentationConfig, SegmentationTrainer
from twinseg.twin.adaptation_delta import keep_delta
from twinseg.twin.adaptation_general import general_set
from twinseg.twin.store import Twin
from twinseg.twin.store_records import Record, TimePoint

GAIN, TOLERANCE = 0.005, 0.01
"""What the mean Dice of the patient's held-out part must gain at least, and what that of others may lose at most."""

STRENGTHS = (1.0, 0.5, 0.25)
"""Shares of what was learnt that are tried until one passes: weights between the base model's and the learnt ones
forget less (WiSE-FT, Wortsman et al. 2022, Robust fine-tuning of zero-shot models)."""

CORRECTED = ("edited", "expert")

PARAMETERS: dict[str, Callable[[str], bool]] = {
    "norm": lambda name: "norm" in name,
    "last stage": lambda name: name.startswith(("up.0.", "merge.0.", "heads.0.")),
    "norm and last stage": lambda name: "norm" in name or name.startswith(("up.0.", "merge.0.", "heads.0.")),
    "all": lambda name: True,
}
"""What may be trained: scale and shift of every normalisation; the decoder's last stage; both; everything."""


@dataclass(frozen=True)
class AdaptationConfig:
    """How a model is adapted; the defaults were chosen on a few synthetic patients.

    Attributes:
        parameters: one of `PARAMETERS`.
        steps: of training, one crop each.
        learning_rate: the highest.
        crop: voxels a side of a training crop, at most the task's.
        seed: of the crops and their random changes.
    """

    parameters: str = "norm and last stage"
    steps: int = 72
    learning_rate: float = 2e-3
    crop: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Comparison:
    """Mean Dice of base and adapted model on cases that were not trained on; `on` says which, `least` what has to be
    gained at least (below zero: what may be lost)."""

    on: str
    base: float
    adapted: float
    least: float

    @property
    def passed(self) -> bool:
        """Whether the adapted model may be used, as far as these cases are concerned."""
        return self.adapted >= self.base + self.least

    @property
    def demand(self) -> str:
        """What was asked for, in words."""
        return f"gain {self.least} at least" if self.least > 0 else f"lose {-self.least} at most"


@dataclass(frozen=True)
class Adaptation:
    """An adapted model before it is kept: new tensors by name, the share of what was learnt that they hold, how it
    fared, the time points it learnt from."""

    base: str
    tensors: dict[str, Tensor]
    strength: float
    held_out: Comparison
    general: Comparison
    learnt_from: tuple[str, ...]
    config: AdaptationConfig
    seconds: float

    @property
    def accepted(self) -> bool:
        """Whether the model may be used."""
        return self.held_out.passed and self.general.passed

    @property
    def reason(self) -> str:
        """Why it was accepted or rejected, in a sentence."""
        lines = [
            f"Dice on {one.on}: {one.base:.3f} before, {one.adapted:.3f} after" for one in (self.held_out, self.general)
        ]
        failed = [f"{one.demand} on {one.on}" for one in (self.held_out, self.general) if not one.passed]
        verdict = f"Rejected: it has to {' and '.join(failed)}." if failed else "Accepted."
        return f"{'; '.join(lines)}. {verdict}"

    def to_json(self) -> dict[str, Any]:
        """What the record in `models/` says, but for the base."""
        return {
            "accepted": self.accepted,
            "reason": self.reason,
            "held_out": dataclasses.asdict(self.held_out),
            "general": dataclasses.asdict(self.general),
            "strength": self.strength,
            "learnt_from": list(self.learnt_from),
            "config": dataclasses.asdict(self.config),
            "numbers_trained": sum(tensor.numel() for tensor in self.tensors.values()),
            "seconds": round(self.seconds, 1),
        }


def adapt(
    twin: Twin,
    base: LoadedModel,
    *,
    config: AdaptationConfig | None = None,
    device: torch.device | str = "cpu",
    report: Report = lambda done, stage: None,
) -> Adaptation:
    """Adapt a base model to the twin's corrected scans; the base and the twin stay as they are (see `keep`).

    Raises InputError where there is no corrected scan, or one too small to hold a part back; Cancelled when `report`
    asks for it.
    """

    def tell(done: float, stage: str) -> None:
        if report(done, stage):
            raise Cancelled("stopped; nothing was changed")

    started, config = time.perf_counter(), config or AdaptationConfig()
    tell(0.0, "reading the corrected scans")
    scans = corrected_scans(twin, base.task)
    training, held_out, on = hold_out(scans)
    rehearsal = general_set(base.task, "rehearsal", lambda done, stage: tell(0.05 + 0.05 * done, stage))
    general = general_set(base.task, "test", lambda done, stage: tell(0.1 + 0.05 * done, stage))
    learnt = fine_tune(base, training, rehearsal, config, device, lambda done, stage: tell(0.15 + 0.55 * done, stage))
    own, measured = base.network.state_dict(), [*held_out, *((case, 0) for case in general)]
    rounds = 1 + len(STRENGTHS)

    def scores(network: ViTUNet, number: int) -> tuple[float, float]:
        """Mean Dice on the held-out part and on the general set."""
        found = []
        for index, (case, start) in enumerate(measured):
            done = (number + index / len(measured)) / rounds
            tell(0.7 + 0.3 * done, f"testing, {index + 1} of {len(measured)}")
            found.append(_dice(network, case, base.task, device, start))
        return float(np.mean(found[: len(held_out)])), float(np.mean(found[len(held_out) :]))

    before, adapted = scores(base.network, 0), copy.deepcopy(base.network)
    for number, strength in enumerate(STRENGTHS, start=1):
        tensors = {name: torch.lerp(own[name].cpu(), tensor, strength) for name, tensor in learnt.items()}
        adapted.load_state_dict({**own, **tensors})
        after = scores(adapted, number)
        result = Adaptation(
            base=base.hash,
            tensors=tensors,
            strength=strength,
            held_out=Comparison(on, before[0], after[0], GAIN),
            general=Comparison("the general set", before[1], after[1], -TOLERANCE),
            learnt_from=tuple(case.name for case in training),
            config=config,
            seconds=time.perf_counter() - started,
        )
        if result.accepted:
            break
    return result


def keep(twin: Twin, adaptation: Adaptation) -> Record:
    """Add an adapted model to the twin, accepted or not."""
    return keep_delta(twin, adaptation.base, adaptation.tensors, adaptation.to_json())


def corrected_scans(twin: Twin, task: Task) -> list[PreparedCase]:
    """The scans that a human drew or corrected, as the network sees them, by day. Raises InputError without any."""
    found = [point for point in twin.timepoints if point.segmentation and point.segmentation.origin in CORRECTED]
    if not found:
        raise InputError(
            f"{twin.folder}: it has no corrected scan to learn from; correct a segmentation and add it to the twin"
        )
    return [_prepared(twin, point, task) for point in found]


def hold_out(scans: Sequence[PreparedCase]) -> tuple[list[PreparedCase], list[tuple[PreparedCase, int]], str]:
    """What is trained on; what is held out, each with the first slice that counts; and the latter in words.

    The newest scans are trained on, as they are most like the next one. Raises InputError for a single scan whose
    tumour cannot be cut.
    """
    with_tumour = [case for case in scans if case.labels is not None and case.labels.any()]
    if len(with_tumour) > 1:
        oldest = with_tumour[0]
        return [case for case in scans if case is not oldest], [(oldest, 0)], f"the held-out scan {oldest.name}"
    if not with_tumour:
        raise InputError("the corrected scans show no tumour; a model learns from scans with one")
    case = with_tumour[0]
    assert case.labels is not None
    cut = _cut_slice(case.labels)
    below = dataclasses.replace(case, image=case.image[..., :cut], labels=case.labels[..., :cut])
    empty = [other for other in scans if other is not case]
    return [below, *empty], [(case, cut)], f"the held-out upper third of the tumour of scan {case.name}"


def fine_tune(
    base: LoadedModel,
    training: Sequence[PreparedCase],
    rehearsal: Sequence[PreparedCase],
    config: AdaptationConfig,
    device: torch.device | str,
    tell: Callable[[float, str], None],
) -> dict[str, Tensor]:
    """The trained tensors by name, half of the steps on the patient; the base model stays as it is. What `tell` raises
    ends it."""
    cases = [training[number % len(training)] for number in range(max(len(training), len(rehearsal)))] + [*rehearsal]
    network = copy.deepcopy(base.network)
    chosen = PARAMETERS[config.parameters]
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(chosen(name))
    settings = SegmentationConfig(
        epochs=math.ceil(config.steps / len(cases)),
        learning_rate=config.learning_rate,
        weight_decay=0.0,
        validations=1,
        paste_probability=0.0,  # it would only put the patient's tumour where it never was
        core_probability=0.0,
        seed=config.seed,
    )
    trainer = SegmentationTrainer(network, _small_crops(base, config.crop), cases, [], settings, device)

    def step(progress: TrainingProgress) -> None:
        tell(progress.done, f"learning, loss {progress.loss:.3f}")

    trainer.run(step)
    return {name: trainer.best_weights[name].cpu().clone() for name in trainer.trainable}


def _small_crops(base: LoadedModel, crop: int) -> Task:
    """The task with crops of at most so many voxels a side, in steps of the network's strides."""
    x, y, z = (
        min(size, max(step, crop // step * step))
        for size, step in zip(base.task.patch, base.network.config.total_stride, strict=True)
    )
    return dataclasses.replace(base.task, patch=(x, y, z))


def _cut_slice(labels: NDArray[np.uint8]) -> int:
    """The slice (last axis) from which on a third of the tumour lies. Raises InputError where there is no such."""
    counts = np.count_nonzero(labels, axis=(0, 1))
    share_below = np.cumsum(counts) / counts.sum()
    cut = int(np.argmax(share_below >= 2 / 3)) + 1
    if cut >= len(counts) or counts[cut:].sum() == 0 or np.count_nonzero(counts) < 3:
        raise InputError("the tumour is too small to hold a part of it back; correct and add a second scan")
    return cut


def _prepared(twin: Twin, point: TimePoint, task: Task) -> PreparedCase:
    labels = twin.labels(point)
    assert labels is not None
    names = [sequence.name for sequence in task.sequences if sequence.name in point.images]
    if not names:
        raise InputError(f"time point {point.name}: it has none of the sequences of the task {task.name}")
    images = {name: twin.image(point, name) for name in names}
    on_grid = {
        name: put_on_grid(image, labels, twin.folder / point.images[name], twin.folder / "labels")
        for name, image in images.items()
    }
    return prepare(LoadedCase(on_grid, labels, labels), task, name=point.name)


def _dice(network: ViTUNet, case: PreparedCase, task: Task, device: torch.device | str, start: int) -> float:
    """Dice, mean over regions, on the slices (last axis) from `start` on."""
    assert case.labels is not None
    drawn, truth = predict(network, case.image, task, device).argmax(0)[..., start:], case.labels[..., start:]
    regions = region_channels(task)
    return float(np.mean([dice(np.isin(drawn, region), np.isin(truth, region)) for region in regions]))
