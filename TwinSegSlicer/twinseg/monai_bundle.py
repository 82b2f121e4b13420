"""MONAI bundles: a model in the folder layout that MONAI's tools run, and back.

::

    LICENSE                   what may be done with it
    docs/README.md            what it is and how to run it
    configs/metadata.json     the data formats, as MONAI's specification asks
    configs/inference.json    network, transforms and inferer for ``python -m monai.bundle run``
    configs/task.toml         our task, whole
    models/card.json          network, provenance, dtype and content hash of our model file
    models/model.pt           the weights: a plain state dict of float32 tensors

MONAI's tools read nothing but ``.pt``, so the weights are one here; ours is a plain mapping of names to tensors, and
MONAI and `import_bundle` alike open it with ``weights_only=True``, which refuses anything else. Importing
evaluates nothing that stands in a configuration. What stands in the files is in `monai_bundle_files`.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinseg.errors import InputError
from twinseg.model_file import BATCHNORM_COUNTER, DType, check_tensor, load_model, save_model
from twinseg.monai_bundle_files import (
    CARD,
    TASK,
    WEIGHTS,
    inference,
    license_text,
    metadata,
    network_definition,
    readme,
)
from twinseg.tasks import load_task
from twinseg.volumes import write_atomically

if TYPE_CHECKING:
    import torch


def export_bundle(model_path: str | Path, folder: str | Path) -> dict[str, Any]:
    """Write a model as a MONAI bundle into a new or empty folder.

    Returns:
        What was written: `files` (their paths) and `hash` (the model's content hash).

    Raises:
        InputError: the model cannot be read or is of a kind that no bundle is made of, or the folder holds something.
        OutOfSpaceError: no space left; the folder is removed again.
    """
    import torch

    model, folder = load_model(model_path), Path(folder)
    network = network_definition(model.card)
    weights = io.BytesIO()
    torch.save(model.tensors, weights)
    card = {name: getattr(model.card, name) for name in ("network", "provenance", "dtype", "hash")}
    files = {
        "LICENSE": license_text(model.card).encode(),
        "docs/README.md": readme(model.card).encode(),
        "configs/inference.json": _json(inference(model.card.task, network)),
        TASK: model.card.task.to_toml().encode(),
        CARD: _json(card),
        WEIGHTS: weights.getvalue(),
        "configs/metadata.json": _json(metadata(model.card)),
    }
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already and not empty. Name a new folder for the bundle.")
    try:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, content)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise InputError(f"{folder}: cannot be made ({error.strerror}). Name another folder.") from error
    except InputError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return {"files": [folder / name for name in files], "hash": model.card.hash}


def import_bundle(folder: str | Path, path: str | Path) -> str:
    """Write the model of a bundle that `export_bundle` made, trained further or not, as a model file.

    With nothing changed the model file has the content hash of the one that was exported. Else its provenance names
    that one as its parent, and what was measured on the parent is not claimed for it.

    Returns:
        The content hash.

    Raises:
        InputError: not such a bundle, or its weights are not a plain state dict of float tensors without NaN.
        OutOfSpaceError: no space left.
    """
    folder = Path(folder)
    card = _read_card(folder)
    task, tensors = load_task(folder / TASK), _read_weights(folder / WEIGHTS)
    dtype: DType = "float16" if card["dtype"] == "float16" and _fits_float16(tensors) else "float32"
    network = card["network"]
    written = save_model(path, tensors, task=task, network=network, provenance=card["provenance"], dtype=dtype)
    if written == card["hash"]:
        return written
    provenance = {"parent": card["hash"], "source": "a MONAI bundle that was changed after its export"}
    return save_model(path, tensors, task=task, network=network, provenance=provenance, dtype=dtype)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    try:
        card = json.loads(path.read_bytes())
        if not (isinstance(card["network"], dict) and isinstance(card["provenance"], dict)):
            raise TypeError("network and provenance must be JSON objects")
        return {**card, "hash": str(card["hash"]), "dtype": card["dtype"]}
    except OSError as error:
        raise InputError(
            f"{folder}: not a bundle of TwinSegSlicer ({CARD} cannot be read: {error.strerror}). Name the folder that "
            "twinseg model export wrote."
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: damaged ({reason}). Export the model again.") from error


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    import torch

    refused = (
        f"{path}: not a plain state dict of tensors, or damaged; nothing in it was run. Save network.state_dict()."
    )
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: is missing. Name the folder of a whole bundle.") from error
    except Exception as error:  # torch.load raises whatever its readers meet in a damaged file
        raise InputError(refused) from error
    if not isinstance(weights, dict) or not all(map(_is_plain_tensor, weights.values())):
        raise InputError(refused)
    tensors = {str(name): tensor for name, tensor in weights.items() if not str(name).endswith(BATCHNORM_COUNTER)}
    for name, tensor in tensors.items():
        check_tensor(path, name, tensor)
    return tensors


def _is_plain_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.layout is torch.strided


def _fits_float16(tensors: dict[str, torch.Tensor]) -> bool:
    return all(bool((tensor.half().to(tensor.dtype) == tensor).all()) for tensor in tensors.values())
