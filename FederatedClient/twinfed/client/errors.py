"""What can go wrong at a site."""

from __future__ import annotations

import twinfed.errors
import twinseg.errors

INPUT_ERRORS = (twinfed.errors.InputError, twinseg.errors.InputError)
"""Bad input, told in one line, whichever of the two libraries found it."""


class Unreachable(Exception):
    """The aggregator could not be asked, or its answer did not arrive whole: try again, from where it was."""


class Changed(Exception):
    """What the site works on is not wanted any more, such as a case that was withdrawn: begin it anew."""


class Stopped(Exception):
    """The process was told to stop; all that is done is on the disk."""
