"""What may come: volumes with bands, where the tumour may be, when it may progress, and whether to believe it.

A forecast speaks of what a scan would measure, so its bands hold the measurement's error too. Beside it stand two
forecasts that need no model: persistence (the next scan equals the last) and log-linear extrapolation of the last two.
`back_test` tries all three on the patient's own past.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from twinseg.errors import InputError
from twinseg.twin.dose_response import TreatmentEffect, enhancement_sd
from twinseg.twin.posterior import Array, GrowthModel, Posterior, Visit, log_volume, since_surgery
from twinseg.twin.spatial_growth import SpatialGrowth
from twinseg.twin.treatments import (
    KINDS,
    Treatments,
    radiotherapy_40_gy_hypofractionated,
    radiotherapy_60_gy_with_temozolomide,
)

DISCLAIMER = "Research only: not for treatment decisions."

PROGRESSION_GROWTH = 0.4
"""RANO 2.0: progression is a volume 40 % above the smallest; here the smallest from the last scan on."""

MEASURABLE_ML = 0.52
"""A ball of 10 mm, RANO's least measurable lesion: where less was left, progression is when this is reached."""

CHANGES = 0.5
"""The share of samples in which a treatment that nobody knows of is another from the last visit on: a coin's toss."""

UNMEASURED = 1.0
"""The logarithm of a volume that is barely visible is known no better than this."""

PRIOR_ALONE = (
    "No scan of this patient shows the effect of {what} on this tumour: this scenario is answered by what is known of "
    "other patients alone."
)
AFTER_RADIOTHERAPY = (
    "For three months after radiotherapy enhancement may grow though the tumour shrinks (pseudoprogression): until "
    "then scans are trusted less, and the bands are wider."
)


@dataclass(frozen=True)
class Band:
    """A range in which the volume lies with probability `level`; low and high in mL, (days,)."""

    level: float
    low: Array
    high: Array


@dataclass(frozen=True)
class TimeToProgression:
    """Days from the last scan to progression: quantiles (infinite: not within the forecast), who never does."""

    median: float
    low90: float
    high90: float
    share_without: float
    horizon_days: float


@dataclass(frozen=True)
class Forecast:
    """Measured volume in mL on `days`: median and bands, persistence and log-linear extrapolation (days,).

    `probability` is the map (X,Y,Z) on `probability_day`, if it was asked for and the model has space; `log_linear`
    is None with a single visit. `informed` is False where nothing but the prior speaks; `prior_alone` names the planned
    treatments whose effect no visit of the patient shows.
    """

    scenario: str
    days: Array
    median: Array
    bands: tuple[Band, ...]
    persistence: Array
    log_linear: Array | None
    time_to_progression: TimeToProgression
    informed: bool
    notes: tuple[str, ...]
    probability_day: float | None = None
    probability: NDArray[np.float32] | None = None
    prior_alone: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything but the probability map, ready for JSON; an infinite time is None."""
        progression = {k: v if np.isfinite(v) else None for k, v in vars(self.time_to_progression).items()}
        return {
            "scenario": self.scenario,
            "days": self.days.tolist(),
            "median_ml": self.median.tolist(),
            "bands": [{"level": b.level, "low_ml": b.low.tolist(), "high_ml": b.high.tolist()} for b in self.bands],
            "persistence_ml": self.persistence.tolist(),
            "log_linear_ml": None if self.log_linear is None else self.log_linear.tolist(),
            "time_to_progression_days": progression,
            "informed": self.informed,
            "notes": list(self.notes),
            "prior_alone": list(self.prior_alone),
            "probability_day": self.probability_day,
        }


@dataclass(frozen=True)
class Trial:
    """One visit of the past, forecast from those before it: volumes in mL, and whether it lay in the 90 % band."""

    day: float
    measured_ml: float
    twin_ml: float
    low90_ml: float
    high90_ml: float
    persistence_ml: float
    log_linear_ml: float

    @property
    def covered(self) -> bool:
        """Whether the measured volume lay in the 90 % band."""
        return self.low90_ml <= self.measured_ml <= self.high90_ml


@dataclass(frozen=True)
class BackTest:
    """The twin on the patient's past. `beats_both` is None where there is no past to try it on."""

    trials: tuple[Trial, ...]
    errors: Mapping[str, float]
    beats_both: bool | None
    verdict: str


def scenarios(
    day: float, dose_map: NDArray[np.float32] | None = None, given: Treatments | None = None
) -> dict[str, Treatments]:
    """What could be done from `day` on, beside what was `given` before: by name.

    `dose_map` (X,Y,Z), 1 at the prescribed dose, adds 60 Gy in 30 fractions shaped by it.
    """
    combined = radiotherapy_60_gy_with_temozolomide(day)
    choices = {
        "no further treatment": Treatments.none_given(),
        "60 Gy in 30 fractions with temozolomide": combined,
        "40 Gy in 15 fractions": radiotherapy_40_gy_hypofractionated(day),
    }
    if dose_map is not None:
        shaped = tuple(replace(course, relative_dose=dose_map) for course in combined.radiotherapy or ())
        choices["60 Gy in 30 fractions by dose map, with temozolomide"] = replace(combined, radiotherapy=shaped)
    return {name: joined(given or Treatments(), plan) for name, plan in choices.items()}


def joined(given: Treatments, planned: Treatments) -> Treatments:
    """Both treatments, one after the other. Kinds that are unknown in the past stay unknown if none is planned, and
    whatever nobody knows of may go on beside the plan."""

    def both(a: tuple[Any, ...] | None, b: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return a if a is None and not b else (a or ()) + (b or ())

    kinds = {kind: both(getattr(given, kind), getattr(planned, kind)) for kind in KINDS}
    return Treatments(**kinds, more_unknown=given.kills_unknown)


def forecast(
    posterior: Posterior,
    days: Sequence[float],
    treatments: Treatments | None = None,
    *,
    scenario: str = "as before",
    map_day: float | None = None,
    members: int = 200,
    seed: int = 0,
) -> Forecast:
    """The volume on `days` (rising, after the last visit) under `treatments` (all of them, the past ones included).

    `map_day` asks for the probability map of that day. `members` posterior samples are run. Raises InputError.
    """
    visits, past = posterior.visits, posterior.treatments
    treatments = past if treatments is None else treatments
    last = visits[-1]
    days = [float(day) for day in days]
    if not days or any(after <= before for before, after in pairwise([last.day, *days])):
        raise InputError(f"forecast: give rising days after the last visit (day {last.day:g}); found {days}.")
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(posterior.samples))[:members]
    model, samples = posterior.model.continued(posterior.samples[chosen], visits, past)
    if treatments.kills_unknown and model is not posterior.model:
        samples = _with_changed_treatment(model, samples, rng)
    # A fine enough sequence to see when progression comes
    fine = sorted({*days, *np.arange(last.day, days[-1], max(7.0, (days[-1] - last.day) / 60)).tolist()[1:]})
    volumes = model.simulate(samples, [last.day, *fine], treatments)
    progression = _time_to_progression(volumes, np.array([last.day, *fine]))
    wanted = volumes[:, 1 + np.searchsorted(fine, days)]
    unsure = np.hypot(model.simulation_sd(log_volume(wanted)), enhancement_sd(treatments, days))
    measured = _as_measured(wanted, last, unsure, rng)
    median, *edges = np.quantile(measured, [0.5, 0.25, 0.75, 0.05, 0.95], axis=0)
    probability = None
    if map_day is not None and isinstance(model, SpatialGrowth):
        probability = model.probability_map(samples, map_day, treatments)
    prior_alone = _prior_alone(visits, past, treatments, days[-1])
    notes = [DISCLAIMER, *posterior.notes]
    if prior_alone:
        notes.append(PRIOR_ALONE.format(what=" and ".join(prior_alone)))
    if enhancement_sd(treatments, [*(visit.day for visit in visits[1:]), *days]).any():
        notes.append(AFTER_RADIOTHERAPY)
    return Forecast(
        scenario=scenario,
        days=np.array(days),
        median=median,
        bands=(Band(0.5, edges[0], edges[1]), Band(0.9, edges[2], edges[3])),
        persistence=np.full(len(days), last.volume_ml),
        log_linear=log_linear(visits, days),
        time_to_progression=progression,
        informed=posterior.informed,
        notes=tuple(notes),
        prior_alone=prior_alone,
        probability_day=map_day if probability is not None else None,
        probability=probability,
    )


def log_linear(visits: Sequence[Visit], days: Sequence[float]) -> Array | None:
    """Volumes in mL on `days` if ln(volume) went on as between the last two visits; None with a single one."""
    if len(visits) < 2:
        return None
    before, last = visits[-2:]
    slope = (last.log_volume - before.log_volume) / (last.day - before.day)
    grown = last.log_volume + slope * (np.asarray(days, float) - last.day)
    return np.maximum(np.exp(np.minimum(grown, 50.0)) - np.exp(log_volume(0.0)), 0.0)


def back_test(model: GrowthModel, visits: Sequence[Visit], treatments: Treatments, *, seed: int = 0) -> BackTest:
    """Forecast each visit from the third on from those before it, by the twin, persistence and extrapolation.

    Errors are means of |ln(forecast / measured)|.
    """
    visits = since_surgery(visits, treatments)
    trials = tuple(_trial(model, visits[:n], visits[n], treatments, seed) for n in range(2, len(visits)))
    if not trials:
        return BackTest((), {}, None, "This patient has too few visits to try the forecast on: it needs three.")
    measured = log_volume(np.array([trial.measured_ml for trial in trials]))
    errors = {
        name: float(np.abs(log_volume(np.array([getattr(t, f"{name}_ml") for t in trials])) - measured).mean())
        for name in ("twin", "persistence", "log_linear")
    }
    best = min(errors, key=lambda name: errors[name])
    beats = best == "twin"
    label = {"twin": "twin", "persistence": "persistence", "log_linear": "log-linear extrapolation"}[best]
    count = f"{len(trials)} past visit{'s' if len(trials) > 1 else ''}"
    verdict = f"On {count} of this patient the twin was nearest to what was measured."
    if not beats:
        verdict = f"On {count} of this patient the twin did not beat {label}: do not rely on this forecast."
    return BackTest(trials, errors, beats, verdict)


def _trial(model: GrowthModel, known: Sequence[Visit], sealed: Visit, treatments: Treatments, seed: int) -> Trial:
    result = forecast(model.fit(known, treatments, seed=seed), [sealed.day], seed=seed)
    extrapolated = result.log_linear
    assert extrapolated is not None  # at least two visits are known
    return Trial(
        day=sealed.day,
        measured_ml=sealed.volume_ml,
        twin_ml=float(result.median[0]),
        low90_ml=float(result.bands[1].low[0]),
        high90_ml=float(result.bands[1].high[0]),
        persistence_ml=float(result.persistence[0]),
        log_linear_ml=float(extrapolated[0]),
    )


def _prior_alone(visits: Sequence[Visit], past: Treatments, treatments: Treatments, until: float) -> tuple[str, ...]:
    """The kinds of treatment after the last visit of which none lies between visits."""
    alone = []
    for kind in ("radiotherapy", "chemotherapy"):
        before, all_ = (TreatmentEffect(Treatments(**{kind: getattr(x, kind)})) for x in (past, treatments))
        if all_.between(visits[-1].day, until) and not before.between(visits[0].day, visits[-1].day):
            alone.append(kind)
    return tuple(alone)


def _with_changed_treatment(model: GrowthModel, samples: Array, rng: np.random.Generator) -> Array:
    """The samples (n,p), of which a share `CHANGES` has an unknown treatment's effect drawn anew."""
    prior, samples = model.prior(), samples.copy()
    column = prior.names.index("unknown_kill")
    changed = rng.random(len(samples)) < CHANGES
    samples[changed, column] = prior.parameters[column].from_normal(rng.standard_normal(int(changed.sum())))
    return samples


def _as_measured(volumes: Array, last: Visit, unsure: Array, rng: np.random.Generator) -> Array:
    """Volumes (n, days) with the relative error of a measurement, and what else is `unsure` (n, days): for each sample
    one deviate, evenly spread over the samples, so that bands are smooth.

    The error of a segmentation lies in its surface: relative to the volume it goes with the volume to the power -1/3
    below that of the last visit.
    """
    smaller = np.cbrt(max(last.volume_ml, MEASURABLE_ML) / np.maximum(volumes, 1e-9))
    sd = np.hypot(last.log_sd * np.maximum(smaller, 1.0), unsure)
    deviates = rng.permutation(ndtri((np.arange(len(volumes)) + 0.5) / len(volumes)))
    return volumes * np.exp(np.minimum(sd, UNMEASURED) * deviates[:, None])


def _time_to_progression(volumes: Array, days: Array) -> TimeToProgression:
    """When the volume (n, days) first exceeds the smallest since the first of `days` by `PROGRESSION_GROWTH`."""
    nadir = np.minimum.accumulate(volumes, axis=1)
    above = volumes > np.maximum(nadir * (1 + PROGRESSION_GROWTH), MEASURABLE_ML)
    reached = above.any(axis=1)
    first = np.where(reached, days[np.argmax(above, axis=1)] - days[0], np.inf)
    low, median, high = np.quantile(first, [0.05, 0.5, 0.95], method="higher").tolist()
    return TimeToProgression(median, low, high, float(1 - reached.mean()), float(days[-1] - days[0]))
