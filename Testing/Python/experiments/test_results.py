"""Tables and verdicts come from the files of the runs alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import results
from experiment import digest, kept, planned
from results import claim_row, confusion_tables, draw_curves, section, spread

EXPERIMENTS = Path(__file__).parents[2] / "Experiments"
MADE = {"date": "2026-01-02", "machine": "abacus, 2 cores, cpu", "commit": "0123456789"}
RUNS: list[dict[str, Any]] = [
    {"arm": "new", "seed": 0, "measures": {"Dice": 0.80, "MB": 5.0}, **MADE},
    {"arm": "new", "seed": 1, "measures": {"Dice": 0.84, "MB": 5.0}, **MADE},
    {"arm": "old", "seed": 0, "measures": {"Dice": 0.70, "MB": 100.0}, **MADE},
]


def claim(**kind: Any) -> dict[str, Any]:
    return {"text": "it is better", "paper": "says so", "at_least": 0.1, **kind}


@pytest.mark.parametrize(
    ("asked", "end"),
    [
        (claim(difference=["new", "old"]), "| ≥ 0.1 | 0.100 | holds |"),
        (claim(difference=["old", "new"]), "| ≥ 0.1 | -0.100 | does not hold |"),
        (claim(ratio=["new:Dice", "old:Dice"]), "| ≥ 0.1 | 1.143 | holds |"),
        (claim(saving=["new:MB", "old:MB"]), "| ≥ 0.1 | 0.950 | holds |"),
        (claim(difference=["new"]), "| ≥ 0.1 | 0.820 ± 0.028 | holds |"),
        (claim(difference=["new", "none"]), "| ≥ 0.1 | – | open |"),
    ],
)
def test_a_claim_is_judged_by_the_seeds_that_both_arms_have(asked: dict[str, Any], end: str) -> None:
    asked["at_least"] -= 1e-9 * (asked["at_least"] > 0)

    assert claim_row(asked, RUNS).endswith(end)


def test_a_section_says_how_when_and_where(tmp_path: Path) -> None:
    experiment = {"title": "New against old", "name": "trial", "arms": {"new": {}, "old": {}}, "found": "So it is."}

    text = section(experiment, RUNS, "trial.toml")

    assert "papers/trial.toml" in text
    assert "2026-01-02, abacus, 2 cores, cpu, commit 0123456." in text
    assert "| new | 2 | 0.820 ± 0.028 | 5.000 ± 0.000 |" in text
    assert "| old | 1 | 0.700 | 100.0 |" in text
    assert text.rstrip().endswith("So it is.")
    assert "Not run yet." in section(experiment, [], "trial.toml")


def test_runs_of_other_settings_are_left_out(tmp_path: Path) -> None:
    experiment = {"name": "trial", "seeds": [0, 1], "common": {"rounds": 3}, "arms": {"new": {"rate": 0.1}}}
    (tmp_path / "trial").mkdir()
    for _arm, seed, settings in planned(experiment):
        run = {"seed": seed, "settings": digest(settings | {"rounds": 3 + seed})}
        (tmp_path / f"trial/new-{seed}.json").write_text(json.dumps(run))

    assert [run["seed"] for run in kept(experiment, tmp_path)] == [0]


def test_curves_begin_with_the_first_model_or_after_the_first_round(tmp_path: Path) -> None:
    runs = [{"arm": "new", "seed": 0, "curves": {"Dice": [0.1, 0.4, 0.5]}}]
    pictures = {}
    for kind in ("federations", "pictures", "networks"):
        path = tmp_path / f"{kind}.png"
        draw_curves({"title": "Trial", "kind": kind, "arms": {"new": {}, "old": {}}}, runs, path)
        pictures[kind] = path.read_bytes()

    assert len(set(pictures.values())) == 3


def test_one_measure_is_drawn_against_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(results, "OUTPUT", tmp_path / "results.md")
    (tmp_path / "results/trial").mkdir(parents=True)
    against = {"across": "MB", "up": "Dice", "arms": ["new", "old", "not run yet"]}

    text = section({"title": "Trial", "name": "trial", "arms": {"new": {}}, "against": against}, RUNS, "trial.toml")

    assert "![Dice against MB](results/trial/against.png)" in text
    assert (tmp_path / "results/trial/against.png").stat().st_size > 5000


def test_confusion_matrices_are_summed_over_seeds() -> None:
    one = {"confusion": {"classes": ["a", "b"], "published": [[3, 1], [0, 2]]}}

    assert confusion_tables("fl", [one, one])[-3:] == ["| a | 6 | 2 |", "| b | 0 | 4 |", ""]


@pytest.mark.parametrize(
    ("values", "text"), [([0.5], "0.500"), ([0.1, 0.3], "0.200 ± 0.141"), ([None], "–"), ([1234.5], "1234")]
)
def test_numbers_have_the_digits_that_they_need(values: list[float | None], text: str) -> None:
    assert spread(values) == text


def test_a_run_is_kept_and_not_made_again(tmp_path: Path) -> None:
    experiment = tmp_path / "trial.toml"
    experiment.write_text(
        """
name = "trial"
title = "A trial"
kind = "federations"
seeds = [0]
[common]
task = "brats-glioma"
spacing = 6.0
patch = 16
rounds = 1
epochs = 1
network = {channels = [4, 4, 4, 4], embedding = 12, depth = 1, heads = 1}
phantoms = {sites = 1, patients = 4, size = 24, spacing = 6.0}
[arms.fedavg]
strategy = {name = "fedavg"}
"""
    )
    command = [sys.executable, str(EXPERIMENTS / "experiment.py"), str(experiment), "--results", str(tmp_path)]

    subprocess.run(command, check=True, timeout=300)
    run = tmp_path / "trial" / "fedavg-0.json"
    first = run.read_bytes()
    again = subprocess.run(command, check=True, timeout=300, capture_output=True, text=True)

    kept = json.loads(first)
    assert (kept["arm"], kept["seed"], kept["commit"] is None or len(kept["commit"]) >= 40) == ("fedavg", 0, True)
    assert kept["measures"]["Dice"] >= 0
    assert run.read_bytes() == first
    assert again.stdout == ""
