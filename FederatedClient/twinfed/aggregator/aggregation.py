"""One pass over the updates of a round, block by block: what every strategy runs on.

A block of the model is a few hundred kilobytes; for each one all updates' blocks are read, combined and written, so
that memory depends neither on the model's size nor on the number of sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twinfed.wire import BLOCK, Report, Tensors, blocks
from twinfed.wire.tensors import Block

if TYPE_CHECKING:
    from .strategies import Strategy, Values

STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")
"""Ends of the names of what batch normalisation has measured: no weights. A step beyond the sites' own values makes
variances negative, and the network's output NaN."""
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


class WeightedSum:
    """A weighted sum of float32 blocks, one after the other.

    Products and sums are single float32 operations without fused steps, so that the same summands in the same order
    have the same bits on every machine. The relative error of n summands is below n * 6e-8 of the largest, which is
    less than what adding a change to a float32 model loses anyhow. One thread at a time.
    """

    def __init__(self) -> None:
        self._totals = np.empty(BLOCK, dtype=np.float32)  # used again: fresh memory costs more than the sum
        self._products = np.empty(BLOCK, dtype=np.float32)

    def of(self, deltas: Iterable[Block], weights: Iterable[float], length: int) -> Block:
        """The sum over blocks of ``length`` elements; it stands until the next one is asked for."""
        total, product = self._totals[:length], self._products[:length]
        total[:] = 0
        for delta, weight in zip(deltas, weights, strict=True):
            np.multiply(delta, np.float32(weight), out=product)
            total += product
        return total


def aggregate(
    strategy: Strategy,
    base: Tensors,
    contributions: Sequence[Contribution],
    weights: Mapping[str, float],
    state: Mapping[str, Tensors],
    sink: Sink,
) -> None:
    """Write the next model, and the strategy's next state, block by block to ``sink``.

    Statistics of batch normalisation get the combined change as it is, whatever the strategy does with it else.

    Args:
        strategy: how blocks are combined and applied.
        base: the model that the changes are to be added to.
        contributions: the updates in any order: they are summed in that of the sites' names, so that the result has the
            same bits however they arrived.
        weights: site -> weight, as ``strategy.weights`` gave them; a site without one is left out.
        state: the strategy's tensors from the last round, by name; empty in the first.
        sink: takes the blocks in the order of :func:`twinfed.wire.blocks`.
    """
    taken = sorted((one for one in contributions if weights.get(one.site, 0) > 0), key=lambda one: one.site)
    factors = clip_factors(taken, strategy.clip)
    shares = [weights[one.site] for one in taken]
    stretch = strategy.stretch(taken, shares, factors)
    stretched = [share * stretch for share in shares]
    for name, index in blocks(base.shapes):
        old, measured = base.block(name, index), name.endswith(STATISTICS)
        deltas = (one.delta.block(name, index) for one in taken)
        change = strategy.combine(deltas, shares if measured else stretched, factors, old.size)
        before = {key: state[key].block(name, index) if key in state else np.zeros_like(old) for key in strategy.state}
        step, after = (change, dict[str, "Values"](before)) if measured else strategy.step(change, before)
        sink("model", name, (old + step).astype(np.float32, copy=False))
        for key, values in after.items():
            sink(key, name, values.astype(np.float32, copy=False))


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
