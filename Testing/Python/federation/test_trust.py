"""By which certificate a site knows the aggregator, and through which proxy it goes, whatever its environment says."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from twinfed.client.connection import Connection, Server
from twinfed.client.errors import Unreachable

TOKEN = "twinfed-0123456789"
BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
PROXIES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy")


class Between:
    """A server that answers as an aggregator, also as a proxy that looks into TLS; it notes the tokens that it saw."""

    def __init__(self, certificates: Path, name: str | None, *, is_proxy: bool = False) -> None:
        self.tokens: list[str] = []
        between = self
        if name is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_CONNECT(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.connection = context.wrap_socket(self.connection, server_side=True)
                self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)
                self.close_connection = False

            def do_GET(self) -> None:
                between.tokens.append(self.headers["Authorization"])
                answer = b'{"name": "trial"}'
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *words: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who does not trust it hangs up
        if name is not None and not is_proxy:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def certificates(tmp_path: Path, make_certificates: Callable[..., Path]) -> Path:
    """A folder with the certificate of an aggregator, and that of a proxy that passes itself off as one."""
    return make_certificates(tmp_path, "aggregator", "proxy", also="DNS:aggregator.example,")


@pytest.fixture
def between(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Between]]:
    """Start a server with a certificate of that name, or None for plain HTTP: ``between("proxy", is_proxy=True)``."""
    for name in (*BUNDLES, *PROXIES, "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    started: list[Between] = []

    def start(name: str | None, **options: Any) -> Between:
        started.append(Between(certificates, name, **options))
        return started[-1]

    yield start
    for one in started:
        one.server.shutdown()
        one.server.server_close()


@pytest.mark.parametrize("variable", BUNDLES)
def test_the_environments_certificates_do_not_overrule_the_authority(
    variable: str, certificates: Path, between: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(certificates / "proxy.pem"))
    authority = certificates / "aggregator.pem"
    honest, looks_into_it = between("aggregator", is_proxy=True), between("proxy", is_proxy=True)
    site = Connection(Server("https://aggregator.example", TOKEN, authority))

    monkeypatch.setenv("HTTPS_PROXY", f"http://{looks_into_it.address}")
    with pytest.raises(Unreachable, match="certificate is not trusted here"):
        site.federation()
    monkeypatch.setenv("HTTPS_PROXY", f"http://{honest.address}")
    found = site.federation()

    assert looks_into_it.tokens == []
    assert found == {"name": "trial"}
    assert honest.tokens == [f"Bearer {TOKEN}"]


def test_without_an_authority_the_environments_certificates_count(
    certificates: Path, between: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = between("proxy", is_proxy=True)
    monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates / "proxy.pem"))

    assert Connection(Server("https://aggregator.example", TOKEN)).federation() == {"name": "trial"}


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_what_stays_on_this_machine_goes_through_no_proxy(
    name: str, between: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, proxy = between(None), between(None)
    for variable in PROXIES:
        monkeypatch.setenv(variable, f"http://{proxy.address}")

    Connection(Server(f"http://{here.address.replace('127.0.0.1', name)}", TOKEN)).federation()

    assert proxy.tokens == []
    assert here.tokens == [f"Bearer {TOKEN}"]
