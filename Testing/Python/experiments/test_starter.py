"""The starter model's training: one command, a fixed seed, in as many parts as a machine has time for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest
import starter
import torch
from starter import Drawn

from twinseg.errors import InputError
from twinseg.model_file import load_model
from twinseg.phantom.heads import grow_heads
from twinseg.phantom.synthesis import Synthesizer
from twinseg.preprocessing import PreparedCase
from twinseg.training import SegmentationLoss

TASK = starter.starter_task()
SHIPPED = Path(__file__).resolve().parents[3] / "TwinSegSlicer/Resources/Models/brats-glioma.safetensors"


def options_of(*words: str) -> argparse.Namespace:
    return starter.parse_options([*words, "--device", "cpu"])


def test_a_training_in_parts_makes_the_very_model_of_one_that_was_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(starter, "VALIDATION_SAMPLES", 1)
    monkeypatch.setattr(starter, "VALIDATIONS", 2)
    monkeypatch.setattr(starter, "starter_task", lambda: starter.dataclasses.replace(TASK, patch=(32, 48, 32)))

    def train(output: Path, *more: str) -> None:
        words = ["--output", str(output), "--work", str(tmp_path / "work"), "--heads", "4", "--epochs", "2"]
        words += ["--coarse-epochs", "1"]
        monkeypatch.setattr(sys, "argv", ["starter.py", *words, "--device", "cpu", *more])
        starter.main()

    train(tmp_path / "whole.safetensors")
    while not (tmp_path / "parts.safetensors").exists():
        train(tmp_path / "parts.safetensors", "--resume", "--part-minutes", "0")

    whole, parts = (load_model(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    assert "stopped" in capsys.readouterr().out
    assert all(torch.equal(tensor, parts.tensors[name]) for name, tensor in whole.tensors.items())
    assert "no real image" in whole.card.provenance["data"]
    assert (tmp_path / "whole.png").stat().st_size > 1000
    assert not list((tmp_path / "work").glob("*.checkpoint"))


def test_the_first_epochs_are_on_a_coarser_grid_that_shows_as_much_of_a_head() -> None:
    heads, synthesizer = grow_heads(2, seed=1), Synthesizer((32, 48, 32), 2.0)

    samples = starter.CoarseThenFine(heads, synthesizer, coarse_epochs=1, seed=3)

    coarse, fine = samples.coarse.synthesizer.patch, samples.synthesizer.patch
    assert (coarse.shape, coarse.spacing) == ((16, 24, 16), 4.0)
    assert (fine.shape, fine.spacing) == ((32, 48, 32), 2.0)
    assert torch.equal(samples[1]["image"], samples.coarse[1]["image"])
    assert torch.equal(samples[2]["image"], starter.SyntheticSamples(heads, synthesizer, seed=3)[2]["image"])


def test_a_frame_cuts_off_or_repeats_the_outermost_slices() -> None:
    labels = torch.arange(4, dtype=torch.uint8).reshape(1, 4, 1, 1).expand(1, 4, 3, 2)

    made = starter.framed(labels, [0, 1, -1, 0, 2, -1])

    assert made.dtype == torch.uint8
    assert tuple(made.shape) == (1, 5, 2, 3)
    assert made[0, :, 0, 0].tolist() == [0, 0, 0, 1, 2]


def test_each_batch_is_seen_in_another_frame() -> None:
    heads, synthesizer = grow_heads(2, seed=1), Synthesizer((32, 48, 32), 2.0)

    samples = starter.SyntheticSamples(heads, synthesizer, seed=3, batch=2)

    shapes = [tuple(samples[index]["image"].shape[1:]) for index in range(6)]
    assert shapes[::2] == shapes[1::2]  # one batch, one frame
    assert len(set(shapes)) == 3
    assert shapes[2] == tuple(samples[3]["labels"].shape[1:])
    assert all(n - 24 <= size <= n + 32 for shape in shapes for size, n in zip(shape, (32, 48, 32), strict=True))


def test_nothing_drawn_scores_nothing_and_all_right_scores_one() -> None:
    whole, without_core, healthy = Drawn([1.0, 1.0, 1.0], []), Drawn([1.0], [0.0, 0.0]), Drawn([], [0.0, 0.0, 0.0])
    nothing = [Drawn([0.0, 0.0, 0.0], []), Drawn([0.0], [0.0, 0.0]), healthy]

    assert np.mean(starter.score_each([whole, without_core, healthy])) == pytest.approx(1.0)
    assert starter.score_each(nothing) == [0.0, 0.0, 0.0]


def test_what_is_drawn_where_there_is_no_tumour_is_taken_from_the_score() -> None:
    right, some, much = (Drawn([], [ml, 0.0, 0.0]) for ml in (0.0, 5.0, 500.0))
    patient = Drawn([0.8, 0.6, 0.4], [])

    scores = [float(np.mean(starter.score_each([patient, one]))) for one in (right, some, much)]

    assert scores == pytest.approx([0.6, 0.6 - 0.5 / 3, 0.6 - 1.0 / 3])


def test_a_region_that_is_not_there_is_told_in_millilitres() -> None:
    labels = np.zeros((32, 48, 32), np.uint8)
    labels[10:14, 10:14, 10:14] = 2  # oedema alone: a whole tumour, neither a core nor an enhancing part
    case = PreparedCase("a", None, np.zeros((4, 32, 48, 32), np.float32), (True,) * 4, np.diag([2.0, 2, 2, 1]), labels)
    options = options_of("--output", "unused", "--heads", "2", "--epochs", "1")
    trainer = starter.make_trainer(
        options, grow_heads(2, seed=1), starter.dataclasses.replace(TASK, patch=labels.shape)
    )
    trainer.validation = [case]
    weights = {name: torch.zeros_like(tensor) for name, tensor in trainer.best_weights.items()}
    head = max(name for name in weights if name.startswith("heads.") and name.endswith("bias"))

    weights[head] = torch.tensor([0.0, 0.0, 0.0, 1.0])  # everything enhances

    told = starter.on_synthetic_patients(trainer, weights)
    assert told["mean mL of those that are not"] == pytest.approx(labels.size * 8 / 1000, abs=0.01)
    assert told["mean Dice of the regions that are there"] == pytest.approx(2 * 64 / (labels.size + 64), abs=1e-4)
    assert told["score"] < -1


def test_the_loss_rises_with_the_volume_drawn_where_there_is_none() -> None:
    labels = torch.zeros((1, 1, 16, 16, 16), dtype=torch.uint8)
    losses, plain = [], []
    for drawn in (0, 2, 4, 8, 16):
        logits = torch.zeros((1, 4, 16, 16, 16))
        logits[:, 0], logits[:, 3, :drawn] = 20.0, 40.0
        losses.append(float(starter.StarterLoss(TASK, 1.0)(logits, labels)))
        plain.append(float(SegmentationLoss(TASK, 1.0)(logits, labels)))

    assert losses == sorted(losses)
    assert losses[0] < plain[0] + 0.03
    assert plain[4] - plain[1] < 0.01 < losses[4] - losses[1]


def test_the_loss_of_a_patient_who_has_all_regions_is_the_plain_one() -> None:
    labels, logits = torch.full((1, 1, 8, 8, 8), 3, dtype=torch.uint8), torch.randn(1, 4, 8, 8, 8)

    assert starter.StarterLoss(TASK, 0.5)(logits, labels) == SegmentationLoss(TASK, 0.5)(logits, labels)


def test_a_model_is_scored_on_the_patients_that_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(starter, "VALIDATION_SAMPLES", 1)
    monkeypatch.setattr(sys, "argv", ["starter.py", "--score", str(SHIPPED), "--work", str(tmp_path), "--heads", "2"])

    starter.main()

    assert "mean Dice of the regions that are there" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.checkpoint"))


def test_a_training_goes_on_with_the_same_coarse_epochs_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, task = grow_heads(2, seed=1), starter.dataclasses.replace(TASK, patch=(32, 48, 32))
    trainer, other = (
        starter.make_trainer(options_of("--output", "unused", "--coarse-epochs", count), heads, task)
        for count in ("1", "2")
    )
    trainer.save(tmp_path / "checkpoint")

    with pytest.raises(InputError, match="other training settings"):
        other.resume(tmp_path / "checkpoint")
