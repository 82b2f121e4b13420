"""The experiment of random and physical contrast: an arm really trains, on a coarse grid and few heads."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from twinseg.errors import InputError
from twinseg.phantom.contrast import draw_contrast
from twinseg.phantom.synthesis import Mixture, Synthesizer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAPER = Path(__file__).resolve().parents[2] / "Experiments/papers/contrast.toml"
SETTINGS: dict[str, Any] = {
    **{"name": "tried", "seed": 0, "mixture": {"random_contrast": 1.0, "blended_contrast": 0.0}},
    **{"heads": 3, "head_seed": 1, "work": "heads", "patients": 2, "spacing": 12.0, "patch": 16},
    **{"data": "real", "minutes": 0.02, "validations": 2},
}
"""A run of a few seconds."""


@pytest.fixture(scope="module")
def synthesis() -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    import synthesis

    yield synthesis
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_flat_cohort: Callable[[Path], None]) -> Path:
    """Holds a cohort of two patients whose labels are those of lgg/, and the heads once they are grown."""
    folder = tmp_path_factory.mktemp("experiment")
    write_flat_cohort(folder / "real")
    return folder


@pytest.fixture(scope="module")
def result(synthesis: ModuleType, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = synthesis.run_arm(SETTINGS, folder, "cpu", "tried")
    return found


def described() -> dict[str, dict[str, Any]]:
    """The settings of every arm of the experiment."""
    content = tomllib.loads(PAPER.read_text(encoding="utf-8"))
    return {name: {**content["common"], **arm, "name": "contrast", "seed": 0} for name, arm in content["arms"].items()}


def test_a_run_gives_the_columns_of_its_table(result: dict[str, Any], folder: Path) -> None:
    assert list(result["measures"]) == [
        "real, all sequences",
        "real, FLAIR alone",
        "real missed, all sequences",
        "real missed, FLAIR alone",
        "synthetic, random",
        "synthetic, physical",
        "own validation",
        "steps",
        "minutes",
    ]
    assert result["measures"]["own validation"] == max(result["curves"]["score of own validation"])
    assert result["measures"]["steps"] >= 1
    assert result["measures"]["minutes"] >= SETTINGS["minutes"]
    assert [row["number"] for row in result["patients"]] == [1, 1]
    real = [row["all sequences"]["dice"] for row in result["patients"]]
    assert result["measures"]["real, all sequences"] == pytest.approx(np.mean(real))
    assert result["data"]["heads trained on"] == result["data"]["heads measured"] == 1
    assert len(list((folder / "heads").glob("*.npz"))) == 3


def test_no_head_has_two_parts(synthesis: ModuleType) -> None:
    parts = synthesis.parts(list(range(100)))

    assert {part: len(heads) for part, heads in parts.items()} == {"chosen by": 12, "measured": 12, "trained on": 76}
    assert sorted(head for heads in parts.values() for head in heads) == list(range(100))


def test_the_same_patients_are_measured_in_every_contrast(
    synthesis: ModuleType, result: dict[str, Any], folder: Path
) -> None:
    heads = synthesis.grown(SETTINGS, folder, lambda done, stage: None)
    task = synthesis.task_of("brats-glioma", SETTINGS)

    seen, otherwise = (
        synthesis.synthetic_patients(heads, 4, task, (5000, synthesis.MEASURING), mixture)
        for mixture in synthesis.KINDS.values()
    )

    for one, other in zip(seen, otherwise, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        assert not np.array_equal(one.image, other.image)


def test_the_contrast_is_as_often_random_and_between_as_asked() -> None:
    def tables(random: float, between: float) -> list[np.ndarray]:
        drawn = (draw_contrast(np.random.default_rng(seed), 2, random, between) for seed in range(40))
        return [table.dry for table in drawn]

    free, physical, blended = tables(1.0, 0.0), tables(0.0, 0.0), tables(0.0, 1.0)

    assert not any(np.allclose(a, b) for a, b in zip(free, physical, strict=True))
    for between, one, other in zip(blended, free, physical, strict=True):
        low, high = np.minimum(one, other), np.maximum(one, other)
        assert (between >= low - 1e-5).all()
        assert (between <= high + 1e-5).all()
    half = tables(0.5, 0.0)
    chosen = [np.array_equal(mine, one) for mine, one in zip(half, free, strict=True)]
    assert 8 < sum(chosen) < 32
    assert all(is_free or np.array_equal(mine, b) for is_free, mine, b in zip(chosen, half, physical, strict=True))


def test_every_arm_of_the_experiment_can_be_made(synthesis: ModuleType) -> None:
    arms = described()

    assert list(arms) == ["random", "physical", "half", "starter"]
    assert Mixture(**arms["starter"]["mixture"]) == Mixture()  # what the shipped model is trained on
    for settings in arms.values():
        assert settings.keys() <= {*synthesis.OF_TRAINING, *synthesis.OF_PATIENTS, *synthesis.OF_A_RUN}
        synthesis.configuration(settings)
        task = synthesis.task_of("brats-glioma", settings)
        Synthesizer(task.patch, task.spacing[0], mixture=Mixture(**settings["mixture"]))


def test_claims_name_arms_and_measures_that_are_there(result: dict[str, Any]) -> None:
    content = tomllib.loads(PAPER.read_text(encoding="utf-8"))

    for claim in content["claims"]:
        for told in claim["difference"]:
            arm, _colon, measure = told.partition(":")
            assert arm in content["arms"]
            assert measure in result["measures"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": "nowhere"}, "nowhere: there is no such folder"),
        ({"epoch": 3}, "the setting epoch is not known"),
        ({"heads": 2}, "2 heads cannot be parted"),
        ({"mixture": {"contrast": 1.0}}, "contrast"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    synthesis: ModuleType, result: dict[str, Any], folder: Path, change: dict[str, Any], said: str
) -> None:
    run = synthesis.run_arm if "epoch" in change else synthesis.train_and_score

    with pytest.raises(InputError, match=said) as raised:
        run({**SETTINGS, **change}, folder, "cpu", "tried")

    assert "\n" not in str(raised.value)
