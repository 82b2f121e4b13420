"""A request's fields, the arrays that cross with it, and the files that it writes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinseg.errors import InputError
from twinseg.tasks import Task
from twinseg.volumes import Volume, check_intensities, one_volume, write_atomically

NO_DEFAULT = object()
KINDS = {str: "text", bool: "true or false", dict: "an object", list: "a list"}


def field(fields: Mapping[str, Any], name: str, kind: type, default: Any = NO_DEFAULT) -> Any:
    """A field of a request, or its default where it is missing or null. Raises InputError for one of another kind."""
    value = fields.get(name)
    if value is None and default is not NO_DEFAULT:
        return default
    if value is None or not isinstance(value, kind):
        fault = "is missing" if value is None else f"must be {KINDS[kind]}, not {str(value)[:40]!r}"
        raise InputError(f"{fields['do']}: the field {name!r} {fault}")
    return value


def number(name: str, value: Any) -> float:
    """A field that is a finite number. Raises InputError for any other."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise InputError(f"the field {name!r} must hold numbers, not {str(value)[:40]!r}")
    return float(value)


def read_images(fields: Mapping[str, Any], task: Task) -> dict[str, Volume]:
    """The images of a request by sequence, each on its own grid. Raises InputError for those that are no input."""
    images = field(fields, "images", dict)
    known = [sequence.name for sequence in task.sequences]
    if unknown := [name for name in images if name not in known]:
        raise InputError(f"{unknown[0]}: the task {task.name} has no such sequence; it has {', '.join(known)}")
    if not images:
        raise InputError(f"no image was chosen; choose at least one of {', '.join(known)}")
    return {name: read_volume(name, images[name]) for name in known if name in images}


def read_volume(name: str, entry: Any) -> Volume:
    """An image's array, float32, and affine. Raises InputError that names it."""
    array, affine = _read(name, entry)
    with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, which is told
        volume = Volume(np.asarray(array, np.float32, order="C"), affine)
    check_intensities(Path(name), volume.array)
    return volume


def read_segmentation(name: str, entry: Any) -> Volume:
    """A label map's array, whole numbers from 0 on, and affine. Raises InputError that names it."""
    array, affine = _read(name, entry)
    if array.dtype.kind == "f" or array.min() < 0:
        raise InputError(f"{name}: labels must be whole numbers from 0 on; write them as integers")
    return Volume(np.ascontiguousarray(array, np.min_scalar_type(int(array.max()))), affine)


def _read(name: str, entry: Any) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """An array (I, J, K) and its affine; its file is not held open, as it is removed when the request was cancelled."""
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
    return one_volume(Path(name), array, None), affine


def check_outputs(paths: list[Path]) -> None:
    """Raise InputError, before any work is done, for files that could not be written."""
    for path in paths:
        if not path.parent.is_dir():
            raise InputError(f"{path}: its folder does not exist; make it first")
    if len(set(paths)) < len(paths):
        raise InputError(f"{paths[0]}: two results need a file each; name two")


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
