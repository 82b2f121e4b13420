"""From a tumour's cell density to tissues and labels on the image grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twinseg.phantom.anatomy import SOLID_BRAIN, WHITE_MATTER, Tissue, lookup
from twinseg.phantom.fields import Axes, Field, blur, smooth_noise, smoothstep
from twinseg.phantom.tumour import Tumour, TumourState

NECROTIC, OEDEMA, ENHANCING = 1, 2, 3
BRAIN_AND_SULCI = (*SOLID_BRAIN, Tissue.CSF, Tissue.VESSEL)


def paint_tumour(tumour: Tumour) -> TumourState:
    """Push the tissue aside, then paint the tumour into it. Everything happens in a box around the tumour."""
    grid = tumour.anatomy.grid
    tissues = tumour.anatomy.tissues.copy()
    labels = np.zeros(grid.shape, dtype=np.uint8)
    infiltration = np.zeros(grid.shape, dtype=np.float32)
    enhancement = np.zeros(grid.shape, dtype=np.float32)
    box, axes = _image_box(tumour)
    density, here = _pull_back(tumour, axes)
    tissue, label, oedema, uptake = _Painter(tumour, axes, density, here).paint()
    tissues[box], labels[box], infiltration[box], enhancement[box] = tissue, label, oedema, uptake
    return TumourState(tissues, labels, infiltration, enhancement)


def _image_box(tumour: Tumour) -> tuple[tuple[slice, ...], Axes]:
    """The part of the image grid that the coarse grid covers, as slices and as axes in mm."""
    box, axes = [], []
    for image, coarse in zip(tumour.anatomy.grid.axes, tumour.axes, strict=True):
        inside = np.flatnonzero((image >= coarse[0] - 1e-3) & (image <= coarse[-1] + 1e-3))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
        axes.append(image[box[-1]])
    return tuple(box), (axes[0], axes[1], axes[2])


def _pull_back(tumour: Tumour, axes: Axes) -> tuple[Field, NDArray[np.uint8]]:
    """Cell density and anatomy at each image voxel after the mass effect: both read from where the tissue came from."""
    from scipy.ndimage import map_coordinates

    grid = tumour.anatomy.grid
    index = np.meshgrid(
        *((axis - start) / np.float32(tumour.spacing) for axis, start in zip(axes, tumour.origin, strict=True)),
        indexing="ij",
    )
    coarse = np.stack(index).astype(np.float32)
    moved = [map_coordinates(part, coarse, order=1, mode="nearest", prefilter=False) for part in tumour.displacement()]
    came_from = coarse - np.stack(moved) / np.float32(tumour.spacing)
    # Tissue without cells holds no information on density: fill sulci from their banks before interpolating
    step = (tumour.spacing,) * 3
    weight = blur(tumour.solid.astype(np.float32), 1.6, step)
    filled = blur(tumour.density, 1.6, step) / np.maximum(weight, 0.12)
    filled = np.where(tumour.solid, 0.6 * tumour.density + 0.4 * filled, filled)
    density = map_coordinates(filled, came_from, order=1, mode="nearest", prefilter=False)
    sources = []
    for number in range(3):
        position = came_from[number] * tumour.spacing + (tumour.origin[number] - grid.affine[number, 3])
        position = np.rint(position / grid.spacing[number])
        sources.append(np.clip(position, 0, grid.shape[number] - 1).astype(np.intp))
    return np.asarray(density, np.float32), tumour.anatomy.tissues[tuple(sources)]


class _Painter:
    """Labels and tissues in the box, from density, anatomy and the plan's textures."""

    def __init__(self, tumour: Tumour, axes: Axes, density: Field, here: NDArray[np.uint8]) -> None:
        self.plan, self.axes, self.density, self.tissue = tumour.plan, axes, density, here
        self.core_density = tumour.core_density
        self.spacing = tumour.anatomy.grid.spacing
        self.rng = np.random.default_rng(self.plan.texture_seed)
        self.label = np.zeros(here.shape, dtype=np.uint8)
        self.solid = lookup(SOLID_BRAIN)[here]
        self.room = lookup(BRAIN_AND_SULCI)[here]
        self.fine = self._noise(7.0)
        self.coarse = self._noise(20.0)

    def _noise(self, width: float) -> Field:
        return smooth_noise(self.rng, self.axes, width)

    def paint(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Field, Field]:
        """Tissue, label, infiltration (0-1) and enhancement (0-1) in the box."""
        infiltration = self._oedema()
        core = self._core()
        if self.plan.kind in ("low-grade", "patchy"):
            self._low_grade(core)
        else:
            self._high_grade(core)
        infiltration[core] = np.maximum(infiltration[core], 0.7)
        self._blood()
        uptake = np.where(self.tissue == Tissue.ENHANCING, np.clip(1 + 0.28 * self.fine, 0.35, 1.7), 0.0)
        uptake = np.where(self.tissue == Tissue.NON_ENHANCING, np.clip(0.008 + 0.012 * self.coarse, 0, 0.03), uptake)
        return self.tissue, self.label, infiltration, (uptake * self.plan.enhancement).astype(np.float32)

    def _oedema(self) -> Field:
        """Mark ED, return how much water the tissue has taken up: it fades in around the border that is drawn."""
        plan = self.plan
        white = lookup(WHITE_MATTER)[self.tissue]
        border = np.where(white, plan.oedema_density, min(plan.oedema_density * plan.grey_factor, 0.5))
        border = (border * np.exp(0.22 * self.fine + 0.35 * self.coarse)).astype(np.float32)
        border = np.minimum(border, 0.8)
        visible = (self.density > border) & self.solid
        # A reader closes small gaps: so does a blur of the mask
        smooth = blur(visible.astype(np.float32), 2.0, self.spacing) > 0.5
        self.label[smooth & self.room & (self.solid | (self.density > 0.3))] = OEDEMA
        water = smoothstep(np.log(np.maximum(self.density, 1e-6)), np.log(border * 0.45), np.log(border * 2.6))
        patchy = np.clip(1.0 + 0.16 * self.coarse + 0.10 * self.fine, 0.5, 1.4)
        return np.asarray(water * self.solid * plan.oedema_strength * patchy, np.float32)

    def _core(self) -> NDArray[np.bool_]:
        rough = self.density * np.exp(0.10 * self.fine + 0.16 * self.coarse)
        core = (rough > self.core_density) & self.room & (self.label > 0)
        return np.asarray((blur(core.astype(np.float32), 1.2, self.spacing) > 0.5) & self.room, bool)

    def _depth(self, mask: NDArray[np.bool_]) -> Field:
        """Distance in mm from the mask's border, inwards."""
        from scipy.ndimage import distance_transform_edt

        return np.asarray(distance_transform_edt(mask, sampling=self.spacing), np.float32)

    def _high_grade(self, core: NDArray[np.bool_]) -> None:
        """A rim that enhances around tissue that has outgrown its supply (hypoxia: too deep inside the core)."""
        plan = self.plan
        depth = self._depth(core)
        self.tissue[core], self.label[core] = Tissue.ENHANCING, ENHANCING
        rim = np.maximum(plan.rim_fraction * float(depth.max()), 1.5) * np.exp(0.30 * self.coarse + 0.25 * self.fine)
        if plan.kind == "solid":
            dead = (depth > 6) & (self.fine + self.coarse > 2.2)
        elif plan.kind == "cystic":
            dead = depth > np.minimum(rim, 4.0) * np.where(self.coarse > 1.0, 3.0, 1.0)
        else:
            dead = (depth > rim) & (np.abs(self._noise(13.0)) > plan.septa)
        self.tissue[dead] = Tissue.CYST if plan.kind == "cystic" else Tissue.NECROSIS
        self.label[dead] = NECROTIC
        # part of the core does not enhance at its border either
        gaps = core & (depth < 5) & (self._noise(26.0) > 1.5)
        self.tissue[gaps], self.label[gaps] = Tissue.NON_ENHANCING, NECROTIC

    def _low_grade(self, core: NDArray[np.bool_]) -> None:
        """Tumour without enhancement, or with a few patches of it; sometimes with a cyst."""
        depth = self._depth(core)
        self.tissue[core], self.label[core] = Tissue.NON_ENHANCING, NECROTIC
        if self.plan.texture_seed % 4 == 0:
            cyst = (depth > 3.5) & (self._noise(30.0) > -0.2)
            self.tissue[cyst] = Tissue.CYST
        if self.plan.kind == "patchy":
            patch = core & (depth > 1.5) & (self.coarse + 0.5 * self.fine > 1.1)
            self.tissue[patch], self.label[patch] = Tissue.ENHANCING, ENHANCING

    def _blood(self) -> None:
        if self.plan.blood > 0:
            bled = (self.tissue == Tissue.NECROSIS) & (self.fine > 1.7 - self.plan.blood)
            self.tissue[bled] = Tissue.BLOOD
