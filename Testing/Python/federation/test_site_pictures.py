"""Classification in a federation: the same trainer, on pictures of classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from monai.fl.utils.exchange_object import ExchangeObject
from PIL import Image
from safetensors.numpy import load_file

from twinfed.client.case_source import CaseSource
from twinfed.client.initial_model import write_initial_model
from twinfed.client.local_round import take_up
from twinfed.client.site_trainer import SiteTrainer
from twinseg.tasks import Task, load_task


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Task, Path]:
    """A task of four classes of pictures, 32 pixels a side, and a folder of eight patients a class."""
    task = dataclasses.replace(load_task("chest-ct-cancer"), patch=(32, 32, 1))
    random = np.random.default_rng(0)
    for number, name in enumerate(task.classes):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for patient in range(8):
            pixels = random.integers(0, 60, (32, 32)) + 40 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}-{patient}.png")
    return task, tmp_path / "pictures"


def test_a_classifier_is_trained_and_scored_by_the_same_trainer(tmp_path: Path, pictures: tuple[Task, Path]) -> None:
    task, folder = pictures
    model = tmp_path / "initial.safetensors"
    write_initial_model(model, task, seed=1)
    damaged = next(folder.rglob("*.png"))
    damaged.write_bytes(b"no picture")
    trainer = SiteTrainer(CaseSource(folder=folder))

    take_up(trainer, model)
    trainer.train(ExchangeObject(weights=load_file(model)), {"epochs": 1, "seed": 1, "name": "round-1"})
    measured = trainer.evaluate(ExchangeObject()).metrics
    known = trainer.get_data_stats().statistics

    assert known is not None
    assert known["labels"].keys() == set(task.classes)
    assert sum(known["labels"].values()) == 1000  # thousandths of the pictures
    assert trainer.change().keys() == load_file(model).keys()
    assert all(np.isfinite(one).all() for one in trainer.change().values())
    assert measured is not None
    assert 0 <= measured["dice"] <= 1
    assert measured["hd95"] is None
