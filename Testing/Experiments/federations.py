"""Experiments whose arms are federations: `twinfed simulate`, with wrong labels at a site or sequences lacking there.

An arm's settings are what a simulation's TOML file holds (`twinfed.simulation.SimulationConfig`), and
    spoil = {site = "SITE-02", how = "shift"}      wrong training labels at a site: shift, erode or swap
    lacking = {SITE-02 = ["t2"]}                   sequences that sites do not have
    reach = 0.6                                    a Dice; the table says after how many rounds it was reached
"""

from __future__ import annotations

import shutil
import stat
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from scipy import ndimage

from twinfed.client.case_source import CaseSource
from twinfed.client.initial_model import task_of
from twinfed.client.simulated_site import phantom_sites
from twinfed.simulation import simulate, simulation_of
from twinseg.errors import InputError
from twinseg.tasks import Task
from twinseg.terminal import progress_bar
from twinseg.volumes import Volume, read_labels, write_volume

OF_AN_ARM = ("spoil", "lacking")
SHIFT = 15.0  # mm


def run_arm(settings: Mapping[str, Any], beside: Path, device: str, told: str) -> dict[str, Any]:
    """Simulate one arm in a folder that is gone afterwards.

    Its seconds are of the processor, which other programs do not change; on another device of the clock.
    """
    now = time.process_time if device == "cpu" else time.perf_counter
    changes = {key: settings[key] for key in OF_AN_ARM if key in settings}
    content = {key: value for key, value in settings.items() if key not in (*OF_AN_ARM, "reach")}
    with tempfile.TemporaryDirectory() as folder:
        config = simulation_of(content, beside)
        if changes:
            sites = dict(config.sites) or phantom_sites(Path(folder) / "phantoms", config.phantoms, config.seed)
            changed = changed_sites(sites, task_of(config.task, {}), Path(folder) / "changed", **changes)
            config = simulation_of({**content, "sites": changed, "phantoms": {}}, beside)
        began = now()
        with progress_bar(told) as bar:
            measured = simulate(config, Path(folder) / "run", device, bar)
        measured["seconds"] = round(now() - began, 1)
    curve = [row["union"] for row in measured["rounds"]]
    columns = measures(measured)
    if "reach" in settings:
        columns["rounds to reach"] = next((n for n, dice in enumerate(curve) if dice >= settings["reach"]), len(curve))
    return {"measures": columns, "curves": {"Dice on test cases": curve}, **measured}


def measures(measured: Mapping[str, Any]) -> dict[str, float | None]:
    """The columns of an experiment's table, from what a simulation measured.

    Dice is the mean over regions and test cases; "at home" is on a site's own test cases, averaged over sites, as are
    HD95, sensitivity and specificity. MB do not hold the first model, which each site has to fetch once.
    """
    columns: dict[str, float | None] = {"Dice": measured["federated"]}
    columns["Dice (validation)"] = measured["validation"]
    sites, rounds = measured["by_site"].values(), measured["rounds"][1:]
    if "pooled" in measured:
        columns["pooled"] = measured["pooled"]
    if alone := measured.get("local_only"):
        columns["alone"] = _mean(alone.values())
    if twins := measured.get("twins", {}).values():
        gains = [one["twin"] - one["global"] for one in twins if None not in (one["twin"], one["global"])]
        columns["global at home"] = _mean([one["global"] for one in twins])
        columns["twins at home"] = _mean([one["twin"] for one in twins])
        columns["least twin gain"] = min(gains, default=None)
    for name, shown in (("hd95", "HD95 mm"), ("sensitivity", "sensitivity"), ("specificity", "specificity")):
        columns[shown] = _mean([site[name] for site in sites])
    columns["MB"] = sum(row["bytes"][way] for row in rounds for way in ("up", "down")) / 1e6
    return {**columns, "seconds": measured["seconds"]}


def changed_sites(
    sites: Mapping[str, Path],
    task: Task,
    output: Path,
    spoil: Mapping[str, str] | None = None,
    lacking: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Path]:
    """Folders of the sites' cases with wrong training labels at one, or without some sequences at some.

    Validation and test cases keep their labels, as the question is what wrong labels do to the model; a sequence that
    lacks at a site lacks in all of its cases, but for those that have nothing else.
    """
    spoil, lacking, folders = spoil or {}, lacking or {}, dict(sites)
    for name in {*lacking, *([spoil["site"]] if spoil else [])}:
        folders[name] = writable_copy(sites[name], output / name)
        parts = CaseSource(folder=folders[name]).find(task)
        if spoil and name == spoil["site"]:
            files = [case.labels for case in parts["train"] if case.labels is not None]
            right = [read_labels(file) for file in files]
            for file, labels, other in zip(files, right, [*right[1:], *right[:1]], strict=True):
                write_volume(file, spoiled(labels, spoil["how"], other))
        for case in chain.from_iterable(parts.values()):
            for sequence in lacking.get(name, []):
                if len(case.images) > 1 and sequence in case.images:
                    case.images.pop(sequence).unlink()
    return folders


def writable_copy(folder: Path, copy: Path) -> Path:
    """A copy of a folder that may be changed, even where the folder may not."""
    shutil.copytree(folder, copy)
    for path in (copy, *copy.rglob("*")):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
    return copy


def spoiled(labels: Volume, how: str, other: Volume) -> Volume:
    """Wrong labels: "shift" by 15 mm along two axes, "erode" by two voxels, "swap" for those of another patient."""
    array = labels.array
    if how == "shift":
        array = np.roll(array, [round(SHIFT / step) for step in labels.spacing[:2]], (0, 1))
    elif how == "erode":
        array = np.where(ndimage.binary_erosion(array > 0, iterations=2), array, 0).astype(array.dtype)
    elif how == "swap":
        factors = np.divide(array.shape, other.array.shape)
        array = ndimage.zoom(other.array, factors, order=0, mode="nearest", grid_mode=True)
    else:
        raise InputError(f"spoil: how = {how!r} is unknown; labels are spoiled by shift, erode or swap")
    return Volume(array, labels.affine)


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None
