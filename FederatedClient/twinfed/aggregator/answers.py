"""What is said when a request is not granted: every refusal and every fault as an object of code, reason, remedy."""

from __future__ import annotations

import logging
import sqlite3
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from twinfed.errors import shown
from twinfed.wire import Refusal

from .store import DISK_FULL
from .uploads import disk_full

log = logging.getLogger("twinfed.aggregator")


class Answer(BaseModel):
    """Why a request was refused."""

    code: str = Field(description="Stable name of the reason.")
    reason: str
    remedy: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Answer} for status in (400, 401, 403, 404, 405, 408, 409, 411, 413, 416, 422, 429, 503, 507)
}


def answer(refusal: Refusal) -> JSONResponse:
    """A refusal over HTTP."""
    headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
    return JSONResponse(refusal.to_dict(), refusal.status, headers)


def add_error_answers(app: FastAPI) -> None:
    """Make everything that a route may raise an answer of this form."""

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
        return answer(disk_full() if error.errno in DISK_FULL else _busy())

    @app.exception_handler(sqlite3.OperationalError)
    async def database(_: Request, error: sqlite3.OperationalError) -> JSONResponse:
        log.error("The database: %s", error)
        return answer(disk_full() if "full" in str(error) or "disk" in str(error) else _busy())


def _busy() -> Refusal:
    return Refusal("busy", "The aggregator cannot do this now.", "Ask again in a minute.", 503)
