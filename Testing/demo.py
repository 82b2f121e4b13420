"""The demonstration behind `make demo`: what the project does, on patients made on the spot, in a few minutes.

Segmentation of synthetic patients and, where ../shared/data has them, of real lower-grade gliomas; a patient's twin
with a forecast; a federation of three hospitals in real processes. All through the same commands that a user types.
Ends with OUTPUT/report.html.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

from Demo import federation, patient_twin, segmentation
from Demo.commands import Commands
from Demo.page import Page

REAL = Path(__file__).resolve().parents[2] / "shared/data/lgg"
SUMMARY = (
    "Segmentation, a patient's twin and a federation of hospitals, shown on synthetic patients made on the spot. Each "
    "grey line is a command as you would type it, with the time that it took here."
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"))
    parser.add_argument("--minutes", type=float, default=0.75, help="of training on the real cases")
    parser.add_argument("--real", type=Path, default=REAL, help="folder of real lower-grade gliomas, if there is one")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: nothing that was started runs on
    started = time.perf_counter()
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    page = Page("TwinSegSlicer: a demonstration", SUMMARY)
    commands = Commands(page)
    try:
        segmentation.show_synthetic(commands, folder)
        segmentation.show_real(commands, folder, options.real, options.minutes)
        patient_twin.show(commands, folder)
        federation.show(commands, folder)
    except subprocess.CalledProcessError as error:
        print(f"demo: {error.cmd} ended with exit code {error.returncode}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: stopped", file=sys.stderr)
        return 130
    seconds = time.perf_counter() - started
    page.text(f"Made in {seconds:.0f} s. For research only; not for diagnosis.", "note")
    page.write(folder / "report.html")
    print(f"{folder / 'report.html'}: open it in a browser ({seconds:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
