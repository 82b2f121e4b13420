"""TLS: who is let in, and with which ciphers."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

Make = Callable[..., Any]


@pytest.fixture
def certificates(tmp_path: Path, make_certificates: Callable[..., Path]) -> Path:
    """A folder with a key and a certificate each of a server and a site."""
    return make_certificates(tmp_path, "server", "site")


def ask(port: int, certificates: Path, *, site: bool = False, ciphers: str = "", most: str = "TLSv1_3") -> int:
    """The status of an answer over TLS."""
    context = ssl.create_default_context(cafile=certificates / "server.pem")
    context.maximum_version = ssl.TLSVersion[most]
    if ciphers:
        context.set_ciphers(ciphers)
    if site:
        context.load_cert_chain(certificates / "site.pem", certificates / "site.key")
    return httpx.get(f"https://127.0.0.1:{port}/health", verify=context, timeout=30).status_code


def test_only_sites_with_a_certificate_get_through(web: Make, serve: Make, certificates: Path) -> None:
    port = serve(
        web(),
        certificate=certificates / "server.pem",
        key=certificates / "server.key",
        client_authority=certificates / "site.pem",
    )

    assert ask(port, certificates, site=True) == 200
    with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
        ask(port, certificates)


def test_only_ciphers_that_are_held_safe_are_taken(web: Make, serve: Make, certificates: Path) -> None:
    port = serve(web(), certificate=certificates / "server.pem", key=certificates / "server.key")

    assert ask(port, certificates) == 200
    assert ask(port, certificates, most="TLSv1_2") == 200
    for weak in ("AES256-GCM-SHA384", "ECDHE-RSA-AES256-SHA"):  # without forward secrecy, with CBC
        with pytest.raises(httpx.ConnectError):
            ask(port, certificates, ciphers=weak, most="TLSv1_2")
