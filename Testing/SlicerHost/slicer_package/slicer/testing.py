"""What ``slicer_add_python_unittest`` runs in Slicer."""

from __future__ import annotations

import sys
import unittest


def exitSuccess() -> None:
    """Nothing to be done."""


def exitFailure(message: str = "") -> None:
    """Raise, so that the run fails."""
    raise RuntimeError(message)


def runUnitTest(path: str | list[str], testname: str) -> None:
    """Run the unittest module ``testname`` with ``path`` on ``sys.path``; a failure raises RuntimeError."""
    sys.path.extend([path] if isinstance(path, str) else path)
    suite = unittest.defaultTestLoader.loadTestsFromName(testname)
    if not unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful():
        exitFailure(f"{testname} failed")
