"""Simulated federations: every strategy, what is written, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest

from twinfed.aggregator.verify import faults
from twinfed.simulation import SimulationConfig, load_simulation, simulate
from twinfed.simulation_report import comparison_table, round_table, write_results

SITES = ("SITE-01", "SITE-02", "SITE-03")
SMOKE = Path(__file__).parents[2] / "Experiments" / "smoke.toml"


@pytest.mark.parametrize("name", ["fedavg", "clustered", "transfer", "trimmed-mean"])
def test_strategies_run_and_their_folder_can_be_proved(
    tmp_path: Path, cohort: Path, initial_model: Path, name: str
) -> None:
    config = SimulationConfig(
        name="trial",
        task="brats-glioma",
        model=initial_model,
        sites={site: cohort / site for site in SITES},
        twin_epochs=1 if name == "fedavg" else 0,
        local_only=name == "fedavg",
        pooled=name == "fedavg",
        federation={"rounds": 3 if name == "transfer" else 1, "strategy": {"name": name}, "download": {"bits": 16}},
    )
    stages: list[tuple[float, str]] = []

    measured = simulate(config, tmp_path / "out", report=lambda done, stage: stages.append((done, stage)))
    write_results(measured, tmp_path / "out", tmp_path / "measured.json")

    assert list(faults(tmp_path / "out" / "federation")) == []
    assert [done for done, _ in stages] == sorted(done for done, _ in stages)
    assert stages[-1][0] == 1
    assert json.loads((tmp_path / "measured.json").read_text())["rounds"] == measured["rounds"]
    header, rows = round_table(measured)
    assert header == ["round", *SITES, "all", "up MB", "down MB"]
    assert [row[0] for row in rows] == [str(number) for number in range(len(measured["rounds"]))]
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    last = measured["rounds"][-1]
    assert last["bytes"]["up"] > 0
    assert sum(last["weights"].values()) == pytest.approx(1.0) or name == "transfer"
    if name == "transfer":  # a site fetches a model when it is its turn, or all is over
        assert measured["rounds"][0]["bytes"]["down"] == measured["model_bytes"]
    else:  # a change instead of the whole model
        assert last["bytes"]["down"] < measured["rounds"][0]["bytes"]["down"]
    if name == "fedavg":
        assert 0 <= measured["pooled"] <= 1
        assert comparison_table(measured)[0][1:] == [
            "alone, on all",
            "federated, on all",
            "pooled, on all",
            "global, on its own",
            "twin, on its own",
        ]


def test_sites_may_be_absent_and_one_always_stays(tmp_path: Path, cohort: Path, initial_model: Path) -> None:
    config = SimulationConfig(
        name="trial",
        task="brats-glioma",
        model=initial_model,
        sites={site: cohort / site for site in SITES},
        participation={"SITE-01": 0.0, "SITE-02": 0.0},
        federation={"rounds": 2},
    )

    measured = simulate(config, tmp_path / "some")
    alone = simulate(dataclasses.replace(config, participation=0.0), tmp_path / "one")

    assert [row["weights"] for row in measured["rounds"][1:]] == [{"SITE-03": 1.0}] * 2
    assert [len(row["weights"]) for row in alone["rounds"][1:]] == [1, 1]
    assert list(faults(tmp_path / "some" / "federation")) == []
    assert 0 <= measured["by_site"]["SITE-01"]["specificity"] <= 1


@pytest.mark.slow
def test_smoke_beats_every_site_alone_within_its_time(tmp_path: Path) -> None:
    began = time.process_time()

    measured = simulate(load_simulation(SMOKE), tmp_path)

    assert time.process_time() - began < 45
    assert measured["federated"] > max(measured["local_only"].values())
    assert measured["bytes"]["up"] < 0.4 * 3 * 3 * measured["model_bytes"]  # 8 bits instead of 32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name = 3 =", "cannot be read"),
        ('name = "x"\ntask = "brats-glioma"', r"needs either \[sites\]"),
        ('name = "x"\ntask = "brats-glioma"\nspeed = 3\n[phantoms]\nsites = 2', "speed"),
        ('name = "x"\ntask = "none"\n[phantoms]\nsites = 1\npatients = 1\nsize = 16', "none"),
        ('name = "x"\ntask = "brats-glioma"\n[phantoms]\nwards = 2', "wards"),
        ('name = "x"\ntask = "brats-glioma"\nnetwork = "huge"\n[sites]\na = "nowhere"', "huge"),
        ('name = "x"\ntask = "brats-glioma"\n[network]\nlegs = 2\n[sites]\na = "nowhere"', "cannot be built"),
        ('name = "x"\ntask = "brats-glioma"\nrounds = 0\n[sites]\na = "nowhere"', "rounds must be a positive"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "simulation.toml").write_text(content)

    with pytest.raises(ValueError, match=message) as caught:
        simulate(load_simulation(tmp_path / "simulation.toml"), tmp_path / "out")

    assert "\n" not in str(caught.value)
    assert "InputError" in [kind.__name__ for kind in type(caught.value).__mro__]


def test_the_command_says_what_is_wrong(tmp_path: Path, twinfed: Any) -> None:
    process = twinfed("simulate", tmp_path / "nowhere.toml", "--output", tmp_path, log=tmp_path / "log")

    assert process.wait(timeout=180) == 2
    assert (tmp_path / "log").read_text().count("\n") == 1
