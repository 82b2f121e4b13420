"""A server of its own, spoken to below HTTP's rules: huge heads, silence, bodies that never come."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from twinfed.aggregator.patience import MOST_REQUESTS
from twinfed.wire import hash_file

Make = Callable[..., Any]
PATIENCE = 0.5


@pytest.fixture
def port(web: Make, serve: Make, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, int]:
    """A federation, and the port where it listens; its patience is short."""
    monkeypatch.setattr("twinfed.aggregator.patience.PATIENCE", PATIENCE)
    monkeypatch.setattr("twinfed.aggregator.transfer.SILENT", PATIENCE)
    one = web()
    return one, serve(one)


def say(port: int, content: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(content)
    return connection


def rest(connection: socket.socket) -> bytes:
    """What comes until the other side closes the connection."""
    content = b""
    try:
        while part := connection.recv(65_536):
            content += part
    except ConnectionResetError:  # it did not want to read what was still on its way
        pass
    return content


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000,
        b"GET /" + b"x" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
        b"\x16\x03\x01\x02\x00\x01\x00" * 10 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"PUT /api/v1/site HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"PUT /api/v1/site HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
    ids=["header", "address", "headers", "tls", "no host", "negative length", "two lengths"],
)
def test_what_is_no_http_is_answered_400_and_the_connection_closed(port: tuple[Any, int], content: bytes) -> None:
    connection = socket.create_connection(("127.0.0.1", port[1]), timeout=30)
    try:
        connection.sendall(content)
    except (BrokenPipeError, ConnectionResetError):
        return  # it closed before all was sent

    answer = rest(connection)
    assert not answer or answer.startswith(b"HTTP/1.1 400")  # nothing where it was closed before all was read


def test_silent_connections_are_closed_and_hold_nobody_up(port: tuple[Any, int]) -> None:
    openings = [b"", b"GET /health HTTP/1.1\r\nX-Slow: ", b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 15_000]
    with ExitStack() as stack:
        silent = [stack.enter_context(say(port[1], openings[count % 3])) for count in range(150)]
        asked = time.monotonic()
        client = http.client.HTTPConnection("127.0.0.1", port[1], timeout=30)
        client.request("GET", "/health")
        assert json.loads(client.getresponse().read())["ok"] is True
        assert time.monotonic() - asked < 5

        assert [rest(connection) for connection in silent] == [b""] * len(silent)
    assert time.monotonic() - asked < 20


def test_a_body_that_does_not_come_is_not_waited_for(port: tuple[Any, int]) -> None:
    head = "PUT /api/v1/site HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 16\r\n"
    head += f"Authorization: {port[0].headers('s1')['Authorization']}\r\n\r\n"

    answer = rest(say(port[1], head.encode() + b'{"sam'))

    assert answer.startswith(b"HTTP/1.1 408")
    assert b"in time" in answer


def head_of(one: Any, line: str, site: str | None = "s1", length: int = 0) -> bytes:
    """The head of a request, with the token of a site or without any."""
    token = f"Authorization: {one.headers(site)['Authorization']}\r\n" if site else ""
    kind = f"Content-Type: application/json\r\nContent-Length: {length}\r\n" if length else ""
    return f"{line} HTTP/1.1\r\nHost: x\r\n{token}{kind}\r\n".encode()


def status(connection: socket.socket) -> bytes:
    """The status of an answer that comes within a few seconds."""
    connection.settimeout(5)
    return connection.recv(12)[-3:]


def test_a_body_that_trickles_has_no_longer_than_one_that_does_not_come(port: tuple[Any, int]) -> None:
    asked = time.monotonic()
    with say(port[1], head_of(port[0], "PUT /api/v1/site", length=16_000)) as connection:
        connection.settimeout(PATIENCE / 5)
        answer = b""
        while not answer and time.monotonic() - asked < 20 * PATIENCE:
            connection.sendall(b" ")
            with suppress(TimeoutError):
                answer = connection.recv(65_536)

    assert answer.startswith(b"HTTP/1.1 408")


def test_nothing_of_a_body_is_waited_for_without_a_token(
    web: Make, serve: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = web()
    with say(serve(one), head_of(one, "PUT /api/v1/site", site=None, length=16_000)) as connection:
        assert status(connection) == b"401"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
def test_strangers_do_not_hold_up_a_site(web: Make, serve: Make, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr("twinfed.aggregator.patience.MOST_STRANGERS", 20)
    monkeypatch.setattr("twinfed.aggregator.server.MOST_CONNECTIONS", 40)
    one = web()
    number = serve(one)
    asking = head_of(one, "GET /api/v1/round")
    with ExitStack() as stack:
        before = stack.enter_context(say(number, asking[:-2]))  # its head is not yet complete
        for _ in range(100):
            stranger = socket.create_connection(("127.0.0.1", number), source_address=(address, 0))
            stack.enter_context(stranger).sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")

        after = stack.enter_context(say(number, asking))
        assert status(after) == b"200"
        if address != "127.0.0.1":
            before.sendall(b"\r\n")
            assert status(before) == b"200"


def test_a_site_that_does_not_read_its_downloads_holds_up_no_other(
    web: Make, serve: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinfed.aggregator.patience.UNREAD", 4 * PATIENCE)
    one = web()
    number, base = serve(one), one.room.federation.instructions("s1")["base"]
    os.truncate(one.room.store.file(base), 50_000_000)  # more than the network holds on its way
    download = head_of(one, f"GET /api/v1/models/{base}")
    with ExitStack() as stack:
        unread = []
        for _ in range(MOST_REQUESTS):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", number))
            connection.sendall(download)
            assert status(connection) == b"200"
            unread.append(connection)

        assert status(stack.enter_context(say(number, download))) == b"429"
        assert status(stack.enter_context(say(number, head_of(one, "GET /api/v1/round", "s2")))) == b"200"
        time.sleep(10 * PATIENCE)
        assert status(stack.enter_context(say(number, download))) == b"200"
        assert all(len(rest(connection)) < 50_000_000 for connection in unread)


def test_a_silent_upload_makes_room_for_the_next_try(port: tuple[Any, int]) -> None:
    one, number = port
    path = one.room.update("s1", 1)
    content, digest = path.read_bytes(), hash_file(path)
    head = f"PUT /api/v1/rounds/1/update/{digest} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
    head += f"Authorization: {one.headers('s1')['Authorization']}\r\nUpload-Offset: 0\r\n"
    head += f"Upload-Length: {len(content)}\r\nUpload-Checksum: {zlib.crc32(content):08x}\r\n\r\n"

    answer = rest(say(number, head.encode() + content[:1000]))

    assert answer.startswith(b"HTTP/1.1 408")
    assert b"too-slow" in answer
    assert one.put("s1", content, digest).json()["state"] == "accepted"
