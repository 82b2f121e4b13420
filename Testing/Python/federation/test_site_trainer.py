"""The site trainer alone: what it trains, how it goes on after a stop, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.fl.client import ClientAlgo
from monai.fl.utils.exchange_object import ExchangeObject

from twinfed.client.case_source import CaseSource
from twinfed.client.errors import Stopped
from twinfed.client.local_round import take_up
from twinfed.client.site_data import Schedule
from twinfed.client.site_trainer import SiteTrainer
from twinfed.wire import TensorFile
from twinseg.errors import InputError
from twinseg.volumes import read_labels

ROUND = {"epochs": 3, "seed": 5, "name": "round-1"}


@pytest.fixture
def trainer(cohort: Path, initial_model: Path) -> SiteTrainer:
    made = SiteTrainer(CaseSource(folder=cohort / "SITE-01"), learning_rate=3e-3)
    take_up(made, initial_model)
    return made


def distance(change: dict[str, Any]) -> float:
    return float(np.sqrt(sum(np.square(one).sum() for one in change.values())))


def shares_of_voxels(folder: Path, trainer: SiteTrainer) -> dict[str, int]:
    """Of the labelled voxels in the files of the training cases, in thousandths."""
    maps = [read_labels(folder / name / "seg.nii.gz").array for name in trainer.data.names]
    counts = [sum(int((one == value).sum()) for one in maps) for value in (1, 2, 3)]
    return {name: round(1000 * count / sum(counts)) for name, count in zip(("NCR", "ED", "ET"), counts, strict=True)}


def test_it_is_a_client_of_monai_and_reports_numbers_only(
    cohort: Path, trainer: SiteTrainer, initial_model: Path, read: Any
) -> None:
    weights = ExchangeObject(weights=read(initial_model))

    before = trainer.evaluate(weights).metrics
    trainer.train(weights, ROUND)
    after = trainer.evaluate(ExchangeObject()).metrics
    change = trainer.get_weights().weights
    known = trainer.get_data_stats().statistics

    assert isinstance(trainer, ClientAlgo)
    assert known == {"samples": 3, "labels": known["labels"]}
    assert known["labels"].keys() == {"NCR", "ED", "ET"}
    assert known["labels"] == shares_of_voxels(cohort / "SITE-01", trainer)
    assert sum(known["labels"].values()) == 1000
    assert before is not None
    assert after is not None
    assert 0 <= before["dice"] <= 1
    assert after["dice"] != before["dice"]
    assert 0 < after["hd95"] < 1000
    assert change is not None
    assert change.keys() == read(initial_model).keys()
    assert distance(change) > 0.1


def test_the_proximal_term_holds_the_weights_near_the_global_ones(
    trainer: SiteTrainer, initial_model: Path, read: Any
) -> None:
    weights = ExchangeObject(weights=read(initial_model))

    trainer.train(weights, ROUND)
    free = distance(trainer.change())
    trainer.train(weights, {**ROUND, "proximal_mu": 0.0})
    zero = distance(trainer.change())
    trainer.train(weights, {**ROUND, "proximal_mu": 100.0})
    held = distance(trainer.change())

    assert zero == free
    assert held < 0.7 * free


@pytest.mark.parametrize("way", ["abort", "kill"])
def test_a_training_that_ended_in_the_middle_goes_on_to_the_same_weights(
    cohort: Path, initial_model: Path, tmp_path: Path, read: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr("twinfed.client.site_trainer.SOONEST_SAVING", 0.0)
    monkeypatch.setattr("twinfed.client.site_trainer.SHARE_OF_SAVING", 1e6)  # after every step
    source, weights = CaseSource(folder=cohort / "SITE-01"), ExchangeObject(weights=read(initial_model))
    steps: list[str] = []

    def make(stop_after: int | None) -> SiteTrainer:
        def watch(done: float, stage: str) -> None:
            steps.append(stage)
            if stop_after is not None and len(steps) == stop_after:
                if way == "kill":
                    raise KeyboardInterrupt  # nothing is saved for it
                made.abort()

        made = SiteTrainer(source, checkpoints=tmp_path, learning_rate=3e-3, watch=watch)
        take_up(made, initial_model)
        return made

    whole = make(None)
    whole.checkpoints = None
    whole.train(weights, ROUND)
    steps.clear()
    with pytest.raises((Stopped, KeyboardInterrupt)):
        make(5).train(weights, ROUND)
    assert len(list(tmp_path.glob("*.checkpoint"))) == 1
    resumed = make(None)
    resumed.train(weights, ROUND)

    assert len(steps) == 9 + (way == "kill")  # one step is done again where its checkpoint was not written
    for name, change in whole.change().items():
        np.testing.assert_array_equal(resumed.change()[name], change)


def test_a_damaged_checkpoint_is_said_and_left(
    cohort: Path, initial_model: Path, tmp_path: Path, read: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = SiteTrainer(CaseSource(folder=cohort / "SITE-01"), checkpoints=tmp_path)
    take_up(trainer, initial_model)
    (tmp_path / f"round-1-{trainer.data.key[:16]}.checkpoint").write_bytes(b"damaged")
    (tmp_path / "round-0-of-old.checkpoint").write_bytes(b"old")

    trainer.train(ExchangeObject(weights=read(initial_model)), ROUND)

    assert "no whole checkpoint" in caplog.text
    assert not list(tmp_path.glob("*of-old*"))


def test_a_case_whose_image_has_vanished_is_left_out_and_said(
    cohort: Path, trainer: SiteTrainer, initial_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = trainer.data.names[0]
    found = CaseSource(folder=cohort / "SITE-01").find(trainer.data.task)
    labels = next(case for case in found["train"] if case.name == gone).labels
    assert labels is not None
    labels.write_bytes(b"damaged")

    take_up(trainer, initial_model)

    assert trainer.data.samples == 2
    assert gone not in trainer.data.names
    assert str(labels) in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": None}, "does not say its task"),
        ({"task": "kind = 3"}, "not a valid task"),
        ({"network": "[1, 2]"}, "describes no network"),
        ({"network": '{"channels": "x"}'}, "no network that is known here"),
        ({"network": {"in_channels": 1}}, "has 1 inputs"),
        ({"network": {"variant": "quantum"}}, "no network that is known here"),
    ],
)
def test_a_model_that_cannot_be_trained_here_is_refused_in_one_line(
    trainer: SiteTrainer, initial_model: Path, change: dict[str, Any], message: str
) -> None:
    metadata: dict[str, Any] = dict(TensorFile(initial_model).metadata)
    for key, value in change.items():
        if isinstance(value, dict):
            value = json.dumps({**json.loads(metadata[key]), **value})
        metadata[key] = value
    metadata = {key: value for key, value in metadata.items() if value is not None}

    with pytest.raises(InputError, match=message) as caught:
        trainer.initialize(metadata)

    assert "\n" not in str(caught.value)


def test_a_task_of_another_meaning_is_refused(trainer: SiteTrainer, initial_model: Path) -> None:
    metadata = dict(TensorFile(initial_model).metadata)
    metadata["task"] = metadata["task"].replace('name = "ED"', 'name = "XX"')

    with pytest.raises(InputError, match=r"other sequences, labels or classes"):
        trainer.initialize(metadata)


def test_tensors_that_are_not_the_networks_are_refused(trainer: SiteTrainer, initial_model: Path, read: Any) -> None:
    weights = read(initial_model)
    weights.pop(next(iter(weights)))

    with pytest.raises(InputError, match="other tensors than its network"):
        trainer.train(ExchangeObject(weights=weights), ROUND)


def test_fine_tuning_keeps_the_weights_that_validate_best(trainer: SiteTrainer, initial_model: Path, read: Any) -> None:
    schedule = Schedule(epochs=4, seed=1, learning_rate=3e-3, validations=4)

    tuned, dice = trainer.fine_tune(read(initial_model), schedule, "twin")

    measured = trainer.evaluate(ExchangeObject(weights=tuned)).metrics
    assert measured is not None
    assert measured["dice"] == pytest.approx(dice)
