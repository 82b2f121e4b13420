"""The aggregator as a process: uvicorn, with TLS unless it stays on this machine."""

from __future__ import annotations

import contextlib
import ssl
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from twinfed.wire import InputError

from .access import is_loopback
from .config import FederationConfig
from .patience import LARGEST_HEAD, MOST_CONNECTIONS, Connection
from .retention import drop_obsolete, sweep
from .rounds import Federation
from .store import FolderLock, Store
from .web import make_app

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2, which is the least that Python's default takes; 1.3 has its own


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the aggregator listens, and how.

    Args:
        host, port: port 0 takes a free one.
        certificate, key: of the aggregator, PEM files.
        client_authority: certificates that sites' own must be signed by (PEM); without it sites need none.
        insecure: plain HTTP to other machines is wanted, for example behind a proxy that does TLS.
    """

    host: str = "127.0.0.1"
    port: int = 8600
    certificate: Path | None = None
    key: Path | None = None
    client_authority: Path | None = None
    insecure: bool = False

    def check(self) -> None:
        """Raises InputError where tokens would cross a network in the clear, or a file cannot be read."""
        if (self.certificate is None) != (self.key is None):
            raise InputError("TLS needs both a certificate and its key. Name --tls-certificate and --tls-key.")
        if self.client_authority and not self.certificate:
            raise InputError("Client certificates need TLS. Name --tls-certificate and --tls-key too.")
        for path in (self.certificate, self.key, self.client_authority):
            if path is not None and not path.is_file():
                raise InputError(f"{path}: not there. Name a PEM file.")
        if self.certificate is None and not self.insecure and not is_loopback(self.host):
            raise InputError(
                f"{self.host} can be reached from other machines and needs TLS. Name --tls-certificate and --tls-key, "
                "or say --insecure if a proxy before it does TLS."
            )


def serve(folder: Path, config: FederationConfig | None, address: Address) -> None:
    """Run until told to stop (Ctrl-C or a TERM signal).

    Raises:
        InputError: see :class:`Address`, :class:`FolderLock` and :class:`Federation`.
    """
    address.check()
    with FolderLock(folder):
        store = Store(folder)
        try:
            store.sweep()
            federation = Federation(store, config)
            drop_obsolete(store, federation.config.keep_rounds)
            sweep(store)
            with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C, after an orderly end
                uvicorn.Server(configuration(make_app(federation), address)).run()
        finally:
            store.close()


def configuration(app: FastAPI, address: Address) -> uvicorn.Config:
    """How uvicorn serves: with bounds on what strangers may send, and without a word on what it is."""
    return uvicorn.Config(
        app,
        host=address.host,
        port=address.port,
        ssl_certfile=address.certificate,
        ssl_keyfile=address.key,
        ssl_ca_certs=str(address.client_authority) if address.client_authority else None,
        ssl_cert_reqs=ssl.CERT_REQUIRED if address.client_authority else ssl.CERT_NONE,
        ssl_ciphers=CIPHERS,
        http=Connection,
        ws="none",
        h11_max_incomplete_event_size=LARGEST_HEAD,
        limit_concurrency=MOST_CONNECTIONS,
        headers=[("X-Content-Type-Options", "nosniff")],
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )
