"""Who is let in: tokens, revoked sites, the page from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "no-token"),
        ({"Authorization": "Bearer wrong"}, 401, "unknown-token"),
        ({"Authorization": "Basic eDp5"}, 401, "no-token"),
        ({"Authorization": "Bearer " + "x" * 5000}, 401, "unknown-token"),
        ({"Authorization": "Bearer é".encode()}, 401, "unknown-token"),
    ],
)
def test_without_a_right_token_nothing_is_told(web: Make, headers: dict[str, Any], status: int, code: str) -> None:
    one = web()
    answer = one.client.get("/api/v1/round", headers=headers)

    assert (answer.status_code, one.refused(answer)) == (status, code)


def test_revoked_and_others_tokens(web: Make) -> None:
    one = web()
    path = one.room.update("s1", 1)

    assert one.refused(one.send("s2", path)) == "wrong-site"
    one.room.federation.accounts.revoke("s1")
    assert one.refused(one.send("s1", path)) == "revoked"


def test_the_page_is_not_open_to_other_machines(web: Make) -> None:
    one = web()
    elsewhere = TestClient(one.client.app, base_url="http://127.0.0.1:8600", client=("192.0.2.1", 50000))
    token = one.tokens["s1"]

    def signed_in(content: str) -> int:
        basic = base64.b64encode(content.encode()).decode()
        return elsewhere.get("/", headers={"Authorization": f"Basic {basic}"}).status_code

    assert elsewhere.get("/").status_code == 401
    assert signed_in(f"s1:{token}") == 200
    assert signed_in(f"s2:{token}") == 401
    assert signed_in("s1:") == 401
    assert elsewhere.get("/metrics", headers={"Authorization": "Basic !"}).status_code == 401
    assert elsewhere.get("/metrics", headers={"Authorization": f"Bearer {token}"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"X-Forwarded-For": "192.0.2.1"}, {"Forwarded": "for=192.0.2.1"}, {"Via": "1.1 proxy"}, {"Host": "evil.example"}],
    ids=lambda headers: next(iter(headers)),
)
def test_neither_a_proxy_nor_another_name_makes_the_page_open(web: Make, headers: dict[str, str]) -> None:
    client = web().client

    assert client.get("/").status_code == 200
    assert client.get("/", headers=headers).status_code == 401


def test_the_page_loads_nothing_and_stays_out_of_frames_and_caches(web: Make) -> None:
    headers = web().client.get("/").headers

    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'unsafe-inline';")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"


def test_a_site_cannot_fill_the_log(web: Make) -> None:
    one = web()

    answers = [
        one.client.put("/api/v1/site", json={"samples": 20 + count}, headers=one.headers("s1")) for count in range(60)
    ]

    assert one.refused(answers[-1]) == "too-many-changes"
    assert len(one.room.store.rows("SELECT 1 FROM events WHERE who = 's1'")) == 50


def test_no_log_line_holds_a_token(web: Make, caplog: pytest.LogCaptureFixture) -> None:
    one = web()
    with caplog.at_level(0):
        one.get("/api/v1/round")
        one.client.get("/api/v1/round", headers={"Authorization": "Bearer twinfed-guessed"})
        one.client.put("/api/v1/site", content=b"{", headers=one.headers("s1"))

    assert not [line for line in caplog.messages if one.tokens["s1"] in line or "guessed" in line]
