"""Volume curves: their formulas, treatment, the posterior by emcee, and what one visit says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from twinseg.errors import InputError
from twinseg.twin.growth_curves import GrowthCurve, Kind
from twinseg.twin.posterior import PRIOR_ONLY, Visit
from twinseg.twin.treatments import Radiotherapy, Surgery, Treatments, radiotherapy_60_gy_with_temozolomide

UNTREATED = Treatments.none_given()
START = Visit(0.0, 20.0, 1.2)
TRUTH = np.array([[0.0, 0.012, 150.0, 0.05, 0.02, 1e-3, 0.012]])  # killed cells vanish at once


def right_side(kind: Kind, volume: float) -> float:
    """dV/dt for the parameters in `TRUTH`."""
    capacity = 20.0 + 150.0
    if kind == "logistic":
        return 0.012 / (1 - 20 / capacity) * volume * (1 - volume / capacity)
    return 0.012 / np.log(capacity / 20) * volume * np.log(capacity / volume)


@pytest.mark.parametrize("kind", ["gompertz", "logistic"])
def test_curves_solve_their_equations(kind: Kind) -> None:
    days = [0.0, 30.0, 90.0, 400.0]

    volumes = GrowthCurve(START, kind).simulate(TRUTH, days, UNTREATED)

    solved = solve_ivp(lambda _, v: [right_side(kind, v[0])], (0, 400), [20.0], t_eval=days, rtol=1e-9)
    assert volumes[0] == pytest.approx(solved.y[0], rel=1e-5)


@pytest.mark.parametrize("kind", ["gompertz", "logistic"])
def test_a_fraction_kills_by_the_linear_quadratic_model(kind: Kind) -> None:
    plan = Treatments((Radiotherapy((10.0,), (5.0,)),), (), (), ())

    treated = GrowthCurve(START, kind).living(TRUTH, np.array([10.0, 10.0 + 1e-6]), plan)[0]

    # A treatment counts from its day on: at the very day the volume is that of before
    surviving = np.exp(-0.05 * 5 * 1.5)
    if kind == "logistic":  # the share that proliferates
        surviving /= 1 + (surviving - 1) * treated[0] / 170.0
    assert treated[1] / treated[0] == pytest.approx(surviving, rel=1e-4)


@pytest.mark.parametrize("kind", ["gompertz", "logistic"])
@pytest.mark.parametrize("volume", [1e-9, 20.0, 1e12])
@pytest.mark.parametrize("headroom", [0.0, 1e-300, 1e-9, 1e15])
def test_no_headroom_and_no_volume_is_too_small_or_too_large(kind: Kind, volume: float, headroom: float) -> None:
    curve = GrowthCurve(Visit(0.0, volume, 0.05 * volume), kind)
    parameters = np.array([[0.0, 0.014, headroom, 0.05, 0.02, 60.0, 0.012]])

    volumes = curve.simulate(parameters, [0.0, 0.0, 1e-9, 30.0, 3650.0], UNTREATED)[0]
    treated = curve.simulate(parameters, [0.0, 30.0, 3650.0], radiotherapy_60_gy_with_temozolomide(1.0))[0]

    assert np.isfinite(volumes).all()
    assert np.isfinite(treated).all()
    assert (volumes >= volume * (1 - 1e-9)).all()
    assert (volumes <= (volume + max(headroom, 1e-6 * volume)) * (1 + 1e-9)).all()
    assert (treated >= 0).all()


@pytest.mark.parametrize("kind", ["gompertz", "logistic"])
def test_treatment_shrinks_and_more_visits_change_nothing(kind: Kind) -> None:
    plan = radiotherapy_60_gy_with_temozolomide(5.0)
    curve = GrowthCurve(START, kind)

    whole = curve.simulate(TRUTH, [200.0], plan)[0, 0]
    stepwise = curve.simulate(TRUTH, [3.0, 20.5, 60.0, 100.0, 200.0], plan)[0, -1]

    assert whole < curve.simulate(TRUTH, [200.0], UNTREATED)[0, 0]
    assert stepwise == pytest.approx(whole, rel=5e-3)


@pytest.mark.parametrize("kind", ["gompertz", "logistic"])
def test_the_posterior_finds_the_growth_and_narrows(kind: Kind) -> None:
    days = [0.0, 30.0, 60.0, 100.0]
    volumes = GrowthCurve(START, kind).simulate(TRUTH, days, UNTREATED)[0]
    visits = [Visit(day, v, 0.04 * v) for day, v in zip(days, volumes, strict=True)]

    posterior = GrowthCurve(START, kind, steps=600).fit(visits, UNTREATED)
    prior = GrowthCurve(START, kind, steps=600).fit(visits[:1], UNTREATED)

    growth = posterior.summary()["parameters"]["growth_per_day"]
    assert growth["low90"] < 0.012 < growth["high90"]
    assert posterior.informed
    assert posterior.effective_size > 100
    assert np.log(posterior.samples[:, 1]).std() < 0.4 * np.log(prior.samples[:, 1]).std()
    # What no visit informs keeps its prior
    assert np.median(posterior.samples[:, 3]) == pytest.approx(0.045, rel=0.25)


@pytest.mark.parametrize("kind", ["gompertz", "logistic"])
def test_a_curve_goes_on_from_the_last_visit_as_from_the_first(kind: Kind) -> None:
    visits = [START, Visit(60.0, 33.0, 2.0)]
    curve = GrowthCurve(START, kind, steps=200)
    samples = curve.fit(visits, Treatments()).samples[:50]

    model, told = curve.continued(samples, visits, Treatments())

    assert model.start == visits[1]
    whole = curve.simulate(samples, [60.0, 100.0, 300.0], Treatments())
    assert model.simulate(told, [60.0, 100.0, 300.0], Treatments()) == pytest.approx(whole, rel=1e-4)
    treated = radiotherapy_60_gy_with_temozolomide(5.0)
    assert curve.continued(samples, visits, treated)[0] is curve
    assert curve.continued(samples, [START, Visit(60.0, 0.0, 0.1)], UNTREATED)[0] is curve


def test_the_same_seed_gives_the_same_posterior() -> None:
    visits = [START, Visit(40.0, 33.0, 2.0)]

    first, second = (GrowthCurve(START, steps=200).fit(visits, UNTREATED, seed=5) for _ in range(2))

    assert np.array_equal(first.samples, second.samples)


def test_one_visit_gives_the_prior_and_says_so() -> None:
    posterior = GrowthCurve(START).fit([START], UNTREATED)

    assert not posterior.informed
    assert posterior.notes[0] == PRIOR_ONLY
    assert np.median(posterior.samples[:, 1]) == pytest.approx(0.014, rel=0.05)


def test_visits_before_surgery_do_not_count() -> None:
    visits = [Visit(-30.0, 60.0, 3.0), START, Visit(50.0, 30.0, 2.0)]
    operated = Treatments((), (), (Surgery(-10.0, "subtotal"),), ())

    posterior = GrowthCurve(visits[0], steps=200).fit(visits, operated)

    assert posterior.visits == tuple(visits[1:])
    assert posterior.model.start == START
    with pytest.raises(InputError, match="no scan after the operation"):
        GrowthCurve(visits[0]).fit(visits[:1], Treatments((), (), (Surgery(-30.0),), ()))


def test_bad_input_is_refused_in_one_line() -> None:
    curve = GrowthCurve(START)

    with pytest.raises(InputError, match="no segmented tumour"):
        GrowthCurve(Visit(0.0, 0.0, 0.1))
    with pytest.raises(InputError, match="in order of days"):
        curve.fit([START, Visit(0.0, 21.0, 1.0)], UNTREATED)
    with pytest.raises(InputError, match="no visit"):
        curve.fit([], UNTREATED)
    with pytest.raises(InputError, match="days must rise"):
        curve.simulate(TRUTH, [-3.0], UNTREATED)
    with pytest.raises(InputError, match="operation on day 20"):
        curve.simulate(TRUTH, [30.0], Treatments((), (), (Surgery(20.0),), ()))
    with pytest.raises(InputError, match="negative"):
        Visit(0.0, -1.0, 0.1)
    with pytest.raises(InputError, match="give a number"):
        Visit(float("nan"), 1.0, 0.1)


def test_a_vanished_lesion_can_be_fitted() -> None:
    visits = [START, Visit(60.0, 0.0, 0.05)]
    plan = radiotherapy_60_gy_with_temozolomide(5.0)

    posterior = GrowthCurve(START, steps=400).fit(visits, plan)

    assert np.isfinite(posterior.samples).all()
    assert np.median(posterior.samples[:, 3]) > 0.06  # more sensitive than the prior's median


@pytest.mark.parametrize("kind", ["gompertz", "logistic"])
def test_a_tumour_that_shrinks_untreated_is_not_explained_and_that_is_said(kind: Kind) -> None:
    visits = [Visit(0.0, 55.0, 2.0), Visit(110.0, 40.0, 1.5), Visit(160.0, 44.0, 1.5)]

    posterior = GrowthCurve(visits[0], kind, steps=400).fit(visits, UNTREATED)

    assert np.isfinite(posterior.samples).all()
    assert any("does not explain day 110" in note for note in posterior.notes)
