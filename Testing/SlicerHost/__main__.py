"""``python -m SlicerHost --module MODULE.py [--test] [--screenshot PNG]``: run a scripted module without Slicer."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from .host import Host, start


def run(host: Host, paths: list[Path], test: bool, screenshot: Path | None) -> None:
    """Load the modules, open the panel of the last one, take its picture, and run its self-test."""
    for path in paths:
        widget = host.open(path)
    name = paths[-1].stem
    print(f"{name}: loaded, panel {'built' if widget is not None else 'absent'}")
    if screenshot is not None:
        host.captureWindow(screenshot)
        print(f"{name}: {screenshot}")
    if test:
        host.slicer.selfTests[name](msec=0)
        print(f"{name}: self-test passed")
    host.app.quit()
    left = host.app.child_processes()
    for process in left:
        process.kill()
    if left:
        raise RuntimeError(f"{name} left {len(left)} child process(es) running when the application quit")


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit code 0: all went well; 1: an exception, an error dialog or a failed test; 2: a wrong option."""
    parser = argparse.ArgumentParser(prog="SlicerHost", description=__doc__)
    parser.add_argument("--module", type=Path, action="append", required=True, metavar="MODULE.py",
                        help="script of a module; may be given again, the last one's panel is opened")  # fmt: skip
    parser.add_argument("--test", action="store_true", help="run the module's self-test, as under Slicer's --testing")
    parser.add_argument("--screenshot", type=Path, metavar="PNG", help="write a picture of the main window")
    options = parser.parse_args(arguments)
    for path in options.module:
        if not path.is_file():
            parser.error(f"{path}: there is no such file")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    host = start(testing=options.test)
    try:
        run(host, options.module, options.test, options.screenshot)
        host.faults.check()
    except Exception as error:  # whatever the module raised is the result of the run
        logging.exception("%s: %s", options.module[-1].stem, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
