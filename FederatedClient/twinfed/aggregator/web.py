"""The aggregator over HTTP: thin routes over ``Federation`` and ``Uploads``. FastAPI writes the OpenAPI from them.

A site says who it is by ``Authorization: Bearer TOKEN``; no address names a site. Every refusal is a JSON object of
``code``, ``reason`` and ``remedy``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import logging
import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twinfed import __version__
from twinfed.errors import shown
from twinfed.wire import Refusal

from .accounts import Accounts
from .page import render_metrics, render_page
from .rounds import Federation
from .uploads import HASH, Piece, Uploads, disk_full

LARGEST_JSON = 16_384  # bytes of a body that is not an upload
SLOWEST = 600.0  # seconds that a piece of an upload may take; 8 MB at 0.1 Mbit/s
TICK = 0.5  # seconds between looks at what is due
DOWNLOAD_PIECE = 2**18
NOT_SHOWN_ELSEWHERE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
log = logging.getLogger("twinfed.aggregator")
bearer = HTTPBearer(auto_error=False, description="The site's token, as twinfed site add told it.")


class Answer(BaseModel):
    """Why a request was refused."""

    code: str = Field(description="Stable name of the reason.")
    reason: str
    remedy: str


class Registration(BaseModel):
    """What a site says of itself before it takes part."""

    model_config = ConfigDict(extra="forbid", strict=True)
    samples: int = Field(ge=1, le=10_000_000, description="Training cases.")


class UploadState(BaseModel):
    """How far an upload is: ``uploading`` with the bytes received, or ``accepted``."""

    state: str
    received: int | None = None
    round: int | None = None
    hash: str | None = None


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Answer} for status in (400, 401, 403, 404, 405, 408, 409, 411, 413, 416, 422, 429, 503, 507)
}
Number = Annotated[int, Field(ge=-(2**53), le=2**53)]


def known_site(request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> str:
    """The site whose token came with the request."""
    if credentials is None:
        raise Refusal("no-token", "No token was sent.", "Send Authorization: Bearer TOKEN.", 401)
    accounts: Accounts = request.app.state.accounts
    return accounts.recognise(credentials.credentials)


Site = Annotated[str, Depends(known_site)]


def make_app(federation: Federation) -> FastAPI:
    """The web application of a federation; it also looks twice a second at what is due."""
    uploads = Uploads(federation)
    store = federation.store

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(_tick(federation))
        yield
        task.cancel()

    app = FastAPI(
        title="TwinFed aggregator",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # they load scripts from elsewhere; /openapi.json stays
        redoc_url=None,
        responses=REFUSALS,
    )
    app.state.accounts = federation.accounts
    app.add_middleware(_BodyLimit)
    _add_error_answers(app)

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Whether the aggregator works; for load balancers."""
        return {"ok": True, "round": federation.current()["number"], "version": __version__}

    @app.get("/", response_class=HTMLResponse)
    def page(request: Request) -> Response:
        """The federation to look at: rounds, sites, scores, bytes, weights, refused updates."""
        if answer := _keep_out(federation, request):
            return answer
        return HTMLResponse(render_page(federation), headers=NOT_SHOWN_ELSEWHERE)

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics(request: Request) -> Response:
        """The same in numbers, for Prometheus."""
        return _keep_out(federation, request) or PlainTextResponse(render_metrics(federation))

    @app.get("/api/v1/federation")
    def describe(_: Site) -> dict[str, Any]:
        """What the sites agreed on, and the model's tensors."""
        return {**federation.config.to_dict(), "model": None, "shapes": federation.shapes}

    @app.put("/api/v1/site")
    def register(name: Site, body: Registration) -> dict[str, Any]:
        """Register how many training cases the site has."""
        federation.accounts.register(name, body.samples)
        return {"site": name, "samples": body.samples}

    @app.get("/api/v1/round")
    def what_now(name: Site) -> dict[str, Any]:
        """What the site is to do now."""
        return federation.instructions(name)

    @app.put("/api/v1/rounds/{number}/skip")
    def skip(name: Site, number: Number) -> dict[str, Any]:
        """Send nothing in this round, so that nobody waits for it."""
        federation.skip(name, number)
        return {"round": number, "skipped": True}

    @app.get("/api/v1/rounds/{number}/update/{digest}", response_model_exclude_none=True)
    def upload_state(name: Site, number: Number, digest: str) -> UploadState:
        """How much of an upload is here."""
        return UploadState(**uploads.status(name, number, digest))

    @app.put(
        "/api/v1/rounds/{number}/update/{digest}",
        response_model_exclude_none=True,
        openapi_extra={"requestBody": {"content": {"application/octet-stream": {"schema": {"type": "string"}}}}},
    )
    async def upload(
        request: Request,
        name: Site,
        number: Number,
        digest: str,
        upload_offset: Annotated[int, Header(ge=0, le=2**53)],
        upload_length: Annotated[int, Header(ge=0, le=2**53)],
        upload_checksum: Annotated[str, Header(pattern="^[0-9a-fA-F]{8}$")],
    ) -> UploadState:
        """Upload a piece of an update: its offset, the whole length, the piece's CRC-32. The last piece is answered
        with ``accepted``, or with why not. A piece that is here already is not written again; an empty one at the end
        asks for the answer."""
        answer = await run_in_threadpool(uploads.status, name, number, digest)
        if answer["state"] == "accepted":
            return UploadState(**answer)
        if upload_offset + _length(request) > answer["received"]:
            await _take_piece(
                request, uploads.piece(name, number, digest, upload_offset, upload_length), upload_checksum
            )
        result = await run_in_threadpool(uploads.finish, name, number, digest)
        if result["state"] == "accepted":
            asyncio.get_running_loop().run_in_executor(None, _advance, federation)
        return UploadState(**result)

    @app.get("/api/v1/models/{digest}", response_class=Response)
    def model(request: Request, name: Site, digest: str) -> Response:
        """A model by its hash: immutable, with ETag and Range."""
        return _send(federation, request, name, digest, _known_model(federation, digest))

    @app.get("/api/v1/models/{digest}/delta", response_class=Response)
    def delta(request: Request, name: Site, digest: str) -> Response:
        """The same model as a compressed change to the round's base, where the federation compresses downloads."""
        row = store.row("SELECT file FROM deltas WHERE model = ?", _known_model(federation, digest))
        if row is None:
            raise Refusal("no-delta", "There is no change file for this model.", "Fetch the whole model.", 404)
        return _send(federation, request, name, row["file"], row["file"])

    return app


async def _tick(federation: Federation) -> None:
    while True:
        await run_in_threadpool(_advance, federation)
        await asyncio.sleep(TICK)


def _advance(federation: Federation) -> None:
    try:
        federation.advance()
    except (OSError, sqlite3.OperationalError) as error:
        log.error("The round waits: %s", error)
    except Exception:
        log.exception("The round could not be brought forward; it is tried again")


async def _take_piece(request: Request, opened: AbstractContextManager[Piece], checksum: str) -> None:
    piece = await run_in_threadpool(opened.__enter__)
    try:
        await _write(request, piece.write)
        piece.check(checksum)
    except BaseException as error:
        opened.__exit__(type(error), error, error.__traceback__)
        raise
    await run_in_threadpool(opened.__exit__, None, None, None)


async def _write(request: Request, write: Callable[[bytes], None]) -> None:
    """The body, as it comes, to ``write``; a sender that falls silent is given up."""

    async def all_of_it() -> None:
        async for content in request.stream():
            write(content)

    try:
        await asyncio.wait_for(all_of_it(), SLOWEST)
    except asyncio.TimeoutError as error:
        raise Refusal("too-slow", f"The piece took over {SLOWEST:.0f} s.", "Send smaller ones.", 408) from error
    except ClientDisconnect as error:
        raise Refusal("cut-short", "The connection ended within a piece.", "Send it again.", 400) from error


def _known_model(federation: Federation, digest: str) -> str:
    """Only models are given out: other files of the store, sites' updates among them, are nobody else's business."""
    pattern = f'%"{digest}"%'
    found = HASH.fullmatch(digest) and federation.store.row(
        "SELECT 1 FROM rounds WHERE bases LIKE ? OR models LIKE ?", pattern, pattern
    )
    if not found:
        raise Refusal("no-model", "There is no model of this hash.", "Ask for the round's model.", 404)
    return digest


def _send(federation: Federation, request: Request, site: str, digest: str, file: str) -> Response:
    path = federation.store.file(file)
    size = path.stat().st_size
    headers = {"ETag": f'"{digest}"', "Cache-Control": "private, immutable, max-age=31536000", "Accept-Ranges": "bytes"}
    if f'"{digest}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    first, last = 0, size - 1
    wanted = request.headers.get("range")
    if wanted is not None and request.headers.get("if-range", f'"{digest}"') == f'"{digest}"':
        first, last = _range(wanted, size)
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    headers["Content-Length"] = str(last - first + 1)
    return StreamingResponse(
        _pieces(federation, site, path, first, last),
        status_code=206 if "Content-Range" in headers else 200,
        headers=headers,
        media_type="application/octet-stream",
    )


async def _pieces(federation: Federation, site: str, path: Path, first: int, last: int) -> AsyncIterator[bytes]:
    """The bytes ``first`` to ``last`` of a file; what was handed on is counted even if the receiver goes away."""
    sent = 0
    try:
        with open(path, "rb") as file:
            file.seek(first)
            while piece := file.read(min(DOWNLOAD_PIECE, last - first + 1 - sent)):
                sent += len(piece)
                yield piece
    finally:
        with federation.store.transaction() as db:
            number = db.execute("SELECT MAX(number) FROM rounds").fetchone()[0]
            federation.store.count_traffic(db, number, site, down=sent)


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


def _length(request: Request) -> int:
    text = request.headers.get("content-length", "")
    if not text.isdecimal() or len(text) > 15:
        raise Refusal("no-length", "The piece's length was not told.", "Send Content-Length.", 411)
    return int(text)


def _keep_out(federation: Federation, request: Request) -> Response | None:
    """The page is open on this machine; from elsewhere a browser asks for a site's name and token."""
    host = request.client.host if request.client else ""
    forwarded = {"forwarded", "x-forwarded-for", "via"} & set(request.headers.keys())
    try:
        if ipaddress.ip_address(host).is_loopback and not forwarded:
            return None
    except ValueError:
        pass
    scheme, _, content = request.headers.get("authorization", "").partition(" ")
    try:
        token = content if scheme.lower() == "bearer" else base64.b64decode(content).decode().partition(":")[2]
        federation.accounts.recognise(token)
    except ValueError:  # a Refusal, or no base64, or no text
        return PlainTextResponse(
            "Sign in with the name and the token of a site.\n", 401, {"WWW-Authenticate": 'Basic realm="TwinFed"'}
        )
    return None


def _add_error_answers(app: FastAPI) -> None:
    def answer(refusal: Refusal) -> JSONResponse:
        headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
        return JSONResponse(refusal.to_dict(), refusal.status, headers)

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = f"{shown(where)}: {shown(first['msg'], 200)}."
        return answer(Refusal("bad-request", reason, "See /openapi.json for what is asked for."))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        codes = {404: "not-found", 405: "wrong-method"}
        code = codes.get(error.status_code, "bad-request")
        found = answer(Refusal(code, f"{shown(error.detail)}.", "See /openapi.json.", error.status_code))
        found.headers.update(error.headers or {})
        return found

    @app.exception_handler(OSError)
    async def disk(_: Request, error: OSError) -> JSONResponse:
        log.error("The disk: %s", error)
        return answer(disk_full())

    @app.exception_handler(sqlite3.OperationalError)
    async def database(_: Request, error: sqlite3.OperationalError) -> JSONResponse:
        log.error("The database: %s", error)
        if "full" in str(error) or "disk" in str(error):
            return answer(disk_full())
        return answer(Refusal("busy", "The aggregator is busy.", "Ask again in a second.", 503))


class _BodyLimit:
    """Bodies of all but uploads are short; a longer one is refused before it is read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "/update/" in scope["path"]:
            await self._app(scope, receive, send)
            return
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > LARGEST_JSON:
                raise HTTPException(413, f"the body is longer than {LARGEST_JSON} bytes")
            return message

        await self._app(scope, bounded, send)
