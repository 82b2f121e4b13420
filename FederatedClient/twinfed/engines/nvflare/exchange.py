"""What server and site send each other through NVFlare: named arrays, and one JSON text beside them.

An update travels in one of three forms: its `differences` or the local `weights` as float32 arrays by name, which
NVFlare's filters can read, or the update's whole file as one array of bytes (`packed`), which keeps the compression.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from twinfed.client.errors import INPUT_ERRORS, Changed, Unreachable
from twinfed.engines.nvflare.job import PACKED, WEIGHTS
from twinfed.errors import Refusal, shown
from twinfed.wire import Header, Report, write_update

KEY = "twinfed"
"""Of the JSON text among a message's metadata."""
FILE = "update"
"""Name of the one array of a packed update."""
REGISTER = "register"
"""Task: say how many training cases there are. Besides it there are NVFlare's own train, validate and submit_model."""
FAULTS = (*INPUT_ERRORS, Unreachable, Changed, OSError, MemoryError)
"""What keeps a site from a task; it tells, and the others go on."""
INITIAL, FINAL = "initial", "final"
"""Owners of the models that are scored, besides the sites."""
Arrays = dict[str, NDArray[Any]]


def told(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a message's JSON text. Raises Refusal for none."""
    try:
        content = json.loads(meta[KEY])
        if not isinstance(content, dict):
            raise ValueError("no object")
        return content
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Refusal("malformed", "The message does not say what it is.", "Use this version of twinfed.") from error


def write_text(content: Mapping[str, Any]) -> dict[str, str]:
    """Metadata of a message."""
    return {KEY: json.dumps(content, allow_nan=False)}


def outgoing(update: Path, base: Path, form: str) -> Arrays:
    """The arrays of an update's file, to be added to (or, as weights, to stand for) the model in the file `base`."""
    if form == PACKED:
        return {FILE: np.frombuffer(update.read_bytes(), dtype=np.uint8)}
    change: Arrays = load_file(update)
    return summed(load_file(base), change) if form == WEIGHTS else change


def summed(base: Mapping[str, NDArray[np.float32]], change: Mapping[str, NDArray[np.float32]]) -> Arrays:
    """The weights that a change makes of a model; those without axes stay arrays, too."""
    return {name: np.asarray(array + change[name]) for name, array in base.items()}


def incoming(
    params: Mapping[str, Any],
    content: Mapping[str, Any],
    base: Mapping[str, NDArray[np.float32]],
    site: str,
    path: Path,
) -> None:
    """Write an update as it arrived to a file, which the aggregator's intake then checks as any other.

    Args:
        params: name -> array, in the form that `content` names.
        content: what the site says: form, federation, round, base, report.
        base: the round's model.
        site: who sent it, as NVFlare knows by its certificate.

    Raises:
        Refusal: it cannot even be written as an update.
    """
    form = content.get("form")
    arrays = {str(name): _array(name, array) for name, array in params.items()}
    if form == PACKED:
        if arrays.keys() != {FILE} or arrays[FILE].dtype != np.uint8 or arrays[FILE].ndim != 1:
            raise Refusal("malformed", "A packed update is one array of bytes.", "Encode and send it again.")
        path.write_bytes(arrays[FILE].tobytes())
        return
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise Refusal("wrong-dtype", f"Tensor {shown(name)} is {array.dtype}, not float32.", "Send float32.")
    if form == WEIGHTS:  # only where the shapes agree, as numpy would broadcast others silently
        arrays = {
            name: np.asarray(array - base[name]) if name in base and base[name].shape == array.shape else array
            for name, array in arrays.items()
        }
    number, names = content.get("round"), ("federation", "base")
    if type(number) is not int or any(type(content.get(name)) is not str for name in names):
        raise Refusal("malformed", "The update does not say what it is for.", "Use this version of twinfed.")
    header = Header(
        federation=content["federation"],
        round=number,
        site=site,
        base=content["base"],
        report=Report.from_dict(content.get("report")),
    )
    write_update(path, arrays, header)


def _array(name: object, value: Any) -> NDArray[Any]:
    """Raises Refusal for what is no array: NVFlare would otherwise fail later, and say less."""
    if not isinstance(value, np.ndarray):
        kind = type(value).__name__
        raise Refusal("wrong-dtype", f"Tensor {shown(name)} arrived as {kind}, not as array.", "Send numpy arrays.")
    return np.ascontiguousarray(value).reshape(value.shape)
