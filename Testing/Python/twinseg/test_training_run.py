"""From a folder of labelled cases to a model file, its curve, and a checkpoint to go on from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from twinseg.cases import find_cases
from twinseg.errors import Cancelled, InputError
from twinseg.model_file import load_model, save_model
from twinseg.network import PRESETS, NetworkConfig, build_network
from twinseg.tasks import Sequence, Task, load_task
from twinseg.training_run import TrainingRequest, draw_curve, fit_to_data, split_file, start, train

SaveNifti = Callable[..., Path]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def small_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller than the real one by far."""
    monkeypatch.setitem(PRESETS, "small", {"channels": (8, 8, 8, 8), "embedding": 24, "depth": 1, "heads": 2})


@pytest.fixture(scope="session")
def task(toy: Task) -> Task:
    """The toy task with as many strides as the presets have levels."""
    return replace(toy, strides=((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1)))


@pytest.fixture
def data(tmp_path: Path, save_nifti: SaveNifti) -> Path:
    """Four patients of two sites, each with a ball in a head of noise."""
    for number in range(4):
        folder = tmp_path / "data" / f"SITE-{number % 2}" / f"Müller{number}"
        places = np.stack(np.meshgrid(*[np.arange(18)] * 3, indexing="ij"), -1)
        labels = np.where(np.linalg.norm(places - (7 + number), axis=-1) < 4, 2, 0).astype(np.uint8)
        image = np.random.default_rng(number).normal(10, 1, labels.shape).astype(np.float32) + 3 * labels
        save_nifti(folder / "t1.nii.gz", image)
        save_nifti(folder / "flair.nii.gz", 2 * image)
        save_nifti(folder / "seg.nii.gz", labels)
    return tmp_path / "data"


def request(data: Path, task: Task, **changes) -> TrainingRequest:
    return TrainingRequest(data, task, data.parent / "model.safetensors", **{"epochs": 2, **changes})


# --- training --------------------------------------------------------------------------------------------------------


def test_a_model_its_curve_and_its_measures(data: Path, task: Task) -> None:
    wanted = request(data, task, seed=3)

    measured = train(wanted)

    model = load_model(wanted.output, expected_task=task)
    assert model.card.hash == measured["model_hash"]
    assert model.card.task == task
    assert model.card.parameters == measured["parameters"]
    assert measured["steps"] == 4
    assert 0 <= measured["validation_dice"] <= 1
    assert measured["cases"] == {"train": 2, "validation": 1, "test": 1}
    assert model.card.provenance["metrics"]["steps"] == 4
    assert (model.card.provenance["seed"], model.card.provenance["parent"]) == (3, None)
    assert wanted.curve.read_bytes().startswith(PNG)
    assert not wanted.checkpoint.exists()
    assert (data / "splits.json").exists()


def test_no_patient_is_named_in_the_model(data: Path, task: Task) -> None:
    wanted = request(data, task, epochs=1)

    train(wanted)

    assert "Müller".encode() not in wanted.output.read_bytes()
    assert b"SITE-0" not in wanted.output.read_bytes()


def test_the_same_seed_gives_the_same_model(data: Path, task: Task) -> None:
    one, again, other = (
        replace(request(data, task, seed=seed), output=data / f"{name}.safetensors")
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    )

    for wanted in (one, again, other):
        train(wanted)

    tensors = [load_model(wanted.output).tensors for wanted in (one, again, other)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert not all(torch.equal(tensors[0][name], tensors[2][name]) for name in tensors[0])


def test_a_stopped_training_goes_on_from_its_checkpoint(data: Path, task: Task) -> None:
    whole = request(data, task)
    train(whole)
    halved = replace(whole, output=data.parent / "halved.safetensors")

    with pytest.raises(Cancelled, match=r"go on with --resume \(checkpoint .*halved\.checkpoint\)"):
        train(halved, lambda done, stage: done >= 0.5)
    assert halved.checkpoint.exists()
    assert not halved.output.exists()
    train(replace(halved, resume=True))

    assert not halved.checkpoint.exists()
    ours, theirs = load_model(halved.output).tensors, load_model(whole.output).tensors
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_ctrl_c_leaves_a_checkpoint(data: Path, task: Task) -> None:
    def interrupt(done: float, stage: str) -> None:
        if done >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(Cancelled, match="go on with --resume"):
        train(request(data, task), interrupt)

    assert request(data, task).checkpoint.exists()


def test_stopping_while_the_cases_are_read(data: Path, task: Task) -> None:
    told = []

    def report(done: float, stage: str) -> bool:
        told.append(stage)
        return True

    with pytest.raises(Cancelled):
        train(request(data, task), report)

    assert len(told) == 1
    assert told[0].startswith("reading ")


# --- starting from a model -------------------------------------------------------------------------------------------


def test_a_training_goes_on_from_another_model(data: Path, task: Task) -> None:
    parent = request(data, task, epochs=1)
    measured = train(parent)
    child = replace(parent, init=parent.output, output=data.parent / "child.safetensors")

    network, parent_hash = start(child)
    train(child)

    assert parent_hash == measured["model_hash"] == load_model(child.output).card.provenance["parent"]
    stored = load_model(parent.output).tensors
    assert all(torch.equal(tensor, stored[name]) for name, tensor in network.state_dict().items())


def test_a_parent_keeps_its_own_architecture(tmp_path: Path, data: Path, task: Task) -> None:
    config = NetworkConfig(2, 3, (8, 8, 8, 8), task.strides, embedding=24, depth=1, heads=2, variant="cnn")
    path = saved(tmp_path / "cnn.safetensors", config, task)

    network, _ = start(request(data, task, init=path))

    assert network.config == config


def test_a_parent_with_fewer_sequences_gives_all_but_the_first_layer(tmp_path: Path, data: Path, task: Task) -> None:
    config = NetworkConfig(1, 3, (8, 8, 8, 8), task.strides, embedding=24, depth=1, heads=2)
    path = saved(tmp_path / "one.safetensors", config, replace(task, sequences=task.sequences[:1]))

    network, _ = start(request(data, task, init=path))

    assert (network.config.in_channels, network.config.out_channels) == (2, 3)
    assert network(torch.randn(1, 2, 8, 8, 8))[0].shape == (3, 8, 8, 8)
    assert torch.equal(network.patches.weight, load_model(path).tensors["patches.weight"])


def saved(path: Path, config: NetworkConfig, task: Task) -> Path:
    save_model(path, build_network(config).state_dict(), task=task, network=config.to_dict(), provenance={})
    return path


def test_a_parent_that_is_too_different(tmp_path: Path, data: Path, task: Task) -> None:
    config = NetworkConfig(2, 3, (4, 4, 4, 4), task.strides, embedding=24, depth=1, heads=2)
    path = saved(tmp_path / "other.safetensors", config, replace(task, name="another"))

    with pytest.raises(InputError, match=r"other\.safetensors: its network is too different to start from"):
        start(request(data, task, init=path))


# --- told before the work begins -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        ("model.pt", "a model file ends in .safetensors"),
        ("nowhere/model.safetensors", "its folder does not exist; make it first"),
        ("folder.safetensors", "it cannot be written"),
    ],
)
def test_an_output_that_cannot_be_is_told_before_anything_is_read(
    tmp_path: Path, task: Task, output: str, fault: str
) -> None:
    (tmp_path / "folder.safetensors").mkdir()

    with pytest.raises(InputError, match=fault) as error:
        train(TrainingRequest(tmp_path / "no data here", task, tmp_path / output, epochs=1))

    assert str(error.value).startswith(str(tmp_path / output))


@pytest.mark.parametrize("init", [False, True])
def test_an_unknown_preset(tmp_path: Path, data: Path, task: Task, init: bool) -> None:
    config = NetworkConfig(2, 3, (8, 8, 8, 8), task.strides, embedding=24, depth=1, heads=2)
    parent = saved(tmp_path / "parent.safetensors", config, task) if init else None

    with pytest.raises(InputError, match="'huge' is unknown"):
        train(request(data, task, preset="huge", init=parent))


# --- fitting the task to the data ------------------------------------------------------------------------------------


def cases_of(folder: Path, save_nifti: SaveNifti, task: Task, *spacings: tuple[float, float, float]):
    for number, spacing in enumerate(spacings):
        save_nifti(folder / f"P{number}" / "t1.nii.gz", affine=np.diag([*spacing, 1]))
        save_nifti(folder / f"P{number}" / "flair.nii.gz", affine=np.diag([9.0, 9, 9, 1]))
    return find_cases(folder, task)


@pytest.mark.parametrize(
    ("spacing", "fitted", "patch"),
    [
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (16, 16, 16)),
        ((0.5, 0.7, 0.9), (1.0, 1.0, 1.0), (16, 16, 16)),  # finer data: as asked
        ((1.04, 1.0, 1.0), (1.0, 1.0, 1.0), (16, 16, 16)),  # within the tolerance
        ((2.0, 2.0, 2.0), (2.0, 2.0, 2.0), (8, 8, 8)),
        ((0.5, 1.0, 5.0), (1.0, 1.0, 5.0), (16, 16, 4)),
        ((3.0, 1.2, 1.0), (3.0, 1.2, 1.0), (8, 16, 16)),
        ((90.0, 90.0, 90.0), (90.0, 90.0, 90.0), (4, 4, 4)),
    ],
)
def test_coarse_data_give_a_coarse_task_and_fine_data_the_one_that_was_asked_for(
    tmp_path: Path, save_nifti: SaveNifti, toy: Task, spacing: tuple, fitted: tuple, patch: tuple
) -> None:
    made = fit_to_data(toy, cases_of(tmp_path, save_nifti, toy, spacing))

    assert made == replace(toy, spacing=fitted, patch=patch)


def test_most_of_the_images_decide(tmp_path: Path, save_nifti: SaveNifti, toy: Task) -> None:
    cases = cases_of(tmp_path, save_nifti, toy, (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (2.0, 2.0, 2.0))

    assert fit_to_data(toy, cases).spacing == (2.0, 2.0, 2.0)


def test_axes_are_taken_in_ras_order(tmp_path: Path, save_nifti: SaveNifti, toy: Task) -> None:
    sagittal = np.array([[0, 0, -5.0, 0], [1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
    save_nifti(tmp_path / "P" / "t1.nii.gz", affine=sagittal)

    assert fit_to_data(toy, find_cases(tmp_path, toy)).spacing == (5.0, 1.0, 2.0)


def test_a_task_with_an_uneven_spacing_stays_as_it_is(tmp_path: Path, save_nifti: SaveNifti, toy: Task) -> None:
    third = replace(toy, spacing=(1 / 3, 2 / 3, 1.0))

    assert fit_to_data(third, cases_of(tmp_path, save_nifti, toy, (0.3, 0.3, 0.3))) == third


@pytest.mark.parametrize("name", ["brats-glioma", "lgg-flair", "lits-liver", "acdc-cardiac"])
def test_a_fitted_task_is_still_a_task(tmp_path: Path, save_nifti: SaveNifti, name: str) -> None:
    task = load_task(name)
    save_nifti(tmp_path / "P" / f"{task.sequences[0].name}.nii.gz", affine=np.diag([3.3, 2.7, 7.1, 1]))

    made = fit_to_data(task, find_cases(tmp_path, task))

    assert Task.from_toml(made.to_toml()) == made
    assert made.spacing == (3.3, 2.7, max(7.1, task.spacing[2]))


# --- the split, the curve --------------------------------------------------------------------------------------------


def test_the_split_of_data_that_may_not_be_written_to_is_kept_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINSEG_HOME", str(tmp_path / "home"))
    (tmp_path / "data").mkdir(mode=0o555)

    file = split_file(tmp_path / "data")

    assert file.parent == tmp_path / "home" / "splits"
    assert file.name.startswith("data-")
    assert split_file(tmp_path / "data") == file


def test_a_split_that_is_there_is_used_even_where_it_may_not_be_changed(tmp_path: Path) -> None:
    (tmp_path / "splits.json").write_text("{}")
    tmp_path.chmod(0o555)

    assert split_file(tmp_path) == tmp_path / "splits.json"


def test_a_task_of_other_sequences_does_not_fit_the_data(data: Path, task: Task) -> None:
    other = replace(task, sequences=(Sequence("dwi", "DWI"),))

    with pytest.raises(InputError, match="but no dwi"):
        train(request(data, other))


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"step": 1, "seconds": 2.0, "loss": 0.9}],
        [{"step": n, "seconds": n * 2.0, "loss": 1 / n, "validation_dice": n / 9} for n in range(1, 8)],
    ],
)
def test_the_curve_is_a_picture(tmp_path: Path, toy: Task, history: list) -> None:
    draw_curve(tmp_path / "curve.png", history, toy)

    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)
