"""How fast and how small aggregation is, beside what the machine allows and what other engines take.

``python Testing/Benchmarks/aggregation.py [--quick] [--peers PYTHON] [--json FILE]``

1. 8 and 64 updates of 20 M float32, each engine in a process of its own: seconds, as a multiple of the single-thread
   copy limit (copying the same bytes once within memory), and the peak of anonymous memory as a multiple of the model.
   64 updates are 8 files read 8 times each. Flower's and NVFlare's own functions take part with ``--peers``, the python
   of an environment with ``pip install flwr nvflare torch`` and this project; they are handed the updates in memory,
   which counts.
2. A round of 20 sites x 20 M parameters over loopback HTTP, from the first byte to the published model, as a share of
   the throughput of the same server program when it only copies the bytes to files.

``--quick`` takes 5 M parameters, and 4 sites of 2 M.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

HOUSE = Path(__file__).resolve().parents[2]
ROOMS = [str(HOUSE / "FederatedClient"), str(HOUSE / "TwinSegSlicer")]
sys.path[:0] = ROOMS

from twinfed.aggregator.aggregation import Contribution, aggregate  # noqa: E402
from twinfed.aggregator.strategies import Adaptive, FedAvg  # noqa: E402
from twinfed.wire import Header, Report, TensorFile, UpdateFile, hash_file, write_model, write_update  # noqa: E402
from twinfed.wire.tensors import TensorWriter, model_specs  # noqa: E402

TENSORS = 150
PIECE = 8 * 10**6
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([*ROOMS, os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
CONFIG = """
name = "benchmark"
task = "t"
network = "n"
model = "{model}"
rounds = 1
quorum = {sites}
[limits]
free_mb = 1
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Aggregation: time, memory, throughput.")
    parser.add_argument("--quick", action="store_true", help="smaller, within 40 s")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--peers", type=Path, help="python that has Flower and NVFlare")
    parser.add_argument("--engine", help=argparse.SUPPRESS)  # one measurement, in its own process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        print(json.dumps(measure(options.engine, options.folder, options.count)))
        return
    result: dict[str, Any] = {"cores": os.cpu_count(), "quick": options.quick}
    with tempfile.TemporaryDirectory() as folder:
        result["aggregation"] = compare(Path(folder), 5_000_000 if options.quick else 20_000_000, options.peers)
    with tempfile.TemporaryDirectory() as folder:
        sites, parameters = (4, 2_000_000) if options.quick else (20, 20_000_000)
        result["http"] = compare_http(Path(folder), sites, parameters)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


# -- aggregation alone -------------------------------------------------------------------------------------------------


def compare(folder: Path, parameters: int, peers: Path | None) -> list[dict[str, Any]]:
    """Measure each engine with 8 and with 64 updates, and print a row for each."""
    for number in range(8):
        write_update(folder / f"update{number}", changes(parameters, number), header(f"site{number}", number))
    write_model(folder / "base", UpdateFile(folder / "update0"), {})
    model_bytes = 4 * parameters
    engines = dict.fromkeys(["twinfed fedavg", "twinfed adaptive"], sys.executable)
    engines |= dict.fromkeys(["flwr", "nvflare"] if peers else [], str(peers))
    rows = []
    print(f"{parameters / 1e6:.0f} M float32")
    print(f"{'':<18}{'updates':>8}{'seconds':>9}{'x copy':>8}{'peak MB':>9}{'x model':>9}")
    for count in (8, 64):
        limit = child(sys.executable, "copy", folder, count)["seconds"]
        print(f"{'copy limit':<18}{count:>8}{limit:>9.3f}{1:>8.1f}")
        for engine, python in engines.items():
            row = {"engine": engine, "updates": count, "copy_seconds": limit, **child(python, engine, folder, count)}
            if "seconds" in row:
                row["times_copy"] = row["seconds"] / limit
                row["times_model"] = row["peak_bytes"] / model_bytes
                print(
                    f"{engine:<18}{count:>8}{row['seconds']:>9.3f}{row['times_copy']:>8.1f}"
                    f"{row['peak_bytes'] / 1e6:>9.0f}{row['times_model']:>9.2f}",
                    flush=True,
                )
            else:
                print(f"{engine:<18}{count:>8}  {row['fault']}")
            rows.append(row)
    return rows


def child(python: str, engine: str, folder: Path, count: int) -> dict[str, Any]:
    command = [python, __file__, "--engine", engine, "--folder", str(folder), "--count", str(count)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        return {"fault": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1][:100]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(engine: str, folder: Path, count: int) -> dict[str, Any]:
    """Best of three runs, and the peak of anonymous memory over all of them, the interpreter's included."""
    run = {"copy": run_copy, "flwr": run_flower, "nvflare": run_nvflare}.get(engine)
    peak = Peak()
    with peak:
        if run is None:
            strategy = {"twinfed fedavg": FedAvg, "twinfed adaptive": Adaptive}[engine]()
            seconds = [run_twinfed(strategy, folder, count) for _ in range(3)]
        else:
            seconds = [run(folder, count) for _ in range(3)]
    return {"seconds": min(seconds), "peak_bytes": peak.bytes}


def run_twinfed(strategy: FedAvg | Adaptive, folder: Path, count: int) -> float:
    base, output = TensorFile(folder / "base"), folder / "model"
    updates = []
    for number in range(count):
        file = UpdateFile(folder / f"update{number % 8}")
        updates.append(Contribution(f"site{number:02}", file, file.header.report, norm=1.0 + number))
    start = time.perf_counter()
    weights = strategy.weights(updates, {})
    with (folder / "model").open("wb") as file_out:

        def sink(_: str, __: str, block: Any) -> None:
            file_out.write(block.data)

        aggregate(strategy, base, updates, weights, {}, sink)
    seconds = time.perf_counter() - start
    output.unlink()
    return seconds


def run_copy(folder: Path, count: int) -> float:
    source = [np.fromfile(folder / f"update{number}", dtype=np.uint8) for number in range(8)]
    target = np.zeros_like(source[0])
    start = time.perf_counter()
    for number in range(count):
        np.copyto(target, source[number % 8])
    return time.perf_counter() - start


def run_flower(folder: Path, count: int) -> float:
    from flwr.server.strategy.aggregate import aggregate as flower

    updates = [whole(folder / f"update{number % 8}") for number in range(min(count, 8))]
    results = [(list(updates[number % 8].values()), 10 + number) for number in range(count)]
    start = time.perf_counter()
    flower(results)
    return time.perf_counter() - start


def run_nvflare(folder: Path, count: int) -> float:
    from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper

    updates = [whole(folder / f"update{number}") for number in range(8)]
    helper = WeightedAggregationHelper()
    start = time.perf_counter()
    for number in range(count):
        helper.add(updates[number % 8], 10.0 + number, f"site{number}", 1)
    helper.get_result()
    return time.perf_counter() - start


def whole(path: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(path))


class Peak:
    """The largest anonymous memory of this process while the block runs, looked at every 2 ms (Linux)."""

    bytes = 0

    def __enter__(self) -> Peak:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.bytes = max(self.bytes, 1024 * int(line.split()[1]))


# -- over HTTP ---------------------------------------------------------------------------------------------------------


def compare_http(folder: Path, sites: int, parameters: int) -> dict[str, Any]:
    """Time a round through the aggregator and the same bytes through a server that only copies them."""
    names = [f"site{number:02}" for number in range(sites)]
    random = np.random.default_rng(0)
    specs = model_specs({f"layer{k:03}": (parameters // TENSORS,) for k in range(TENSORS)})
    with TensorWriter(folder / "initial", specs, {}) as writer:
        for spec in specs.values():
            writer.append(random.standard_normal(spec.count, dtype=np.float32))
    (folder / "trial.toml").write_text(CONFIG.format(model=folder / "initial", sites=sites))
    tokens = {name: ask_command(folder, "site", "add", name) for name in names}
    copy = through(folder, sites, "copy", names, tokens, parameters)
    round_ = through(folder, sites, "aggregator", names, tokens, parameters)
    share = copy["seconds"] / round_["seconds"]
    print(
        f"{sites} sites x {parameters / 1e6:.0f} M over HTTP: a round {round_['seconds']:.2f} s "
        f"({round_['megabytes'] / round_['seconds']:.0f} MB/s), copying alone {copy['seconds']:.2f} s "
        f"({copy['megabytes'] / copy['seconds']:.0f} MB/s): {share:.0%}"
    )
    return {"round": round_, "copy": copy, "share": share}


def ask_command(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "twinfed.cli", *arguments, "--folder", str(folder / "aggregator")]
    return subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout.strip()


def through(
    folder: Path, sites: int, kind: str, names: list[str], tokens: dict[str, str], parameters: int
) -> dict[str, float]:
    """Send an update of every site, four at a time, and wait for the round's end; writing updates is not counted."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "twinfed.cli", "aggregator", "--folder", str(folder / "aggregator")]
    command += ["--config", str(folder / "trial.toml"), "--port", str(port)]
    if kind == "copy":
        command = [sys.executable, "-c", COPY_SERVER, str(folder), str(port)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    try:
        wait_for(port)
        base = "0" * 64
        if kind == "aggregator":
            for name in names:
                request(port, tokens[name], "PUT", "/api/v1/site", json.dumps({"samples": 1000}).encode())
            base = json.loads(request(port, tokens[names[0]], "GET", "/api/v1/round"))["base"]
        files = []
        for number, name in enumerate(names):
            files.append(folder / f"{name}.update")
            write_update(files[-1], changes(parameters, number % 4), header(name, number, base))
        hashes = [hash_file(path) for path in files]
        start = time.perf_counter()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: upload(port, tokens[names[n]], files[n], hashes[n]), range(sites)))
        while kind == "aggregator":
            if json.loads(request(port, tokens[names[0]], "GET", "/api/v1/round"))["do"] == "finished":
                break
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in files)
    finally:
        process.terminate()
        process.wait()
    return {"seconds": seconds, "megabytes": size / 1e6}


COPY_SERVER = """
import sys
from pathlib import Path
import uvicorn
from fastapi import FastAPI, Request
app = FastAPI()
@app.get("/health")
def health(): return {}
@app.put("/api/v1/rounds/1/update/{digest}")
async def take(request: Request, digest: str):
    with open(Path(sys.argv[1]) / f"copy.{digest}", "ab") as file:
        async for content in request.stream():
            file.write(content)
    return {}
uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""


def upload(port: int, token: str, path: Path, digest: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    size, offset = path.stat().st_size, 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            headers = {
                "Authorization": f"Bearer {token}",
                "Upload-Offset": str(offset),
                "Upload-Length": str(size),
                "Upload-Checksum": f"{zlib.crc32(piece):08x}",
            }
            connection.request("PUT", f"/api/v1/rounds/1/update/{digest}", piece, headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status} {text[:300]!r}")
            offset += len(piece)
    connection.close()


def request(port: int, token: str, method: str, address: str, body: bytes | None = None) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    connection.request(method, address, body, headers)
    return connection.getresponse().read()


def wait_for(port: int) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("the server does not answer")


def changes(parameters: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    size = parameters // TENSORS
    return {f"layer{k:03}": np.float32(1e-3) * random.standard_normal(size, dtype=np.float32) for k in range(TENSORS)}


def header(site: str, number: int, base: str = "0" * 64) -> Header:
    return Header(federation="benchmark", round=1, site=site, base=base, report=Report(samples=10 + number))


if __name__ == "__main__":
    main()
