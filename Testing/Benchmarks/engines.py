"""What a federation costs under each engine: seconds, processes, memory and bytes, with 3 and with 16 sites.

``python Testing/Benchmarks/engines.py --nvflare PYTHON [--sites 3 16] [--quick] [--json FILE]``

PYTHON is that of an environment with this project and nvflare (Docs/nvflare.md); every engine runs under it. The sites
are synthetic, with a network so small that what is measured is the engine: four patients, three rounds of one epoch.

- light, simulated: ``twinfed simulate``, all sites in one process, one after the other;
- light, HTTP: ``twinfed aggregator`` and a ``twinfed join`` a site;
- NVFlare, simulated: its simulator, a process a site;
- NVFlare, secure: provisioned, with mutual TLS on loopback; two processes a site and two for the server.

Seconds are from the first start to the last process's end, and a round: the median of the rounds after the first.
Memory is the most that all processes of the engine held at one time, shared pages counted once (Linux; elsewhere each
process's own sum). Bytes a round are all that crossed loopback in a network namespace of the engine's own, divided by
the rounds; where that cannot be made (``unshare -rn``), and for the light simulation, the files' bytes or none.
``--quick`` takes 3 sites, and the simulations only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).resolve().parents[2]
ROOMS = [str(HOUSE / "FederatedClient"), str(HOUSE / "TwinSegSlicer")]
sys.path[:0] = ROOMS

from twinfed.aggregator.accounts import Accounts  # noqa: E402
from twinfed.aggregator.store import Store  # noqa: E402
from twinfed.engines.nvflare.job import load_job  # noqa: E402
from twinfed.engines.nvflare.processes import Processes, wait_until  # noqa: E402
from twinfed.engines.nvflare.secure_trial import free_ports  # noqa: E402
from twinfed.engines.nvflare.trial import try_job  # noqa: E402

ROUNDS, LONGEST = 3, 3000.0
NETWORK = {"channels": [8, 16], "embedding": 32, "depth": 1, "heads": 2}
ENGINES = ("light, simulated", "light, HTTP", "NVFlare, simulated", "NVFlare, secure")
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(ROOMS), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
FEDERATION = """
name = "benchmark"
task = "brats-glioma"
{network}model = "{model}"
rounds = {rounds}
quorum = {sites}
epochs = 1
[strategy]
name = "adaptive"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="The engines of a federation, side by side.")
    parser.add_argument("--nvflare", type=Path, help="python that has this project and nvflare")
    parser.add_argument("--sites", type=int, nargs="+", default=[3, 16])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--quick", action="store_true", help="3 sites, the simulations only")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--measure", choices=ENGINES, help=argparse.SUPPRESS)  # one measurement, in its own process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.sites[0], options.folder)))
        return
    if options.nvflare is None:
        parser.error("name with --nvflare the python of an environment that has nvflare (Docs/nvflare.md)")
    counts, engines = ([3], [ENGINES[0], ENGINES[2]]) if options.quick else (options.sites, options.engines)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for sites in counts:
            for engine in engines:
                rows.append(in_own_process(engine, sites, Path(folder) / f"{len(rows)}", options.nvflare))
                print(line(rows[-1]), flush=True)
    print_table(rows)
    if options.json:
        options.json.write_text(json.dumps({"rounds": ROUNDS, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def in_own_process(engine: str, sites: int, folder: Path, python: Path) -> dict[str, Any]:
    """One measurement, in a network of its own where that can be made."""
    arguments = [str(python), __file__, "--measure", engine, "--sites", str(sites), "--folder", str(folder)]
    alone = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        alone = []
    environment = {**os.environ, **ENVIRONMENT, "TWINFED_OWN_NETWORK": "1" if alone else ""}
    done = subprocess.run([*alone, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{engine}, {sites} sites: {done.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"engine": engine, "sites": sites, **measured}


def measure(engine: str, sites: int, folder: Path) -> dict[str, Any]:
    """Seconds, seconds a round, processes, bytes of memory, and bytes a round."""
    folder.mkdir(parents=True)
    cases = make_sites(folder, sites)
    before = loopback_bytes()
    run = light_simulation if engine == ENGINES[0] else light_http if engine == ENGINES[1] else nvflare
    measured = run(folder, cases, engine)
    after = loopback_bytes()
    if after and engine != ENGINES[0]:
        measured["bytes_a_round"] = round((after - before) / ROUNDS)
    return measured


def make_sites(folder: Path, count: int) -> dict[str, Path]:
    """The initial model, the federation's file and folders of cases: sixteen sites are copies of a few."""
    from twinfed.client.initial_model import task_of, write_initial_model
    from twinfed.client.simulated_site import phantom_sites

    model = folder / "initial.safetensors"
    write_initial_model(model, task_of("brats-glioma", {"spacing": 6.0, "patch": 16}), NETWORK)
    text = FEDERATION.format(network='network = "small"\n', model=model, rounds=ROUNDS, sites=count)
    (folder / "federation.toml").write_text(text, encoding="utf-8")
    few = list(phantom_sites(folder / "phantoms", {"sites": 3, "patients": 4, "size": 24, "spacing": 6.0}, 0).values())
    found = {}
    for number in range(count):
        name = f"SITE-{number + 1:02d}"
        found[name] = Path(shutil.copytree(few[number % len(few)], folder / "cases" / name))
    return found


def light_simulation(folder: Path, cases: dict[str, Path], _: str) -> dict[str, Any]:
    sites = "".join(f'{name} = "{path}"\n' for name, path in cases.items())
    text = FEDERATION.format(network="", model=folder / "initial.safetensors", rounds=ROUNDS, sites=len(cases))
    (folder / "simulation.toml").write_text(f"{text}[sites]\n{sites}", encoding="utf-8")
    started = time.perf_counter()
    with Processes(ENVIRONMENT) as processes:
        arguments = ["twinfed.cli", "simulate", str(folder / "simulation.toml"), "--output", str(folder / "out")]
        running = processes.start(arguments, folder / "log", folder)
        wait_until(lambda: running.poll() is not None, processes, LONGEST, "The simulation")
        result = summary(started, processes, folder / "out/federation")
    moved = json.loads((folder / "out/results.json").read_text())["bytes"]
    return {**result, "bytes_a_round": round((moved["up"] + moved["down"]) / ROUNDS)}


def light_http(folder: Path, cases: dict[str, Path], _: str) -> dict[str, Any]:
    port = free_ports(1)[0]
    started = time.perf_counter()
    with Processes(ENVIRONMENT) as processes:
        arguments = ["--folder", str(folder / "aggregator"), "--config", str(folder / "federation.toml")]
        processes.start(["twinfed.cli", "aggregator", *arguments, "--port", str(port)], folder / "log", folder)
        database = folder / "aggregator" / "aggregator.sqlite"
        wait_until(database.is_file, processes, 120, "Starting the aggregator")
        accounts = Accounts(Store(folder / "aggregator"))
        joined = []
        for name, path in cases.items():
            token, state = folder / f"{name}.token", folder / "sites" / name
            token.write_text(accounts.add(name), encoding="utf-8")
            arguments = [f"http://127.0.0.1:{port}", "--token-file", str(token), "--folder", str(state)]
            arguments += ["--data", str(path), "--longest-poll", "1", "--no-twins", "--normal-priority"]
            joined.append(processes.start(["twinfed.cli", "join", *arguments], folder / f"{name}.log", folder))
        wait_until(lambda: all(one.poll() is not None for one in joined), processes, LONGEST, "The federation")
        return summary(started, processes, folder / "aggregator")


def nvflare(folder: Path, cases: dict[str, Path], engine: str) -> dict[str, Any]:
    job = load_job(folder / "federation.toml")
    measured = try_job(job, cases, folder / "out", secure=engine == ENGINES[3], seconds=LONGEST)
    return {
        "seconds": measured["seconds"],
        "seconds_a_round": statistics.median(row["seconds"] for row in measured["rounds"][1:]),
        "processes": measured["processes"],
        "memory_bytes": measured["memory_bytes"],
    }


def summary(started: float, processes: Processes, federation: Path) -> dict[str, Any]:
    store = Store(federation)
    rows = store.rows("SELECT published - opened AS seconds FROM rounds WHERE published IS NOT NULL ORDER BY number")
    store.close()
    if len(rows) < ROUNDS:
        sys.exit(f"only {len(rows)} of {ROUNDS} rounds are over; see {federation.parent}")
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "seconds_a_round": round(statistics.median(row["seconds"] for row in rows[1:]), 3),
        "processes": processes.most_processes,
        "memory_bytes": processes.most_memory,
    }


def loopback_bytes() -> int:
    """Bytes that were received on loopback; 0 where others use it, too."""
    if not os.environ.get("TWINFED_OWN_NETWORK"):
        return 0
    rows = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()
    return next(int(row.split(":")[1].split()[0]) for row in rows if row.strip().startswith("lo:"))


def line(row: dict[str, Any]) -> str:
    return f"{row['engine']}, {row['sites']} sites: {row['seconds']:.0f} s, {row['processes']} processes"


def print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("engine", "sites", "seconds", "a round", "processes", "memory MB", "MB a round")
    for row in rows:
        moved = row.get("bytes_a_round")
        table.add_row(
            row["engine"],
            str(row["sites"]),
            f"{row['seconds']:.0f}",
            f"{row['seconds_a_round']:.1f}",
            str(row["processes"]),
            f"{row['memory_bytes'] / 1e6:.0f}",
            "–" if moved is None else f"{moved / 1e6:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
