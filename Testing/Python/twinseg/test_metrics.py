"""Metrics against values worked out by hand, against MONAI on the whole grid, and where they are undefined."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, get_confusion_matrix

from twinseg.errors import InputError
from twinseg.metrics import classification_metrics, dice, segmentation_metrics, summarize
from twinseg.tasks import Label, Region, Sequence, Task

TASK = Task(
    name="toy",
    title="Nested tumour regions",
    kind="segmentation",
    modality="MR",
    sequences=(Sequence("t1", "T1"),),
    spacing=(1.0, 1.0, 1.0),
    patch=(32, 32, 32),
    labels=tuple(Label(value, name, name, (255, 0, 0)) for value, name in ((1, "NCR"), (2, "ED"), (3, "ET"))),
    regions=(Region("WT", "", (1, 2, 3)), Region("TC", "", (1, 3)), Region("ET", "", (3,))),
    strides=((2, 2, 2),),
)


def label_map(shape: tuple[int, int, int], **boxes: tuple[slice, ...]) -> np.ndarray:
    """A label map with a box for each label, named label1, label2, label3."""
    array = np.zeros(shape, np.uint8)
    for name, box in boxes.items():
        array[box] = int(name.removeprefix("label"))
    return array


def test_two_cubes_by_hand() -> None:
    # Two cubes of 4x4x4 voxels, one moved by 2 voxels along X: 32 voxels in common, 32 in each alone.
    prediction = label_map((20, 10, 10), label3=np.s_[4:8, 2:6, 2:6])
    reference = label_map((20, 10, 10), label3=np.s_[6:10, 2:6, 2:6])

    region = segmentation_metrics(prediction, reference, TASK, (1.5, 1.0, 2.0))["ET"]

    assert region["dice"] == pytest.approx(2 * 32 / (64 + 64))
    assert region["iou"] == pytest.approx(32 / 96)
    assert region["sensitivity"] == region["recall"] == pytest.approx(32 / 64)
    assert region["precision"] == pytest.approx(32 / 64)
    assert region["specificity"] == pytest.approx((2000 - 96) / (2000 - 64))
    assert region["prediction_ml"] == pytest.approx(64 * 3 / 1000)
    assert region["difference_ml"] == 0
    # 16 of a cube's 56 surface voxels lie on the far face, 2 voxels or 3 mm away: far more than 5 %.
    assert region["hd95"] == pytest.approx(3.0)


def test_hd95_takes_each_axis_spacing_and_forgives_one_voxel_in_twenty() -> None:
    # A rod of 100 voxels (all of them surface) and the same with 4 voxels moved 7 slices of 3 mm away: 4 % of the
    # surface, which the 95th percentile leaves out; with 10 voxels moved it does not.
    reference = label_map((100, 3, 12), label3=np.s_[:, 1, 1])
    few, many = reference.copy(), reference.copy()
    for array, moved in ((few, 4), (many, 10)):
        array[:moved, 1, 1], array[:moved, 1, 8] = 0, 3

    distance = {
        name: segmentation_metrics(array, reference, TASK, (1.0, 1.0, 3.0))["ET"]["hd95"]
        for name, array in {"few": few, "many": many}.items()
    }

    assert distance["few"] == pytest.approx(0.0)
    # From the prediction 10 of 100 voxels are 21 mm away; from the reference ten are 10, 9 … 1 mm away along X.
    assert distance["many"] == pytest.approx(21.0)


def test_regions_nest_as_the_task_says() -> None:
    boxes = {"label2": np.s_[1:9, 1:9, 1:9], "label1": np.s_[2:7, 2:7, 2:7], "label3": np.s_[3:5, 3:5, 3:5]}
    reference = label_map((12, 12, 12), **boxes)
    prediction = np.where(reference == 3, 1, reference).astype(np.uint8)  # the enhancing part is called necrosis

    regions = segmentation_metrics(prediction, reference, TASK, (1, 1, 1))

    assert [regions[name]["dice"] for name in ("WT", "TC", "ET")] == [1.0, 1.0, 0.0]
    assert [regions[name]["reference_ml"] for name in ("WT", "TC", "ET")] == [0.512, 0.125, 0.008]


def test_empty_regions_follow_brats() -> None:
    empty = np.zeros((240, 240, 155), np.uint8)
    some = label_map(empty.shape, label3=np.s_[100:102, 100, 100])

    both = segmentation_metrics(empty, empty, TASK, (1, 1, 1))["ET"]
    invented = segmentation_metrics(some, empty, TASK, (1, 1, 1))["ET"]
    missed = segmentation_metrics(empty, some, TASK, (1, 1, 1))["ET"]

    assert (both["dice"], both["iou"], both["hd95"], both["specificity"]) == (1, 1, 0, 1)
    assert math.isnan(both["sensitivity"])
    assert math.isnan(both["precision"])
    assert (invented["dice"], invented["iou"], invented["precision"]) == (0, 0, 0)
    assert invented["hd95"] == missed["hd95"] == pytest.approx(373.12866)  # as the BraTS 2020 evaluation gave it
    assert math.isnan(invented["sensitivity"])
    assert (missed["dice"], missed["sensitivity"], missed["recall"]) == (0, 0, 0)
    assert math.isnan(missed["precision"])


def test_an_empty_case_has_the_diagonal_of_its_own_grid_in_mm() -> None:
    reference = label_map((3, 4, 6), label3=np.s_[0, 0, 0])

    assert segmentation_metrics(np.zeros_like(reference), reference, TASK, (1, 1, 2))["ET"]["hd95"] == 13.0  # 3, 4, 12


masks = arrays(np.uint8, (9, 8, 7), elements=st.sampled_from([0, 0, 0, 0, 3]))


@settings(deadline=None, max_examples=40)
@given(masks, masks, st.tuples(*[st.floats(0.5, 5)] * 3))
def test_every_overlap_and_the_crop_agree_with_monai_on_the_whole_grid(prediction, reference, spacing) -> None:
    p, r = (torch.from_numpy(array == 3)[None, None].float() for array in (prediction, reference))
    if not p.any() or not r.any():
        return

    ours = segmentation_metrics(prediction, reference, TASK, spacing)["ET"]

    tp, fp, tn, fn = get_confusion_matrix(p, r)[0, 0].tolist()
    assert ours["dice"] == pytest.approx(compute_dice(p, r).item())
    assert ours["iou"] == pytest.approx(compute_iou(p, r).item())
    assert ours["sensitivity"] == pytest.approx(tp / (tp + fn))
    assert ours["specificity"] == pytest.approx(tn / (tn + fp) if tn + fp else math.nan, nan_ok=True)
    assert ours["precision"] == pytest.approx(tp / (tp + fp))
    uncropped = compute_hausdorff_distance(p, r, include_background=True, percentile=95, spacing=spacing)
    assert ours["hd95"] == pytest.approx(uncropped.item())


@settings(deadline=None, max_examples=20)
@given(masks, masks)
def test_distance_is_symmetric_and_a_copy_is_perfect(prediction, reference) -> None:
    there = segmentation_metrics(prediction, reference, TASK, (1, 1, 3))["WT"]
    back = segmentation_metrics(reference, prediction, TASK, (1, 1, 3))["WT"]
    same = segmentation_metrics(reference, reference, TASK, (1, 1, 3))["WT"]

    assert there["hd95"] == back["hd95"]
    assert there["dice"] == back["dice"] == dice(prediction == 3, reference == 3)
    assert (same["dice"], same["hd95"], same["difference_ml"]) == (1, 0, 0)


def test_label_maps_on_different_grids_are_refused() -> None:
    with pytest.raises(InputError, match="resample"):
        segmentation_metrics(np.zeros((4, 4, 4), int), np.zeros((4, 4, 5), int), TASK, (1, 1, 1))
    with pytest.raises(InputError, match="3D"):
        segmentation_metrics(np.zeros((4, 4), int), np.zeros((4, 4), int), TASK, (1, 1, 1))


def test_a_whole_brats_case_takes_under_two_seconds() -> None:
    x, y, z = np.ogrid[:240, :240, :155]
    radius = np.sqrt((x - 100.0) ** 2 + (y - 120.0) ** 2 + (z - 80.0) ** 2)
    reference = np.select([radius < 15, radius < 25, radius < 40], [1, 3, 2], 0).astype(np.uint8)
    prediction = np.roll(reference, (4, 3, 2), axis=(0, 1, 2))
    prediction[:3, :3, :3] = 3  # a false positive in the far corner makes the box the whole brain's
    segmentation_metrics(prediction[:50], reference[:50], TASK, (1, 1, 1))  # imports MONAI
    start = time.process_time()

    segmentation_metrics(prediction, reference, TASK, (1, 1, 1))

    assert time.process_time() - start < 2


def test_summary_leaves_undefined_values_out_and_tells_how_many_count() -> None:
    nan = float("nan")
    cases = [
        {"site": "CS", "regions": {"WT": {"dice": 0.9, "sensitivity": 0.8}}},
        {"site": "CS", "regions": {"WT": {"dice": 0.7, "sensitivity": nan}}},
        {"site": "DU", "regions": {"WT": {"dice": 0.2, "sensitivity": nan}}},
        {"site": None, "regions": {"WT": {"dice": 0.2, "sensitivity": 0.4}}},
    ]

    summary = summarize(cases)

    overall = summary["all"]["WT"]
    assert overall["dice"]["mean"] == pytest.approx(0.5)
    assert overall["dice"]["median"] == pytest.approx(0.45)
    assert overall["dice"]["sd"] == pytest.approx(math.sqrt((0.16 + 0.04 + 0.09 + 0.09) / 3))
    assert overall["dice"]["n"] == 4
    assert overall["sensitivity"]["mean"] == pytest.approx(0.6)
    assert overall["sensitivity"]["n"] == 2
    assert list(summary["sites"]) == ["CS", "DU"]
    assert summary["sites"]["CS"]["WT"]["dice"]["mean"] == pytest.approx(0.8)
    assert summary["sites"]["DU"]["WT"]["sensitivity"]["n"] == 0
    assert math.isnan(summary["sites"]["DU"]["WT"]["sensitivity"]["mean"])
    assert math.isnan(summary["sites"]["DU"]["WT"]["dice"]["sd"])


def test_summary_of_nothing() -> None:
    assert summarize([]) == {"all": {}, "sites": {}}


def test_classification_by_hand() -> None:
    #             target: a a a a b b b c c c
    target, predicted = [0] * 4 + [1] * 3 + [2] * 3, [0, 0, 0, 1, 1, 1, 0, 2, 0, 1]

    measured = classification_metrics(predicted, target, ["a", "b", "c"])

    assert measured["confusion"] == [[3, 1, 0], [1, 2, 0], [1, 1, 1]]
    assert measured["accuracy"] == pytest.approx(0.6)
    assert measured["classes"]["a"] == pytest.approx({"precision": 3 / 5, "recall": 3 / 4, "f1": 6 / 9, "n": 4})
    assert measured["classes"]["b"] == pytest.approx({"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "n": 3})
    assert measured["classes"]["c"] == pytest.approx({"precision": 1, "recall": 1 / 3, "f1": 2 / 4, "n": 3})
    assert measured["macro"]["precision"] == pytest.approx((3 / 5 + 2 / 4 + 1) / 3)
    assert measured["macro"]["recall"] == pytest.approx((3 / 4 + 2 / 3 + 1 / 3) / 3)
    assert measured["macro"]["f1"] == pytest.approx((6 / 9 + 4 / 7 + 2 / 4) / 3)


def test_a_class_that_is_never_predicted_counts_zero_and_one_that_never_occurs_does_not_count() -> None:
    measured = classification_metrics(np.array([0, 0, 0]), np.array([0, 0, 1]), ["a", "never predicted", "absent"])

    assert measured["classes"]["never predicted"] == {"precision": 0, "recall": 0, "f1": 0, "n": 1}
    assert math.isnan(measured["classes"]["absent"]["f1"])
    assert measured["macro"]["precision"] == pytest.approx((2 / 3 + 0) / 2)
    assert measured["macro"]["recall"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("predicted", "target"), [([], []), ([0, 1], [0]), ([0, 3], [0, 1]), ([0, -1], [0, 1]), ([0.5, 1.0], [0, 1])]
)
def test_unusable_classes_are_refused(predicted, target) -> None:
    with pytest.raises(InputError):
        classification_metrics(predicted, target, ["a", "b", "c"])


def test_volumes_on_a_tilted_grid_are_by_the_voxel_s_own_volume() -> None:
    reference = np.zeros((4, 4, 4), int)
    reference[1:3, 1:3, 1:3] = 3

    tilted = segmentation_metrics(reference, reference, TASK, (1, 1, 5), voxel_ml=0.0045)["ET"]

    assert tilted["reference_ml"] == pytest.approx(8 * 0.0045)
    assert segmentation_metrics(reference, reference, TASK, (1, 1, 5))["ET"]["reference_ml"] == pytest.approx(8 * 0.005)
