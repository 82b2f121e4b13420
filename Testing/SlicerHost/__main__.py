"""``python -m SlicerHost --module MODULE.py [--test] [--screenshot PNG]``: run a scripted module without Slicer."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from pathlib import Path

from .faults import HostFault
from .host import Host, end, start


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
    end(host)


def describe(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, SystemExit):
        return f"the module ended Python: sys.exit({error.code!r})"
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


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
    try:
        run(start(testing=options.test), options.module, options.test, options.screenshot)
    except (Exception, SystemExit) as error:  # whatever the module raised is the result of the run
        if not isinstance(error, (HostFault, SystemExit)):  # those of faults are printed already
            traceback.print_exception(error)
        print(f"{options.module[-1].stem}: failed: {describe(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
