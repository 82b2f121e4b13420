"""Bytes in and out over HTTP: pieces of updates as they arrive, files of the store and parts of them.

Neither holds more than a few megabytes a site, and the disk is worked on by other threads, so that a slow disk or a
slow site holds up nobody else.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import IO

import anyio
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from twinfed.wire import Refusal

from .store import Store
from .uploads import Piece

SLOWEST = 600.0  # seconds that a piece of an upload may take; 8 MB at 0.1 Mbit/s
SILENT = 60.0  # seconds without a byte after which the sender is given up, so that it can begin anew
BATCH = 2**20  # bytes that are written and hashed at a time
DOWNLOAD_PIECE = 2**18


async def take_piece(request: Request, opened: AbstractContextManager[Piece], checksum: str) -> None:
    """Write the request's body to the piece that ``opened`` gives, and acknowledge it if it is whole.

    Raises:
        Refusal: the piece cannot be taken, is damaged, cut short or too slow.
    """
    piece = await run_in_threadpool(opened.__enter__)
    try:
        await _write(request, piece)
        piece.check(checksum)
    except BaseException as error:
        opened.__exit__(type(error), error, error.__traceback__)
        raise
    await run_in_threadpool(opened.__exit__, None, None, None)


async def _write(request: Request, piece: Piece) -> None:
    """One batch is written while the next one arrives."""
    loop, batch, size = asyncio.get_running_loop(), list[bytes](), 0
    writing = loop.create_future()
    writing.set_result(None)
    end = loop.time() + SLOWEST
    try:
        with anyio.fail_after(SILENT) as scope:
            async for content in request.stream():
                scope.deadline = min(end, loop.time() + SILENT)
                batch.append(content)
                size += len(content)
                if size >= BATCH:
                    await asyncio.shield(writing)
                    writing, batch, size = loop.run_in_executor(None, piece.write, batch), [], 0
        await asyncio.shield(writing)
        await run_in_threadpool(piece.write, batch)
    except TimeoutError as error:
        raise Refusal(
            "too-slow", "The piece did not arrive in time.", "Send it again, or smaller ones.", 408
        ) from error
    except ClientDisconnect as error:
        raise Refusal("cut-short", "The connection ended within a piece.", "Send it again.", 400) from error
    finally:
        await asyncio.wait([writing])  # the file is not closed while a thread writes to it


def body_length(request: Request) -> int:
    """The length that a body is said to have.

    Raises:
        Refusal: it is not said.
    """
    text = request.headers.get("content-length", "")
    if not text.isdecimal() or len(text) > 15:
        raise Refusal("no-length", "The piece's length was not told.", "Send Content-Length.", 411)
    return int(text)


def send_file(store: Store, request: Request, site: str, digest: str, file: str) -> Response:
    """Answer with a file of the store, or with the part that is asked for; ``digest`` is its name in the address.

    Raises:
        Refusal: the file is not kept any more, or has no such part.
    """
    headers = {"ETag": f'"{digest}"', "Cache-Control": "private, immutable, max-age=31536000", "Accept-Ranges": "bytes"}
    if f'"{digest}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    path, wanted = store.file(file), request.headers.get("range")
    try:
        size = path.stat().st_size
        first, last = 0, size - 1
        if wanted is not None and request.headers.get("if-range", f'"{digest}"') == f'"{digest}"':
            first, last = _range(wanted, size)
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        opened = open(path, "rb")  # noqa: SIM115 (closed when it has been sent)
    except FileNotFoundError as error:
        raise Refusal("no-model", "This file is not kept any more.", "Ask for the round's model.", 404) from error
    headers["Content-Length"] = str(last - first + 1)
    return StreamingResponse(
        _pieces(store, site, opened, first, last),
        status_code=206 if "Content-Range" in headers else 200,
        headers=headers,
        media_type="application/octet-stream",
    )


async def _pieces(store: Store, site: str, file: IO[bytes], first: int, last: int) -> AsyncIterator[bytes]:
    """The bytes ``first`` to ``last`` of a file; what was handed on is counted even if the receiver goes away."""
    sent = 0
    try:
        file.seek(first)
        while piece := await run_in_threadpool(file.read, min(DOWNLOAD_PIECE, last - first + 1 - sent)):
            sent += len(piece)
            yield piece
    finally:
        file.close()
        with store.transaction(forced=False) as db:
            number = db.execute("SELECT MAX(number) FROM rounds").fetchone()[0]
            store.count_traffic(db, number, site, down=sent)


def _range(text: str, size: int) -> tuple[int, int]:
    """First and last byte of a single range."""
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", text.strip())
    if match and match[1]:
        first, last = int(match[1]), min(int(match[2] or size), size - 1)
        if first <= last:
            return first, last
    elif match and match[2] and int(match[2]):
        return max(0, size - int(match[2])), size - 1
    raise Refusal("bad-range", "That part of the file is not there.", f"Ask for bytes within 0-{size - 1}.", 416)
