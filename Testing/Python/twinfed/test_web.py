"""The aggregator over HTTP, in this process: a whole federation, models and parts of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twinfed.wire import Compression, hash_file

Make = Callable[..., Any]


def test_a_whole_federation_over_http(web: Make) -> None:
    one = web(rounds=2, upload={"keep": 0.1, "bits": 8, "entropy": True}, download={"bits": 16})
    assert one.get("/api/v1/federation").json()["shapes"]["encoder.bias"] == [5]
    for number in (1, 2):
        for seed, site in enumerate(("s1", "s2", "s3"), start=1):
            now = one.get("/api/v1/round", site).json()
            assert (now["do"], now["round"]) == ("train", number)
            path = one.room.update(site, 10 * number + seed, how=Compression(**now["upload"]))
            assert one.send(site, path, number).json() == {
                "state": "accepted",
                "round": number,
                "hash": hash_file(path),
            }
        one.wait(min(number + 1, 2))
    while one.get("/api/v1/round").json()["do"] != "finished":
        time.sleep(0.01)

    now = one.get("/api/v1/round").json()
    model = one.get(f"/api/v1/models/{now['base']}")

    assert now["do"] == "finished"
    (one.room.folder / "model").write_bytes(model.content)
    assert hash_file(one.room.folder / "model") == now["base"]
    assert one.get(f"/api/v1/models/{now['base']}/delta").status_code == 200
    traffic = one.room.store.rows("SELECT * FROM traffic WHERE site = 's1'")
    sizes = [row["bytes"] for row in one.room.store.rows("SELECT bytes FROM updates WHERE site = 's1' ORDER BY round")]
    assert [row["up"] for row in traffic] == sizes
    assert sum(row["down"] for row in traffic) >= len(model.content)


def test_models_are_cached_and_come_in_parts(web: Make) -> None:
    one = web()
    base = one.get("/api/v1/round").json()["base"]
    address = f"/api/v1/models/{base}"
    whole = one.get(address)

    assert whole.headers["etag"] == f'"{base}"'
    assert one.get(address, **{"If-None-Match": f'"{base}"'}).status_code == 304
    for span, wanted in (
        ("bytes=0-9", whole.content[:10]),
        ("bytes=100-", whole.content[100:]),
        ("bytes=-7", whole.content[-7:]),
        ("bytes=5-999999999", whole.content[5:]),
    ):
        part = one.get(address, Range=span)
        assert (part.status_code, part.content) == (206, wanted)
    for span in ("bytes=999999999-", "bytes=9-5", "bytes=-0", "bytes=a", "lines=1-2", "bytes=1-2,4-5"):
        assert one.refused(one.get(address, Range=span)) == "bad-range"


def test_only_models_are_given_out(web: Make) -> None:
    one = web()
    update = one.room.update("s1", 1)
    digest = hash_file(update)
    assert one.send("s1", update).json()["state"] == "accepted"

    assert one.refused(one.get(f"/api/v1/models/{digest}", "s2")) == "no-model"
    assert one.refused(one.get("/api/v1/models/..%2f..%2faggregator.sqlite")) in ("not-found", "no-model")
    assert one.refused(one.get("/api/v1/models/%")) == "no-model"
