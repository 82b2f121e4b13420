"""Head anatomies: drawn by rule from a seed (this file), or taken from label maps and warped (`label_maps.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from twinseg.phantom.fields import Field, Grid, blur, mesh, smooth_noise


class Tissue(IntEnum):
    """What a voxel is made of. The numbers index the tables in `physics.py`."""

    AIR = 0
    FAT = 1
    MUSCLE = 2
    BONE = 3
    MARROW = 4
    CSF = 5
    GREY = 6
    WHITE = 7
    VENTRICLE = 8
    DEEP_GREY = 9
    CEREBELLAR_GREY = 10
    CEREBELLAR_WHITE = 11
    BRAIN_STEM = 12
    VESSEL = 13
    EYE = 14
    CHOROID = 15
    WHITE_LESION = 16
    NECROSIS = 17
    ENHANCING = 18
    NON_ENHANCING = 19
    CYST = 20
    BLOOD = 21


SOLID_BRAIN = (
    Tissue.GREY,
    Tissue.WHITE,
    Tissue.DEEP_GREY,
    Tissue.CEREBELLAR_GREY,
    Tissue.CEREBELLAR_WHITE,
    Tissue.BRAIN_STEM,
    Tissue.WHITE_LESION,
)
"""Where tumour cells can live."""

WHITE_MATTER = (Tissue.WHITE, Tissue.CEREBELLAR_WHITE, Tissue.BRAIN_STEM, Tissue.WHITE_LESION)

INFRATENTORIAL = (Tissue.CEREBELLAR_GREY, Tissue.CEREBELLAR_WHITE, Tissue.BRAIN_STEM)
"""Below the tentorium: gliomas of adults seldom start there."""


@dataclass(frozen=True)
class Anatomy:
    """A head without a tumour: `tissues` (X,Y,Z) uint8 holds `Tissue` numbers on `grid`."""

    tissues: NDArray[np.uint8]
    grid: Grid


def lookup(kinds: tuple[Tissue, ...]) -> NDArray[np.bool_]:
    """A table from tissue number to 'is one of these'."""
    table = np.zeros(len(Tissue), dtype=bool)
    table[list(kinds)] = True
    return table


def procedural_anatomy(seed: int | tuple[int, ...], grid: Grid) -> Anatomy:
    """A head drawn by rule: another one for every seed, the same one at any voxel size.

    Ellipsoids, bent by smooth noise, give the outer form; the cortex is a layer of constant thickness under a surface
    that is cut by sulci, and a sulcus is a zero sheet of band-limited noise that varies along the surface but hardly
    with depth.
    """
    rng = np.random.default_rng(seed)
    head = _Head(rng, grid)
    tissues = np.zeros(grid.shape, dtype=np.uint8)
    head.draw_outside(tissues)
    head.draw_cerebrum(tissues)
    head.draw_hindbrain(tissues)
    head.draw_deep(tissues)
    add_vessels(rng, tissues, grid)
    add_white_lesions(rng, tissues, grid)
    return Anatomy(tissues, grid)


def add_vessels(rng: np.random.Generator, tissues: NDArray[np.uint8], grid: Grid) -> None:
    """Vessels in the sulci and choroid plexus in the ventricles: they enhance and are no tumour.

    A vessel follows a line on which two noise fields are zero at once.
    """
    first, second = smooth_noise(rng, grid.axes, 14.0), smooth_noise(rng, grid.axes, 14.0)
    thickness = float(rng.uniform(0.06, 0.22))
    tissues[(first * first + second * second < thickness**2) & (tissues == Tissue.CSF)] = Tissue.VESSEL
    tissues[(first > 1.6) & (tissues == Tissue.VENTRICLE)] = Tissue.CHOROID


def add_white_lesions(rng: np.random.Generator, tissues: NDArray[np.uint8], grid: Grid) -> None:
    """Bright spots of small-vessel disease in the white matter of about half the heads; they are no tumour.

    Caps around the ventricles, and small islands where noise is high.
    """
    load = float(np.clip(rng.normal(0.05, 0.45), 0.0, 1.1))
    near = blur((tissues == Tissue.VENTRICLE).astype(np.float32), 4.0, grid.spacing)
    islands = smooth_noise(rng, grid.axes, 11.0)
    if load == 0:
        return
    chosen = (near > 0.42 - 0.22 * load + 0.06 * islands) | (islands > 3.4 - 0.7 * load)
    tissues[chosen & (tissues == Tissue.WHITE)] = Tissue.WHITE_LESION


class _Head:
    """The signed distances of one head's parts, in mm, positive inside."""

    def __init__(self, rng: np.random.Generator, grid: Grid) -> None:
        self.rng = rng
        self.grid = grid
        x, y, z = mesh(grid.axes)
        size = rng.normal(1.0, 0.035) * rng.normal(1.0, 0.025, size=3)
        mirrored = (np.abs(grid.axes[0]), *grid.axes[1:])
        bend = [smooth_noise(rng, mirrored, 75.0) * 2.6 + smooth_noise(rng, grid.axes, 90.0) * 1.0 for _ in range(3)]
        side = np.tanh(x / 8)  # a mirrored displacement must change sign across the middle
        self.x = (x + bend[0] * side) / np.float32(size[0])
        self.y = (y + 4 + bend[1]) / np.float32(size[1])
        self.z = (z - 4 + bend[2]) / np.float32(size[2])
        self.lateral = np.abs(self.x)
        self.atrophy = float(np.clip(rng.gamma(2.0, 0.28), 0.05, 1.8))
        cerebrum = self._ellipsoid((0, 0, 12), (67, 87, 56))
        base = np.minimum(self.z + 20 + 0.08 * self.y, 30)
        temporal = self._ellipsoid((40, 6, -20), (27, 44, 28))
        self.cerebrum = np.maximum(np.minimum(cerebrum, base), temporal)
        self.convexity = np.maximum(np.minimum(cerebrum, base + 9), temporal)  # sulci of the base are shallow
        self.cerebellum = self._ellipsoid((0, -52, -36), (52, 36, 27))
        self.stem = np.maximum(
            self._capsule((0, -16, -8), (0, -22, -42), 15, 14), self._capsule((0, -24, -42), (0, -34, -90), 10, 7)
        )
        self.brain = np.maximum(np.maximum(self.cerebrum, self.cerebellum), self.stem)

    def _ellipsoid(self, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Field:
        """Distance to an ellipsoid's surface, by the first-order estimate f / |grad f|; mirrored when off the
        middle."""
        x = (self.lateral if centre[0] else self.x) - np.float32(centre[0])
        y, z = self.y - np.float32(centre[1]), self.z - np.float32(centre[2])
        a, b, c = (np.float32(1 / r) for r in radii)
        xs, ys, zs = (x * a) ** 2, (y * b) ** 2, (z * c) ** 2
        length = np.sqrt(xs + ys + zs)
        slope = np.sqrt(xs * a * a + ys * b * b + zs * c * c) + np.float32(1e-4)
        return np.asarray(length * (1 - length) / slope, dtype=np.float32)

    def _capsule(
        self, start: tuple[float, float, float], end: tuple[float, float, float], first: float, last: float
    ) -> Field:
        """Distance to a tapered capsule between two points, mirrored when off the middle."""
        a, b = np.array(start, dtype=np.float32), np.array(end, dtype=np.float32)
        along = b - a
        x, y, z = (self.lateral if a[0] or b[0] else self.x) - a[0], self.y - a[1], self.z - a[2]
        t = np.clip((x * along[0] + y * along[1] + z * along[2]) / np.dot(along, along), 0, 1)
        distance = np.sqrt((x - t * along[0]) ** 2 + (y - t * along[1]) ** 2 + (z - t * along[2]) ** 2)
        return np.asarray(first + (last - first) * t - distance, dtype=np.float32)

    def draw_outside(self, tissues: NDArray[np.uint8]) -> None:
        """Skin and fat, muscle, skull with its marrow, eyes, air spaces, dural sinuses."""
        rng, axes = self.rng, self.grid.axes
        rough = smooth_noise(rng, axes, 30.0)
        gap = 2.0 + 2.0 * self.atrophy + 0.5 * rough
        skull = rng.uniform(5.0, 8.0) + 1.2 * smooth_noise(rng, axes, 45.0)
        scalp = rng.uniform(4.0, 9.0) + 1.0 * smooth_noise(rng, axes, 60.0)
        vault = np.minimum(self._ellipsoid((0, 1, 10), (67, 87, 58)), self.z + 27)
        cavity = np.maximum(self.brain, vault)
        cavity = np.where(self.z < -75, self.stem - 2, cavity)
        outer = cavity + gap + skull
        face = np.maximum(self._ellipsoid((0, 42, -62), (62, 58, 66)), self._ellipsoid((0, -22, -105), (58, 62, 70)))
        head = np.maximum(outer + scalp, face)
        grain = smooth_noise(rng, axes, 14.0)
        tissues[head > 0] = Tissue.MUSCLE
        tissues[(head > 0) & (((head < 5.0) & (outer < 0)) | (grain > 0.8))] = Tissue.FAT
        nose = self._ellipsoid((0, 64, -50), (16, 30, 26)) + 4 * grain
        sinuses = np.maximum(self._ellipsoid((26, 58, -62), (13, 16, 16)), self._ellipsoid((0, 78, -8), (26, 7, 13)))
        bone = outer > 0
        tissues[bone] = Tissue.BONE
        tissues[bone & (np.abs(cavity + gap + skull * 0.5) < 0.24 * skull)] = Tissue.MARROW
        tissues[((nose > 0) | (sinuses > 0)) & (cavity + gap < 0)] = Tissue.AIR
        orbit = self._ellipsoid((31, 60, -30), (17, 26, 16))
        tissues[(orbit > 0) & (cavity + gap < -1)] = Tissue.FAT
        tissues[self._ellipsoid((31, 72, -30), (12, 12, 12)) > 0] = Tissue.EYE
        tissues[cavity + gap > 0] = Tissue.CSF
        midline = (self.lateral < 3.5) & (np.abs(cavity + gap - 1.5) < 2.8) & (self.z > -20 + 0.5 * self.y)
        tentorium = (np.abs(self.z + 17 + 0.02 * self.lateral) < 3.5) & (self.y < -30)
        transverse = tentorium & (np.abs(cavity + gap - 2) < 3.5)
        tissues[midline | transverse] = Tissue.VESSEL

    def _folds(self) -> Field:
        """Distance in mm from the nearest sulcus: zero sheets of noise, made to stand upright on the surface."""
        from scipy.ndimage import map_coordinates

        width = float(self.rng.uniform(10.0, 13.0))
        reach = np.arange(-110, 111, 2.5, dtype=np.float32)
        mirrored = smooth_noise(self.rng, (np.abs(reach), reach, reach), width)
        lattice = mirrored + 0.55 * smooth_noise(self.rng, (reach, reach, reach), width)
        winding = 3.0 * smooth_noise(self.rng, self.grid.axes, 22.0)
        x, y, z = (self.x + winding) / 67, (self.y - winding) / 80, (self.z - 8) / 60
        radius = np.sqrt(x * x + y * y + z * z) + np.float32(0.05)
        outward = (np.float32(0.6) / radius + np.float32(0.4)) * np.float32(66 / 2.5)
        points = [(part * outward + np.float32(44)).ravel() for part in (x, y * np.float32(1.2), z)]
        folds = map_coordinates(lattice, points, order=1, mode="nearest", prefilter=False)
        folds = folds.reshape(self.grid.shape)
        slope = [np.gradient(folds, step, axis=axis) for axis, step in enumerate(self.grid.spacing)]
        steepness = np.sqrt(slope[0] ** 2 + slope[1] ** 2 + slope[2] ** 2)
        return np.asarray(np.abs(folds) / np.maximum(steepness, 0.045), dtype=np.float32)

    def draw_cerebrum(self, tissues: NDArray[np.uint8]) -> None:
        """White matter, the folded cortex and the CSF of the sulci and fissures."""
        rng, axes = self.rng, self.grid.axes
        depth = 14 + 6 * smooth_noise(rng, axes, 25.0)
        sulci = np.maximum(self._folds(), self.convexity - depth)
        middle = np.sqrt(((self.y - 2) / 44) ** 2 + ((self.z - 2) / 26) ** 2)
        falx = np.maximum(np.abs(self.x + 0.8 * smooth_noise(rng, axes, 50.0)), (1 - middle) * 26)
        wobble = 2.2 * smooth_noise(rng, axes, 18.0)
        plane = np.abs(self.z + 6 - 0.28 * self.y + wobble)
        sylvian = np.maximum(np.maximum(plane, 33 - self.lateral), np.abs(self.y - 8) - 30)
        curve = self.lateral - 37 + 0.006 * (self.y - 6) ** 2 + 0.012 * (self.z - 1) ** 2 + wobble
        insula = np.maximum(np.maximum(np.abs(curve), np.abs(self.z - 1) - 13), np.abs(self.y - 6) - 24)
        fissures = np.minimum(np.minimum(falx, sylvian), insula)
        pial = np.minimum(self.cerebrum, np.minimum(sulci, fissures))
        width = 0.35 + 0.9 * self.atrophy
        thickness = rng.uniform(2.7, 3.5)
        inside = self.cerebrum > 0
        tissues[inside] = Tissue.WHITE
        tissues[inside & (pial < width + thickness)] = Tissue.GREY
        tissues[inside & (pial < width)] = Tissue.CSF
        arteries = (fissures < 1.6) & inside & (smooth_noise(rng, axes, 16.0) > 1.3)
        tissues[arteries] = Tissue.VESSEL

    def draw_hindbrain(self, tissues: NDArray[np.uint8]) -> None:
        """Cerebellum with its folia and arbor vitae, and the brain stem."""
        rng, axes = self.rng, self.grid.axes
        free = self.cerebrum < -2.0
        inside = (self.cerebellum > 0) & free
        stripes = np.sin((self.z + 0.35 * self.y + 2.0 * smooth_noise(rng, axes, 30.0)) * np.float32(2 * np.pi / 9))
        tree = self.cerebellum - 9 - 4.5 * stripes
        tissues[inside] = Tissue.CEREBELLAR_GREY
        tissues[inside & (tree > 0)] = Tissue.CEREBELLAR_WHITE
        tissues[inside & (stripes < -0.86) & (self.cerebellum < 6)] = Tissue.CSF
        tissues[(self.stem > 0) & ((self.cerebrum < 0) | (self.z < -6))] = Tissue.BRAIN_STEM

    def draw_deep(self, tissues: NDArray[np.uint8]) -> None:
        """Deep grey nuclei, ventricles and the choroid plexus in them."""
        rng = self.rng
        lean = 0.8 * smooth_noise(rng, self.grid.axes, 60.0)
        nuclei = np.maximum(
            np.maximum(self._ellipsoid((11, -14, 4), (8.5, 15, 9.5)), self._ellipsoid((25.5, 4, 1), (5.5, 17, 10))),
            np.maximum(self._ellipsoid((17, 1, -1), (4.5, 9, 6)), self._capsule((14, 24, 5), (18, -12, 20), 6.5, 2.5)),
        )
        tissues[(nuclei + lean > 0) & (tissues != Tissue.CSF)] = Tissue.DEEP_GREY
        swell = float(np.clip(rng.normal(0.2, 0.9) + 2.2 * self.atrophy, -1.2, 5.0))
        horns = [((10, 30, 6), (9, 6, 19), 4.5, 5.0), ((9, 6, 19), (14, -22, 18), 5.0, 5.5)]
        horns += [((14, -22, 18), (25, -38, 6), 5.5, 6.0), ((25, -38, 6), (23, -60, 2), 4.5, 1.5)]
        horns += [((25, -38, 4), (34, -12, -17), 4.0, 1.8)]
        lateral = self._capsule(*horns[0])
        for horn in horns[1:]:
            lateral = np.maximum(lateral, self._capsule(*horn))
        third = np.minimum(1.4 + 0.45 * swell - self.lateral, 8 - np.hypot(0.7 * (self.y + 4), self.z - 1))
        fourth = self._ellipsoid((0, -38, -36), (6, 5, 11))
        septum = self.lateral - 1.2
        cavities = np.maximum(np.maximum(np.minimum(lateral + swell, septum), third), fourth) + lean
        tissues[cavities > 0] = Tissue.VENTRICLE
        choroid = np.maximum(
            self._capsule((24, -36, 8), (18, -24, 14), 2.6, 1.6), self._capsule((26, -36, 3), (32, -18, -13), 2.0, 1.2)
        )
        tissues[(choroid > 0) & (cavities > 0)] = Tissue.CHOROID
