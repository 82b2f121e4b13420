"""What an update must be before it may touch the model. Each refusal has a stable code, a reason and a remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from twinfed.errors import shown
from twinfed.wire import Refusal, Report, Tensors, UpdateFile, blocks
from twinfed.wire.tensors import Block

SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
FEWEST_NORMS = 3  # accepted updates before a median of their norms means anything


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the aggregator knows of a site and a round.

    Args:
        federation, round, site, base: what the update must name.
        shapes: the model's tensors.
        registered: training cases that the site registered.
        norms: of the updates accepted last, of any site.
        norm_factor: multiple of their median that a norm may reach.
        largest_value: magnitude that an entry may reach.
    """

    federation: str
    round: int
    site: str
    base: str
    shapes: Mapping[str, tuple[int, ...]]
    registered: int
    norms: Sequence[float] = ()
    norm_factor: float = 10.0
    largest_value: float = 8192.0


def check_update(update: UpdateFile, expected: Expected) -> float:
    """Check a whole update in one pass; return the Euclidean norm of its change.

    Raises:
        Refusal: why it is not taken.
    """
    header = update.header
    if header.federation != expected.federation:
        raise Refusal(
            "wrong-federation",
            f"The update is for {shown(header.federation)}, this is {expected.federation}.",
            "Join the federation that it is for.",
        )
    if header.site != expected.site:
        raise Refusal(
            "wrong-site",
            f"The update names the site {shown(header.site)}, the token belongs to {expected.site}.",
            "Send it with the token of the site that made it.",
        )
    if header.round != expected.round:
        raise Refusal(
            "wrong-round",
            f"The update is for round {header.round}, round {expected.round} is open.",
            "Train for the open round; an update counts in one round only.",
        )
    if header.base != expected.base:
        raise Refusal(
            "stale-base",
            f"The update starts from model {shown(header.base, 12)}, the round's is {expected.base[:11]}…",
            "Fetch the round's model and train from it.",
        )
    if any(dtype != "F32" for dtype in update.dtypes.values()):
        raise Refusal("wrong-dtype", "A tensor that is not compressed is not float32.", "Send float32, or compress.")
    check_report(header.report, expected)
    return check_tensors(update, expected)


def check_report(report: Report, expected: Expected) -> None:
    """The numbers must fit what the site registered."""
    if report.samples > expected.registered:
        raise Refusal(
            "bad-samples",
            f"{report.samples} training cases are reported, {expected.registered} are registered.",
            "Register the site's cases anew before the update.",
        )


def check_tensors(delta: Tensors, expected: Expected) -> float:
    """Check names, shapes and values of a change, whoever brought it; return its Euclidean norm."""
    _check_shapes(delta.shapes, expected.shapes)
    squares, largest = [], 0.0
    for name, index in blocks(expected.shapes):
        block = delta.block(name, index)
        peak = max(float(block.max()), -float(block.min()))  # NaN where the block holds one
        if not math.isfinite(peak):
            raise Refusal("not-finite", f"Tensor {shown(name)} holds NaN or infinity.", "Train again from the model.")
        if peak > expected.largest_value:
            raise Refusal(
                "value-too-large",
                f"Tensor {shown(name)} holds {peak:.3g}; at most {expected.largest_value:g} is taken.",
                "Train again with a smaller learning rate.",
            )
        largest = max(largest, peak)
        squares.append(_square(block))
    norm = math.sqrt(math.fsum(squares))
    if largest < SMALLEST_NORMAL:
        raise Refusal("empty-update", "The update changes nothing.", "Train before sending.")
    if len(expected.norms) >= FEWEST_NORMS:
        median = float(np.median(expected.norms))
        if norm > expected.norm_factor * median:
            raise Refusal(
                "norm-too-large",
                f"The update's norm {norm:.3g} is over {expected.norm_factor:g} times the usual {median:.3g}.",
                "Train again from the model, with a smaller learning rate or fewer epochs.",
            )
    return norm


def norm_of(delta: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """The Euclidean norm of a change that was checked before."""
    return math.sqrt(math.fsum(_square(delta.block(name, index)) for name, index in blocks(shapes)))


def _square(block: Block) -> float:
    return float(np.square(block, dtype=np.float64).sum())


def _check_shapes(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    if missing := sorted(wanted.keys() - found.keys()):
        raise Refusal(
            "wrong-names", f"{len(missing)} tensors are missing, {shown(missing[0])} first.", "Send all of the model."
        )
    if extra := sorted(found.keys() - wanted.keys()):
        raise Refusal(
            "wrong-names",
            f"{len(extra)} tensors are unknown, {shown(extra[0])} first.",
            "Send those of the model only.",
        )
    for name in sorted(wanted):
        if tuple(found[name]) != tuple(wanted[name]):
            raise Refusal(
                "wrong-shape",
                f"Tensor {shown(name)} has shape {shown(tuple(found[name]))}, the model's is {tuple(wanted[name])}.",
                "Train the federation's network.",
            )
