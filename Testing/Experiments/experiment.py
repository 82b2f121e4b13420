"""Runs an experiment of federations: several arms, each with several seeds, and keeps what every run measured.

    python Testing/Experiments/experiment.py Testing/Experiments/papers/fedsegnet.toml [--arm NAME ...] [--seed N ...]

The file holds what all arms have in common as `twinfed simulate` takes it, [arms.NAME] what an arm changes. An arm may
also say that a site's labels are wrong, `spoil = {site = "SITE-02", how = "shift"}`, or that sites lack sequences,
`lacking = {SITE-02 = ["t2"]}`. The numbers go to Docs/results/NAME.json, run by run: what is there already, made
with the same settings, is not run again, so an experiment may be stopped and gone on with. `make results` makes tables.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from twinfed.client.initial_model import task_of
from twinfed.client.simulated_site import phantom_sites
from twinfed.simulation import simulate, simulation_of
from twinseg.cases import find_cases
from twinseg.tasks import Task
from twinseg.terminal import progress_bar
from twinseg.training_run import commit_of_checkout
from twinseg.volumes import Volume, read_labels, write_atomically, write_volume

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RESULTS = Path(__file__).resolve().parents[2] / "Docs/results"
OF_AN_ARM = ("spoil", "lacking")
SHIFT_VOXELS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="TOML file")
    parser.add_argument("--arm", action="append", help="only this one; may be given several times")
    parser.add_argument("--seed", action="append", type=int, help="only this one; may be given several times")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()

    experiment = tomllib.loads(options.experiment.read_text(encoding="utf-8"))
    output = options.results / f"{experiment['name']}.json"
    runs = json.loads(output.read_text(encoding="utf-8"))["runs"] if output.exists() else []
    for arm, seed, settings in planned(experiment):
        if (options.arm and arm not in options.arm) or (options.seed and seed not in options.seed):
            continue
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
        if any(run["settings"] == digest and (run["arm"], run["seed"]) == (arm, seed) for run in runs):
            continue
        measured = run_arm(settings, options.experiment.parent, options.device, f"{arm}, seed {seed}")
        runs = [run for run in runs if (run["arm"], run["seed"]) != (arm, seed)]
        runs.append({"arm": arm, "seed": seed, "settings": digest, **circumstances(options.device), **measured})
        told = {key: experiment[key] for key in ("name", "title", "claim") if key in experiment}
        text = json.dumps({**told, "runs": runs}, indent=1) + "\n"
        write_atomically(output, lambda file, text=text: file.write(text.encode()))
        print(f"{arm}, seed {seed}: Dice {measured['federated']:.3f} after {measured['seconds']:.0f} s", flush=True)


def planned(experiment: Mapping[str, Any]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Every run: arm, seed and settings. Seed by seed, so that a stopped experiment can be looked at."""
    for seed in experiment["seeds"]:
        for arm, changes in experiment["arms"].items():
            yield arm, seed, {**experiment["simulation"], **changes, "name": experiment["name"], "seed": seed}


def run_arm(settings: Mapping[str, Any], beside: Path, device: str, told: str) -> dict[str, Any]:
    """Simulate one arm in a folder that is gone afterwards."""
    changes = {key: settings[key] for key in OF_AN_ARM if key in settings}
    content = {key: value for key, value in settings.items() if key not in OF_AN_ARM}
    with tempfile.TemporaryDirectory() as folder:
        config = simulation_of(content, beside)
        task = task_of(config.task, {})
        if changes:
            sites = dict(config.sites) or phantom_sites(Path(folder) / "phantoms", config.phantoms, config.seed)
            changed = changed_sites(sites, task, Path(folder) / "changed", **changes)
            config = simulation_of({**content, "sites": changed, "phantoms": {}}, beside)
        with progress_bar(told) as bar:
            return simulate(config, Path(folder) / "run", device, bar)


def changed_sites(
    sites: Mapping[str, Path],
    task: Task,
    output: Path,
    spoil: Mapping[str, str] | None = None,
    lacking: Mapping[str, list[str]] | None = None,
) -> dict[str, Path]:
    """Folders of the sites' cases with wrong training labels at one, or without some sequences at some.

    Validation and test cases keep their labels, as the question is what wrong labels do to the model.
    """
    spoil, lacking, folders = spoil or {}, lacking or {}, dict(sites)
    for name in {*lacking, *([spoil["site"]] if spoil else [])}:
        folders[name] = output / name
        shutil.copytree(sites[name], folders[name])
        parts = json.loads((folders[name] / "splits.json").read_text(encoding="utf-8"))
        for case in find_cases(folders[name], task, require_labels=True):
            for sequence in lacking.get(name, []):
                if len(case.images) > 1 and sequence in case.images:
                    case.images[sequence].unlink()
            if spoil and name == spoil["site"] and case.name in parts["train"] and case.labels is not None:
                labels = read_labels(case.labels)
                write_volume(case.labels, Volume(spoiled(labels.array, spoil["how"]), labels.affine))
    return folders


def spoiled(labels: np.ndarray, how: str) -> np.ndarray:
    """Wrong labels (X, Y, Z): "shift" by four voxels, "erode" by two, "swap" the values in a circle."""
    if how == "shift":
        return np.roll(labels, SHIFT_VOXELS, (0, 1))
    if how == "erode":
        return np.where(ndimage.binary_erosion(labels > 0, iterations=2), labels, 0).astype(labels.dtype)
    if how == "swap":
        values = np.unique(labels[labels > 0])
        table = np.zeros(256, labels.dtype)
        table[values] = np.roll(values, 1)
        return table[labels]
    raise SystemExit(f"{how}: labels can be spoiled by shift, erode or swap")


def circumstances(device: str) -> dict[str, Any]:
    """When, where and with which code a run was made."""
    return {
        "date": date.today().isoformat(),
        "commit": commit_of_checkout(Path(__file__)),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {device}",
        "started": time.strftime("%H:%M"),
    }


if __name__ == "__main__":
    main()
