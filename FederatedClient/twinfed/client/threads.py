"""On how many threads a site computes. It works beside Slicer, at the lowest priority: its threads are often held up.

Threads that share a layer wait for each other at its end. While they wait, the usual OpenMP spins: if one of them is
held up, the others burn a core for nothing. Measured on two cores that other programs use, too, a step of the small
network took 10 times its processor time in that way, and 1.2 times where threads sleep while they wait. A step that is
small enough is faster on one thread, even alone.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

SMALL = 2_000_000
"""Numbers in the network's first feature map below which one thread is at least as fast as two."""


def sleep_while_waiting() -> None:
    """Have threads sleep while they wait for each other. Has to be called before torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # GNU and LLVM
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # Intel


@contextlib.contextmanager
def threads_for(patch: tuple[int, ...], network: Mapping[str, Any]) -> Iterator[None]:
    """Compute on one thread where the network is small, else on as many as there are.

    Args:
        patch: voxels of a training patch, along each axis.
        network: its description; one without channels is not known to be small.
    """
    import torch

    before = torch.get_num_threads()
    channels = network.get("channels")
    if channels and channels[0] * math.prod(patch) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
