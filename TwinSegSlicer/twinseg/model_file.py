"""Model files: one ``.safetensors`` file with the weights, and in its header the model's card.

The header's metadata (strings, as the safetensors format asks) holds

- ``twinseg_format``: the version of this layout, ``"1"``,
- ``task``: the task's TOML, whole,
- ``network``: the network's configuration as JSON,
- ``provenance``: data, parent model, commit, metrics, date, seed and the like as JSON,
- ``content_hash``: SHA-256 over the tensors in the order of their names (name, dtype, shape, little-endian bytes) and
  over the rest of the metadata, each piece preceded by its length, so that equal models have equal hashes wherever
  and in whatever order they were written.

Nothing is ever unpickled. Reading a card touches the header alone and does not import torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from twinseg.errors import InputError
from twinseg.home import data_folder
from twinseg.tasks import Task
from twinseg.volumes import write_atomically

if TYPE_CHECKING:
    import torch

FORMAT = "1"
LARGEST_HEADER = 4 * 2**20  # bytes; a card with a thousand tensors takes about 0.1 MB
BATCHNORM_COUNTER = "num_batches_tracked"
DType = Literal["float32", "float16"]
_DTYPE_NAMES = {"float32": "F32", "float16": "F16"}


@dataclass(frozen=True)
class ModelCard:
    """What a model file says of itself.

    ``parameters`` counts the numbers stored, running statistics included; ``dtype`` is how they are stored.
    """

    task: Task
    network: dict[str, Any]
    provenance: dict[str, Any]
    hash: str
    parameters: int
    dtype: DType
    path: Path


@dataclass(frozen=True)
class Model:
    """A card and its weights: name -> float32 tensor on the CPU, ready for ``load_state_dict``."""

    card: ModelCard
    tensors: dict[str, torch.Tensor]


def save_model(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    task: Task,
    network: Mapping[str, Any],
    provenance: Mapping[str, Any],
    dtype: DType = "float32",
) -> str:
    """Write a model file atomically and return its content hash.

    BatchNorm's step counters (``num_batches_tracked``, the only integers in a usual state dict) are left out:
    ``load_state_dict`` of a plain dict does without them. In ``provenance`` a NaN or an infinity becomes null.

    Args:
        path: the file to write, by convention ``*.safetensors``.
        tensors: a state dict; every tensor is stored as ``dtype``.
        task: the task that the model solves.
        network: the network's configuration, as ``twinseg.network`` rebuilds it.
        provenance: where the model comes from.
        dtype: float16 halves the file; weights of a trained network lose about three significant digits of seven.

    Raises:
        InputError: a tensor is not of a float type, or holds NaN or infinity (float16: a value beyond 65504).
        OutOfSpaceError: no space left; nothing half-written stays behind.
    """
    import safetensors.torch
    import torch

    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(BATCHNORM_COUNTER):
            continue
        check_tensor(path, name, tensor)
        stored[name] = tensor.detach().to("cpu", getattr(torch, dtype), copy=True).contiguous()
        if not torch.isfinite(stored[name]).all():
            raise InputError(f"{path}: tensor {name} has values beyond {dtype}'s range. Save the model as float32.")
    metadata = {
        "twinseg_format": FORMAT,
        "task": task.to_toml(),
        "network": _to_json(network),
        "provenance": _to_json(provenance),
    }
    metadata["content_hash"] = _content_hash(stored, metadata)
    content = safetensors.torch.save(stored, metadata)
    if int.from_bytes(content[:8], "little") > LARGEST_HEADER:
        raise InputError(f"{path}: the card would exceed {LARGEST_HEADER // 2**20} MB. Shorten the provenance.")
    write_atomically(path, content)
    return metadata["content_hash"]


def read_card(path: str | Path) -> ModelCard:
    """Read a model's card from the header alone, in milliseconds; the content hash is told, not verified.

    Raises:
        InputError: not a model file, or one of an unknown format version.
    """
    with _open(path, "numpy") as file:
        return _card(Path(path), file)


def load_model(path: str | Path, *, expected_task: Task | None = None) -> Model:
    """Read a model and verify its content hash.

    Args:
        path: a file written by :func:`save_model`.
        expected_task: if given, the model must have been made for this task: the same name, sequences in the same
            order, labels and classes. What may be edited later (titles, colours, synonyms, spacing) may differ.

    Raises:
        InputError: not a model file, damaged or altered, unknown format version, not all float tensors, NaN or
            infinity in a tensor, or a model for another task.
    """
    import torch

    path = Path(path)
    with _open(path, "pt") as file:
        card, metadata = _card(path, file), file.metadata()
        # Copies, so that the file is not held open (Windows could not replace it) and cannot change after the check.
        stored = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    if expected_task is not None:
        _check_task(card, expected_task)
    for name, tensor in stored.items():
        check_tensor(path, name, tensor, ("float32", "float16"))
    del metadata["content_hash"]
    if _content_hash(stored, metadata) != card.hash:
        raise InputError(f"{path}: the content does not match its hash: it was damaged or altered. Fetch it again.")
    return Model(card, {name: tensor.to(torch.float32) for name, tensor in stored.items()})


def check_tensor(
    path: str | Path,
    name: str,
    tensor: torch.Tensor,
    dtypes: tuple[str, ...] = ("float64", "float32", "float16", "bfloat16"),
) -> None:
    """Raise an InputError that names ``path`` where a tensor is not of one of the types or holds NaN or infinity."""
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in dtypes:
        wanted = " or ".join(dtypes)
        raise InputError(f"{path}: tensor {name} is {dtype}, but a model holds {wanted} only. Use another model.")
    if not torch.isfinite(tensor).all():
        raise InputError(f"{path}: tensor {name} holds NaN or infinity. Use another model or train again.")


def store_model(path: str | Path) -> Path:
    """Put a verified copy of a model into the data folder as ``models/<content hash>.safetensors``; return its path.

    Raises:
        InputError: as :func:`load_model`.
        OutOfSpaceError: no space left.
    """
    target = data_folder() / "models" / f"{load_model(path).card.hash}.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, Path(path).read_bytes())
    return target


@contextmanager
def _open(path: str | Path, framework: str) -> Iterator[Any]:
    """Open a safetensors file after looking at its first bytes, with every fault as an InputError."""
    import safetensors

    try:
        size = Path(path).stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Name a .safetensors model file.") from error
    header = int.from_bytes(start, "little")
    if start.startswith((b"PK\x03\x04", b"\x80")) and header > LARGEST_HEADER:
        raise InputError(
            f"{path}: a pickle or zip archive, which could run code when opened; it was not. Name a .safetensors model "
            "file, or import a MONAI bundle's folder."
        )
    if len(start) < 8 or header > LARGEST_HEADER or header + 8 > size:
        raise InputError(f"{path}: not a .safetensors file, or cut short. Fetch it again or name another model file.")
    try:
        with safetensors.safe_open(path, framework=framework) as opened:
            yield opened
    except safetensors.SafetensorError as error:
        raise InputError(
            f"{path}: damaged or cut short ({error}). Fetch it again or name another model file."
        ) from error


def _card(path: Path, file: Any) -> ModelCard:
    metadata = file.metadata() or {}
    missing = {"twinseg_format", "task", "network", "provenance", "content_hash"} - metadata.keys()
    if "twinseg_format" in missing:
        raise InputError(f"{path}: has tensors but no model card. Use a model that twinseg train or import wrote.")
    if metadata["twinseg_format"] != FORMAT:
        found = metadata["twinseg_format"][:20]
        raise InputError(f"{path}: format version {found!r}, this program reads {FORMAT!r}. Update TwinSegSlicer.")
    try:
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        task = Task.from_toml(metadata["task"])
        network, provenance = json.loads(metadata["network"]), json.loads(metadata["provenance"])
        if not isinstance(network, dict) or not isinstance(provenance, dict):
            raise ValueError("network and provenance must be JSON objects")
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: the model card is damaged ({reason}). Fetch the model again.") from error
    slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118
    parameters = sum(math.prod(part.get_shape()) for part in slices)
    dtype: DType = "float16" if any(part.get_dtype() == "F16" for part in slices) else "float32"
    return ModelCard(task, network, provenance, metadata["content_hash"], parameters, dtype, path)


def _content_hash(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over tensors and metadata in name order; a length before each piece keeps the pieces apart."""
    import numpy as np

    digest = hashlib.sha256()

    def add(pieces: Iterable[Any]) -> None:
        for piece in pieces:
            digest.update(len(piece).to_bytes(8, "little"))
            digest.update(piece)

    add([len(tensors).to_bytes(8, "little")])
    for name, tensor in sorted(tensors.items()):
        array = tensor.contiguous().numpy()
        kind = json.dumps([name, _DTYPE_NAMES[array.dtype.name], list(array.shape)])
        little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
        add([kind.encode(), little_endian.reshape(-1).view(np.uint8)])
    for key, value in sorted(metadata.items()):
        add([key.encode(), value.encode()])
    return digest.hexdigest()


def _check_task(card: ModelCard, expected: Task) -> None:
    """A model fits a task when both agree on what goes into the network and what its outputs mean."""

    def facing(task: Task) -> dict[str, Any]:
        return {
            "task": task.name,
            "kind": task.kind,
            "sequences": [sequence.name for sequence in task.sequences],
            "labels": [label.value for label in task.labels],
            "classes": list(task.classes),
        }

    found, wanted = facing(card.task), facing(expected)
    for key, value in found.items():
        if value != wanted[key]:
            raise InputError(
                f"{card.path}: a model for another task: its {key} is {value}, wanted is {wanted[key]}. "
                f"Use a model for {expected.name} or name the task {card.task.name}."
            )


def _to_json(value: Mapping[str, Any]) -> str:
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """The JSON equivalent of a value: arrays and tensors as lists or numbers, NaN as None, paths and dates as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
