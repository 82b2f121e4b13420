"""Generated requests and updates of every hostile kind: each is refused with a reason, and nothing changes.

Hypothesis draws them; ``-m slow`` sends over 10,000, in chunks of their own seeds.
"""

from __future__ import annotations

import hashlib
import json
import resource
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import schemathesis
import zstandard
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from twinfed.aggregator.verify import faults
from twinfed.wire import Compression
from twinfed.wire.update import FORMAT, KEY, PAYLOAD

Make = Callable[..., Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]
SITES = ("s1", "s2", "s3")

any_json = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=20),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)
numbers = st.one_of(st.integers(0, 3), st.integers(-(2**70), 2**70))
names = st.one_of(
    st.text(max_size=80),
    st.sampled_from(
        ["0" * 64, "..", "../..", "../../etc/passwd", "%2e%2e%2f", "a" * 5000, "\x00", "'; DROP TABLE sites"]
    ),
)
special = st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e-40])
compressions = st.sampled_from([None, None, Compression(bits=8, entropy=True), Compression(keep=0.1, bits=16)])


class Attacker:
    """Draws what to send, sends it, and holds the answer against the rules."""

    def __init__(self, one: Any) -> None:
        self.one, self.codes = one, Counter[str]()
        self.shapes = {name: list(shape) for name, shape in one.room.federation.shapes.items()}
        self.base = one.room.federation.instructions("s1")["base"]
        # of another federation, so that no damage can make it an update that is to be taken
        self.foreign = one.room.update("s1", 1, federation="elsewhere").read_bytes()
        one.tokens["revoked"] = one.room.federation.accounts.add("revoked")
        one.room.federation.accounts.revoke("revoked")

    def attack(self, draw: Draw) -> None:
        kinds = (
            self.json,
            self.request,
            self.damage,
            self.values,
            self.header,
            self.file,
            self.model,
            self.bomb,
            self.pieces,
        )
        draw(st.sampled_from(kinds))(draw)

    def judge(self, answer: Any) -> str:
        assert answer.status_code < 500, answer.text
        code = str(answer.status_code)
        if answer.status_code >= 400 and answer.request.method != "HEAD":
            code = self.one.refused(answer)
        self.codes[code] += 1
        return code

    def send(self, draw: Draw, content: bytes) -> None:
        """As an update, mostly of s1; sent again now and then, it has the same answer."""
        site = draw(st.sampled_from(("s1", "s1", "s1", *SITES, "revoked")))
        digest = hashlib.sha256(content).hexdigest()
        code = self.judge(self.one.put(site, content, digest))
        if draw(st.integers(0, 9)) == 0:
            assert self.judge(self.one.put(site, content, digest)) == code

    def json(self, draw: Draw) -> None:
        never_right = any_json.filter(lambda value: type(value) is not int)
        body = draw(
            st.one_of(
                st.binary(max_size=200),
                never_right.map(lambda value: json.dumps({"samples": value}).encode()),
                any_json.map(lambda value: json.dumps(value).encode()),
                st.integers(1, 17_000).map(lambda depth: b"[" * depth),
                st.integers(1, 3_000)
                .map(lambda depth: b'{"samples":' * depth + b"1" + b"}" * depth)
                .filter(lambda content: not content.startswith(b'{"samples":1}')),
            )
        )
        headers = {**self.one.headers(draw(st.sampled_from(SITES))), "Content-Type": "application/json"}
        self.judge(self.one.client.put("/api/v1/site", content=body, headers=headers))

    def request(self, draw: Draw) -> None:
        """Any method to any address with any token and any headers."""
        number, name = (
            draw(numbers),
            quote(draw(names).encode("utf-8", "replace"), safe=draw(st.sampled_from(["", "/."]))),
        )
        route = draw(
            st.sampled_from(
                [
                    f"rounds/{number}/update/{name}",
                    f"rounds/{name}/update/{'0' * 64}",
                    f"rounds/{number}/skip",
                    f"models/{name}",
                    f"models/{name}/delta",
                    f"models/{self.base}",
                    f"models/{self.base}/delta",
                    name,
                ]
            )
        )
        ascii_text = st.text("abcXYZ019-_.~+/=, \t", max_size=60)
        headers = {
            "Authorization": f"Bearer {draw(st.one_of(st.sampled_from(list(self.one.tokens.values())), ascii_text))}",
            "Upload-Offset": str(draw(numbers)),
            "Upload-Length": str(draw(numbers)),
            "Upload-Checksum": draw(st.text("0123456789abcdefg", max_size=10)),
            "Range": draw(
                st.one_of(ascii_text, st.tuples(numbers, numbers).map(lambda pair: f"bytes={pair[0]}-{pair[1]}"))
            ),
            "If-None-Match": draw(ascii_text),
        }
        method = draw(st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "PATCH", "OPTIONS"]))
        content = draw(st.binary(max_size=2000))
        chosen = {key: text.strip() for key, text in headers.items() if draw(st.integers(0, 3))}
        self.judge(self.one.client.request(method, f"/api/v1/{route}", content=content, headers=chosen))

    def damage(self, draw: Draw) -> None:
        content = bytearray(self.foreign)
        for _ in range(draw(st.integers(1, 3))):
            content[draw(st.integers(0, 900))] = draw(st.integers(0, 255))
        self.send(draw, bytes(content[: draw(st.integers(1, len(content)))]))

    def values(self, draw: Draw) -> None:
        change = {name: array * np.float32(1e-40) for name, array in self.one.room.model(1).items()}
        name = draw(st.sampled_from(sorted(change)))
        change[name].reshape(-1)[draw(st.integers(0, change[name].size - 1))] = draw(special)
        try:
            path = self.one.room.update("s1", 5, change, how=draw(compressions))
        except ValueError:
            return  # our own writer does not send NaN or infinity when it compresses
        self.send(draw, path.read_bytes())

    def header(self, draw: Draw) -> None:
        """A whole update that says something impossible of itself."""
        said = self.said()
        field = draw(
            st.sampled_from(["format", "federation", "round", "base", "report", "table", "site", "samples", "labels"])
        )
        value = draw(any_json)
        if field == "samples":
            said["report"]["samples"] = value if type(value) is not int or not 1 <= value <= 10 else 11
        elif field == "labels":
            said["report"]["labels"] = value if value != {} else {"ET": 1001}
        else:
            said[field] = value if value not in (said.get(field), {}) else "impossible"
        self.send(draw, self.built(said, self.data(), draw))

    def file(self, draw: Draw) -> None:
        """Entries of the file that claim what is not there: types, shapes, offsets, names."""
        data = self.data()
        name = draw(st.sampled_from(sorted(data)))
        change = draw(
            st.one_of(
                st.fixed_dictionaries({"dtype": st.sampled_from(["F64", "I64", "BOOL", "U8", "F16", "", None, 7])}),
                st.fixed_dictionaries({"shape": st.one_of(any_json, st.lists(st.integers(-1, 2**62), max_size=10))}),
                st.fixed_dictionaries(
                    {"data_offsets": st.one_of(any_json, st.lists(st.integers(-1, 2**62), max_size=3))}
                ),
                st.fixed_dictionaries({"": any_json}),
            )
        )
        if draw(st.booleans()):
            data[draw(names)] = b""
        self.send(draw, self.built(self.said(), data, draw, {name: change}))

    def model(self, draw: Draw) -> None:
        """A file that is right in itself, for another model."""
        shapes, kind = dict(self.shapes), draw(st.sampled_from(["missing", "more", "renamed", "shape", "F16", "U8"]))
        name = draw(st.sampled_from(sorted(shapes)))
        shape = shapes[name]
        if kind in ("missing", "renamed"):
            del shapes[name]
        if kind in ("more", "renamed"):
            shapes[f"{draw(names)}?"] = shape
        if kind == "shape":
            shapes[name] = draw(st.sampled_from([[*shape, 1], [1, *shape], [*shape[:-1], shape[-1] + 1], [], [0]]))
        sizes = {key: 4 * int(np.prod(value)) for key, value in shapes.items()}
        changed = {}
        if kind in ("F16", "U8"):
            changed, sizes[name] = {name: {"dtype": kind}}, sizes[name] // (2 if kind == "F16" else 4)
        data = {key: draw(st.sampled_from([b"\0", b"\1", b"\xff"])) * size for key, size in sizes.items()}
        self.send(draw, self.built(self.said(), data, draw, changed, shapes))

    def bomb(self, draw: Draw) -> None:
        """Frames that unpack to far more than they should, and tables that say so or do not."""
        size = draw(st.sampled_from([10**6, 10**8, 2 * 10**9]))
        content, wrong = bomb(size), "decoder.weight"
        rows = draw(st.sampled_from([[65_536, 0, len(content), 4465, 0, 0], [size, 0, len(content)], [2**53, 0, 1]]))
        empty = {"bits": 8, "scale": 1.0, "gap": 0, "entropy": True, "blocks": [0, 0, 0]}
        table: dict[str, Any] = {name: {**empty, "shape": shape} for name, shape in self.shapes.items()}
        table[wrong] = draw(st.one_of(st.just({**table[wrong], "blocks": rows}), any_json))
        text = json.dumps(table).encode()
        packed = draw(st.sampled_from([zstandard.compress(text), text, content]))
        claimed = draw(st.one_of(st.just(len(text)), st.sampled_from([size, 2**22, 2**53, 0, -1, None])))
        shape = {"dtype": "U8", "shape": [len(packed) + len(content)]}
        said = {**self.said(), "table": [len(packed), claimed]}
        self.send(draw, self.built(said, {PAYLOAD: packed + content}, draw, {PAYLOAD: shape}))

    def pieces(self, draw: Draw) -> None:
        """A right file, sent wrongly."""
        content = self.foreign
        length = draw(st.one_of(st.just(len(content)), numbers))
        offset = draw(st.one_of(st.just(0), numbers))
        digest = draw(st.one_of(st.just(hashlib.sha256(content).hexdigest()), st.just("f" * 64)))
        cut = content[: draw(st.integers(0, 3000))]
        more = draw(st.sampled_from([{}, {"Upload-Checksum": "00000000"}, {"Content-Type": "application/json"}]))
        site = draw(st.sampled_from(SITES))
        self.judge(self.one.put(site, cut, digest, draw(st.sampled_from([1, 1, 1, 0, 2, 99])), offset, length, **more))

    def said(self) -> dict[str, Any]:
        """The header of a right update of s1."""
        report = {"samples": 10}
        facts = {"federation": "trial", "round": 1, "site": "s1", "base": self.base, "report": report}
        return {"format": FORMAT, **facts}

    def data(self) -> dict[str, bytes]:
        """The tensors of a right update."""
        return {name: np.full(shape, 0.01, np.float32).tobytes() for name, shape in self.shapes.items()}

    def built(
        self,
        said: dict[str, Any],
        data: dict[str, bytes],
        draw: Draw,
        changed: dict[str, dict[str, Any]] | None = None,
        shapes: dict[str, list[int]] | None = None,
    ) -> bytes:
        """A file as a stranger's program may write it, with names twice now and then."""
        entries, start = [("__metadata__", {KEY: json.dumps(said)})], 0
        for name, content in data.items():
            shape = (shapes or self.shapes).get(name, [0])
            kind = {"dtype": "F32", "shape": shape}
            entry = {**kind, "data_offsets": [start, start + len(content)], **(changed or {}).get(name, {})}
            entries.append((name, entry))
            start += len(content)
        if draw(st.integers(0, 4)) == 0:
            entries.append(entries[-1])
        text = ",".join(f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in entries)
        header = f"{{{text}}}".encode()
        return len(header).to_bytes(8, "little") + header + b"".join(data.values())


BOMBS: dict[int, bytes] = {}


def bomb(size: int) -> bytes:
    """``size`` zeros as a frame of zstandard, which takes a few kilobytes."""
    if size not in BOMBS:
        packer = zstandard.ZstdCompressor(level=3).compressobj(size=size)
        piece, parts = bytes(10**6), []
        parts = [packer.compress(piece) for _ in range(size // len(piece))]
        BOMBS[size] = b"".join([*parts, packer.flush()])
    return BOMBS[size]


def attacks(attacker: Attacker, count: int, first: int) -> None:
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @seed(first)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        attacker.attack(data.draw)

    run()


@pytest.mark.parametrize(
    ("count", "first"), [(300, 0), *(pytest.param(1_100, first, marks=pytest.mark.slow) for first in range(1, 11))]
)
def test_hostile_requests_change_nothing(web: Make, count: int, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinfed.aggregator.intake.MOST_REFUSED", 10**9)
    one = web()
    attacker, before = Attacker(one), one.room.federation.current()["bases"]
    bomb(2 * 10**9)
    attacks(attacker, 60, first)  # what the generators load on first use is not the server's
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    attacks(attacker, count, first)

    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1000
    print(f"{attacker.codes.total()} hostile requests: {dict(sorted(attacker.codes.items()))}; {grown:.0f} MB more")
    assert one.room.store.rows("SELECT * FROM updates WHERE state = 'accepted'") == []
    assert one.room.federation.current()["bases"] == before
    assert grown < 100
    for number, site in enumerate(SITES, start=1):
        assert one.send(site, one.room.update(site, number)).json()["state"] == "accepted"
    one.wait(2)
    assert list(faults(one.room.store.folder)) == []


@pytest.mark.parametrize(("count", "first"), [(15, 0), pytest.param(300, 1, marks=pytest.mark.slow)])
def test_the_openapi_schema_is_kept(web: Make, count: int, first: int) -> None:
    one = web()
    schema = schemathesis.openapi.from_asgi("/openapi.json", one.client.app)
    sent = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @seed(first)
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            nonlocal sent
            answer = case.call(headers=one.headers("s2"))
            sent += 1
            assert answer.status_code < 500
            assert str(answer.status_code) in {**case.operation.definition.raw["responses"], "206": 0, "304": 0}

        ask()
    print(f"{sent} requests from the schema")
    assert one.room.store.rows("SELECT * FROM updates WHERE state = 'accepted'") == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 10_000,
        b'{"samples":' + b'{"a":' * 2000 + b"1" + b"}" * 2001,
        b'{"samples": -1}',
        b'{"samples": 1e300}',
        b'{"samples": 1, "patient": "x"}',
        b'{"samples": 1' + b"0" * 5000 + b"}",
        b"x" * 20_000,
        b"\xff\xfe\x00",
    ],
    ids=range(10),
)
def test_hostile_json_is_refused(web: Make, body: bytes) -> None:
    one = web()

    answer = one.client.put(
        "/api/v1/site", content=body, headers={**one.headers("s1"), "Content-Type": "application/json"}
    )

    assert one.refused(answer) == "bad-request"
    assert one.room.federation.accounts.sites()[0]["samples"] == 10
