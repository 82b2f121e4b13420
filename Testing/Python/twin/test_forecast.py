"""Forecasts: bands, rivals, scenarios, time to progression, back-test; and what they say of themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from twinseg.errors import InputError
from twinseg.twin.forecast import (
    DISCLAIMER,
    _time_to_progression,
    back_test,
    forecast,
    joined,
    log_linear,
    scenarios,
)
from twinseg.twin.growth_curves import GrowthCurve
from twinseg.twin.posterior import PRIOR_ONLY, Visit
from twinseg.twin.treatments import Radiotherapy, Treatments

UNTREATED = Treatments.none_given()
TRUTH = np.array([[0.0, 0.015, 60.0, 0.05, 0.02, 60.0, 0.012]])


def visits(days: list[float], noise: float = 0.0) -> list[Visit]:
    """A Gompertz tumour that slows down."""
    volumes = GrowthCurve(Visit(0.0, 10.0, 0.5)).simulate(TRUTH, days, UNTREATED)[0]
    volumes = volumes * np.exp(noise * np.random.default_rng(0).standard_normal(len(days)))
    return [Visit(day, v, max(noise, 0.04) * v) for day, v in zip(days, volumes, strict=True)]


def curve() -> GrowthCurve:
    return GrowthCurve(Visit(0.0, 10.0, 0.5), steps=400)


def test_bands_nest_and_widen_and_hold_the_truth() -> None:
    posterior = curve().fit(visits([0.0, 40.0, 80.0]), UNTREATED)

    result = forecast(posterior, [100.0, 150.0, 200.0])

    inner, outer = result.bands
    assert (inner.level, outer.level) == (0.5, 0.9)
    assert (outer.low < inner.low).all()
    assert (inner.low < result.median).all()
    assert (result.median < inner.high).all()
    assert (inner.high < outer.high).all()
    assert (np.diff(np.log(outer.high / outer.low)) > 0).all()
    measured = GrowthCurve(Visit(0.0, 10.0, 0.5)).simulate(TRUTH, [100.0, 150.0, 200.0], UNTREATED)[0]
    assert ((outer.low < measured) & (measured < outer.high)).all()


def test_rivals_stand_beside_it() -> None:
    known = [Visit(0.0, 10.0, 0.5), Visit(30.0, 20.0, 1.0)]

    result = forecast(curve().fit(known, UNTREATED), [60.0])

    assert result.persistence == pytest.approx([20.0])
    assert result.log_linear == pytest.approx([40.0], rel=0.01)
    assert log_linear(known[:1], [60.0]) is None


def test_with_one_visit_it_says_that_it_knows_nothing() -> None:
    result = forecast(curve().fit([Visit(0.0, 10.0, 0.5)], UNTREATED), [60.0])

    assert not result.informed
    assert PRIOR_ONLY in result.notes
    assert result.log_linear is None
    assert result.bands[1].high[0] / result.bands[1].low[0] > 3


def test_it_is_labelled_as_research_and_says_what_it_assumed() -> None:
    result = forecast(curve().fit(visits([0.0, 30.0]), Treatments()), [60.0])

    assert result.notes[0] == DISCLAIMER
    assert any("radiotherapy or chemotherapy is not known" in note for note in result.notes)


def test_json_holds_all_numbers_and_no_infinity() -> None:
    shrinking = [Visit(0.0, 10.0, 0.5), Visit(30.0, 10.1, 0.5), Visit(60.0, 10.2, 0.5)]

    result = forecast(curve().fit(shrinking, UNTREATED), [70.0])
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))

    assert data["median_ml"] == pytest.approx(result.median.tolist())
    assert [band["level"] for band in data["bands"]] == [0.5, 0.9]
    assert data["time_to_progression_days"]["median"] is None
    assert data["time_to_progression_days"]["share_without"] > 0.9


def test_scenarios_differ_and_treatment_delays_progression() -> None:
    posterior = curve().fit(visits([0.0, 30.0, 60.0]), UNTREATED)
    plans = scenarios(65.0, given=UNTREATED)

    results = {name: forecast(posterior, [100.0, 400.0], plan, scenario=name) for name, plan in plans.items()}

    untreated = results["no further treatment"]
    combined = results["60 Gy in 30 fractions with temozolomide"]
    short = results["40 Gy in 15 fractions"]
    assert untreated.median[0] > 1.5 * max(short.median[0], combined.median[0])
    assert untreated.median[1] > short.median[1] > combined.median[1]
    assert combined.time_to_progression.median > untreated.time_to_progression.median
    progression = untreated.time_to_progression
    assert progression.low90 <= progression.median <= progression.high90


def test_treatment_that_was_never_seen_is_answered_by_the_prior_and_says_so() -> None:
    posterior = curve().fit(visits([0.0, 30.0, 60.0]), UNTREATED)
    plans = scenarios(65.0, given=UNTREATED)

    untreated = forecast(posterior, [160.0], plans["no further treatment"])
    combined = forecast(posterior, [160.0], plans["60 Gy in 30 fractions with temozolomide"])

    assert untreated.prior_alone == ()
    assert combined.prior_alone == ("radiotherapy", "chemotherapy")
    assert any("the effect of radiotherapy and chemotherapy" in note for note in combined.notes)
    assert any("pseudoprogression" in note for note in combined.notes)
    band = combined.bands[1]
    assert band.low[0] > 0.05  # what was killed has not vanished three months later
    assert band.high[0] / band.low[0] > 4
    assert band.high[0] / band.low[0] > 2 * untreated.bands[1].high[0] / untreated.bands[1].low[0]


def test_the_response_to_treatment_is_learnt_where_a_visit_shows_it() -> None:
    plan = Treatments((Radiotherapy(tuple(float(day) for day in range(5, 20)), (2.67,) * 15),), (), (), ())
    volumes = GrowthCurve(Visit(0.0, 10.0, 0.5)).simulate(TRUTH, [0.0, 40.0, 90.0], plan)[0]
    known = [Visit(day, v, 0.05 * v) for day, v in zip((0.0, 40.0, 90.0), volumes.tolist(), strict=True)]

    posterior = curve().fit(known, plan)
    result = forecast(posterior, [150.0], joined(plan, Treatments((Radiotherapy((95.0,), (2.0,)),), (), (), ())))

    assert result.prior_alone == ()
    assert np.log(posterior.samples[:, 3]).std() < 0.9 * 0.73


def test_an_unknown_treatment_widens_the_bands_to_both_sides() -> None:
    one = [Visit(0.0, 20.0, 1.0)]

    known, unknown = (forecast(curve().fit(one, given), [90.0]) for given in (UNTREATED, Treatments()))

    assert known.bands[1].low[0] > 20.0  # untreated, it grows
    assert unknown.bands[1].low[0] < 16.0
    assert unknown.bands[1].high[0] > 30.0
    assert known.median[0] > 1.5 * unknown.median[0]
    assert any("not known" in note for note in unknown.notes)


def test_an_unknown_treatment_may_change_after_the_last_visit() -> None:
    stable = [Visit(day, 20.0, 0.8) for day in (0.0, 40.0, 80.0)]

    known, unknown = (forecast(curve().fit(stable, given), [140.0]) for given in (UNTREATED, Treatments()))

    assert known.bands[1].low[0] > 19.0  # a tumour that nobody treats does not shrink
    assert unknown.bands[1].low[0] < 17.5
    assert unknown.median[0] == pytest.approx(20.0, rel=0.15)


def test_after_a_vanished_tumour_progression_is_a_measurable_one() -> None:
    volumes = np.array([[0.4, 0.0, 0.3, 0.51, 0.53], [1.0, 1.0, 1.39, 1.39, 1.41]])

    result = _time_to_progression(volumes, np.array([0.0, 30.0, 60.0, 90.0, 120.0]))

    assert (result.low90, result.median, result.high90) == (120.0, 120.0, 120.0)


def test_time_to_progression_is_when_the_volume_is_40_percent_up() -> None:
    steady = [Visit(day, 1.0 * np.exp(0.02 * day), 0.03 * np.exp(0.02 * day)) for day in (0.0, 30.0, 60.0, 90.0)]

    result = forecast(curve().fit(steady, UNTREATED), [200.0])

    # ln(1.4) / 0.02 per day
    assert result.time_to_progression.median == pytest.approx(16.8, abs=8)
    assert result.time_to_progression.share_without == 0.0


def test_plans_come_after_what_was_given_and_unknown_stays_unknown() -> None:
    given = Treatments(radiotherapy=(Radiotherapy((-20.0,), (2.0,)),))

    plan = joined(given, scenarios(10.0)["40 Gy in 15 fractions"])

    assert plan.radiotherapy is not None
    assert [course.days[0] for course in plan.radiotherapy] == [-20.0, 10.0]
    assert plan.chemotherapy is None
    assert plan.more_unknown  # and may go on
    assert not joined(UNTREATED, scenarios(10.0)["40 Gy in 15 fractions"]).kills_unknown
    assert "60 Gy in 30 fractions by dose map, with temozolomide" in scenarios(0.0, np.ones((2, 2, 2), np.float32))


def test_the_back_test_praises_a_twin_that_beats_its_rivals() -> None:
    result = back_test(curve(), visits([0.0, 40.0, 90.0, 150.0, 220.0]), UNTREATED)

    assert [trial.day for trial in result.trials] == [90.0, 150.0, 220.0]
    assert all(trial.covered for trial in result.trials)
    assert result.errors["twin"] < result.errors["persistence"]
    assert result.errors["twin"] < result.errors["log_linear"]
    assert result.beats_both
    assert "nearest" in result.verdict


def test_the_back_test_says_when_the_twin_is_worse() -> None:
    constant = [Visit(day, 10.0, 0.2) for day in (0.0, 20.0, 40.0)] + [Visit(300.0, 10.0, 0.2)]

    result = back_test(curve(), constant, UNTREATED)

    assert result.beats_both is False
    assert "did not beat" in result.verdict
    assert "do not rely" in result.verdict


def test_two_visits_are_too_few_for_a_back_test() -> None:
    result = back_test(curve(), visits([0.0, 30.0]), UNTREATED)

    assert result.beats_both is None
    assert result.trials == ()
    assert "too few visits" in result.verdict


def test_a_day_in_the_past_is_refused() -> None:
    posterior = curve().fit(visits([0.0, 30.0]), UNTREATED)

    with pytest.raises(InputError, match="after the last visit"):
        forecast(posterior, [30.0])
    with pytest.raises(InputError, match="after the last visit"):
        forecast(posterior, [])
    with pytest.raises(InputError, match="rising days"):
        forecast(posterior, [60.0, 50.0])
