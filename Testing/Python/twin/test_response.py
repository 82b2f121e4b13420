"""RANO 2.0: every limit on both sides, in 2D and 3D, nadir and confirmation, and what else decides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from twinseg.errors import InputError
from twinseg.twin.response import RULES, Assessment, Override, assess
from twinseg.twin.response_visits import Criteria, Visit, baseline_of

WELL = {"clinical": "stable", "steroids_mg": 0.0}


def visits(*sizes: float, days: tuple[float, ...] | None = None, **every: object) -> list[Visit]:
    """Scans every 60 days with these sizes; nothing is left where the size is 0."""
    days = days or tuple(60.0 * n for n in range(len(sizes)))
    return [
        Visit(f"{n:03d}", day, size, **{"lesions": int(size > 0), "measurable": size > 0, **WELL, **every})
        for n, (day, size) in enumerate(zip(days, sizes, strict=True))
    ]


def responses(found: tuple[Assessment, ...]) -> list[str]:
    return [one.response for one in found]


@pytest.mark.parametrize(
    ("measure", "baseline", "size", "expected"),
    [
        ("2D", 1000, 500, "PR"),
        ("2D", 1000, 500.01, "SD"),
        ("2D", 1000, 0.001, "PR"),
        ("2D", 1000, 0, "CR"),
        ("2D", 1000, 1249.99, "SD"),
        ("2D", 1000, 1250, "PD"),
        ("2D", 0.3, 0.15, "PR"),  # limits that binary fractions miss by a rounding
        ("2D", 0.1, 0.125, "PD"),
        ("3D", 20, 7, "PR"),
        ("3D", 20, 7.0001, "SD"),
        ("3D", 20, 0, "CR"),
        ("3D", 20, 27.9999, "SD"),
        ("3D", 20, 28, "PD"),
        ("3D", 0.7, 0.245, "PR"),
        ("3D", 0.7, 0.98, "PD"),
    ],
)
def test_every_limit_on_both_sides(measure: str, baseline: float, size: float, expected: str) -> None:
    found = assess(visits(baseline, size), Criteria(measure=measure))

    assert responses(found) == ["baseline", expected]
    assert found[1].trace[0].endswith(f"{RULES[found[1].rule]}.")


def test_limits_are_settings() -> None:
    assert assess(visits(100, 69), Criteria(partial=0.3))[1].response == "PR"
    assert assess(visits(100, 121), Criteria(progression=0.2))[1].response == "PD"


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((1000, 400, 490), ["PR", "PR"]),  # +22.5 % from the nadir
        ((1000, 400, 500), ["PR", "PD"]),  # +25 % from the nadir, though -50 % from the baseline
        ((1000, 900, 1120), ["SD", "SD"]),  # +24.4 %
        ((1000, 900, 1125), ["SD", "PD"]),  # +25 % from the nadir, +12.5 % from the baseline
        ((1000, 1240, 1249), ["SD", "SD"]),  # a nadir never rises
        ((1000, 1300, 1000), ["PD", "SD"]),
        ((1000, 0, 100), ["CR", "PD"]),  # measurable again after nothing was
    ],
)
def test_progression_is_told_from_the_nadir_and_response_from_the_baseline(sizes, expected) -> None:
    assert responses(assess(visits(*sizes)))[1:] == expected


def test_the_nadir_is_the_smallest_before_the_scan_itself() -> None:
    found = assess(visits(1000, 600, 700, 550, 687.5))

    assert found[4].from_nadir == pytest.approx(0.25)
    assert found[4].from_baseline == pytest.approx(-0.3125)
    assert found[4].response == "PD"


def test_what_reappears_too_small_to_measure_is_no_progression() -> None:
    seen = visits(1000, 0, 30)
    seen[2] = replace(seen[2], measurable=False)

    assert responses(assess(seen))[1:] == ["CR", "PR"]


@pytest.mark.parametrize(("rest", "expected", "said"), [(0.0, "CR", False), (0.05, "CR", True), (0.06, "PR", True)])
def test_a_complete_response_leaves_no_more_than_a_tiny_rest(rest: float, expected: str, said: bool) -> None:
    seen = visits(1000, 0)
    seen[1] = replace(seen[1], rest_ml=rest)

    found = assess(seen)[1]

    assert found.response == expected
    assert (f"{rest} mL in specks" in " ".join(found.trace)) is said


# --- confirmation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "days", "confirmed"),
    [
        ((1000, 400), (0, 60), None),  # no later scan
        ((1000, 400, 400), (0, 60, 87), None),  # 27 days are too few
        ((1000, 400, 400), (0, 60, 88), True),  # 28 days
        ((1000, 400, 600), (0, 60, 88), False),
        ((1000, 400, 600, 400), (0, 60, 70, 100), False),  # lost in between
        ((1000, 0, 0), (0, 60, 88), True),
        ((1000, 0, 400), (0, 60, 88), False),
    ],
)
def test_a_response_must_hold_for_four_weeks(sizes, days, confirmed) -> None:
    assert assess(visits(*sizes, days=days))[1].confirmed is confirmed


def test_a_partial_response_is_confirmed_by_a_complete_one() -> None:
    found = assess(visits(1000, 400, 0))

    assert (found[1].response, found[1].confirmed) == ("PR", True)
    assert found[1].words == "PR, confirmed"


@pytest.mark.parametrize(
    ("sizes", "confirmed_by", "confirmed"),
    [
        ((1000, 1300, 1250), "persistence", True),
        ((1000, 1300, 1249), "persistence", False),
        ((1000, 1300, 1400), "growth", False),
        ((1000, 1300, 1625), "growth", True),
        ((1000, 1300), "persistence", None),
    ],
)
def test_progression_within_twelve_weeks_of_radiotherapy_is_preliminary(sizes, confirmed_by, confirmed) -> None:
    found = assess(visits(*sizes), Criteria(confirmed_by=confirmed_by), radiotherapy=[(-66.0, -24.0)])[1]

    assert found.response == "PD"
    assert found.preliminary
    assert found.confirmed is confirmed
    assert ("preliminary" in found.words) is (confirmed is None)


@pytest.mark.parametrize(
    ("courses", "preliminary"),
    [
        ([(-66, -24.0)], True),
        ([(-66, -24.01)], False),
        ([(18, 60)], True),
        ([(18, 61)], True),  # growth under radiotherapy is no surer than after it
        ([(59, 100)], True),
        ([(60, 100)], False),  # a scan of the first day is from before it
        ([], False),
        ([(-342, -300), (-22, 20)], True),  # irradiated again
        ([(-66, -24.01), (358, 400)], False),  # the second course is still to come
    ],
)
def test_progression_is_preliminary_during_radiotherapy_and_for_84_days(courses, preliminary) -> None:
    assert assess(visits(1000, 1300), radiotherapy=courses)[1].preliminary is preliminary  # the scan is on day 60
    assert assess(visits(1000, 1300), Criteria(early_days=1e9), radiotherapy=[(-542, -500)])[1].preliminary


def test_clinical_deterioration_waits_for_no_confirmation() -> None:
    seen = visits(1000, 1000)
    seen[1] = replace(seen[1], clinical="worse")

    found = assess(seen, radiotherapy=[(-42.0, 0.0)])[1]

    assert (found.response, found.rule, found.preliminary) == ("PD", "PD-clinical", False)


# --- the baseline ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "settings", "baseline"),
    [
        ([], {}, "000"),
        ([-30.0], {}, "000"),
        ([59.9], {}, "001"),
        ([60.0], {}, "002"),  # a scan on the day of the last fraction is none after radiotherapy
        ([60.0], {"baseline": "first"}, "000"),
        ([60.0, 200.0], {}, "002"),  # the first course decides
        ([500.0], {}, "000"),  # no scan after it yet
        ([60.0], {"baseline_day": 60.0}, "001"),
    ],
)
def test_the_baseline_is_the_first_scan_after_radiotherapy(ends, settings, baseline: str) -> None:
    days = {"002": 120.0, "000": 0.0, "001": 60.0}

    assert baseline_of(days, Criteria(**settings), [(end - 42, end) for end in ends]) == baseline


def test_a_baseline_that_is_not_there_is_told() -> None:
    with pytest.raises(InputError, match="no scan with a segmentation is of that day"):
        baseline_of({"000": 0.0}, Criteria(baseline_day=3.0))
    with pytest.raises(InputError, match="no scan to assess"):
        baseline_of({}, Criteria())


@pytest.mark.parametrize(
    ("end", "said"), [(-20, True), (-21, False), (-35, False), (-36, True), (-84, True), (-85, False)]
)
def test_a_baseline_out_of_its_window_is_told(end: float, said: bool) -> None:
    trace = assess(visits(1000), radiotherapy=[(end - 42, end)])[0].trace

    assert any("21 to 35 days after" in sentence for sentence in trace) is said


def test_the_window_after_radiotherapy_is_not_asked_of_a_baseline_after_an_operation() -> None:
    def traced(operation: float | None) -> str:
        return " ".join(assess(visits(1000), radiotherapy=[(-102, -60)], operation=operation)[0].trace)

    assert "21 to 35 days after" in traced(None)
    assert "21 to 35 days after" not in traced(-2.0)
    assert "A new one after the operation of day -2" in traced(-2.0)


# --- what else decides -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("doses", "expected"),
    [
        ((4, 4), "PD"),
        ((4, 6), "PD"),
        ((4, 2), "SD"),
        ((None, 2), "PD"),
        ((4, None), "PD"),
    ],
)
def test_growth_while_steroids_are_reduced_is_no_progression(doses, expected) -> None:
    seen = [replace(v, steroids_mg=dose) for v, dose in zip(visits(1000, 1300), doses, strict=True)]

    found = assess(seen)[1]

    assert found.response == expected
    assert any("not known" in sentence for sentence in found.trace) is (None in doses)
    assert assess(seen, Criteria(steroids_matter=False))[1].response == "PD"


@pytest.mark.parametrize(
    ("size", "doses", "expected"),
    [
        (400, (4, 4), "PR"),
        (400, (4, 4.01), "SD"),
        (0, (4, 0), "CR"),
        (0, (4, 0.75), "CR"),  # physiological replacement
        (0, (4, 0.76), "SD"),
        (400, (4, None), "PR"),
    ],
)
def test_a_response_on_more_steroids_is_none(size, doses, expected) -> None:
    seen = [replace(v, steroids_mg=dose) for v, dose in zip(visits(1000, size), doses, strict=True)]

    found = assess(seen)[1]

    assert found.response == expected
    if expected == "SD":
        assert found.rule == "SD-response-not-granted"


@pytest.mark.parametrize(
    ("doses", "said"), [((4, 4), False), ((4, 4.01), True), ((None, 2), False), ((4, None), False)]
)
def test_stable_on_more_steroids_is_not_sure(doses, said: bool) -> None:
    seen = [replace(v, steroids_mg=dose) for v, dose in zip(visits(1000, 1000), doses, strict=True)]

    found = assess(seen)[1]

    assert found.response == "SD"
    assert ("observe closely" in " ".join(found.trace)) is said


def test_a_new_measurable_lesion_is_progression_unless_the_setting_says_otherwise() -> None:
    seen = visits(1000, 900)
    seen[1] = replace(seen[1], new_measurable=(2,))

    found = assess(seen)[1]

    assert (found.response, found.rule) == ("PD", "PD-new-lesion")
    assert "New measurable: lesion 2." in found.trace
    assert assess(seen, Criteria(new_lesion_progresses=False))[1].response == "SD"


def test_lesions_that_are_not_measurable_can_progress_but_not_respond() -> None:
    seen = [replace(v, measurable=False) for v in visits(50, 10, 10)]
    seen[2] = replace(seen[2], non_measurable_worse=True)

    found = assess(seen)

    assert responses(found)[1:] == ["SD", "PD"]
    assert "best there can be" in " ".join(found[1].trace)


def test_what_is_not_known_is_said() -> None:
    found = assess(visits(1000, 400, clinical=None, steroids_mg=None))[1]

    assert found.response == "PR"
    assert "The clinical status is not known: taken as stable." in found.trace


def test_how_sure_the_side_of_the_limit_is() -> None:
    near = assess(visits(1000, 1250, size_sd=60.0))[1]
    far = assess(visits(1000, 2000, size_sd=60.0))[1]

    assert near.likelihood == pytest.approx(0.5)
    assert "50% likely" in near.trace[-1]
    assert far.likelihood > 0.999


def test_a_reader_overrides_with_a_reason() -> None:
    found = assess(visits(1000, 1300), overrides=[Override("001", "SD", "radionecrosis on biopsy")])[1]

    assert (found.response, found.overridden) == ("SD", "PD")
    assert "radionecrosis on biopsy" in found.trace[-1]
    assert found.words == "SD (by a reader; the rules: PD)"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Override("001", "SD", "  "), "needs a reason"),
        (lambda: Override("001", "XX", "why"), "use one of CR, PR, SD, PD"),
        (lambda: Override("001", "SD", "seen on 2024-03-05"), "reads as a date"),
        (lambda: assess(visits(1, 2), overrides=[Override("009", "SD", "why")]), "no assessment"),
        (lambda: assess(visits(1, 2), overrides=[Override("000", "SD", "why")]), "no assessment"),
        (lambda: assess([]), "no scan"),
        (lambda: assess(visits(1, 2, days=(0, 0))), "in order"),
        (lambda: Visit("000", 0, 1, clinical="fine"), "better, stable, worse"),
        (lambda: Visit("000", 0, 1, steroids_mg=-1), "0 or more"),
    ],
)
def test_bad_input_is_one_line(make, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        make()
    assert "\n" not in str(raised.value)
