"""Consent: it holds for one aggregator; once it is withdrawn nothing is trained or sent, whatever is under way."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from twinfed.client import controls
from twinfed.client.case_source import CaseSource
from twinfed.client.site_trainer import SiteTrainer
from twinseg.cases import Case
from twinseg.tasks import Task


class Withdrawing(CaseSource):
    """A folder of cases in which the consent is withdrawn while they are looked up."""

    def find(self, task: Task) -> dict[str, list[Case]]:
        assert self.folder is not None
        controls.withdraw_consent(self.folder.parents[1] / "folders/SITE-01")
        return super().find(task)


def test_what_is_being_sent_is_not_sent_on(cohort: Path, aggregator: Any, join: Any, until: Any, proxy: Any) -> None:
    there = aggregator(sites=("SITE-01",), rounds=1, limits={"free_mb": 1, "chunk_mb": 0.004})

    def slow(piece: bytes, up: bool) -> bytes:
        time.sleep(0.05 if up else 0)
        return piece

    line = proxy(there.url, fault=slow)
    site = join(line.url, there.tokens["SITE-01"], "SITE-01", cohort / "SITE-01")
    until(lambda: there.store.row("SELECT received FROM uploads WHERE received > 0"))

    controls.withdraw_consent(site.folder)
    until(lambda: site.facts()["facts"]["phase"] == "without consent")
    sent = len(line.sent)
    time.sleep(2)
    assert len(line.sent) == sent
    assert there.accepted() == []

    controls.give_consent(site.folder, line.url, "a test")
    until(lambda: there.finished)


@pytest.mark.parametrize("is_trained", [False, True])
def test_what_is_withdrawn_while_it_is_scored_is_neither_trained_nor_sent(
    is_trained: bool,
    cohort: Path,
    aggregator: Any,
    join: Any,
    until: Any,
    proxy: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate = SiteTrainer.evaluate

    def withdrawn_meanwhile(self: SiteTrainer, data: Any, extra: Any = None) -> Any:
        if is_trained != bool(data.weights):
            controls.withdraw_consent(tmp_path / "folders/SITE-01")
        return evaluate(self, data, extra)

    monkeypatch.setattr(SiteTrainer, "evaluate", withdrawn_meanwhile)
    there = aggregator(sites=("SITE-01",), rounds=1)
    line = proxy(there.url)

    site = join(line.url, there.tokens["SITE-01"], "SITE-01", cohort / "SITE-01")
    until(lambda: site.facts()["facts"].get("phase") == "without consent")

    time.sleep(1)
    assert b"/api/v1/rounds/" not in line.sent
    assert is_trained or site.facts()["facts"].get("progress", 0) == 0


def test_the_number_of_cases_is_not_sent_where_it_is_withdrawn_while_they_are_read(
    cohort: Path, aggregator: Any, join: Any, until: Any
) -> None:
    there = aggregator(sites=("SITE-01",), rounds=1)

    site = join(there.url, there.tokens["SITE-01"], "SITE-01", source=Withdrawing(folder=cohort / "SITE-01"))
    until(lambda: site.facts()["facts"].get("phase") == "without consent")

    time.sleep(1)
    assert there.federation.accounts.sites()[0]["samples"] is None


def test_a_consent_holds_for_one_address(tmp_path: Path) -> None:
    controls.give_consent(tmp_path, "https://a.example/", "in Slicer")
    assert controls.why_wait(tmp_path, "https://a.example", tmp_path, None) is None
    assert controls.why_wait(tmp_path, "https://b.example", tmp_path, None) == "without consent"

    controls.give_consent(tmp_path, "https://b.example", "twinfed join")

    assert controls.why_wait(tmp_path, "https://b.example", tmp_path, None) is None
    assert controls.why_wait(tmp_path, "https://a.example", tmp_path, None) == "without consent"
    (kept,) = tmp_path.glob("withdrawn-*")
    assert json.loads(kept.read_text())["address"] == "https://a.example"


@pytest.mark.parametrize(
    "content", ["", "[1]", "\x00", '{"statement": "all", "when": "2026", "how": "before it had an address"}']
)
def test_what_is_no_record_of_an_address_is_no_consent(tmp_path: Path, content: str) -> None:
    (tmp_path / controls.CONSENT).write_text(content)

    assert controls.why_wait(tmp_path, "https://a.example", tmp_path, None) == "without consent"


def test_joining_elsewhere_is_another_consent(
    tmp_path: Path, cohort: Path, aggregator: Any, twinfed: Any, until: Any
) -> None:
    there = aggregator(sites=("SITE-01",), rounds=1)
    controls.give_consent(tmp_path / "site", "https://a.example", "in Slicer")
    (tmp_path / "token").write_text(there.tokens["SITE-01"])
    words = ["--token-file", tmp_path / "token", "--folder", tmp_path / "site", "--data", cohort / "SITE-01"]

    process = twinfed("join", there.url, *words, "--device", "cpu", "--normal-priority", log=tmp_path / "log")

    assert process.wait(timeout=300) == 0
    record = json.loads((tmp_path / "site" / controls.CONSENT).read_text())
    assert (record["address"], record["how"]) == (there.url, "twinfed join")


def test_its_own_model_goes_to_other_sites_only_where_that_was_agreed_to(
    cohort: Path, aggregator: Any, join: Any, until: Any
) -> None:
    there = aggregator(sites=("SITE-01", "SITE-02"), rounds=1, quorum=1, strategy={"name": "transfer"})
    there.federation.accounts.register("SITE-01", 3)  # it has taken part before, and it is its turn
    until(lambda: "SITE-01" in there.federation.current()["invited"])

    private = join(there.url, there.tokens["SITE-01"], "SITE-01", cohort / "SITE-01")
    until(lambda: any("join with --share-local-model" in line for line in private.lines()))
    open_ = join(there.url, there.tokens["SITE-02"], "SITE-02", cohort / "SITE-02", shares=True)
    until(lambda: there.finished)

    assert there.accepted() == ["SITE-02"]
    assert private.facts()["rounds"] == []
    until(lambda: open_.facts()["facts"]["phase"] == "finished")


def test_to_share_the_own_model_is_agreed_to_besides_and_noted(tmp_path: Path) -> None:
    controls.give_consent(tmp_path, "https://a.example", "in Slicer")
    controls.give_consent(tmp_path, "https://a.example", "twinfed join", share_local_model=True)
    controls.give_consent(tmp_path, "https://a.example", "twinfed join")  # started again without the word

    record = json.loads((tmp_path / controls.CONSENT).read_text())
    assert record["share_local_model"] is True
    assert controls.OWN_MODEL in record["statement"]
    assert len(list(tmp_path.glob("withdrawn-*"))) == 1


def test_where_few_sites_are_enough_it_is_said(cohort: Path, aggregator: Any, join: Any, until: Any) -> None:
    few = aggregator(sites=("SITE-01", "SITE-02"), quorum=2)
    three = aggregator(sites=("SITE-01", "SITE-02", "SITE-03"), quorum=3)

    sites = [
        join(there.url, there.tokens["SITE-01"], name, cohort / "SITE-01")
        for name, there in (("few", few), ("three", three))
    ]
    until(lambda: all(any("training on" in line for line in site.lines()) for site in sites))

    told = [any("fewer than three sites" in line for line in site.lines()) for site in sites]
    assert told == [True, False]
