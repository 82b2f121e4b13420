"""One pass over the updates of a round, block by block: what every strategy runs on.

A block of the model is a few hundred kilobytes; for each one all updates' blocks are read, combined and written, so
that memory depends neither on the model's size nor on the number of sites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twinfed.wire import Report, Tensors, blocks
from twinfed.wire.tensors import BLOCK, Block

if TYPE_CHECKING:
    from .strategies import Strategy

PIECE = 8192  # elements that are summed at once: they stay in the processor's first caches
Sink = Callable[[str, str, Block], None]  # which file ("model", or a name of the strategy's state), tensor, block


@dataclass(frozen=True)
class Contribution:
    """An accepted update as a strategy sees it.

    Args:
        site: who sent it; the order of sites decides every tie.
        delta: the change to the model that the site began from.
        report: the site's numbers.
        norm: Euclidean norm of the whole change.
        cluster: the model that the site began from, where there are several.
    """

    site: str
    delta: Tensors
    report: Report
    norm: float
    cluster: str = "0"


class ExactSum:
    """A weighted sum of float32 blocks that has the same bits whatever the order of the summands.

    Each product is rounded to a multiple of ``grid = 2**-51 * limit`` before it is added; sums of such multiples below
    ``limit`` are exact in float64, and exact addition commutes (pre-rounding, Demmel and Nguyen 2013,
    doi:10.1109/ARITH.2013.9). With weights that sum to at most 1 and values up to ``limit``, the error is below half a
    ``grid`` a summand: 2e-12 where values may reach 8192.
    """

    def __init__(self, length: int, limit: float) -> None:
        self._grid = 2.0 ** (math.ceil(math.log2(limit)) - 51)
        self._total = np.zeros(length)
        self._product = np.empty(min(length, PIECE))

    def add(self, block: Block, weight: float) -> None:
        factor = np.float64(weight / self._grid)
        for start in range(0, block.size, PIECE):
            piece = block[start : start + PIECE]
            product = self._product[: piece.size]
            np.multiply(piece, factor, out=product, dtype=np.float64)
            np.rint(product, out=product)
            self._total[start : start + PIECE] += product

    def value(self) -> NDArray[np.float64]:
        return self._total * self._grid


def aggregate(
    strategy: Strategy,
    base: Tensors,
    contributions: Sequence[Contribution],
    weights: Mapping[str, float],
    state: Mapping[str, Tensors],
    sink: Sink,
) -> None:
    """Write the next model, and the strategy's next state, block by block to ``sink``.

    Args:
        strategy: how blocks are combined and applied.
        base: the model that the changes are to be added to.
        contributions: the updates, in any order: the result has the same bits.
        weights: site -> weight, as ``strategy.weights`` gave them; a site without one is left out.
        state: the strategy's tensors from the last round, by name; empty in the first.
        sink: takes the blocks in the order of :func:`twinfed.wire.blocks`.
    """
    taken = sorted((one for one in contributions if weights.get(one.site, 0) > 0), key=lambda one: one.site)
    factors = clip_factors(taken, strategy.clip)
    shares = [weights[one.site] for one in taken]
    for name, index in blocks(base.shapes):
        old = base.block(name, index)
        change = strategy.combine((one.delta.block(name, index) for one in taken), shares, factors, old.size)
        before = {key: state[key].block(name, index) if key in state else np.zeros_like(old) for key in strategy.state}
        step, after = strategy.step(change, before)
        sink("model", name, (old + step).astype(np.float32))
        for key, values in after.items():
            sink(key, name, values.astype(np.float32))


def clip_factors(contributions: Sequence[Contribution], clip: float) -> list[float]:
    """What each change is multiplied by so that no norm exceeds ``clip`` times the median of the round.

    With fewer than three updates there is no majority to go by, and nothing is clipped.
    """
    if len(contributions) < 3 or not clip:
        return [1.0] * len(contributions)
    limit = clip * float(np.median([one.norm for one in contributions]))
    return [min(1.0, limit / one.norm) if one.norm else 1.0 for one in contributions]


def inner_products(contributions: Sequence[Contribution]) -> NDArray[np.float64]:
    """The matrix of inner products <delta_i, delta_j> over all tensors, sites in the order given."""
    total = np.zeros((len(contributions), len(contributions)))
    if not contributions:
        return total
    for name, index in blocks(contributions[0].delta.shapes):
        rows = np.stack([one.delta.block(name, index) for one in contributions]).astype(np.float64)
        total += rows @ rows.T
    return total


def stacked(deltas: Iterable[Block], factors: Sequence[float]) -> NDArray[np.float32]:
    """The blocks as rows, each times its factor: (sites, elements)."""
    return np.stack([block * np.float32(factor) for block, factor in zip(deltas, factors, strict=True)])


assert BLOCK % PIECE == 0
