"""Clustered federated learning: sites whose updates point the same way share a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .aggregation import Contribution, inner_products
from .strategies import Memory, Strategy, within


class Clustered(Strategy):
    """Clusters by the cosine of the sites' changes (Sattler et al. 2020, algorithm 1), a FedAvg model a cluster.

    All sites begin in cluster "0". A cluster is cut in two when its sites pull apart: the norm of their mean change is
    below ``split_below`` times the largest norm (the paper's equations 30 and 31, made relative), each part has
    ``smallest`` sites at least, and every pair across the cut is less alike than some pair within (their gap, equation
    22). Parts come from complete linkage: repeatedly join the two groups whose least alike pair is most alike. The
    part with the first site keeps the cluster's name; absent sites stay where they were.
    Bound: within its own cluster as FedAvg; a site moves no other cluster's model, but can provoke a cut.
    """

    name = "clustered"

    def __init__(self, *, split_below: float = 0.6, smallest: int = 2, **options: float) -> None:
        super().__init__(**options)
        within("split_below", split_below, 0, 1)
        within("smallest", smallest, 1, 1000)
        self.split_below, self.smallest = split_below, int(smallest)

    def groups(self, updates: Sequence[Contribution], memory: Memory) -> tuple[dict[str, str], Memory]:
        clusters = dict(memory.get("clusters", {}))
        clusters.update({one.site: one.cluster for one in updates})
        taken = {one.cluster for one in updates} | set(clusters.values()) | {"0"}
        for cluster in sorted({one.cluster for one in updates}):
            members = sorted((one for one in updates if one.cluster == cluster), key=lambda one: one.site)
            if moved := self._cut(members):
                new = str(max(int(name) for name in taken) + 1)
                taken.add(new)
                clusters.update(dict.fromkeys(moved, new))
        return {one.site: clusters[one.site] for one in updates}, {**memory, "clusters": clusters}

    def _cut(self, members: Sequence[Contribution]) -> list[str]:
        """The sites that leave a cluster; none where it stays whole."""
        if len(members) < 2 * self.smallest:
            return []
        products = inner_products(members)
        norms = np.sqrt(np.maximum(np.diag(products), 1e-300))
        counts = np.array([one.report.samples for one in members], dtype=np.float64)
        shares = counts / counts.sum()
        mean = float(np.sqrt(max(shares @ products @ shares, 0)))
        if mean >= self.split_below * norms.max():
            return []
        alike = products / np.outer(norms, norms)
        parts = bipartition(alike)
        across = max(alike[i, j] for i in parts[0] for j in parts[1])
        inside = [alike[i, j] for part in parts for i in part for j in part if i < j]
        if min(len(part) for part in parts) < self.smallest or (inside and across >= min(inside)):
            return []
        return [members[i].site for i in max(parts, key=min)]


def bipartition(alike: NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """Two groups of rows of a similarity matrix (n, n), n >= 2, by complete linkage."""
    groups = [[row] for row in range(len(alike))]
    while len(groups) > 2:
        pairs = [(a, b) for a in range(len(groups)) for b in range(a + 1, len(groups))]
        first, second = max(pairs, key=lambda pair: min(alike[i, j] for i in groups[pair[0]] for j in groups[pair[1]]))
        groups[first] += groups.pop(second)
    return groups[0], groups[1]
