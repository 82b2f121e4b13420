"""The command line as a user meets it: real processes, their exit codes, their files and what they say."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import safetensors
import safetensors.torch

from twinseg.phantom import write_cohort
from twinseg.volumes import read_image, read_labels

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks")

LIBRARY = Path(__file__).resolve().parents[3] / "TwinSegSlicer"
SEQUENCES = ("t1", "t1ce", "t2", "flair")

# The command in a process of its own each time, but torch and MONAI are imported once and not forty times.
SERVER = """
import gc, json, os, resource, sys
import torch._dynamo, typer.rich_utils, twinseg.cli, twinseg.classification, twinseg.evaluation, twinseg.monai_bundle
gc.freeze()
for line in sys.stdin:
    wanted = json.loads(line)
    child = os.fork()
    if not child:
        for name, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(wanted[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        if wanted["room"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (wanted["room"],) * 2)
        os.chdir(wanted["folder"])
        sys.argv = ["twinseg", *wanted["arguments"]]
        exec(wanted["before"])
        code = 0
        try:
            twinseg.cli.main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # at once: to take all the modules down takes longer than most commands
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass
class Result:
    """How a command ended. `said` are the lines on stderr that do not tell progress."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        progress = re.compile(r"(segmenting|evaluating|training|making patients): +\d+%, ")
        return [line for line in self.err.splitlines() if not progress.match(line)]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = str(tmp_path_factory.mktemp("home"))
    return {**os.environ, "PYTHONPATH": str(LIBRARY), "TWINSEG_HOME": home, "COLUMNS": "160"}


@pytest.fixture(scope="session")
def twinseg(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[Callable[..., Result]]:
    """Run `twinseg` with arguments. folder: to be in; room: bytes of the largest file that it may write; before:
    Python to run first."""
    streams = tmp_path_factory.mktemp("streams")
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def run(*arguments: object, folder: Path = streams, room: int = 0, before: str = "") -> Result:
        wanted = {"arguments": [str(a) for a in arguments], "folder": str(folder), "room": room, "before": before}
        wanted |= {"out": str(streams / "out"), "err": str(streams / "err")}
        assert server.stdin is not None
        assert server.stdout is not None
        print(json.dumps(wanted), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return Result(code, (streams / "out").read_text("utf-8"), (streams / "err").read_text("utf-8"))

    yield run
    server.communicate(timeout=20)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites of two synthetic patients on a coarse grid."""
    folder = tmp_path_factory.mktemp("Ärzte & Söhne") / "cohort"
    write_cohort(folder, sites=2, patients=2, size=32, spacing=5.0, seed=1)
    return folder


@pytest.fixture(scope="session")
def trained(cohort: Path, twinseg: Callable[..., Result]) -> dict[str, Any]:
    """A model trained for one epoch by the command, and what the command said and wrote."""
    model = cohort.parent / "modèle 1.safetensors"
    report = cohort.parent / "train.json"
    result = twinseg(
        "train", cohort, "--task", "brats-glioma", "--output", model, "--epochs", 1, "--device", "cpu", "--json", report
    )
    assert result.code == 0, result.err
    return {"model": model, "result": result, "json": strict_json(report)}


@pytest.fixture(scope="session")
def model(trained: dict[str, Any]) -> Path:
    path: Path = trained["model"]
    return path


@pytest.fixture
def case(cohort: Path, tmp_path: Path) -> Path:
    """A copy of one case, for a test to spoil."""
    return Path(shutil.copytree(cohort / "SITE-01" / "S01P001", tmp_path / "Zoë Müller 1"))


def strict_json(path: Path) -> Any:
    """JSON as other programs read it, which NaN is no part of."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in {path}")

    return json.loads(path.read_text("utf-8"), parse_constant=refuse)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, its size and when it was written."""
    found = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}


# --- help and imports ------------------------------------------------------------------------------------------------


def test_the_command_line_imports_nothing_heavy(environment: dict[str, str]) -> None:
    heavy = ("torch", "monai", "scipy", "nibabel", "matplotlib")
    code = f"import sys, twinseg.cli; print([name for name in {heavy} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_help_and_version(twinseg: Callable[..., Result]) -> None:
    listed = twinseg("--help")

    assert listed.code == 0
    for command in ("phantom", "train", "segment", "evaluate", "model"):
        assert command in listed.out
        helped = twinseg(command, "--help")
        assert helped.code == 0
        assert "Usage" in helped.out
    for command in ("show", "export", "import"):
        assert twinseg("model", command, "--help").code == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", twinseg("--version").out)


@pytest.mark.parametrize("command", ["phantom", "train", "segment", "evaluate"])
def test_each_command_measures_into_json(twinseg: Callable[..., Result], command: str) -> None:
    assert "--json" in twinseg(command, "--help").out


def test_a_wrong_option_is_bad_input(twinseg: Callable[..., Result]) -> None:
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
    assert trained["result"].said == []
    assert trained["model"].with_suffix(".png").exists()
    assert (cohort / "splits.json").exists()


def test_show_tells_where_a_model_comes_from(
    trained: dict[str, Any], twinseg: Callable[..., Result], tmp_path: Path
) -> None:
    result = twinseg("model", "show", trained["model"], "--json", tmp_path / "show.json")

    shown = strict_json(tmp_path / "show.json")
    assert result.code == 0
    assert shown["hash"] == trained["json"]["model_hash"]
    assert shown["task"] == "brats-glioma"
    assert shown["provenance"]["metrics"]["steps"] == 2
    assert shown["hash"] in result.out  # whole, whatever the terminal's width


def test_a_model_goes_out_as_a_bundle_and_comes_back(
    model: Path, twinseg: Callable[..., Result], tmp_path: Path
) -> None:
    assert twinseg("model", "export", model, tmp_path / "bundle").code == 0
    result = twinseg("model", "import", tmp_path / "bundle", tmp_path / "back.safetensors")

    assert result.code == 0, result.err
    ours, theirs = (safetensors.torch.load_file(path) for path in (tmp_path / "back.safetensors", model))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_evaluate_scores_the_test_part(
    model: Path, cohort: Path, twinseg: Callable[..., Result], tmp_path: Path
) -> None:
    result = twinseg("evaluate", cohort, "--model", model, "--json", tmp_path / "e.json", "--device", "cpu")

    measured = strict_json(tmp_path / "e.json")
    assert result.code == 0, result.err
    assert measured["n"] == 1
    assert measured["cases"][0]["case"] in json.loads((cohort / "splits.json").read_text())["patients"]["test"]
    assert set(measured["summary"]["all"]) == {"WT", "TC", "ET"}
    assert measured["cases"][0]["case"] in result.out
    assert f"{measured['summary']['all']['WT']['dice']['mean']:.3f}" in result.out
    assert result.said == []


def test_evaluate_scores_all_by_site(model: Path, cohort: Path, twinseg: Callable[..., Result], tmp_path: Path) -> None:
    result = twinseg(
        "evaluate", cohort, "--model", model, "--split", "all", "--no-flips", "--json", tmp_path / "e.json"
    )

    measured = strict_json(tmp_path / "e.json")
    assert result.code == 0, result.err
    assert measured["n"] == 4
    assert set(measured["summary"]["sites"]) == {"SITE-01", "SITE-02"}


def test_segment_by_folder_and_by_files_alike(
    model: Path, case: Path, twinseg: Callable[..., Result], tmp_path: Path
) -> None:
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
    assert measured["volumes_ml"]["WT"] == pytest.approx(np.count_nonzero(labels.array) * 0.125)
    assert (measured["missing"], measured["sequences"]) == ([], sorted(SEQUENCES))
    assert re.search(r"2\.nii\.gz: WT \d+\.\d mL, TC .* \(cpu, whole volume, \d+\.\d s\)", by_files.out)


def test_a_missing_sequence_is_allowed_and_said(
    model: Path, case: Path, twinseg: Callable[..., Result], tmp_path: Path
) -> None:
    for name in ("t1", "t2"):
        (case / f"{name}.nii.gz").unlink()

    result = twinseg(
        "segment", case, "--model", model, "--output", tmp_path / "s.nii.gz", "--json", tmp_path / "s.json"
    )

    assert result.code == 0, result.err
    assert "without t1, t2)" in result.out
    assert strict_json(tmp_path / "s.json")["missing"] == ["t1", "t2"]


def test_other_sequences_are_named_by_image(
    model: Path, case: Path, twinseg: Callable[..., Result], tmp_path: Path
) -> None:
    flair, t1 = case / "flair.nii.gz", case / "t1.nii.gz"

    one = twinseg("segment", "--image", f"flair={flair}", "--t1", t1, "--model", model, "--output", tmp_path / "1.nii")
    other = twinseg("segment", "--flair", flair, "--t1", t1, "--model", model, "--output", tmp_path / "2.nii")

    assert (one.code, other.code) == (0, 0), one.err + other.err
    assert (tmp_path / "1.nii").read_bytes() == (tmp_path / "2.nii").read_bytes()


def test_without_a_model_the_starter_model_is_used(twinseg: Callable[..., Result], tmp_path: Path) -> None:
    if not (LIBRARY / "Resources" / "Models" / "brats-glioma.safetensors").exists():
        pytest.skip("no starter model is there yet")
    save(tmp_path / "head.nii.gz", np.random.default_rng(0).random((32, 32, 32)))

    result = twinseg("segment", "--flair", tmp_path / "head.nii.gz", "--output", tmp_path / "s.nii.gz")

    assert result.code == 0, result.err
    assert read_labels(tmp_path / "s.nii.gz").shape == (32, 32, 32)


def test_phantom_makes_patients(twinseg: Callable[..., Result], tmp_path: Path) -> None:
    arguments = ("phantom", tmp_path / "p", "--sites", 1, "--patients", 1, "--size", 32, "--spacing", 5)

    result = twinseg(*arguments, "--json", tmp_path / "p.json")

    assert result.code == 0, result.err
    assert strict_json(tmp_path / "p.json")["patients"] == 1
    assert read_labels(tmp_path / "p" / "SITE-01" / "S01P001" / "seg.nii.gz").shape == (32, 32, 32)


def test_names_in_brackets_are_no_markup(
    model: Path, case: Path, twinseg: Callable[..., Result], tmp_path: Path
) -> None:
    strange = case.rename(case.with_name("[bold]P [1]"))

    result = twinseg("evaluate", strange.parent, "--model", model, "--split", "all", "--no-flips")

    assert result.code == 0, result.err
    assert "[bold]P [1]" in result.out


# --- bad images ------------------------------------------------------------------------------------------------------


def spoil_4d(case: Path) -> None:
    save(case / "t2.nii.gz", np.random.default_rng(0).random((9, 9, 9, 2)))


def spoil_2d(case: Path) -> None:
    save(case / "t2.nii.gz", np.random.default_rng(0).random((32, 32)))


def spoil_nan(case: Path) -> None:
    array = np.random.default_rng(0).random((32, 32, 32))
    array[3, 4, 5] = np.nan
    save(case / "t2.nii.gz", array)


def spoil_constant(case: Path) -> None:
    save(case / "t2.nii.gz", np.full((32, 32, 32), 7.0))


def spoil_gzip(case: Path) -> None:
    file = case / "t2.nii.gz"
    file.write_bytes(file.read_bytes()[:-2000])


def spoil_text(case: Path) -> None:
    (case / "t2.nii.gz").write_text("<html>404: not found</html>" * 30)


def spoil_grid(case: Path) -> None:
    affine = np.eye(4)
    affine[:3, 3] = 5000
    save(case / "t2.nii.gz", np.random.default_rng(0).random((32, 32, 32)), affine)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), np.eye(4) if affine is None else affine), path)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (spoil_4d, "4-D image"),
        (spoil_2d, "2-D image"),
        (spoil_nan, "NaN or infinite values"),
        (spoil_constant, "every voxel is 7"),
        (spoil_gzip, "damaged or cut short"),
        (spoil_text, "this is not a NIfTI file"),
        (spoil_grid, "of its field of view is common with t1.nii.gz"),
    ],
)
def test_a_bad_image_is_told_in_one_line_and_nothing_is_written(
    model: Path, case: Path, twinseg: Callable[..., Result], tmp_path: Path, spoil: Callable[[Path], None], fault: str
) -> None:
    spoil(case)
    before = files(tmp_path)
    outputs = ("--output", tmp_path / "s.nii.gz", "--uncertainty", tmp_path / "u.nii.gz", "--json", tmp_path / "s.json")

    result = twinseg("segment", case, "--model", model, *outputs)

    assert_bad_input(result, case / "t2.nii.gz", fault)
    assert result.said == result.err.splitlines()
    assert files(tmp_path) == before


def assert_bad_input(result: Result, named: object, fault: str) -> None:
    """Exit code 2, and one line that names what is at fault and says what is wrong."""
    assert result.code == 2, result.err
    assert len(result.said) == 1, result.err
    assert result.said[0].startswith("twinseg: ")
    assert str(named) in result.said[0]
    assert fault in result.said[0]
    assert result.out == ""


# --- bad arguments ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory, cohort: Path, model: Path) -> Path:
    """A folder of things that are not what they should be, and a good case and model among them."""
    folder = tmp_path_factory.mktemp("zoo")
    good = cohort / "SITE-01" / "S01P001"
    for name in ("good", "two/P1", "two/P2", "twice"):
        shutil.copytree(good, folder / name)
    shutil.copy(good / "t1.nii.gz", folder / "twice" / "P_t1.nii.gz")
    for name in ("empty", "adc", "labels"):
        (folder / name).mkdir()
    shutil.copy(good / "t1.nii.gz", folder / "adc" / "adc.nii.gz")
    for name in ("flair", "seg"):
        shutil.copy(good / f"{name}.nii.gz", folder / "labels")
    (folder / "pickle.safetensors").write_bytes(pickle.dumps({"weights": [1.0]}))
    with safetensors.safe_open(model, "pt") as file:
        metadata = {**file.metadata(), "provenance": json.dumps({"dice": 0.99})}
    safetensors.torch.save_file(safetensors.torch.load_file(model), folder / "altered.safetensors", metadata)
    (folder / "m.safetensors").symlink_to(model)
    return folder


@pytest.mark.parametrize(
    ("arguments", "named", "fault"),
    [
        ("segment good --model m.safetensors --output nowhere/s.nii", "nowhere/s.nii", "its folder does not exist"),
        ("segment good --model m.safetensors --output s.png", "s.png", "must end in .nii.gz or .nii"),
        ("segment good --model m.safetensors --output s.nii --uncertainty no/u.nii", "no/u.nii", "does not exist"),
        ("segment good --model m.safetensors --output s.nii --json no/s.json", "no/s.json", "does not exist"),
        ("segment good --model m.safetensors --output good/t1.nii.gz", "good/t1.nii.gz", "never overwritten"),
        ("segment nowhere --model m.safetensors --output s.nii", "nowhere", "there is no such folder"),
        ("segment empty --model m.safetensors --output s.nii", "empty", "there is no image in it"),
        ("segment two --model m.safetensors --output s.nii", "two", "it holds 2 cases"),
        ("segment twice --model m.safetensors --output s.nii", "t1.nii.gz", "t1 as well; keep one file a sequence"),
        ("segment adc --model m.safetensors --output s.nii", "adc", "found adc.nii.gz, but no t1, t1ce, t2, flair"),
        ("segment --t1 no.nii --model m.safetensors --output s.nii", "no.nii", "there is no such file"),
        ("segment --t1 good --model m.safetensors --output s.nii", "good", "unknown file type"),
        ("segment --image dwi=d.nii --model m.safetensors --output s.nii", "d.nii", "has no sequence dwi"),
        ("segment --t1 a.nii --image t1=b.nii --model m.safetensors --output s.nii", "b.nii", "a.nii is t1 as well"),
        ("segment --image a.nii --model m.safetensors --output s.nii", "--image a.nii", "sequence and the file"),
        ("segment --model m.safetensors --output s.nii", "folder of a case", "or its image files"),
        ("segment good --t1 a.nii --model m.safetensors --output s.nii", "folder of a case", "or its image files"),
        ("segment good --model no.safetensors --output s.nii", "no.safetensors", "cannot be read"),
        ("segment good --model altered.safetensors --output s.nii", "altered.safetensors", "not match its hash"),
        ("segment good --model pickle.safetensors --output s.nii", "pickle.safetensors", "a pickle"),
        ("segment good --model good/t1.nii.gz --output s.nii", "good/t1.nii.gz", "not a .safetensors file"),
        ("segment good --model m.safetensors --task lgg-flair --output s.nii", "m.safetensors", "for another task"),
        ("segment good --model m.safetensors --task no-task --output s.nii", "no-task", "known tasks are"),
        ("segment good --task acdc-cardiac --output s.nii", "acdc-cardiac", "name one with --model"),
        ("segment good --model m.safetensors --output s.nii --device warp", "'warp'", "use --device cpu or auto"),
        ("evaluate empty --model m.safetensors", "empty", "there is no image in it"),
        ("evaluate good --model m.safetensors --split half", "--split half", "use train, validation, test or all"),
        ("evaluate good --model altered.safetensors", "altered.safetensors", "does not match its hash"),
        ("evaluate good --model m.safetensors", "good", "its test part is empty"),
        ("evaluate adc --model m.safetensors", "adc", "but no t1, t1ce, t2, flair"),
        ("train good --task brats-glioma --output m.pt --epochs 1", "m.pt", "ends in .safetensors"),
        ("train good --task brats-glioma --output no/m.safetensors", "no/m.safetensors", "does not exist"),
        ("train good --task no-task --output n.safetensors", "no-task", "known tasks are"),
        ("train good --task no.toml --output n.safetensors", "no.toml", "cannot be read"),
        ("train good --task brats-glioma --output n.safetensors --preset huge", "'huge'", "use one of small, base"),
        ("train good --task brats-glioma --output n.safetensors --epochs 1 --minutes 1", "--epochs", "one of them"),
        ("train labels --task lgg-flair --output n.safetensors --epochs 1", "labels/seg.nii.gz", "relabel the map"),
        ("train adc --task brats-glioma --output n.safetensors --epochs 1", "adc", "but no t1"),
        ("train empty --task brats-glioma --output n.safetensors --epochs 1", "empty", "there is no image in it"),
        ("train good --task brats-glioma --output n.safetensors --init pickle.safetensors", "pickle", "a pickle"),
        ("train good --task brats-glioma --output n.safetensors --device warp", "'warp'", "use --device cpu"),
        ("model show pickle.safetensors", "pickle.safetensors", "a pickle"),
        ("model export altered.safetensors b", "altered.safetensors", "does not match its hash"),
        ("model import empty n.safetensors", "empty", "not a bundle"),
        ("phantom p --size 3", "3", "voxels"),
        ("phantom p --spacing -1", "-1", "mm"),
    ],
)
def test_bad_input_is_told_in_one_line_and_nothing_is_written(
    zoo: Path, twinseg: Callable[..., Result], arguments: str, named: str, fault: str
) -> None:
    before = files(zoo)

    result = twinseg(*arguments.split(), folder=zoo)

    assert_bad_input(result, named, fault)
    after = files(zoo)
    splits = {name for name in after if name.endswith("splits.json")}  # drawn once, for all that comes later
    assert {name: status for name, status in after.items() if name not in splits} == {
        name: status for name, status in before.items() if name not in splits
    }


def test_bad_labels_stop_a_training(cohort: Path, twinseg: Callable[..., Result], tmp_path: Path) -> None:
    data = shutil.copytree(cohort, tmp_path / "data")
    save(data / "SITE-01" / "S01P001" / "seg.nii.gz", np.full((32, 32, 32), 9))

    result = twinseg("train", data, "--task", "brats-glioma", "--output", tmp_path / "m.safetensors", "--epochs", 1)

    assert_bad_input(result, data / "SITE-01" / "S01P001" / "seg.nii.gz", "the label 9 is not one of brats-glioma")
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


# --- no room ---------------------------------------------------------------------------------------------------------


def test_no_room_for_a_segmentation(model: Path, case: Path, twinseg: Callable[..., Result], tmp_path: Path) -> None:
    before = files(tmp_path)

    for output in ("s.nii", "s.nii.gz"):
        result = twinseg("segment", case, "--model", model, "--output", tmp_path / output, room=500)
        assert_bad_input(result, tmp_path / output, "no space left to write it")

    assert files(tmp_path) == before


def test_no_room_for_a_model(cohort: Path, twinseg: Callable[..., Result], tmp_path: Path) -> None:
    arguments = ("--task", "brats-glioma", "--output", tmp_path / "m.safetensors", "--epochs", 1)

    result = twinseg("train", cohort, *arguments, room=1_000_000)

    assert_bad_input(result, tmp_path / "m.safetensors", "no space left to write it")
    assert files(tmp_path) == {}


# --- faults and Ctrl-C -----------------------------------------------------------------------------------------------


def test_a_fault_of_the_program_is_exit_code_1(model: Path, twinseg: Callable[..., Result]) -> None:
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
