"""Thresholding an array."""

from __future__ import annotations

from typing import Any

import numpy as np


def threshold_array(array: Any, threshold: float, *, invert: bool) -> np.ndarray:
    """Values at least ``threshold`` (or, inverted, below it) stay; the others become 0."""
    values = np.asarray(array)
    keep = values < threshold if invert else values >= threshold
    return np.where(keep, values, 0)
