"""The rounds of a job over plain arrays: checked, recorded and aggregated as the light aggregator does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from twinfed.aggregator.config import FederationConfig
from twinfed.aggregator.intake import Intake
from twinfed.aggregator.rounds import Federation
from twinfed.aggregator.store import Store
from twinfed.aggregator.verify import faults
from twinfed.engines.nvflare import exchange
from twinfed.engines.nvflare.exchange import incoming, outgoing
from twinfed.engines.nvflare.job_federation import JobFederation, RoundFailed
from twinfed.errors import Refusal
from twinfed.wire import (
    ArrayTensors,
    Compression,
    Header,
    Report,
    UpdateFile,
    hash_file,
    write_model,
    write_update,
)

SITES = ("SITE-01", "SITE-02", "SITE-03")
Arrays = dict[str, NDArray[Any]]
Begun = Callable[..., JobFederation]
Change = Callable[[int, str], Arrays]
Said = Callable[..., dict[str, str]]


def light_model(folder: Path, config: FederationConfig, change: Change, said: Callable[[str], Report]) -> bytes:
    """The final model of the light aggregator for the same changes."""
    store = Store(folder)
    federation = Federation(store, config)
    intake = Intake(federation)
    for position, site in enumerate(SITES, start=1):
        federation.accounts.add(site)
        federation.accounts.register(site, 10 * position)
    federation.advance()
    while federation.instructions(SITES[0])["state"] != "published":
        for site in SITES:
            told = federation.instructions(site)
            if told["do"] == "train":
                number, path = told["round"], folder / "update"
                header = Header(federation="trial", round=number, site=site, base=told["base"], report=said(site))
                write_update(path, change(number, site), header)
                intake.receive(site, number, hash_file(path), path)
                federation.advance()
    content = store.file(federation.instructions(SITES[0])["base"]).read_bytes()
    store.close()
    return content


def report_of(site: str) -> Report:
    return Report(samples=10 * (SITES.index(site) + 1), labels={"ED": 4, "ET": 2}, dice_after=0.7, hd95_after=5.0)


@pytest.mark.parametrize(
    "strategy", ["fedavg", "fedprox", "fedexp", "adaptive", "fedavgm", "fedadam", "median", "transfer"]
)
def test_the_final_model_has_the_light_aggregators_bits(
    begun: Begun, config: Callable[..., FederationConfig], change: Change, said: Said, tmp_path: Path, strategy: str
) -> None:
    quorum = {"quorum": 3}
    federation = begun(strategy, **quorum)

    while not federation.over:
        for site in federation.asked(SITES):
            assert federation.take(site, change(federation.number, site), said(federation, site)) is None
        assert federation.close_round()

    final = federation.federation.instructions("SITE-01")["base"]
    light = light_model(tmp_path / "light", config(strategy, **quorum), change, report_of)
    assert federation.store.file(final).read_bytes() == light
    assert list(faults(tmp_path / "federation")) == []


def test_full_weights_bring_the_same_model_but_for_rounding(begun: Begun, change: Change, said: Said) -> None:
    federation = begun("fedavg")
    before = federation.model()
    changes = {site: change(1, site) for site in SITES}

    for site in SITES:
        weights = {name: before[name] + array for name, array in changes[site].items()}
        assert federation.take(site, weights, said(federation, site, "weights")) is None
    federation.close_round()

    shares = {"SITE-01": 1 / 6, "SITE-02": 2 / 6, "SITE-03": 3 / 6}
    for name, array in federation.model().items():
        expected = before[name] + sum(shares[site] * changes[site][name] for site in SITES)
        np.testing.assert_allclose(array, expected, atol=1e-6)


def nan(arrays: Arrays) -> Arrays:
    arrays["weight"][3, 3] = np.nan
    return arrays


HOSTILE: dict[str, tuple[Callable[[Arrays], Any], str]] = {
    "NaN": (nan, "not-finite"),
    "a hundred times": (lambda arrays: {name: 100 * array for name, array in arrays.items()}, "norm-too-large"),
    "1e30": (lambda arrays: {name: array * np.float32(1e30) for name, array in arrays.items()}, "value-too-large"),
    "column for row": (lambda arrays: {**arrays, "bias": arrays["bias"].reshape(2, 1)}, "wrong-shape"),
    "one tensor less": (lambda arrays: {"bias": arrays["bias"]}, "wrong-names"),
    "one tensor more": (lambda arrays: {**arrays, "other": arrays["bias"]}, "wrong-names"),
    "float64": (lambda arrays: {name: array.astype(float) for name, array in arrays.items()}, "wrong-dtype"),
    "objects": (lambda arrays: {name: list(array) for name, array in arrays.items()}, "wrong-dtype"),
    "nothing": (lambda arrays: {name: 0 * array for name, array in arrays.items()}, "empty-update"),
}


@pytest.mark.parametrize("form", ["differences", "weights"])
@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_update_is_refused_and_the_round_goes_on(
    begun: Begun, change: Change, said: Said, hostile: str, form: str
) -> None:
    federation = begun("fedavg")
    for site in SITES:  # a round that is well, so that it is known how long updates usually are
        federation.take(site, change(1, site), said(federation, site))
    federation.close_round()
    spoil, code = HOSTILE[hostile]
    base = federation.model()
    sent = spoil(change(2, "SITE-03"))
    if form == "weights" and hostile != "objects":
        sent = {
            name: array + base[name] if name in base and array.shape == base[name].shape else array
            for name, array in sent.items()
        }

    why = federation.take("SITE-03", sent, said(federation, "SITE-03", form))
    for site in SITES[:2]:
        assert federation.take(site, change(2, site), said(federation, site)) is None

    assert why is not None
    assert why.startswith(f"{code}: ")
    assert federation.close_round()
    assert federation.report()[1]["refused"] == {"SITE-03": code}
    assert federation.report()[1]["weights"] == pytest.approx({"SITE-01": 1 / 3, "SITE-02": 2 / 3})
    assert federation.message()["refused"]["SITE-03"] == why
    assert all(np.isfinite(array).all() for array in federation.model().values())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"round": 2}, "wrong-round"),
        ({"round": "1"}, "malformed"),
        ({"base": "0" * 64}, "stale-base"),
        ({"federation": "other"}, "wrong-federation"),
        ({"report": {"samples": 10**9}}, "bad-samples"),
        ({"report": {"samples": 5, "labels": {"ED": 1001}}}, "bad-report"),
        ({"report": None}, "bad-report"),
        ({"form": "packed"}, "malformed"),
    ],
)
def test_what_a_site_says_of_its_update_is_checked(
    begun: Begun, change: Change, said: Said, changes: dict[str, Any], code: str
) -> None:
    federation = begun()

    why = federation.take("SITE-01", change(1, "SITE-01"), said(federation, "SITE-01", **changes))

    assert str(why).startswith(f"{code}: ")


def test_metadata_of_something_else_are_refused(begun: Begun, change: Change) -> None:
    federation = begun()

    for meta in ({}, {"twinfed": "{"}, {"twinfed": "[]"}, {"twinfed": 3}, {"twinfed": "[" * 10**5}):
        assert str(federation.take("SITE-01", change(1, "SITE-01"), meta)).startswith("malformed: ")


def test_a_packed_update_of_another_site_is_refused(begun: Begun, change: Change, said: Said, tmp_path: Path) -> None:
    federation = begun()
    base = federation.message()["instructions"]["base"]
    header = Header(federation="trial", round=1, site="SITE-02", base=base, report=report_of("SITE-01"))
    write_update(tmp_path / "update", change(1, "SITE-01"), header, Compression(bits=8), seed=0)
    packed = outgoing(tmp_path / "update", tmp_path / "none", "packed")

    why = federation.take("SITE-01", packed, said(federation, "SITE-01", "packed"))
    well = federation.take("SITE-02", packed, said(federation, "SITE-02", "packed"))

    assert str(why).startswith("wrong-site: ")
    assert well is None


def test_too_few_updates_end_the_job_loudly(begun: Begun, change: Change, said: Said) -> None:
    federation = begun(quorum=2)
    federation.take("SITE-01", change(1, "SITE-01"), said(federation, "SITE-01"))
    federation.take("SITE-02", nan(change(1, "SITE-02")), said(federation, "SITE-02"))

    with pytest.raises(RoundFailed, match="Round 1: 1 of 3 updates were accepted, 2 are needed"):
        federation.close_round()


def test_no_update_at_all_ends_the_job_loudly(begun: Begun) -> None:
    with pytest.raises(RoundFailed, match="0 of 3 updates were accepted"):
        begun().close_round()


def test_a_model_that_stays_as_it_was_ends_the_job_loudly(begun: Begun, change: Change, said: Said) -> None:
    federation = begun("fedavg")
    for site in SITES:
        tiny = {name: np.float32(1e-25) * array for name, array in change(1, site).items()}
        assert federation.take(site, tiny, said(federation, site)) is None

    with pytest.raises(RoundFailed, match="Round 1 left the model as it was"):
        federation.close_round()


def test_too_few_sites_are_told_before_the_first_round(config: Callable[..., FederationConfig], tmp_path: Path) -> None:
    federation = JobFederation(tmp_path / "federation", config(quorum=2))
    federation.register("SITE-01", {"samples": 3})

    with pytest.raises(RoundFailed, match=r"1 sites can take part \(SITE-01\)"):
        federation.begin()


@pytest.mark.parametrize("samples", [0, -1, 10**9, "many", None])
def test_a_site_cannot_register_what_cannot_be(begun: Begun, samples: Any) -> None:
    with pytest.raises(Refusal, match="no number of training cases"):
        begun().register("SITE-04", {"samples": samples})


def test_sites_are_visited_in_turn_and_a_refused_one_is_passed_over(begun: Begun, change: Change, said: Said) -> None:
    federation = begun("transfer", rounds=3, quorum=1)
    visited = []

    while not federation.over:
        (site,) = federation.asked(SITES)
        sent = change(federation.number, site)
        federation.take(site, nan(sent) if site == "SITE-02" and not visited[1:] else sent, said(federation, site))
        if federation.close_round():
            visited.append(site)
        else:
            assert site == "SITE-02"
            visited.append("passed over")

    assert visited == ["SITE-01", "passed over", "SITE-03", "SITE-01"]
    assert [row["round"] for row in federation.report()] == [1, 2, 3]


def test_a_round_in_which_all_are_passed_over_ends_the_job_loudly(begun: Begun, change: Change, said: Said) -> None:
    federation = begun("transfer", quorum=1)

    def fail() -> None:
        (site,) = federation.asked(SITES)
        federation.take(site, nan(change(1, site)), said(federation, site))
        federation.close_round()

    fail()
    fail()
    with pytest.raises(RoundFailed, match="0 of 1 updates were accepted"):
        fail()


def test_a_killed_job_is_gone_on_with(begun: Begun, change: Change, said: Said, tmp_path: Path) -> None:
    federation = begun()
    for site in SITES:
        federation.take(site, change(1, site), said(federation, site))
    federation.close_round()
    federation.take("SITE-01", change(2, "SITE-01"), said(federation, "SITE-01"))
    federation.close()

    again = JobFederation(tmp_path / "federation")

    assert again.number == 2
    assert again.rounds_left == 2
    assert again.asked(SITES) == ["SITE-02", "SITE-03"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), shape=st.lists(st.integers(1, 5), max_size=4), form=st.sampled_from(
    ["differences", "weights", "packed"]))  # fmt: skip
def test_an_update_arrives_in_every_form_as_it_was_sent(tmp_path: Path, seed: int, shape: list[int], form: str) -> None:
    random = np.random.default_rng(seed)
    base = {"w": random.standard_normal(shape, dtype=np.float32).reshape(shape)}
    change = {"w": random.standard_normal(shape, dtype=np.float32).reshape(shape)}
    write_model(tmp_path / "base", ArrayTensors(base), {})
    header = Header(federation="f", round=3, site="s", base="b", report=Report(samples=2))
    write_update(tmp_path / "sent", change, header)

    arrays = outgoing(tmp_path / "sent", tmp_path / "base", form)
    content = {"form": form, "federation": "f", "round": 3, "base": "b", "report": {"samples": 2}}
    incoming(arrays, content, base, "s", tmp_path / "arrived")

    arrived = UpdateFile(tmp_path / "arrived")
    assert arrived.header == header
    assert arrived.shapes == {"w": tuple(shape)}
    np.testing.assert_allclose(arrived.block("w", 0), change["w"].reshape(-1), atol=1e-6 if form == "weights" else 0)


def test_the_text_beside_the_arrays_is_read_back(begun: Begun, said: Said) -> None:
    content = exchange.told(said(begun(), "SITE-02"))

    assert content["form"] == "differences"
    assert Report.from_dict(content["report"]) == report_of("SITE-02")
