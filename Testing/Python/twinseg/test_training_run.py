"""From a folder of labelled cases to a model file, its curve, and a checkpoint to go on from."""

from __future__ import annotations

import logging
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from twinseg.errors import Cancelled, InputError
from twinseg.model_file import load_model, save_model
from twinseg.network import PRESETS, NetworkConfig, build_network
from twinseg.tasks import Sequence, Task
from twinseg.training_run import (
    TrainingRequest,
    commit_of_checkout,
    draw_curve,
    interrupt_between_steps,
    split_file,
    start,
    train,
)

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
    assert model.card.provenance["commit"] is None or re.fullmatch(
        r"[0-9a-f]{40}(-dirty)?", model.card.provenance["commit"]
    )
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


def test_ctrl_c_ends_a_training_between_two_steps(data: Path, task: Task) -> None:
    told = []

    def interrupt(done: float, stage: str) -> None:
        told.append(stage.partition(",")[0])
        if stage.startswith("step 2"):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Cancelled, match="go on with --resume"):
        train(request(data, task), interrupt)

    assert told[-1] == "step 2"
    assert request(data, task).checkpoint.exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait_for_the_step() -> None:
    with interrupt_between_steps() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_thread_and_who_has_a_handler_of_their_own_are_left_alone() -> None:
    entered = []

    def enter() -> None:
        with interrupt_between_steps() as interrupted:
            entered.append((interrupted(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        enter()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    assert entered == [(False, signal.default_int_handler), (False, signal.SIG_IGN)]


def test_stopping_after_the_last_step_is_no_stop(data: Path, task: Task) -> None:
    train(request(data, task), lambda done, stage: stage.startswith("step") and done >= 1)

    assert request(data, task).output.exists()
    assert not request(data, task).checkpoint.exists()


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

    network, card = start(child)
    train(child)

    assert card is not None
    assert card.hash == measured["model_hash"] == load_model(child.output).card.provenance["parent"]
    stored = load_model(parent.output).tensors
    assert all(torch.equal(tensor, stored[name]) for name, tensor in network.state_dict().items())


def test_a_parent_of_another_spacing_is_said_in_one_line(
    tmp_path: Path, data: Path, task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    config = NetworkConfig(2, 3, (8, 8, 8, 8), task.strides, embedding=24, depth=1, heads=2)
    path = saved(tmp_path / "coarse.safetensors", config, replace(task, spacing=(1.0, 2.0, 2.5)))

    train(request(data, task, init=path, epochs=1))

    lines = [record.getMessage() for record in caplog.records if record.name == "twinseg.training_run"]
    assert lines == [f"{path} was trained at a spacing of 1 × 2 × 2.5 mm; this training is at 1 × 1 × 1 mm"]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 1.04)])
def test_a_parent_of_the_same_spacing_needs_no_word(
    tmp_path: Path, data: Path, task: Task, spacing: tuple, caplog: pytest.LogCaptureFixture
) -> None:
    config = NetworkConfig(2, 3, (8, 8, 8, 8), task.strides, embedding=24, depth=1, heads=2)
    path = saved(tmp_path / "parent.safetensors", config, replace(task, spacing=spacing))

    with caplog.at_level(logging.WARNING, "twinseg"):
        train(request(data, task, init=path, epochs=1))

    assert not [record for record in caplog.records if record.name == "twinseg.training_run"]


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


# --- the commit in the provenance ------------------------------------------------------------------------------------


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", "-C", folder, *who, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not on this machine")
def test_the_commit_is_that_of_the_library_s_own_checkout(tmp_path: Path) -> None:
    library = tmp_path / "repo" / "site-packages" / "twinseg"
    library.mkdir(parents=True)
    (source := library / "training_run.py").write_text("# the library\n")
    (tmp_path / "repo" / "notes.txt").write_text("somebody else's\n")
    assert commit_of_checkout(source) is None

    git(tmp_path / "repo", "init", "-q")
    git(tmp_path / "repo", "add", "notes.txt")
    git(tmp_path / "repo", "commit", "-q", "-m", "without the library")
    assert commit_of_checkout(source) is None  # installed inside another repository

    git(library, "add", ".")
    git(library, "commit", "-q", "-m", "with the library")
    (tmp_path / "repo" / "model.safetensors").write_text("what users leave about")
    assert commit_of_checkout(source) == git(library, "rev-parse", "HEAD")

    source.write_text("# changed\n")
    assert commit_of_checkout(source) == git(library, "rev-parse", "HEAD") + "-dirty"


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert commit_of_checkout(Path(__file__)) is None


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
        [{"step": n, "seconds": n * 2.0, "loss": 1 / n, "score": n / 9} for n in range(1, 8)],
    ],
)
def test_the_curve_is_a_picture(tmp_path: Path, toy: Task, history: list) -> None:
    draw_curve(tmp_path / "curve.png", history, toy.title, "validation Dice")

    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)
