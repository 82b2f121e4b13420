"""Treatments as lines of a table: what is typed is what the twin keeps, and what it knows is what is shown."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twinseg.errors import InputError
from twinseg.twin.treatments import (
    EXTENTS,
    Chemotherapy,
    Radiotherapy,
    Steroids,
    Surgery,
    Treatments,
    radiotherapy_60_gy_with_temozolomide,
)

days = st.integers(-400, 4000).map(float) | st.integers(-4000, 4000).map(lambda tenths: tenths / 10)
amounts = st.none() | st.integers(0, 4000).map(lambda quarters: quarters / 4)


@st.composite
def courses(draw, kind, *rest):
    when = tuple(sorted(draw(st.sets(days, min_size=1, max_size=8))))
    return kind(when, tuple(draw(amounts) for _ in when), *(draw(one) for one in rest))


def kind_of(course):
    return st.none() | st.lists(course, max_size=3).map(tuple)


treatments = st.builds(
    Treatments,
    radiotherapy=kind_of(courses(Radiotherapy)),
    chemotherapy=kind_of(courses(Chemotherapy, st.none() | st.just("temozolomide"), st.none() | st.just(0.5))),
    surgery=kind_of(st.builds(Surgery, days, st.none() | st.sampled_from(EXTENTS), amounts)),
    steroids=kind_of(
        st.builds(lambda first, length, mg: Steroids(first, round(first + length, 1), mg), days, st.just(7.0), amounts)
    ),
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(known=treatments)
def test_what_is_known_is_the_same_after_it_was_shown_and_saved(slicer_host, known):
    from TwinSegSlicerLib.TwinTreatments import linesOf, noneGiven, treatmentsOf

    assert treatmentsOf(linesOf(known), noneGiven(known)) == known


def test_a_course_of_the_clinic_is_a_short_line(slicer_host):
    from TwinSegSlicerLib.TwinTreatments import linesOf

    shown = [
        (line.kind, line.days, line.amount, line.detail) for line in linesOf(radiotherapy_60_gy_with_temozolomide(28))
    ]

    assert shown[0] == ("radiotherapy", "30 weekdays from 28", "2", "")
    assert shown[1][0] == "chemotherapy"
    assert shown[1][1].startswith("28 to 67, 95 to 99, 123 to 127")
    assert shown[1][2:] == ("75 x40, 150 x5, 200 x25", "temozolomide")


def test_unknown_stays_unknown_and_none_is_none(slicer_host):
    from TwinSegSlicerLib.TwinTreatments import Line, treatmentsOf

    typed = treatmentsOf([Line("surgery", "-3", "", "gross total")], {"steroids"})

    assert typed == Treatments(surgery=(Surgery(-3.0, "gross total"),), steroids=())
    assert typed.radiotherapy is None


@pytest.mark.parametrize(
    ("kind", "days", "amount", "detail", "wrong"),
    [
        ("radiotherapy", "soon", "2", "", "'soon' is no day"),
        ("radiotherapy", "40 to 30", "2", "", "ends before it begins"),
        ("radiotherapy", "40 to 44", "2, 2", "", "2 amounts for 5 days"),
        ("radiotherapy", "40", "two", "", "'two' is no number"),
        ("radiotherapy", "40", "-2", "", "cannot be negative"),
        ("chemotherapy", "40 to 44", "75 x often", "", "how often"),
        ("surgery", "", "", "", "give the day"),
        ("surgery", "0", "", "some", "the extent is one of biopsy"),
        ("steroids", "10 to 4", "8", "", "before the first"),
    ],
)
def test_what_cannot_be_is_refused_by_its_line(slicer_host, kind, days, amount, detail, wrong):
    from TwinSegSlicerLib.TwinTreatments import Line, treatmentsOf

    with pytest.raises(InputError, match=f"line 2: .*{wrong}"):
        treatmentsOf([Line("surgery", "0"), Line(kind, days, amount, detail)], set())
