"""Where in a scan there is brain, from the image alone: what a growth model needs when tissue was not segmented."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from twinseg.errors import InputError
from twinseg.preprocessing import foreground, with_dark_background
from twinseg.volumes import Volume

SCALP_MM = 10.0
"""Thickness of scalp, skull and what lies between it and the brain."""

LARGEST_BRAIN_ML = 2100.0
"""What fills more than this still has its skull: brains, ventricles and sulci included, have 1000 to 2000 mL."""


def brain_mask(image: Volume) -> NDArray[np.bool_]:
    """The brain (X, Y, Z, bool) in a scan of a head, stripped of its skull or not; an estimate to a few mm.

    The largest bright part, its holes filled; where that is too large for a brain, less `SCALP_MM`. Raises InputError
    for an image without a head.
    """
    spacing = np.asarray(image.spacing)
    parts, count = ndimage.label(foreground(with_dark_background(image.array.astype(np.float32))))
    if count == 0:
        raise InputError("the image is empty; choose another sequence")
    head = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    reach = np.ceil(4.0 / spacing).astype(int)
    padded = np.pad(head, [(int(n), int(n)) for n in reach])  # so that closing does not stop at the border
    closed = ndimage.distance_transform_edt(~padded, sampling=spacing) <= 4.0
    closed = ndimage.distance_transform_edt(closed, sampling=spacing) > 4.0
    inner = tuple(slice(int(n), -int(n)) for n in reach)
    solid: NDArray[np.bool_] = ndimage.binary_fill_holes(closed[inner] | head)
    if np.count_nonzero(solid) * np.prod(spacing) / 1000 > LARGEST_BRAIN_ML:
        solid = ndimage.distance_transform_edt(np.pad(solid, 1), sampling=spacing)[1:-1, 1:-1, 1:-1] > SCALP_MM
    return solid
