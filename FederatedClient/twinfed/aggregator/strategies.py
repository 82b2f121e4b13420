"""How updates become the next model. Each strategy is a plain class without HTTP, so that a simulation or another
engine can run the same one.

Deltas are Delta_k = theta_k - theta (local minus incoming global model), n_k a site's training cases, w_k its weight.
Every strategy first scales a delta down to ``clip`` times the round's median norm m (three updates or more).
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from twinfed.wire import InputError
from twinfed.wire.tensors import Block

from .aggregation import Contribution, WeightedSum, inner_products

Values = NDArray[np.float32] | NDArray[np.float64]
Memory = dict[str, Any]  # what a strategy remembers between rounds, as JSON
SPOILT = 0.05
"""Dice that a site's training may lose on its own validation cases until its weight falls to 1/e."""


class Strategy(ABC):
    """What all strategies share: the weighted mean of the changes, added to the model.

    Bound (any one site, weights as shown): it moves the sum of changes by at most w_k * clip * m in Euclidean norm,
    and w_k is at most ``max_weight`` where enough sites take part; as long as fewer than half of the sites are
    hostile, m is no larger than the largest honest norm.

    Args:
        clip: multiple of the round's median norm to which larger changes are scaled down; 0 turns it off.
        max_weight: largest share of one site; what it loses goes to the others.
    """

    name: ClassVar[str]
    state: ClassVar[tuple[str, ...]] = ()  # tensors of the server that are kept between rounds
    fewest: ClassVar[int] = 1  # updates below which the strategy does not hold what it promises

    def __init__(self, *, clip: float = 3.0, max_weight: float = 1.0) -> None:
        within("clip", clip, 0, 1e6)
        within("max_weight", max_weight, 1e-3, 1)
        self.clip, self.max_weight = clip, max_weight
        self._sums = WeightedSum()

    def client_terms(self) -> dict[str, float]:
        """Numbers that the sites need for training."""
        return {}

    def invited(self, sites: Sequence[str], memory: Memory) -> list[str] | None:
        """The sites whose update the next round waits for; None for all."""
        return None

    def passed_over(self, sites: Sequence[str], memory: Memory) -> Memory:
        """What is remembered after the sites that were invited let the deadline pass."""
        return memory

    def groups(self, updates: Sequence[Contribution], memory: Memory) -> tuple[dict[str, str], Memory]:
        """Which model each site's update goes to (site -> cluster), and what is remembered of the round."""
        return {one.site: "0" for one in updates}, memory

    def weights(self, updates: Sequence[Contribution], memory: Memory) -> dict[str, float]:
        """Site -> weight; they sum to 1. By training cases: w_k = n_k / sum n (McMahan et al. 2017)."""
        return self.shares({one.site: float(one.report.samples) for one in updates})

    def combine(
        self, deltas: Iterable[Block], weights: Sequence[float], factors: Sequence[float], length: int
    ) -> Values:
        """Combine the sites' blocks (each ``length`` float32) into one change, which stands until the next call; sites
        in the order of their names."""
        scaled = [weight * factor for weight, factor in zip(weights, factors, strict=True)]
        return self._sums.of(deltas, scaled, length)

    def stretch(
        self, contributions: Sequence[Contribution], weights: Sequence[float], factors: Sequence[float]
    ) -> float:
        """What the combined change is multiplied by, from a look at all of the changes before they are combined."""
        return 1.0

    def step(self, change: Values, state: Mapping[str, Block]) -> tuple[Values, dict[str, Values]]:
        """What is added to the model, and the next state."""
        return change, {}

    def shares(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Scores as weights that sum to 1, none above ``max_weight`` (or an equal share, if that is more)."""
        limit = max(self.max_weight, 1 / max(len(scores), 1))
        free, result = dict(sorted(scores.items())), dict.fromkeys(sorted(scores), 0.0)
        left = 1.0
        while free:
            total = math.fsum(free.values())
            shares = {site: left * (score / total if total > 0 else 1 / len(free)) for site, score in free.items()}
            over = [site for site, share in shares.items() if share > limit]
            if not over:
                return {**result, **shares}
            for site in over:
                result[site] = limit
                left -= limit
                del free[site]
        return result


class FedAvg(Strategy):
    """theta' = theta + sum_k n_k / n * Delta_k (McMahan et al. 2017, algorithm 1; FedSegNet, equations 2 and 13)."""

    name = "fedavg"


class FedProx(FedAvg):
    """FedAvg whose sites add mu / 2 * ||w - theta||^2 to their loss (Li et al. 2020, equation 2).

    The term acts at the sites; the aggregator only tells them mu (``proximal_mu``).
    """

    name = "fedprox"

    def __init__(self, *, mu: float = 0.01, **options: float) -> None:
        super().__init__(**options)
        within("mu", mu, 0, 100)
        self.mu = mu

    def client_terms(self) -> dict[str, float]:
        return {"proximal_mu": self.mu}


class FedAvgM(FedAvg):
    """Server momentum: v' = beta * v + Delta, theta' = theta + eta * v' (Hsu et al. 2019; Reddi et al. 2021).

    Delta is FedAvg's weighted mean change. Bound: eta / (1 - beta) times that of the mean, over all later rounds.
    """

    name = "fedavgm"
    state = ("momentum",)

    def __init__(self, *, learning_rate: float = 1.0, beta: float = 0.9, **options: float) -> None:
        super().__init__(**options)
        within("learning_rate", learning_rate, 1e-6, 10)
        within("beta", beta, 0, 0.9999)
        self.learning_rate, self.beta = learning_rate, beta

    def step(self, change: Values, state: Mapping[str, Block]) -> tuple[Values, dict[str, Values]]:
        momentum = self.beta * state["momentum"].astype(np.float64) + change
        return self.learning_rate * momentum, {"momentum": momentum}


class FedExP(FedAvg):
    """FedAvg with a longer step where the sites' changes differ (Jhunjhunwala et al. 2023): their mean is shorter than
    each of them, which holds the model back.

    theta' = theta + eta * sum_k w_k * Delta_k with eta = sum_k w_k ||Delta_k||^2 / (2 ||sum_k w_k Delta_k||^2), at
    least 1, and at most ``largest``: sites that cancel each other out would else throw the model far away.
    The paper has 1 / M in place of w_k, and an epsilon instead of the limit. Bound: ``largest`` times that of the mean.
    """

    name = "fedexp"

    def __init__(self, *, largest: float = 2.0, **options: float) -> None:
        super().__init__(**options)
        within("largest", largest, 1, 10)
        self.largest = largest

    def stretch(
        self, contributions: Sequence[Contribution], weights: Sequence[float], factors: Sequence[float]
    ) -> float:
        scaled = np.multiply(weights, factors)
        products = inner_products(contributions)
        own, mean = float(np.multiply(scaled, factors) @ np.diag(products)), float(scaled @ products @ scaled)
        # Rounded, so that `twinfed verify` makes the same bits where sums of products end a little differently.
        return round(min(self.largest, max(1.0, own / (2 * mean) if mean > 0 else 1.0)), 4)


class FedAdam(FedAvg):
    """Adam on the server (Reddi et al. 2021, algorithm 2).

    m' = b1 * m + (1 - b1) * Delta, v' = b2 * v + (1 - b2) * Delta^2, theta' = theta + eta * m' / (sqrt(v') + tau).
    Bound: no entry moves by more than eta * (1 - b1) / sqrt(1 - b2) * 1 / (1 - b1 / sqrt(b2)) in a round.
    """

    name = "fedadam"
    state = ("first_moment", "second_moment")

    def __init__(
        self,
        *,
        learning_rate: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.99,
        tau: float = 1e-3,
        **options: float,
    ) -> None:
        super().__init__(**options)
        within("learning_rate", learning_rate, 1e-6, 10)
        within("beta1", beta1, 0, 0.9999)
        within("beta2", beta2, 0, 0.99999)
        within("tau", tau, 1e-12, 1)
        self.learning_rate, self.beta1, self.beta2, self.tau = learning_rate, beta1, beta2, tau

    def step(self, change: Values, state: Mapping[str, Block]) -> tuple[Values, dict[str, Values]]:
        first = self.beta1 * state["first_moment"].astype(np.float64) + (1 - self.beta1) * change
        second = self.beta2 * state["second_moment"].astype(np.float64) + (1 - self.beta2) * change**2
        step = self.learning_rate * first / (np.sqrt(second) + self.tau)
        return step, {"first_moment": first, "second_moment": second}


class Adaptive(Strategy):
    """Adaptive aggregation: FedSegNet names the factors of w_k (sections 4.6 and 6.4, equation 4), not their form.

    Ours is w_k proportional to q^a * d^b * v^c * h^e * g^f, with

    - quality q = (Dice_k + 1 / (1 + HD95_k / 10 mm)) / 2, of the local model on local validation cases, after training;
      Dice alone where no HD95 is reported, the mean of the others' q where neither is;
    - divergence d = 1 / max(1, ||Delta_k|| / m), m the round's median norm: who strays farther counts less;
    - volume v = n_k / sum n;
    - diversity h = (1 + H_k) / 2, H_k the entropy of the labels' shares of the site's labelled voxels
      (classification: of its pictures) over its maximum;
    - gain g = exp(min(0, Dice_k after - before training) / 0.05): a site whose training spoils the model for its own
      validation cases has something wrong in its labels. One whose validation labels are wrong, too, is not found out.

    Args:
        quality, divergence, volume, diversity, gain: the exponents a, b, c, e, f; 0 leaves a factor out, and
            (0, 0, 1, 0, 0) is FedAvg.
        max_weight: 0.5 unless said otherwise, since a site reports its own numbers.
    """

    name = "adaptive"

    def __init__(
        self,
        *,
        quality: float = 1.0,
        divergence: float = 1.0,
        volume: float = 1.0,
        diversity: float = 1.0,
        gain: float = 1.0,
        max_weight: float = 0.5,
        **options: float,
    ) -> None:
        super().__init__(max_weight=max_weight, **options)
        for name, value in (
            ("quality", quality),
            ("divergence", divergence),
            ("volume", volume),
            ("diversity", diversity),
            ("gain", gain),
        ):
            within(name, value, 0, 10)
        self.quality, self.divergence, self.volume, self.diversity = quality, divergence, volume, diversity
        self.gain = gain

    def weights(self, updates: Sequence[Contribution], memory: Memory) -> dict[str, float]:
        if not updates:
            return {}
        ordered = sorted(updates, key=lambda one: one.site)
        total = sum(one.report.samples for one in ordered)
        median = float(np.median([one.norm for one in ordered]))
        qualities = [_quality(one) for one in ordered]
        known = [value for value in qualities if value is not None]
        usual = math.fsum(known) / len(known) if known else 1.0
        return self.shares(
            {
                one.site: (usual if quality is None else quality) ** self.quality
                * (1 / max(1.0, one.norm / median if median else 1.0)) ** self.divergence
                * (one.report.samples / total) ** self.volume
                * ((1 + one.report.diversity()) / 2) ** self.diversity
                * math.exp(self.gain * _loss(one) / SPOILT)
                for one, quality in zip(ordered, qualities, strict=True)
            }
        )


class Transfer(Strategy):
    """Federated transfer: the sites are visited in turn, and each update is blended into the model.

    theta' = theta + alpha_k * Delta_k, that is (1 - alpha_k) * theta + alpha_k * theta_k, where the next site begins
    from theta'. The paper (Federated transfer learning in digital-twin-based CT, section 3.2) gives the order and says
    that a weighting function blends, not which. Ours is alpha_k = max(floor, n_k / (n_k + N)), N the cases of the
    sites visited before in this cycle: the first site is taken whole, later ones by their share of the cases seen,
    and none below the floor. When all sites have been visited, a new cycle begins, with N as it was: only the first
    cycle starts from a model that has seen none of the cases.
    Bound: a site moves the model by alpha_k * ||Delta_k||, and ||Delta_k|| by at most the checks' norm limit.
    """

    name = "transfer"

    def __init__(self, *, floor: float = 0.2, **options: float) -> None:
        super().__init__(**options)
        within("floor", floor, 0, 1)
        self.floor = floor

    def invited(self, sites: Sequence[str], memory: Memory) -> list[str] | None:
        waiting = [site for site in sorted(sites) if site not in memory.get("visited", [])]
        return (waiting or sorted(sites))[:1]

    def passed_over(self, sites: Sequence[str], memory: Memory) -> Memory:
        return {**memory, "visited": self._visited(sites, memory)}

    def groups(self, updates: Sequence[Contribution], memory: Memory) -> tuple[dict[str, str], Memory]:
        seen = {**memory.get("samples", {}), **{one.site: one.report.samples for one in updates}}
        visited = self._visited([one.site for one in updates], memory)
        return {one.site: "0" for one in updates}, {**memory, "visited": visited, "samples": seen}

    def weights(self, updates: Sequence[Contribution], memory: Memory) -> dict[str, float]:
        """Alpha of the one site; ``memory`` is as before the round."""
        result = {}
        for one in updates:
            before = sum(count for site, count in memory.get("samples", {}).items() if site != one.site)
            result[one.site] = max(self.floor, one.report.samples / (one.report.samples + before))
        return result

    @staticmethod
    def _visited(sites: Sequence[str], memory: Memory) -> list[str]:
        """The cycle's visited sites; a site that is visited again begins a new cycle."""
        before = memory.get("visited", [])
        return list(sites) if set(sites) & set(before) else [*before, *sites]


def _quality(one: Contribution) -> float | None:
    dice, distance = one.report.dice_after, one.report.hd95_after
    if dice is None:
        return None
    return dice if distance is None else (dice + 1 / (1 + distance / 10)) / 2


def _loss(one: Contribution) -> float:
    """How far below 0 the local training's gain in Dice on the site's validation cases lies; 0 where it is unknown."""
    before, after = one.report.dice_before, one.report.dice_after
    return 0.0 if before is None or after is None else min(0.0, after - before)


def within(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"Strategy option {name} = {value!r}: it must lie between {low:g} and {high:g}. Correct it.")
