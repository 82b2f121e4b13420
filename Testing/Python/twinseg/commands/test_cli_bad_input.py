"""Bad input on the command line: exit code 2, one line that names what is at fault, and nothing written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import safetensors
import safetensors.torch

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks")

Twinseg = Callable[..., Any]


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, its size and when it was written."""
    found = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}


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
    model: Path, case: Path, twinseg: Twinseg, tmp_path: Path, spoil: Callable[[Path], None], fault: str
) -> None:
    spoil(case)
    before = files(tmp_path)
    outputs = ("--output", tmp_path / "s.nii.gz", "--uncertainty", tmp_path / "u.nii.gz", "--json", tmp_path / "s.json")

    result = twinseg("segment", case, "--model", model, *outputs)

    result.assert_bad_input(case / "t2.nii.gz", fault)
    assert result.said == result.err.splitlines()
    assert files(tmp_path) == before


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
        ("train good --task brats-glioma --output n.safetensors --preset huge", "'huge'", "use one of tiny, small"),
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
    zoo: Path, twinseg: Twinseg, arguments: str, named: str, fault: str
) -> None:
    before = files(zoo)

    result = twinseg(*arguments.split(), folder=zoo)

    result.assert_bad_input(named, fault)
    after = files(zoo)
    splits = {name for name in after if name.endswith("splits.json")}  # drawn once, for all that comes later
    assert {name: status for name, status in after.items() if name not in splits} == {
        name: status for name, status in before.items() if name not in splits
    }


def test_bad_labels_stop_a_training(cohort: Path, twinseg: Twinseg, tmp_path: Path) -> None:
    data = shutil.copytree(cohort, tmp_path / "data")
    save(data / "SITE-01" / "S01P001" / "seg.nii.gz", np.full((32, 32, 32), 9))

    result = twinseg("train", data, "--task", "brats-glioma", "--output", tmp_path / "m.safetensors", "--epochs", 1)

    result.assert_bad_input(data / "SITE-01" / "S01P001" / "seg.nii.gz", "the label 9 is not one of brats-glioma")
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


# --- no room ---------------------------------------------------------------------------------------------------------


def test_no_room_for_a_segmentation(model: Path, case: Path, twinseg: Twinseg, tmp_path: Path) -> None:
    before = files(tmp_path)

    for output in ("s.nii", "s.nii.gz"):
        result = twinseg("segment", case, "--model", model, "--output", tmp_path / output, room=500)
        result.assert_bad_input(tmp_path / output, "no space left to write it")

    assert files(tmp_path) == before


def test_no_room_for_a_model(cohort: Path, twinseg: Twinseg, tmp_path: Path) -> None:
    arguments = ("--task", "brats-glioma", "--output", tmp_path / "m.safetensors", "--epochs", 1)

    result = twinseg("train", cohort, *arguments, room=1_000_000)

    result.assert_bad_input(tmp_path / "m.checkpoint", "no space left to write it")
    assert files(tmp_path) == {}
