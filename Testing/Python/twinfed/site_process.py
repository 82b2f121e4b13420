"""A site for the tests, as a process of its own: it polls, trains (draws numbers), uploads in pieces, and goes on after
every interruption. ``python site_process.py URL TOKEN FOLDER NAME`` ends when the federation is finished.

FOLDER/acknowledged gets a line ``round hash`` for every update that the aggregator said it has; FOLDER/hash is that
update.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from twinfed.wire import Compression, Header, Report, TensorFile, hash_file, write_update

PIECE = 60_000


def main(url: str, token: str, folder: Path, name: str) -> None:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=20) as client:
        ask(client, "PUT", "/api/v1/site", json={"samples": 10 + len(name)})
        while True:
            now = ask(client, "GET", "/api/v1/round").json()
            if now["do"] == "finished":
                return
            if now["do"] == "train":
                base = download(client, folder, now["base"])
                path = train(folder, name, now, base)
                send(client, folder, now["round"], path)
            time.sleep(0.02)


def ask(client: httpx.Client, method: str, address: str, **options: Any) -> httpx.Response:
    """A request that is repeated until somebody answers."""
    while True:
        try:
            answer = client.request(method, address, **options)
        except httpx.TransportError:
            time.sleep(0.05)
            continue
        if answer.status_code >= 500:
            raise SystemExit(f"{method} {address}: {answer.status_code} {answer.text}")
        return answer


def download(client: httpx.Client, folder: Path, digest: str) -> Path:
    """Fetch a model in two parts, so that an interruption falls between them now and then."""
    path = folder / "base"
    if not path.exists() or hash_file(path) != digest:
        parts = [
            ask(client, "GET", f"/api/v1/models/{digest}", headers={"Range": span}).content
            for span in ("bytes=0-99999", "bytes=100000-")
        ]
        path.write_bytes(b"".join(parts))
        assert hash_file(path) == digest
    return path


def train(folder: Path, name: str, now: dict[str, Any], base: Path) -> Path:
    """The same update whenever this site is asked for this round."""
    seed = int.from_bytes(hashlib.sha256(f"{name} {now['round']}".encode()).digest()[:4], "little")
    random = np.random.default_rng(seed)
    delta = {
        key: (0.01 * random.standard_normal(shape)).astype(np.float32)
        for key, shape in sorted(TensorFile(base).shapes.items())
    }
    path = folder / "update"
    report = Report(samples=5 + len(name), dice_before=float(random.random()), dice_after=float(random.random()))
    header = Header(federation=now["federation"], round=now["round"], site=name, base=now["base"], report=report)
    write_update(path, delta, header, Compression(**now["upload"]), seed=seed)
    return path


def send(client: httpx.Client, folder: Path, number: int, path: Path) -> None:
    content, digest = path.read_bytes(), hash_file(path)
    address = f"/api/v1/rounds/{number}/update/{digest}"
    while True:
        state = ask(client, "GET", address)
        if state.status_code == 409:
            return  # late
        answer = state.json()
        if answer["state"] == "uploading":
            start = answer["received"]
            piece = content[start : start + PIECE]  # empty where all is there: only the answer was lost
            headers = {
                "Upload-Offset": str(start),
                "Upload-Length": str(len(content)),
                "Upload-Checksum": f"{zlib.crc32(piece):08x}",
            }
            try:
                answer = client.put(address, content=piece, headers=headers).json()
            except httpx.TransportError:
                time.sleep(0.05)
                continue
        if answer.get("state") == "accepted":
            with open(folder / "acknowledged", "a") as file:
                file.write(f"{number} {digest}\n")
                file.flush()
                os.fsync(file.fileno())
            path.rename(folder / digest)
            return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])
