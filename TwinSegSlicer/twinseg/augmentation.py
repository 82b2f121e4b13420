"""Random changes to training cases: where the head lies, how the scanner was set, which sequences are missing.

Built from MONAI's transforms. Each case of each step has a seed of its own, so that a training that goes on from a
checkpoint sees just what it would have seen without the stop, with any number of loader processes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.transforms import (
    AdjustContrast,
    Compose,
    MapTransform,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    Randomizable,
    RandSimulateLowResolutiond,
    RandSmoothDeformd,
    SpatialPadd,
)
from torch import Tensor

from twinseg.tasks import Task

KEYS = ("image", "labels")


class ChangeIntensity(MapTransform, Randomizable):
    """Gamma, scale and shift, drawn for each sequence of `image` (C, X, Y, Z): scanners differ sequence by sequence."""

    def __init__(
        self, scale: float = 0.25, shift: float = 0.25, gamma: float = 0.5, gamma_probability: float = 0.3
    ) -> None:
        MapTransform.__init__(self, ("image",))
        self.scale, self.shift, self.gamma, self.gamma_probability = scale, shift, gamma, gamma_probability

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        image: Tensor = result["image"].clone()  # a crop is a view of its case, which must stay as it is
        for channel in range(len(image)):
            gamma = np.exp(self.R.uniform(-self.gamma, self.gamma))
            if self.R.random() < self.gamma_probability:
                image[channel] = AdjustContrast(gamma, retain_stats=True)(image[channel : channel + 1])[0]
            factor = 1 + self.R.uniform(-self.scale, self.scale)
            image[channel] = image[channel] * factor + self.R.uniform(-self.shift, self.shift)
        result["image"] = image
        return result


class DropSequences(MapTransform, Randomizable):
    """Sets the sequences that the case lacks, and random others, to zero; one that is there is always left."""

    def __init__(self, probability: float) -> None:
        MapTransform.__init__(self, ("image",))
        self.probability = probability

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        image, present = result["image"].clone(), np.asarray(result["present"], bool)
        kept = present & (self.R.random(len(present)) >= self.probability)
        if not kept.any():
            kept[self.R.choice(np.flatnonzero(present))] = True
        image[np.flatnonzero(~kept)] = 0
        result["image"] = image
        return result


def training_transform(task: Task, drop_probability: float = 0.15) -> Compose:
    """The random changes for one training sample: a dict of `image` (C, X, Y, Z) and `labels` (1, X, Y, Z)
    tensors and `present`, a flag for each sequence."""
    thick = task.spacing[2] / min(task.spacing) > 2
    # Thick slices turn about their own normal only: turning across them would smear voxels over many mm.
    tilt = np.deg2rad(5.0 if thick else 30.0)
    coarse = tuple(max(3, round(size * spacing / 40.0)) for size, spacing in zip(task.patch, task.spacing, strict=True))
    steps: list[Any] = [
        SpatialPadd(KEYS, task.patch, mode="edge"),
        RandCropByPosNegLabeld(KEYS, "labels", task.patch, pos=2, neg=1, num_samples=1),
        RandAffined(
            KEYS,
            prob=0.5,
            rotate_range=(tilt, tilt, np.deg2rad(30.0)),
            scale_range=((-0.2, 0.25),) * 3,
            mode=("bilinear", "nearest"),
            padding_mode="border",
        ),
        RandSmoothDeformd(KEYS, task.patch, coarse, prob=0.2, def_range=0.1, grid_mode=("bilinear", "nearest")),
        *(RandFlipd(KEYS, 0.5, axis) for axis in task.flip_axes),
        ChangeIntensity(),
        RandGaussianSmoothd("image", (0.3, 1.0), (0.3, 1.0), (0.3, 0.6), prob=0.15),
        RandSimulateLowResolutiond("image", prob=0.1, zoom_range=(0.5, 1.0)),
        RandGaussianNoised("image", prob=0.3, std=0.15),
        DropSequences(drop_probability),
    ]
    return Compose(steps)
