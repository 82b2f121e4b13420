"""What the queue takes: images on one grid, and labels of the task on the same grid that are a correction."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from twinseg.errors import InputError
from twinseg.metrics import dice
from twinseg.tasks import Task
from twinseg.volumes import Volume, check_intensities, grids_agree


def check_images(images: Mapping[str, Volume], task: Task) -> None:
    """Raise InputError for no image, for sequences that the task does not know, for images on differing grids, and for
    an image that is constant or holds NaN."""
    known = [sequence.name for sequence in task.sequences]
    if not images:
        raise InputError(f"the case has no image; give at least one of {', '.join(known)}")
    first, reference = next(iter(images.items()))
    for name, image in images.items():
        if name not in known:
            raise InputError(f"{name}: the task {task.name} has no such sequence; it has {', '.join(known)}")
        if not grids_agree(image, reference):
            raise InputError(f"{name}: it lies on another grid than {first}; resample it to that image first")
        check_intensities(Path(name), image.array)


def check_labels(
    labels: Volume, predicted: Volume | None, images: Mapping[str, Volume], task: Task, allow_empty: bool
) -> None:
    """Raise InputError for labels that are off the images' grid, hold values that the task does not know, are empty
    (unless the case is healthy, said on purpose by `allow_empty`) or are what the model had drawn."""
    first, reference = next(iter(images.items()))
    known = [0, *(label.value for label in task.labels)]
    for name, drawn in (("the labels", labels), ("what the model drew", predicted)):
        if drawn is None:
            continue
        if not grids_agree(drawn, reference):
            raise InputError(f"{name}: off the grid of {first} (another shape or place); export them with its geometry")
        if drawn.array.dtype.kind not in "iub" or (unknown := sorted({*np.unique(drawn.array).tolist()} - {*known})):
            found = unknown[0] if drawn.array.dtype.kind in "iub" else drawn.array.dtype
            wanted = ", ".join(f"{label.value} {label.name}" for label in task.labels)
            raise InputError(f"{name}: {found} is no label of {task.name} ({wanted}); relabel the map")
    if not labels.array.any() and not allow_empty:
        raise InputError("the labels are empty; draw the lesion, or say that the case is healthy")
    if predicted is not None and np.array_equal(labels.array, predicted.array):
        raise InputError("the labels are what the model drew, unchanged; correct them before they are submitted")


def measure_change(labels: Volume, predicted: Volume | None, task: Task) -> dict[str, dict[str, float]]:
    """By region: ``corrected_ml``, and where a model had drawn it ``predicted_ml``, their difference ``change_ml``
    (corrected − predicted) and the ``dice`` of both."""
    ml = labels.voxel_ml
    change = {}
    for region in task.regions:
        corrected = np.isin(labels.array, region.labels)
        measured = {"corrected_ml": ml * int(corrected.sum())}
        if predicted is not None:
            drawn = np.isin(predicted.array, region.labels)
            measured["predicted_ml"] = ml * int(drawn.sum())
            measured["change_ml"] = measured["corrected_ml"] - measured["predicted_ml"]
            measured["dice"] = dice(drawn, corrected)
        change[region.name] = {name: round(value, 6) for name, value in measured.items()}
    return change


def content_digest(images: Mapping[str, Volume], task: Task) -> bytes:
    """SHA-256 over the images: the same whenever and in whatever order and number type the same images are given."""
    digest = hashlib.sha256(task.name.encode())
    for name, image in sorted(images.items()):
        digest.update(f"/{name}{image.shape}".encode())
        for numbers in (np.round(image.affine, 3), np.asarray(image.array, np.float32)):
            digest.update(np.ascontiguousarray(numbers + numbers.dtype.type(0)).data)  # + 0 makes -0 0
    return digest.digest()
