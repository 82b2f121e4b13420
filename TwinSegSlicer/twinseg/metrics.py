"""Metrics: how well a prediction agrees with a reference, for one case and over many.

Where something is undefined (as BraTS has it for Dice and HD95; Isensee et al. 2021, "nnU-Net for Brain Tumor
Segmentation", BrainLes 2020, for the value of HD95):

======================  ====  ===  =======================  ===========  =========
the region is empty in  Dice  IoU  HD95                     sensitivity  precision
======================  ====  ===  =======================  ===========  =========
both                    1     1    0 mm                     NaN          NaN
the reference alone     0     0    image's diagonal, in mm  NaN          0
the prediction alone    0     0    image's diagonal, in mm  0            NaN
======================  ====  ===  =======================  ===========  =========

The diagonal is that of the whole grid, √Σ(shape·spacing)²: 373.13 mm on the BraTS grid of 240×240×155 at 1 mm.
A NaN means that no voxel could have been right; `summarize` leaves NaN out of every mean and counts the rest in n.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twinseg.errors import InputError
from twinseg.tasks import Task

Metrics = dict[str, float]


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Dice (1945) of two masks of the same shape, 2|P ∩ R| / (|P| + |R|); 1 where both are empty."""
    both = int(np.count_nonzero(prediction & reference))
    return _ratio(2 * both, int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference)), empty=1.0)


def segmentation_metrics(
    prediction: np.ndarray,
    reference: np.ndarray,
    task: Task,
    spacing: Sequence[float],
    voxel_ml: float | None = None,
) -> dict[str, Metrics]:
    """Compare two label maps region by region.

    With TP, FP, FN, TN the voxels of the region in both, in the prediction alone, in the reference alone, in neither:

    - ``dice`` = 2TP / (2TP + FP + FN), ``iou`` = TP / (TP + FP + FN)
    - ``hd95`` in mm: the larger of the two directed 95th percentiles of the distances from the surface voxels of one
      to the nearest surface voxel of the other (MONAI's ``compute_hausdorff_distance``)
    - ``sensitivity`` = ``recall`` = TP / (TP + FN), ``specificity`` = TN / (TN + FP), ``precision`` = TP / (TP + FP)
    - ``prediction_ml``, ``reference_ml`` and ``difference_ml`` (prediction − reference) in millilitres

    Args:
        prediction, reference: label maps (X, Y, Z) of whole numbers on the same grid.
        task: its regions say which labels are scored together.
        spacing: mm between voxels along X, Y, Z.
        voxel_ml: volume of a voxel in mL, for a grid whose axes are not at right angles (a tilted gantry); else None.

    Returns:
        region name -> metric -> value; the module's docstring defines them for empty regions.

    Raises:
        InputError: the label maps are not on one 3D grid.
    """
    if prediction.shape != reference.shape or prediction.ndim != 3:
        raise InputError(
            f"Prediction {prediction.shape} and reference {reference.shape} are not label maps on one 3D grid: "
            "resample the prediction to the reference."
        )
    millilitres = float(np.prod(spacing)) / 1000 if voxel_ml is None else voxel_ml
    return {
        region.name: _region_metrics(
            np.isin(prediction, region.labels), np.isin(reference, region.labels), spacing, millilitres
        )
        for region in task.regions
    }


def summarize(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, SD, median and n of every metric by region, over all cases and for each site.

    Args:
        cases: one mapping a case with ``regions`` (what `segmentation_metrics` gave) and, if known, ``site``.

    Returns:
        ``{"all": {region: {metric: {"mean", "sd", "median", "n"}}}, "sites": {site: the same}}``. The SD is that of a
        sample (n − 1; NaN for one case). n counts the cases where the metric is defined; with none, all are NaN.
    """
    sites = sorted({case["site"] for case in cases if case.get("site")})
    return {
        "all": _by_region([case["regions"] for case in cases]),
        "sites": {site: _by_region([case["regions"] for case in cases if case.get("site") == site]) for site in sites},
    }


def classification_metrics(
    predicted: Sequence[int] | np.ndarray, target: Sequence[int] | np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Accuracy, and precision, recall and F1 = 2TP / (2TP + FP + FN) of each class and their unweighted (macro) mean.

    A class that occurs is scored 0 where a ratio would be 0/0 (never predicted: precision 0). A class that is neither
    predicted nor a target is NaN and left out of the macro means.

    Args:
        predicted, target: class indices (N,).
        classes: the names of the classes, in the order of their indices.

    Returns:
        ``{"accuracy", "n", "classes": {name: {"precision", "recall", "f1", "n"}}, "macro": {"precision", "recall",
        "f1"}, "confusion": rows of counts, targets down, predictions across}``.

    Raises:
        InputError: no cases, different lengths, or an index that no class has.
    """
    predicted, target, count = np.asarray(predicted), np.asarray(target), len(classes)
    if predicted.shape != target.shape or predicted.ndim != 1 or predicted.size == 0:
        raise InputError(f"{predicted.size} predictions and {target.size} targets: give one of each for every case.")
    both = np.concatenate([predicted, target])
    if both.dtype.kind not in "iu" or both.min() < 0 or both.max() >= count:
        raise InputError(f"Class indices must be whole numbers from 0 to {count - 1}: compare them with the task.")
    confusion = np.bincount(target * count + predicted, minlength=count**2).reshape(count, count)
    hits, targets, predictions = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    scores = {
        "precision": _class_ratios(hits, predictions, targets + predictions),
        "recall": _class_ratios(hits, targets, targets + predictions),
        "f1": _class_ratios(2 * hits, targets + predictions, targets + predictions),
    }
    return {
        "accuracy": float(hits.sum() / target.size),
        "n": int(target.size),
        "classes": {
            name: {**{metric: float(values[i]) for metric, values in scores.items()}, "n": int(targets[i])}
            for i, name in enumerate(classes)
        },
        "macro": {metric: float(np.nanmean(values)) for metric, values in scores.items()},
        "confusion": confusion.tolist(),
    }


def _region_metrics(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], millilitres: float
) -> Metrics:
    both = int(np.count_nonzero(prediction & reference))
    predicted, real = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    either = predicted + real - both
    return {
        "dice": dice(prediction, reference),
        "iou": _ratio(both, either, empty=1.0),
        "hd95": _hausdorff95(prediction, reference, spacing),
        "sensitivity": _ratio(both, real),
        "specificity": _ratio(reference.size - either, reference.size - real),
        "precision": _ratio(both, predicted),
        "recall": _ratio(both, real),
        "prediction_ml": predicted * millilitres,
        "reference_ml": real * millilitres,
        "difference_ml": (predicted - real) * millilitres,
    }


def _hausdorff95(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> float:
    if not prediction.any() and not reference.any():
        return 0.0
    if not prediction.any() or not reference.any():
        return float(np.linalg.norm(np.multiply(prediction.shape, spacing)))
    from monai.metrics import compute_hausdorff_distance

    # MONAI takes what lies outside the array for background, so a crop to the two regions changes nothing but the time.
    box = _bounding_box(prediction | reference)
    one, other = prediction[box][None, None], reference[box][None, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of an argument that it passes itself
        distance = compute_hausdorff_distance(
            one, other, include_background=True, percentile=95, spacing=tuple(map(float, spacing))
        )
    return float(distance)


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    inside = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return tuple(slice(int(indices[0]), int(indices[-1]) + 1) for indices in inside)


def _ratio(part: int, whole: int, empty: float = float("nan")) -> float:
    return part / whole if whole else empty


def _class_ratios(part: np.ndarray, whole: np.ndarray, occurrences: np.ndarray) -> np.ndarray:
    return np.where(occurrences > 0, part / np.maximum(whole, 1), np.nan)


def _by_region(cases: list[dict[str, Metrics]]) -> dict[str, dict[str, dict[str, float]]]:
    if not cases:
        return {}
    return {
        region: {metric: _statistics([case[region][metric] for case in cases]) for metric in metrics}
        for region, metrics in cases[0].items()
    }


def _statistics(values: list[float]) -> dict[str, float]:
    defined = np.array([value for value in values if not np.isnan(value)])
    n, nan = len(defined), float("nan")
    return {
        "mean": float(defined.mean()) if n else nan,
        "sd": float(defined.std(ddof=1)) if n > 1 else nan,
        "median": float(np.median(defined)) if n else nan,
        "n": n,
    }
