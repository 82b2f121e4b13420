"""What the rules look at: lesions that were followed become targets, sums, new and grown ones."""

from __future__ import annotations

import numpy as np
import pytest

from twinseg.twin.lesions import Change, Lesion, LesionHistory
from twinseg.twin.response import Assessment, assess
from twinseg.twin.response_visits import Criteria, periods_of, visits_of


def lesion(id: int, longest: float, perpendicular: float, volume: float = 5.0) -> Lesion:
    return Lesion(id, volume, volume / 10, (0.0, 0.0, 0.0), longest, perpendicular, ())


def test_only_measurable_lesions_are_targets_and_they_stay_targets() -> None:
    history = LesionHistory(
        {
            "000": (lesion(1, 30, 20), lesion(2, 30, 9.99), lesion(3, 10, 10)),
            "001": (lesion(1, 8, 5), lesion(2, 30, 9)),
        },
        (Change("001", "vanished", 3),),
    )

    seen = visits_of(history, {"000": 0, "001": 60})

    assert [visit.size for visit in seen] == [700, 40]
    assert seen[0].size_sd == pytest.approx(np.hypot(600, 100) * 2 / 30)
    assert (seen[1].measurable, seen[1].lesions, seen[1].new_measurable) == (False, 2, ())


def test_only_the_largest_are_summed_where_the_setting_says_so() -> None:
    history = LesionHistory({"000": (lesion(1, 30, 20), lesion(2, 20, 20), lesion(3, 10, 10))}, ())

    assert visits_of(history, {"000": 0}, Criteria(target_lesions=2))[0].size == 1000
    assert visits_of(history, {"000": 0}, Criteria(measure="3D"))[0].size == 15


def test_three_targets_are_summed_and_the_others_count_only_when_they_grow() -> None:
    four = (lesion(1, 30, 20), lesion(2, 20, 20), lesion(3, 15, 12), lesion(4, 12, 10))
    same = LesionHistory({"000": four, "001": four}, ())
    grown = LesionHistory({"000": four, "001": (*four[:3], lesion(4, 17, 15))}, ())
    less = LesionHistory({"000": four, "001": (*four[:3], lesion(4, 17, 14.9))}, ())
    days = {"000": 0.0, "001": 60.0}

    assert [visit.size for visit in visits_of(same, days)] == [1180, 1180]
    assert [visit.size for visit in visits_of(same, days, Criteria(target_lesions=None))] == [1300, 1300]
    assert assess(visits_of(grown, days))[1].rule == "PD-non-measurable"
    assert assess(visits_of(less, days))[1].rule == "SD"


def test_a_piece_that_split_off_is_not_new_and_a_lesion_that_came_back_has_grown() -> None:
    history = LesionHistory(
        {
            "000": (lesion(1, 30, 20), lesion(2, 9, 9)),
            "001": (lesion(1, 20, 10), lesion(3, 15, 10)),
            "002": (lesion(1, 20, 10), lesion(2, 12, 11), lesion(3, 15, 10)),
        },
        (Change("001", "split", 3, (1,)), Change("001", "vanished", 2), Change("002", "reappeared", 2)),
    )

    seen = visits_of(history, {"000": 0, "001": 60, "002": 120})

    assert [visit.size for visit in seen] == [600, 350, 482]
    assert [visit.new_measurable for visit in seen] == [(), (), ()]
    assert [visit.non_measurable_worse for visit in seen] == [False, False, True]


@pytest.mark.parametrize(
    ("before", "after", "progressed"),
    [((5, 5), (10, 10), True), ((5.01, 5), (10, 10), False), ((9.9, 9.9), (10, 10), False), ((9, 4), (14, 9.9), False)],
)
def test_a_lesion_that_was_too_small_to_measure_must_grow_by_five_mm(before, after, progressed: bool) -> None:
    history = LesionHistory(
        {"000": (lesion(1, 30, 20), lesion(2, *before)), "001": (lesion(1, 30, 20), lesion(2, *after))}, ()
    )

    found = assess(visits_of(history, {"000": 0, "001": 60}))[1]

    assert (found.rule == "PD-non-measurable") is progressed
    assert (found.size == 700) is progressed


def test_a_lesion_never_seen_before_is_new_only_where_it_is_measurable() -> None:
    def at_second(*there: Lesion) -> Assessment:
        history = LesionHistory({"000": (lesion(1, 30, 20),), "001": (lesion(1, 30, 20), *there)}, ())
        return assess(visits_of(history, {"000": 0, "001": 60}))[1]

    assert at_second(lesion(2, 10, 10)).rule == "PD-new-lesion"
    assert at_second(lesion(2, 30, 9.9)).rule == "SD"


def test_a_new_lesion_that_was_too_small_at_first_is_new_when_it_is_measurable() -> None:
    sizes = ((), (lesion(2, 9, 9),), (lesion(2, 13, 13),), (lesion(2, 13, 13),))
    history = LesionHistory({f"{n:03d}": (lesion(1, 30, 20), *there) for n, there in enumerate(sizes)}, ())

    seen = visits_of(history, {"000": 0, "001": 60, "002": 120, "003": 180})

    assert [visit.new_measurable for visit in seen] == [(), (), (2,), ()]
    assert [visit.size for visit in seen] == [600, 600, 769, 769]
    assert assess(seen)[2].rule == "PD-new-lesion"


def test_a_piece_of_a_lesion_that_is_no_target_is_not_new() -> None:
    three = (lesion(1, 30, 20), lesion(2, 20, 20), lesion(3, 15, 12))
    history = LesionHistory(
        {"000": (*three, lesion(4, 14, 12)), "001": (*three, lesion(4, 10, 5), lesion(5, 10, 10))},
        (Change("001", "split", 5, (4,)),),
    )

    assert assess(visits_of(history, {"000": 0, "001": 60}))[1].rule == "SD"


def test_what_targets_merged_into_is_a_target() -> None:
    history = LesionHistory(
        {"000": (lesion(1, 20, 10), lesion(2, 20, 10)), "001": (lesion(1, 40, 20),)},
        (Change("001", "merged", 2, (1,)),),
    )

    assert [visit.size for visit in visits_of(history, {"000": 0, "001": 60})] == [400, 800]


def test_a_merge_on_a_later_scan_leaves_earlier_assessments_as_they_were() -> None:
    main, satellite = lesion(1, 30, 20), lesion(2, 13, 13)
    two_scans = {"000": (main,), "001": (main, satellite)}
    history = LesionHistory(
        {**two_scans, "002": (lesion(1, 40, 25),)},
        (Change("001", "born", 2), Change("002", "merged", 2, (1,))),
    )

    before = assess(visits_of(LesionHistory(two_scans, history.changes[:1]), {"000": 0, "001": 60}))
    after = assess(visits_of(history, {"000": 0, "001": 60, "002": 120}))

    assert before[1].rule == "PD-new-lesion"
    assert after[:2] == before


def test_what_a_target_merges_into_later_is_not_in_the_sum_before() -> None:
    small = (lesion(1, 20, 10), lesion(2, 9, 9))
    grown = (lesion(1, 20, 10), lesion(2, 30, 9.9))
    history = LesionHistory(
        {"000": small, "001": grown, "002": (lesion(2, 40, 20),)}, (Change("002", "merged", 1, (2,)),)
    )

    seen = visits_of(history, {"000": 0, "001": 60, "002": 120})

    assert [visit.size for visit in seen] == [200, 200, 800]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [((25, 7, 9), ["PR", "PR"]), ((25, 7, 10), ["PR", "PD"]), ((5, 7), ["SD"]), ((12, 9, 10.1), ["SD", "PD"])],
)
def test_growth_of_what_is_not_measurable_is_no_progression_by_size(lengths, expected) -> None:
    history = LesionHistory({f"{n:03d}": (lesion(1, mm, mm),) for n, mm in enumerate(lengths)}, ())
    days = {name: 60.0 * n for n, name in enumerate(history.lesions)}

    found = assess(visits_of(history, days))

    assert [one.response for one in found[1:]] == expected


def test_a_lesion_that_is_no_target_does_not_make_the_targets_measurable() -> None:
    fourth = lesion(4, 12, 12)
    history = LesionHistory(
        {
            name: (*(lesion(target, mm, mm) for target in (1, 2, 3)), fourth)
            for name, mm in {"000": 20, "001": 7, "002": 9}.items()
        },
        (),
    )

    assert [one.response for one in assess(visits_of(history, {"000": 0, "001": 60, "002": 120}))[1:]] == ["PR", "PR"]


def test_an_operation_parts_the_scans_and_one_of_its_day_is_before_it() -> None:
    days = {"000": 0.0, "001": 3.0, "002": 5.0, "003": 40.0}

    periods = periods_of(days, [50.0, 3.0, 4.0])

    assert [(period.operation, list(period.days)) for period in periods] == [
        (None, ["000", "001"]),
        (4.0, ["002", "003"]),
    ]
