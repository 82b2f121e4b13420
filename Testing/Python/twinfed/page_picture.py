"""Take the picture of the aggregator's page in Docs: ``python page_picture.py OUT.png [WIDTH,HEIGHT]``; needs Chromium.

The federation in it is real, its sites are not: their updates are drawn numbers, their scores a curve.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import uvicorn

from twinfed.aggregator.config import FederationConfig
from twinfed.aggregator.intake import Intake
from twinfed.aggregator.rounds import Federation
from twinfed.aggregator.store import Store
from twinfed.aggregator.web import make_app
from twinfed.wire import ArrayTensors, Compression, Header, Refusal, Report, hash_file, write_model, write_update

SITES = {"harbour": (61, 0.05), "hillside": (34, 0.02), "lakeside": (18, -0.03), "northgate": (9, -0.08)}
PORT = 8655


def main(out: Path, size: str = "1060,1600") -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = uvicorn.Server(uvicorn.Config(make_app(play(folder)), port=PORT, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or "google-chrome"
        options = ["--headless", "--no-sandbox", "--hide-scrollbars"]
        options += [f"--window-size={size}", f"--screenshot={out}", f"--user-data-dir={folder / 'profile'}"]
        subprocess.run([chromium, *options, f"http://127.0.0.1:{PORT}/"], check=True)
        server.should_exit = True
        thread.join()


def play(folder: Path, rounds: int = 6) -> Federation:
    """A federation in its sixth round, with an update that was refused and a round that was extended."""
    random = np.random.default_rng(5)
    write_model(folder / "initial", ArrayTensors({"w": random.standard_normal(200_000).astype(np.float32)}), {})
    config = FederationConfig(
        name="Glioma, four hospitals",
        task="brats-glioma",
        network="small",
        model=str(folder / "initial"),
        quorum=3,
        strategy={"name": "adaptive"},
    )
    now = time.time() - rounds * 7200
    store = Store(folder / "aggregator", lambda: now)
    federation = Federation(store, config)
    for name, (cases, _) in SITES.items():
        federation.accounts.recognise(federation.accounts.add(name))
        federation.accounts.register(name, cases)
    for number in range(1, rounds + 1):
        for name, (cases, offset) in SITES.items():
            now += 1500
            if number == rounds and name in ("lakeside", "northgate"):
                continue
            dice = float(0.84 - 0.5 * np.exp(-number / 2) + offset + random.normal(0, 0.008))
            report = Report(samples=cases, dice_before=dice, dice_after=dice + 0.02, hd95_after=22 * (1 - dice))
            change = (0.01 * random.standard_normal(200_000)).astype(np.float32)
            if number == 5 and name == "northgate":
                send(store, federation, name, folder / "update", 100 * change, report)
            send(store, federation, name, folder / "update", change, report)
        federation.advance()
    now += 24 * 3600
    federation.advance()
    now = time.time()
    return federation


def send(store: Store, federation: Federation, name: str, path: Path, change: object, report: Report) -> None:
    told = federation.instructions(name)
    header = Header(federation=told["federation"], round=told["round"], site=name, base=told["base"], report=report)
    write_update(path, {"w": np.asarray(change)}, header, Compression(keep=0.1, bits=8, entropy=True))
    with store.transaction() as db:
        store.count_traffic(db, told["round"], name, up=path.stat().st_size, down=800_000)
    try:
        Intake(federation).receive(name, told["round"], hash_file(path), path)
    except Refusal as refusal:
        print(refusal)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), *sys.argv[2:])
