"""NVFlare itself, in an environment of its own: `TWINFED_NVFLARE_PYTHON` names its python (see Docs/nvflare.md)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from twinfed.client.initial_model import task_of, write_initial_model
from twinfed.client.simulated_site import phantom_sites

PYTHON = os.environ.get("TWINFED_NVFLARE_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="TWINFED_NVFLARE_PYTHON names no python that has nvflare"),
    pytest.mark.skipif(" " in PYTHON, reason="NVFlare starts no program with a space in its path"),
]
NETWORK = {"channels": [4, 8], "embedding": 8, "depth": 1, "heads": 1}
SITES = ("SITE-01", "SITE-02", "SITE-03")
LIBRARIES = [str(Path(__file__).parents[3] / room) for room in ("TwinSegSlicer", "FederatedClient")]
HOSTILE = '''
"""Read by Python as it starts: one site spoils what it sends, in another way each round."""
import numpy as np
from twinfed.engines.nvflare import exchange

honest = exchange.outgoing

def outgoing(update, base, form):
    arrays = honest(update, base, form)
    if "{site}" not in ("any", update.parent.name):
        return arrays
    (count := update.parent / "spoilt").open("a").write("x")
    way = "{ways}".split(",")[len(count.read_text()) - 1]
    name = sorted(arrays)[0]
    if way == "nan":
        arrays[name] = np.full_like(arrays[name], np.nan)
    if way == "shape":
        arrays[name] = arrays[name][..., None]
    if way == "hundred":
        arrays = {{key: 100 * array for key, array in arrays.items()}}
    return arrays

exchange.outgoing = outgoing
'''


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites of four patients, and a tiny initial model."""
    folder = tmp_path_factory.mktemp("phantoms")
    task = task_of("brats-glioma", {"spacing": 6.0, "patch": 16})
    write_initial_model(folder / "initial.safetensors", task, NETWORK)
    phantom_sites(folder / "cases", {"sites": 3, "patients": 4, "size": 24, "spacing": 6.0}, seed=0)
    return folder


def description(folder: Path, strategy: str, rounds: int = 2, quorum: int = 3, more: str = "") -> str:
    return (
        f'name = "trial"\ntask = "brats-glioma"\nmodel = "{folder / "initial.safetensors"}"\nrounds = {rounds}\n'
        f'quorum = {quorum}\n{more}[strategy]\nname = "{strategy}"\n'
    )


def program(*arguments: str, path: Path | None = None) -> subprocess.Popen[str]:
    paths = [*([str(path)] if path else []), *LIBRARIES]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [PYTHON, "-m", "twinfed.cli", *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )


@pytest.fixture
def attempt(phantoms: Path, tmp_path: Path) -> Callable[..., tuple[subprocess.Popen[str], Path]]:
    """Begin to try a job with the three sites; the program and its folder."""

    def begin(*options: str, path: Path | None = None, **changes: Any) -> tuple[subprocess.Popen[str], Path]:
        text = description(phantoms, **changes).replace("rounds", 'network = "small"\nrounds', 1)
        (tmp_path / "federation.toml").write_text(text, encoding="utf-8")
        sites = ["--sites", *(str(phantoms / "cases" / site) for site in SITES)]
        output = tmp_path / "out"
        arguments = ["nvflare", "try", str(tmp_path / "federation.toml"), *sites, "--output", str(output), *options]
        return program(*arguments, path=path), output

    return begin


def finished(running: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = running.communicate(timeout=600)
    assert running.returncode == code, output
    return output


def left_over(folder: Path) -> list[list[str]]:
    """Command lines of living processes that name the folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(str(folder) in part for part in command):
            found.append(command)
    return found


@pytest.fixture(scope="module")
def light(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The final model of the light engine for a strategy: name -> array."""
    known: dict[str, dict[str, Any]] = {}

    def model(strategy: str) -> dict[str, Any]:
        if strategy not in known:
            folder = tmp_path_factory.mktemp("light")
            sites = "".join(f'{site} = "{phantoms / "cases" / site}"\n' for site in SITES)
            (folder / "simulation.toml").write_text(f"{description(phantoms, strategy)}[sites]\n{sites}")
            finished(program("simulate", str(folder / "simulation.toml"), "--output", str(folder / "out")))
            final = json.loads((folder / "out/results.json").read_text())["final"]["SITE-01"]
            known[strategy] = load_file(folder / "out/federation/files" / final[:2] / final)
        return known[strategy]

    return model


@pytest.mark.parametrize("mode", ["simulator", "secure"])
@pytest.mark.parametrize("strategy", ["fedavg", "adaptive"])
def test_a_job_gives_the_light_engines_model(
    attempt: Callable[..., Any], light: Callable[[str], dict[str, Any]], strategy: str, mode: str
) -> None:
    running, output = attempt(*(["--secure"] if mode == "secure" else []), strategy=strategy)
    finished(running)

    measured = json.loads((output / "results.json").read_text())
    final = load_file(output / "federation/files" / measured["final"][:2] / measured["final"])
    assert final.keys() == light(strategy).keys()
    assert max(np.abs(array - light(strategy)[name]).max() for name, array in final.items()) < 1e-5
    assert set(measured["rounds"][1]["weights"]) == set(SITES)
    assert set(measured["cross_site"]) == {"initial", "final"}
    assert set(measured["cross_site"]["final"]) == set(SITES)
    finished(program("verify", "--folder", str(output / "federation")))
    assert left_over(output) == []


def test_hostile_updates_are_refused_and_the_job_goes_on(attempt: Callable[..., Any], tmp_path: Path) -> None:
    text = HOSTILE.format(site="SITE-03", ways="nan,shape,hundred")
    (tmp_path / "sitecustomize.py").write_text(text, encoding="utf-8")

    running, output = attempt(path=tmp_path, strategy="fedavg", rounds=3, quorum=2)
    finished(running)

    rounds = json.loads((output / "results.json").read_text())["rounds"]
    codes = [row["refused"] for row in rounds]
    assert codes == [{"SITE-03": "not-finite"}, {"SITE-03": "wrong-shape"}, {"SITE-03": "norm-too-large"}]
    assert all(set(row["weights"]) == {"SITE-01", "SITE-02"} for row in rounds)
    assert "refused the update of SITE-03: not-finite" in (output / "nvflare/simulator.log").read_text()


def test_a_job_that_comes_to_nothing_fails_loudly(attempt: Callable[..., Any], tmp_path: Path) -> None:
    text = HOSTILE.format(site="any", ways="nan,nan,nan")
    (tmp_path / "sitecustomize.py").write_text(text, encoding="utf-8")

    running, output = attempt(path=tmp_path, strategy="fedavg")
    told = finished(running, code=2)

    assert "The job failed after 0 of 2 rounds" in told
    assert "0 of 3 updates were accepted" in told
    assert left_over(output) == []


def test_sites_are_visited_in_turn_and_score_each_others_models(attempt: Callable[..., Any]) -> None:
    more = '[nvflare]\nsend = "weights"\ncross_site = "sites"\n'

    running, output = attempt(strategy="transfer", rounds=3, more=more)
    finished(running)

    measured = json.loads((output / "results.json").read_text())
    assert [list(row["weights"]) for row in measured["rounds"]] == [[site] for site in SITES]
    assert set(measured["cross_site"]) == {"initial", "final", *SITES}
    assert all(set(scores) == set(SITES) for scores in measured["cross_site"].values())


def test_ctrl_c_ends_every_process(attempt: Callable[..., Any]) -> None:
    running, output = attempt("--secure", strategy="fedavg", rounds=50)
    end = time.monotonic() + 300
    while not list(output.glob("sites/*/site.sqlite")) and time.monotonic() < end:
        time.sleep(0.5)
    assert len(left_over(output)) > 4

    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)

    assert running.returncode != 0
    assert left_over(output) == []
