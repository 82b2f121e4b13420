"""What stands in the files of a MONAI bundle: its configurations, metadata, README and licence.

MONAI evaluates texts in a configuration as Python; therefore what comes from a model file enters one as numbers or
letters only, and the rest stands in files of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from math import prod
from typing import Any

from twinseg import __version__
from twinseg.errors import InputError
from twinseg.model_file import ModelCard
from twinseg.tasks import Task

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
CARD, TASK, WEIGHTS = "models/card.json", "configs/task.toml", "models/model.pt"


def network_definition(card: ModelCard) -> dict[str, Any]:
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


def inference(task: Task, network: dict[str, Any]) -> dict[str, Any]:
    """``inference.json``. It runs without pytorch-ignite: a list of cases needs no engine."""
    segmentation = task.kind == "segmentation"
    imports = ["import collections", "import glob", "import os", "import torch"]
    imports += _SEGMENTATION_IMPORTS if segmentation else _CLASSIFICATION_IMPORTS
    load = "@network.load_state_dict(torch.load(@ckpt_path, map_location=@device, weights_only=True))"
    predict = "{**case, 'pred': @inferer(case['image'][None].to(@device), @network)[0]}"
    return {
        "imports": [f"${statement}" for statement in imports],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "ckpt_path": f"$@bundle_root + '/{WEIGHTS}'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "task": {"_target_": "twinseg.tasks.load_task", "name_or_path": f"$@bundle_root + '/{TASK}'"},
        "network_def": network,
        "network": "$@network_def.to(@device).eval().requires_grad_(False)",
        **(_segmentation_steps() if segmentation else _classification_steps()),
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "initialize": ["$os.makedirs(@output_dir, exist_ok=True)", f"${load}"],
        "run": [f"$collections.deque((@postprocessing({predict}) for case in @dataset), maxlen=0)"],
    }


_SEGMENTATION_IMPORTS = [
    "import numpy",
    "from monai.utils import convert_to_dst_type",
    "from twinseg.preprocessing import label_values",
    "from twinseg.preprocessing import normalize",
    "from twinseg.volumes import Volume",
    "from twinseg.volumes import write_volume",
]
_CLASSIFICATION_IMPORTS = [
    "from twinseg.classification_pictures import prepare_picture",
    "from twinseg.volumes import read_picture",
]


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
                    "func": "$lambda file: torch.from_numpy(prepare_picture(read_picture(file), @task))",
                },
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


def metadata(card: ModelCard) -> dict[str, Any]:
    """``metadata.json``: what goes in, what comes out, and which versions it was made with."""
    import monai
    import numpy
    import torch

    task, version = card.task, str(card.provenance.get("version"))
    segmentation = task.kind == "segmentation"
    shape: list[Any] = [task.patch[1], task.patch[0]]  # rows, columns
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


def _numbered(names: Iterable[str]) -> dict[str, str]:
    return {str(index): _inert(name) for index, name in enumerate(names)}


def _inert(text: str) -> str:
    """A text without the signs that MONAI's configurations give a meaning: $ (code), @ (reference), % (macro)."""
    return re.sub(r"[$@%]", "", text)


def readme(card: ModelCard) -> str:
    """The README: how to run the bundle, and where the model comes from."""
    task = card.task
    sequences = "\n".join(f"- `{sequence.name}.nii.gz`: {sequence.title}" for sequence in task.sequences)
    labels = "\n".join(f"- {label.value}: {label.title}" for label in task.labels)
    if task.kind == "segmentation":
        usage = f"`data` holds a folder for each case with\n\n{sequences}\n\nThe label maps in `eval` have\n\n{labels}"
        usage += (
            "\n\nMONAI's own transforms prepare the images here. TwinSegSlicer's `twinseg segment` also crops to the "
            "head, takes missing\nsequences and cleans up small components, so that results differ a little."
        )
    else:
        usage = f"`data` holds the pictures; printed are the probabilities of {', '.join(task.classes)}."
    return f"""# {task.title}

A model of TwinSegSlicer as a MONAI bundle. Not for clinical use.

Needs `pip install twinsegslicer fire`. In the bundle's folder:

    python -m monai.bundle run --config_file configs/inference.json --dataset_dir data --output_dir eval

{usage}

`twinseg model import` turns the bundle, trained further or not, into a model file again.

## Provenance

Model file {card.hash}

```json
{json.dumps(card.provenance, indent=2, ensure_ascii=False)}
```
"""


def license_text(card: ModelCard) -> str:
    """The licence of the files, and what the model says of its weights' own."""
    unstated = "not stated. Whoever passes this bundle on must state here what the training data allow"
    return f"""The files in configs and docs are under the Apache License, Version 2.0
(SPDX-License-Identifier: Apache-2.0), https://www.apache.org/licenses/LICENSE-2.0

The weights in models: {card.provenance.get("license", unstated)}.
"""
