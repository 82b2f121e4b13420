"""The chest CT experiment on made pictures: hospitals are dealt fairly, arms really train, the test is scored once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

EXPERIMENTS = Path(__file__).parents[2] / "Experiments"
sys.path.insert(0, str(EXPERIMENTS))

import pictures  # noqa: E402 (the experiments are scripts, no package)
from picture_scores import converged_after, in_own_mix, mean_of  # noqa: E402
from pictures import Clock, run_arm, source_model, table_of_sites  # noqa: E402

from twinfed.client.initial_model import task_of  # noqa: E402
from twinseg.classification import load_classifier  # noqa: E402
from twinseg.errors import InputError  # noqa: E402

CLASSES = ("adenocarcinoma", "large-cell-carcinoma", "normal", "squamous-cell-carcinoma")
SIDE = 32


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pictures, "CACHE", tmp_path / "cache")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def picture(kind: int, random: np.random.Generator) -> np.ndarray:
    """A band of the picture is bright, how high it lies tells the class (32, 32) uint8; its mirror image is alike."""
    image = random.normal(60, 10, (SIDE, SIDE))
    image[8 * kind : 8 * kind + 8] += 120
    return np.clip(image, 0, 255).astype(np.uint8)


def write(folder: Path, numbers: dict[str, int], classes: tuple[str, ...], seed: int) -> None:
    random = np.random.default_rng(seed)
    for part, number in numbers.items():
        for kind, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for index in range(number):
                Image.fromarray(picture(kind, random)).save(folder / part / name / f"{index}.png")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "target", {"train": 12, "valid": 3, "test": 4}, CLASSES, 1)
    write(tmp_path / "source", {".": 6}, ("benign", "malignant"), 2)
    # One test picture of the class normal is a training picture, as in the real set.
    copied = (tmp_path / "target/train/normal/3.png").read_bytes()
    (tmp_path / "target/test/normal/0.png").write_bytes(copied)
    return tmp_path


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "name": "made",
        "seed": 0,
        "target": "target",
        "source": "source",
        "source_classes": ["benign", "malignant"],
        "task": "chest-ct-cancer",
        "side": SIDE,
        "pretrain_epochs": 1,
        "pretrain_learning_rate": 1e-3,
        "sites": 2,
        "alpha": 1.0,
        "rounds": 2,
        "epochs": 1,
        "learning_rate": 1e-3,
        "converged": {"gain": 0.01, "change": 0.01, "rounds": 3},
        "strategy": {"name": "fedavg"},
        **changes,
    }


def run(data: Path, **changes: Any) -> dict[str, Any]:
    result = run_arm(settings(**changes), data, "cpu", "a test")
    json.dumps(result)
    return result


# --- arms ------------------------------------------------------------------------------------------------------------


def test_an_arm_is_scored_on_the_published_test_part_and_on_the_one_without_copies(data: Path) -> None:
    result = run(data)

    assert list(result["measures"])[:5] == ["accuracy", "accuracy (de-duplicated)", "precision", "recall", "F1"]
    assert result["data"]["train"] == 48
    assert result["data"]["test"] == np.sum(result["confusion"]["published"]) == 16
    assert result["data"]["test, de-duplicated"] == np.sum(result["confusion"]["de-duplicated"]) == 15
    assert result["measures"]["accuracy"] == np.trace(result["confusion"]["published"]) / 16
    assert set(result["test"]["published"]["classes"]) == set(CLASSES)
    assert len(result["curves"]["validation accuracy"]) == 2
    best = result["chosen"]["round"] - 1
    assert result["curves"]["validation accuracy"][best] == max(result["curves"]["validation accuracy"])
    assert sum(sum(table.values()) for table in result["data"]["hospitals"].values()) == 48


@pytest.mark.parametrize("strategy", [{"name": "clustered", "split_below": 1.0, "smallest": 1}, {"name": "transfer"}])
def test_each_strategy_trains_every_hospital_once_a_round(data: Path, strategy: dict[str, Any]) -> None:
    result = run(data, strategy=strategy)

    assert len(result["curves"]["validation loss"]) == 2
    assert len(result["seconds_by_round"]["in turn"]) == 2
    assert all(seconds > 0 for seconds in result["seconds_by_round"]["in turn"])
    # Two rounds of two hospitals: four updates up and four models down, of some 28 MB each.
    assert result["measures"]["MB"] == pytest.approx(8 * 28, rel=0.05)


def test_the_source_is_learned_once_for_all_arms(data: Path) -> None:
    task = task_of("chest-ct-cancer", {"patch": [SIDE, SIDE, 1]})
    stages: list[str] = []

    def learned(**changes: Any) -> Path | None:
        return source_model(settings(**changes), data, task, "cpu", lambda done, stage: stages.append(stage))

    first = learned()
    made = len(stages)

    assert first is not None
    assert load_classifier(first).task.classes == ("benign", "malignant")
    assert learned(strategy={"name": "transfer"}) == first
    assert len(stages) == made > 0
    assert learned(pretrain_epochs=0) is None


@pytest.mark.slow
def test_one_hospital_that_holds_all_pictures_learns_the_bands(data: Path) -> None:
    result = run(data, sites=1, rounds=2, epochs=12, pretrain_epochs=0)

    assert result["measures"]["accuracy"] > 0.6
    assert not (data / "cache").exists()


@pytest.mark.parametrize("missing", ["target", "source"])
def test_missing_pictures_are_told_in_a_line_with_their_folder(data: Path, missing: str) -> None:
    (data / missing).rename(data / "elsewhere")
    with pytest.raises(InputError, match=missing) as caught:
        run(data)
    assert "\n" not in str(caught.value)


# --- hospitals -------------------------------------------------------------------------------------------------------


def test_every_picture_goes_to_one_hospital_and_none_is_left_without() -> None:
    seed = 3
    targets = np.repeat(np.arange(4), [195, 115, 148, 155])

    counts = table_of_sites(targets, 4, alpha=0.5, seed=seed)

    assert counts.sum(0).tolist() == [195, 115, 148, 155]
    assert counts.sum(1).min() >= 30
    assert np.array_equal(counts, table_of_sites(targets, 4, alpha=0.5, seed=seed))
    assert not np.array_equal(counts, table_of_sites(targets, 4, alpha=0.5, seed=seed + 1))


def test_more_hospitals_than_pictures_are_refused() -> None:
    with pytest.raises(InputError, match="raise alpha"):
        table_of_sites(np.arange(3), 5, alpha=1.0, seed=0)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_convergence_needs_calm_accuracy_and_loss_in_sequence() -> None:
    accuracy = [0.3, 0.5, 0.7, 0.7, 0.71, 0.70, 0.71]
    loss = [1.4, 1.0, 0.8, 0.6, 0.59, 0.60, 0.58]

    assert converged_after(accuracy, loss, gain=0.015, change=0.05, rounds=2) == 6
    assert converged_after(accuracy, loss, gain=0.015, change=0.05, rounds=4) is None


def test_scores_of_hospitals_are_weighted_by_their_pictures() -> None:
    scores = {"a": {"accuracy": 1.0, "confusion": [[4, 0]]}, "b": {"accuracy": 0.5, "confusion": [[2, 2]]}}
    assert mean_of(scores, {"a": 0.25, "b": 0.75}) == {"accuracy": 0.625, "confusion": [[2.5, 1.5]]}


def test_a_hospital_that_sees_one_class_is_as_good_as_the_recall_of_that_class() -> None:
    scores = {"a": {"classes": {"x": {"recall": 0.9}, "y": {"recall": 0.1}}}}
    assert in_own_mix(scores, {"a": np.array([1.0, 0.0])}) == {"a": pytest.approx(0.9)}


def test_hospitals_at_once_take_as_long_as_the_slowest() -> None:
    clock = Clock(lambda done, stage: None, "cuda")
    clock.turns = [(1, 2.0), (1, 3.0), (2, 1.0), (2, 4.0)]

    assert clock.by_round(1) == {"in turn": [5.0, 5.0], "at once": [3.0, 4.0]}
    assert clock.by_round(2) == {"in turn": [10.0], "at once": [7.0]}
