"""Synthetic patients in memory, and cohorts of them on disk."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinseg.errors import InputError, OutOfSpaceError
from twinseg.phantom.anatomy import SOLID_BRAIN, Anatomy, Tissue, lookup, procedural_anatomy
from twinseg.phantom.appearance import paint_tumour
from twinseg.phantom.fields import Grid, blur, smooth_noise
from twinseg.phantom.label_maps import find_label_maps, warped_anatomy
from twinseg.phantom.physics import random_contrast, tissue_maps
from twinseg.phantom.scanner import SEQUENCES, Scanner
from twinseg.phantom.tumour import KINDS, Tumour, TumourPlan, TumourState, draw_plan
from twinseg.volumes import Volume, write_volume

FIRST_VISIT = date(2020, 1, 6)
HEALTHY = "none"
Seed = int | tuple[int, ...]


@dataclass(frozen=True)
class Visit:
    """One date of a patient: `images` by sequence and `labels` (0, NCR 1, ED 2, ET 3) on one grid; `day` since the
    first visit."""

    day: int
    images: dict[str, Volume]
    labels: Volume


@dataclass(frozen=True)
class Patient:
    """A synthetic patient; `truth` holds what made the tumour (growth rates, seeds in mm, cell numbers, volumes)."""

    visits: tuple[Visit, ...]
    truth: dict[str, Any] = field(repr=False)

    @property
    def images(self) -> dict[str, Volume]:
        """The first visit's images by sequence."""
        return self.visits[0].images

    @property
    def labels(self) -> Volume:
        """The first visit's label map."""
        return self.visits[0].labels


@dataclass(frozen=True)
class GrownPatient:
    """A head and its tumour before any image is taken; `states` are (day since the first visit, state) a visit."""

    head: Anatomy
    states: tuple[tuple[int, TumourState], ...]
    truth: dict[str, Any] = field(repr=False)


def make_patient(
    seed: Seed,
    *,
    scanner: Scanner,
    size: int | tuple[int, int, int] = 96,
    spacing: float | tuple[float, float, float] = 2.0,
    anatomy: str | Path | None = None,
    visits: int = 1,
    contrast: str = "physical",
    kind: str | None = None,
) -> Patient:
    """A patient from nothing but a seed: the same one, to the bit, whatever was made before.

    `size` in voxels and `spacing` in mm give the grid, centred on the RAS origin. `anatomy` is a folder of label
    maps; without one the head is drawn by rule. `contrast` is "physical" (signal equations) or "random". `kind` is
    one of `KINDS`, "none" for a head without tumour, or None to draw one. Raises `InputError` for a grid, folder or
    kind that cannot be.
    """
    _check_contrast(contrast)
    grown = grow_patient(seed, size=size, spacing=spacing, anatomy=anatomy, visits=visits, kind=kind)
    truth = grown.truth | {"scanner": scanner.name, "contrast": contrast, "anatomy": _anatomy_name(anatomy)}
    taken = []
    for number, (day, state) in enumerate(grown.states):
        images = take_images(grown, number, scanner, contrast, seed)
        taken.append(Visit(day, images, Volume(state.labels, grown.head.grid.affine)))
    return Patient(tuple(taken), truth)


def grow_patient(
    seed: Seed,
    *,
    size: int | tuple[int, int, int] = 96,
    spacing: float | tuple[float, float, float] = 2.0,
    anatomy: str | Path | None = None,
    visits: int = 1,
    kind: str | None = None,
) -> GrownPatient:
    """The head and tumour of `make_patient`, which takes most of its time; images of it are cheap (`take_images`)."""
    grid = checked_grid(size, spacing)
    if kind is not None and kind not in (*KINDS, HEALTHY):
        raise InputError(f"kind {kind!r}: unknown; choose one of {', '.join((*KINDS, HEALTHY))}")
    if visits < 1:
        raise InputError(f"visits {visits}: must be at least 1")
    seeds = _checked_seed(seed)
    head_seed = (*seeds, 1)
    head = procedural_anatomy(head_seed, grid) if anatomy is None else warped_anatomy(head_seed, grid, anatomy)
    states, truth = _tumour_over_time(np.random.default_rng((*seeds, 2)), head, visits, kind)
    truth |= {"seed": list(seeds), "size": list(grid.shape), "spacing_mm": list(grid.spacing)}
    return GrownPatient(head, tuple(states), truth)


def take_images(
    patient: GrownPatient, visit: int, scanner: Scanner, contrast: str = "physical", seed: Seed = 0
) -> dict[str, Volume]:
    """The images of one visit by sequence. With one seed the patient's tissue is the same at every visit, the noise is
    not; another seed gives the same head another tissue, as of another patient."""
    _check_contrast(contrast)
    seeds, grid, state = _checked_seed(seed), patient.head.grid, patient.states[visit][1]
    tissue, noise = np.random.default_rng((*seeds, 3)), np.random.default_rng((*seeds, 4, visit))
    if contrast == "physical":
        ideal = scanner.signals(tissue_maps(tissue, state, grid, scanner.field_strength))
    else:
        wanted = tuple(name for name in SEQUENCES if name not in scanner.missing)
        ideal = random_contrast(tissue, state, grid, wanted)
    brain = brain_mask(tissue, state, grid)
    return {
        name: Volume(scanner.acquire(noise, image, name, grid, brain), grid.affine) for name, image in ideal.items()
    }


def write_cohort(
    folder: str | Path,
    *,
    sites: int = 2,
    patients: int = 4,
    visits: int = 1,
    size: int = 96,
    spacing: float = 2.0,
    anatomy: str | Path | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Write `patients` patients for each of `sites` sites: folder/SITE-01/S01P001/t1.nii.gz, ..., seg.nii.gz,
    truth.json.

    With several visits, a folder a date lies between patient and images. A patient appears whole or not at all, and
    one that is there already is kept, so that a broken run goes on where it stopped. `progress(done, total, name)` is
    called after each. Returns a summary: folder, numbers, volumes in mL by patient. Raises `InputError`, or
    `OutOfSpaceError` when the disk is full.
    """
    checked_grid(size, spacing)
    _checked_seed(seed)
    if sites < 1 or patients < 1:
        raise InputError(f"{sites} sites of {patients} patients: ask for at least one of each")
    if anatomy is not None:
        find_label_maps(anatomy)
    folder = Path(folder)
    summary: dict[str, Any] = {"folder": str(folder), "sites": sites, "patients": sites * patients, "visits": visits}
    summary |= {"size": size, "spacing": spacing, "seed": seed, "cases": []}
    for site in range(sites):
        scanner = Scanner.for_site(site, seed)
        for number in range(patients):
            name = f"S{site + 1:02d}P{number + 1:03d}"  # unique in the cohort, for splits by patient
            target = folder / scanner.name / name
            wanted = {"seed": [seed, site, number], "visits": visits, "size": size, "spacing": spacing}
            wanted["anatomy"] = _anatomy_name(anatomy)
            truth = _finished(target, wanted)
            if truth is None:
                patient = make_patient(
                    (seed, site, number), scanner=scanner, size=size, spacing=spacing, anatomy=anatomy, visits=visits
                )
                write_patient(target, patient)
                truth = patient.truth
            entry = {"site": scanner.name, "patient": name, "kind": truth["kind"], "visits": truth["visits"]}
            summary["cases"].append(entry)
            if progress is not None:
                progress(site * patients + number + 1, sites * patients, f"{scanner.name}/{name}")
    return summary


def _finished(target: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The truth of a patient written by an earlier run, or None; `InputError` if it is another cohort's."""
    path = target / "truth.json"
    if not path.exists():
        return None
    try:
        truth: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = {"seed": truth["seed"], "visits": len(truth["visits"])}
        found |= {"size": truth["size"][0], "spacing": truth["spacing_mm"][0], "anatomy": truth["anatomy"]}
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path}: not a synthetic patient's truth; choose an empty folder") from error
    if found != wanted:
        raise InputError(f"{target}: holds a patient of another cohort ({found}); choose an empty folder")
    return truth


def write_patient(target: Path, patient: Patient) -> None:
    """Write one patient's folder in one stroke: into a temporary folder beside it, then renamed."""
    if target.exists():
        raise InputError(f"{target}: is there already and holds something else; choose an empty folder")
    temporary = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a run that was killed
        temporary.mkdir(parents=True)
        for visit in patient.visits:
            day = FIRST_VISIT + timedelta(days=visit.day)
            place = temporary / day.isoformat() if len(patient.visits) > 1 else temporary
            place.mkdir(exist_ok=True)
            for name, image in visit.images.items():
                write_volume(place / f"{name}.nii.gz", Volume(image.array.astype(np.int16), image.affine))
            write_volume(place / "seg.nii.gz", visit.labels)
        text = json.dumps(patient.truth, indent=1) + "\n"
        (temporary / "truth.json").write_text(text, encoding="utf-8")
        temporary.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpaceError(f"{target}: no space left on the disk; free some or choose another folder") from error
        raise InputError(f"{target}: cannot be written ({error.strerror}); choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def checked_grid(size: int | tuple[int, int, int], spacing: float | tuple[float, float, float]) -> Grid:
    """The grid asked for; `InputError` if no head can be drawn on it."""
    shape = (size, size, size) if isinstance(size, int) else (size[0], size[1], size[2])
    steps = (spacing, spacing, spacing) if isinstance(spacing, (int, float)) else (spacing[0], spacing[1], spacing[2])
    if not all(np.isfinite(step) and step > 0 for step in steps):
        raise InputError(f"spacing {spacing} mm: must be above zero")
    if min(shape) < 16:
        raise InputError(f"size {size} voxels: too small for a head; use at least 16")
    extent = min(n * step for n, step in zip(shape, steps, strict=True))
    if extent < 60 or max(steps) > 12:
        raise InputError(f"{size} voxels of {spacing} mm: use a field of view from 60 mm and voxels of 12 mm at most")
    return Grid(shape, (float(steps[0]), float(steps[1]), float(steps[2])))


def _check_contrast(contrast: str) -> None:
    if contrast not in ("physical", "random"):
        raise InputError(f"contrast {contrast!r}: unknown; choose physical or random")


def _anatomy_name(anatomy: str | Path | None) -> str:
    return "procedural" if anatomy is None else "label map"


def _checked_seed(seed: Seed) -> tuple[int, ...]:
    seeds = (seed,) if isinstance(seed, int) else tuple(seed)
    if min(seeds) < 0:
        raise InputError(f"seed {seed}: must be 0 or above")
    return seeds


def _tumour_over_time(
    rng: np.random.Generator, head: Anatomy, visits: int, kind: str | None
) -> tuple[list[tuple[int, TumourState]], dict[str, Any]]:
    """The head at each visit with its day, and the truth about the tumour."""
    if kind == HEALTHY:
        zero = np.zeros(head.grid.shape, dtype=np.float32)
        state = TumourState(head.tissues, np.zeros(head.grid.shape, np.uint8), zero, zero)
        days = [0, *np.cumsum(rng.integers(30, 120, size=visits - 1)).tolist()]
        record: list[dict[str, Any]] = [{"day": day, "volumes_ml": _volumes(state, head.grid)} for day in days]
        return [(day, state) for day in days], {"kind": HEALTHY, "visits": record}
    plan = draw_plan(rng, kind)
    intervals = [int(days) for days in rng.integers(30, 121, size=visits - 1)]
    surviving = float(rng.uniform(0.25, 0.7)) if visits > 1 and rng.random() < 0.4 else None
    for _ in range(4):  # a start in a narrow gyrus can fill it and get no further: then start elsewhere
        tumour = Tumour(rng, head, plan, sum(intervals))
        if tumour.grow_to_size() > 0.5 * plan.volume_ml:
            break
    states: list[tuple[int, TumourState]] = []
    record = []
    day = 0
    for number, interval in enumerate([0, *intervals]):
        if surviving is not None and number == 1:
            tumour.treat(surviving)
        if interval:
            tumour.advance(interval)
        day += interval
        state = paint_tumour(tumour)
        states.append((day, state))
        record.append({"day": day, "tumour_age_days": round(tumour.days, 3), "cells": tumour.cells})
        record[-1]["volumes_ml"] = _volumes(state, head.grid)
    truth = _truth(plan, tumour) | {"visits": record}
    truth["treatment"] = None if surviving is None else {"day": 0, "surviving_fraction": surviving}
    return states, truth


def _truth(plan: TumourPlan, tumour: Tumour) -> dict[str, Any]:
    return {
        "kind": plan.kind,
        "diffusion_white_mm2_per_day": plan.rates.diffusion_white,
        "diffusion_grey_mm2_per_day": plan.rates.diffusion_white / plan.rates.white_to_grey,
        "proliferation_per_day": plan.rates.proliferation,
        "diffusion_unevenness": plan.roughness,  # log standard deviation of the local factor on diffusion
        "seeds_mm": tumour.seeds_mm.round(3).tolist(),
        "oedema_density": plan.oedema_density,
        "core_density": tumour.core_density,
        "planned_volume_ml": plan.volume_ml,
    }


def _volumes(state: TumourState, grid: Grid) -> dict[str, float]:
    counts = np.bincount(state.labels.ravel(), minlength=4)
    return {name: round(float(counts[value]) * grid.voxel_ml, 4) for name, value in (("NCR", 1), ("ED", 2), ("ET", 3))}


def brain_mask(rng: np.random.Generator, state: TumourState, grid: Grid) -> NDArray[np.bool_]:
    """The brain as a stripping tool finds it, (X,Y,Z): brain, sulci and ventricles, with an uneven border."""
    inside = lookup((*SOLID_BRAIN, Tissue.VENTRICLE, Tissue.CHOROID))[state.tissues] | (state.labels > 0)
    inside |= state.tissues >= Tissue.NECROSIS
    sulci = state.tissues == Tissue.CSF
    near = blur(inside.astype(np.float32) + 0.35 * sulci, 3.0, grid.spacing)
    border = 0.44 + 0.05 * smooth_noise(rng, grid.axes, 25.0)
    vessel = state.tissues == Tissue.VESSEL
    return np.asarray((inside | sulci | vessel) & (near > border), bool)
