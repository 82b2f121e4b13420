"""The twin's outlook: what the store knows goes to a growth model, what the model says is sealed in the store.

A forecast holds the volume of one region with its bands under several scenarios, persistence and log-linear
extrapolation beside them, maps of where the tumour may be, and how all this would have fared on the patient's past.
It is kept before the next scan is known and never changed; `outlook_score` scores it when that scan has come.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinseg.errors import Cancelled, InputError
from twinseg.inference import Report
from twinseg.tasks import Task, load_task
from twinseg.twin.coarse_grid import Brain
from twinseg.twin.forecast import BackTest, Forecast, back_test, forecast, scenarios
from twinseg.twin.growth_curves import GrowthCurve
from twinseg.twin.lesions import LesionSettings, followed_region
from twinseg.twin.outlook_brain import brain_mask
from twinseg.twin.posterior import GrowthModel, Posterior, Visit, since_surgery
from twinseg.twin.spatial_growth import VISIBLE_ENHANCING, VISIBLE_ON_FLAIR, SpatialGrowth
from twinseg.twin.store import Twin
from twinseg.twin.store_records import Record
from twinseg.twin.timeline import REGISTERED_ON, in_frame, timeline
from twinseg.twin.treatments import Treatments
from twinseg.volumes import Volume, resample_to, volume_bytes

PRESCRIBED_GY = 60.0
"""What the dose map of the scenario "by dose map" is a map of."""

BRAIN_NOTE = "The brain's outline is estimated from the image, and white and grey matter are not told apart."
MAP_FILE = "probability.nii.gz"


@dataclass(frozen=True)
class OutlookConfig:
    """What is forecast, and how.

    Attributes:
        region: of the task, by name; None: the one that lesions are followed in.
        growth: "space" (reaction and diffusion, with a map) or "curve" (Gompertz, volumes alone).
        days_ahead: rising, days after the last scan that are forecast.
        map_days_ahead: the day of the maps, one a scenario, after the last scan; None: no map.
        treatment_days_ahead: after the last scan, when the scenarios' treatments begin.
        dose_map: dose in Gy for a prescription of `PRESCRIBED_GY`, in the baseline's space: one more scenario.
        members: samples of the posterior.
        sampler_steps: of the chain that fits a curve.
        device: where the model in space is computed.
    """

    region: str | None = None
    growth: str = "space"
    days_ahead: tuple[float, ...] = tuple(15.0 * n for n in range(1, 13))
    map_days_ahead: float | None = 90.0
    treatment_days_ahead: float = 14.0
    dose_map: Volume | None = None
    members: int = 200
    sampler_steps: int = 1500
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.growth not in ("space", "curve"):
            raise InputError(f"growth model {self.growth!r}: unknown; use space or curve")
        if not self.days_ahead or any(b <= a for a, b in pairwise([0.0, *self.days_ahead])):
            raise InputError("the days to forecast must rise and come after the last scan; correct them")
        shown = 1.0 if self.map_days_ahead is None else self.map_days_ahead
        if not 0 < shown <= 3650 or not self.days_ahead[-1] <= 3650 or not 0 <= self.treatment_days_ahead <= 3650:
            raise InputError("give days from the last scan on, at most 3650 of them")
        if not 40 <= self.members <= 5000:
            raise InputError(f"{self.members} members: give 40 to 5000")


@dataclass(frozen=True)
class Outlook:
    """A forecast before it is sealed. forecasts: by scenario, the first without treatment beyond what is recorded;
    maps: what their map files will hold, by name."""

    region: str
    config: OutlookConfig
    posterior: Posterior
    forecasts: tuple[Forecast, ...]
    maps: dict[str, bytes]
    tested: BackTest
    notes: tuple[str, ...]
    timepoints: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """What the record in `forecasts/` says."""
        last = self.posterior.visits[-1]
        return {
            "region": self.region,
            "growth": self.config.growth,
            "known": list(self.timepoints),
            "last": {"day": last.day, "volume_ml": last.volume_ml, "sd_ml": last.sd_ml},
            "treatments": self.posterior.treatments.to_json(),
            "scenarios": [
                {**one.to_json(), "probability_file": map_file(number) if one.probability is not None else None}
                for number, one in enumerate(self.forecasts)
            ],
            "back_test": {
                "trials": [{**vars(trial), "covered": bool(trial.covered)} for trial in self.tested.trials],
                "log_errors": dict(self.tested.errors),
                "beats_both": self.tested.beats_both,
                "verdict": self.tested.verdict,
            },
            "posterior": self.posterior.summary(),
            "notes": list(self.notes),
        }


def look_ahead(twin: Twin, config: OutlookConfig | None = None, report: Report = lambda done, stage: None) -> Outlook:
    """Fit the growth model to the twin's scans and forecast; the twin stays as it is (see `seal`).

    `report` is told where the work is, often, and may stop it. Raises InputError where there is no tumour to follow,
    or no scan after an operation; Cancelled when `report` asks for it.
    """
    config = config or OutlookConfig()
    at = (0.0, "reading the scans")

    def look() -> None:
        if report(*at):
            raise Cancelled("stopped; nothing was changed")

    look()
    region, values = forecast_region(load_task(twin.task), config.region)
    treatments = Treatments.from_json(twin.document("treatments.json"))
    names, visits = known_visits(twin, region, values, treatments)
    model = growth_model(twin, region, visits[0], config, look)
    at = (0.1, "fitting the growth model")
    look()
    posterior = model.fit(visits, treatments, seed=config.seed)
    at = (0.3, "trying it on the past scans")
    look()
    tested = back_test(model, visits, treatments, seed=config.seed)
    last = visits[-1].day
    days = [last + ahead for ahead in config.days_ahead]
    map_day = None if config.map_days_ahead is None else last + config.map_days_ahead
    plans = scenarios(last + config.treatment_days_ahead, _dose_shares(twin, config.dose_map), treatments)
    forecasts: list[Forecast] = []
    maps: dict[str, bytes] = {}
    for number, (name, plan) in enumerate(plans.items()):
        at = (0.5 + 0.5 * number / len(plans), name)
        look()
        one = forecast(posterior, days, plan, scenario=name, map_day=map_day, members=config.members, seed=config.seed)
        forecasts.append(one)
        if one.probability is not None and twin.frame is not None:
            file = map_file(number)
            maps[file] = volume_bytes(Path(file), Volume(one.probability, twin.frame.affine))
    notes = _notes(twin, config, forecasts[0], tested, treatments)
    return Outlook(region, config, posterior, tuple(forecasts), maps, tested, notes, names)


def seal(twin: Twin, outlook: Outlook) -> Record:
    """Add the fit to `growth/` and the forecast to `forecasts/`. Raises InputError where a scan came meanwhile."""
    if any(point.segmentation and point.name > outlook.timepoints[-1] for point in twin.timepoints):
        raise InputError(f"{twin.folder}: a scan was added meanwhile; make the forecast again")
    samples = io.BytesIO()
    np.save(samples, outlook.posterior.samples, allow_pickle=False)
    fit = {"names": list(outlook.posterior.names), "known": list(outlook.timepoints), **outlook.posterior.summary()}
    grown = twin.add_record("growth", {"growth": outlook.config.growth, **fit}, {"samples.npy": samples.getvalue()})
    return twin.add_record("forecasts", {**outlook.to_json(), "fit": grown.name}, outlook.maps)


def map_file(scenario: int) -> str:
    """The name of a scenario's map in the record of its forecast."""
    return MAP_FILE if scenario == 0 else f"probability-{scenario}.nii.gz"


def forecast_region(task: Task, name: str | None) -> tuple[str, tuple[int, ...]]:
    """Name and label values of the region to forecast. Raises InputError for one that the task does not have."""
    known = [region.name for region in task.regions]
    if name is not None and name not in known:
        raise InputError(f"the task {task.name} has no region {name}; it has {', '.join(known)}")
    return followed_region(task, LesionSettings(region=name))


def known_visits(
    twin: Twin, region: str, values: Sequence[int], treatments: Treatments
) -> tuple[tuple[str, ...], tuple[Visit, ...]]:
    """The segmented scans as visits, with their names: those since the last operation, from the first with tumour on.

    Volumes in mL with their errors as on the timeline, masks on the twin's frame. Raises InputError where none shows
    the region.
    """
    measured = [point for point in timeline(twin) if point.volumes is not None]
    visits = []
    for point in measured:
        assert point.volumes is not None
        volume, deviation = point.volumes[region]
        visits.append(Visit(point.day, volume, deviation, in_frame(twin, point.timepoint, values).array))
    if visits:
        visits = list(since_surgery(visits, treatments))
    while visits and (visits[0].volume_ml <= 0 or visits[0].mask is None or not visits[0].mask.any()):
        visits = visits[1:]
    if not visits:
        raise InputError(f"{twin.folder}: no scan shows the region {region}; segment one, or choose another region")
    return tuple(point.timepoint for point in measured[-len(visits) :]), tuple(visits)


def growth_model(twin: Twin, region: str, start: Visit, config: OutlookConfig, look: Callable[[], None]) -> GrowthModel:
    """The growth model of a region, started at a visit; `look` is called often while it runs in space."""
    if config.growth == "curve":
        return GrowthCurve(start, members=config.members, steps=config.sampler_steps)
    task, frame = load_task(twin.task), twin.frame
    assert frame is not None
    oedema = {label.value for label in task.labels if label.name in ("ED", "FLAIR")}
    visible = VISIBLE_ON_FLAIR if oedema & set(forecast_region(task, region)[1]) else VISIBLE_ENHANCING
    baseline = twin.timepoints[0]
    name = next((name for name in REGISTERED_ON if name in baseline.images), next(iter(baseline.images)))
    image = resample_to(twin.image(baseline, name), frame.affine, frame.shape)
    brain = Brain.of_unknown_tissue(brain_mask(image), image.spacing)
    return SpatialGrowth(start, brain, look=look, visible_density=visible, members=config.members, device=config.device)


def _dose_shares(twin: Twin, dose_map: Volume | None) -> NDArray[np.float32] | None:
    """The dose map on the twin's frame, 1 at the prescribed dose."""
    if dose_map is None:
        return None
    assert twin.frame is not None
    gray = resample_to(Volume(dose_map.array.astype(np.float32), dose_map.affine), twin.frame.affine, twin.frame.shape)
    if not np.isfinite(gray.array).all() or gray.array.min() < 0 or not 1 < gray.array.max() < 3 * PRESCRIBED_GY:
        raise InputError(
            f"the dose map holds {gray.array.min():g} to {gray.array.max():g} in the baseline's space; give dose in Gy "
            f"for a prescription of {PRESCRIBED_GY:g} Gy, in the space of the baseline scan"
        )
    return (gray.array / PRESCRIBED_GY).astype(np.float32)


def _notes(
    twin: Twin, config: OutlookConfig, first: Forecast, tested: BackTest, treatments: Treatments
) -> tuple[str, ...]:
    """All that must be said with the forecast, in plain words, each once."""
    notes = [*first.notes, tested.verdict]
    if config.growth == "space":
        notes.append(BRAIN_NOTE)
    if any(course.dose_map_file for course in treatments.radiotherapy or ()):
        notes.append("Past radiotherapy is taken as uniform: its dose map is not in the twin.")
    if any(point.day_uncertainty for point in twin.timepoints):
        notes.append("The days of some scans are uncertain; the bands do not hold that.")
    return tuple(dict.fromkeys(notes))
