"""Conformal margins keep their promise; reliability is what Guo et al. define; a card's calibration is checked."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinseg.calibration import (
    FLOOR_ML,
    LEVEL,
    Calibration,
    RegionMeasure,
    Reliability,
    conformal_margin,
    fewest_patients,
    widened,
)
from twinseg.errors import InputError

volumes = st.floats(0, 2000)
scores = st.lists(st.floats(-5, 5), min_size=9, max_size=60)
CARD = Calibration(20, "lgg", "validation", ("flair", "t1"), {"WT": 0.02, "ET": math.nan}, {"WT": 0.3, "ET": -0.1})


def measured(low: float, high: float, true: float) -> RegionMeasure:
    return RegionMeasure((low + high) / 2, low, high, true, Reliability())


# --- margins ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patients", [9, 14, 40])
def test_the_margin_holds_for_nine_new_patients_in_ten(patients: int) -> None:
    """Between 0.9 and 0.9 + 1 / (n + 1) on the average over draws of patients, by 4000 of them."""
    random = np.random.default_rng(patients)
    drawn = random.standard_t(3, (4000, patients + 1))

    held = np.mean([one[-1] <= conformal_margin(one[:-1].tolist()) for one in drawn])

    error = 3 * math.sqrt(0.1 * 0.9 / 4000)
    assert LEVEL - error <= held <= LEVEL + 1 / (patients + 1) + error


@given(scores)
def test_at_least_nine_tenths_of_the_scores_are_within_the_margin(given_scores: list[float]) -> None:
    margin = conformal_margin(given_scores)

    assert margin in given_scores
    assert np.mean(np.array(given_scores) <= margin) >= LEVEL


@given(scores, st.floats(0.5, 0.9), st.randoms())
def test_the_margin_grows_with_the_level_and_not_with_the_order(
    given_scores: list[float], lower: float, random: object
) -> None:
    shuffled = given_scores.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert conformal_margin(shuffled) == conformal_margin(given_scores)
    assert conformal_margin(given_scores, lower) <= conformal_margin(given_scores)


def test_eight_patients_are_too_few() -> None:
    assert conformal_margin([0.1] * 8) == math.inf
    assert conformal_margin([0.1] * 9) == 0.1
    assert conformal_margin([]) == math.inf
    assert (fewest_patients(0.9), fewest_patients(0.95), fewest_patients(0.8)) == (9, 19, 4)


# --- intervals -------------------------------------------------------------------------------------------------------


@given(volumes, volumes, volumes, st.floats(-1, 8))
def test_an_interval_holds_what_has_a_score_within_the_margin(a: float, b: float, true: float, margin: float) -> None:
    """Romano et al., eq. 7: the two ways to say it are one."""
    one = measured(min(a, b), max(a, b), true)
    low, high = widened(one.volume_ml, one.low_ml, one.high_ml, margin)

    if one.score <= margin - 1e-9:
        assert low <= true * (1 + 1e-9) + 1e-9
        assert high >= true * (1 - 1e-9) - 1e-9
    elif one.score >= margin + 1e-9 and margin >= 0:
        assert not low < true < high
    assert low <= one.volume_ml <= high


@given(volumes, volumes, st.floats(0, 5), st.floats(0, 5))
def test_a_larger_margin_gives_a_larger_interval(a: float, b: float, margin: float, more: float) -> None:
    inner, outer = (widened((a + b) / 2, min(a, b), max(a, b), one) for one in (margin, margin + more))

    assert 0 <= outer[0] <= inner[0] <= inner[1] <= outer[1]
    assert widened((a + b) / 2, min(a, b), max(a, b), 0.0) == pytest.approx((min(a, b), max(a, b)), abs=1e-9)


def test_empty_regions_and_unseen_lesions_have_a_score() -> None:
    nothing, unseen, invented = measured(0, 0, 0), measured(0, 0, 20), measured(5, 8, 0)

    assert nothing.score == 0
    assert unseen.score == pytest.approx(math.log(21 / FLOOR_ML))
    assert invented.score == pytest.approx(math.log(6 / FLOOR_ML))
    assert widened(0, 0, 0, 0.5) == pytest.approx((0, math.exp(0.5) - 1))  # a little may be there
    assert widened(6, 5, 8, invented.score)[0] == pytest.approx(0)


def test_a_margin_below_0_narrows_down_to_what_was_drawn() -> None:
    assert widened(11, 10, 13, math.log(11 / 11.5)) == pytest.approx((10.5, 14 * 11 / 11.5 - 1))
    assert widened(11, 10, 12, -1) == (11, 11)


# --- reliability -----------------------------------------------------------------------------------------------------


def test_the_error_is_the_mean_gap_over_voxels() -> None:
    probability = np.array([0.15, 0.15, 0.95, 0.95, 0.95, 0.95, 1.0, 0.001, 0.002])
    truth = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1], bool)

    one = Reliability.of(probability, truth)

    assert one.voxels == (0, 2, 0, 0, 0, 0, 0, 0, 0, 5)  # 1.0 belongs to the last bin
    assert one.found == (0, 1, 0, 0, 0, 0, 0, 0, 0, 3)
    assert one.error == pytest.approx((abs(0.3 - 1) + abs(4.8 - 3)) / 7)
    assert one.missed == 1
    assert one.missed_share == pytest.approx(1 / 5)


def test_probabilities_that_come_true_have_no_error() -> None:
    random = np.random.default_rng(0)
    probability = random.random((60, 60, 60)).astype(np.float32)

    right = Reliability.of(probability, random.random(probability.shape) < probability)
    too_sure = Reliability.of(probability, random.random(probability.shape) < 0.5 + 0.5 * (probability - 0.5))

    assert right.error < 0.005
    assert too_sure.error == pytest.approx(0.125, abs=0.005)


@given(st.lists(st.tuples(st.floats(0, 1.0000001), st.booleans()), max_size=60), st.integers(0, 60))
def test_reliabilities_add_up(drawn: list[tuple[float, bool]], cut: int) -> None:
    probability, truth = np.array([p for p, _ in drawn], float), np.array([t for _, t in drawn], bool)

    whole = Reliability.of(probability, truth)
    parts = Reliability.of(probability[:cut], truth[:cut]) + Reliability.of(probability[cut:], truth[cut:])

    assert (parts.voxels, parts.found, parts.missed) == (whole.voxels, whole.found, whole.missed)
    assert parts.expected == pytest.approx(whole.expected)
    assert math.isnan(whole.error) or 0 <= whole.error <= 1


def test_no_voxel_no_error() -> None:
    assert math.isnan(Reliability().error)
    assert math.isnan(Reliability().missed_share)


# --- the card --------------------------------------------------------------------------------------------------------


def test_a_calibration_goes_into_a_card_and_comes_back() -> None:
    kept = json.loads(json.dumps(CARD.to_json()).replace("NaN", "null"))

    back = Calibration.from_provenance({"calibration": kept}, Path("m"))

    assert back is not None
    assert math.isnan(back.errors["ET"])
    assert replace(back, errors={}) == replace(CARD, errors={})
    assert Calibration.from_provenance({}, Path("m")) is None


@pytest.mark.parametrize(
    "change",
    [
        {"margins": {"WT": 1e6}},
        {"margins": {"WT": "wide"}},
        {"margins": {"WT": math.nan}},
        {"margins": [0.3]},
        {"level": 90},
        {"floor_ml": 0},
        {"patients": None},
        {"sequences": 3},
    ],
)
def test_a_damaged_calibration_is_refused(change: dict) -> None:
    with pytest.raises(InputError, match=r"m\.safetensors: its calibration is damaged"):
        Calibration.from_provenance({"calibration": {**CARD.to_json(), **change}}, Path("m.safetensors"))
    with pytest.raises(InputError, match="damaged"):
        Calibration.from_provenance({"calibration": "yes"}, Path("m.safetensors"))


def test_it_holds_for_cases_like_those_that_were_measured() -> None:
    assert CARD.holds_for(["t1", "flair", "t2"])
    assert not CARD.holds_for(["flair"])


def test_too_few_patients_have_reliability_and_no_margin() -> None:
    patients = [{"WT": RegionMeasure(10, 9, 11, 10, Reliability.of(np.array([0.9]), np.array([True])))}] * 8

    few = Calibration.of(patients, data="d", part="validation", sequences=["t1"])
    enough = Calibration.of(patients + patients[:1], data="d", part="validation", sequences=["t1"])

    assert (few.patients, few.margins, few.errors) == (8, {}, {"WT": pytest.approx(0.1)})
    assert few.words == "no 90 % volume intervals: 8 patients to calibrate on, 9 are needed"
    assert enough.margins == {"WT": pytest.approx(math.log(11 / 12))}  # below 0: it may be narrower
    assert enough.words == "90 % volume intervals from 9 patients"
