"""Treatments: JSON and back, what is unknown, bad entries; and what they do to cells, against an ODE solver."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from twinseg.errors import InputError
from twinseg.twin.dose_response import Piece, TreatmentEffect, enhancement_sd, local_map, seen
from twinseg.twin.treatments import (
    Chemotherapy,
    Radiotherapy,
    Steroids,
    Surgery,
    Treatments,
    radiotherapy_40_gy_hypofractionated,
    radiotherapy_60_gy_with_temozolomide,
    weekdays,
)

number = st.floats(-1000, 1000)
dose = st.none() | st.floats(0, 300)


@given(
    st.none() | st.lists(st.tuples(number, dose), max_size=4),
    st.none() | st.lists(st.tuples(number, dose), max_size=4),
    st.sampled_from([None, "biopsy", "gross total"]),
    dose,
)
def test_json_and_back(fractions: Any, doses: Any, extent: str | None, residual: float | None) -> None:
    given_ = Treatments(
        None if fractions is None else (Radiotherapy(tuple(d for d, _ in fractions), tuple(g for _, g in fractions)),),
        None if doses is None else (Chemotherapy(tuple(d for d, _ in doses), tuple(g for _, g in doses), "x", 0.1),),
        (Surgery(-3.0, extent, residual),),
        (Steroids(1.0, None, None),),
    )

    assert Treatments.from_json(json.loads(json.dumps(given_.to_json()))) == given_


def test_what_is_missing_is_unknown_and_differs_from_none_given() -> None:
    unknown = Treatments.from_json({})

    assert unknown == Treatments(None, None, None, None)
    assert unknown != Treatments.none_given()
    assert any("radiotherapy or chemotherapy is not known" in line for line in unknown.assumptions())
    assert unknown.kills_unknown
    assert not Treatments.none_given().kills_unknown
    assert Treatments.none_given().assumptions() == ()


@pytest.mark.parametrize(
    "entry",
    [
        {"radiotherapy": 3},
        {"radiotherapy": [{"days": [1, 2], "dose_gy": [2]}]},
        {"radiotherapy": [{"days": [1], "dose_gy": [-2]}]},
        {"radiotherapy": [{"days": ["monday"], "dose_gy": [2]}]},
        {"chemotherapy": [{"days": [1], "half_life_days": 0}]},
        {"surgery": [{"day": float("nan")}]},
        {"surgery": [{"day": 1, "extent": "all of it"}]},
        {"surgery": [{"when": 1}]},
        {"steroids": [{"first_day": 4, "last_day": 2}]},
        {"prayer": []},
        [],
    ],
)
def test_bad_entries_are_refused_in_one_line(entry: Any) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$"):
        Treatments.from_json(entry)


def test_a_dose_map_in_memory_only_is_not_written_silently() -> None:
    course = Radiotherapy((0.0,), (2.0,), relative_dose=np.ones((2, 2, 2), np.float32))

    with pytest.raises(InputError, match="save it"):
        Treatments(radiotherapy=(course,)).to_json()
    with pytest.raises(InputError, match="not loaded"):
        TreatmentEffect(Treatments(radiotherapy=(Radiotherapy((0.0,), (2.0,), "dose.nii.gz"),)))


def test_protocols_have_their_published_doses() -> None:
    combined, short = radiotherapy_60_gy_with_temozolomide(0.0), radiotherapy_40_gy_hypofractionated(0.0)

    assert combined.radiotherapy is not None
    assert short.radiotherapy is not None
    assert combined.radiotherapy[0].total_gy == 60.0
    assert short.radiotherapy[0].total_gy == pytest.approx(40.05)
    assert weekdays(0.0, 7) == (0, 1, 2, 3, 4, 7, 8)


def test_growth_under_treatment_is_as_an_ode_solver_finds() -> None:
    rate, alpha, kill, n0 = 0.03, 0.06, 0.4, 0.3
    plan = Treatments(
        (Radiotherapy((2.0, 3.0), (2.0, 5.0)),), (Chemotherapy((1.0, 2.5), (75.0, 150.0), "slow", 2.0),), (), ()
    )
    effect, decay = TreatmentEffect(plan), np.log(2) / 2.0

    def concentration(t: float) -> float:
        return sum(a * decay * np.exp(-decay * (t - d)) for d, a in ((1.0, 1.0), (2.5, 2.0)) if t >= d)

    n, edges, fractions = n0, [0.0, 1.0, 2.0, 2.5, 3.0, 8.0], {2.0: 2.0, 3.0: 5.0}
    for a, b in pairwise(edges):
        d = fractions.get(a, 0.0)
        odds = n / (1 - n) * np.exp(-alpha * d * (1 + d / 10))  # those at capacity survive
        n = odds / (1 + odds)
        grown = solve_ivp(
            lambda t, u: (rate - kill * concentration(t)) * u * (1 - u), (a, b - 1e-12), [n], rtol=1e-10, atol=1e-12
        )
        n = float(grown.y[0, -1])
    p, q = local_map(effect.pieces(0.0, 8.0), np.array([rate]), np.array([alpha]), np.array([kill]))

    assert n0 / (p[0] + q[0] * n0) == pytest.approx(n, rel=1e-4)


def test_an_unknown_treatment_kills_at_its_rate() -> None:
    rate, kill = np.array([0.02, 0.02, 0.02]), np.array([0.0, 0.02, 0.04])

    p, _ = local_map(TreatmentEffect(Treatments(), kill).pieces(0.0, 50.0), rate, rate, rate)
    known, _ = local_map(TreatmentEffect(Treatments.none_given(), kill).pieces(0.0, 50.0), rate, rate, rate)

    assert -np.log(p) == pytest.approx([1.0, 0.0, -1.0])
    assert -np.log(known) == pytest.approx([1.0, 1.0, 1.0])


def test_tissue_packed_with_cells_outlives_any_treatment_in_single_precision() -> None:
    density = np.ones(1, np.float32)
    pieces = TreatmentEffect(radiotherapy_60_gy_with_temozolomide(0.0)).pieces(0.0, 60.0)

    for _ in range(5):
        p, q = local_map(pieces, np.array([0.02]), np.array([0.05]), np.array([0.01]))
        density = density / (np.float32(p) + np.float32(q) * density)
        assert 0 <= density[0] <= 1


def test_scans_are_trusted_less_until_twelve_weeks_after_radiotherapy() -> None:
    plan = Treatments((Radiotherapy((10.0, 40.0), (2.0, 2.0)),), (), (), ())

    assert enhancement_sd(plan, [0.0, 10.0, 10.1, 40.0, 124.0, 124.1]).tolist() == [0, 0, 0.3, 0.3, 0.3, 0]
    assert not enhancement_sd(Treatments(), [0.0, 50.0]).any()


def test_what_was_killed_fades_from_the_scans() -> None:
    plan = Treatments((Radiotherapy((10.0,), (2.0,)),), (), (), ())
    days, half_life = [0.0, 10.0, 40.0, 100.0], np.array([30.0])

    def alive(on: np.ndarray) -> np.ndarray:
        return np.where(on <= 10.0, 20.0, np.where(on < 80.0, 4.0, 12.0))[None]

    shown = seen(TreatmentEffect(plan), 0.0, days, half_life, alive)[0]

    assert shown[:2] == pytest.approx([20.0, 20.0])
    assert shown[2] == pytest.approx(4.0 + 16.0 / 2, rel=0.12)  # watched weekly
    assert shown[3] == pytest.approx(12.0)  # grew again where the killed had lain
    assert seen(TreatmentEffect(Treatments.none_given()), 0.0, days, half_life, alive)[0, 2] == 4.0


@given(st.floats(0, 50), st.floats(0.1, 30))
def test_cutting_an_interval_changes_no_exposure(cut: float, rest: float) -> None:
    effect = TreatmentEffect(radiotherapy_60_gy_with_temozolomide(3.3))

    whole = effect.exposure(0.0, cut + rest)
    pieces = effect.pieces(0.0, cut + rest)

    assert effect.exposure(0.0, cut) + effect.exposure(cut, cut + rest) == pytest.approx(whole, abs=1e-9)
    assert sum(piece.exposure for piece in pieces) == pytest.approx(whole, abs=1e-9)
    assert sum(piece.days for piece in pieces) == pytest.approx(cut + rest)
    given_ = sum(fraction.day < cut + rest for fraction in effect.fractions)
    assert sum(len(piece.fractions) for piece in pieces) == given_


def test_extreme_rates_and_doses_stay_finite() -> None:
    pieces = [Piece(5000.0, 1e6, tuple(TreatmentEffect(radiotherapy_60_gy_with_temozolomide(0.0)).fractions))] * 3

    p, q = local_map(pieces, np.array([5.0]), np.array([50.0]), np.array([10.0]))

    assert np.isfinite(p).all()
    assert np.isfinite(q).all()
    assert (p > 0).all()
