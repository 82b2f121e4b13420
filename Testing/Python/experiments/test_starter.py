"""The starter model's training: one command, a fixed seed, in as many parts as a machine has time for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import starter
import torch

from twinseg.model_file import load_model
from twinseg.phantom.heads import grow_heads
from twinseg.phantom.synthesis import Synthesizer

TASK = starter.starter_task()


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

    assert [tuple(samples[index]["image"].shape) for index in range(4)] == [(4, 16, 24, 16)] * 2 + [(4, 32, 48, 32)] * 2
    assert samples.coarse.synthesizer.patch.spacing == 4.0
    assert tuple(samples[0]["labels"].shape) == (1, 16, 24, 16)
