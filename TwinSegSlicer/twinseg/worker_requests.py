"""What the worker can do: one function a request, registered in `REQUESTS` under the name that stands in its "do".

A function gets the `Request` and returns the result's value, plain JSON. It raises InputError for what the asking side
or the images get wrong, looks in on `Request.check` or `Request.progress` often enough to be cancelled within a second,
and puts files into their places only within `Request.publishing`. The requests on a patient's twin are those of
`worker_twin_requests`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from twinseg import __version__, inference
from twinseg import worker_twin_requests as of_twins
from twinseg.cases import LoadedCase, put_on_grid
from twinseg.errors import InputError
from twinseg.segmentation import starter_model
from twinseg.tasks import Task, load_task
from twinseg.worker_fields import array_file, check_outputs, field, read_images, write_all
from twinseg.worker_models import computing, model_of

if TYPE_CHECKING:
    from twinseg.worker import Request

PROTOCOL = 1


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

    Gives ``{"model": its hash, "delta": the adapted model's name in the twin, or null, "twin": the pseudonym of that
    twin, or null, "model_title": the model's file's name, "task", "computed": where, in words, "seconds", "missing":
    sequences that were not given, "volumes_ml": {region: {"volume", "low", "high", "level": the share that the interval
    should hold}}}``.
    """
    started = time.perf_counter()
    fields = request.fields
    request.progress(0.0, "loading the model")
    task = load_task(field(fields, "task", str))
    path = field(fields, "model", str, None)
    model, delta, twin = model_of(path, task), None, None
    if (folder := field(fields, "twin", str, None)) is not None:
        from twinseg.twin.adaptation_delta import adapted_network  # what twins need may be missing where none is kept

        twin = of_twins.open_twin(folder, task)
        model, delta = adapted_network(twin, model)
    device = inference.choose_device(field(fields, "device", str, "auto"))
    flips, labels = field(fields, "flips", bool, False), Path(field(fields, "labels", str))
    uncertainty = Path(wanted) if (wanted := field(fields, "uncertainty", str, None)) else None
    request.progress(0.02, "reading the images")
    case = read_case(fields, model.task)
    check_outputs([labels, *filter(None, [uncertainty])])
    with computing(model.network, device, request.check):
        result = inference.segment(
            model.network,
            case,
            model.task,
            device=device,
            flips=flips,
            uncertainty=uncertainty is not None,
            calibration=model.calibration,
            report=lambda done, stage: request.progress(0.05 + 0.95 * done, stage),
        )
    contents = {labels: array_file(result.labels.array)}
    if uncertainty is not None and result.uncertainty is not None:
        contents[uncertainty] = array_file(result.uncertainty.array)
    with request.publishing():
        write_all(contents)
    return {
        "model": model.hash,
        "delta": delta,
        "twin": twin.pseudonym if twin is not None and delta is not None else None,
        "model_title": Path(path or starter_model(task.name)).stem,
        "task": task.name,
        "computed": result.computed,
        "seconds": round(time.perf_counter() - started, 3),
        "missing": [sequence.name for sequence in model.task.sequences if sequence.name not in case.images],
        "volumes_ml": result.volumes,
    }


def read_case(fields: Mapping[str, Any], task: Task) -> LoadedCase:
    """The images of a request, on the grid of its reference. Raises InputError for images that cannot be segmented."""
    volumes = read_images(fields, task)
    if (chosen := field(fields, "reference", str)) not in volumes:
        raise InputError(f"{chosen}: the result should lie on its grid, but it is not among the images; choose it")
    reference = volumes[chosen]
    on_grid = {name: put_on_grid(volume, reference, Path(name), Path(chosen)) for name, volume in volumes.items()}
    return LoadedCase(on_grid, reference, None)


REQUESTS: dict[str, Callable[[Request], dict[str, Any]]] = {
    "hello": hello,
    "segment": segment,
    "deltas": of_twins.deltas,
    "add_time_point": of_twins.add_time_point,
    "adapt": of_twins.adapt,
    "roll_back": of_twins.roll_back,
    "forecast": of_twins.forecast,
    "report": of_twins.report,
}
