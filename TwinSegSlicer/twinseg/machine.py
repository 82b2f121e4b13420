"""On what a measurement was made: the processor, and the memory that it took."""

from __future__ import annotations

import contextlib
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


VECTOR_UNITS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX-512 with bfloat16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
}
"""What a processor that shows a flag computes a network with, the fastest first."""


def processor(facts: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name and its vector units where the system tells them in a file, else its architecture.

    The units stand beside the name as a cloud's "AMD EPYC" may be five times as fast as another.
    """
    with contextlib.suppress(OSError):
        lines = (line.partition(":") for line in facts.read_text(encoding="utf-8").splitlines())
        told = {key.strip(): value.strip() for key, _, value in lines}
        if name := told.get("model name"):
            flags = told.get("flags", "").split()
            units = [units for flag, units in VECTOR_UNITS.items() if flag in flags]
            return ", ".join([name, *units[:1]])
    return platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> float:
    """Most memory in GB that this process has held so far; on a GPU, that its tensors have. Not for Windows."""
    if device.type == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated(device)) / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
