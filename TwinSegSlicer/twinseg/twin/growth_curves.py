"""Growth of a tumour's volume, without space: logistic or Gompertz curves with treatment, and their full posterior.

    logistic:  dV/dt = r V (1 - V/K) - kill,      Gompertz:  dV/dt = r V ln(K/V) - kill

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
from twinseg.twin.posterior import (
    TREATMENT_RESPONSE,
    Array,
    Parameter,
    Posterior,
    Prior,
    Visit,
    check_days,
    log_volume,
    posterior_notes,
    since_surgery,
)
from twinseg.twin.treatments import Treatments

Kind = Literal["gompertz", "logistic"]

_STENSJOEN = "Stensjøen et al. 2015: 1.4 % a day, doubling in 49.6 days"


class GrowthCurve:
    """A volume curve of `kind` that starts at a visit. Raises InputError where that visit shows no tumour."""

    simulation_sd = 0.0

    def __init__(self, start: Visit, kind: Kind = "gompertz", *, members: int = 500, steps: int = 1500) -> None:
        if start.volume_ml <= 0:
            raise InputError(f"growth: the visit on day {start.day:g} has no segmented tumour; segment it first.")
        self.start, self.kind, self.members, self.steps = start, kind, members, steps

    def prior(self) -> Prior:
        """The first volume's error, growth per day, headroom in mL, and the response to treatment."""
        return Prior(
            (
                Parameter("first_volume_error", "", "normal", 0.0, self.start.log_sd, "the first visit's own error"),
                Parameter("growth_per_day", "1/day", "log-normal", 0.014, 1.0, _STENSJOEN),
                Parameter("headroom_ml", "mL", "log-normal", 200.0, 1.0, "wide guess of this project"),
                *TREATMENT_RESPONSE,
            )
        )

    def simulate(self, parameters: Array, days: Sequence[float], treatments: Treatments) -> Array:
        """Volumes in mL (n, days) for samples (n,p) of the prior's parameters."""
        check_days(self.start, days, treatments)
        effect = TreatmentEffect(treatments)
        error, growth, headroom, alpha, chemo_kill = parameters.T
        volume = self.start.volume_ml * np.exp(error)
        headroom = np.maximum(headroom, 1e-9)
        capacity = volume + headroom
        share = volume / capacity
        rate = growth * capacity / headroom if self.kind == "logistic" else growth / np.log1p(headroom / volume)
        volumes, day = np.empty((len(parameters), len(days))), self.start.day
        for number, until in enumerate(days):
            pieces = effect.pieces(day, until) if until > day else []
            if self.kind == "logistic":
                p, q = local_map(pieces, rate, alpha, chemo_kill)
                share = share / (p + q * share)
            else:
                share = _gompertz(pieces, rate, alpha, chemo_kill, share)
            volumes[:, number], day = share * capacity, until
        return volumes

    def fit(self, visits: Sequence[Visit], treatments: Treatments, *, seed: int = 0) -> Posterior:
        """The full posterior by emcee (affine-invariant ensemble; Foreman-Mackey et al., PASP 125 (2013) 306-312)."""
        visits = since_surgery(visits, treatments)
        model = GrowthCurve(visits[0], self.kind, members=self.members, steps=self.steps)
        prior, later = model.prior(), visits[1:]
        if not later:
            samples = prior.from_normal(prior.draw(self.members, np.random.default_rng(seed)))
            effective = float(self.members)
        else:
            days = [visit.day for visit in later]
            measured = np.array([visit.log_volume for visit in later])
            sd = np.array([visit.log_sd for visit in later])

            def log_posterior(deviates: Array) -> Array:
                volumes = model.simulate(prior.from_normal(deviates), days, treatments)
                return prior.log_density(deviates) - 0.5 * (((log_volume(volumes) - measured) / sd) ** 2).sum(axis=1)

            deviates, effective = _sample(log_posterior, prior, self.steps, self.members, seed)
            samples = prior.from_normal(deviates)
        explained = model.simulate(samples[:100], [visit.day for visit in later], treatments)
        notes = posterior_notes(effective, visits, explained, treatments)
        return Posterior(model, prior.names, samples, visits, treatments, bool(later), effective, notes)

    def continued(
        self, parameters: Array, visits: Sequence[Visit], treatments: Treatments
    ) -> tuple[GrowthCurve, Array]:
        """The curve goes on as it is."""
        return self, parameters


def _gompertz(pieces: list[Piece], rate: Array, alpha: Array, chemo_kill: Array, share: Array) -> Array:
    """The share of the capacity after `pieces`: ln(share) decays to 0, and a kill is subtracted from it."""
    log_share = np.log(share)
    for piece in pieces:
        for fraction in piece.fractions:
            log_share = log_share - log_kill(alpha, fraction.mean_dose_gy)
        half = np.exp(-rate * piece.days / 2)
        log_share = (log_share * half - chemo_kill * piece.exposure) * half
    return np.exp(np.maximum(log_share, -700.0))


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
