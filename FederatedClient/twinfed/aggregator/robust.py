"""Strategies that stand hostile sites: what a minority sends cannot carry the model away."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from twinfed.wire.tensors import Block

from .aggregation import Contribution, clip_factors, inner_products, stacked
from .strategies import Memory, Strategy, Values, within


class TrimmedMean(Strategy):
    """Coordinate-wise trimmed mean (Yin et al. 2018, definition 2): the ``trim`` share is dropped at either end.

    All sites count alike. Bound: with at most floor(trim * n) hostile sites each entry of the change lies between the
    smallest and the largest honest one. At least one site is dropped at either end if three or more take part.
    """

    name = "trimmed-mean"
    fewest = 3

    def __init__(self, *, trim: float = 0.2, **options: float) -> None:
        super().__init__(**options)
        within("trim", trim, 0, 0.49)
        self.trim = trim

    def weights(self, updates: Sequence[Contribution], memory: Memory) -> dict[str, float]:
        return {one.site: 1 / len(updates) for one in updates}

    def combine(
        self, deltas: Iterable[Block], weights: Sequence[float], factors: Sequence[float], length: int
    ) -> Values:
        rows = np.sort(stacked(deltas, factors), axis=0)
        drop = int(self.trim * len(rows) + 1e-9)
        if len(rows) >= 3:
            drop = min(max(1, drop), (len(rows) - 1) // 2)
        return rows[drop : len(rows) - drop].mean(axis=0, dtype=np.float64)


class Median(TrimmedMean):
    """Coordinate-wise median (Yin et al. 2018, definition 1).

    Bound: with fewer than half of the sites hostile, each entry lies between the smallest and the largest honest one.
    """

    name = "median"

    def combine(
        self, deltas: Iterable[Block], weights: Sequence[float], factors: Sequence[float], length: int
    ) -> Values:
        return np.median(stacked(deltas, factors), axis=0).astype(np.float64)


class MultiKrum(Strategy):
    """Multi-Krum (Blanchard et al. 2017, section 4): the mean of the m = n - f updates nearest to their neighbours.

    score_i = sum of ||Delta_i - Delta_j||^2 over the n - f - 2 nearest j. Needs n >= 2 f + 3 for the paper's guarantee;
    with fewer sites f is lowered to what they bear. Bound: each chosen change lies within the spread of a group of
    n - f - 1 sites with at least one honest one more than hostile; what is chosen is never longer than clip * m.

    Args:
        hostile: f, the number of hostile sites to stand.
    """

    name = "multi-krum"
    fewest = 5

    def __init__(self, *, hostile: int = 1, **options: float) -> None:
        super().__init__(**options)
        within("hostile", hostile, 0, 1000)
        self.hostile = int(hostile)

    def weights(self, updates: Sequence[Contribution], memory: Memory) -> dict[str, float]:
        ordered = sorted(updates, key=lambda one: one.site)
        count = len(ordered)
        hostile = min(self.hostile, max(0, (count - 3) // 2))
        neighbours = max(1, count - hostile - 2)
        factors = np.array(clip_factors(ordered, self.clip))
        products = inner_products(ordered) * np.outer(factors, factors)
        squares = np.diag(products)
        distances = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0)
        np.fill_diagonal(distances, np.inf)
        scores = np.sort(distances, axis=1)[:, :neighbours].sum(axis=1) if count > 1 else np.zeros(count)
        chosen = np.argsort(scores, kind="stable")[: count - hostile]
        return {one.site: float(row in chosen) / len(chosen) for row, one in enumerate(ordered)}
