"""The model that a federation begins with: random, or with what another model knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinfed.client.initial_model import task_of, write_initial_model
from twinseg.errors import InputError
from twinseg.model_file import load_model

NETWORK = {"channels": [4, 8, 8, 8], "embedding": 24, "depth": 2, "heads": 2}


def test_weights_of_a_model_of_another_task_are_taken_where_they_fit(tmp_path: Path, read: Any) -> None:
    glioma, lower_grade = (task_of(name, {"patch": 32}) for name in ("brats-glioma", "lgg-flair"))
    strides = {"strides": [list(stride) for stride in lower_grade.strides]}
    parent = write_initial_model(tmp_path / "parent.safetensors", glioma, {**NETWORK, **strides}, seed=1)
    write_initial_model(tmp_path / "random.safetensors", lower_grade, {**NETWORK, **strides}, seed=2)

    write_initial_model(
        tmp_path / "own.safetensors", lower_grade, {**NETWORK, **strides}, 2, tmp_path / "parent.safetensors"
    )

    own, random, first = (read(tmp_path / f"{name}.safetensors") for name in ("own", "random", "parent"))
    taken = [name for name in own if own[name].shape == first[name].shape and np.array_equal(own[name], first[name])]
    left = [name for name in own if np.array_equal(own[name], random[name]) and name not in taken]
    assert len(taken) > 0.9 * len(own)
    assert left == []
    np.testing.assert_array_equal(own["heads.0.weight"], first["heads.0.weight"][[0, 2]])  # the tumour is oedema's
    sequences = [sequence.name for sequence in glioma.sequences]
    for channel, sequence in enumerate(lower_grade.sequences):
        np.testing.assert_array_equal(
            own["stem.convolution.weight"][:, channel],
            first["stem.convolution.weight"][:, sequences.index(sequence.name)],
        )
    assert load_model(tmp_path / "own.safetensors").card.provenance["parent"] == parent


def test_a_model_that_fits_nowhere_is_refused(tmp_path: Path) -> None:
    task = task_of("brats-glioma", {"patch": 32})
    write_initial_model(tmp_path / "parent.safetensors", task, NETWORK)

    with pytest.raises(InputError, match="too different to start from"):
        write_initial_model(
            tmp_path / "own.safetensors", task, {**NETWORK, "embedding": 96}, 0, tmp_path / "parent.safetensors"
        )


def test_a_classifier_keeps_what_another_one_learned_but_for_its_last_layer(tmp_path: Path, read: Any) -> None:
    task = task_of("chest-ct-cancer", {"patch": [64, 64, 1]})
    others = replace(task, classes=task.classes[:3])
    parent = write_initial_model(tmp_path / "parent.safetensors", others, seed=1)

    write_initial_model(tmp_path / "own.safetensors", task, seed=2, init=tmp_path / "parent.safetensors")

    own, first = (read(tmp_path / f"{name}.safetensors") for name in ("own", "parent"))
    differing = {name for name in own if not np.array_equal(own[name], first[name])}
    assert differing == {"class_layers.out.weight", "class_layers.out.bias"}
    assert load_model(tmp_path / "own.safetensors").card.provenance["parent"] == parent


def test_the_command_writes_a_model_for_a_task_file(tmp_path: Path, twinfed: Any) -> None:
    model, task = tmp_path / "first.safetensors", tmp_path / "coarse.toml"
    task.write_text(task_of("brats-glioma", {"spacing": 5.0, "patch": 32}).to_toml(), encoding="utf-8")

    words = ("initial", model, "--task", task, "--preset", "tiny")
    assert twinfed(*words, log=tmp_path / "log").wait(timeout=120) == 0

    loaded = load_model(model)
    assert (loaded.card.task.spacing, loaded.card.task.patch) == ((5.0, 5.0, 5.0), (32, 32, 32))
    assert loaded.card.hash in (tmp_path / "log").read_text()


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path, twinfed: Any) -> None:
    words = ("--task", "brats-glioma", "--preset", "huge")

    assert twinfed("initial", tmp_path / "first.safetensors", *words, log=tmp_path / "log").wait(timeout=120) == 2

    (said,) = (tmp_path / "log").read_text().splitlines()
    assert "'huge' is unknown; use one of tiny, small, base" in said
    assert not (tmp_path / "first.safetensors").exists()
