"""The experiments of networks: each network really trains, a few steps, on synthetic patients."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from twinseg.errors import InputError
from twinseg.network import count_parameters
from twinseg.phantom import write_cohort
from twinseg.tasks import Task, load_task

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXPERIMENTS = Path(__file__).resolve().parents[2] / "Experiments"
PAPERS = EXPERIMENTS / "papers"
FILES = ("ablation", "other-networks", "missing-sequences")
TINY = {"name": "ViTUNet", "channels": [8, 16], "strides": [[2, 2, 2]] * 2, "embedding": 24, "depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def networks() -> Iterator[ModuleType]:
    sys.path.insert(0, str(EXPERIMENTS))  # a run's own process finds the module there too
    import networks

    yield networks
    sys.path.remove(str(EXPERIMENTS))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiment") / "cohort"
    write_cohort(folder, sites=1, patients=6, size=32, spacing=5.0, seed=3)
    return folder


@pytest.fixture
def settings() -> dict[str, Any]:
    """A run of a few seconds; its folder is relative to the experiment's file."""
    common = {"name": "tried", "seed": 0, "data": "cohort", "task": "brats-glioma", "spacing": 5.0, "patch": 32}
    return {**common, "network": TINY, "epochs": 2, "validations": 2}


def described(name: str) -> list[dict[str, Any]]:
    """The settings of every arm of an experiment."""
    content = tomllib.loads((PAPERS / f"{name}.toml").read_text(encoding="utf-8"))
    return [{**content["common"], **arm, "name": name, "seed": 0} for arm in content["arms"].values()]


def lgg(settings: dict[str, Any]) -> Task:
    from twinfed.client.initial_model import task_of

    return task_of(settings["task"], settings)


def test_a_run_gives_the_columns_of_its_table(networks: ModuleType, cohort: Path, settings: dict[str, Any]) -> None:
    result = networks.run_arm({**settings, "time_inference": True}, cohort.parent, "cpu", "tried")

    assert list(result["measures"]) == [
        "Dice (test)",
        "Dice (validation)",
        "HD95 mm",
        "parameters (M)",
        "minutes",
        "steps",
        "peak GB",
        "seconds a case",
    ]
    train = result["data"]["train"]
    assert train + result["data"]["validation"] + result["data"]["test"] == 6
    assert result["measures"]["steps"] == 2 * train
    assert len(result["curves"]["validation Dice"]) == 2
    assert result["measures"]["Dice (validation)"] == max(result["curves"]["validation Dice"])
    assert result["measures"]["Dice (test)"] == pytest.approx(np.mean([one["dice"] for one in result["patients"]]))


def test_each_sequence_and_each_pair_is_left_out(networks: ModuleType, cohort: Path, settings: dict[str, Any]) -> None:
    result = networks.train_and_score({**settings, "drop_sequences": True}, cohort.parent, "cpu", "tried")

    measures = result["measures"]
    alone = [name for name in measures if name.startswith("no ") and "," not in name]
    assert alone == ["no t1", "no t1ce", "no t2", "no flair"]
    assert len([name for name in measures if name.startswith("no ")]) == 4 + 6
    cost = measures["all sequences"] - np.mean([measures[name] for name in alone])
    assert measures["one missing costs"] == pytest.approx(cost)


def test_what_is_left_out_reaches_the_network_as_absent(networks: ModuleType, cohort: Path) -> None:
    task = load_task("brats-glioma")
    cases = networks.find_cases(cohort, task, require_labels=True)[:1]

    (whole,), (lacking,) = networks.prepared(cases, task), networks.prepared(cases, task, ["t1", "flair"])

    there = {"t1": False, "t1ce": True, "t2": True, "flair": False}
    assert lacking.present == tuple(there[sequence.name] for sequence in task.sequences)
    assert not lacking.image[~np.array(lacking.present)].any()
    assert whole.image[~np.array(lacking.present)].any()


def test_the_test_patients_are_read_only_when_the_training_is_over(
    networks: ModuleType, cohort: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    prepared, run = networks.prepared, networks.EqualTimeTrainer.run
    monkeypatch.setattr(networks, "prepared", lambda *given: order.append("prepared") or prepared(*given))
    monkeypatch.setattr(networks.EqualTimeTrainer, "run", lambda *given: order.append("trained") or run(*given))

    networks.train_and_score(settings, cohort.parent, "cpu", "tried")

    assert order == ["prepared", "prepared", "trained", "prepared"]


def test_minutes_are_kept_to(networks: ModuleType, cohort: Path, settings: dict[str, Any]) -> None:
    del settings["epochs"]

    measures = networks.train_and_score({**settings, "minutes": 0.05}, cohort.parent, "cpu", "tried")["measures"]

    assert measures["steps"] > 3
    assert 0.05 <= measures["minutes"] < 0.2


@pytest.mark.parametrize("arm", range(5))
def test_every_network_learns_on_odd_sizes(networks: ModuleType, arm: int) -> None:
    from networks_peers import build, take_faster_layout

    settings = described("other-networks")[arm]
    task = lgg({**settings, "patch": [64, 32, 16]})
    torch.manual_seed(0)
    network = build(settings["network"], task)
    take_faster_layout(network, 3, task.patch, torch.device("cpu"))
    random = np.random.default_rng(0)
    labels = np.zeros((35, 29, 17), np.uint8)
    labels[10:25, 10:25, 5:12] = 1
    image = (random.normal(size=(3, *labels.shape)) + 3 * labels).astype(np.float32)
    case = networks.PreparedCase("odd", None, image, (True,) * 3, np.diag([*task.spacing, 1.0]), labels)
    config = networks.SegmentationConfig(epochs=4, validations=1)

    trainer = networks.EqualTimeTrainer(network, task, [case], [case], config, "cpu")
    before = {name: tensor.clone() for name, tensor in network.named_parameters()}
    trainer.run()

    assert np.isfinite(trainer.state.history[0]["loss"])
    assert any(not torch.equal(before[name], tensor) for name, tensor in network.named_parameters())
    assert trainer.best_weights.keys() == network.state_dict().keys()
    (score,) = networks.scores(trainer, [case])
    assert 0 <= score["dice"] <= 1


@pytest.mark.parametrize("name", FILES)
def test_every_arm_can_be_built(networks: ModuleType, name: str) -> None:
    from networks_peers import build

    for settings in described(name):
        assert settings.keys() <= {*networks.OF_TRAINING, *networks.OF_DATA, *networks.OF_A_RUN}
        networks.configuration(settings)
        parameters = count_parameters(build(settings["network"], lgg(settings)))
        assert 3.5e6 < parameters < 5e6, f"{settings['network']}: {parameters}"


@pytest.mark.parametrize("name", FILES)
def test_claims_name_arms_and_measures_that_are_there(name: str) -> None:
    content = tomllib.loads((PAPERS / f"{name}.toml").read_text(encoding="utf-8"))

    for claim in content["claims"]:
        for told in claim["difference"]:
            arm, _colon, measure = told.partition(":")
            assert arm in content["arms"]
            assert measure in ("", "one missing costs", "two missing costs")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": "nowhere"}, "nowhere: there is no such folder of cases"),
        ({"epoch": 3}, "the setting epoch is not known"),
        ({"minutes": 1}, "either epochs or minutes"),
        ({"network": {"name": "UNetOfMine", "multiple": 2}}, "it cannot be built"),
        ({"network": {"name": "SegResNet"}}, "multiple"),
        ({"network": {**TINY, "head": 3}}, "head"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    networks: ModuleType, cohort: Path, settings: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    # What is wrong with the data is found in the run's own process, and must come out of it.
    run = networks.run_arm if {"data", "epoch"} & change.keys() else networks.train_and_score

    with pytest.raises(InputError, match=said) as raised:
        run({**settings, **change}, cohort.parent, "cpu", "tried")

    assert "\n" not in str(raised.value)


def test_phantoms_stand_in_where_the_file_says_so(
    networks: ModuleType, settings: dict[str, Any], tmp_path: Path
) -> None:
    phantoms = {"sites": 1, "patients": 4, "size": 32, "spacing": 5.0}

    cases = networks.read_cases({**settings, "phantoms": phantoms}, load_task("brats-glioma"), tmp_path, tmp_path)

    assert sum(map(len, cases.values())) == 4
    assert all(cases.values())
