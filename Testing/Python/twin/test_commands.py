"""The commands `twinseg twin …` as a user meets them, one after the other on two synthetic patients."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from twinseg.cases import find_cases
from twinseg.cli_twin import twin_app
from twinseg.errors import InputError
from twinseg.phantom import write_cohort
from twinseg.segmentation import load_network, segment_to_file, starter_model
from twinseg.tasks import load_task
from twinseg.twin.store import Twin
from twinseg.volumes import read_labels

Run = Callable[..., str]
EXPERT = ("--origin", "expert")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("Ärzte & Söhne")
    write_cohort(folder, sites=1, patients=2, visits=2, size=48, spacing=4.0, seed=5)
    return folder / "SITE-01"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command; its output, or the InputError that it ended with."""
    monkeypatch.setenv("COLUMNS", "200")

    def run_command(*arguments: object) -> str:
        result = CliRunner().invoke(twin_app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return run_command


@pytest.fixture(scope="module")
def made(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A twin with the first patient's two visits, made by the commands."""
    folder = tmp_path_factory.mktemp("twins") / "p1"
    first, second = visits(cohort, "S01P001")
    for arguments in (
        ("create", folder, "--pseudonym", "P-1"),
        ("add", folder, first, "--date", first.name, "--baseline-date", first.name, *EXPERT),
        ("add", folder, second, "--date", second.name, "--baseline-date", first.name, "--day-uncertainty", 1, *EXPERT),
    ):
        result = CliRunner().invoke(twin_app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    return folder


def visits(cohort: Path, patient: str) -> list[Path]:
    return sorted(path for path in (cohort / patient).iterdir() if path.is_dir())


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def test_days_are_kept_and_dates_are_not(made: Path, cohort: Path) -> None:
    first, second = visits(cohort, "S01P001")
    twin = Twin.open(made)

    between = (date.fromisoformat(second.name) - date.fromisoformat(first.name)).days
    assert [(point.day, point.day_uncertainty) for point in twin.timepoints] == [(0, 0), (between, 1)]
    assert sorted(twin.timepoints[0].images) == ["flair", "t1", "t1ce", "t2"]
    for path in made.rglob("*"):
        assert path.is_dir() or first.name.encode() not in path.read_bytes()
        assert path.is_dir() or second.name.encode() not in path.read_bytes()


def test_respond_report_verify_list(made: Path, tmp_path: Path, run: Run) -> None:
    said = run("respond", made, "--clinical", "stable", "--steroids", 2, "--json", tmp_path / "respond.json")
    assert "RANO 2.0, 2D" in said
    assert "RANO 2.0, 3D" in said
    assessed = read(tmp_path / "respond.json")["assessed"]
    assert assessed["2D"][0]["response"] == "baseline"
    assert all(one["trace"] for one in assessed["3D"])

    run("respond", made, "--override", "SD", "--reason", "radionecrosis", "--json", tmp_path / "override.json")
    assert read(tmp_path / "override.json")["assessed"]["2D"][1]["response"] == "SD"

    written = run(
        "report", made, "--output", tmp_path / "r.html", "--pdf", tmp_path / "r.pdf", "--json", tmp_path / "r.json"
    )
    assert "report on P-1 written" in written
    assert "radionecrosis" in (tmp_path / "r.html").read_text("utf-8")
    assert (tmp_path / "r.pdf").stat().st_size > 10_000

    assert "whole" in run("verify", made, "--json", tmp_path / "verify.json")
    assert read(tmp_path / "verify.json")["whole"] is True

    listed = run("list", made.parent, "--json", tmp_path / "list.json")
    assert "P-1" in listed
    assert [scan["timepoint"] for scan in read(tmp_path / "list.json")["twins"][0]["scans"]] == ["000", "001"]


def test_a_scan_that_is_there_can_be_corrected(made: Path, cohort: Path, tmp_path: Path, run: Run) -> None:
    folder = shutil.copytree(made, tmp_path / "p")
    (other,) = visits(cohort, "S01P001")[0].glob("seg*.nii.gz")

    said = run("correct", folder, "001", other, "--origin", "expert", "--json", tmp_path / "correct.json")
    assert "scan 001 corrected" in said

    baseline, corrected = Twin.open(folder).timepoints
    assert len(corrected.segmentations) == 2
    assert (Twin.open(folder).labels(corrected).array == Twin.open(folder).labels(baseline).array).all()
    assert read(tmp_path / "correct.json")["counts"] == "expert"
    assert "whole" in run("verify", folder)
    for arguments, wrong in ((("009", other), "no time point 009"), (("001", other, "--origin", "x"), "'x'")):
        with pytest.raises(InputError, match=wrong):
            run("correct", folder, *arguments)


def test_a_copy_for_other_programs_is_written_once(made: Path, tmp_path: Path, run: Run) -> None:
    assert "2 scans of P-1 written" in run("export", made, "--output", tmp_path / "bids")

    assert (tmp_path / "bids/sub-P1/sub-P1_sessions.tsv").is_file()
    with pytest.raises(InputError, match="it is there already"):
        run("export", made, "--output", tmp_path / "bids")


def test_verify_finds_a_changed_file(cohort: Path, tmp_path: Path, run: Run) -> None:
    run("create", tmp_path / "p")
    run("add", tmp_path / "p", visits(cohort, "S01P002")[0], "--day", 0, *EXPERT)
    image = tmp_path / "p" / "timepoints" / "000" / "images" / "t1.nii.gz"
    image.write_bytes(image.read_bytes()[:-1] + b"x")

    with pytest.raises(InputError, match="not whole"):
        run("verify", tmp_path / "p", "--json", tmp_path / "verify.json")

    assert read(tmp_path / "verify.json")["faults"] == [
        "timepoints/000/images/t1.nii.gz: it was changed after it was written"
    ]


def test_what_cannot_be_is_told_in_one_line_and_changes_nothing(made: Path, cohort: Path, run: Run) -> None:
    first, second = visits(cohort, "S01P001")
    other = visits(cohort, "S01P002")[1]
    tomorrow = date.today() + timedelta(days=1)
    revision = Twin.open(made).revision
    for arguments, said in (
        (("add", made, other, "--day", 900, *EXPERT), "another patient's"),
        (("add", made, second, "--day", 0, *EXPERT), "comes before"),
        (("add", made, second, "--day", 900), "seg.nii.gz: who drew this label map"),
        (("add", made, second, "--date", tomorrow, "--baseline-date", first.name), "future"),
        (("add", made, first, "--date", first.name, "--baseline-date", second.name), "out of order"),
        (("add", made, second), "either --day, or both"),
        (("add", made, "--day", 900), "either the folder"),
        (("add", made, second, "--day", 900, "--origin", "nobody"), "origin 'nobody'"),
        (("respond", made, "--override", "SD"), "needs a reason"),
        (("respond", made, "--clinical", "fine"), "better, stable, worse"),
        (("respond", made, "--timepoint", "007"), "no time point 007"),
        (("respond", made, "--setting", "no_such=1"), "settings"),
        (("create", made), "not empty"),
        (("verify", cohort), "no twin here"),
        (("report", cohort, "--output", cohort / "r.html"), "no twin here"),
        (("list", cohort / "nothing"), "no such folder"),
    ):
        with pytest.raises(InputError, match=said) as raised:
            run(*arguments)
        assert "\n" not in str(raised.value)
    assert Twin.open(made).revision == revision


def test_treatments_come_from_a_file(cohort: Path, tmp_path: Path, run: Run) -> None:
    known = tmp_path / "treatments.json"
    known.write_text('{"radiotherapy": [{"days": [5, 6], "dose_gy": [2, 2]}], "surgery": []}')
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"radiotherapie": []}')

    run("create", tmp_path / "p", "--treatments", known)

    assert Twin.open(tmp_path / "p").document("treatments.json")["chemotherapy"] is None
    with pytest.raises(InputError, match=r"wrong\.json: treatments"):
        run("create", tmp_path / "q", "--treatments", wrong)
    assert not (tmp_path / "q").exists()


def test_a_scan_without_labels_is_segmented_by_a_model(cohort: Path, tmp_path: Path, run: Run) -> None:
    scan = tmp_path / "scan"
    scan.mkdir()
    for file in visits(cohort, "S01P001")[0].glob("*.nii.gz"):
        if not file.name.startswith("seg"):
            (scan / file.name).write_bytes(file.read_bytes())
    model = load_network(starter_model("brats-glioma"))
    run("create", tmp_path / "p")

    run("add", tmp_path / "p", scan, "--day", 0, "--device", "cpu", "--json", tmp_path / "add.json")

    point = Twin.open(tmp_path / "p").timepoints[0]
    drawn = point.segmentation
    assert drawn is not None
    assert drawn.origin == "model"
    assert len(drawn.model or "") == 64
    assert drawn.uncertainty is not None
    assert model.task.spacing != load_task("brats-glioma").spacing, "a model's grid is its own"
    segment_to_file(find_cases(scan, model.task)[0], model, tmp_path / "seg.nii.gz", device="cpu")
    expected = read_labels(tmp_path / "seg.nii.gz")
    assert expected.array.any()
    kept = Twin.open(tmp_path / "p").labels(point)
    assert kept is not None
    np.testing.assert_array_equal(kept.array, expected.array)
    assert read(tmp_path / "add.json")["volumes_ml"]["WT"]["standard_deviation"] > 0
