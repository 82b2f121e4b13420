"""Makes Docs/results.md of what the experiments have measured: a table an experiment, and a verdict a claim.

    python Testing/Experiments/results.py          # or make results

Numbers come from Docs/results/*.json alone, which `experiment.py` writes; means and standard deviations are over seeds.
The claims stand in the experiments' TOML files. A claim whose runs are not there yet is said to be open.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HOUSE = Path(__file__).resolve().parents[2]
PAPERS = Path(__file__).resolve().parent / "papers"
RESULTS = HOUSE / "Docs/results"
OUTPUT = HOUSE / "Docs/results.md"
HEAD = """# What the papers claim, tried here

Made by `make results` from the JSON files in `results/`, which `Testing/Experiments/experiment.py` writes; nothing in
this file is typed in. Mean ± standard deviation over seeds. Dice is the mean over regions and over the test patients,
by whom nothing was chosen.
"""

Run = Mapping[str, Any]
MEASURES: dict[str, Callable[[Run], float | None]] = {
    "federated": lambda run: run["federated"],
    "pooled": lambda run: run.get("pooled"),
    "alone, on all": lambda run: _mean(run.get("local_only", {}).values()),
    "global at home": lambda run: _mean(twin["global"] for twin in run.get("twins", {}).values()),
    "twins": lambda run: _mean(twin["twin"] for twin in run.get("twins", {}).values()),
    "least twin gain": lambda run: min((gain for gain in _gains(run)), default=None),
    "MB": lambda run: sum(run["bytes"].values()) / 1e6,
}


def main() -> None:
    parts = [HEAD]
    for path in sorted(PAPERS.glob("*.toml")):
        experiment = tomllib.loads(path.read_text(encoding="utf-8"))
        file = RESULTS / f"{experiment['name']}.json"
        runs = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.exists() else []
        parts.append(section(experiment, runs, path.name))
    OUTPUT.write_text("\n".join(parts), encoding="utf-8")
    print(OUTPUT)


def section(experiment: Mapping[str, Any], runs: Sequence[Run], file: str) -> str:
    """One experiment: how it is run, its table, its claims."""
    lines = [
        f"## {experiment['title']}",
        "",
        f"`python Testing/Experiments/experiment.py Testing/Experiments/papers/{file}`",
    ]
    if not runs:
        return "\n".join([*lines, "", "Not run yet.", ""])
    made = {(run["date"], run["machine"], (run["commit"] or "")[:7]) for run in runs}
    lines += ["", *(f"{day}, {machine}, commit {commit}." for day, machine, commit in sorted(made))]
    shown = [name for name in MEASURES if any(MEASURES[name](run) is not None for run in runs)]
    lines += ["", f"| arm | seeds | {' | '.join(shown)} |", "|---|---|" + "---|" * len(shown)]
    for arm in experiment["arms"]:
        chosen = [run for run in runs if run["arm"] == arm]
        cells = [spread([MEASURES[name](run) for run in chosen]) for name in shown]
        lines.append(f"| {arm} | {len(chosen)} | {' | '.join(cells)} |")
    if claims := experiment.get("claims"):
        lines += ["", "| claim | the paper's words | bar | here | verdict |", "|---|---|---|---|---|"]
        lines += [claim_row(claim, runs) for claim in claims]
    return "\n".join([*lines, ""])


def claim_row(claim: Mapping[str, Any], runs: Sequence[Run]) -> str:
    """A claim beside what was measured, seed by seed."""
    kind = next(name for name in KINDS if name in claim)
    measured = [by_arm(runs, name) for name in claim[kind]]
    seeds = sorted(set.intersection(*(set(values) for values in measured)))
    found = [KINDS[kind](*(values[seed] for values in measured)) for seed in seeds]
    verdict = "open" if not found else "holds" if mean(found) >= claim["at_least"] else "does not hold"
    return f"| {claim['text']} | {claim['paper']} | ≥ {claim['at_least']:g} | {spread(found)} | {verdict} |"


KINDS: dict[str, Callable[..., float]] = {
    "difference": lambda one, other=0.0: one - other,
    "ratio": lambda one, other: one / other,
    "saving": lambda one, other: 1 - one / other,
}


def by_arm(runs: Sequence[Run], name: str) -> dict[int, float]:
    """Seed -> value of "arm:measure", or of the federated model where no measure is named."""
    arm, _colon, measure = name.partition(":")
    values = {run["seed"]: MEASURES[measure or "federated"](run) for run in runs if run["arm"] == arm}
    return {seed: value for seed, value in values.items() if value is not None}


def spread(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    return f"{mean(known):.3f}" + (f" ± {stdev(known):.3f}" if len(known) > 1 else "")


def _gains(run: Run) -> list[float]:
    pairs = run.get("twins", {}).values()
    return [pair["twin"] - pair["global"] for pair in pairs if None not in (pair["twin"], pair["global"])]


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


if __name__ == "__main__":
    main()
