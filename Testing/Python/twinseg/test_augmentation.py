"""Random changes to training samples: never to the cases themselves, never to the labels' values, always repeatable."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.transforms import Compose

from twinseg.augmentation import ChangeIntensity, DropSequences, training_transform
from twinseg.preprocessing import PreparedCase
from twinseg.tasks import Task, load_task
from twinseg.training import RandomCrops, SegmentationConfig

SAMPLES = 40


def noisy_case(shape: tuple[int, int, int] = (16, 16, 16), present: tuple[bool, ...] = (True, True)) -> PreparedCase:
    image = np.random.default_rng(0).normal(size=(len(present), *shape)).astype(np.float32)
    image[~np.array(present)] = 0
    labels = np.zeros(shape, np.uint8)
    labels[4:10, 5:11, 6:12] = 1
    labels[6:8, 7:9, 8:10] = 2
    return PreparedCase("P", None, image, present, np.eye(4), labels)


def crops(task: Task, *cases: PreparedCase, seed: int = 0, drop_probability: float = 0.1) -> RandomCrops:
    return RandomCrops(cases, task, SegmentationConfig(epochs=1, seed=seed, drop_probability=drop_probability))


# --- the cases -------------------------------------------------------------------------------------------------------


def test_the_cases_stay_as_they_are(toy: Task) -> None:
    """A crop is a view of its case: what is drawn into it would stay there for the rest of the training."""
    case = noisy_case()
    image, labels = case.image.copy(), case.labels.copy()
    samples = crops(toy, case, drop_probability=0.5)

    for index in range(SAMPLES):
        samples[index]

    assert np.array_equal(case.image, image)
    assert np.array_equal(case.labels, labels)


@pytest.mark.parametrize("change", [ChangeIntensity(), DropSequences(0.9)])
def test_a_change_leaves_what_it_was_given(change: Callable) -> None:
    image = torch.randn(3, 4, 4, 4)
    before = image.clone()

    changed = change({"image": image, "present": (True, True, True)})

    assert torch.equal(image, before)
    assert not torch.equal(changed["image"], before)


def test_a_sample_depends_on_the_seed_and_its_index_alone(toy: Task) -> None:
    cases = [noisy_case(), noisy_case((20, 18, 24)), noisy_case((12, 30, 16))]
    forwards = [crops(toy, *cases)[index] for index in range(12)]

    np.random.seed(1)  # noqa: NPY002 (it must not matter)
    torch.manual_seed(1)
    again = crops(toy, *cases)
    backwards = [again[index] for index in reversed(range(12))][::-1]
    other = crops(toy, *cases, seed=1)

    for index in range(12):
        assert torch.equal(forwards[index]["image"], backwards[index]["image"])
        assert torch.equal(forwards[index]["labels"], backwards[index]["labels"])
        assert not torch.equal(forwards[index]["image"], other[index]["image"])


def test_every_case_comes_once_an_epoch_in_an_order_of_its_own(toy: Task) -> None:
    taken: list[int] = []

    class Watched(list):
        def __getitem__(self, place):
            taken.append(int(place))
            return super().__getitem__(place)

    samples = RandomCrops(Watched([noisy_case()] * 6), toy, SegmentationConfig(epochs=1))
    for index in range(18):
        samples[index]

    epochs = [taken[start : start + 6] for start in (0, 6, 12)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


# --- shapes and values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 16, 16), (40, 21, 17), (7, 30, 16), (3, 3, 3)])
def test_a_sample_has_the_patch_s_size_and_the_labels_values(toy: Task, shape: tuple[int, int, int]) -> None:
    samples = crops(toy, noisy_case(shape))

    for index in range(SAMPLES):
        sample = samples[index]
        assert sample["image"].shape == (2, 16, 16, 16)
        assert sample["labels"].shape == (1, 16, 16, 16)
        assert sample["image"].isfinite().all()
        assert set(sample["labels"].unique().tolist()) <= {0, 1, 2}


def test_a_healthy_case_is_sampled_without_a_word(toy: Task) -> None:
    samples = crops(toy, replace(noisy_case((20, 20, 20)), labels=np.zeros((20, 20, 20), np.uint8)))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not any(samples[index]["labels"].any() for index in range(5))


def test_image_and_labels_move_together(toy: Task) -> None:
    geometry = Compose(training_transform(replace(toy, patch=(32, 32, 32))).transforms[:-5])
    labels = torch.zeros(1, 40, 40, 40)
    labels[:, 12:26, 14:24, 10:30] = 1
    moved = 0

    for seed in range(12):
        geometry.set_random_state(seed=seed)
        (sample,) = geometry({"image": labels.clone(), "labels": labels.to(torch.uint8), "present": (True,)})
        image, drawn = torch.as_tensor(sample["image"]) > 0.5, torch.as_tensor(sample["labels"]) > 0
        assert 2 * (image & drawn).sum() / (image.sum() + drawn.sum()) > 0.93
        moved += int(drawn.sum() != labels.sum())

    assert moved > 4


@pytest.mark.parametrize("name", ["brats-glioma", "lgg-flair", "lits-liver", "acdc-cardiac"])
def test_every_built_in_task_can_be_trained_on(name: str) -> None:
    task = load_task(name)
    case = noisy_case((20, 30, 10), (True,) * len(task.sequences))
    sample = crops(task, replace(case, labels=np.minimum(case.labels, len(task.labels)).astype(np.uint8)))[0]

    assert sample["image"].shape == (len(task.sequences), *task.patch)


# --- missing sequences -----------------------------------------------------------------------------------------------


def test_a_missing_sequence_stays_zero(toy: Task) -> None:
    samples = crops(toy, noisy_case(present=(False, True)), drop_probability=0.5)

    for index in range(SAMPLES):
        image = samples[index]["image"]
        assert not image[0].any()
        assert image[1].any()


def test_sequences_are_dropped_as_often_as_asked_and_never_all() -> None:
    drop = DropSequences(0.3)
    drop.set_random_state(seed=0)
    ones = torch.ones(4, 1, 1, 1)

    kept = np.array([drop({"image": ones, "present": (True,) * 4})["image"].flatten().numpy() for _ in range(2000)])

    assert kept.mean() == pytest.approx(0.7, abs=0.02)
    assert kept.any(axis=1).all()
    assert {tuple(row) for row in kept.astype(int)} >= {(1, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 1)}


def test_nothing_is_dropped_at_probability_zero() -> None:
    assert DropSequences(0.0)({"image": torch.ones(4, 1, 1, 1), "present": (True,) * 4})["image"].all()


def test_each_sequence_has_an_intensity_of_its_own() -> None:
    image = torch.linspace(-1, 1, 64).reshape(1, 4, 4, 4).repeat(3, 1, 1, 1)
    change = ChangeIntensity(gamma_probability=0)
    change.set_random_state(seed=3)

    changed = change({"image": image})["image"]

    assert not torch.allclose(changed[0], changed[1])
    for channel in changed:  # scale and shift alone: a straight line
        factor = (channel.max() - channel.min()) / 2
        assert 0.75 <= factor <= 1.25
        assert torch.allclose((channel - channel.mean()) / factor, image[0] - image[0].mean(), atol=1e-5)
