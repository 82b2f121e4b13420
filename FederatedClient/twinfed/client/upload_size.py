"""How small an update must be so that it is through before the round is over, by the bandwidth that was measured."""

from __future__ import annotations

from dataclasses import replace

from twinfed.wire import Compression

SHARE_OF_TIME = 0.5
"""Of the seconds left: what the upload may take. The rest is for the network's moods."""
STEPS = (
    Compression(bits=16, entropy=True),
    Compression(bits=8, entropy=True),
    Compression(keep=0.25, bits=1, entropy=True),
    Compression(keep=0.05, bits=1, entropy=True),
    Compression(keep=0.01, bits=1, entropy=True),
)


def choose_compression(
    wanted: Compression, parameters: int, bytes_per_second: float | None, seconds_left: float
) -> Compression:
    """The federation's compression, or the mildest stronger one that the deadline allows; the strongest if none does.

    What is left out is not lost: error feedback sends it with later updates.

    Args:
        wanted: what the federation asks for.
        parameters: numbers in the model.
        bytes_per_second: measured; None while nothing is known.
        seconds_left: in the round.
    """
    if bytes_per_second is None:
        return wanted
    room = bytes_per_second * seconds_left * SHARE_OF_TIME
    stronger = [replace(step, keep=min(step.keep, wanted.keep), bits=min(step.bits, wanted.bits)) for step in STEPS]
    for how in (wanted, *stronger):
        if estimated_bytes(how, parameters) <= room:
            return how
    return stronger[-1]


def estimated_bytes(how: Compression, parameters: int) -> float:
    """Bytes of an update, rather too many: a gap of a byte or two stands before each value that is sent."""
    gap = 0 if how.keep > 0.5 else 1 if how.keep > 0.005 else 2
    return parameters * how.keep * (how.bits / 8 + gap) + 4096
