"""Response assessment by RANO 2.0, each with the trace of the rule that fired.

Source: Wen et al., "RANO 2.0: Update to the Response Assessment in Neuro-Oncology Criteria for High- and Low-Grade
Gliomas in Adults", J. Clin. Oncol. 41 (2023) 5187-5199, doi:10.1200/JCO.23.01059, and what it took over from Wen et
al., J. Clin. Oncol. 28 (2010) 1963-1972 (RANO) and Ellingson et al., Neurotherapeutics 14 (2017) 307-320 (modified).

============  =========================================  ======================================
              sum of products of diameters (2D)          volume (3D)
============  =========================================  ======================================
CR            no enhancing lesion left                   no enhancing lesion left
PR            -50 % or less, from the baseline           -65 % or less, from the baseline
PD            +25 % or more, from the nadir              +40 % or more, from the nadir
SD            all else                                   all else
============  =========================================  ======================================

The baseline is the first scan after radiotherapy, and a new one is the first after an operation that removed tumour.
Progression during radiotherapy, and in the twelve weeks after it, needs a second scan. Where the papers leave room, or
differ, `Criteria` (response_visits.py) has a setting, and says what is the default and after whom. Not judged by this
program: T2 and FLAIR (RANO 2.0 asks for them where tumours do not enhance), histology, and whether a lesion shows on
two slices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from twinseg.errors import InputError
from twinseg.twin.response_visits import Course, Criteria, Visit
from twinseg.twin.store_records import refuse_calendar_dates

RESPONSES = ("CR", "PR", "SD", "PD")
TITLES = {
    "before the baseline": "Before the baseline",
    "baseline": "Baseline",
    "CR": "Complete response",
    "PR": "Partial response",
    "SD": "Stable disease",
    "PD": "Progressive disease",
}
RULES = {
    "before-baseline": "not assessed: scans are compared with the first one after radiotherapy",
    "baseline": "the scan which the later ones are compared with",
    "PD-size": "the lesions grew from the nadir by the limit or more",
    "PD-reappeared": "measurable disease after the nadir was zero",
    "PD-new-lesion": "a lesion that the baseline does not have is measurable for the first time",
    "PD-non-measurable": "clear progression of lesions that are not measurable",
    "PD-clinical": "clear clinical deterioration that nothing but the tumour explains",
    "CR": "no enhancing lesion is left",
    "PR": "the lesions shrank from the baseline to the limit or below",
    "SD": "neither response nor progression",
    "SD-response-not-granted": "the size alone would be a response, but another condition is not met",
    "SD-steroids-reduced": "growth, but while the steroids were reduced, which alone lets enhancement grow",
}
CLOSE = 1e-9  # a limit that is met up to rounding is met


@dataclass(frozen=True)
class Assessment:
    """The response at one visit. from_baseline, from_nadir: changes as shares, None where that was zero; rule: a key
    of `RULES`; trace: why, a sentence each; confirmed: True, False (a later scan spoke against it), or None (no later
    scan, or none needed); likelihood: of being on this side of the limits, given the sizes' errors, None if unknown;
    overridden: what the rules said, where a reader decided otherwise."""

    timepoint: str
    day: float
    response: str
    rule: str
    size: float
    size_sd: float
    from_baseline: float | None
    from_nadir: float | None
    trace: tuple[str, ...]
    preliminary: bool = False
    confirmed: bool | None = None
    likelihood: float | None = None
    overridden: str | None = None

    @property
    def words(self) -> str:
        """The response as a table shows it."""
        if self.overridden is not None:
            return f"{self.response} (by a reader; the rules: {self.overridden})"
        if self.preliminary and self.confirmed is None:
            return f"preliminary {self.response}"
        if self.confirmed is False:
            return f"{self.response}, not confirmed"
        return f"{self.response}, confirmed" if self.confirmed else self.response


@dataclass(frozen=True)
class Override:
    """A reader's decision, with the reason. Raises InputError without one, or for an unknown response."""

    timepoint: str
    response: str
    reason: str

    def __post_init__(self) -> None:
        if self.response not in RESPONSES:
            raise InputError(f"response {self.response!r}: unknown; use one of {', '.join(RESPONSES)}")
        if not self.reason.strip():
            raise InputError(f"time point {self.timepoint}: an override needs a reason")
        refuse_calendar_dates(self.reason, "the reason")


def assess(
    visits: Sequence[Visit],
    criteria: Criteria | None = None,
    *,
    radiotherapy: Sequence[Course] = (),
    operation: float | None = None,
    overrides: Sequence[Override] = (),
) -> tuple[Assessment, ...]:
    """Assess each visit against the first (the baseline, see `baseline_of`) and the nadir before it.

    radiotherapy: the courses whose days are known; operation: the day of the last one that removed tumour before the
    visits. Raises InputError for visits that are out of order and for an override of a visit that is not there.
    """
    criteria = criteria or Criteria()
    if not visits:
        raise InputError("there is no scan to assess; add the baseline first")
    for before, after in itertools.pairwise(visits):
        if after.day <= before.day:
            raise InputError(f"day {after.day:g} does not come after day {before.day:g}; put the visits in order")
    assessed = [_baseline(visits[0], criteria, radiotherapy, operation)]
    for number in range(1, len(visits)):
        assessed.append(_assess_one(visits[: number + 1], criteria, radiotherapy))
    assessed = [_confirm(number, visits, assessed, criteria) for number in range(len(visits))]
    return overridden(assessed, overrides)


def overridden(assessed: Sequence[Assessment], overrides: Sequence[Override]) -> tuple[Assessment, ...]:
    """The assessments with a reader's in the place of some. Raises InputError for one of a scan that has none."""
    by_scan = {one.timepoint: one for one in assessed}
    for override in overrides:
        found = by_scan.get(override.timepoint)
        if found is None or found.response not in RESPONSES:
            raise InputError(f"time point {override.timepoint}: there is no assessment of it to override")
        sentence = f"A reader decided on {override.response} instead of {found.response}: {override.reason.strip()}"
        by_scan[found.timepoint] = _replaced(
            found, response=override.response, overridden=found.response, trace=(*found.trace, sentence)
        )
    return tuple(by_scan.values())


def before_baseline(visit: Visit) -> Assessment:
    """What stands in the place of an assessment for a scan before the baseline."""
    trace = (f"{TITLES['before the baseline']}: {RULES['before-baseline']}.",)
    return Assessment(
        visit.timepoint,
        visit.day,
        "before the baseline",
        "before-baseline",
        visit.size,
        visit.size_sd,
        None,
        None,
        trace,
    )


# --- the rules -------------------------------------------------------------------------------------------------------


def _baseline(visit: Visit, criteria: Criteria, radiotherapy: Sequence[Course], operation: float | None) -> Assessment:
    trace = [f"Baseline: {visit.size:.4g} {criteria.unit}."]
    if operation is not None:
        trace.append(f"A new one after the operation of day {operation:g}, as what that took away is no response.")
    since = _days_since([course for course in radiotherapy if operation is None or course[1] > operation], visit.day)
    if since is not None and not 21 <= since <= 35 and since <= criteria.early_days:
        trace.append(f"It is {since:g} days after radiotherapy; RANO 2.0 wants it 21 to 35 days after.")
    if not visit.measurable:
        trace.append("No lesion is measurable, so that no response can be told, only progression.")
    return Assessment(
        visit.timepoint, visit.day, "baseline", "baseline", visit.size, visit.size_sd, None, None, tuple(trace)
    )


def _days_since(radiotherapy: Sequence[Course], day: float) -> float | None:
    """Days since the last course that ended before `day`; None where there is none."""
    return min((day - last for _, last in radiotherapy if last <= day), default=None)


def _irradiated(radiotherapy: Sequence[Course], day: float, criteria: Criteria) -> str:
    """How a day lies to a course that makes growth on it preliminary: in it or soon after it; "" if it does not."""
    if any(first < day < last for first, last in radiotherapy):
        return "during radiotherapy"
    since = _days_since(radiotherapy, day)
    return f"{since:g} days after radiotherapy" if since is not None and since <= criteria.early_days else ""


def _assess_one(visits: Sequence[Visit], criteria: Criteria, radiotherapy: Sequence[Course]) -> Assessment:
    """The last of the visits, against the first and the smallest before it."""
    baseline, visit = visits[0], visits[-1]
    nadir = min(visits[:-1], key=lambda before: before.size)
    trace = [_sentence(visit, baseline, nadir, criteria)]
    rule = _progression(visit, nadir, criteria, trace) or _response(visit, baseline, criteria, trace)
    response = rule.split("-")[0]
    trace.insert(0, f"{TITLES[response]}: {RULES[rule]}.")
    irradiated = _irradiated(radiotherapy, visit.day, criteria)
    preliminary = response == "PD" and rule != "PD-clinical" and bool(irradiated)
    if preliminary:
        trace.append(
            f"Day {visit.day:g} is {irradiated}: preliminary until a scan "
            f"{criteria.confirmation_days:g} days later or more confirms it."
        )
    likelihood = _likelihood(response, visit, baseline, nadir, criteria) if rule in ("PD-size", "PR", "SD") else None
    if likelihood is not None and likelihood < 0.9:
        trace.append(f"Given the errors of measurement this side of the limits is {likelihood:.0%} likely.")
    return Assessment(
        visit.timepoint,
        visit.day,
        response,
        rule,
        visit.size,
        visit.size_sd,
        _change(visit.size, baseline.size),
        _change(visit.size, nadir.size),
        tuple(trace),
        preliminary=preliminary,
        likelihood=likelihood,
    )


def _progression(visit: Visit, nadir: Visit, criteria: Criteria, trace: list[str]) -> str | None:
    """The rule of progression that fires, if any."""
    if visit.clinical == "worse":
        return "PD-clinical"
    if visit.new_measurable and criteria.new_lesion_progresses:
        trace.append(f"New measurable: {', '.join(f'lesion {id}' for id in visit.new_measurable)}.")
        return "PD-new-lesion"
    if visit.non_measurable_worse:
        return "PD-non-measurable"
    if nadir.size == 0:
        return "PD-reappeared" if visit.size > 0 and visit.measurable else None
    if not _at_least(visit.size, nadir.size * (1 + criteria.growth)):
        return None
    if not visit.measurable:
        trace.append("It grew from the nadir by the limit or more, but is not measurable: no progression by size.")
        return None
    doses = (visit.steroids_mg, nadir.steroids_mg)
    if not criteria.steroids_matter:
        return "PD-size"
    if None in doses:
        trace.append("The steroid dose is not known for this scan or the nadir's: taken as not reduced.")
    elif visit.steroids_mg < nadir.steroids_mg:  # type: ignore[operator]
        trace.append(f"Steroids went down from {nadir.steroids_mg:g} to {visit.steroids_mg:g} mg a day: scan again.")
        return "SD-steroids-reduced"
    return "PD-size"


def _response(visit: Visit, baseline: Visit, criteria: Criteria, trace: list[str]) -> str:
    """CR, PR or SD."""
    if not baseline.measurable:
        trace.append("The baseline had no measurable lesion, so that stable disease is the best there can be.")
        return "SD"
    complete = visit.lesions == 0 and visit.rest_ml <= criteria.complete_rest_ml
    if visit.lesions == 0 and visit.rest_ml > 0:
        trace.append(
            f"Not counted: {visit.rest_ml:.2g} mL in specks too small to be lesions; "
            f"a complete response may leave {criteria.complete_rest_ml:g} mL of them."
        )
    if not complete and not _at_least(baseline.size * (1 - criteria.shrinkage), visit.size):
        if criteria.steroids_matter and _more(visit.steroids_mg, baseline.steroids_mg):
            trace.append("More steroids than at the baseline: neither stable nor progressive by RANO; observe closely.")
        return "SD"
    allowed = criteria.physiological_steroids_mg if complete else baseline.steroids_mg
    if criteria.steroids_matter:
        if visit.steroids_mg is None or allowed is None:
            trace.append("The steroid dose is not known: taken as no higher than allowed.")
        elif visit.steroids_mg > allowed:
            trace.append(
                f"Steroids of {visit.steroids_mg:g} mg a day, above the {allowed:g} mg allowed for a response."
            )
            return "SD-response-not-granted"
    if visit.clinical is None:
        trace.append("The clinical status is not known: taken as stable.")
    return "CR" if complete else "PR"


def _confirm(number: int, visits: Sequence[Visit], found: Sequence[Assessment], criteria: Criteria) -> Assessment:
    """The assessment, with what later scans say of it: a response must hold, and so must early progression."""
    here = found[number]
    later = range(number + 1, len(found))
    enough = [n for n in later if visits[n].day - here.day >= criteria.confirmation_days]
    if here.response in ("CR", "PR"):
        holds = ("CR",) if here.response == "CR" else ("CR", "PR")
        asked = range(number + 1, enough[0] + 1) if enough else later
        broken = [n for n in asked if found[n].response not in holds]
    elif here.preliminary:
        nadir = min(visit.size for visit in visits[:number])
        start = nadir if criteria.confirmed_by == "persistence" else here.size
        broken = [
            n
            for n in enough[:1]
            if visits[n].clinical != "worse"
            and not (_at_least(visits[n].size, start * (1 + criteria.growth)) and visits[n].size > 0)
        ]
    else:
        return here
    if broken:
        sentence, confirmed = f"Not confirmed: day {visits[broken[0]].day:g} speaks against it.", False
    elif enough:
        sentence, confirmed = f"Confirmed by day {visits[enough[0]].day:g}.", True
    else:
        sentence = f"To be confirmed by a scan on day {here.day + criteria.confirmation_days:g} or later."
        return _replaced(here, trace=(*here.trace, sentence))
    return _replaced(here, trace=(*here.trace, sentence), confirmed=confirmed)


def _replaced(found: Assessment, **changes: Any) -> Assessment:
    return Assessment(**{**vars(found), **changes})


def _sentence(visit: Visit, baseline: Visit, nadir: Visit, criteria: Criteria) -> str:
    said = [f"{visit.size:.4g} {criteria.unit}"]
    for reference, name in ((baseline, "the baseline"), (nadir, f"the nadir of day {nadir.day:g}")):
        change = _change(visit.size, reference.size)
        said.append(f"{name} was zero" if change is None else f"{change:+.1%} from {name} ({reference.size:.4g})")
    limits = f"limits {-criteria.shrinkage:.0%} from the baseline, {criteria.growth:+.0%} from the nadir"
    return f"{criteria.measure}: {', '.join(said)}; {limits}."


def _change(size: float, reference: float) -> float | None:
    return size / reference - 1 if reference > 0 else None


def _more(dose: float | None, before: float | None) -> bool:
    return dose is not None and before is not None and dose > before


def _at_least(value: float, limit: float) -> bool:
    return value >= limit * (1 - CLOSE)


def _likelihood(response: str, visit: Visit, baseline: Visit, nadir: Visit, criteria: Criteria) -> float | None:
    """Probability that the true sizes lie on the same side of the limits, errors taken as normal and independent."""
    if visit.size <= 0 or min(visit.size_sd, baseline.size_sd, nadir.size_sd) <= 0:
        return None
    grown = 1 - _probability_below(visit, nadir, 1 + criteria.growth)
    shrunk = _probability_below(visit, baseline, 1 - criteria.shrinkage)
    return {"PD": grown, "PR": shrunk}.get(response, max(0.0, 1 - grown - shrunk))


def _probability_below(visit: Visit, reference: Visit, ratio: float) -> float:
    difference = visit.size - ratio * reference.size
    return NormalDist(difference, math.hypot(visit.size_sd, ratio * reference.size_sd)).cdf(0)
