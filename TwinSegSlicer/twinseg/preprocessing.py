"""From a case on its own grid to the array that a network sees, and back again.

The network sees the foreground of the case in RAS order at the task's spacing, each sequence normalised, a missing
sequence as zeros. What the network answers is put back on exactly the grid that the case came on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinseg.cases import LoadedCase
from twinseg.tasks import Task
from twinseg.volumes import Volume, ras_grid, resample_to, to_ras

MARGIN_MM = 3.0
"""Kept around the foreground, so that a network sees where the head ends."""

SPACING_TOLERANCE = 0.05
"""A grid within 5 % of the task's spacing is used as it is: resampling would cost more than it brings."""


Box = tuple[slice, slice, slice]
WHOLE: Box = (slice(None), slice(None), slice(None))


@dataclass(frozen=True)
class PreparedCase:
    """A case as a network sees it.

    Attributes:
        name: the case's name.
        site: the hospital it came from, if that is known.
        image: (sequences, X, Y, Z) float32, normalised; zeros where a sequence is missing.
        present: which sequences are there, in the task's order.
        affine: (4, 4), voxels of `image` to RAS in mm.
        labels: (X, Y, Z) uint8 map of the network's output channels (see `label_values`) on the same grid, or None.
    """

    name: str
    site: str | None
    image: NDArray[np.float32]
    present: tuple[bool, ...]
    affine: NDArray[np.float64]
    labels: NDArray[np.uint8] | None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm."""
        x, y, z = (float(size) for size in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z


def prepare(case: LoadedCase, task: Task, *, name: str = "", site: str | None = None) -> PreparedCase:
    """The case in RAS order at the task's spacing, cropped to its foreground and normalised."""
    affine, shape = network_grid(next(iter(case.images.values())), task.spacing)
    images = case.images
    if task.normalization == "zscore":  # before resampling, which fills what it does not reach with the darkest value
        images = {name: Volume(with_dark_background(image.array), image.affine) for name, image in images.items()}
    on_grid = {name: resample_to(volume, affine, shape).array for name, volume in images.items()}
    box = _foreground_box(list(on_grid.values()), affine) if task.normalization == "zscore" else _whole(shape)
    image = np.zeros((len(task.sequences), *(part.stop - part.start for part in box)), np.float32)
    for channel, sequence in enumerate(task.sequences):
        if sequence.name in on_grid:
            image[channel] = normalize(on_grid[sequence.name], task, box)
    labels = None
    if case.labels is not None:
        values = resample_to(case.labels, affine, shape, mode="nearest").array[box]
        labels = np.zeros(values.shape, np.uint8)
        for channel, value in enumerate(label_values(task)):
            labels[values == value] = channel
    present = tuple(sequence.name in case.images for sequence in task.sequences)
    corner = affine.copy()
    corner[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    return PreparedCase(name, site, image, present, corner, labels)


def label_values(task: Task) -> list[int]:
    """The label value of each of the network's output channels; the first is the background."""
    return [0, *(label.value for label in task.labels)]


def region_channels(task: Task) -> list[list[int]]:
    """The network's output channels that make up each region of the task."""
    values = label_values(task)
    return [[values.index(value) for value in region.labels] for region in task.regions]


def network_grid(
    volume: Volume, spacing: tuple[float, float, float]
) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Affine and shape of the RAS grid at a spacing in mm; along axes that are near enough, the volume's own."""
    own = np.asarray(to_ras(volume).spacing)
    near = np.abs(own - spacing) <= SPACING_TOLERANCE * np.asarray(spacing)
    x, y, z = (float(size) for size in np.where(near, own, spacing))
    return ras_grid(volume, (x, y, z))


def foreground(array: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where there is tissue: above a tenth of the robust maximum, which serves stripped and whole heads alike."""
    low, high = np.percentile(array[::2, ::2, ::2] if min(array.shape) > 8 else array, (0.5, 99.5))
    return array > low + 0.1 * (high - low)


def with_dark_background(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """The array with a background as dark as its darkest tissue, where that is not so: 0 amid z-scores of a brain, or
    -1000 around one, which would count as tissue or push all tissue to the bright end. The array itself where it is.

    The background is the one exact value that fills most of the border; an image of air and noise has none.
    """
    border = np.concatenate([array.take((0, -1), axis).ravel() for axis in range(3)])
    value = np.partition(border, border.size // 2)[border.size // 2]  # what fills more than half is the median
    if np.mean(border == value) <= 0.5:
        return array
    sample = array[::3, ::3, ::3] if min(array.shape) > 24 else array
    if not (rest := sample[sample != value]).size:
        return array
    low, high = np.percentile(rest, (0.5, 99.5))
    too_bright = value > low + 0.1 * (high - low)
    too_dark = value < 0 and (low >= 0 or value < low - (high - low))
    if not (too_bright or too_dark):
        return array
    return np.where(array == value, array.dtype.type(low), array)


def normalize(array: NDArray[np.float32], task: Task, box: Box = WHOLE) -> NDArray[np.float32]:
    """A box of the array, normalised. MR: z-score over the whole array's foreground, clipped at ±6. CT: the task's
    window of Hounsfield units to -1..1."""
    if task.normalization == "window":
        if task.window is None:
            raise ValueError(f"task {task.name} is normalised by a window but names none")
        low, high = task.window
        scaled = np.clip(array[box], low, high) * (2.0 / (high - low)) - (high + low) / (high - low)
        return scaled.astype(np.float32)
    array = with_dark_background(array)
    tissue = foreground(array)
    inside = array[tissue] if tissue.any() else array
    mean, deviation = float(inside.mean()), float(inside.std())
    part = (array[box] - mean).astype(np.float32, copy=False)
    part /= np.float32(max(deviation, 1e-6))
    return np.clip(part, -6.0, 6.0, out=part)


def restore_labels(prediction: NDArray[np.float32], prepared: PreparedCase, reference: Volume) -> NDArray[np.uint8]:
    """Label map (X, Y, Z) on the reference's own grid from class scores (classes, X, Y, Z) on the prepared grid.

    Scores are interpolated linearly before the largest is taken, which keeps borders smooth where the grids differ.
    """
    classes = len(prediction)
    best = np.zeros(reference.array.shape, np.uint8)
    highest = restore(prediction[0], prepared, reference, outside=1e6).copy()  # it may be the prediction itself
    for value in range(1, classes):
        score = restore(prediction[value], prepared, reference, outside=-1e6)
        better = score > highest
        best[better] = value
        np.copyto(highest, score, where=better)
    return best


def restore(
    array: NDArray[np.float32], prepared: PreparedCase, reference: Volume, *, outside: float = 0.0
) -> NDArray[np.float32]:
    """A map (X, Y, Z) on the prepared grid, put on the reference's own grid; `outside` where it does not reach."""
    return resample_to(Volume(array, prepared.affine), reference.affine, reference.array.shape, fill=outside).array


def _foreground_box(arrays: list[NDArray[np.float32]], affine: NDArray[np.float64]) -> Box:
    margin = np.ceil(MARGIN_MM / np.linalg.norm(affine[:3, :3], axis=0)).astype(int)
    tissue = foreground(arrays[0])
    for array in arrays[1:]:
        tissue |= foreground(array)
    box = []
    for axis in range(3):
        # A slab counts when a hundredth of it is tissue: single bright voxels of noise do not hold the box open.
        filled = np.flatnonzero(tissue.mean(axis=tuple(other for other in range(3) if other != axis)) > 0.01)
        low, high = (filled[0], filled[-1] + 1) if filled.size else (0, tissue.shape[axis])
        box.append(slice(max(0, int(low - margin[axis])), min(tissue.shape[axis], int(high + margin[axis]))))
    return box[0], box[1], box[2]


def _whole(shape: tuple[int, int, int]) -> Box:
    return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])
