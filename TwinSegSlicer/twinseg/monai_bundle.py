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
MONAI and `import_bundle` alike open it with ``weights_only=True``, which refuses anything else. MONAI evaluates texts
in a configuration as Python; therefore what comes from a model file enters one as numbers or letters only, and the rest
stands in files of its own. Importing evaluates nothing.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import InputError
from .model_file import BATCHNORM_COUNTER, DType, ModelCard, check_tensor, load_model, save_model
from .tasks import Task, load_task
from .volumes import write_atomically

if TYPE_CHECKING:
    import torch

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_CARD, _TASK, _WEIGHTS = "models/card.json", "configs/task.toml", "models/model.pt"


def export_bundle(model_path: str | Path, folder: str | Path) -> None:
    """Write a model as a MONAI bundle into a new or empty folder.

    Raises:
        InputError: the model cannot be read or is of a kind that no bundle is made of, or the folder holds something.
        OutOfSpaceError: no space left; the folder is removed again.
    """
    import torch

    model, folder = load_model(model_path), Path(folder)
    network = _network_definition(model.card)
    weights = io.BytesIO()
    torch.save(model.tensors, weights)
    card = {name: getattr(model.card, name) for name in ("network", "provenance", "dtype", "hash")}
    files = {
        "LICENSE": _license(model.card).encode(),
        "docs/README.md": _readme(model.card).encode(),
        "configs/inference.json": _json(_inference(model.card.task, network)),
        _TASK: model.card.task.to_toml().encode(),
        _CARD: _json(card),
        _WEIGHTS: weights.getvalue(),
        "configs/metadata.json": _json(_metadata(model.card)),
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
    task, tensors = load_task(folder / _TASK), _read_weights(folder / _WEIGHTS)
    dtype: DType = "float16" if card["dtype"] == "float16" and _fits_float16(tensors) else "float32"
    network = card["network"]
    written = save_model(path, tensors, task=task, network=network, provenance=card["provenance"], dtype=dtype)
    if written == card["hash"]:
        return written
    provenance = {"parent": card["hash"], "source": "a MONAI bundle that was changed after its export"}
    return save_model(path, tensors, task=task, network=network, provenance=provenance, dtype=dtype)


def _network_definition(card: ModelCard) -> dict[str, Any]:
    """The ``network_def`` of the inference configuration."""
    kind = card.network.get("kind")
    if kind not in ("vit-unet", "densenet121"):
        raise InputError(
            f"{card.path}: a network of kind {kind!r} has no MONAI bundle. Use a ViT-UNet or DenseNet-121."
        )
    if not all(re.fullmatch("[a-z]\\w*", key) and _is_harmless(value) for key, value in card.network.items()):
        raise InputError(f"{card.path}: its network has entries that MONAI could run as code. Use another model.")
    if kind == "vit-unet":
        config = {"_target_": "twinseg.network.NetworkConfig.from_dict", "values": card.network}
        return {"_target_": "twinseg.network.build_network", "config": config}
    channels = {key: card.network.get(key) for key in ("in_channels", "out_channels")}
    return {"_target_": "DenseNet121", "spatial_dims": card.network.get("spatial_dims", 2), **channels}


def _is_harmless(value: Any) -> bool:
    """Whether a value is a number, a plain word or a list of such: nothing that MONAI would evaluate or instantiate."""
    if isinstance(value, list):
        return all(map(_is_harmless, value))
    return (
        value is None
        or isinstance(value, int | float)
        or (isinstance(value, str) and re.fullmatch(r"[\w-]*", value) is not None)
    )


def _inference(task: Task, network: dict[str, Any]) -> dict[str, Any]:
    """``inference.json``. It runs without pytorch-ignite: a list of cases needs no engine."""
    imports = ["import collections", "import glob", "import numpy", "import os", "import torch"]
    imports += ["from monai.utils import convert_to_dst_type"]
    imports += ["from twinseg.preprocessing import normalize", "from twinseg.preprocessing import label_values"]
    imports += [f"from twinseg.volumes import {name}" for name in ("Volume", "read_picture", "write_volume")]
    load = "@network.load_state_dict(torch.load(@ckpt_path, map_location=@device, weights_only=True))"
    predict = "{**case, 'pred': @inferer(case['image'][None].to(@device), @network)[0]}"
    return {
        "imports": [f"${statement}" for statement in imports],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "ckpt_path": f"$@bundle_root + '/{_WEIGHTS}'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "task": {"_target_": "twinseg.tasks.load_task", "name_or_path": f"$@bundle_root + '/{_TASK}'"},
        "network_def": network,
        "network": "$@network_def.to(@device).eval().requires_grad_(False)",
        **(_segmentation_steps() if task.kind == "segmentation" else _classification_steps()),
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "initialize": ["$os.makedirs(@output_dir, exist_ok=True)", f"${load}"],
        "run": [f"$collections.deque((@postprocessing({predict}) for case in @dataset), maxlen=0)"],
    }


def _segmentation_steps() -> dict[str, Any]:
    normalize = "numpy.stack([normalize(sequence, @task) for sequence in image.array])"
    # MONAI 1.6's SaveImaged refuses images whose axes are not those of the world; ours keeps every affine.
    file = "@output_dir + '/' + os.path.basename(os.path.dirname(pred.meta['filename_or_obj'])) + '.nii.gz'"
    write = f"write_volume({file}, Volume(pred.array[0].astype('uint16'), pred.affine.numpy()))"
    return {
        "datalist": "$[{'image': [os.path.join(case, s.name + '.nii.gz') for s in @task.sequences]}"
        " for case in sorted(glob.glob(@dataset_dir + '/*/'))]",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
                {"_target_": "Spacingd", "keys": "image", "pixdim": "$@task.spacing", "mode": "bilinear"},
                {
                    "_target_": "Lambdad",
                    "keys": "image",
                    "func": f"$lambda image: convert_to_dst_type({normalize}, image)[0]",
                },
            ],
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": "$@task.patch",
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {
                    "_target_": "MapLabelValued",
                    "keys": "pred",
                    "orig_labels": "$list(range(1 + len(@task.labels)))",
                    "target_labels": "$label_values(@task)",
                },
                {"_target_": "Lambdad", "keys": "pred", "func": f"$lambda pred: {write}"},
            ],
        },
    }


def _classification_steps() -> dict[str, Any]:
    return {
        "datalist": "$[{'image': file, 'file': file} for file in sorted(glob.glob(@dataset_dir + '/*'))]",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "Lambdad",
                    "keys": "image",
                    "func": "$lambda file: torch.as_tensor(read_picture(file))[None]",
                },
                {"_target_": "Resized", "keys": "image", "spatial_size": "$@task.patch[:2]"},
                {"_target_": "Lambdad", "keys": "image", "func": "$lambda image: normalize(image.array, @task)"},
            ],
        },
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {
                    "_target_": "Lambdad",
                    "keys": "pred",
                    "func": "$lambda pred: print(dict(zip(@task.classes, pred.tolist())))",
                },
            ],
        },
    }


def _metadata(card: ModelCard) -> dict[str, Any]:
    import monai
    import numpy
    import torch

    task, version = card.task, str(card.provenance.get("version"))
    segmentation = task.kind == "segmentation"
    shape: list[Any] = list(task.patch[:2])
    if segmentation:
        shape = [f"{prod(stride[axis] for stride in task.strides)}*n" for axis in range(3)]
    common = {"spatial_shape": shape, "dtype": "float32", "value_range": [], "is_patch_data": segmentation}
    image = {
        "type": "image",
        "format": "magnitude" if task.modality == "MR" else "hounsfield",
        "modality": task.modality,
        "num_channels": len(task.sequences),
        "channel_def": _numbered(sequence.title for sequence in task.sequences),
    }
    names = ["background", *(label.title for label in task.labels)] if segmentation else list(task.classes)
    prediction = {
        "type": "image" if segmentation else "probabilities",
        "format": "segmentation" if segmentation else "classes",
        "num_channels": len(names),
        "channel_def": _numbered(names),
    }
    return {
        "schema": SCHEMA,
        "version": version if re.fullmatch(r"\d+(\.\d+)*", version) else "0.1.0",
        "changelog": {"0.1.0": "exported"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": numpy.__version__,
        "required_packages_version": {"twinsegslicer": __version__},
        "name": _inert(task.title),
        "task": _inert(f"{task.title}: {task.kind}"),
        "description": _inert(f"{task.title}, {task.kind} of {', '.join(s.title for s in task.sequences)}"),
        "authors": "exported by TwinSegSlicer",
        "copyright": "see LICENSE",
        "network_data_format": {
            "inputs": {"image": {**image, **common}},
            "outputs": {"pred": {**prediction, **common}},
        },
    }


def _numbered(names: Any) -> dict[str, str]:
    return {str(index): _inert(name) for index, name in enumerate(names)}


def _inert(text: str) -> str:
    """A text without the signs that MONAI's configurations give a meaning: $ (code), @ (reference), % (macro)."""
    return re.sub(r"[$@%]", "", text)


def _readme(card: ModelCard) -> str:
    task = card.task
    sequences = "\n".join(f"- `{sequence.name}.nii.gz`: {sequence.title}" for sequence in task.sequences)
    labels = "\n".join(f"- {label.value}: {label.title}" for label in task.labels)
    if task.kind == "segmentation":
        usage = f"`data` holds a folder for each case with\n\n{sequences}\n\nThe label maps in `eval` have\n\n{labels}"
    else:
        usage = f"`data` holds the pictures; printed are the probabilities of {', '.join(task.classes)}."
    return f"""# {task.title}

A model of TwinSegSlicer as a MONAI bundle. Not for clinical use.

Needs `pip install twinsegslicer fire`. In the bundle's folder:

    python -m monai.bundle run --config_file configs/inference.json --dataset_dir data --output_dir eval

{usage}

MONAI's own transforms prepare the images here. TwinSegSlicer's `twinseg segment` also crops to the head, takes missing
sequences and cleans up small components, so that results differ a little.

`twinseg model import` turns the bundle, trained further or not, into a model file again.

## Provenance

Model file {card.hash}

```json
{json.dumps(card.provenance, indent=2, ensure_ascii=False)}
```
"""


def _license(card: ModelCard) -> str:
    unstated = "not stated. Whoever passes this bundle on must state here what the training data allow"
    return f"""The files in configs and docs are under the Apache License, Version 2.0
(SPDX-License-Identifier: Apache-2.0), https://www.apache.org/licenses/LICENSE-2.0

The weights in models: {card.provenance.get("license", unstated)}.
"""


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / _CARD
    try:
        card = json.loads(path.read_bytes())
        if not (isinstance(card["network"], dict) and isinstance(card["provenance"], dict)):
            raise TypeError("network and provenance must be JSON objects")
        return {**card, "hash": str(card["hash"]), "dtype": card["dtype"]}
    except OSError as error:
        raise InputError(
            f"{folder}: not a bundle of TwinSegSlicer ({_CARD} cannot be read: {error.strerror}). Name the folder that "
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
