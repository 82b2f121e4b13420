"""Runs an experiment: several arms, each with several seeds, and keeps what every run measured.

    python Testing/Experiments/experiment.py Testing/Experiments/papers/fedsegnet.toml [--arm NAME ...] [--seed N ...]

The file says what all arms have in common, [common], and what each changes, [arms.NAME]; its `kind` names the module
beside this one that runs an arm: federations, networks, pictures or synthesis. What a run measured goes to a file,
Docs/results/NAME/ARM-SEED.json: what is there already, made with the same settings, is not run again, so an experiment
may be stopped and gone on with, and processes may share its arms. `make results` makes tables and curves of them.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from twinseg.machine import processor
from twinseg.training_run import commit_of_checkout
from twinseg.volumes import write_atomically

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RESULTS = Path(__file__).resolve().parents[2] / "Docs/results"
KINDS = ("federations", "networks", "pictures", "synthesis")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="TOML file")
    parser.add_argument("--arm", action="append", help="only this one; may be given several times")
    parser.add_argument("--seed", action="append", type=int, help="only this one; may be given several times")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    options = parser.parse_args()

    experiment = tomllib.loads(options.experiment.read_text(encoding="utf-8"))
    if experiment["kind"] not in KINDS:
        parser.error(f"{options.experiment}: kind {experiment['kind']!r} is unknown; use one of {', '.join(KINDS)}")
    kind = importlib.import_module(experiment["kind"])
    for arm, seed, settings in planned(experiment):
        file = options.results / experiment["name"] / f"{arm}-{seed}.json"
        chosen = (not options.arm or arm in options.arm) and (options.seed is None or seed in options.seed)
        if not chosen or is_made(file, settings):
            continue
        made = circumstances(options.device)
        measured = kind.run_arm(settings, options.experiment.resolve().parent, options.device, f"{arm}, seed {seed}")
        run = {"arm": arm, "seed": seed, "settings": digest(settings), **made, **measured}
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(run, indent=1) + "\n"
        write_atomically(file, text.encode())
        print(arm, seed, json.dumps(measured["measures"]), flush=True)


def planned(experiment: Mapping[str, Any]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Every run: arm, seed and settings. Seed by seed, so that a stopped experiment can be looked at."""
    for seed in experiment["seeds"]:
        for arm, changes in experiment["arms"].items():
            yield arm, seed, {**experiment["common"], **changes, "name": experiment["name"], "seed": seed}


def is_made(file: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a run with these settings is kept there."""
    return file.exists() and json.loads(file.read_text(encoding="utf-8"))["settings"] == digest(settings)


def kept(experiment: Mapping[str, Any], results: Path) -> list[dict[str, Any]]:
    """The runs that a folder keeps, but for those made with other settings than the experiment's."""
    files = (
        (results / experiment["name"] / f"{arm}-{seed}.json", settings) for arm, seed, settings in planned(experiment)
    )
    return [json.loads(file.read_text(encoding="utf-8")) for file, settings in files if is_made(file, settings)]


def digest(settings: Mapping[str, Any]) -> str:
    """What tells runs of the same arm and seed with other settings apart."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def circumstances(device: str) -> dict[str, Any]:
    """When, where and with which code a run was made."""
    return {
        "date": date.today().isoformat(),
        "started": time.strftime("%H:%M"),
        "commit": commit_of_checkout(Path(__file__)),
        "machine": f"{processor()}, {os.cpu_count()} cores, {device}",
    }


if __name__ == "__main__":
    main()
