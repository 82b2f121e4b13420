"""Makes Docs/results.md of what the experiments have measured: a table an experiment, its curves, a verdict a claim.

    python Testing/Experiments/results.py          # or make results

Numbers come from Docs/results/NAME/*.json alone, which `experiment.py` writes; means and standard deviations are over
seeds. The claims stand in the experiments' TOML files. A claim whose runs are not there yet is said to be open.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from cycler import cycler
from experiment import kept
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HOUSE = Path(__file__).resolve().parents[2]
PAPERS = Path(__file__).resolve().parent / "papers"
RESULTS = HOUSE / "Docs/results"
OUTPUT = HOUSE / "Docs/results.md"
HEAD = """# What the papers claim, tried here

Made by `make results` from the JSON files in `results/`, which `Testing/Experiments/experiment.py` writes, a file a
run, with its seed, commit and machine; nothing in this file is typed in. Mean ± standard deviation over seeds. All was
chosen on validation patients; the test patients were scored once a run, at its end.

The images of `lgg/` are TCGA-LGG at four institutions: their spacing is nominal (240 mm field of view), so distances in
mm are nominal too, and not every patient is skull-stripped. Those of `chest-ct/` name no patient, 46 of the 54 normal
test pictures are copies of training pictures, and one picture stands under two labels: hence two columns.
"""

COUNTED = {
    "federations": ("round", 0),
    "pictures": ("round", 1),
    "networks": ("validation", 1),
    "synthesis": ("validation", 1),
}
"""By an experiment's kind: what its curves go by, and the number of their first point. Round 0 is the first model."""

Run = Mapping[str, Any]


def main() -> None:
    parts = [HEAD]
    for path in sorted(PAPERS.glob("*.toml")):
        experiment = tomllib.loads(path.read_text(encoding="utf-8"))
        parts.append(section(experiment, kept(experiment, RESULTS), path.name))
    OUTPUT.write_text("\n".join(parts), encoding="utf-8")
    print(OUTPUT)


def section(experiment: Mapping[str, Any], runs: Sequence[Run], file: str) -> str:
    """One experiment: how it is run, its table, its curves, its claims, what is to be said of it."""
    lines = [
        f"## {experiment['title']}",
        "",
        f"`python Testing/Experiments/experiment.py Testing/Experiments/papers/{file}`",
        "",
        *(f"{text}\n" for text in [experiment.get("about", "").strip()] if text),
    ]
    if not runs:
        return "\n".join([*lines, "Not run yet.", ""])
    lines += [*made_by(runs), "", *table(experiment["arms"], runs), ""]
    if any(run.get("curves") for run in runs):
        picture = RESULTS / experiment["name"] / "curves.png"
        draw_curves(experiment, runs, picture)
        lines += [f"![{experiment['title']}]({picture.relative_to(OUTPUT.parent).as_posix()})", ""]
    if against := experiment.get("against"):
        picture = RESULTS / experiment["name"] / "against.png"
        draw_against(experiment["title"], against, runs, picture)
        lines += [
            f"![{against['up']} against {against['across']}]({picture.relative_to(OUTPUT.parent).as_posix()})",
            "",
        ]
    for arm in experiment["arms"]:
        lines += confusion_tables(arm, [run for run in runs if run["arm"] == arm])
    if claims := experiment.get("claims"):
        lines += ["| claim | the paper's words | bar | here | verdict |", "|---|---|---|---|---|"]
        lines += [claim_row(claim, runs) for claim in claims]
    return "\n".join([*lines, "", *(f"{text}\n" for text in [experiment.get("found", "").strip()] if text)])


def made_by(runs: Sequence[Run]) -> list[str]:
    """When, on what machine and at which commits the runs were made."""
    by_machine: dict[str, list[Run]] = {}
    for run in runs:
        by_machine.setdefault(run["machine"], []).append(run)
    lines = []
    for machine, made in sorted(by_machine.items()):
        days = sorted({run["date"] for run in made})
        commits = sorted({(run["commit"] or "unknown")[:7] for run in made})
        days_told = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        lines.append(f"{days_told}, {machine}, commit {', '.join(commits)}.")
    return lines


def table(arms: Iterable[str], runs: Sequence[Run]) -> list[str]:
    """A row an arm, a column a measure."""
    names = list(dict.fromkeys(name for run in runs for name in run["measures"]))
    lines = [f"| arm | seeds | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for arm in arms:
        chosen = [run for run in runs if run["arm"] == arm]
        cells = [spread([run["measures"].get(name) for run in chosen]) for name in names]
        lines.append(f"| {arm} | {len(chosen)} | {' | '.join(cells)} |")
    return lines


def confusion_tables(arm: str, runs: Sequence[Run]) -> list[str]:
    """The confusion matrices of an arm, summed over seeds: true classes down, predicted ones across."""
    found = [run["confusion"] for run in runs if "confusion" in run]
    if not found:
        return []
    classes, lines = found[0]["classes"], []
    told = "1 seed" if len(found) == 1 else f"{len(found)} seeds together"
    for part in (name for name in found[0] if name != "classes"):
        counts = np.sum([one[part] for one in found], axis=0).round().astype(int)
        lines += [f"{arm}, {part}: true classes down, predicted across, {told}.", ""]
        lines += [f"| | {' | '.join(classes)} |", "|---|" + "---|" * len(classes)]
        lines += [f"| {name} | {' | '.join(map(str, row))} |" for name, row in zip(classes, counts, strict=True)]
        lines += [""]
    return lines


def draw_curves(experiment: Mapping[str, Any], runs: Sequence[Run], path: Path) -> None:
    """A picture of each curve of the runs, a line an arm: the mean over seeds."""
    counted, first = COUNTED[experiment["kind"]]
    labels = list(dict.fromkeys(label for run in runs for label in run.get("curves", {})))
    figure = Figure(figsize=(2.5 + 5.5 * len(labels), 4.2), layout="constrained")
    for axes, label in zip(np.atleast_1d(figure.subplots(1, len(labels))), labels, strict=True):
        axes.set_prop_cycle(cycler(linestyle=["-", "--"]) * cycler(color=TABLEAU_COLORS))
        for arm in experiment["arms"]:
            found = [run["curves"][label] for run in runs if run["arm"] == arm and label in run.get("curves", {})]
            if found:
                length = min(map(len, found))
                means = np.mean([one[:length] for one in found], axis=0)
                axes.plot(np.arange(length) + first, means, linewidth=1.3, label=arm)
        axes.set(title=experiment["title"] if len(labels) == 1 else label, ylabel=label, xlabel=counted)
        axes.grid(alpha=0.3)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


LEAST_SHOWN = 0.1


def draw_against(title: str, against: Mapping[str, Any], runs: Sequence[Run], path: Path) -> None:
    """One measure over another on a logarithmic axis, a point for each named arm: mean and standard deviation."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    found = {
        arm: [by_arm(runs, f"{arm}:{against[name]}").values() for name in ("across", "up")] for arm in against["arms"]
    }
    points = {arm: (mean(across), up) for arm, (across, up) in found.items() if across and up}
    for number, (arm, (place, up)) in enumerate(sorted(points.items(), key=lambda point: point[1][0])):
        axes.errorbar(place, mean(up), stdev(up) if len(up) > 1 else 0, fmt="o", markersize=5, capsize=3, color="C0")
        beside = (0, -16 if number % 2 else 9)  # neighbours' names do not meet
        axes.annotate(arm, (place, mean(up)), beside, textcoords="offset points", ha="center", fontsize="small")
    axes.plot(*zip(*sorted((place, mean(up)) for place, up in points.values()), strict=True), color="C0", alpha=0.4)
    axes.set(title=title, xlabel=against["across"], ylabel=against["up"], xscale="log")
    axes.margins(0.1, 0.25)
    low, high = axes.get_ylim()
    room = max(0.0, LEAST_SHOWN - (high - low)) / 2  # so that a difference that is nothing does not look like one
    axes.set_ylim(low - room, high + room)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


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
    """Seed -> value of "arm:measure", or of the first measure where none is named."""
    arm, _colon, measure = name.partition(":")
    chosen = [run for run in runs if run["arm"] == arm]
    values = {run["seed"]: run["measures"].get(measure or next(iter(run["measures"]))) for run in chosen}
    return {seed: value for seed, value in values.items() if value is not None}


def spread(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation, to three digits or what such a number needs."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    digits = 3 if abs(mean(known)) < 10 else 1 if abs(mean(known)) < 1000 else 0
    return f"{mean(known):.{digits}f}" + (f" ± {stdev(known):.{digits}f}" if len(known) > 1 else "")


if __name__ == "__main__":
    main()
