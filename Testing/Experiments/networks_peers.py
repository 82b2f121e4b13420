"""The networks that are compared: ours with its fields changed, and MONAI's, which take images of any size here too."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from monai.networks import nets
from torch import Tensor, nn
from torch.nn import functional

from twinseg.errors import InputError
from twinseg.inference import autocast
from twinseg.network import build_network, equal_parameters, preset
from twinseg.preprocessing import label_values
from twinseg.tasks import Task

OURS = "ViTUNet"
LAYOUTS = (torch.contiguous_format, torch.channels_last_3d)


class Padded(nn.Module):
    """A network that takes sizes of one multiple alone, for images of any size, as `predict` and the trainer have.

    The image (N, C, X, Y, Z) is padded with zeros to a multiple of `multiple` along each axis, the answer cut back.
    """

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__()
        self.network, self.multiple = network, multiple
        for module in network.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                if not buffer.is_floating_point():  # a table of indices is no weight: the trainer cannot average it
                    module.register_buffer(name, buffer, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        x, y, z = image.shape[2:]
        padding = (0, -z % self.multiple, 0, -y % self.multiple, 0, -x % self.multiple)
        answer: Tensor = self.network(functional.pad(image, padding))[:, :, :x, :y, :z]
        return answer


def build(description: Mapping[str, Any], task: Task) -> nn.Module:
    """A network with fresh weights.

    Args:
        description: `name`, and for ours fields of `NetworkConfig` that differ from the small preset (a `variant` gets
            the width that makes its parameters as many); for a network of MONAI's its class, the options of its
            constructor, and the `multiple` that the sizes of its input must be of.

    Raises:
        InputError: there is no such network, or it has no such option.
    """
    options = dict(description)
    inputs, outputs = len(task.sequences), len(label_values(task))
    try:
        name = options.pop("name")
        if name == OURS:
            variant = options.pop("variant", "hybrid")
            if "strides" in options:
                options["strides"] = tuple(map(tuple, options["strides"]))
            config = replace(preset("small", inputs, outputs, task.strides), **options)
            return build_network(config if variant == "hybrid" else equal_parameters(config, variant))
        multiple = options.pop("multiple")
        return Padded(getattr(nets, name)(in_channels=inputs, out_channels=outputs, **options), multiple)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"network {dict(description)}: it cannot be built ({error}); correct the experiment"
        ) from error


def take_faster_layout(network: nn.Module, channels: int, patch: Sequence[int], device: torch.device) -> str:
    """Leave a network in the memory layout in which a training step is faster here, and name it. Ours has its own."""
    if not isinstance(network, Padded):
        return "channels last"
    network.to(device).train()
    image = torch.zeros(1, channels, *patch, device=device)
    seconds = {layout: min(_step_seconds(network, image, layout) for _ in range(3)) for layout in LAYOUTS}
    faster = min(LAYOUTS, key=lambda layout: seconds[layout])
    _lay_out(network, faster)
    network.zero_grad()
    return "channels last" if faster is torch.channels_last_3d else "channels first"


def _step_seconds(network: nn.Module, image: Tensor, layout: torch.memory_format) -> float:
    """Seconds forwards and backwards."""
    _lay_out(network, layout)
    wait = partial(torch.cuda.synchronize, image.device) if image.is_cuda else lambda: None
    wait()
    started = clock(image.device)
    with autocast(image.device):
        answer = network(image)
    answer.float().sum().backward()
    wait()
    return clock(image.device) - started


def _lay_out(network: nn.Module, layout: torch.memory_format) -> None:
    network.to(memory_format=layout)  # type: ignore[call-overload]


def clock(device: torch.device) -> float:
    """Seconds: of this process's own computing where that is by one thread of the CPU, so that what else the machine
    does takes nothing from one network and gives nothing to another; else by the wall's clock."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time() if alone else time.perf_counter()
