"""Pictures for reports: slices through a lesion with the outlines of one or two label maps."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinseg.tasks import Task
from twinseg.volumes import Volume, to_ras

PLANES = (("sagittal", 0), ("coronal", 1), ("axial", 2))


def slices_picture(
    image: Volume, task: Task, predicted: Volume, reference: Volume | None = None, title: str = ""
) -> bytes:
    """PNG of the three planes through the middle of the largest labelled slice.

    Outlines: what was predicted in the labels' colours, the reference dashed in white. All volumes on one grid; the
    planes are drawn as a radiologist (and Slicer) sees them, in true proportions: the patient's right, or seen from the
    side the front, on the left of the picture.
    """
    from matplotlib.figure import Figure

    shown = to_ras(image)
    drawn = to_ras(predicted).array
    truth = None if reference is None else to_ras(reference).array
    centre = lesion_centre(drawn if drawn.any() or truth is None else truth)
    low, high = np.percentile(shown.array, (1, 99.5))
    figure = Figure(figsize=(10, 3.9), layout="constrained", facecolor="black")
    for column, (name, axis) in enumerate(PLANES):
        axes = figure.add_subplot(1, 3, column + 1)
        across, up = (other for other in range(3) if other != axis)
        aspect = shown.spacing[up] / shown.spacing[across]
        flat = _slice(shown.array, axis, centre)
        axes.imshow(flat, cmap="gray", vmin=low, vmax=high, aspect=aspect, origin="lower", interpolation="bilinear")
        for label in task.labels:
            _outline(axes, _slice(drawn == label.value, axis, centre), np.array(label.color) / 255, "solid")
        if truth is not None:
            _outline(axes, _slice(truth > 0, axis, centre), "white", "dashed")
        axes.invert_xaxis()
        axes.set_title(name, color="white", fontsize=9)
        axes.set_axis_off()
    if title:
        figure.suptitle(title, color="white", fontsize=11)
    return png(figure)


def lesion_centre(labels: NDArray[Any]) -> tuple[int, int, int]:
    """Voxel in the middle of the axial slice with the most labelled voxels; without any, the middle of the grid."""
    if not labels.any():
        x, y, z = (size // 2 for size in labels.shape)
        return x, y, z
    z = int((labels > 0).sum(axis=(0, 1)).argmax())
    across, along = np.nonzero(labels[:, :, z])
    return int(np.median(across)), int(np.median(along)), z


def png(figure: Any) -> bytes:
    """A matplotlib figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def _slice(array: NDArray[Any], axis: int, centre: tuple[int, int, int]) -> NDArray[Any]:
    return np.take(array, centre[axis], axis=axis).T


def _outline(axes: Any, mask: NDArray[Any], color: Any, style: str) -> None:
    if mask.any() and not mask.all():
        axes.contour(mask, levels=[0.5], colors=[color], linewidths=1.2, linestyles=style)
