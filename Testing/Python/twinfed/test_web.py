"""The aggregator over HTTP, in this process: answers, uploads in pieces, downloads, the page, hostile requests."""

from __future__ import annotations

import base64
import json
import os
import re
import resource
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from twinfed.aggregator.verify import faults
from twinfed.aggregator.web import make_app
from twinfed.wire import Compression, hash_file

SHORT = 300  # hostile requests of a default run; -m slow sends 10,000


@dataclass
class Web:
    """A federation behind its routes."""

    room: Any
    client: TestClient
    tokens: dict[str, str]

    def headers(self, site: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[site]}"}

    def wait(self, number: int) -> None:
        """Until round ``number`` is open: aggregation goes on behind the answers."""
        until = time.monotonic() + 20
        while self.room.federation.current()["number"] < number and time.monotonic() < until:
            self.room.federation.advance()
            time.sleep(0.01)
        assert self.room.federation.current()["number"] == number

    def get(self, address: str, site: str = "s1", **headers: str) -> httpx.Response:
        return self.client.get(address, headers={**self.headers(site), **headers})

    def put(
        self,
        site: str,
        content: bytes,
        digest: str,
        number: int = 1,
        offset: int = 0,
        length: int | None = None,
        **more: str,
    ) -> httpx.Response:
        headers = {
            **self.headers(site),
            "Upload-Offset": str(offset),
            "Upload-Length": str(len(content) if length is None else length),
            "Upload-Checksum": f"{zlib.crc32(content):08x}",
            **more,
        }
        return self.client.put(f"/api/v1/rounds/{number}/update/{digest}", content=content, headers=headers)

    def send(self, site: str, path: Path, number: int = 1) -> httpx.Response:
        return self.put(site, path.read_bytes(), hash_file(path), number)


@pytest.fixture
def web(room: Callable[..., Any]) -> Iterator[Callable[..., Web]]:
    with ExitStack() as stack:

        def make(**options: Any) -> Web:
            one = room(sites=(), **options)
            one.folder.joinpath("x").mkdir()
            tokens = {name: one.federation.accounts.add(name) for name in ("s1", "s2", "s3")}
            for name in tokens:
                one.federation.accounts.register(name, 10)
            app = make_app(one.federation)
            client = stack.enter_context(TestClient(app, client=("127.0.0.1", 50000), raise_server_exceptions=False))
            return Web(one, client, tokens)

        yield make


def refusal(answer: httpx.Response) -> str:
    """The code of a refusal, which has a reason and a remedy."""
    content = answer.json()
    assert content.keys() == {"code", "reason", "remedy"}, content
    assert all(content.values())
    assert 400 <= answer.status_code < 500 or answer.status_code == 507
    return str(content["code"])


def test_a_whole_federation_over_http(web: Callable[..., Web]) -> None:
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


def test_an_upload_goes_on_where_it_was(web: Callable[..., Web]) -> None:
    one = web()
    path = one.room.update("s1", 1)
    content, digest = path.read_bytes(), hash_file(path)
    cuts = [0, 100_000, 200_000, len(content)]
    for first, last in pairwise(cuts):
        assert one.get(f"/api/v1/rounds/1/update/{digest}").json() == {"state": "uploading", "received": first}
        answer = one.put("s1", content[first:last], digest, offset=first, length=len(content))
        assert answer.status_code == 200
        again = one.put("s1", content[first:last], digest, offset=first, length=len(content))
        assert again.json() == answer.json()

    assert answer.json()["state"] == "accepted"
    assert len(one.room.store.rows("SELECT * FROM updates")) == 1
    assert one.put("s1", b"", digest, offset=len(content), length=len(content)).json()["state"] == "accepted"
    assert one.put("s1", b"x", digest, offset=5, length=len(content)).json()["state"] == "accepted"


def test_a_damaged_piece_is_sent_again_alone(web: Callable[..., Web]) -> None:
    one = web()
    path = one.room.update("s1", 1)
    content, digest = path.read_bytes(), hash_file(path)
    one.put("s1", content[:1000], digest, length=len(content))

    answer = one.put("s1", content[1000:], digest, offset=1000, length=len(content), **{"Upload-Checksum": "00000000"})

    assert refusal(answer) == "wrong-checksum"
    assert one.get(f"/api/v1/rounds/1/update/{digest}").json()["received"] == 1000
    assert one.put("s1", content[1000:], digest, offset=1000, length=len(content)).json()["state"] == "accepted"


def test_models_are_cached_and_come_in_parts(web: Callable[..., Web]) -> None:
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
        assert refusal(one.get(address, Range=span)) == "bad-range"


def test_only_models_are_given_out(web: Callable[..., Web]) -> None:
    one = web()
    update = one.room.update("s1", 1)
    digest = hash_file(update)
    assert one.send("s1", update).json()["state"] == "accepted"

    assert refusal(one.get(f"/api/v1/models/{digest}", "s2")) == "no-model"
    assert refusal(one.get("/api/v1/models/..%2f..%2faggregator.sqlite")) in ("not-found", "no-model")
    assert refusal(one.get("/api/v1/models/%")) == "no-model"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "no-token"),
        ({"Authorization": "Bearer wrong"}, 401, "unknown-token"),
        ({"Authorization": "Basic eDp5"}, 401, "no-token"),
        ({"Authorization": "Bearer " + "x" * 5000}, 401, "unknown-token"),
        ({"Authorization": "Bearer é".encode()}, 401, "unknown-token"),
    ],
)
def test_without_a_right_token_nothing_is_told(
    web: Callable[..., Web], headers: dict[str, Any], status: int, code: str
) -> None:
    answer = web().client.get("/api/v1/round", headers=headers)

    assert (answer.status_code, refusal(answer)) == (status, code)


def test_revoked_and_others_tokens(web: Callable[..., Web]) -> None:
    one = web()
    path = one.room.update("s1", 1)

    assert refusal(one.send("s2", path)) == "wrong-site"
    one.room.federation.accounts.revoke("s1")
    assert refusal(one.send("s1", path)) == "revoked"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "bad-request"),
        (b"{", "bad-request"),
        (b"[" * 10_000, "bad-request"),
        (b'{"samples":' + b'{"a":' * 2000 + b"1" + b"}" * 2001, "bad-request"),
        (b'{"samples": -1}', "bad-request"),
        (b'{"samples": 1e300}', "bad-request"),
        (b'{"samples": 1, "patient": "x"}', "bad-request"),
        (b'{"samples": 1' + b"0" * 5000 + b"}", "bad-request"),
        (b"x" * 20_000, "bad-request"),
        (b"\xff\xfe\x00", "bad-request"),
    ],
    ids=range(10),
)
def test_hostile_json_is_refused(web: Callable[..., Web], body: bytes, code: str) -> None:
    one = web()

    answer = one.client.put(
        "/api/v1/site", content=body, headers={**one.headers("s1"), "Content-Type": "application/json"}
    )

    assert refusal(answer) == code
    assert one.room.federation.accounts.sites()[0]["samples"] == 10


def test_oversized_truncated_and_misnamed_uploads(web: Callable[..., Web]) -> None:
    one = web(limits={"chunk_mb": 1})
    path = one.room.update("s1", 1)
    content, digest = path.read_bytes(), hash_file(path)

    assert refusal(one.put("s1", content, digest, length=10**12)) == "too-large"
    assert refusal(one.put("s1", content, digest, length=5)) == "too-large"
    assert refusal(one.put("s1", bytes(1_500_000), digest, length=3_000_000)) == "too-large"
    assert refusal(one.put("s1", content[:-1], "0" * 64)) == "wrong-hash"
    assert refusal(one.put("s1", content, "../../../etc/passwd")) in ("not-found", "bad-hash")
    assert refusal(one.put("s1", content, "A" * 64)) == "bad-hash"
    assert refusal(one.put("s1", content, digest, number=2)) == "wrong-round"
    assert refusal(one.put("s1", content, digest, number=-1)) == "wrong-round"
    assert refusal(one.put("s1", content, digest, offset=77, length=len(content) + 77)) == "wrong-offset"
    assert one.put("s1", content, digest).json()["state"] == "accepted"


def test_the_page_shows_what_happened(web: Callable[..., Web]) -> None:
    one = web(rounds=2)
    bad = one.room.update("s1", 9, {name: np.full_like(a, np.nan) for name, a in one.room.model(1).items()})
    assert refusal(one.send("s1", bad)) == "not-finite"
    for seed, site in enumerate(("s1", "s2", "s3"), start=1):
        one.send(site, one.room.update(site, seed))
    one.wait(2)

    page = one.client.get("/")

    assert page.status_code == 200
    assert "not-finite" in page.text
    assert page.text.count("<circle") == 3
    assert "0.333" in page.text
    assert not re.search(r"<script|(src|href)\s*=|url\(|@import|https?://", page.text)
    metrics = one.client.get("/metrics").text
    assert 'twinfed_updates_total{state="accepted",code=""} 3' in metrics
    assert "twinfed_round 2" in metrics
    assert one.client.get("/health").json()["ok"] is True


def test_the_page_is_not_open_to_other_machines(web: Callable[..., Web]) -> None:
    one = web()
    elsewhere = TestClient(one.client.app, client=("192.0.2.1", 50000))

    assert elsewhere.get("/").status_code == 401
    assert one.client.get("/", headers={"X-Forwarded-For": "192.0.2.1"}).status_code == 401
    basic = base64.b64encode(f"s1:{one.tokens['s1']}".encode()).decode()
    assert elsewhere.get("/", headers={"Authorization": f"Basic {basic}"}).status_code == 200
    assert elsewhere.get("/metrics", headers={"Authorization": "Basic !"}).status_code == 401


def test_hostile_text_does_not_become_markup(web: Callable[..., Web]) -> None:
    one = web()
    path = one.room.update("s1", 1, federation="<script>alert(1)</script>")

    assert refusal(one.send("s1", path)) == "wrong-federation"
    assert "<script" not in one.client.get("/").text


def hostile_requests(one: Web, count: int) -> dict[str, int]:
    """Send ``count`` generated requests and updates; each must be refused with a reason or be harmless."""
    codes: dict[str, int] = {}
    good = one.room.update("s1", 1).read_bytes()
    sites = st.sampled_from(["s1", "s2", "s3"])
    tokens = st.one_of(st.sampled_from(list(one.tokens.values())), st.text("abcXYZ-_.~+/= \t", max_size=60))
    numbers = st.one_of(st.integers(0, 3), st.integers(-(2**70), 2**70))
    digests = st.one_of(
        st.just("good"),
        st.text(max_size=80),
        st.sampled_from(["0" * 64, "..", "../..", "%2e%2e%2f", "a" * 5000, "\x00"]),
    )
    special = st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e-40])

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def attack(data: st.DataObject) -> None:
        kind = data.draw(st.sampled_from(["bytes", "values", "header", "request", "json"]))
        if kind == "json":
            answer = one.client.put(
                "/api/v1/site",
                content=data.draw(
                    st.one_of(
                        st.binary(max_size=200),
                        st.recursive(st.one_of(st.none(), st.integers(), st.text()), lambda x: st.lists(x)).map(
                            lambda value: json.dumps({"samples": value if not isinstance(value, int) else -1}).encode()
                        ),
                        st.integers(1, 16_000).map(lambda depth: b"[" * depth),
                    )
                ),
                headers={**one.headers(data.draw(sites)), "Content-Type": "application/json"},
            )
        elif kind == "request":
            digest = data.draw(digests)
            answer = one.client.request(
                data.draw(st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "PATCH"])),
                httpx.URL("http://testserver/api/v1/rounds/").join(
                    f"{data.draw(numbers)}/update/{digest.encode('utf-8', 'replace').hex() if '//' in digest else ''}"
                    + httpx.URL("/", params={"x": digest}).query.decode()[2:]
                ),
                content=data.draw(st.binary(max_size=2000)),
                headers={
                    "Authorization": f"Bearer {data.draw(tokens)}".strip(),
                    "Upload-Offset": str(data.draw(numbers)),
                    "Upload-Length": str(data.draw(numbers)),
                    "Upload-Checksum": data.draw(st.text("0123456789abcdefg", max_size=10)),
                },
            )
        else:
            site = data.draw(sites)
            if kind == "bytes":
                content = bytearray(good)
                for _ in range(data.draw(st.integers(1, 3))):
                    content[data.draw(st.integers(0, 700))] = data.draw(st.integers(0, 255))
                content = content[: data.draw(st.integers(1, len(content)))]
            else:
                change = {name: np.array(array) for name, array in one.room.model(1).items()}
                facts: dict[str, Any] = {}
                if kind == "values":
                    name = data.draw(st.sampled_from(sorted(change)))
                    change = {key: array * np.float32(1e-40) for key, array in change.items()}
                    change[name].reshape(-1)[data.draw(st.integers(0, change[name].size - 1))] = data.draw(special)
                else:
                    facts[data.draw(st.sampled_from(["federation", "site", "base"]))] = data.draw(st.text(max_size=40))
                    if data.draw(st.booleans()):
                        change[data.draw(st.text(max_size=20))] = np.zeros(3, np.float32)
                try:
                    path = one.room.update(site, 5, change, **facts, how=data.draw(COMPRESSIONS))
                except ValueError:
                    return  # our own writer does not send NaN or infinity when it compresses
                content = bytearray(path.read_bytes())
            import hashlib

            answer = one.put(site, bytes(content), hashlib.sha256(content).hexdigest())
        assert answer.status_code < 500, answer.text
        code = str(answer.status_code)
        if answer.status_code >= 400 and answer.request.method != "HEAD":
            code = refusal(answer)
        codes[code] = codes.get(code, 0) + 1

    attack()
    return codes


COMPRESSIONS = st.sampled_from([None, None, Compression(bits=8, entropy=True), Compression(keep=0.1, bits=16)])


@pytest.mark.parametrize("count", [SHORT, pytest.param(10_000, marks=pytest.mark.slow)])
def test_hostile_requests_change_nothing(web: Callable[..., Web], count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinfed.aggregator.rounds.MOST_REFUSED", 10**9)
    one = web()
    before = one.room.federation.current()["bases"]
    hostile_requests(one, 30)  # what the generators load on first use is not the server's
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    codes = hostile_requests(one, count)

    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1000
    print(f"{sum(codes.values())} hostile requests: {dict(sorted(codes.items()))}; memory grew by {grown:.0f} MB")
    assert one.room.store.rows("SELECT * FROM updates WHERE state = 'accepted'") == []
    assert one.room.federation.current()["bases"] == before
    assert grown < 100
    for seed, site in enumerate(("s1", "s2", "s3"), start=1):
        assert one.send(site, one.room.update(site, seed)).json()["state"] == "accepted"
    one.wait(2)
    assert list(faults(one.room.store.folder)) == []


@pytest.mark.parametrize("count", [15, pytest.param(600, marks=pytest.mark.slow)])
def test_the_openapi_schema_is_kept(web: Callable[..., Web], count: int) -> None:
    one = web()
    schema = schemathesis.openapi.from_asgi("/openapi.json", one.client.app)
    sent = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            nonlocal sent
            answer = case.call(headers=one.headers("s2"))
            sent += 1
            assert answer.status_code < 500
            assert str(answer.status_code) in {**case.operation.definition.raw["responses"], "206": 0, "304": 0}

        ask()
    print(f"{sent} requests from the schema")
    assert one.room.store.rows("SELECT * FROM updates WHERE state = 'accepted'") == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs the right to mount a small disk")
def test_a_full_disk_is_told_and_passes(room: Callable[..., Any], tmp_path: Path) -> None:
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        from twinfed.aggregator.rounds import Federation
        from twinfed.aggregator.store import Store

        helper = room(limits={"free_mb": 1e-6})
        store = Store(disk)
        federation = Federation(store, helper.config)
        helper.store.close()
        helper.store, helper.federation = store, federation
        tokens = {name: federation.accounts.add(name) for name in ("s1", "s2", "s3")}
        for name in tokens:
            federation.accounts.register(name, 10)
        client = TestClient(make_app(federation), raise_server_exceptions=False)
        one = Web(helper, client, tokens)
        filler = disk / "filler"

        paths = [helper.update(name, seed) for seed, name in enumerate(tokens, start=1)]
        fill(filler, disk, leave=400_000)
        assert one.send("s1", paths[0]).json()["state"] == "accepted"
        full = one.send("s2", paths[1])
        assert (full.status_code, refusal(full)) == (507, "disk-full")
        filler.unlink()
        assert one.send("s2", paths[1]).json()["state"] == "accepted"
        fill(filler, disk, leave=400_000)  # enough for the last update, not for the next model
        assert one.send("s3", paths[2]).json()["state"] == "accepted"
        with pytest.raises(OSError, match="space"):
            advance_until_it_fails(federation)
        assert federation.current()["state"] == "closing"
        assert "Waits for room" in federation.current()["note"]
        filler.unlink()
        one.wait(2)

        assert list(faults(disk)) == []
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def advance_until_it_fails(federation: Any) -> None:
    """Until the disk is full; another thread may be at it too."""
    while federation.current()["number"] == 1:
        federation.advance()


def fill(path: Path, disk: Path, leave: int) -> None:
    """Take the room on a disk but for ``leave`` bytes."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    path.write_bytes(bytes(max(0, free - leave)))
