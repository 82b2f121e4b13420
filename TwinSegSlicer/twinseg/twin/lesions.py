"""Lesions: measured on each scan, and followed from date to date by what they touch.

**Volume and its error** (one standard deviation, mL): σ² = σ_voxels² + σ_slices² + σ_outline², with

- σ_voxels = v √(n / 12): each of the n border voxels (of volume v) is filled to a share that is anyone's guess,
  uniform between 0 and 1, whose variance is 1/12;
- σ_slices = V / (√5 k²): k slices through a convex body (k = its extent over the slice distance, at most V itself);
  the coefficient of error of systematic sections of an ellipsoid (Gundersen & Jensen, J. Microsc. 147 (1987) 229-263);
- σ_outline = A δ: the outline lies off by δ mm all along the surface A, as between two readers; or, where the
  segmentation came with its uncertainty u, (V_high - V_low) / (2 · 1.645), the volumes without the voxels of the lesion
  and with the voxels around it that have u ≥ 0.5, taken as the ends of a 90 % interval.

A counts the faces of border voxels times 2/3, which is what a smooth surface of all directions has less than its steps.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinseg.tasks import Task
from twinseg.twin.diameters import lesion_diameters
from twinseg.volumes import Volume

REGIONS = ("TC", "ET")  # followed by preference: the enhancing tumour with the necrosis that it encloses


@dataclass(frozen=True)
class LesionSettings:
    """region: followed by this name of the task (None: the first of `REGIONS` that it has, see `followed_region`);
    smallest_ml: what is smaller is not counted as a lesion; reach_mm: voxels closer than this touch, across dates
    (registration is no better); shared: a lesion goes on in another one if this share of either is touched;
    outline_mm: δ above, half a voxel of a 1 mm scan: a choice, which is 9 % of the volume of a sphere of 20 mL."""

    region: str | None = None
    smallest_ml: float = 0.05
    reach_mm: float = 3.0
    shared: float = 0.3
    outline_mm: float = 0.5


@dataclass(frozen=True)
class Lesion:
    """One lesion on one scan. volume_sd_ml: one standard deviation; centre: RAS mm in the baseline's frame; longest,
    perpendicular: mm, with the ends of their lines in the scan's own RAS mm."""

    id: int
    volume_ml: float
    volume_sd_ml: float
    centre: tuple[float, float, float]
    longest: float
    perpendicular: float
    lines: tuple[Any, ...]

    @property
    def product(self) -> float:
        """mm², of the perpendicular diameters."""
        return self.longest * self.perpendicular


@dataclass(frozen=True)
class Change:
    """What became of a lesion at a time point: born, split (from the lesions in `others`), merged (into them),
    vanished or reappeared."""

    timepoint: str
    kind: str
    lesion: int
    others: tuple[int, ...] = ()


@dataclass(frozen=True)
class LesionHistory:
    """lesions: by time point, as found there; changes: in the order of time."""

    lesions: dict[str, tuple[Lesion, ...]]
    changes: tuple[Change, ...]

    def to_json(self) -> dict[str, Any]:
        """What `lesions.json` holds."""
        return {
            "lesions": {name: [dataclasses.asdict(found) for found in there] for name, there in self.lesions.items()},
            "changes": [dataclasses.asdict(change) for change in self.changes],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LesionHistory:
        """The reverse of `to_json`; an empty dictionary is a patient without lesions."""
        lesions = {
            name: tuple(Lesion(**{**found, "centre": tuple(found["centre"])}) for found in there)
            for name, there in data.get("lesions", {}).items()
        }
        changes = [Change(**{**change, "others": tuple(change["others"])}) for change in data.get("changes", ())]
        return cls(lesions, tuple(changes))


@dataclass(frozen=True)
class Scan:
    """What lesions are read from. labels: on the scan's own grid; to_baseline: 4x4, RAS mm to RAS mm."""

    name: str
    labels: Volume
    to_baseline: np.ndarray
    uncertainty: Volume | None = None


def followed_region(task: Task, settings: LesionSettings) -> tuple[str, tuple[int, ...]]:
    """Name and label values of the region that makes a lesion.

    Where nothing is asked for and the task has none of `REGIONS`: what the task calls its lesions, or else the smallest
    part of its first region, as the tumours of a liver.
    """
    by_name = {region.name: region.labels for region in task.regions}
    lesions = [region.name for region in task.regions if set(region.labels) == set(task.lesions)]
    parts = [region for region in task.regions if set(region.labels) <= set(task.regions[0].labels)]
    smallest = min(parts, key=lambda region: len(region.labels)).name
    for name in (settings.region, *REGIONS, *lesions, smallest):
        if name in by_name:
            return name, by_name[name]
    raise AssertionError("a task has a region")


def region_mask(labels: Volume, values: Sequence[int]) -> Volume:
    """The mask (X, Y, Z) of label values."""
    return Volume(np.isin(labels.array, values), labels.affine)


def measure_volume(
    mask: Volume, uncertainty: Volume | None = None, outline_mm: float = LesionSettings.outline_mm
) -> tuple[float, float]:
    """Volume of a mask and its standard deviation, mL (the module's docstring has the formula); 0, 0 if empty."""
    from scipy import ndimage

    inside = mask.array > 0
    if not inside.any():
        return 0.0, 0.0
    box = tuple(
        slice(max(axis.start - 3, 0), axis.stop + 3) for axis in ndimage.find_objects(inside.astype(np.uint8))[0]
    )
    inside = np.pad(inside[box], 1)
    spacing = np.array(mask.spacing)
    voxel = 1000 * mask.voxel_ml
    volume = voxel * np.count_nonzero(inside)
    border = np.count_nonzero(inside & ~ndimage.binary_erosion(inside))
    slices = min(np.ptp(np.flatnonzero(inside.any(axis=others))) + 1 for others in ((1, 2), (0, 2), (0, 1)))
    of_voxels = voxel * np.sqrt(border / 12)
    of_slices = min(volume / (np.sqrt(5) * slices**2), volume)
    if uncertainty is None:
        steps = [np.count_nonzero(np.diff(inside.astype(np.int8), axis=axis)) for axis in range(3)]
        of_outline = outline_mm * 2 / 3 * sum(n * voxel / size for n, size in zip(steps, spacing, strict=True))
    else:
        rim = ndimage.binary_dilation(inside, iterations=2) & ~ndimage.binary_erosion(inside, iterations=2)
        contested = np.pad(uncertainty.array[box] >= 0.5, 1) & rim  # inside, labels may contest among themselves
        of_outline = voxel * np.count_nonzero(contested) / (2 * 1.645)
    return volume / 1000, float(np.sqrt(of_voxels**2 + of_slices**2 + of_outline**2)) / 1000


def follow_lesions(
    scans: Sequence[Scan],
    values: Sequence[int],
    settings: LesionSettings | None = None,
    previous: LesionHistory | None = None,
) -> LesionHistory:
    """Find the lesions (label values `values`) of each scan and follow them over the scans, in the order of time.

    A lesion keeps its id as long as it is there. `previous`: an earlier reading of the same patient, whose ids are
    kept where lesions are found again at the same place of the same scan.
    """
    settings = settings or LesionSettings()
    seen: dict[int, NDArray[np.float64]] = {}  # points in the baseline's frame, where each lesion was seen last
    alive: set[int] = set()
    lesions: dict[str, tuple[Lesion, ...]] = {}
    changes: list[Change] = []
    for scan in scans:
        parts = _parts(scan, values, settings)
        points = [_points(part, scan.to_baseline) for part in parts]
        named, happened = _match(points, seen, alive, settings, len(seen))
        changes += [Change(scan.name, kind, lesion, others) for kind, lesion, others in happened]
        lesions[scan.name] = tuple(
            sorted(
                (
                    _measure(id, part, scan, place, settings)
                    for id, part, place in zip(named, parts, points, strict=True)
                ),
                key=lambda lesion: lesion.id,
            )
        )
        seen |= dict(zip(named, points, strict=True))
        alive = set(named)
    history = LesionHistory(lesions, tuple(changes))
    return history if previous is None else _with_ids_of(history, previous, settings)


def _parts(scan: Scan, values: Sequence[int], settings: LesionSettings) -> list[Volume]:
    """Masks of the connected parts (26 neighbours) that are large enough, the largest first."""
    from scipy import ndimage

    mask = region_mask(scan.labels, values)
    parts, count = ndimage.label(mask.array, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:] * mask.voxel_ml
    order = np.argsort(-sizes, kind="stable")
    return [Volume(parts == part + 1, mask.affine) for part in order if sizes[part] >= settings.smallest_ml]


def _points(part: Volume, to_baseline: np.ndarray) -> NDArray[np.float64]:
    """The centres of a mask's voxels (N, 3), RAS mm in the baseline's frame."""
    matrix = to_baseline @ part.affine
    return np.argwhere(part.array) @ matrix[:3, :3].T + matrix[:3, 3]


def _match(
    points: list[NDArray[np.float64]],
    seen: dict[int, NDArray[np.float64]],
    alive: set[int],
    settings: LesionSettings,
    used: int,
) -> tuple[list[int], list[tuple[str, int, tuple[int, ...]]]]:
    """The id of each new part, and what happened to whom. Pairs that touch most are settled first."""
    links = {
        (id, part): weight
        for (id, old), (part, new) in itertools.product(seen.items(), enumerate(points))
        if (weight := _touching(old, new, settings))
    }
    living = {link: weight for link, weight in links.items() if link[0] in alive}
    named: dict[int, int] = {}
    for id, part in sorted(living, key=lambda link: living[link], reverse=True):
        if part not in named and id not in named.values():
            named[part] = id
    happened: list[tuple[str, int, tuple[int, ...]]] = []
    for part in range(len(points)):
        if part in named:
            continue
        parents = sorted((link for link in living if link[1] == part), key=lambda link: living[link], reverse=True)
        gone = [id for id, at in links if at == part and id not in alive and id not in named.values()]
        if parents or not gone:
            used += 1
            named[part] = used
            happened.append(("split", used, tuple(id for id, _ in parents)) if parents else ("born", used, ()))
        else:
            named[part] = max(gone, key=lambda id: links[id, part])
            happened.append(("reappeared", named[part], ()))
    for id in sorted(alive - set(named.values())):
        into = [named[part] for other, part in living if other == id]
        happened.append(("merged", id, tuple(into)) if into else ("vanished", id, ()))
    return [named[part] for part in range(len(points))], happened


def _touching(old: NDArray[np.float64], new: NDArray[np.float64], settings: LesionSettings) -> float:
    """How many voxels of either touch the other one; 0 where that is too small a share of both."""
    from scipy.spatial import KDTree

    reach = settings.reach_mm
    if np.any(old.min(0) - reach > new.max(0)) or np.any(new.min(0) - reach > old.max(0)):
        return 0.0
    of_new = np.isfinite(KDTree(old).query(new, distance_upper_bound=reach)[0])
    of_old = np.isfinite(KDTree(new).query(old, distance_upper_bound=reach)[0])
    if max(of_new.mean(), of_old.mean()) < settings.shared:
        return 0.0
    return float(min(of_new.sum(), of_old.sum()))


def _measure(id: int, part: Volume, scan: Scan, points: NDArray[np.float64], settings: LesionSettings) -> Lesion:
    volume, deviation = measure_volume(part, scan.uncertainty, settings.outline_mm)
    diameters = lesion_diameters(part)
    assert diameters is not None
    x, y, z = (round(float(c), 3) for c in points.mean(0))
    return Lesion(id, volume, deviation, (x, y, z), diameters.longest, diameters.perpendicular, diameters.lines)


def _with_ids_of(history: LesionHistory, previous: LesionHistory, settings: LesionSettings) -> LesionHistory:
    """The history with the ids that an earlier reading gave to lesions at the same places of the same scans."""
    votes: dict[tuple[int, int], int] = {}
    for name, there in history.lesions.items():
        for lesion, before in itertools.product(there, previous.lesions.get(name, ())):
            radius = (3000 * min(lesion.volume_ml, before.volume_ml) / (4 * np.pi)) ** (1 / 3)
            if np.linalg.norm(np.subtract(lesion.centre, before.centre)) <= max(radius, settings.reach_mm):
                votes[lesion.id, before.id] = votes.get((lesion.id, before.id), 0) + 1
    ids: dict[int, int] = {}
    for new, old in sorted(votes, key=lambda pair: (-votes[pair], pair)):
        if new not in ids and old not in ids.values():
            ids[new] = old
    taken = [lesion.id for there in previous.lesions.values() for lesion in there]
    fresh = itertools.count(max(taken, default=0) + 1)
    for new in sorted({lesion.id for there in history.lesions.values() for lesion in there} - set(ids)):
        ids[new] = next(fresh)
    lesions = {
        name: tuple(sorted((dataclasses.replace(lesion, id=ids[lesion.id]) for lesion in there), key=lambda x: x.id))
        for name, there in history.lesions.items()
    }
    changes = [
        dataclasses.replace(change, lesion=ids[change.lesion], others=tuple(ids[other] for other in change.others))
        for change in history.changes
    ]
    return LesionHistory(lesions, tuple(changes))
