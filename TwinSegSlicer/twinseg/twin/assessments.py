"""The response assessments of a twin as it keeps them: made anew with what is known, sealed, never edited."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from twinseg.errors import InputError
from twinseg.tasks import load_task
from twinseg.twin.lesions import REGIONS, LesionHistory, LesionSettings, followed_region, region_mask
from twinseg.twin.response import RESPONSES, Assessment, Override, assess, before_baseline, overridden
from twinseg.twin.response_visits import Criteria, baseline_of, periods_of, visits_of
from twinseg.twin.store import Twin
from twinseg.twin.store_records import Record
from twinseg.twin.timeline import lesion_history
from twinseg.twin.treatments import Treatments

Assessed = dict[str, tuple[Assessment, ...]]  # by measure, 2D and 3D


def respond(
    twin: Twin,
    *,
    clinical: Mapping[str, str] | None = None,
    steroids_mg: Mapping[str, float] | None = None,
    overrides: tuple[Override, ...] = (),
    settings: Mapping[str, Any] | None = None,
) -> tuple[Record, Assessed]:
    """Assess all scans that have a segmentation, in 2D and 3D, and keep the result in `assessments/`.

    clinical, steroids_mg: by time point; what was said before, here or in the treatments, is remembered. settings:
    fields of `Criteria` that differ from its defaults. Raises InputError like `assess`, and for a task without
    enhancing tumour.
    """
    if reason := why_not_assessed(twin):
        raise InputError(reason)
    before = _last(twin)
    inputs = {
        "clinical": {**before.get("clinical", {}), **(clinical or {})},
        "steroids_mg": {**_steroids(twin), **before.get("steroids_mg", {}), **(steroids_mg or {})},
        "overrides": _overrides(before.get("overrides", []), overrides),
        "settings": dict(before.get("settings", {}) if settings is None else settings),
        "radiotherapy": _radiotherapy(twin),
        "operations": _operations(twin),
    }
    assessed = _assessed(twin, inputs, overrides)
    found = {measure: [dataclasses.asdict(one) for one in ones] for measure, ones in assessed.items()}
    return twin.add_record("assessments", {**inputs, "assessed": found}), assessed


def why_not_assessed(twin: Twin) -> str:
    """Why the rules cannot be applied to what the twin's task draws; "" if they can.

    Enhancing tumour is all that they judge here. What does not enhance has rules of its own (T2 and FLAIR, a minor
    response), and other organs have other criteria.
    """
    if any(region.name in REGIONS for region in load_task(twin.task).regions):
        return ""
    return (
        f"RANO 2.0 is applied to enhancing tumour, and the task {twin.task} draws none (it has no region "
        f"{' or '.join(REGIONS)}); compare the volumes over time instead"
    )


def last_assessments(twin: Twin) -> Assessed:
    """The newest assessments that are kept; empty before the first, and where a task was assessed that cannot be."""
    if why_not_assessed(twin):
        return {}
    return {
        measure: tuple(Assessment(**{**one, "trace": tuple(one["trace"])}) for one in ones)
        for measure, ones in _last(twin).get("assessed", {}).items()
    }


def _assessed(twin: Twin, inputs: Mapping[str, Any], new: tuple[Override, ...]) -> Assessed:
    days = {scan.name: scan.day for scan in twin.timepoints if scan.segmentation is not None}
    for name in {*inputs["clinical"], *inputs["steroids_mg"]} - set(days):
        raise InputError(f"time point {name}: there is no such scan with a segmentation; twinseg twin list shows them")
    history = lesion_history(twin)
    said = {name: inputs[name] for name in ("clinical", "steroids_mg")} | {"rest_ml": _rest_ml(twin, history)}
    assessed: Assessed = {}
    for measure in ("2D", "3D"):
        try:
            criteria = Criteria(**{**inputs["settings"], "measure": measure})
        except TypeError as error:
            raise InputError(f"settings: {error}; see the fields of Criteria") from error
        found = _by_rules(history, days, criteria, inputs, said)
        # What a reader said of a scan before it became a baseline, or came before it, is kept but decides nothing
        judged = {one.timepoint for one in found if one.response in RESPONSES}
        kept = [Override(**one) for one in inputs["overrides"] if one["timepoint"] in judged]
        assessed[measure] = overridden(found, [*kept, *(one for one in new if one not in kept)])
    return assessed


def _by_rules(
    history: LesionHistory,
    days: Mapping[str, float],
    criteria: Criteria,
    inputs: Mapping[str, Any],
    said: Mapping[str, Any],
) -> list[Assessment]:
    """What the rules say of all scans: each is compared with the baseline since the last operation."""
    chosen = criteria.baseline_day
    found: list[Assessment] = []
    for period in periods_of(days, [day for day in inputs["operations"] if chosen is None or day >= chosen]):
        baseline = period.days[baseline_of(period.days, criteria, inputs["radiotherapy"])]
        earlier = {name: day for name, day in period.days.items() if day < baseline}
        later = {name: day for name, day in period.days.items() if day >= baseline}
        found += [before_baseline(visit) for visit in visits_of(history, earlier, criteria, **said)]
        found += assess(
            visits_of(history, later, criteria, **said),
            criteria,
            radiotherapy=inputs["radiotherapy"],
            operation=period.operation,
        )
        criteria = dataclasses.replace(criteria, baseline_day=None)  # that one is of the first period
    return found


def _last(twin: Twin) -> dict[str, Any]:
    records = twin.records("assessments")
    return records[-1].content if records else {}


def _overrides(before: list[dict[str, Any]], new: tuple[Override, ...]) -> list[dict[str, Any]]:
    """All overrides, a newer one of the same scan in place of the older."""
    by_scan = {override["timepoint"]: override for override in before}
    by_scan |= {override.timepoint: dataclasses.asdict(override) for override in new}
    return list(by_scan.values())


def _steroids(twin: Twin) -> dict[str, float]:
    """mg a day at each scan, where the treatments say it."""
    courses = Treatments.from_json(twin.document("treatments.json")).steroids
    if courses is None:
        return {}
    doses = {}
    for scan in (scan for scan in twin.timepoints if scan.segmentation is not None):
        taken = [c for c in courses if c.first_day <= scan.day and (c.last_day is None or scan.day <= c.last_day)]
        known = [course.dexamethasone_mg for course in taken if course.dexamethasone_mg is not None]
        if len(known) == len(taken):
            doses[scan.name] = float(sum(known))
    return doses


def _rest_ml(twin: Twin, history: LesionHistory) -> dict[str, float]:
    """mL of the region that lesions are followed in at each scan without a lesion: specks that are too small."""
    values = followed_region(load_task(twin.task), LesionSettings())[1]
    rest = {}
    for scan in twin.timepoints:
        if not history.lesions.get(scan.name) and (labels := twin.labels(scan)) is not None:
            mask = region_mask(labels, values)
            rest[scan.name] = float(np.count_nonzero(mask.array)) * mask.voxel_ml
    return rest


def _radiotherapy(twin: Twin) -> list[tuple[float, float]]:
    """The first and the last day of each course, as far as they are known."""
    courses = Treatments.from_json(twin.document("treatments.json")).radiotherapy
    return [(min(course.days), max(course.days)) for course in courses or () if course.days]


def _operations(twin: Twin) -> list[float]:
    """The days of the operations that removed tumour."""
    operations = Treatments.from_json(twin.document("treatments.json")).surgery
    return [operation.day for operation in operations or () if operation.removes_tumour]
