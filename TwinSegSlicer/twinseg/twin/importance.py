"""Draws a posterior with few runs of a slow model: adaptive importance sampling, led by an emulator.

Every run is kept and weighted against all proposals together (adaptive multiple importance sampling; Cornuet et al.,
Scand. J. Stat. 39 (2012) 798-812). The first round is drawn from the prior. For each later one, thin-plate splines
through all runs so far emulate the model; most of the round is drawn from the posterior that the emulator would give,
the rest from a broad Student t. The weights come from the model itself: a poor emulator costs samples, never truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.interpolate import RBFInterpolator
from scipy.stats import multivariate_t

from twinseg.twin.posterior import Array, Prior

POOL = 6000
BROAD_SHARE = 0.25


def importance_sample(
    prior: Prior,
    simulate: Callable[[Array], Array],
    measured: Array,
    sd: Array,
    *,
    informed: Sequence[str],
    members: int = 500,
    rounds: int = 5,
    seed: int = 0,
) -> tuple[Array, float]:
    """`members` equally likely posterior samples (members,p), and the effective size of the weighted ones behind them.

    `simulate` takes samples (n,p) and gives (n,m): what `measured` (m,) shows with normal errors `sd` (m,). It is run
    for `members` samples. Parameters that are not `informed` have no influence on it, nor on what the prior
    allows: they keep their prior.
    """
    rng = np.random.default_rng(seed)
    columns = [prior.names.index(name) for name in informed]
    later = members * 3 // (4 * rounds)
    deviates = prior.draw(members - (rounds - 1) * later, rng)
    results = simulate(prior.from_normal(deviates))
    proposals: list[Callable[[Array], Array]] = [
        _scaled(prior.log_density, np.log(len(deviates) / prior.share_allowed(rng)))
    ]
    for _ in range(1, rounds):
        weights = _weights(prior, proposals, deviates, _log_likelihood(results, measured, sd), columns)
        proposal, new = _led_round(prior, deviates, results, weights, measured, sd, columns, later, rng)
        proposals.append(proposal)
        deviates = np.concatenate([deviates, new])
        results = np.concatenate([results, simulate(prior.from_normal(new))])
    log_weights = prior.log_density(deviates) - _mixture(proposals, deviates)
    weights = _normalised(log_weights + _log_likelihood(results, measured, sd))
    chosen = deviates[_systematic(weights, members, rng)]
    # What nothing informs has its prior exactly, not as the few samples with weight happen to have it
    others = np.setdiff1d(np.arange(chosen.shape[1]), columns)
    chosen[:, others] = rng.standard_normal((members, len(others)))
    return prior.from_normal(chosen), float(1.0 / (weights**2).sum())


def _led_round(
    prior: Prior,
    deviates: Array,
    results: Array,
    weights: Array,
    measured: Array,
    sd: Array,
    columns: list[int],
    count: int,
    rng: np.random.Generator,
) -> tuple[Callable[[Array], Array], Array]:
    """A proposal's log density, times `count`, and `count` deviates drawn from it."""
    emulator = _Emulator(deviates[:, columns], results, weights)
    broad = _BroadProposal(deviates[:, columns], weights, columns)
    pool = broad.draw(POOL, len(prior.parameters), rng)
    allowed = np.isfinite(prior.log_density(pool))
    share, pool = float(allowed.mean()), pool[allowed]

    def led(at: Array) -> Array:
        return prior.log_density(at) + emulator.log_likelihood(at[:, columns], measured, sd)

    log_ratio = led(pool) - broad.log_density(at=pool)
    norm = float(np.logaddexp.reduce(log_ratio) - np.log(POOL))
    few = int(count * BROAD_SHARE)
    chosen = np.concatenate(
        [_systematic(_normalised(log_ratio), count - few, rng), rng.choice(len(pool), few, replace=False)]
    )

    def log_density(at: Array) -> Array:
        return np.logaddexp(
            np.log(count - few) - norm + led(at),
            np.log(max(few, 1e-9) / share) + broad.log_density(at=at),
        )

    return log_density, pool[chosen]


class _Emulator:
    """Thin-plate splines from informed deviates (n,k) to results (n,m), and how far off they are near the posterior."""

    def __init__(self, known: Array, results: Array, weights: Array) -> None:
        # Every fifth run is left out once, to learn the error
        test = np.arange(len(known)) % 5 == 0
        tried = _splines(known[~test], results[~test])
        near = weights[test] + 1e-3 / len(known)
        self.error = np.sqrt((near[:, None] * (tried(known[test]) - results[test]) ** 2).sum(axis=0) / near.sum())
        self.predict = _splines(known, results)

    def log_likelihood(self, known: Array, measured: Array, sd: Array) -> Array:
        """(n,), with the measurement's and half more than the emulator's own error."""
        return _log_likelihood(self.predict(known), measured, np.hypot(1.2 * sd, 1.5 * self.error))


def _splines(known: Array, results: Array) -> RBFInterpolator:
    # Smoothed: the same deviates may have been drawn twice
    return RBFInterpolator(known, results, kernel="thin_plate_spline", degree=1, smoothing=1e-3)


class _BroadProposal:
    """A Student t fitted to weighted informed deviates; the others are standard normal."""

    def __init__(self, known: Array, weights: Array, columns: list[int]) -> None:
        mean = weights @ known
        apart = known - mean
        spread = (apart * weights[:, None]).T @ apart + 1e-3 * np.eye(len(mean))
        self.columns, self.student = columns, multivariate_t(mean, 1.5 * spread, df=5)

    def draw(self, count: int, size: int, rng: np.random.Generator) -> Array:
        deviates = rng.standard_normal((count, size))
        deviates[:, self.columns] = self.student.rvs(count, random_state=rng).reshape(count, -1)
        return deviates

    def log_density(self, at: Array) -> Array:
        others = np.delete(at, self.columns, axis=1)
        normal = -0.5 * (others**2).sum(axis=1) - 0.5 * others.shape[1] * np.log(2 * np.pi)
        return np.asarray(self.student.logpdf(at[:, self.columns])) + normal


def _weights(
    prior: Prior, proposals: list[Callable[[Array], Array]], deviates: Array, likelihood: Array, columns: list[int]
) -> Array:
    """Normalised weights (n,), tempered while too few samples would carry them."""
    log_prior = prior.log_density(deviates) - _mixture(proposals, deviates)
    return _normalised(log_prior + _tempering(log_prior, likelihood, max(20.0, 4.0 * len(columns))) * likelihood)


def _log_likelihood(results: Array, measured: Array, sd: Array) -> Array:
    return -0.5 * (((results - measured) / sd) ** 2).sum(axis=1)


def _scaled(log_density: Callable[[Array], Array], log_factor: float) -> Callable[[Array], Array]:
    return lambda at: log_density(at) + log_factor


def _mixture(proposals: list[Callable[[Array], Array]], deviates: Array) -> Array:
    """The log density (n,) of all proposals together, each times the number of its draws."""
    return np.logaddexp.reduce([proposal(deviates) for proposal in proposals], axis=0)


def _normalised(log_weights: Array) -> Array:
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def _tempering(log_prior: Array, likelihood: Array, least: float) -> float:
    """The largest power of the likelihood, up to 1, at which the effective size is `least`."""

    def effective(power: float) -> float:
        return float(1.0 / (_normalised(log_prior + power * likelihood) ** 2).sum())

    if effective(1.0) >= least:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if effective(middle) >= least else (low, middle)
    return low


def _systematic(weights: Array, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices drawn by weight, each as often as its share allows (systematic resampling), in random order."""
    places = (np.arange(count) + rng.random()) / count
    return rng.permutation(np.minimum(np.searchsorted(np.cumsum(weights), places), len(weights) - 1))
