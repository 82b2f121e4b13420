"""The line to the aggregator, cut, throttled and damaged: what got through is not sent again."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinfed.client.connection import Connection, Server
from twinfed.client.errors import Unreachable
from twinfed.client.instructions import Instructions
from twinfed.client.upload_size import choose_compression, estimated_bytes
from twinfed.errors import InputError, Refusal
from twinfed.wire import ArrayTensors, Compression, Header, Report, hash_file, write_model, write_update

TOKEN = "twinfed-0123456789"


@pytest.fixture
def large_model(tmp_path: Path) -> Path:
    """Two megabytes, so that a transfer takes many pieces."""
    path = tmp_path / "large.safetensors"
    write_model(path, ArrayTensors({"w": np.random.default_rng(0).standard_normal(500_000).astype(np.float32)}), {})
    return path


def cutting(after: int, seed: int = 0) -> Callable[[bytes, bool], bytes | None]:
    """Cuts each connection at random, every `after` pieces on average."""
    moments = random.Random(seed)
    return lambda piece, up: None if moments.random() < 1 / after else piece


def patiently(what: Callable[[], Any], tries: int = 400) -> tuple[Any, int]:
    """Repeat until it goes through; how often it was tried."""
    for count in range(1, tries + 1):
        try:
            return what(), count
        except Unreachable:
            continue
    raise AssertionError("it never went through")


def test_a_download_that_is_cut_goes_on_where_it_was(
    tmp_path: Path, large_model: Path, aggregator: Any, proxy: Any
) -> None:
    there = aggregator(model=large_model)
    line = proxy(there.url, fault=cutting(40))
    down: list[int] = []
    site = Connection(Server(line.url, there.tokens["SITE-01"]), lambda up, count: down.append(count))
    told, _ = patiently(site.now)

    _, tries = patiently(lambda: site.download(told.base, tmp_path / "model"))

    assert tries > 1
    assert hash_file(tmp_path / "model") == told.base
    assert sum(down) < 1.1 * (tmp_path / "model").stat().st_size
    assert not (tmp_path / "model.part").exists()


def test_a_download_that_arrives_damaged_begins_anew(
    tmp_path: Path, large_model: Path, aggregator: Any, proxy: Any
) -> None:
    there = aggregator(model=large_model)
    damaged: list[int] = []

    def fault(piece: bytes, up: bool) -> bytes:
        if up or len(damaged) > 0 or len(piece) < 10_000:
            return piece
        damaged.append(1)
        return piece[:5000] + bytes([piece[5000] ^ 1]) + piece[5001:]

    line = proxy(there.url, fault=fault)
    site = Connection(Server(line.url, there.tokens["SITE-01"]))
    told = site.now()

    with pytest.raises(Unreachable, match="damaged"):
        site.download(told.base, tmp_path / "model")
    site.download(told.base, tmp_path / "model")

    assert hash_file(tmp_path / "model") == told.base


def test_an_upload_that_is_cut_is_taken_once(tmp_path: Path, large_model: Path, aggregator: Any, proxy: Any) -> None:
    there = aggregator(model=large_model, sites=("SITE-01",), rounds=1)
    line = proxy(there.url, fault=cutting(60, seed=1))
    site = Connection(Server(line.url, there.tokens["SITE-01"]))
    patiently(lambda: site.register(5))
    told, _ = patiently(site.now)
    change = {"w": np.random.default_rng(1).standard_normal(500_000).astype(np.float32)}
    header = Header(federation="trial", round=1, site="SITE-01", base=told.base, report=Report(samples=5))
    path = tmp_path / "update"
    write_update(path, change, header)
    digest = hash_file(path)

    _, tries = patiently(lambda: site.upload(1, path, digest, 8_000_000))

    assert tries > 1
    assert there.accepted() == ["SITE-01"]
    line.fault = lambda piece, up: piece
    site.upload(1, path, digest, 8_000_000)  # where only the answer was lost
    assert there.accepted() == ["SITE-01"]


def test_what_is_no_aggregator_is_said(aggregator: Any, proxy: Any, tmp_path: Path) -> None:
    there = aggregator()
    wrong = Connection(Server(there.url, TOKEN))
    login = Connection(Server(proxy(there.url, fault=lambda piece, up: _login_page(piece, up)).url, TOKEN))
    nowhere = Connection(Server("http://127.0.0.1:9", TOKEN))

    with pytest.raises(Refusal) as refused:
        wrong.now()
    assert refused.value.code == "unknown-token"
    with pytest.raises(Unreachable, match="does not answer as an aggregator"):
        login.now()
    with pytest.raises(Unreachable, match="cannot be reached"):
        nowhere.now()


def _login_page(piece: bytes, up: bool) -> bytes:
    page = b"<html>Please log in to the hospital's network</html>"
    return piece if up else b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page) + page


@pytest.mark.parametrize(
    ("url", "token", "message"),
    [
        ("ftp://aggregator", TOKEN, "no address"),
        ("aggregator:8600", TOKEN, "no address"),
        ("http://aggregator.org", TOKEN, "in the clear"),
        ("https://aggregator.org", "", "no token"),
        ("https://aggregator.org", "two\nlines-of-it", "no token"),
    ],
)
def test_a_server_that_cannot_be_is_refused_at_once(url: str, token: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Server(url, token)


TOLD = {
    "do": "train",
    "why": "The round is open.",
    "federation": "trial",
    "round": 2,
    "rounds": 3,
    "state": "open",
    "base": "a" * 64,
    "delta_from": None,
    "seconds_left": 100.0,
    "poll_seconds": 5.0,
    "epochs": 2,
    "client_terms": {"proximal_mu": 0.1},
    "upload": {"keep": 0.5, "threshold": 0.0, "bits": 8, "entropy": True},
    "update": None,
    "log_head": "b" * 64,
}


@pytest.mark.parametrize(
    "change",
    [
        {"do": "erase"},
        {"base": "../../etc/passwd"},
        {"delta_from": "x"},
        {"round": "two"},
        {"round": 9},
        {"epochs": 10**9},
        {"client_terms": []},
        {"client_terms": {"proximal_mu": 1e9}},
        {"upload": {"bits": 7}},
        {"upload": {"sticks": 7}},
        {"seconds_left": float("nan")},
        {"poll_seconds": -1},
    ],
)
def test_instructions_that_cannot_be_are_taken_for_a_damaged_answer(change: dict[str, Any]) -> None:
    told = Instructions.from_dict(TOLD)

    assert (told.round, told.proximal_mu, told.upload.bits) == (2, 0.1, 8)
    with pytest.raises(Unreachable, match="damaged"):
        Instructions.from_dict({**TOLD, **change})


def test_the_upload_is_as_small_as_the_deadline_asks() -> None:
    parameters = 5_000_000
    plain = Compression()

    assert choose_compression(plain, parameters, None, 10) == plain
    assert choose_compression(plain, parameters, 1e9, 10) == plain
    slow = choose_compression(plain, parameters, 125_000, 60)  # 1 Mbit/s, a minute
    assert estimated_bytes(slow, parameters) <= 125_000 * 60 / 2
    assert slow.keep < 1
    milder = choose_compression(plain, parameters, 125_000, 200)
    assert (milder.keep, milder.bits) == (1.0, 16)
    hopeless = choose_compression(plain, parameters, 10, 1)
    assert hopeless.keep == 0.01
    assert choose_compression(Compression(keep=0.001, bits=8), parameters, 10, 1).keep == 0.001
