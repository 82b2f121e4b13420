"""Lesions copied from case to case: image and labels move together, the cases themselves stay."""

from __future__ import annotations

import numpy as np
import pytest

from twinseg.lesion_mixing import change_core, paste_lesion, signed_distance
from twinseg.preprocessing import PreparedCase

LESION_VALUE = 5.0


def case(low: int, high: int, shape: tuple[int, int, int] = (24, 24, 24), **changes: tuple[bool, ...]) -> PreparedCase:
    """A head of zeros with a cube of lesion from `low` to `high`, bright in both sequences."""
    labels = np.zeros(shape, np.uint8)
    labels[low:high, low:high, low:high] = 1
    image = np.stack([labels, labels]).astype(np.float32) * LESION_VALUE
    return PreparedCase("P", None, image, changes.get("present", (True, True)), np.eye(4), labels)


def healthy(shape: tuple[int, int, int] = (24, 24, 24)) -> PreparedCase:
    return case(0, 0, shape)


@pytest.mark.parametrize("seed", range(20))
def test_a_pasted_lesion_brings_its_image_and_its_labels(seed: int) -> None:
    host, donor = healthy((30, 26, 20)), case(8, 16)

    mixed = paste_lesion(host, donor, [1], np.random.default_rng(seed))

    assert mixed.image.shape == host.image.shape
    assert mixed.labels is not None
    assert 0 < mixed.labels.sum() <= 8**3
    assert np.array_equal(mixed.image[0], mixed.labels * LESION_VALUE)
    assert not host.image.any()


def test_the_host_keeps_its_own_lesion_outside_the_pasted_one() -> None:
    host, donor = case(1, 4), case(14, 20)

    mixed = paste_lesion(host, donor, [1], np.random.default_rng(0))

    assert mixed.labels is not None
    assert mixed.labels[1:4, 1:4, 1:4].all()
    assert mixed.labels.sum() > 3**3


def test_a_sequence_that_either_lacks_is_missing_afterwards() -> None:
    mixed = paste_lesion(healthy(), case(8, 16, present=(True, False)), [1], np.random.default_rng(0))

    assert mixed.present == (True, False)


@pytest.mark.parametrize("donor", [healthy(), case(8, 16, present=(False, False))])
def test_without_a_lesion_or_a_common_sequence_the_host_stays(donor: PreparedCase) -> None:
    host = case(2, 6)

    assert paste_lesion(host, donor, [1], np.random.default_rng(0)) is host


def test_a_changed_core_leaves_the_labels_and_all_that_lies_outside() -> None:
    before = case(4, 18, present=(True, False))

    after = change_core(before, [1], np.random.default_rng(1))

    assert after.labels is before.labels
    changed = after.image[0] != before.image[0]
    assert changed.any()
    assert before.labels is not None
    assert before.labels[changed].all()
    assert not changed[4:18, 4, 4].any()  # the border of the lesion
    assert np.array_equal(after.image[1], before.image[1])  # a missing sequence stays missing


def test_signed_distance_is_in_mm_and_negative_inside() -> None:
    mask = np.zeros((9, 9, 5), bool)
    mask[3:6, 3:6, 2:3] = True

    distance = signed_distance(mask, (1.0, 1.0, 4.0))

    assert distance[4, 4, 2] == -2.0  # two voxels from the nearest outside in the plane, 4 mm across it
    assert distance[4, 4, 4] == 8.0
    assert distance[0, 4, 2] == 3.0
