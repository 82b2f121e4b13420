"""The worker's requests on a patient's twin, which is named by its folder; see `worker_requests`.

What a request adds to a twin is one revision or more, and each is whole or not there, whenever the worker is killed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinseg import inference
from twinseg.cases import put_on_grid
from twinseg.errors import InputError
from twinseg.model_file import read_card
from twinseg.segmentation import LoadedModel, starter_model
from twinseg.tasks import Task, load_task
from twinseg.twin.store import Twin
from twinseg.twin.store_records import Record
from twinseg.worker_fields import check_outputs, field, number, read_images, read_segmentation, read_volume, write_all
from twinseg.worker_models import computing, model_of

if TYPE_CHECKING:
    from twinseg.twin.outlook import OutlookConfig
    from twinseg.worker import Request


def deltas(request: Request) -> dict[str, Any]:
    """Which of some twins have an adapted model in use on a model: of their own task, accepted, not rolled back.

    Fields: ``twins``: a list of folders; ``task``; ``model`` as for `segment`.

    Gives ``{"base": the model's hash, "deltas": {folder: {"pseudonym", "delta": its name in the twin, "day": of the
    newest scan that it learnt from, or null}}}``. A folder that holds no twin, or a damaged one, is left out.
    """
    from twinseg.twin.adaptation_delta import active_delta

    task = load_task(field(request.fields, "task", str))
    base = read_card(Path(field(request.fields, "model", str, None) or starter_model(task.name))).hash
    found: dict[str, dict[str, Any]] = {}
    for folder in field(request.fields, "twins", list):
        request.check()
        try:
            twin = open_twin(str(folder), task)
            record = active_delta(twin, base)
            if record is not None:
                found[str(folder)] = {"pseudonym": twin.pseudonym, "delta": record.name, "day": day_of(twin, record)}
        except InputError:
            continue  # what is wrong with it is told to who opens it
    return {"base": base, "deltas": found}


def day_of(twin: Twin, delta: Record) -> float | None:
    """The day of the newest scan that a delta learnt from; None where it does not say."""
    return max((twin.timepoint(name).day for name in delta.content.get("learnt_from", ())), default=None)


def add_time_point(request: Request) -> dict[str, Any]:
    """Add a scan with its segmentation to a twin: it is registered to the baseline, and its lesions are followed.

    Fields: ``twin``; ``day``: since the baseline scan, with its standard deviation ``day_uncertainty`` (0); ``images``
    as for `segment`; ``segmentation``: ``{"array": a .npy file (I, J, K) of label values, "affine": 4x4}``, onto whose
    grid the images are resampled; ``origin``: "model", "edited" or "expert"; ``model`` and ``delta`` (or null): the
    hash of the model that drew it and the name of this twin's adapted model; ``no_tumour`` (false): that the
    segmentation is empty is meant.

    Gives ``{"timepoint": its name, "day", "registration": {"kind", "agreement": the figure of quality, "information",
    "limit": the least agreement} or null for the baseline, "volumes_ml": {region: {"volume", "standard_deviation"}},
    "lesions", "forecasts_scored": how earlier forecasts fared, as `forecast` says}``. A scan that does not match the
    baseline, such as another patient's, is refused by an error of the kind "input" with its agreement.
    """
    from twinseg.twin.steps import time_point_added
    from twinseg.twin.timeline import add_scan

    fields = request.fields
    request.progress(0.0, "reading the images")
    twin = WatchedTwin.of(request)
    day = number("day", field(fields, "day", object))
    uncertainty = number("day_uncertainty", field(fields, "day_uncertainty", object, 0.0))
    origin = field(fields, "origin", str)
    labels = read_segmentation("segmentation", field(fields, "segmentation", dict))
    images = read_images(fields, load_task(twin.task))
    on_grid = {}
    for index, (name, image) in enumerate(images.items()):
        request.progress(0.05 + 0.05 * index / len(images), f"bringing {name} onto the segmentation's grid")
        on_grid[name] = put_on_grid(image, labels, Path(name), Path("segmentation"))
    point = add_scan(
        twin,
        day,
        on_grid,
        day_uncertainty=uncertainty,
        labels=labels,
        origin=origin,
        no_tumour=field(fields, "no_tumour", bool, False),
        model=field(fields, "model", str, None),
        delta=field(fields, "delta", str, None),
        report=lambda done, stage: request.progress(0.1 + 0.8 * done, stage),
    )
    request.progress(0.95, "measuring the volumes")
    return time_point_added(twin, point)


def adapt(request: Request) -> dict[str, Any]:
    """Fit a model to a patient's own corrected scans; the delta is kept in the twin, and used if it passes the gate.

    Fields: ``twin``; ``model``: the base model's file, or null for the task's starter model; ``device`` ("auto").

    Gives ``{"base": the base model's hash, "delta": the new delta's name in the twin, "in_use": the name of the delta
    that is used now, or null for the base model alone, "accepted", "reason": in words, "held_out" and "general": each
    {"on": words, "base": Dice, "adapted": Dice}, "strength": the share of the change that is kept, "learnt_from": time
    points, "config", "numbers_trained", "seconds"}``.
    """
    from twinseg.twin import adaptation
    from twinseg.twin.adaptation_delta import active_delta

    request.progress(0.0, "loading the model")
    twin, base = twin_and_model(request.fields)
    device = inference.choose_device(field(request.fields, "device", str, "auto"))
    with computing(base.network, device, request.check):
        adapted = adaptation.adapt(twin, base, device=device, report=request.progress)
    with request.publishing():
        twin = open_twin(twin.folder)  # as it is now: it may have grown in the meantime
        record = adaptation.keep(twin, adapted)
    current = active_delta(twin, base.hash)
    in_use = None if current is None else current.name
    return {"base": base.hash, "delta": record.name, "in_use": in_use, **adapted.to_json()}


def roll_back(request: Request) -> dict[str, Any]:
    """Take the delta that is in use on a model out of use; the one before it, or the base model, is used again.

    Fields: ``twin`` and ``model`` as for `adapt`. Gives ``{"base", "in_use"}`` as `adapt` does.
    """
    from twinseg.twin import adaptation_delta

    twin, base = twin_and_model(request.fields)
    with request.publishing():
        before = adaptation_delta.roll_back(twin, base.hash)
    return {"base": base.hash, "in_use": None if before is None else before.name}


def forecast(request: Request) -> dict[str, Any]:
    """Forecast a patient's volumes and seal that in the twin, after scoring earlier forecasts on the scans since then.

    Fields: ``twin``; ``days``: rising days after the last scan, counted from the baseline as all days are; ``map_day``:
    the day of the probability maps, or null for none; ``dose_map``: null or ``{"array": .npy file (I, J, K) in Gy for
    60 Gy, "affine": 4x4}`` in the baseline's space; ``device`` ("auto"); and as for `OutlookConfig` ``region``,
    ``growth``, ``members``, ``seed``, ``treatment_days_ahead``.

    Gives ``{"record": its name in the twin, "region", "forecasts": [for each scenario what `Forecast.to_json` says, and
    "probability_file": its map's name in the record, float32 on the twin's frame, or null], "verdict": how it did on
    the patient's past, in words, "beats_both": true, false or null where that is not known, "notes": all that must be
    said with it, "scored": how earlier forecasts fared, each with "forecast", "words" and numbers}``.
    """
    from twinseg.twin.outlook import look_ahead, seal
    from twinseg.twin.steps import scored_forecasts

    request.progress(0.0, "opening the twin")
    twin = open_twin(field(request.fields, "twin", str))
    outlook = look_ahead(twin, outlook_config(request.fields, twin), Ticker(request))
    with request.publishing():
        twin = open_twin(twin.folder)  # as it is now: it may have grown in the meantime
        scored = scored_forecasts(twin)
        record = seal(twin, outlook)
    told = record.content
    answer = {"record": record.name, "region": told["region"], "forecasts": told["scenarios"], "notes": told["notes"]}
    tested = {name: told["back_test"][name] for name in ("verdict", "beats_both")}
    return {**answer, **tested, "scored": scored}


def report(request: Request) -> dict[str, Any]:
    """Write the patient's page: timeline, pictures, response with its traces, forecast, provenance.

    Fields: ``twin``; ``html`` and ``pdf`` (or null): the files to write, both or none. Gives ``{"pseudonym", "html",
    "pdf"}``. Where matplotlib is not installed, the error says so.
    """
    import matplotlib  # noqa: F401 (before anything is read: without it there is no page)

    from twinseg.twin.steps import write_page

    html = Path(field(request.fields, "html", str))
    pdf = Path(wanted) if (wanted := field(request.fields, "pdf", str, None)) else None
    outputs = [html, *filter(None, [pdf])]
    twin = WatchedTwin.of(request)
    check_outputs(outputs)
    request.progress(0.1, "drawing the page")
    with tempfile.TemporaryDirectory(prefix="twinseg-") as folder:
        drawn = {path: Path(folder) / f"page-{number}" for number, path in enumerate(outputs)}
        write_page(twin, drawn[html], drawn[pdf] if pdf is not None else None)
        contents = {path: page.read_bytes() for path, page in drawn.items()}
    with request.publishing():
        write_all(contents)
    return {"pseudonym": twin.pseudonym, "html": str(html), "pdf": None if pdf is None else str(pdf)}


class WatchedTwin(Twin):
    """The twin of a request: whoever reads of it learns that the request was cancelled, and what is added to it is
    added while the request publishes."""

    request: Request

    @classmethod
    def of(cls, request: Request) -> WatchedTwin:
        """The twin that a request names. Raises InputError."""
        twin = cls.open(field(request.fields, "twin", str))
        assert isinstance(twin, cls)
        twin.request = request
        return twin

    def read(self, path: str) -> bytes:
        self.request.check()
        return super().read(path)

    def _commit(self, *arguments: Any, **options: Any) -> None:
        with self.request.publishing():
            super()._commit(*arguments, **options)


class Ticker:
    """Passes on what is new of a progress that is told very often, and looks whether the request was cancelled."""

    def __init__(self, request: Request) -> None:
        self.request, self.told = request, (-1.0, "")

    def __call__(self, done: float, stage: str) -> None:
        self.request.check()
        if (done, stage) != self.told:
            self.told = (done, stage)
            self.request.progress(done, stage)


def open_twin(folder: str | Path, task: Task | None = None) -> Twin:
    """A twin. Raises InputError where there is none, or one of another task than the images'."""
    twin = Twin.open(folder)
    if task is not None and twin.task != task.name:
        raise InputError(f"{folder}: this twin is of the task {twin.task}, not of {task.name}; choose the other task")
    return twin


def twin_and_model(fields: Mapping[str, Any]) -> tuple[Twin, LoadedModel]:
    """The twin of a request and the base model, made for its task."""
    twin = open_twin(field(fields, "twin", str))
    return twin, model_of(field(fields, "model", str, None), load_task(twin.task))


def outlook_config(fields: Mapping[str, Any], twin: Twin) -> OutlookConfig:
    """What a request for a forecast asks for. Raises InputError for a field that cannot be."""
    from twinseg.twin.outlook import OutlookConfig

    last = max((point.day for point in twin.timepoints if point.segmentation is not None), default=0.0)
    days = field(fields, "days", list)
    dose = field(fields, "dose_map", dict, None)
    given: dict[str, Any] = {name: field(fields, name, str) for name in ("region", "growth") if fields.get(name)}
    given |= {name: int(number(name, fields[name])) for name in ("members", "seed") if fields.get(name) is not None}
    if (ahead := fields.get("treatment_days_ahead")) is not None:
        given["treatment_days_ahead"] = number("treatment_days_ahead", ahead)
    return OutlookConfig(
        days_ahead=tuple(number("days", day) - last for day in days),
        map_days_ahead=None if (day := fields.get("map_day")) is None else number("map_day", day) - last,
        dose_map=None if dose is None else read_volume("dose map", dose),
        device=str(inference.choose_device(field(fields, "device", str, "auto"))),
        **given,
    )
