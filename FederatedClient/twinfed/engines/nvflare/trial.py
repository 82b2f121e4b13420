"""Trying a job on this machine: in NVFlare's simulator, or as a provisioned federation with mutual TLS on loopback."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twinfed.aggregator.accounts import NAME
from twinfed.aggregator.store import Store
from twinfed.client.controls import NVFLARE, give_consent
from twinfed.client.site_state import read_state
from twinfed.engines.nvflare.job import ALLOWED, SITE_MODELS, Job, write_job
from twinfed.engines.nvflare.job_federation import JobFederation
from twinfed.engines.nvflare.matrix import FILE as MATRIX
from twinfed.engines.nvflare.processes import Processes, wait_until
from twinfed.engines.nvflare.site_file import SITES_FOLDER, SiteFile, write_site_file
from twinfed.errors import InputError

Report = Callable[[float, str], None]
RESULTS = "results.json"
LONGEST = 24 * 3600.0


def try_job(
    job: Job,
    sites: Mapping[str, Path],
    output: Path,
    *,
    secure: bool = False,
    learning_rate: float | None = None,
    device: str = "cpu",
    seconds: float = LONGEST,
    report: Report = lambda done, stage: None,
) -> dict[str, Any]:
    """Run a job with simulated sites, and return what was measured.

    Args:
        job: as `load_job` reads it.
        sites: name -> folder of labelled cases.
        output: folder of the job, the sites' state, logs and results; what an earlier trial left there is replaced.
        secure: provisioned, as hospitals would be, rather than in the simulator.
        learning_rate: of the sites.
        seconds: after which it is given up.
        report: told how far it is, and what the sites do.

    Raises:
        InputError: the job failed; where the reasons are.
    """
    output = output.absolute()
    for name, cases in sites.items():
        if not cases.is_dir():
            raise InputError(f"{cases}: no such folder. Name folders of labelled cases.")
        if not NAME.fullmatch(name):
            raise InputError(f"{cases}: a site is named like its folder. Take up to 40 letters, digits, - and _.")
    if len(str(output).split()) > 1:
        raise InputError(f"{output}: NVFlare takes no path with spaces. Name another folder.")
    if " " in sys.executable:
        raise InputError(f"{sys.executable}: NVFlare starts no program with a space in its path. Move its environment.")
    for old in ("job", "sites", "nvflare", "federation"):
        shutil.rmtree(output / old, ignore_errors=True)
    (output / "nvflare").mkdir(parents=True)
    folder = write_job(job, output / "job")
    chosen = SiteFile(
        folder=output / "sites",
        device=device,
        learning_rate=learning_rate,
        twins=False,
        low_priority=False,
        share_local_model=job.settings.cross_site == SITE_MODELS,
    )
    environment = _site_files(sites, chosen)
    started = time.perf_counter()

    def look() -> None:
        states = [read_state(chosen.folder / name, lines=0)["facts"] for name in sites]
        number = max(int(facts.get("round", 0)) for facts in states)
        phases = ", ".join(sorted({str(facts["phase"]) for facts in states if facts.get("phase")}))
        stage = f"round {number} of {job.federation.rounds}: {phases}" if number else "starting NVFlare"
        report(max(0, number - 1) / job.federation.rounds, stage)

    with Processes(environment, look) as processes:
        if secure:
            from twinfed.engines.nvflare.secure_trial import run_secure

            run = run_secure(folder, list(sites), output / "nvflare", processes, seconds)
        else:
            run = _run_simulator(folder, list(sites), output / "nvflare", processes, seconds)
        ended = time.perf_counter()
    report(1.0, f"{job.federation.rounds} rounds")
    shutil.copytree(run / "federation", output / "federation")
    result = {
        "name": job.federation.name,
        "engine": "nvflare, secure" if secure else "nvflare, simulator",
        "strategy": dict(job.federation.strategy),
        "sites": len(sites),
        "seconds": round(ended - started, 2),
        "processes": processes.most_processes,
        "memory_bytes": processes.most_memory,
        **_measured(output / "federation", run),
    }
    (output / RESULTS).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def allow_our_classes(resources: Path) -> None:
    """Let the classes of this package, and no other besides NVFlare's own, be named by jobs: as each party does once.

    Args:
        resources: `local/resources.json.default` of a start-up kit; `resources.json` is written beside it.
    """
    content = json.loads(resources.read_text(encoding="utf-8"))
    content["class_allow_list"] = [*content.get("class_allow_list", []), ALLOWED]
    resources.with_name("resources.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _site_files(sites: Mapping[str, Path], chosen: SiteFile) -> dict[str, str]:
    """Write the sites' own settings below the chosen folder; the environment by which they are found."""
    chosen.folder.mkdir(parents=True)
    for name, cases in sites.items():
        how = "twinfed nvflare try"
        give_consent(chosen.folder / name, NVFLARE, how, share_local_model=chosen.share_local_model)
        write_site_file(name, dataclasses.replace(chosen, folder=chosen.folder / name, cases=cases), chosen.folder)
    return {SITES_FOLDER: str(chosen.folder), "PYTHONPATH": os.pathsep.join(filter(None, _paths()))}


def _paths() -> list[str]:
    """Where twinfed and twinseg stand, for the processes; and what was given before."""
    import twinfed
    import twinseg

    here = [str(Path(str(package.__file__)).parents[1]) for package in (twinfed, twinseg)]
    return [*here, os.environ.get("PYTHONPATH", "")]


def _run_simulator(job: Path, sites: list[str], folder: Path, processes: Processes, seconds: float) -> Path:
    """Run the simulator to its end; the job's folder at the server."""
    workspace = folder / "workspace"
    (workspace / "local").mkdir(parents=True)
    default = workspace / "local" / "resources.json.default"
    default.write_text(json.dumps({"format_version": 2}), encoding="utf-8")
    allow_our_classes(default)
    log = folder / "simulator.log"
    arguments = ["nvflare.private.fed.app.simulator.simulator", str(job), "-w", str(workspace)]
    arguments += ["-c", ",".join(sites), "-t", str(len(sites)), "-m", str(len(sites))]
    simulator = processes.start(arguments, log, folder)
    wait_until(lambda: simulator.poll() is not None, processes, seconds, "The simulation")
    run = workspace / "server" / "simulate_job"
    check_finished(run, log, simulator.returncode == 0)
    return run


def check_finished(run: Path, log: Path, ended_well: bool) -> None:
    """NVFlare may call a job a success that came to nothing: ask the federation. Raises InputError."""
    done, wanted = 0, None
    if (run / "federation" / "aggregator.sqlite").is_file():
        store = Store(run / "federation")
        try:
            settings = json.loads(store.setting("federation") or "{}")
            wanted = settings.get("rounds")
            rows = store.rows("SELECT COUNT(*) AS done FROM rounds WHERE published IS NOT NULL")
            done = rows[0]["done"]
        finally:
            store.close()
    if not ended_well or wanted is None or done < wanted:
        reasons = [line for line in _lines(log) if "RoundFailed" in line or "does not take part" in line]
        why = f" {reasons[-1][-300:]}" if reasons else ""
        raise InputError(f"The job failed after {done} of {wanted or '?'} rounds.{why} See {log}.")


def _lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []


def _measured(folder: Path, run: Path) -> dict[str, Any]:
    federation = JobFederation(folder)
    try:
        rounds = federation.report()
    finally:
        federation.close()
    matrix = run / "cross_site_val" / MATRIX
    found = json.loads(matrix.read_text(encoding="utf-8")) if matrix.is_file() else None
    return {"rounds": rounds, "final": rounds[-1]["model"] if rounds else None, "cross_site": found}
