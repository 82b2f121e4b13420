"""What the worker can do: one function a request, registered in `REQUESTS` under the name that stands in its "do".

A function gets the `Request` and returns the result's value, plain JSON. It raises InputError for what the asking side
or the images get wrong, looks in on `Request.check` or `Request.progress` often enough to be cancelled within a second,
and puts files into their places only within `Request.publishing`.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from twinseg import __version__, inference
from twinseg.cases import LoadedCase, put_on_grid
from twinseg.errors import InputError
from twinseg.memory import give_freed_memory_back
from twinseg.segmentation import LoadedModel, load_network, starter_model
from twinseg.tasks import Task, load_task
from twinseg.volumes import Volume, check_intensities, one_volume, write_atomically

if TYPE_CHECKING:
    from twinseg.twin.outlook import OutlookConfig
    from twinseg.twin.store import Twin
    from twinseg.worker import Request

PROTOCOL = 1
NO_DEFAULT = object()


def hello(request: Request) -> dict[str, Any]:
    """Who answers and where it can compute: ``{"protocol", "version", "torch", "devices": [{"name", "title",
    "free_bytes"}, …]}``."""
    titles = {"cpu": f"CPU, {os.cpu_count()} cores"}
    titles |= {f"cuda:{index}": torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    if torch.backends.mps.is_available():
        titles["mps"] = "Apple GPU"
    devices = [
        {"name": name, "title": title, "free_bytes": inference.free_memory(torch.device(name))}
        for name, title in titles.items()
    ]
    return {"protocol": PROTOCOL, "version": __version__, "torch": torch.__version__, "devices": devices}


def segment(request: Request) -> dict[str, Any]:
    """Segment images and write the label map, and if wanted the uncertainty, as .npy files.

    Fields: ``task``: its name; ``model``: a file, or null for the task's starter model; ``device`` ("auto"); ``flips``
    (false); ``images``: by sequence ``{"array": a .npy file (I, J, K), "affine": 4x4, voxels to RAS mm}``;
    ``reference``: the sequence on whose grid the result lies and onto which the others are resampled; ``labels`` and
    ``uncertainty`` (or null): the files to write, uint8 or uint16 and float32 from 0 to 1, (I, J, K); ``twin`` (or
    null): the folder of the patient's twin, whose adapted model is used where one is in use on this model.

    Gives ``{"model": its hash, "delta": the adapted model's name in the twin, or null, "model_title": its file's name,
    "task", "computed": where, in words, "seconds", "missing": sequences that were not given, "volumes_ml": {region:
    {"volume", "low", "high"}}}``.
    """
    started = time.perf_counter()
    fields = request.fields
    request.progress(0.0, "loading the model")
    task = load_task(field(fields, "task", str))
    path = Path(field(fields, "model", str, None) or starter_model(task.name))
    model, delta = warm_model(*file_state(path), task), None
    if (folder := field(fields, "twin", str, None)) is not None:
        from twinseg.twin.adaptation_delta import adapted_network  # what twins need may be missing where none is kept

        model, delta = adapted_network(open_twin(folder, task), model)
    device = inference.choose_device(field(fields, "device", str, "auto"))
    flips, labels = field(fields, "flips", bool, False), Path(field(fields, "labels", str))
    uncertainty = Path(wanted) if (wanted := field(fields, "uncertainty", str, None)) else None
    request.progress(0.02, "reading the images")
    case = read_case(fields, model.task)
    check_outputs([labels, *filter(None, [uncertainty])])
    try:
        with looked_in_on(model.network, request.check):
            result = inference.segment(
                model.network,
                case,
                model.task,
                device=device,
                flips=flips,
                uncertainty=uncertainty is not None,
                report=lambda done, stage: request.progress(0.05 + 0.95 * done, stage),
            )
    finally:
        inference.release_memory(device)
        give_freed_memory_back()
    contents = {labels: array_file(result.labels.array)}
    if uncertainty is not None and result.uncertainty is not None:
        contents[uncertainty] = array_file(result.uncertainty.array)
    with request.publishing():
        write_all(contents)
    return {
        "model": model.hash,
        "delta": delta,
        "model_title": path.stem,
        "task": task.name,
        "computed": result.computed,
        "seconds": round(time.perf_counter() - started, 3),
        "missing": [sequence.name for sequence in model.task.sequences if sequence.name not in case.images],
        "volumes_ml": result.volumes,
    }


def adapt(request: Request) -> dict[str, Any]:
    """Fit a model to a patient's own corrected scans; the delta is kept in the twin, and used if it passes the gate.

    Fields: ``twin``: the twin's folder; ``model``: the base model's file, or null for the task's starter model;
    ``device`` ("auto").

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
    try:
        with looked_in_on(base.network, request.check):
            adapted = adaptation.adapt(twin, base, device=device, report=request.progress)
    finally:
        inference.release_memory(device)
        give_freed_memory_back()
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

    Fields: ``twin``: the twin's folder; ``days``: rising days after the last scan, counted from the baseline as all
    days are; ``map_day``: the day of the probability map, or null; ``probability``: the .npy file to write it to, or
    null, float32 (I, J, K); ``dose_map``: null or ``{"array": .npy file (I, J, K) in Gy for 60 Gy, "affine": 4x4}`` in
    the baseline's space; ``device`` ("auto"); and as for `OutlookConfig` ``region``, ``growth``, ``members``, ``seed``,
    ``treatment_days_ahead``.

    Gives ``{"record": its name in the twin, "region", "forecasts": [what `Forecast.to_json` says, for each scenario],
    "verdict": how it did on the patient's past, in words, "beats_both": true, false or null where that is not known,
    "notes": all that must be said with it, "probability_affine": 4x4, voxels to RAS mm, or null, "scored": how earlier
    forecasts fared, each with "forecast", "words" and numbers}``.
    """
    from twinseg.twin.outlook import look_ahead, seal
    from twinseg.twin.outlook_score import score_forecasts

    fields = request.fields
    request.progress(0.0, "opening the twin")
    twin = open_twin(field(fields, "twin", str))
    map_file = Path(wanted) if (wanted := field(fields, "probability", str, None)) else None
    check_outputs([*filter(None, [map_file])])
    outlook = look_ahead(twin, outlook_config(fields, twin), Ticker(request))
    probability = outlook.forecasts[0].probability
    contents = {} if map_file is None or probability is None else {map_file: array_file(probability)}
    with request.publishing():
        twin = open_twin(twin.folder)  # as it is now: it may have grown in the meantime
        scored = [{"forecast": one.name, **one.scores[-1]} for one in score_forecasts(twin)]
        record = seal(twin, outlook)
        write_all(contents)
    told = outlook.to_json()
    affine = twin.frame.affine.tolist() if contents and twin.frame is not None else None
    answer = {"record": record.name, "region": told["region"], "forecasts": told["scenarios"], "notes": told["notes"]}
    tested = {name: told["back_test"][name] for name in ("verdict", "beats_both")}
    return {**answer, **tested, "probability_affine": affine, "scored": scored}


REQUESTS: dict[str, Callable[[Request], dict[str, Any]]] = {
    "hello": hello,
    "segment": segment,
    "adapt": adapt,
    "roll_back": roll_back,
    "forecast": forecast,
}


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
    from twinseg.twin.store import Twin

    twin = Twin.open(folder)
    if task is not None and twin.task != task.name:
        raise InputError(f"{folder}: this twin is of the task {twin.task}, not of {task.name}; choose the other task")
    return twin


def twin_and_model(fields: Mapping[str, Any]) -> tuple[Twin, LoadedModel]:
    """The twin of a request and the base model, made for its task."""
    twin = open_twin(field(fields, "twin", str))
    task = load_task(twin.task)
    path = Path(field(fields, "model", str, None) or starter_model(task.name))
    return twin, warm_model(*file_state(path), task)


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


@lru_cache(maxsize=2)
def warm_model(path: Path, modified: int, size: int, task: Task) -> LoadedModel:
    """The network of a model file, made for the task; a file that was replaced is read anew, as its state differs."""
    return load_network(path, task)


@contextmanager
def looked_in_on(network: nn.Module, look: Callable[[], None]) -> Iterator[None]:
    """Call `look` before each layer of the network, so that a pass stops in its midst where that raises."""

    def before(layer: nn.Module, inputs: object) -> None:
        look()

    hooks = [layer.register_forward_pre_hook(before) for layer in network.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# --- a request's fields and files ------------------------------------------------------------------------------------


def field(fields: Mapping[str, Any], name: str, kind: type, default: Any = NO_DEFAULT) -> Any:
    """A field of a request, or its default where it is missing or null. Raises InputError for one of another kind."""
    value = fields.get(name)
    if value is None and default is not NO_DEFAULT:
        return default
    if not isinstance(value, kind):
        fault = "is missing" if value is None else f"must be {KINDS[kind]}, not {str(value)[:40]!r}"
        raise InputError(f"{fields['do']}: the field {name!r} {fault}")
    return value


KINDS = {str: "text", bool: "true or false", dict: "an object", list: "a list"}


def number(name: str, value: Any) -> float:
    """A field that is a finite number. Raises InputError for any other."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise InputError(f"the field {name!r} must hold numbers, not {str(value)[:40]!r}")
    return float(value)


def file_state(path: Path) -> tuple[Path, int, int]:
    """A model file, when it was last changed, in ns, and its size in bytes. Raises InputError where it is not there."""
    try:
        path = path.resolve()
        state = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: the model cannot be read ({reason}); choose another") from error
    return path, state.st_mtime_ns, state.st_size


def read_case(fields: Mapping[str, Any], task: Task) -> LoadedCase:
    """The images of a request, on the grid of its reference. Raises InputError for images that cannot be segmented."""
    images = field(fields, "images", dict)
    known = [sequence.name for sequence in task.sequences]
    if unknown := [name for name in images if name not in known]:
        raise InputError(f"{unknown[0]}: the task {task.name} has no such sequence; it has {', '.join(known)}")
    if not images:
        raise InputError(f"no image was chosen; choose at least one of {', '.join(known)}")
    if (chosen := field(fields, "reference", str)) not in images:
        raise InputError(f"{chosen}: the result should lie on its grid, but it is not among the images; choose it")
    volumes = {name: read_volume(name, images[name]) for name in known if name in images}
    reference = volumes[chosen]
    on_grid = {name: put_on_grid(volume, reference, Path(name), Path(chosen)) for name, volume in volumes.items()}
    return LoadedCase(on_grid, reference, None)


def read_volume(name: str, entry: Any) -> Volume:
    """A sequence's array and affine; its file is not held open, as it is removed when the request was cancelled.
    Raises InputError that names the sequence."""
    try:
        affine = np.array(entry["affine"], float)
        array = np.load(entry["array"], allow_pickle=False)
    except (KeyError, TypeError) as error:
        raise InputError(f"{name}: it must be given as a file, 'array', and 4x4 numbers, 'affine'") from error
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name}: its .npy file cannot be read ({reason}); write it with numpy.save") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iufb":
        raise InputError(f"{name}: colour, complex or no voxels; choose a grey-value image")
    if array.size == 0:
        raise InputError(f"{name}: the image is empty {array.shape}; load or export it again")
    if affine.shape != (4, 4) or not np.all(np.isfinite(affine)) or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError(f"{name}: its affine is not 4x4 numbers that can be inverted; load the image again")
    array = one_volume(Path(name), array, None)
    with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, which is told
        volume = Volume(np.asarray(array, np.float32, order="C"), affine)
    check_intensities(Path(name), volume.array)
    return volume


def check_outputs(paths: list[Path]) -> None:
    """Raise InputError, before any work is done, for files that could not be written."""
    for path in paths:
        if not path.parent.is_dir():
            raise InputError(f"{path}: its folder does not exist; make it first")
    if len(set(paths)) < len(paths):
        raise InputError(f"{paths[0]}: label map and uncertainty need a file each; name two")


def array_file(array: NDArray[Any]) -> bytes:
    """The content of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Write all files or none."""
    written: list[Path] = []
    try:
        for path, content in contents.items():
            write_atomically(path, content)
            written.append(path)
    except InputError:
        for path in written:
            path.unlink(missing_ok=True)
        raise
