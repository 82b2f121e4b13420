"""Who may look at the page and the metrics: whoever sits at this machine, and from elsewhere whoever has a token."""

from __future__ import annotations

import base64
import ipaddress

from fastapi import Request, Response
from fastapi.responses import PlainTextResponse

from .accounts import Accounts


def keep_out(accounts: Accounts, request: Request) -> Response | None:
    """The answer to somebody who may not look; None for all others."""
    if _comes_from_here(request) or _shows_a_token(accounts, request):
        return None
    return PlainTextResponse(
        "Sign in with the name and the token of a site.\n", 401, {"WWW-Authenticate": 'Basic realm="TwinFed"'}
    )


def looking_site(accounts: Accounts, request: Request) -> str | None:
    """The site that looks, by its token; None for whoever sits at this machine, who may see all sites.

    Raises:
        ValueError: neither.
    """
    return None if _comes_from_here(request) else _site_of(accounts, request)


def is_loopback(host: str) -> bool:
    """Whether a name or address leads to this very machine whoever asks."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _comes_from_here(request: Request) -> bool:
    """Whether a program on this machine asks under one of this machine's own names: neither through a proxy that says
    so, nor for a page of elsewhere whose name was made to point here (DNS rebinding)."""
    if {"forwarded", "x-forwarded-for", "x-real-ip", "via"} & set(request.headers.keys()):
        return False
    return is_loopback(request.client.host if request.client else "") and is_loopback(request.url.hostname or "")


def _shows_a_token(accounts: Accounts, request: Request) -> bool:
    try:
        return bool(_site_of(accounts, request))
    except ValueError:
        return False


def _site_of(accounts: Accounts, request: Request) -> str:
    """A browser asks for a site's name and token, Prometheus sends the token. Raises ValueError where neither is right:
    a Refusal, or no base64, or no text."""
    scheme, _, content = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return accounts.recognise(content)
    name, _, token = base64.b64decode(content).decode().partition(":")
    if accounts.recognise(token) != name:
        raise ValueError("the name and the token are not of one site")
    return name
