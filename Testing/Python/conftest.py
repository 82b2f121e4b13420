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
def make_certificates() -> Callable[..., Path]:
    """Writes NAME.pem and NAME.key of each name to a folder: self-signed, for this machine and the names in `also`."""

    def make(folder: Path, *names: str, also: str = "") -> Path:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed")  # on a developer's Windows; CI installs it
        for name in names:
            options = f"-newkey rsa:2048 -nodes -keyout {name}.key -out {name}.pem -days 2 -subj /CN={name}".split()
            command = ["openssl", "req", "-x509", *options, "-addext", f"subjectAltName={also}IP:127.0.0.1"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return folder

    return make


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
