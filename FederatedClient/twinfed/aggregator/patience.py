"""How much and how long a stranger may send, and how long anybody may take to read what was asked for.

A request's head is at most 16 KB and comes within 20 s; the whole of a body that is no upload likewise. Without a valid
token no body is read at all. Connections in which no site's request is under way count as strangers': where there are
too many, the oldest one of the address that has the most makes room. So a thousand silent or slow connections cost a
few megabytes, for half a minute, and hold up nobody; nor where all hospitals come from one proxy's address, as each of
their requests shows its token within a moment.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from twinfed.wire import Refusal

from .answers import answer

LARGEST_HEAD = 16_384  # bytes of a request's line and headers
LARGEST_JSON = 16_384  # bytes of a body that is not an upload
MOST_CONNECTIONS = 400  # beyond them requests are answered 503
MOST_STRANGERS = 200  # connections in which no site's request is under way
MOST_REQUESTS = 8  # of one site at a time
PATIENCE = 20.0  # seconds
UNREAD = 60.0  # seconds that the receiver may take for a piece of an answer (256 KB: from 4 KB/s)


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1, which waits for ever for the head of a request; this one closes the connection."""

    _timer: asyncio.TimerHandle | None = None
    _strangers: ClassVar[dict[str, dict[Connection, None]]] = defaultdict(dict)  # by address, the oldest first

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.app = partial(_within, self, self.app)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.set_stranger(True)
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.set_stranger(False)
        super().connection_lost(exc)

    def set_stranger(self, stranger: bool) -> None:
        """Whether no site's request is under way in this connection."""
        address = self.client[0] if self.client else ""
        self._strangers[address].pop(self, None)
        if stranger and self in self.connections:
            self._strangers[address][self] = None
        if not self._strangers[address]:
            del self._strangers[address]
        if sum(map(len, self._strangers.values())) > MOST_STRANGERS:
            most = max(self._strangers, key=lambda address: len(self._strangers[address]))
            oldest = next(iter(self._strangers[most]))
            oldest.transport.abort()
            oldest.connections.discard(oldest)
            oldest.set_stranger(False)

    def _look_again(self) -> None:
        self._timer = self.loop.call_later(PATIENCE, self._look, self.cycle)

    def _look(self, before: RequestResponseCycle | None) -> None:
        """Close where the request of the last look is answered, and none has come since."""
        if self.cycle is before and (before is None or before.response_complete):
            self.transport.close()
        if self.transport.is_closing():  # what is not read yet has as long as any piece
            self._timer = self.loop.call_later(UNREAD, self.transport.abort)
        else:
            self._look_again()


async def _within(connection: Connection, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app({**scope, "connection": connection}, receive, send)


class Door:
    """Who asks is settled before anything of a body is read; a site has a few requests at a time.

    The site's name, or why there is none, is in the request's state.

    Args:
        recognise: the site that a token belongs to, or a Refusal.
    """

    def __init__(self, app: ASGIApp, recognise: Callable[[str], str]) -> None:
        self._app, self._recognise = app, recognise
        self._under_way: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = scope.get("connection")
        send = _read_in_time(send, connection)
        site = await self._site(Request(scope))
        scope.setdefault("state", {})["site"] = site
        if not isinstance(site, str):
            await self._app(scope, _no_body(receive), send)
            return
        if self._under_way[site] >= MOST_REQUESTS:
            much = Refusal(
                "busy", f"{MOST_REQUESTS} requests of this site are under way.", "Ask again in a second.", 429
            )
            await answer(much)(scope, receive, send)
            return
        self._under_way[site] += 1
        try:
            if connection is not None:
                connection.set_stranger(False)
            await self._app(scope, receive if "/update/" in scope["path"] else _short_body(receive), send)
        finally:
            self._under_way[site] -= 1
            if connection is not None:
                connection.set_stranger(True)

    async def _site(self, request: Request) -> str | Exception:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return Refusal("no-token", "No token was sent.", "Send Authorization: Bearer TOKEN.", 401)
        try:
            return await run_in_threadpool(self._recognise, token.strip())
        except (Refusal, sqlite3.OperationalError) as error:
            return error


def _no_body(receive: Receive) -> Receive:
    """Nothing of what a stranger sends is read."""
    first = True

    async def nothing() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": b"", "more_body": False}
        return await receive()  # waits for the connection to end

    return nothing


def _short_body(receive: Receive) -> Receive:
    """A body that is no upload is short, and all of it comes soon."""
    seen, more, end = 0, True, anyio.current_time() + PATIENCE

    async def bounded() -> Message:
        nonlocal seen, more
        if not more:  # waits for the connection to end
            return await receive()
        try:
            with anyio.fail_after(max(0.0, end - anyio.current_time())):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, "the body did not come in time", {"Connection": "close"}) from error
        seen, more = seen + len(message.get("body", b"")), message.get("more_body", False)
        if seen > LARGEST_JSON:
            raise HTTPException(413, f"the body is longer than {LARGEST_JSON} bytes", {"Connection": "close"})
        return message

    return bounded


def _read_in_time(send: Send, connection: Connection | None) -> Send:
    """Whoever does not read the answer loses the connection."""

    async def patient(message: Message) -> None:
        try:
            with anyio.fail_after(UNREAD):
                await send(message)
        except TimeoutError:
            if connection is not None:
                connection.transport.abort()

    return patient
