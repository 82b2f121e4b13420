"""The ways to compute our network that `runtimes.py` sets side by side: torch, ours, ONNX Runtime, OpenVINO."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import inference
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from twinseg.network import ViTUNet

    Pass = Callable[[NDArray[np.float32]], NDArray[np.float32]]
    """From an image (sequences, X, Y, Z) to class probabilities (classes, X, Y, Z)."""


@dataclass(frozen=True)
class Job:
    """What all methods are given: the files of the model, of the prepared image and of the exported network, and the
    image's voxel size in mm."""

    model: Path
    image: Path
    exported: Path
    spacing: tuple[float, float, float]
    device: str


@dataclass(frozen=True)
class Method:
    """A way to compute the network. build: its pass, made ready; needs: the package it takes beyond torch;
    only_cpu: whether it is none for a GPU; compiles: whether it takes a minute to start."""

    name: str
    precision: str
    build: Callable[[Job], Pass]
    needs: str = ""
    only_cpu: bool = False
    compiles: bool = False


def by_torch(job: Job, *, bfloat16: bool, channels_last: bool) -> Pass:
    """The network as torch's own layers compute it, in the one or the other memory layout, in an ordinary process."""
    import torch

    if not channels_last:
        # The network asks for channels-last memory itself; in this process the name stands for the ordinary layout.
        torch.channels_last_3d = torch.contiguous_format
    device = inference.device_of(job.device)
    network = plain_network(job.model).to(device)

    def segment(image: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            return probabilities(network(torch.from_numpy(image)[None].to(device)))

    return segment


def by_ours(job: Job, *, in_worker: bool = False, compiled: bool = False) -> Pass:
    """What `twinseg.inference` does. in_worker: in a process that keeps freed memory, as the module's worker is one;
    compiled: by torch.compile."""
    from twinseg.inference import predict
    from twinseg.memory import keep_freed_memory
    from twinseg.segmentation import load_network

    if in_worker:
        keep_freed_memory()
    loaded, device = load_network(job.model), inference.device_of(job.device)
    if compiled:
        loaded.network.compile()
    return lambda image: predict(loaded.network, image, loaded.task, device)


def by_onnx_runtime(job: Job) -> Pass:
    """ONNX Runtime on the CPU."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(job.exported, options, providers=["CPUExecutionProvider"])
    return lambda image: probabilities(torch.from_numpy(session.run(None, {"image": image[None]})[0]))


def by_openvino(job: Job, *, precision: str) -> Pass:
    """OpenVINO on the CPU: its threads may run on all cores that torch's may."""
    import openvino
    import torch

    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(job.exported, "CPU", options).create_infer_request()
    return lambda image: probabilities(torch.from_numpy(request.infer([image[None]])[0]))


def export(job: Job) -> None:
    """Write the network as an ONNX file for images of the job's size, by torch's exporter or, failing that, its older
    one. Raises RuntimeError where both fail."""
    import torch

    warnings.simplefilter("ignore")  # what its exporters tell is not for who reads the table
    logging.disable(logging.WARNING)
    network = plain_network(job.model)
    image = torch.from_numpy(np.load(job.image))[None]
    failures = []
    for newer in (True, False):
        try:
            with torch.inference_mode():
                torch.onnx.export(network, (image,), job.exported, input_names=["image"], dynamo=newer, verbose=False)
            return
        except (RuntimeError, ImportError) as error:
            failures.append(str(error).splitlines()[0])
    raise RuntimeError("torch cannot export the network: " + "; ".join(failures))


def plain_network(model: Path) -> ViTUNet:
    """The network of a model file with torch's own instance normalisation, which exporters know, in place of ours."""
    from torch import nn

    from twinseg.network import InstanceNorm
    from twinseg.segmentation import load_network

    network = load_network(model).network
    for module in [*network.modules()]:
        for name, ours in module.named_children():
            if isinstance(ours, InstanceNorm):
                layer = nn.InstanceNorm3d(len(ours.weight), affine=True)
                layer.load_state_dict(ours.state_dict())
                setattr(module, name, layer)
    return network.eval()


def probabilities(logits: Tensor) -> NDArray[np.float32]:
    """Class probabilities (classes, X, Y, Z) on the CPU from logits (1, classes, X, Y, Z), as `predict` makes them."""
    import torch

    return logits[0].contiguous().softmax(0, dtype=torch.float32).cpu().numpy()


METHODS = (
    Method("torch", "float32", partial(by_torch, bfloat16=False, channels_last=False)),
    Method("torch", "bfloat16", partial(by_torch, bfloat16=True, channels_last=False)),
    Method("torch, channels last", "float32", partial(by_torch, bfloat16=False, channels_last=True)),
    Method("torch, channels last", "bfloat16", partial(by_torch, bfloat16=True, channels_last=True)),
    Method(inference.OURS, "its own", partial(by_ours, in_worker=True)),
    Method(f"{inference.OURS}, memory freed", "its own", by_ours, only_cpu=True),
    Method(f"{inference.OURS}, compiled", "its own", partial(by_ours, in_worker=True, compiled=True), compiles=True),
    Method("ONNX Runtime", "float32", by_onnx_runtime, "onnxruntime", only_cpu=True),
    Method("OpenVINO", "float32", partial(by_openvino, precision="f32"), "openvino", only_cpu=True),
    Method("OpenVINO", "bfloat16", partial(by_openvino, precision="bf16"), "openvino", only_cpu=True),
)
"""The first is what the others' Dice is compared with."""
