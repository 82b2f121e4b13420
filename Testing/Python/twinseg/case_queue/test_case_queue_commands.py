"""`twinseg cases add | list | withdraw`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from twinseg.case_queue import CaseQueue
from twinseg.cli_cases import cases_app
from twinseg.errors import InputError
from twinseg.phantom import write_cohort
from twinseg.volumes import Volume, read_labels, write_volume

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients."""
    folder = tmp_path_factory.mktemp("Söhne 1") / "cohort"
    write_cohort(folder, sites=1, patients=2, size=24, spacing=7.0, seed=2)
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command with a home of its own; gives what it wrote with --json, its exit code and what it printed."""
    monkeypatch.setenv("TWINSEG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: object) -> dict[str, Any]:
        file = tmp_path / "out.json"
        file.unlink(missing_ok=True)
        result = CliRunner().invoke(cases_app, [*map(str, arguments), "--json", str(file)])
        if isinstance(result.exception, InputError):
            raise result.exception
        written = json.loads(file.read_text("utf-8")) if file.exists() else {}
        return {"code": result.exit_code, "out": result.output, "json": written}

    return run


def test_a_folder_of_cases_is_added_listed_and_withdrawn(run: Run, cohort: Path, tmp_path: Path) -> None:
    added = run("add", cohort, "--who", "Dr. Who")

    assert added["code"] == 0
    assert "2 of 2 cases added" in added["out"]
    names = [case["name"] for case in added["json"]["added"]]
    listed = run("list")
    assert [case["name"] for case in listed["json"]["cases"]] == sorted(names)
    assert all(name in listed["out"] for name in names)
    assert "Dr. Who" in listed["out"]

    withdrawn = run("withdraw", names[0], "--reason", "no consent", "--remove-files")

    assert withdrawn["json"]["state"] == "withdrawn"
    assert f"{names[0]}: withdrawn and its files removed" in withdrawn["out"]
    assert [case["name"] for case in run("list", "--state", "submitted")["json"]["cases"]] == names[1:]
    assert len(CaseQueue(tmp_path / "home" / "cases").cases_for_training("brats-glioma")) == 1


def test_what_is_refused_is_said_and_the_rest_is_added(run: Run, cohort: Path) -> None:
    first = cohort / "SITE-01" / "S01P001"
    run("add", first)

    again = run("add", cohort)

    assert again["code"] == 2
    assert "1 of 2 cases added" in again["out"]
    assert len(again["json"]["refused"]) == 1
    assert "these labels were submitted before" in again["json"]["refused"][0]


def test_one_case_with_what_a_model_had_drawn_and_its_patient(run: Run, cohort: Path, tmp_path: Path) -> None:
    case = cohort / "SITE-01" / "S01P001"
    labels = read_labels(case / "seg.nii.gz")
    drawn = np.where(labels.array == 1, 3, labels.array)
    drawn[0, 0, 0] = 2
    write_volume(tmp_path / "drawn.nii.gz", Volume(drawn, labels.affine))

    made = run("add", case, "--patient", "4711", "--predicted", tmp_path / "drawn.nii.gz", "--note", "core")["json"]

    correction = made["added"][0]["corrections"][0]
    assert correction["change"]["WT"]["change_ml"] == pytest.approx(-0.343)
    assert correction["note"] == "core"
    other = run("add", cohort / "SITE-01" / "S01P002", "--patient", "4711")["json"]["added"][0]
    assert other["patient"] == made["added"][0]["patient"]


def test_an_empty_queue_is_listed(run: Run) -> None:
    assert run("list") == {"code": 0, "out": "0 cases\n", "json": {"cases": []}}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("add", "{cohort}/nowhere"), "there is no such folder"),
        (
            ("add", "{cohort}", "--patient", "1"),
            "it holds 2 cases; --patient and --predicted are for the folder of one",
        ),
        (("add", "{cohort}", "--task", "knee"), "knee: no such task"),
        (("list", "--state", "lost"), "--state lost is unknown"),
        (("withdraw", "nobody", "--reason", "x"), "nobody: no such case in the queue"),
    ],
)
def test_bad_input_is_one_line(run: Run, cohort: Path, arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError) as refusal:
        run(*(argument.format(cohort=cohort) for argument in arguments))

    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
