"""The aggregator over HTTP: thin routes over ``Federation``, ``Intake`` and ``Uploads``. FastAPI writes the OpenAPI.

A site says who it is by ``Authorization: Bearer TOKEN``; no address names a site. Every refusal is a JSON object of
``code``, ``reason`` and ``remedy``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from twinfed import __version__
from twinfed.wire import Refusal

from .access import keep_out, looking_site
from .answers import REFUSALS, add_error_answers
from .intake import Intake
from .page import render_metrics, render_page
from .patience import Door
from .rounds import Federation
from .transfer import body_length, send_file, take_piece
from .uploads import HASH, Uploads

TICK = 0.5  # seconds between looks at what is due
NOT_SHOWN_ELSEWHERE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
log = logging.getLogger("twinfed.aggregator")
bearer = HTTPBearer(auto_error=False, description="The site's token, as twinfed site add told it.")


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


Number = Annotated[int, Field(ge=-(2**53), le=2**53)]


def known_site(request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> str:
    """The site whose token came with the request, as it was recognised at the door."""
    if isinstance(request.state.site, Exception):
        raise request.state.site
    return str(request.state.site)


Site = Annotated[str, Depends(known_site)]


def make_app(federation: Federation) -> FastAPI:
    """The web application of a federation; it also looks twice a second at what is due."""
    intake = Intake(federation)
    uploads, store = Uploads(intake), federation.store

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
    app.add_middleware(Door, recognise=federation.accounts.recognise)
    add_error_answers(app)

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Whether the aggregator works; for load balancers."""
        return {"ok": True, "round": federation.current()["number"], "version": __version__}

    @app.get("/", response_class=HTMLResponse)
    def page(request: Request) -> Response:
        """The federation to look at: rounds, sites, scores, bytes, weights, refused updates."""
        if answer := keep_out(federation.accounts, request):
            return answer
        return HTMLResponse(
            render_page(federation, looking_site(federation.accounts, request)), headers=NOT_SHOWN_ELSEWHERE
        )

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics(request: Request) -> Response:
        """The same in numbers, for Prometheus."""
        if answer := keep_out(federation.accounts, request):
            return answer
        return PlainTextResponse(render_metrics(federation, looking_site(federation.accounts, request)))

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
        intake.skip(name, number)
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
        if upload_offset + body_length(request) > answer["received"]:
            piece = uploads.piece(name, number, digest, upload_offset, upload_length)
            await take_piece(request, piece, upload_checksum)
        result = await run_in_threadpool(uploads.finish, name, number, digest)
        if result["state"] == "accepted":
            asyncio.get_running_loop().run_in_executor(None, _advance, federation)
        return UploadState(**result)

    @app.get("/api/v1/models/{digest}", response_class=Response)
    def model(request: Request, name: Site, digest: str) -> Response:
        """A model by its hash: immutable, with ETag and Range."""
        return send_file(store, request, name, digest, _known_model(federation, digest))

    @app.get("/api/v1/models/{digest}/delta", response_class=Response)
    def delta(request: Request, name: Site, digest: str) -> Response:
        """The same model as a compressed change to the round's base, where the federation compresses downloads."""
        row = store.row("SELECT file FROM deltas WHERE model = ?", _known_model(federation, digest))
        if row is None:
            raise Refusal("no-delta", "There is no change file for this model.", "Fetch the whole model.", 404)
        return send_file(store, request, name, row["file"], row["file"])

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


def _known_model(federation: Federation, digest: str) -> str:
    """Only models are given out: other files of the store, sites' updates among them, are nobody else's business."""
    pattern = f'%"{digest}"%'
    found = HASH.fullmatch(digest) and federation.store.row(
        "SELECT 1 FROM rounds WHERE bases LIKE ? OR models LIKE ?", pattern, pattern
    )
    if not found:
        raise Refusal("no-model", "There is no model of this hash.", "Ask for the round's model.", 404)
    return digest
