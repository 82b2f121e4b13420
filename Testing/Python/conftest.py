"""For all tests."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them the programs that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The headless host, the modules' inner packages, and the benchmarks, which are scripts.
for room in ("Testing", "TwinSegSlicer", "Testing/Benchmarks"):
    if (folder := str(Path(__file__).parents[2] / room)) not in sys.path:
        sys.path.insert(0, folder)


@pytest.fixture
def mount_small_disk() -> Iterator[Callable[[Path, str], Path]]:
    """Mounts a disk of a size ("400k", "4m") at a folder that is made; the test is skipped where nobody may."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> Path:
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a small disk cannot be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
