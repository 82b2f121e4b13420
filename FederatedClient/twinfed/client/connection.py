"""The site's line to the aggregator: HTTP through the hospital's proxy, in pieces that survive every interruption.

Each call tries once. What got through stays: a download goes on from the bytes that are on the disk, an upload from
those that the aggregator acknowledged. Who calls waits and tries again (`site_loop`).
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from twinfed import __version__
from twinfed.client.errors import Unreachable
from twinfed.client.instructions import Instructions
from twinfed.errors import InputError, Refusal, shown
from twinfed.wire import hash_file
from twinfed.wire.tensors import parse_json

CONNECT_SECONDS, SILENT_SECONDS = 15.0, 60.0
SMALLEST_PIECE, FIRST_PIECE = 2**14, 2**18
QUICK, SLOW = 1.0, 8.0
"""Seconds: a piece that took less is followed by a larger one, one that took longer by a smaller one."""
READ_AT_ONCE = 2**15
LARGEST_ANSWER = 2**24
AGAIN = ("wrong-checksum", "wrong-offset", "wrong-hash", "busy", "cut-short", "too-slow", "not-started", "no-length")
"""Refusals of a piece that arrived damaged or out of turn: the same update is sent again."""

Traffic = Callable[[int, int], None]
"""Told the bytes that went up and came down."""


@dataclass(frozen=True)
class Server:
    """Where the aggregator is, and how it is trusted.

    Args:
        url: http(s)://host:port.
        token: the site's.
        authority: certificates (PEM) by which the aggregator's is known; None for those of the system.
        certificate, key: of the site (PEM), where the aggregator asks for one.
        insecure: the token may cross a network in the clear.

    Raises:
        InputError: no such address, a token that is none, or one that would cross a network in the clear.
    """

    url: str
    token: str
    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{shown(self.url)}: this is no address. Give one such as https://aggregator.org:8600.")
        if not self.token.isascii() or not self.token.isprintable() or not 8 <= len(self.token) <= 200:
            raise InputError("The token file holds no token. Store in it the one line that twinfed site add printed.")
        if parts.scheme == "http" and not self.insecure and not _is_this_machine(parts.hostname):
            raise InputError(
                f"{self.url}: the token would cross the network in the clear. Use https, or say --insecure if a tunnel "
                "protects it."
            )
        for path in (self.authority, self.certificate, self.key):
            if path is not None and not path.is_file():
                raise InputError(f"{path}: not there. Name a PEM file.")


class Connection:
    """Asks one aggregator. All methods raise Unreachable where no whole answer came, Refusal where it says no.

    Args:
        server: the aggregator.
        traffic: see `Traffic`.
        before: called before each request, and so before each piece of an upload; it may wait, or raise.
    """

    def __init__(
        self,
        server: Server,
        traffic: Traffic = lambda up, down: None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self._server, self._traffic, self._before = server, traffic, before
        self._url = server.url.rstrip("/")
        self._session = requests.Session()
        # Minds the proxies of the environment; what stays on this machine goes through none.
        self._session.trust_env = not _is_this_machine(urlsplit(server.url).hostname or "")
        self._session.headers.update({"User-Agent": f"twinfed/{__version__}", "Accept-Encoding": "identity"})
        self._session.auth = self._authorize  # a header alone would give way to a .netrc
        self._verify = str(server.authority) if server.authority else True
        if server.certificate is not None:
            self._session.cert = (str(server.certificate), str(server.key)) if server.key else str(server.certificate)
        self._piece = FIRST_PIECE
        self.bytes_per_second: float | None = None

    def federation(self) -> dict[str, Any]:
        """What the sites agreed on, and the model's tensors."""
        return self._json("GET", "/api/v1/federation")

    def register(self, samples: int) -> str:
        """Register the number of training cases; the site's name."""
        answer = self._json("PUT", "/api/v1/site", json={"samples": samples})
        name = answer.get("site")
        if not isinstance(name, str) or answer.get("samples") != samples:
            raise Unreachable("the answer is damaged (no site's name)")
        return name

    def now(self) -> Instructions:
        """What to do now."""
        return Instructions.from_dict(self._json("GET", "/api/v1/round"))

    def skip(self, number: int) -> None:
        """Send nothing in this round."""
        self._json("PUT", f"/api/v1/rounds/{number}/skip")

    def download(self, digest: str, target: Path, *, delta: bool = False) -> None:
        """Fetch a model by its hash, or the change that leads to it; goes on where an earlier try ended.

        The file is at `target` only when it is whole. Raises OSError where there is no room.
        """
        part = target.with_name(f"{target.name}.part")
        start = part.stat().st_size if part.exists() else 0
        address = f"/api/v1/models/{digest}{'/delta' if delta else ''}"
        began = time.monotonic()
        try:
            with self._asked("GET", address, headers={"Range": f"bytes={start}-"}, stream=True) as answer:
                expected = digest if not delta else answer.headers.get("ETag", "").strip('"')
                length = _whole_length(answer)
                with open(part, "ab" if answer.status_code == 206 else "wb") as file:
                    for piece in answer.iter_content(READ_AT_ONCE):
                        file.write(piece)
                        self._traffic(0, len(piece))
        except Refusal as refusal:
            if refusal.code == "bad-range":  # more is here than there is
                part.unlink(missing_ok=True)
                raise Unreachable("the download had grown too long; it begins anew") from refusal
            raise
        size = part.stat().st_size
        self._measure(size - start, began)
        if size < length:
            raise Unreachable(f"the download was cut at {size} of {length} bytes")
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        if hash_file(part) != expected:
            part.unlink()
            raise Unreachable("the download arrived damaged; it begins anew")
        os.replace(part, target)

    def was_taken(self, number: int, digest: str) -> bool:
        """Whether an update is in its round. Raises Refusal where it is not and never will be."""
        return self._json("GET", f"/api/v1/rounds/{number}/update/{digest}").get("state") == "accepted"

    def upload(self, number: int, path: Path, digest: str, largest_piece: int) -> None:
        """Send an update in pieces, from where it is; returns when the aggregator says that it has taken it in.

        Raises Refusal where it never will.
        """
        address, length = f"/api/v1/rounds/{number}/update/{digest}", path.stat().st_size
        try:
            answer = self._json("GET", address)
            with open(path, "rb") as file:
                while answer.get("state") != "accepted":
                    offset = answer.get("received")
                    if not isinstance(offset, int) or not 0 <= offset <= length:
                        raise Unreachable("the answer is damaged (no offset)")
                    file.seek(offset)
                    answer = self._send_piece(address, offset, file.read(min(self._piece, largest_piece)), length)
        except Refusal as refusal:
            if refusal.code in AGAIN:
                raise Unreachable(refusal.reason) from refusal
            raise

    def _send_piece(self, address: str, offset: int, piece: bytes, length: int) -> dict[str, Any]:
        headers = {
            "Upload-Offset": str(offset),
            "Upload-Length": str(length),
            "Upload-Checksum": f"{zlib.crc32(piece):08x}",
            "Content-Type": "application/octet-stream",
        }
        self._before()  # here besides, so that a wait is not taken for a slow line
        began = time.monotonic()
        try:
            answer = self._json("PUT", address, data=piece, headers=headers)
        except Unreachable:
            self._piece = max(SMALLEST_PIECE, self._piece // 2)
            raise
        took = time.monotonic() - began
        if took < QUICK:
            self._piece *= 2
        elif took > SLOW:
            self._piece = max(SMALLEST_PIECE, self._piece // 2)
        self._measure(len(piece), began)
        self._traffic(len(piece), 0)
        return answer

    def _measure(self, count: int, began: float) -> None:
        """Mix a transfer into the known bandwidth; short ones tell only of the delay."""
        if count >= SMALLEST_PIECE:
            rate = count / max(time.monotonic() - began, 1e-3)
            self.bytes_per_second = rate if self.bytes_per_second is None else 0.7 * self.bytes_per_second + 0.3 * rate

    def _json(self, method: str, address: str, **options: Any) -> dict[str, Any]:
        with self._asked(method, address, stream=True, **options) as answer:
            content = answer.raw.read(LARGEST_ANSWER)
        self._traffic(0, len(content))
        try:
            return parse_json(content)
        except Refusal as error:
            raise Unreachable("it does not answer as an aggregator does; check the address") from error

    @contextlib.contextmanager
    def _asked(self, method: str, address: str, **options: Any) -> Iterator[requests.Response]:
        """An answer that is no refusal; what goes wrong while it is read is Unreachable, too."""
        self._before()
        try:
            with self._session.request(
                method,
                self._url + address,
                timeout=(CONNECT_SECONDS, SILENT_SECONDS),
                allow_redirects=False,
                verify=self._verify,  # with each request, as REQUESTS_CA_BUNDLE overrules what the session says
                **options,
            ) as answer:
                if answer.status_code >= 300:
                    raise _refusal(answer)
                yield answer
        except requests.exceptions.SSLError as error:
            raise Unreachable("its certificate is not trusted here; name the right --authority") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
            raise Unreachable(f"it cannot be reached ({_cause(error)})") from error

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._server.token}"
        return request


def _refusal(answer: requests.Response) -> Exception:
    """A refusal of the aggregator's own; anything else comes from something between."""
    try:
        content = parse_json(answer.raw.read(LARGEST_ANSWER))
        texts = [content[key] for key in ("code", "reason", "remedy")]
    except (Refusal, KeyError):
        texts = []
    known = answer.status_code == 507 or 400 <= answer.status_code < 500
    if not known or not texts or not all(isinstance(text, str) for text in texts):
        return Unreachable(f"it answers with status {answer.status_code}, which an aggregator does not")
    return Refusal(shown(texts[0]), shown(texts[1], 200), shown(texts[2], 200), answer.status_code)


def _whole_length(answer: requests.Response) -> int:
    """Bytes of the whole file, of which the answer may be a part."""
    text = answer.headers.get("Content-Length", "")
    if answer.status_code == 206:
        text = answer.headers.get("Content-Range", "").rpartition("/")[2]
    if not text.isdecimal() or len(text) > 15:
        raise Unreachable("the answer is damaged (no length)")
    return int(text)


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _cause(error: BaseException) -> str:
    """The innermost reason, in a few words."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return shown(getattr(error, "strerror", None) or str(error) or type(error).__name__, 100)
