"""How much and how long a stranger may send: before anybody is asked for a token, and for all that is no upload.

A request's head is at most 16 KB and comes within 20 s, a body that is no upload likewise; a connection that stands
idle is closed. So a thousand silent connections cost a few megabytes, for half a minute.
"""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

LARGEST_HEAD = 16_384  # bytes of a request's line and headers
LARGEST_JSON = 16_384  # bytes of a body that is not an upload
MOST_CONNECTIONS = 400  # beyond them requests are answered 503
PATIENCE = 20.0  # seconds


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1, which waits for ever for the head of a request; this one closes the connection."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _look_again(self) -> None:
        self._timer = self.loop.call_later(PATIENCE, self._look, self.cycle)

    def _look(self, before: RequestResponseCycle | None) -> None:
        """Close where the request of the last look is answered, and none has come since."""
        if self.cycle is before and (before is None or before.response_complete):
            self.transport.close()
        else:
            self._look_again()


class BodyLimit:
    """Bodies of all but uploads are short and come soon; another is refused before it is read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "/update/" in scope["path"]:
            await self._app(scope, receive, send)
            return
        seen, more = 0, True

        async def bounded() -> Message:
            nonlocal seen, more
            if not more:  # waits for the connection to end
                return await receive()
            try:
                with anyio.fail_after(PATIENCE):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(408, "the body did not come in time") from error
            seen, more = seen + len(message.get("body", b"")), message.get("more_body", False)
            if seen > LARGEST_JSON:
                raise HTTPException(413, f"the body is longer than {LARGEST_JSON} bytes")
            return message

        await self._app(scope, bounded, send)
