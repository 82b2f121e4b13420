"""Three hospitals on this computer: an aggregator and three site processes train one model, and no image leaves a site.

The first hospital trains on corrected cases from its case queue, as Slicer's module leaves them there; the others on
folders of labelled cases. All share the processor, so each takes its part of the cores.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from Demo.commands import Commands, side_by_side
from Demo.federation_pictures import bytes_by_round, dice_by_round, rounds_picture
from twinfed.client.site_state import read_state
from twinfed.client.site_twin import first_offer
from twinfed.wire import TensorFile
from twinseg.cases import find_cases, load_case
from twinseg.pictures import slices_picture
from twinseg.tasks import load_task
from twinseg.volumes import read_labels

SITES, PATIENTS, PUT_ASIDE = 3, 14, 3
ROUNDS, EPOCHS = 5, 12
SECONDS = 900.0
"""That the rounds may take at most, on a machine that others use, too."""
RATE = "3e-3"
"""Learning rate: that of a small network which begins with random weights."""
KEY = "6" * 64
"""Of the first hospital's pseudonyms: always the same, so that each demonstration draws the same split."""
DESCRIPTION = """\
name = "demonstration"
task = "brats-glioma"
network = "tiny"
model = "first.safetensors"
rounds = {rounds}
quorum = {sites}
epochs = {epochs}

[strategy]
name = "adaptive"

[upload]
bits = 8
entropy = true

[download]
bits = 8
entropy = true
"""


def show(commands: Commands, folder: Path) -> None:
    page, place = commands.page, folder / "federation"
    page.heading("The federation: three hospitals, one model, no images sent")
    shutil.rmtree(place, ignore_errors=True)  # of an earlier demonstration
    place.mkdir()
    grid = ("--size", "36", "--spacing", "5", "--seed", "6")
    cohort = place / "cohort"
    commands.run("twinseg", "phantom", cohort, "--sites", str(SITES), "--patients", str(PATIENTS), *grid)
    hospitals = {path.name: path for path in sorted(cohort.iterdir()) if path.is_dir()}
    unseen = _put_aside(hospitals, place / "unseen")
    threads = max(1, (os.cpu_count() or 1) // len(hospitals))
    homes = {name: Commands(page, place / f"home-{name}", threads) for name in hospitals}
    model = _first_model(commands, place)
    _correct(homes[next(iter(hospitals))], next(iter(hospitals.values())), place)
    with side_by_side(commands, *homes.values()):
        took = _run(commands, homes, hospitals, place)
        alone = _alone(homes, hospitals, place)
    commands.run("twinfed", "verify", "--folder", place / "aggregator")
    _tell(commands, sorted(hospitals), place, took)
    together = place / sorted(hospitals)[0] / "twins" / f"round-{ROUNDS:04d}-global.safetensors"
    _score(commands, unseen, {"before the first round": model, **alone, "all, federated": together})


def _put_aside(hospitals: dict[str, Path], unseen: Path) -> Path:
    """Patients of each hospital that nobody trains on."""
    for name, cases in hospitals.items():
        (unseen / name).mkdir(parents=True)
        for patient in sorted(path for path in cases.iterdir() if path.is_dir())[-PUT_ASIDE:]:
            patient.rename(unseen / name / patient.name)
    return unseen


def _first_model(commands: Commands, place: Path) -> Path:
    """What the federation begins with: random weights, so that all that is learned is learned here; on a coarse grid
    and in a tiny network, so that a round takes seconds."""
    coarse = dataclasses.replace(load_task("brats-glioma"), spacing=(5.0, 5.0, 5.0), patch=(32, 32, 32))
    task, model = place / "coarse.toml", place / "first.safetensors"
    task.write_text(coarse.to_toml(), encoding="utf-8")
    commands.run("twinfed", "initial", model, "--task", task, "--preset", "tiny")
    return model


def _correct(commands: Commands, hospital: Path, place: Path) -> None:
    """Put the hospital's cases into its queue: what the model drew in the first one, and the corrected label maps."""
    page, task = commands.page, load_task("brats-glioma")
    assert commands.home is not None
    commands.home.mkdir()
    (commands.home / "pseudonyms.key").write_text(KEY, encoding="ascii")
    page.text("At the first hospital a radiologist corrects what the model drew, and submits it to the local queue:")
    case = find_cases(hospital, task)[0]
    loaded, home = load_case(case, task), hospital / case.name
    assert loaded.labels is not None
    drawn, corrected = place / "drawn.nii.gz", home.rename(place / case.name)
    commands.run("twinseg", "segment", corrected, "--output", drawn)
    commands.run(
        "twinseg", "cases", "add", corrected, "--predicted", drawn, "--who", "reader", "--json", place / "case.json"
    )
    before = slices_picture(loaded.images["flair"], task, read_labels(drawn), loaded.labels, "drawn by the model")
    page.picture(before, "what the model drew, and the corrected label map in white")
    record = json.loads((place / "case.json").read_text(encoding="utf-8"))["added"][0]
    change = record["corrections"][-1]["change"].items()
    words = ", ".join(f"{region} {row['change_ml']:+.1f} mL" for region, row in change)
    page.text(f"Coloured: what the starter model drew; white, dashed: as it was corrected ({words}).", "note")
    commands.run("twinseg", "cases", "add", hospital, "--who", "reader")
    corrected.rename(home)


def _run(commands: Commands, homes: dict[str, Commands], hospitals: dict[str, Path], place: Path) -> float:
    """Aggregator and sites, until the last round is over; seconds that it took."""
    page = commands.page
    (place / "federation.toml").write_text(
        DESCRIPTION.format(rounds=ROUNDS, sites=len(hospitals), epochs=EPOCHS), encoding="utf-8"
    )
    page.text("An aggregator, a token for each hospital, and three hospitals that join:")
    for name in hospitals:
        token = commands.run("twinfed", "site", "add", name, "--folder", place / "aggregator")
        (place / f"{name}.token").touch(mode=0o600)
        (place / f"{name}.token").write_text(token, encoding="utf-8")
    words = ("--folder", place / "aggregator", "--config", place / "federation.toml", "--port", "0")
    aggregator = commands.start("twinfed", "aggregator", *words, log=place / "aggregator.log")
    url = address(aggregator, place / "aggregator.log")
    began, sites = time.monotonic(), {}
    for number, (name, cases) in enumerate(hospitals.items()):
        data = ("--data", cases) if number else ()  # the first one's are in its queue
        words = ("--token-file", place / f"{name}.token", "--folder", place / name, *data)
        words += ("--device", "cpu", "--learning-rate", RATE)
        options = ("--longest-poll", "0.5", "--normal-priority", "--parent", str(os.getpid()))
        sites[name] = homes[name].start("twinfed", "join", url, *words, *options, log=place / f"{name}.log")
    _watch(aggregator, sites, place)
    return time.monotonic() - began


def _alone(homes: dict[str, Commands], hospitals: dict[str, Path], place: Path) -> dict[str, Path]:
    """What each hospital comes to by itself, from the same weights and in as many epochs; all at the same time."""
    homes[next(iter(homes))].page.text("For comparison, each hospital trains alone, for as long:")
    models, running = {}, {}
    for name, cases in hospitals.items():
        models[f"{name} alone"] = model = place / f"{name}-alone.safetensors"
        words = ("--task", place / "coarse.toml", "--init", place / "first.safetensors", "--output", model)
        words += ("--epochs", str(ROUNDS * EPOCHS), "--learning-rate", RATE, "--device", "cpu")
        running[name] = homes[name].start("twinseg", "train", cases, *words, log=place / f"{name}-alone.log")
    for name, process in running.items():
        if process.wait(SECONDS):
            raise RuntimeError(f"{name} could not train alone: {place / name}-alone.log")
    return models


def address(aggregator: subprocess.Popen[bytes], log: Path) -> str:
    """Where it listens, which it says itself, as soon as it answers there."""
    until = time.monotonic() + 60
    while time.monotonic() < until and aggregator.poll() is None:
        time.sleep(0.1)
        if found := re.search(r"http://[\d.]+:[1-9]\d*", log.read_text(encoding="utf-8")):
            try:
                urllib.request.urlopen(f"{found[0]}/health", timeout=5).close()
            except OSError:
                continue
            return found[0]
    raise RuntimeError(f"the aggregator did not start: {log.read_text(encoding='utf-8')[-500:]}")


def _watch(aggregator: subprocess.Popen[bytes], sites: dict[str, subprocess.Popen[bytes]], place: Path) -> None:
    """Print what each site says until all have ended. Raises RuntimeError where one fails."""
    printed = dict.fromkeys(sites, 0)
    until = time.monotonic() + SECONDS
    running = True
    while running:
        running = any(process.poll() is None for process in sites.values())
        for name, process in sites.items():
            lines = (place / f"{name}.log").read_text(encoding="utf-8").splitlines()
            for line in lines[printed[name] :]:
                if re.match(r"\d\d:", line):  # not what is said of privacy
                    print(f"{name}: {line}", flush=True)
            printed[name] = len(lines)
            if process.poll():
                raise RuntimeError(f"{name} ended with exit code {process.returncode}: {place / name}.log")
        if aggregator.poll() is not None:
            raise RuntimeError(f"the aggregator ended: {place / 'aggregator.log'}")
        if time.monotonic() > until:
            raise RuntimeError(f"the rounds took longer than {SECONDS:g} s")
        time.sleep(0.5)


def _tell(commands: Commands, names: list[str], place: Path, took: float) -> None:
    """Dice by round, bytes, and the site twins, as the sites wrote them down."""
    page = commands.page
    states: dict[str, dict[str, Any]] = {name: read_state(place / name) for name in names}
    curves, traffic = {name: dice_by_round(state) for name, state in states.items()}, bytes_by_round(states.values())
    up, down = (sum(row[way] for row in traffic.values()) / 1e6 for way in ("up", "down"))
    plain = 4 * sum(math.prod(shape) for shape in TensorFile(place / "first.safetensors").shapes.values()) / 1e6
    page.text(f"{ROUNDS} rounds in {took:.0f} s. Each hospital scores every model on its own validation cases:")
    page.picture(rounds_picture(curves, traffic), "Dice by round at each hospital, and the bytes sent and received")
    rows = []
    for name, state in states.items():
        offer, report = first_offer(place / name), state["rounds"][-1]["report"]
        last = state["twins"][-1]
        share = state["facts"].get("weights", {}).get(name, 0.0)
        dice = (curves[name][0].get("global"), last["global_dice"], last["twin_dice"])
        cases = f"{report['samples']}, {'the queue' if name == names[0] else 'a folder'}"
        rows.append([name, cases, *map(_dice, dice), f"{share:.0%}", "–" if offer is None else offer.kind])
    header = ["site", "training cases", "first model", "global model", "site twin", "weight", "offered first"]
    page.table(header, rows)
    page.text(
        f"Mean Dice on a few validation cases, so it jumps. The site twin is the global model, fine-tuned at the site; "
        f"the better of the two is offered first. {up:.1f} MB were sent and {down:.1f} MB received, by all together; "
        f"{SITES * ROUNDS} updates as they are would have been {SITES * ROUNDS * plain:.0f} MB.",
        "note",
    )


def _score(commands: Commands, unseen: Path, models: dict[str, Path]) -> None:
    """Each model on patients whom no site trained on."""
    page, dice = commands.page, {}
    for name, model in models.items():
        scores = unseen.with_name(f"{model.stem}-unseen.json")
        commands.run("twinseg", "evaluate", unseen, "--model", model, "--split", "all", "--json", scores)
        everywhere = json.loads(scores.read_text(encoding="utf-8"))["summary"]["all"]
        dice[name] = {region: float(row["dice"]["mean"]) for region, row in everywhere.items()}
    count, regions = SITES * PUT_ASIDE, list(next(iter(dice.values())))
    page.text(f"Dice on the {count} patients of the three hospitals whom nobody trained on:")
    page.table(["", *regions], [[name, *(f"{row[region]:.3f}" for region in regions)] for name, row in dice.items()])
    tumour = [row[regions[0]] for row in dice.values()]
    meaning = (
        f"whole tumour, {count} patients that nobody trained on: {SITES} hospitals after {ROUNDS} rounds with no image "
        f"sent; {tumour[0]:.2f} before, {min(tumour[1:-1]):.2f} to {max(tumour[1:-1]):.2f} for each alone"
    )
    page.result(f"Dice {tumour[-1]:.2f}", meaning)


def _dice(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
