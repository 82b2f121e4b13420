"""The largest perpendicular diameters of a lesion on an axial slice, as RANO measures it.

On each axial slice, holes filled (a necrotic core is measured across):

- the longest diameter is the longest straight line between two voxels of the lesion that stays inside it;
- the perpendicular diameter is the longest line inside the lesion at a right angle to it, through a voxel's centre. The
  angle is 90° without a tolerance: lines in that direction are followed, not pairs of voxels compared.

Lengths run from outer edge to outer edge: for the longest, the distance between the voxels' centres plus the length of
one voxel in that direction. The slice with the largest product counts.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinseg.volumes import Volume, to_ras

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Diameters:
    """longest, perpendicular: mm; lines: their end points' voxel centres in RAS mm (two points each, for drawing)."""

    longest: float
    perpendicular: float
    lines: tuple[tuple[Point, Point], tuple[Point, Point]]

    @property
    def product(self) -> float:
        """mm²."""
        return self.longest * self.perpendicular

    def measurable(self, smallest: float = 10.0) -> bool:
        """Whether both diameters reach `smallest` mm (RANO: 10 × 10 mm)."""
        return self.perpendicular >= smallest and self.longest >= smallest


def lesion_diameters(lesion: Volume) -> Diameters | None:
    """Diameters of a lesion, a mask (X, Y, Z), on its largest axial slice; None for an empty mask.

    Axial are the array's slices closest to the head's axial planes; an oblique scan is measured as it was taken.
    """
    ras = to_ras(lesion)
    mask = ras.array > 0
    spacing = (ras.spacing[0], ras.spacing[1])
    best: tuple[float, float, NDArray[np.float64], int] | None = None
    bounds = {int(z): _largest_product(mask[:, :, z], spacing) for z in np.flatnonzero(mask.any(axis=(0, 1)))}
    for z in sorted(bounds, key=lambda z: bounds[z], reverse=True):
        if best is not None and bounds[z] <= best[0] * best[1]:
            break  # no slice that is left can hold a larger product
        longest, perpendicular, ends = slice_diameters(mask[:, :, z], spacing)
        if best is None or longest * perpendicular > best[0] * best[1]:
            best = longest, perpendicular, ends, z
    if best is None:
        return None
    voxels = np.column_stack([best[2], np.full(4, best[3])])
    world = voxels @ ras.affine[:3, :3].T + ras.affine[:3, 3]
    a, b, c, d = ((float(x), float(y), float(z)) for x, y, z in world)
    return Diameters(best[0], best[1], ((a, b), (c, d)))


def slice_diameters(mask: NDArray[np.bool_], spacing: tuple[float, float]) -> tuple[float, float, NDArray[np.float64]]:
    """Longest and perpendicular diameter in mm of a mask (X, Y) that is not empty, and their ends (4, 2) in voxels."""
    from scipy import ndimage

    filled = np.pad(ndimage.binary_fill_holes(mask), 1)
    size = np.array(spacing)
    first, last = (end * size for end in _longest_line(filled, size))
    length = float(np.linalg.norm(last - first))
    along = (last - first) / length if length else np.array([1.0, 0.0])
    voxel = float(1 / np.linalg.norm(along / size))
    third, fourth = _perpendicular_line(filled, size, np.array([-along[1], along[0]]))
    ends = np.stack([first, last, third, fourth]) / size - 1
    return length + voxel, float(np.linalg.norm(fourth - third)), ends


def _longest_line(mask: NDArray[np.bool_], spacing: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """The ends, in voxels, of the longest line between two border voxels that stays in the mask."""
    from scipy import ndimage

    border = np.argwhere(mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)))).astype(float)
    one, other = np.triu_indices(len(border))
    order = np.argsort(-np.linalg.norm((border[one] - border[other]) * spacing, axis=1), kind="stable")
    start, count = 0, 16  # the very first line nearly always stays inside; a bay or a neck rules out thousands
    while True:
        chunk = order[start : start + count]
        inside = _lines_inside(mask, border[one[chunk]], border[other[chunk]])
        if inside.any():  # at the latest the line from a voxel to itself
            pair = chunk[int(np.argmax(inside))]
            return border[one[pair]], border[other[pair]]
        start, count = start + count, 2 * count


def _lines_inside(mask: NDArray[np.bool_], first: NDArray[np.float64], last: NDArray[np.float64]) -> NDArray[np.bool_]:
    """For each line from centre to centre (N, 2), whether every voxel that it enters is in the mask.

    Looked at is what lies just before and just behind each crossing of a voxel's edge. A line through a corner enters
    neither of the voxels beside it.
    """
    inside = np.ones(len(first), bool)
    for axis in (0, 1):
        lengths = np.abs(last - first)[:, axis]
        for crossing in range(int(lengths.max())):
            left = np.flatnonzero(inside & (lengths > crossing))
            share = ((crossing + 0.5) / lengths[left])[:, None]
            for aside in (-1e-6, 1e-6):
                points = np.rint(first[left] + (share + aside) * (last[left] - first[left])).astype(int)
                inside[left] &= mask[points[:, 0], points[:, 1]]
    return inside


def _perpendicular_line(
    mask: NDArray[np.bool_], spacing: NDArray[np.float64], across: NDArray[np.float64]
) -> tuple[NDArray[np.float64], ...]:
    """The ends in mm of the longest line in direction `across` through a voxel's centre, both where it leaves the mask.

    All such lines cross the voxels' edges after the same distances, so one list of steps serves every voxel.
    """
    voxels = np.argwhere(mask)
    reach = [_way_out(mask, voxels, sign * across / spacing) for sign in (1, -1)]
    best = int(np.argmax(reach[0] + reach[1]))
    centre = voxels[best] * spacing
    return centre - reach[1][best] * across, centre + reach[0][best] * across


def _way_out(mask: NDArray[np.bool_], voxels: NDArray[np.int_], direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """From each voxel's centre (N, 2), how far a line in a direction (voxels per mm) stays in the mask, in mm."""
    count = max(mask.shape) + 1
    with np.errstate(divide="ignore"):
        crossings = (np.arange(count) + 0.5) / np.abs(direction)[:, None]
    distances = np.unique(np.round(crossings[np.isfinite(crossings)], 9))
    way = np.zeros(len(voxels))
    left = np.arange(len(voxels))
    for distance, after in itertools.pairwise(distances):
        way[left] = distance
        step = np.rint(direction * (distance + after) / 2).astype(int)
        now = voxels[left] + step
        there = np.all((now >= 0) & (now < mask.shape), axis=1)
        there[there] = mask[now[there, 0], now[there, 1]]
        left = left[there]
        if left.size == 0:
            break
    return way


def _largest_product(mask: NDArray[np.bool_], spacing: tuple[float, float]) -> float:
    """A product in mm² that the diameters of a slice cannot exceed: the square of its convex hull's diameter."""
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import pdist

    offsets = ((-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5))
    corners = np.concatenate([np.argwhere(mask) + offset for offset in offsets])
    hull = corners[ConvexHull(corners).vertices] * spacing
    return float(pdist(hull).max() ** 2)
