"""How a process that computes on the CPU holds its memory."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of the GNU C library


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed for the next layer, and tell whether it could be asked.

    A network's large tensors are otherwise fetched from the system anew for each layer, and clearing their pages takes
    up to a third of the time of a pass. Only the GNU C library can be asked; the peak of memory stays the same.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def give_freed_memory_back() -> None:
    """Give what is freed back to the system, in a process that will be idle for a while."""
    if sys.platform.startswith("linux") and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
