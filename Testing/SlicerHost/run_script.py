"""``python -m SlicerHost.run_script [--unittest] [--path DIR] SCRIPT``: a script, or a unittest file, in the host.

Modules that lie in DIR are loaded first, as Slicer loads those of its additional module paths.
"""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
import unittest
from pathlib import Path

from .host import end, start


def is_module(path: Path) -> bool:
    """Whether a script is a scripted module: it has a class of its own name that is one."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return f"class {path.stem}(ScriptedLoadableModule)" in text


def run_unittest(script: Path) -> bool:
    """Run the tests in a file; tells whether all passed."""
    sys.path.insert(0, str(script.parent))
    suite = unittest.defaultTestLoader.loadTestsFromName(script.stem)
    if not suite.countTestCases():
        raise RuntimeError(f"{script}: there are no tests in it")
    return unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful()


def main(arguments: list[str] | None = None) -> int:
    """The command; exit code 0 if the script ended well."""
    parser = argparse.ArgumentParser(prog="SlicerHost.run_script", description=__doc__)
    parser.add_argument("script", type=Path)
    parser.add_argument("--unittest", action="store_true", help="the script is a unittest file")
    parser.add_argument("--path", type=Path, metavar="DIR", help="folder of modules to load first")
    options, rest = parser.parse_known_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    host = start(testing=True)
    if options.path is not None:
        sys.path.insert(0, str(options.path))
        for module in sorted(options.path.glob("*.py")):
            if is_module(module):
                host.load(module)
    passed = True
    if options.unittest:
        passed = run_unittest(options.script.resolve())
    else:
        sys.argv = [str(options.script), *rest]
        runpy.run_path(str(options.script), run_name="__main__")
    end(host)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
