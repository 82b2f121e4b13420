"""Cases: a patient's images brought onto one grid, and which patients a model trains on, is chosen by and tested on."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from twinseg.errors import InputError
from twinseg.layouts import Case, find_cases
from twinseg.tasks import Task
from twinseg.volumes import Volume, grids_agree, overlap, read_image, read_labels, resample_to, write_atomically

__all__ = ["Case", "LoadedCase", "Split", "find_cases", "load_case", "split_cases"]
logger = logging.getLogger(__name__)

FRACTIONS = {"train": 0.70, "validation": 0.15, "test": 0.15}
FEW_VOXELS = 2.0  # an image that reaches further than that beyond its label map would be cut
# Cases have these names since BraTS 2023; since then 3 is the enhancing tumour, since 2024 4 the resection cavity.
WITH_CAVITY = re.compile(r"brats-(gli|met)-\d+", re.IGNORECASE)
CHILDREN = re.compile(r"brats-ped-\d+", re.IGNORECASE)  # since 2024 with other numbers for all parts
SAME_LATTICE = 1e-3  # voxels


@dataclass(frozen=True)
class LoadedCase:
    """A case in memory. images: one Volume a sequence that is there, all on the grid of `reference`, which is one of
    the case's own files as it was read (so what is drawn on that grid fits that file); labels: uint8/16, same grid."""

    images: dict[str, Volume]
    reference: Volume
    labels: Volume | None


@dataclass(frozen=True)
class Split:
    """Names of cases by part. No patient stands in two parts."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def load_case(case: Case, task: Task, with_labels: bool = True) -> LoadedCase:
    """Read a case and bring it onto one grid: that of the task's first sequence that is there, or, if the label map
    lies on another one, the label map's, so that the truth is not resampled. A label map that was cut to the tumour
    would cut the images too: it is put onto an image's grid, voxel for voxel if it was cut out of that.

    Affines that differ by at most 1e-3 are the same grid. A truly different grid is resampled linearly where at
    least half of the smaller field of view is common. Raises InputError for a case without any known sequence, for
    grids that do not overlap, for labels that the task does not know, and for what `volumes.read_image` refuses.
    """
    found = [s.name for s in task.sequences if s.name in case.images]
    if not found:
        wanted = ", ".join(s.name for s in task.sequences)
        raise InputError(f"{case.name}: it has {', '.join(case.images) or 'no image'}, but needs {wanted}; add one")
    images = {name: read_image(case.images[name], case.channels.get(name)) for name in found}
    reference, reference_path = images[found[0]], case.images[found[0]]
    labels = None
    if with_labels and case.labels is not None:
        labels = _task_labels(read_labels(case.labels), case, task)
        cut_from = _uncut_image(labels, images)
        if cut_from is not None:
            reference, reference_path = images[cut_from], case.images[cut_from]
            labels = put_on_grid(labels, reference, case.labels, reference_path, mode="nearest")
        elif not grids_agree(labels, reference):
            reference, reference_path = labels, case.labels
    for name, image in images.items():
        images[name] = put_on_grid(image, reference, case.images[name], reference_path)
    if labels is not None:
        labels = Volume(labels.array, reference.affine)
    return LoadedCase(images, reference, labels)


def _uncut_image(labels: Volume, images: Mapping[str, Volume]) -> str | None:
    """The image whose grid the labels are to be put on, as they cover less than the images do; None where they do not.
    It is the one that they were cut out of, else the first that reaches beyond them."""
    if any(grids_agree(labels, image) for image in images.values()):
        return None
    wider = [name for name, image in images.items() if _reaches_beyond(image, labels)]
    return next((name for name in wider if _same_voxels(images[name], labels)), wider[0] if wider else None)


def _reaches_beyond(image: Volume, labels: Volume) -> bool:
    """Whether the image's field is larger than the labels' by more than a few of the labels' voxels on any side."""
    corners = np.array(np.meshgrid(*((-0.5, size - 0.5) for size in image.shape))).reshape(3, -1)
    matrix = np.linalg.inv(labels.affine) @ image.affine
    places = (matrix[:3, :3] @ corners).T + matrix[:3, 3]
    beyond = np.maximum(-0.5 - places.min(axis=0), places.max(axis=0) - (np.array(labels.shape) - 0.5))
    return bool(beyond.max() > FEW_VOXELS)


def _same_voxels(a: Volume, b: Volume) -> bool:
    """Whether the voxels of both lie on one lattice, whatever the order of its axes and where either ends."""
    matrix = np.linalg.inv(a.affine) @ b.affine
    return bool(np.max(np.abs(matrix[:3] - np.rint(matrix[:3]))) <= SAME_LATTICE and abs(np.linalg.det(matrix)) < 1.5)


def put_on_grid(
    image: Volume,
    reference: Volume,
    path: Path,
    reference_path: Path,
    mode: Literal["linear", "nearest"] = "linear",
) -> Volume:
    """The image on the reference's grid. Raises InputError where the two have little of their fields in common."""
    if image is reference:
        return image
    if grids_agree(image, reference):
        return Volume(image.array, reference.affine)
    if (common := overlap(image, reference)) < 0.5:
        raise InputError(
            f"{path}: only {common:.0%} of its field of view is common with {reference_path.name}; "
            "it is of another patient or frame of reference: register the two first"
        )
    logger.info("%s: resampled onto the grid of %s", path, reference_path.name)
    return resample_to(image, reference.affine, reference.shape, mode)


def _task_labels(labels: Volume, case: Case, task: Task) -> Volume:
    """The label map in the task's own values. Raises InputError for a value that the task does not know."""
    known = {0, *(label.value for label in task.labels)}
    values = [int(v) for v in np.unique(labels.array)]
    mapping = case.label_map
    if mapping is None:
        mapping = {**{v: v for v in known}, **_older_labels(case, task, values)}
    if unknown := [v for v in values if mapping.get(v) not in known]:
        wanted = ", ".join(f"{label.value} {label.name}" for label in task.labels)
        raise InputError(f"{case.labels}: the label {unknown[0]} is not one of {task.name} ({wanted}); relabel the map")
    if all(mapping[v] == v for v in values):
        return labels
    table = np.zeros(max(values) + 1, np.uint8 if max(known) < 256 else np.uint16)
    table[values] = [mapping[v] for v in values]
    return Volume(table[labels.array], labels.affine)


def _older_labels(case: Case, task: Task, values: list[int]) -> dict[int, int]:
    """Label values of older data, and what they are called here, for a map that holds `values`. Raises InputError for
    one beside the value that took its place: it is not the same, and to guess would train on it."""
    older = task.legacy_labels
    if WITH_CAVITY.fullmatch(case.patient) and older == {4: 3}:
        if 4 in values:
            _tell_of_cavities(task.name)
        return {4: 0}
    if CHILDREN.fullmatch(case.patient) and older == {4: 3} and 4 in values:
        raise InputError(
            f"{case.labels}: BraTS-PED numbers the parts otherwise since 2024 (1 enhancing, 2 non-enhancing, 3 cyst, "
            "4 oedema); relabel all maps of these data, 1 to 3, 2 and 3 to 1, 4 to 2"
        )
    for old, new in older.items():
        if {old, new} <= set(values):
            raise InputError(
                f"{case.labels}: label {old} beside {new}, so {old} is not the {new} of older data (in BraTS 2024 it "
                "is the resection cavity); set it to 0, in all maps of these data, or relabel it"
            )
    return older


@lru_cache(maxsize=8)
def _tell_of_cavities(task: str) -> None:
    """Said once, as a data set has thousands."""
    logger.warning("label 4 of BraTS 2024 is the resection cavity; %s has no such label: read as background", task)


def split_cases(folder_or_file: str | Path, cases: list[Case], seed: int = 0) -> Split:
    """Which cases train, choose (validation) and test the model: 70, 15, 15 % of the patients, in each site.

    Drawn once and written to `splits.json` (in the folder, or the .json file that is named, for data that may not be
    written to). A file that is there is kept to: no patient ever changes sides, new ones are drawn by the same rule
    and added. All dates of a patient lie on one side. Data with a split of their own keep it, and nothing is written.
    Raises InputError where the file is damaged or cannot be written.
    """
    if cases and all(case.part is not None for case in cases):
        return _split({case.name: str(case.part) for case in cases})
    file = Path(folder_or_file)
    if file.suffix != ".json":
        file = file / "splits.json"
    old: dict[str, str] = {}
    if file.exists():
        seed, old = _read_split(file)
    assigned = _draw(cases, old, seed)
    if len(cases) > 2 and not any(case.patient in old for case in cases):
        _tell_of_patients(file, cases)
    if assigned != old:
        parts = {part: sorted(p for p, where in assigned.items() if where == part) for part in FRACTIONS}
        text = json.dumps({"seed": seed, "patients": parts}, indent=1, ensure_ascii=False)
        write_atomically(file, text.encode())
    return _split({case.name: assigned[case.patient] for case in cases})


def _tell_of_patients(file: Path, cases: list[Case]) -> None:
    """Say what a first split takes for a patient, as one whose visits it takes for patients would be in several parts.

    Nothing is refused: hospitals may well number their patients alike.
    """
    sites_of: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        sites_of[case.patient].update([] if case.site is None else [case.site])
    sites = set().union(*sites_of.values())
    counts = {"patient": len(sites_of), "case": len(cases), "site": len(sites)}
    told = ", ".join(f"{number} {word}{'' if number == 1 else 's'}" for word, number in counts.items())
    logger.warning("%s: drawn by patient, for %s", file, told)
    # A name below most of many sites, or one of a patient here and of a site there.
    repeated = sorted(patient for patient, where in sites_of.items() if len(where) > len(sites) / 2)
    doubtful = repeated if len(sites) > len(sites_of) else sorted(sites & set(sites_of))
    if doubtful:
        logger.warning(
            "are %s patients? If they, or what lies below them, are visits, name visits by their date or visit1, "
            "visit2, and remove %s: one patient would be trained on and tested on",
            ", ".join(doubtful[:3]) + (", …" if len(doubtful) > 3 else ""),
            file.name,
        )


def _split(part_of: Mapping[str, str]) -> Split:
    parts = {part: tuple(sorted(n for n, where in part_of.items() if where == part)) for part in FRACTIONS}
    return Split(**parts)


def _read_split(file: Path) -> tuple[int, dict[str, str]]:
    """The seed and the part of each patient in a splits.json."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        assigned = {str(patient): part for part in FRACTIONS for patient in content["patients"][part]}
        if len(assigned) < sum(len(content["patients"][part]) for part in FRACTIONS):
            raise ValueError("a patient stands twice")
        return int(content["seed"]), assigned
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file}: this is no whole split ({error}); restore it, or move it away to draw anew"
        ) from error


def _draw(cases: list[Case], old: Mapping[str, str], seed: int) -> dict[str, str]:
    """The part of each patient: those of `old` as they are, the others in the order of their seeded hash, each to the
    part that is furthest behind its fraction in the patient's site and overall. Empty parts are filled first."""
    site = {case.patient: case.site for case in cases}
    assigned = dict(old)
    overall = Counter(old.values())
    by_site = Counter((site[p], part) for p, part in old.items() if p in site)
    new = sorted(set(site) - set(old), key=lambda p: hashlib.sha256(f"{seed}/{p}".encode()).digest())
    for patient in new:
        here = Counter({part: by_site[site[patient], part] for part in FRACTIONS})
        behind = {
            part: sum(fraction * (drawn.total() + 1) - drawn[part] for drawn in (here, overall))
            for part, fraction in FRACTIONS.items()
        }
        empty = [part for part in FRACTIONS if not overall[part]] if len(set(site) | set(old)) >= 3 else []
        part = empty[0] if empty else max(behind, key=lambda part: behind[part])
        assigned[patient] = part
        overall[part] += 1
        by_site[site[patient], part] += 1
    return assigned
