"""A server of its own, spoken to below HTTP's rules: huge heads, silence, bodies that never come."""

from __future__ import annotations

import http.client
import json
import socket
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

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
