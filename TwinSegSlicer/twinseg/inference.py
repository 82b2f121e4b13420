"""Segmentation of a case by a trained network: the whole volume in one pass where it fits, else in windows.

When memory runs out the next smaller way is taken (whole on the GPU, windows on the GPU, the CPU) and said. A callback
is told how far the work is and may stop it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import psutil
import torch
from monai.data.utils import compute_importance_map
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from twinseg.calibration import Calibration
from twinseg.cases import LoadedCase
from twinseg.errors import Cancelled, InputError, OutOfSpaceError
from twinseg.network import ViTUNet
from twinseg.preprocessing import PreparedCase, label_values, prepare, restore, restore_labels
from twinseg.region_volumes import region_volumes
from twinseg.tasks import Task
from twinseg.volumes import Volume

logger = logging.getLogger(__name__)

Triple = tuple[int, int, int]
Report = Callable[[float, str], bool | None]
"""Told the share that is done (0 to 1) and the stage in words; stops the work by returning True."""

BYTES_A_FEATURE = 18
"""Peak memory of a pass is about this times the voxels times the channels at full resolution (bfloat16, measured)."""

OVERLAP = 0.5
"""Share of a window that its neighbour covers too."""


@dataclass(frozen=True)
class Segmentation:
    """What `segment` gives, on the case's own grid.

    Attributes:
        labels: (X, Y, Z) label map with the task's label values, with the reference image's affine.
        uncertainty: (X, Y, Z) float32, or None: entropy of the class probabilities, 0 (sure) to 1 (all classes alike).
        computed: where and how it was computed, in words.
        volumes: by region ``{"volume", "low", "high"}`` in mL, and how sure the interval is, ``"level"``
            (`region_volumes`).
    """

    labels: Volume
    uncertainty: Volume | None
    computed: str
    volumes: dict[str, dict[str, float]]


def segment(
    network: ViTUNet,
    case: LoadedCase,
    task: Task,
    *,
    device: torch.device | str = "cpu",
    flips: bool = False,
    uncertainty: bool = False,
    calibration: Calibration | None = None,
    report: Report = lambda done, stage: None,
) -> Segmentation:
    """Segment a case. `flips` averages over mirrored copies: slower, a little better.

    calibration: that of the network; it is left aside for a case that lacks a sequence which all calibrated ones had.
    Raises Cancelled when `report` asks for it, OutOfSpaceError when no way fits the memory.
    """
    _tell(report, 0.0, "preparing the images")
    prepared = prepare(case, task)
    probabilities, computed = predict_anywhere(network, prepared.image, task, device, flips=flips, report=report)
    _tell(report, 0.9, "putting the result on the image's grid")
    labels = draw(probabilities, prepared, case.reference, task)
    if calibration is not None and not calibration.holds_for(case.images):
        calibration = None
    volumes = region_volumes(labels, probabilities, prepared, task, calibration)
    entropy = None
    if uncertainty:
        entropy = Volume(restore(normalized_entropy(probabilities), prepared, case.reference), case.reference.affine)
    _tell(report, 1.0, "done")
    return Segmentation(labels, entropy, computed, volumes)


def draw(probabilities: NDArray[np.float32], prepared: PreparedCase, reference: Volume, task: Task) -> Volume:
    """The label map that class probabilities (classes, X, Y, Z) on the grid of `prepared` give on the reference's."""
    channels = restore_labels(probabilities, prepared, reference)
    values = np.asarray(label_values(task), np.uint8 if max(label_values(task)) < 256 else np.uint16)
    return Volume(clean_up(values[channels], task, reference.voxel_ml), reference.affine)


def predict_anywhere(
    network: ViTUNet,
    image: NDArray[np.float32],
    task: Task,
    device: torch.device | str,
    *,
    flips: bool = False,
    report: Report = lambda done, stage: None,
) -> tuple[NDArray[np.float32], str]:
    """`predict` in the largest way that fits the memory, and in words which one that was."""
    device = torch.device(device)
    x, y, z = (
        -(-size // (2 * step)) * step for size, step in zip(task.patch, network.config.total_stride, strict=True)
    )
    smaller = (x, y, z)
    ways: list[tuple[torch.device, Triple | None]] = [(device, None), (device, task.patch), (device, smaller)]
    if device.type != "cpu":
        cpu = torch.device("cpu")
        ways += [(cpu, None), (cpu, task.patch), (cpu, smaller)]
    for way_device, window in ways:
        name = f"{way_device.type}, " + (
            "whole volume" if window is None else f"windows of {'×'.join(map(str, window))}"
        )
        size = image.shape[1:] if window is None else window
        needed = BYTES_A_FEATURE * network.config.channels[0] * int(np.prod(size))
        needed *= 1 if uses_bfloat16(way_device) else 2
        if needed > free_memory(way_device):
            logger.warning("%s would need %.1f GB of memory; a smaller way is taken", name, needed / 1e9)
            continue
        try:
            return predict(network, image, task, way_device, window=window, flips=flips, report=report), name
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            logger.warning("%s ran out of memory; a smaller way is taken", name)
        # Only here, as the error held on to the frames and so to the tensors of the pass that failed.
        release_memory(way_device)
    raise OutOfSpaceError("not enough memory to segment this case: close other programs, or use a machine with more")


def predict(
    network: ViTUNet,
    image: NDArray[np.float32],
    task: Task,
    device: torch.device | str = "cpu",
    *,
    window: Triple | None = None,
    flips: bool = False,
    report: Report = lambda done, stage: None,
) -> NDArray[np.float32]:
    """Class probabilities (classes, X, Y, Z) of an image (C, X, Y, Z): in one pass, or in overlapping windows.

    Windows are blended by a Gaussian (Isensee et al. 2021, nnU-Net). Flips mirror along the axes that the task allows.
    """
    device = torch.device(device)
    network = network.to(device).eval()
    size = (image.shape[1], image.shape[2], image.shape[3])
    places = [(slice(None), slice(None), slice(None))] if window is None else window_places(size, window)
    turns: list[list[int]] = [[], *([axis + 1] for axis in task.flip_axes if flips)]
    one_pass = len(turns) * len(places) == 1
    if not one_pass:
        total, weight = torch.zeros((network.config.out_channels, *size)), torch.zeros(size)
        importance = torch.ones(size) if window is None else compute_importance_map(window, "gaussian", 0.125)
    with torch.inference_mode(), autocast(device):
        for step, (turn, place) in enumerate(product(turns, places)):
            part = torch.from_numpy(np.ascontiguousarray(image[(slice(None), *place)]))
            turned = part.flip(turn) if turn else part
            logits = network(turned[None].to(device))[0].contiguous()  # what follows is slow on channels-last memory
            scores = logits.softmax(0, dtype=torch.float32).cpu()
            _tell(report, 0.1 + 0.8 * (step + 1) / (len(turns) * len(places)), "segmenting")
            if one_pass:
                return scores.numpy()
            share = importance[tuple(slice(0, length) for length in part.shape[1:])]
            total[(slice(None), *place)] += scores.flip(turn) * share
            weight[place] += share
    return (total / weight).numpy()


def window_places(size: Triple, window: Triple) -> list[tuple[slice, slice, slice]]:
    """Where windows lie so that they cover an image evenly, each overlapping the next by at least `OVERLAP`."""
    along = []
    for length, width in zip(size, window, strict=True):
        count = 1 if length <= width else int(np.ceil((length - width) / (width * (1 - OVERLAP)))) + 1
        starts = np.linspace(0, max(0, length - width), count).round().astype(int)
        along.append([slice(int(start), int(min(start + width, length))) for start in starts])
    return [(x, y, z) for x, y, z in product(*along)]


def normalized_entropy(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Entropy of class probabilities (classes, X, Y, Z), divided by its largest value log(classes): 0 to 1."""
    tensor = torch.from_numpy(probabilities)
    return (torch.special.entr(tensor).sum(0) / np.log(len(tensor))).clamp(0, 1).numpy()


def clean_up(labels: NDArray[Any], task: Task, voxel_ml: float) -> NDArray[Any]:
    """Without connected components that the task calls too small (or all but the largest)."""
    boxes = ndimage.find_objects((labels > 0).view(np.uint8))
    if not boxes or not (task.cleanup.smallest_ml or task.cleanup.keep_largest):
        return labels
    inside = labels[boxes[0]]
    components, count = ndimage.label(inside > 0, np.ones((3, 3, 3)))
    millilitres = np.bincount(components.ravel()) * voxel_ml
    kept = millilitres >= task.cleanup.smallest_ml
    if task.cleanup.keep_largest:
        kept = np.arange(count + 1) == 1 + int(np.argmax(millilitres[1:]))
    result = labels.copy()
    result[boxes[0]] = np.where(kept[components], inside, 0)
    return result


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name (auto, cpu, cuda, cuda:1, mps); auto takes the GPU with the most free memory, or the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            free = [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())]
            return torch.device("cuda", int(np.argmax(free)))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("it is none of cpu, cuda and mps")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used here ({reason}): use --device cpu or auto") from error
    return device


def autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bfloat16 where the device is faster with it."""
    return torch.autocast(device.type, torch.bfloat16) if uses_bfloat16(device) else contextlib.nullcontext()


def uses_bfloat16(device: torch.device) -> bool:
    """Whether a network is computed in bfloat16: on GPUs since 2020, and on CPUs that have units for it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bfloat16_is_faster()


@lru_cache(maxsize=1)
def bfloat16_is_faster() -> bool:
    """Whether this CPU convolves faster in bfloat16 than in float32: timed once, in some 50 ms.

    A small image tells first where it is hopeless: without units for bfloat16 the larger one would take seconds.
    """
    if _convolution_seconds(torch.bfloat16, 4) > 5 * _convolution_seconds(torch.float32, 4):
        return False
    return _convolution_seconds(torch.bfloat16, 16) < _convolution_seconds(torch.float32, 16)


def _convolution_seconds(dtype: torch.dtype, side: int) -> float:
    """Of a convolution of two cubic images with this many voxels along each side (one in float32 would go to torch's
    slow convolution: see `network.SoundConv3d`). The fastest of five tries counts, so that other work on the machine
    does not decide how a network is computed."""
    layer = nn.Conv3d(32, 32, 3, padding=1).to(dtype).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    x = torch.zeros(2, 32, side, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
    tries = []
    with torch.inference_mode():
        layer(x)
        for _ in range(5):
            started = time.perf_counter()
            layer(x)
            tries.append(time.perf_counter() - started)
    return min(tries)


def free_memory(device: torch.device) -> int:
    """Bytes that may be taken on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def release_memory(device: torch.device) -> None:
    """Give memory that torch keeps for itself back to the GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)
        or "out of memory" in text
        or "not enough memory" in text
    )


def _tell(report: Report, done: float, stage: str) -> None:
    if report(done, stage):
        raise Cancelled(stage)
