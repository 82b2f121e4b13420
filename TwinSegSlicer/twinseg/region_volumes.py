"""Volumes of the regions in millilitres, each with an interval that says how sure the network's borders are."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from twinseg.calibration import Calibration, widened
from twinseg.preprocessing import PreparedCase, region_channels
from twinseg.tasks import Task
from twinseg.volumes import Volume, voxel_ml

LOW, HIGH = 0.9, 0.1
"""Probabilities at whose level sets the interval ends."""

LEVEL_SETS = 0.8
"""What that interval would hold if the probabilities were right: LOW - HIGH."""


def region_volumes(
    labels: Volume,
    probabilities: NDArray[np.float32],
    prepared: PreparedCase,
    task: Task,
    calibration: Calibration | None = None,
) -> dict[str, dict[str, float]]:
    """The volume of each region of the task, in mL, and an interval around it.

    ``volume`` is that of the label map (X, Y, Z). ``low`` and ``high`` are those of the voxels whose probability of
    belonging to the region is at least 0.9 and 0.1: the Vorob'ev quantiles of a random set (Molchanov, Theory of Random
    Sets, 2005; Chevalier et al. 2013, "Estimating and quantifying uncertainties on level sets using the Vorob'ev
    expectation and deviation with Gaussian process models"). If the voxels err together, the whole border too far in or
    too far out, and the probabilities are right, the true volume lies in the interval four times out of five: ``level``
    is 0.8. Voxels that err on their own would give a far narrower interval, which would claim too much; probabilities
    of a network that is surer than it should be give too narrow a one still, and a lesion that it does not see at all
    is in neither.

    A calibration that has a margin for the region takes that into account: the interval is widened by it, and ``level``
    is the calibration's, 0.9 (`twinseg.calibration`). The interval always holds the volume (clean-up and resampling may
    move that a little).

    Args:
        labels: what was segmented, on the image's own grid.
        probabilities: (classes, X, Y, Z), on the grid of `prepared`.
        calibration: that of the network, for cases like those that it was made on.
    """
    ml, prepared_ml = labels.voxel_ml, voxel_ml(prepared.affine)
    classes = torch.from_numpy(probabilities)
    volumes = {}
    for region, channels in zip(task.regions, region_channels(task), strict=True):
        inside = classes[channels].sum(0)
        low, high = (prepared_ml * int(torch.count_nonzero(inside >= level)) for level in (LOW, HIGH))
        volume, level = ml * int(np.isin(labels.array, region.labels).sum()), LEVEL_SETS
        low, high = min(low, volume), max(high, volume)
        if calibration is not None and region.name in calibration.margins:
            margin, level = calibration.margins[region.name], calibration.level
            low, high = widened(volume, low, high, margin, calibration.floor_ml)
        interval = {"volume": volume, "low": low, "high": high, "level": level}
        volumes[region.name] = {name: round(value, 4) for name, value in interval.items()}
    return volumes
