"""The command line as a user meets it: real processes, their exit codes, their files and what they say."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from PIL import Image

from twinseg.classification import build_classifier, network_description
from twinseg.model_file import read_card, save_model
from twinseg.tasks import Sequence, Task
from twinseg.volumes import read_image, read_labels

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks")

Twinseg = Callable[..., Any]
SaveNifti = Callable[..., Path]
SEQUENCES = ("t1", "t1ce", "t2", "flair")


def strict_json(path: Path) -> Any:
    """JSON as other programs read it, which NaN is no part of."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in {path}")

    return json.loads(path.read_text("utf-8"), parse_constant=refuse)


# --- help and imports ------------------------------------------------------------------------------------------------


def test_the_command_line_imports_nothing_heavy(environment: dict[str, str]) -> None:
    heavy = ("torch", "monai", "scipy", "nibabel", "matplotlib")
    code = f"import sys, twinseg.cli; print([name for name in {heavy} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_help_and_version(twinseg: Twinseg) -> None:
    listed = twinseg("--help")

    assert listed.code == 0
    for command in ("phantom", "train", "segment", "evaluate", "calibrate", "model", "cases", "twin"):
        assert command in listed.out
        helped = twinseg(command, "--help")
        assert helped.code == 0
        assert "Usage" in helped.out
    for command in ("show", "export", "import"):
        assert twinseg("model", command, "--help").code == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", twinseg("--version").out)


@pytest.mark.parametrize(
    "command", ["phantom", "train", "segment", "evaluate", "calibrate", "model show", "model export", "model import"]
)
def test_each_command_tells_in_json(twinseg: Twinseg, command: str) -> None:
    assert "--json" in twinseg(*command.split(), "--help").out


def test_a_wrong_option_is_bad_input(twinseg: Twinseg) -> None:
    for arguments in (
        ("segment", "--no-such-option"),
        ("no-such-command",),
        ("segment",),
        ("train", ".", "--epochs", 0),
    ):
        assert twinseg(*arguments).code == 2


# --- the main path ---------------------------------------------------------------------------------------------------


def test_train_tells_what_it_did(trained: dict[str, Any], cohort: Path) -> None:
    assert trained["json"]["steps"] == 2
    assert trained["json"]["cases"] == {"train": 2, "validation": 1, "test": 1}
    assert 0 <= trained["json"]["validation_dice"] <= 1
    assert re.search(r"modèle 1\.safetensors: trained for .* minutes; validation Dice 0\.\d{3}", trained["result"].out)
    assert "training: 50%, step 1, loss" in trained["result"].err
    assert trained["result"].said == [f"{cohort / 'splits.json'}: drawn by patient, for 4 patients, 4 cases, 2 sites"]
    assert trained["model"].with_suffix(".png").exists()
    assert (cohort / "splits.json").exists()


def test_show_tells_where_a_model_comes_from(trained: dict[str, Any], twinseg: Twinseg, tmp_path: Path) -> None:
    result = twinseg("model", "show", trained["model"], "--json", tmp_path / "show.json")

    shown = strict_json(tmp_path / "show.json")
    assert result.code == 0
    assert shown["hash"] == trained["json"]["model_hash"]
    assert shown["task"] == "brats-glioma"
    assert shown["provenance"]["metrics"]["steps"] == 2
    assert shown["hash"] in result.out  # whole, whatever the terminal's width


def test_a_model_goes_out_as_a_bundle_and_comes_back(model: Path, twinseg: Twinseg, tmp_path: Path) -> None:
    back, out, into = tmp_path / "back.safetensors", tmp_path / "export.json", tmp_path / "import.json"
    assert twinseg("model", "export", model, tmp_path / "bundle", "--json", out).code == 0
    result = twinseg("model", "import", tmp_path / "bundle", back, "--json", into)

    assert result.code == 0, result.err
    assert strict_json(into) == {"files": [str(back)], "hash": read_card(model).hash}
    assert strict_json(out)["hash"] == read_card(model).hash
    assert {*map(Path, strict_json(out)["files"])} == {f for f in (tmp_path / "bundle").rglob("*") if f.is_file()}
    ours, theirs = (safetensors.torch.load_file(path) for path in (back, model))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_evaluate_scores_the_test_part(model: Path, cohort: Path, twinseg: Twinseg, tmp_path: Path) -> None:
    result = twinseg("evaluate", cohort, "--model", model, "--json", tmp_path / "e.json", "--device", "cpu")

    measured = strict_json(tmp_path / "e.json")
    assert result.code == 0, result.err
    assert measured["n"] == 1
    assert measured["cases"][0]["case"] in json.loads((cohort / "splits.json").read_text())["patients"]["test"]
    assert set(measured["summary"]["all"]) == {"WT", "TC", "ET"}
    assert measured["cases"][0]["case"] in result.out
    assert f"{measured['summary']['all']['WT']['dice']['mean']:.3f}" in result.out
    assert result.said == []


def test_evaluate_scores_all_by_site(model: Path, cohort: Path, twinseg: Twinseg, tmp_path: Path) -> None:
    result = twinseg(
        "evaluate", cohort, "--model", model, "--split", "all", "--no-flips", "--json", tmp_path / "e.json"
    )

    measured = strict_json(tmp_path / "e.json")
    assert result.code == 0, result.err
    assert measured["n"] == 4
    assert set(measured["summary"]["sites"]) == {"SITE-01", "SITE-02"}


def test_calibrate_writes_a_model_a_table_and_a_picture(
    model: Path, cohort: Path, twinseg: Twinseg, tmp_path: Path
) -> None:
    output = tmp_path / "calibré.safetensors"
    wanted = ("calibrate", cohort, "--model", model, "--output", output, "--split", "all", "--device", "cpu")

    result = twinseg(*wanted, "--json", tmp_path / "c.json")

    assert result.code == 0, result.err
    measured = strict_json(tmp_path / "c.json")
    assert measured["regions"]["WT"]["patients"] == 4
    assert f"{measured['regions']['WT']['expected_calibration_error']:.3f}" in result.out
    assert "no 90 % volume intervals: 4 patients to calibrate on, 9 are needed" in result.out
    assert {*map(Path, measured["files"])} == {output, tmp_path / "calibré.reliability.png"}
    assert read_card(output).hash == measured["model_hash"]
    assert result.said == []


def test_calibrate_refuses_what_it_cannot_use(model: Path, cohort: Path, twinseg: Twinseg, tmp_path: Path) -> None:
    output = tmp_path / "c.safetensors"

    twinseg("calibrate", cohort, "--model", model, "--output", model).assert_bad_input(model, "name another output")
    same = twinseg("calibrate", cohort, "--model", model, "--output", output, "--split", "some")
    same.assert_bad_input("--split some", "use train, validation, test or all")
    nowhere = twinseg("calibrate", tmp_path, "--model", model, "--output", output)
    nowhere.assert_bad_input(tmp_path, "there is no image in it")
    assert not output.exists()


@pytest.mark.parametrize("copied", [0, 1, 4])
def test_evaluate_scores_a_classifier_with_and_without_copies(twinseg: Twinseg, tmp_path: Path, copied: int) -> None:
    sequences = (Sequence("ct", "CT"),)
    task = Task("chest", "Chest", "classification", "CT", sequences, (1.0,) * 3, (32, 32, 1), classes=("ill", "well"))
    model = tmp_path / "m.safetensors"
    save_model(model, build_classifier(task).state_dict(), task=task, network=network_description(task), provenance={})
    pictures = np.random.default_rng(0).integers(0, 255, (8, 32, 32), np.uint8)
    for number in range(4):
        for part, picture in (("train", number), ("test", number if number < copied else 4 + number)):
            file = tmp_path / "data" / part / task.classes[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures[picture]).save(file)

    result = twinseg("evaluate", tmp_path / "data", "--model", model, "--json", tmp_path / "e.json", "--device", "cpu")

    assert result.code == 0, result.err
    measured = strict_json(tmp_path / "e.json")
    assert "test images" in result.out
    assert f"accuracy {measured['accuracy']:.3f}" in result.out
    assert ("test images, deduplicated" in result.out) == (copied == 1)
    assert ("deduplicated: nothing is left" in result.out) == (copied == 4)
    if copied == 1:
        assert measured["deduplicated"]["n"] == 3
        assert result.out.count("accuracy ") == 2
        assert f"accuracy {measured['deduplicated']['accuracy']:.3f}" in result.out


def test_segment_by_folder_and_by_files_alike(model: Path, case: Path, twinseg: Twinseg, tmp_path: Path) -> None:
    shared = ("--model", model, "--device", "cpu")
    named = [argument for name in SEQUENCES for argument in (f"--{name}", case / f"{name}.nii.gz")]

    by_folder = twinseg(
        "segment", case, "--output", tmp_path / "é 1.nii.gz", "--uncertainty", tmp_path / "u.nii.gz", *shared
    )
    by_files = twinseg("segment", *named, "--output", tmp_path / "2.nii.gz", *shared, "--json", tmp_path / "s.json")

    assert (by_folder.code, by_files.code) == (0, 0), by_folder.err + by_files.err
    assert by_folder.said == by_files.said == []
    assert (tmp_path / "é 1.nii.gz").read_bytes() == (tmp_path / "2.nii.gz").read_bytes()
    reference = read_image(case / "t1.nii.gz")
    labels, uncertainty = read_labels(tmp_path / "é 1.nii.gz"), read_image(tmp_path / "u.nii.gz")
    assert labels.shape == uncertainty.shape == reference.shape
    assert np.abs(labels.affine - reference.affine).max() < 1e-6
    assert set(np.unique(labels.array)) <= {0, 1, 2, 3}
    assert 0 <= uncertainty.array.min() < uncertainty.array.max() <= 1
    measured = strict_json(tmp_path / "s.json")
    assert measured["volumes_ml"]["WT"]["volume"] == pytest.approx(np.count_nonzero(labels.array) * 0.125)
    assert (measured["missing"], measured["sequences"]) == ([], sorted(SEQUENCES))
    assert re.search(
        r"2\.nii\.gz: WT \d+\.\d mL \(80 % interval \d+\.\d to \d+\.\d\), TC .* \(cpu, whole volume, \d+\.\d s\)",
        by_files.out,
    )


def test_a_missing_sequence_is_allowed_and_said(model: Path, case: Path, twinseg: Twinseg, tmp_path: Path) -> None:
    for name in ("t1", "t2"):
        (case / f"{name}.nii.gz").unlink()

    result = twinseg(
        "segment", case, "--model", model, "--output", tmp_path / "s.nii.gz", "--json", tmp_path / "s.json"
    )

    assert result.code == 0, result.err
    assert "without t1, t2)" in result.out
    assert strict_json(tmp_path / "s.json")["missing"] == ["t1", "t2"]


def test_other_sequences_are_named_by_image(model: Path, case: Path, twinseg: Twinseg, tmp_path: Path) -> None:
    flair, t1 = case / "flair.nii.gz", case / "t1.nii.gz"

    one = twinseg("segment", "--image", f"flair={flair}", "--t1", t1, "--model", model, "--output", tmp_path / "1.nii")
    other = twinseg("segment", "--flair", flair, "--t1", t1, "--model", model, "--output", tmp_path / "2.nii")

    assert (one.code, other.code) == (0, 0), one.err + other.err
    assert (tmp_path / "1.nii").read_bytes() == (tmp_path / "2.nii").read_bytes()


def test_without_a_model_the_starter_model_is_used(twinseg: Twinseg, tmp_path: Path, save_nifti: SaveNifti) -> None:
    save_nifti(tmp_path / "head.nii.gz", np.random.default_rng(0).random((32, 32, 32)))

    result = twinseg("segment", "--flair", tmp_path / "head.nii.gz", "--output", tmp_path / "s.nii.gz")

    assert result.code == 0, result.err
    assert read_labels(tmp_path / "s.nii.gz").shape == (32, 32, 32)


def test_phantom_makes_patients(twinseg: Twinseg, tmp_path: Path) -> None:
    arguments = ("phantom", tmp_path / "p", "--sites", 1, "--patients", 1, "--size", 32, "--spacing", 5)

    result = twinseg(*arguments, "--json", tmp_path / "p.json")

    assert result.code == 0, result.err
    assert strict_json(tmp_path / "p.json")["patients"] == 1
    assert read_labels(tmp_path / "p" / "SITE-01" / "S01P001" / "seg.nii.gz").shape == (32, 32, 32)


def test_names_in_brackets_are_no_markup(model: Path, case: Path, twinseg: Twinseg, tmp_path: Path) -> None:
    strange = case.rename(case.with_name("[bold]P [1]"))

    result = twinseg("evaluate", strange.parent, "--model", model, "--split", "all", "--no-flips")

    assert result.code == 0, result.err
    assert "[bold]P [1]" in result.out


# --- faults and Ctrl-C -----------------------------------------------------------------------------------------------


def test_a_fault_of_the_program_is_exit_code_1(model: Path, twinseg: Twinseg) -> None:
    fault = "import twinseg.model_file; twinseg.model_file.read_card = lambda path: 1 / 0"

    result = twinseg("model", "show", model, before=fault)

    assert result.code == 1
    assert "ZeroDivisionError" in result.err


def test_ctrl_c_leaves_a_checkpoint_and_exit_code_130(
    cohort: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    arguments = ("--task", "brats-glioma", "--output", tmp_path / "m.safetensors", "--epochs", 60, "--device", "cpu")
    command = [sys.executable, "-m", "twinseg.cli", "train", str(cohort), *map(str, arguments)]
    training = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert training.stderr is not None
    for line in training.stderr:
        if "step" in line:
            break

    training.send_signal(signal.SIGINT)
    _, said = training.communicate(timeout=120)

    assert training.returncode == 130
    assert said.splitlines()[-1].startswith("twinseg: stopped; go on with --resume")
    assert {path.name for path in tmp_path.iterdir()} == {"m.checkpoint"}
