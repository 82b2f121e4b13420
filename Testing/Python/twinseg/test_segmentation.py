"""From image files and a model file to a label map file, and the score of a model on a folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from twinseg.cases import Case, find_cases
from twinseg.errors import Cancelled, InputError, OutOfSpaceError
from twinseg.evaluation import evaluate
from twinseg.model_file import save_model
from twinseg.network import NetworkConfig, build_network
from twinseg.segmentation import (
    LoadedModel,
    case_of_files,
    case_of_folder,
    load_network,
    segment_to_file,
    starter_model,
)
from twinseg.tasks import Task, load_task
from twinseg.volumes import read_image, read_labels

SaveNifti = Callable[..., Path]
CONFIG = NetworkConfig(2, 3, channels=(8, 12), strides=((2, 2, 2),) * 2, embedding=24, depth=1, heads=2)
OBLIQUE = np.array([[0.0, -1.0, 0.1, 12], [0.9, 0, 0, -7], [0, 0.1, -2.5, 33], [0, 0, 0, 1]])


@pytest.fixture
def model_file(tmp_path: Path, toy: Task) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_model(path, build_network(CONFIG).state_dict(), task=toy, network=CONFIG.to_dict(), provenance={})
    return path


@pytest.fixture
def model(model_file: Path) -> LoadedModel:
    return load_network(model_file)


@pytest.fixture
def case(tmp_path: Path, toy: Task, save_nifti: SaveNifti) -> Case:
    image = np.random.default_rng(0).random((14, 18, 9)).astype(np.float32)
    for name in ("t1", "flair"):
        save_nifti(tmp_path / "Zoë Müller" / f"{name}.nii.gz", image, OBLIQUE)
    return case_of_folder(tmp_path / "Zoë Müller", toy)


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_network_comes_with_its_task_and_hash(model_file: Path, toy: Task) -> None:
    loaded = load_network(model_file, toy)

    assert loaded.task == toy
    assert len(loaded.hash) == 64
    assert not loaded.network.training


def test_a_model_for_another_task(model_file: Path, glioma: Task) -> None:
    with pytest.raises(InputError, match=r"model\.safetensors: a model for another task"):
        load_network(model_file, glioma)


def test_a_model_that_classifies(tmp_path: Path) -> None:
    task = load_task("chest-ct-cancer")
    save_model(tmp_path / "c.safetensors", {"w": torch.zeros(1)}, task=task, network={}, provenance={})

    with pytest.raises(InputError, match=r"c\.safetensors: this model classifies images"):
        load_network(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    "network",
    [
        {},
        {"kind": "vit-unet"},
        {**CONFIG.to_dict(), "unknown": 1},
        {**CONFIG.to_dict(), "channels": 3},
        {**CONFIG.to_dict(), "embedding": 48},
        {**CONFIG.to_dict(), "variant": "mlp"},
        {**CONFIG.to_dict(), "strides": [[2, 2, 2]]},
    ],
)
def test_tensors_that_do_not_fit_the_network(tmp_path: Path, toy: Task, network: dict) -> None:
    path = tmp_path / "odd.safetensors"
    save_model(path, build_network(CONFIG).state_dict(), task=toy, network=network, provenance={})

    with pytest.raises(InputError, match=r"odd\.safetensors: its tensors do not fit its network") as error:
        load_network(path)

    assert "\n" not in str(error.value)


def test_the_user_s_own_starter_model_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINSEG_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "models").mkdir(parents=True)
    (tmp_path / "home" / "models" / "mine.safetensors").touch()

    assert starter_model("mine") == tmp_path / "home" / "models" / "mine.safetensors"
    with pytest.raises(InputError, match="no starter model ships for the task other"):
        starter_model("other")


# --- cases -----------------------------------------------------------------------------------------------------------


def test_the_folder_of_several_cases(tmp_path: Path, toy: Task, save_nifti: SaveNifti) -> None:
    for name in ("P1", "P2"):
        save_nifti(tmp_path / name / "t1.nii.gz")

    with pytest.raises(InputError, match=r"it holds 2 cases \(P1, …\); name the folder of one case"):
        case_of_folder(tmp_path, toy)


def test_files_of_an_unknown_sequence(tmp_path: Path, toy: Task) -> None:
    with pytest.raises(InputError, match=r"dwi\.nii: the task toy has no sequence dwi; it has t1, flair"):
        case_of_files({"t1": tmp_path / "t1.nii", "dwi": tmp_path / "dwi.nii"}, toy)


# --- files -----------------------------------------------------------------------------------------------------------


def test_label_map_and_uncertainty_lie_on_the_image_s_grid(tmp_path: Path, model: LoadedModel, case: Case) -> None:
    measured = segment_to_file(case, model, tmp_path / "résultat 1.nii.gz", tmp_path / "unsicher.nii")

    labels, uncertainty = read_labels(tmp_path / "résultat 1.nii.gz"), read_image(tmp_path / "unsicher.nii")
    for volume in (labels, uncertainty):
        assert volume.shape == (14, 18, 9)
        assert np.abs(volume.affine - OBLIQUE).max() < 1e-6
    assert set(np.unique(labels.array)) <= {0, 2, 7}
    assert uncertainty.array.min() >= 0
    assert uncertainty.array.max() <= 1
    voxel_ml = abs(np.linalg.det(OBLIQUE[:3, :3])) / 1000
    counts = {"WT": np.count_nonzero(labels.array), "ET": np.count_nonzero(labels.array == 7)}
    for region, count in counts.items():
        ml = measured["volumes_ml"][region]
        assert ml["volume"] == pytest.approx(count * voxel_ml, rel=0.02, abs=1e-3)
        assert ml["low"] <= ml["volume"] <= ml["high"]
    assert (measured["task"], measured["model"]) == ("toy", model.hash)
    assert (measured["sequences"], measured["missing"]) == (["flair", "t1"], [])
    assert measured["computed"] == "cpu, whole volume"


def test_a_missing_sequence_is_named(tmp_path: Path, model: LoadedModel, case: Case) -> None:
    measured = segment_to_file(replace(case, images={"flair": case.images["flair"]}), model, tmp_path / "s.nii.gz")

    assert (measured["sequences"], measured["missing"]) == (["flair"], ["t1"])


@pytest.mark.parametrize(
    ("output", "uncertainty", "fault"),
    [
        ("seg.png", None, "seg.png: the output must end in .nii.gz or .nii"),
        ("seg.nii.gz", "u.jpg", "u.jpg: the output must end in .nii.gz or .nii"),
        ("nowhere/seg.nii.gz", None, "seg.nii.gz: its folder does not exist; make it first"),
        ("seg.nii.gz", "nowhere/u.nii.gz", "u.nii.gz: its folder does not exist; make it first"),
        ("seg.nii.gz", "seg.nii.gz", "seg.nii.gz: label map and uncertainty need a file each; name two"),
        ("Zoë Müller/t1.nii.gz", None, "t1.nii.gz: this is an image of the case, which is never overwritten"),
        ("seg.nii.gz", "Zoë Müller/../Zoë Müller/flair.nii.gz", "flair.nii.gz: this is an image of the case"),
    ],
)
def test_outputs_that_cannot_be(
    tmp_path: Path, model: LoadedModel, case: Case, output: str, uncertainty: str | None, fault: str
) -> None:
    before = {path: path.read_bytes() for path in case.images.values()}

    with pytest.raises(InputError, match=fault):
        segment_to_file(case, model, tmp_path / output, tmp_path / uncertainty if uncertainty else None)

    assert left(tmp_path) == {"Zoë Müller", "model.safetensors"}
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("stop_at", [0.0, 0.5, 0.9, 1.0])
def test_a_cancelled_segmentation_writes_nothing(
    tmp_path: Path, model: LoadedModel, case: Case, stop_at: float
) -> None:
    with pytest.raises(Cancelled):
        segment_to_file(
            case, model, tmp_path / "s.nii.gz", tmp_path / "u.nii.gz", report=lambda done, stage: done >= stop_at
        )

    assert left(tmp_path) == {"Zoë Müller", "model.safetensors"}


@pytest.mark.parametrize("room", [100, 3000])
def test_a_full_disk_leaves_neither_file(tmp_path: Path, model: LoadedModel, case: Case, room: int) -> None:
    """Room for nothing, or for the label map (2.6 kB) but not for the uncertainty."""
    resource = pytest.importorskip("resource", reason="file size limits are POSIX")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(OutOfSpaceError, match="no space left to write it"):
            segment_to_file(case, model, tmp_path / "s.nii", tmp_path / "u.nii")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert left(tmp_path) == {"Zoë Müller", "model.safetensors"}


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, save_nifti: SaveNifti) -> Path:
    for number in range(4):
        image = np.random.default_rng(number).random((12, 12, 12)).astype(np.float32)
        folder = tmp_path / "data" / f"SITE-{number % 2}" / f"P{number}"
        save_nifti(folder / "t1.nii.gz", image)
        save_nifti(folder / "seg.nii.gz", np.where(image > 0.9, 2, 0).astype(np.uint8))
    return tmp_path / "data"


def test_a_model_is_scored_case_by_case_and_site_by_site(data: Path, model: LoadedModel) -> None:
    measured = evaluate(data, model, part="all")

    assert measured["n"] == 4
    assert [(row["case"], row["site"]) for row in measured["cases"]] == [
        ("P0", "SITE-0"),
        ("P1", "SITE-1"),
        ("P2", "SITE-0"),
        ("P3", "SITE-1"),
    ]
    wt = [row["regions"]["WT"]["dice"] for row in measured["cases"]]
    assert measured["summary"]["all"]["WT"]["dice"]["mean"] == pytest.approx(np.mean(wt))
    assert measured["summary"]["sites"]["SITE-1"]["WT"]["dice"]["mean"] == pytest.approx(np.mean(wt[1::2]))
    assert all(math.isnan(row["regions"]["ET"]["sensitivity"]) for row in measured["cases"])  # there is no ET


def test_the_parts_of_the_split_make_up_the_whole(data: Path, model: LoadedModel) -> None:
    parts = [evaluate(data, model, part=name)["cases"] for name in ("train", "validation", "test")]

    assert [len(rows) for rows in parts] == [2, 1, 1]
    assert {row["case"] for rows in parts for row in rows} == {"P0", "P1", "P2", "P3"}


def test_an_empty_part(tmp_path: Path, model: LoadedModel, data: Path, toy: Task) -> None:
    one = data / "SITE-0" / "P0"
    assert len(find_cases(one, toy)) == 1

    with pytest.raises(InputError, match="its test part is empty; use --split all, or add patients"):
        evaluate(one, model, part="test")


def test_an_evaluation_can_be_stopped(data: Path, model: LoadedModel) -> None:
    told = []

    def report(done: float, stage: str) -> bool:
        told.append(stage)
        return len(told) == 2

    with pytest.raises(Cancelled):
        evaluate(data, model, part="all", report=report)

    assert told == ["1 of 4: P0", "2 of 4: P1"]
