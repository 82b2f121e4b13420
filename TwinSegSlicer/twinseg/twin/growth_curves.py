"""Growth of a tumour's volume, without space: logistic or Gompertz curves with treatment, and their full posterior.

    logistic:  dV/dt = (r - kill) V (1 - V/K),      Gompertz:  dV/dt = r V ln(K/V) - kill V

The parameters are the volume at the first visit, the relative growth per day at that volume (which scans show, unlike
r), and the headroom K - V. Priors: Stensjøen et al., Neuro-Oncology 17 (2015) 1402-1411, followed 106 untreated
glioblastomas: the median volume doubled in 49.6 days (1.4 % a day), with a wide spread, and Gompertz fitted best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import emcee
import numpy as np

from twinseg.errors import InputError
from twinseg.twin.dose_response import Piece, TreatmentEffect, local_map, log_kill
from twinseg.twin.posterior import Array, GrowthModel, Parameter, Prior, Visit, fresh_start, log_volume
from twinseg.twin.treatments import Treatments

Kind = Literal["gompertz", "logistic"]

LEAST_HEADROOM = 1e-6
"""Of the volume: a tumour at its capacity to the bit would not grow, nor could its rate be told."""

_STENSJOEN = "Stensjøen et al. 2015: 1.4 % a day, doubling in 49.6 days"


class GrowthCurve(GrowthModel):
    """A volume curve of `kind` that starts at a visit. Raises InputError where that visit shows no tumour."""

    def __init__(self, start: Visit, kind: Kind = "gompertz", *, members: int = 500, steps: int = 1500) -> None:
        if start.volume_ml <= 0:
            raise InputError(f"growth: the visit on day {start.day:g} has no segmented tumour; segment it first.")
        self.start, self.kind, self.members, self.steps = start, kind, members, steps

    def prior(self) -> Prior:
        """The first volume's error, growth per day, headroom in mL, and the response to treatment."""
        return Prior.of_growth(
            Parameter("first_volume_error", "", "normal", 0.0, self.start.log_sd, "the first visit's own error"),
            Parameter("growth_per_day", "1/day", "log-normal", 0.014, 1.0, _STENSJOEN),
            Parameter("headroom_ml", "mL", "log-normal", 200.0, 1.0, "wide guess of this project"),
        )

    def living(self, parameters: Array, days: Array, treatments: Treatments) -> Array:
        """Volumes in mL (n,m) for samples (n,p) of the prior's parameters."""
        error, growth, headroom, alpha, chemo_kill, _, unknown = parameters.T
        effect = TreatmentEffect(treatments, unknown)
        volume = self.start.volume_ml * np.exp(error)
        headroom = np.maximum(headroom, LEAST_HEADROOM * volume)
        capacity = volume + headroom
        share = volume / capacity
        rate = growth * capacity / headroom if self.kind == "logistic" else growth / np.log1p(headroom / volume)
        volumes, day = np.empty((len(parameters), len(days))), self.start.day
        for number, until in enumerate(days.tolist()):
            pieces = effect.pieces(day, until) if until > day else []
            if self.kind == "logistic":
                p, q = local_map(pieces, rate, alpha, chemo_kill)
                share = share / (p + q * share)
            else:
                share = _gompertz(pieces, rate, alpha, chemo_kill, share)
            volumes[:, number], day = share * capacity, until
        return volumes

    def started_at(self, visit: Visit) -> GrowthCurve:
        """The same kind of curve from another visit on."""
        return GrowthCurve(visit, self.kind, members=self.members, steps=self.steps)

    def sampled(
        self, log_measured: Array, sd: Array, days: Sequence[float], treatments: Treatments, seed: int
    ) -> tuple[Array, float]:
        """The full posterior by emcee (affine-invariant ensemble; Foreman-Mackey et al., PASP 125 (2013) 306-312)."""
        prior = self.prior()

        def log_posterior(deviates: Array) -> Array:
            volumes = self.simulate(prior.from_normal(deviates), days, treatments)
            return prior.log_density(deviates) - 0.5 * (((log_volume(volumes) - log_measured) / sd) ** 2).sum(axis=1)

        deviates, effective = _sample(log_posterior, prior, self.steps, self.members, seed)
        return prior.from_normal(deviates), effective

    def continued(
        self, parameters: Array, visits: Sequence[Visit], treatments: Treatments
    ) -> tuple[GrowthCurve, Array]:
        """The same curves, told from the last visit on where they can start anew from it."""
        last = fresh_start(visits, treatments)
        if last is None:
            return self, parameters
        error, growth, headroom = parameters[:, :3].T
        volume = self.start.volume_ml * np.exp(error)
        headroom = np.maximum(headroom, LEAST_HEADROOM * volume)
        grown = self.living(parameters, np.array([last.day]), treatments)[:, 0]
        left = np.maximum(volume + headroom - grown, LEAST_HEADROOM * grown)
        if self.kind == "logistic":
            growth = growth * left / headroom
        else:
            growth = growth * np.log1p(left / grown) / np.log1p(headroom / volume)
        told = [np.log(grown / last.volume_ml), growth, left]
        return self.started_at(last), np.column_stack([*told, parameters[:, 3:]])


def _gompertz(pieces: list[Piece], rate: Array, alpha: Array, chemo_kill: Array, share: Array) -> Array:
    """The share of the capacity after `pieces`: ln(share) decays to 0, and a kill is subtracted from it."""
    log_share = np.log(share)
    for piece in pieces:
        for fraction in piece.fractions:
            log_share = log_share - log_kill(alpha, fraction.mean_dose_gy)
        # Growth, kill, growth (Strang): exact without the drug, and second order in its few half-lives
        half = np.exp(-rate * piece.days / 2)
        log_share = (log_share * half - chemo_kill * piece.exposure) * half
        log_share = np.maximum(log_share - piece.unknown_kill * (1 - half**2) / rate, _LEAST)
    return np.exp(log_share)


_LEAST = -700.0  # what double precision can take the exponential of


def _sample(
    log_posterior: Callable[[Array], Array], prior: Prior, steps: int, members: int, seed: int
) -> tuple[Array, float]:
    """`members` deviates (members,p) of the chain's second two thirds, and the effective size."""
    size = len(prior.parameters)
    walkers = 8 * size
    rng = np.random.default_rng(seed)
    # Walkers that start where nothing fits stay there for long: the best of many draws from the prior start
    draws = prior.draw(4096, rng)
    start = draws[np.argsort(log_posterior(draws))[-walkers:]]
    moves = [(emcee.moves.DEMove(), 0.8), (emcee.moves.DESnookerMove(), 0.2)]
    sampler = emcee.EnsembleSampler(walkers, size, log_posterior, vectorize=True, moves=moves)
    sampler.random_state = np.random.RandomState(seed).get_state()
    sampler.run_mcmc(start, steps)
    chain = sampler.get_chain(discard=steps // 3, flat=True)
    correlation = float(np.max(sampler.get_autocorr_time(discard=steps // 3, tol=0)))
    chosen = rng.choice(len(chain), members, replace=False)
    return chain[chosen], min(len(chain) / correlation, float(members))
