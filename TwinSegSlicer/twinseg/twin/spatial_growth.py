"""The growth model in space: reaction and diffusion in a patient's own brain, from a segmentation on.

It works on a coarse copy of the surroundings of the tumour, so that hundreds of parameter samples can be run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinseg.errors import InputError
from twinseg.twin.coarse_grid import Brain, CoarseGrid
from twinseg.twin.dose_response import TreatmentEffect
from twinseg.twin.importance import importance_sample
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
    treated_between,
)
from twinseg.twin.reaction_diffusion import Ensemble, Rates
from twinseg.twin.start_density import StartDensities
from twinseg.twin.treatments import Treatments

VISIBLE_ON_FLAIR, VISIBLE_ENHANCING = 0.16, 0.8
"""The density at a segmentation's edge, as a share of the most that tissue holds: FLAIR or T2, and contrast-enhanced T1
(Swanson et al., Br. J. Cancer 98 (2008) 113-119)."""

WIDEST_FRONT_MM = 6.0
"""sqrt(D / rho): a wider front has no edge that a segmentation could follow, and its volume hangs on details."""

BATCH_VOXELS = 400_000
"""Samples run together have this many voxels: enough to hide the cost of a call, few enough to stay in the cache."""


class SpatialGrowth:
    """Reaction and diffusion (`reaction_diffusion`), started from the mask of one visit.

    `visible_density` is the density at the segmentation's edge; `reach_mm` how far beyond the tumour the surroundings
    are followed, on a grid of some `coarse_voxels`. `members` is the number of samples of a posterior. Raises
    InputError where the start has no mask, an empty one, or one that does not fit `brain`.
    """

    simulation_sd = 0.04  # coarse grid, start density: as seen on phantoms of a finer grid

    def __init__(
        self,
        start: Visit,
        brain: Brain,
        *,
        visible_density: float = VISIBLE_ON_FLAIR,
        reach_mm: float = 40.0,
        members: int = 500,
        coarse_voxels: int = 40_000,
        device: str = "cpu",
    ) -> None:
        if start.mask is None or not start.mask.any() or start.volume_ml <= 0:
            raise InputError(f"growth: the visit on day {start.day:g} has no segmented tumour; segment it first.")
        if start.mask.shape != brain.white.shape:
            raise InputError(f"growth: the mask {start.mask.shape} and the brain {brain.white.shape} differ in shape.")
        self.start, self.brain, self.visible_density = start, brain, visible_density
        self._options: dict[str, Any] = {
            "visible_density": visible_density,
            "reach_mm": reach_mm,
            "members": members,
            "coarse_voxels": coarse_voxels,
            "device": device,
        }
        self.members, self.device = members, device
        self._coarse = CoarseGrid(start.mask, brain, reach_mm, coarse_voxels, device)
        self._distance, self._filled_ml = self._coarse.distance(start.mask)
        # A necrotic hole, or a volume measured otherwise, keeps its share of what the model fills
        self._measured_share = start.volume_ml / self._filled_ml

    @cached_property
    def _start(self) -> StartDensities:
        return StartDensities(self._coarse, self._distance, self._filled_ml, self.visible_density)

    def prior(self) -> Prior:
        """D and rho with published ranges; the first volume's error; and the response to treatment."""
        return Prior(
            (
                Parameter("diffusion", "mm²/day", "log-uniform", 0.02, 1.3, _RANGES),
                Parameter("proliferation", "1/day", "log-uniform", 0.0027, 0.19, _RANGES),
                Parameter("white_to_grey", "", "log-normal", 7.5, 0.35, _RATIO),
                Parameter("first_volume_error", "", "normal", 0.0, self.start.log_sd, "the first visit's own error"),
                *TREATMENT_RESPONSE,
            ),
            allowed=lambda samples: samples[:, 0] / samples[:, 1] <= WIDEST_FRONT_MM**2,
        )

    def simulate(self, parameters: Array, days: Sequence[float], treatments: Treatments) -> Array:
        """Volumes in mL (n, days), as a segmentation would measure them without error."""
        volumes = np.empty((len(parameters), len(days)))

        def measure(day: int, chosen: NDArray[np.intp], seen: Tensor) -> None:
            volumes[chosen, day] = seen.sum(dim=(0, 1, 2)).cpu().numpy() * self._coarse.voxel_ml * self._measured_share

        self._run(parameters, days, treatments, measure)
        return volumes

    def probability_map(self, parameters: Array, day: float, treatments: Treatments) -> NDArray[np.float32]:
        """The probability (X,Y,Z), on the brain's grid, that a voxel is visible tumour on `day`."""
        total = torch.zeros(self._coarse.tissue.shape, device=self.device)

        def collect(_: int, __: NDArray[np.intp], seen: Tensor) -> None:
            total.add_(seen.sum(dim=3))

        self._run(parameters, [day], treatments, collect)
        return self._coarse.to_brain((total / len(parameters)).cpu().numpy())

    def fit(self, visits: Sequence[Visit], treatments: Treatments, *, seed: int = 0) -> Posterior:
        """Posterior by importance sampling on the volumes of all visits since surgery, with `self.members` runs."""
        visits = since_surgery(visits, treatments)
        model = self._started(visits[0])
        prior = model.prior()
        if len(visits) == 1:
            samples = prior.from_normal(prior.draw(self.members, np.random.default_rng(seed)))
            effective = float(self.members)
        else:
            days = [visit.day for visit in visits[1:]]
            names = prior.names if treated_between(visits, treatments) else prior.names[: -len(TREATMENT_RESPONSE)]
            samples, effective = importance_sample(
                prior,
                lambda parameters: log_volume(model.simulate(parameters, days, treatments)),
                np.array([visit.log_volume for visit in visits[1:]]),
                np.array([np.hypot(visit.log_sd, self.simulation_sd) for visit in visits[1:]]),
                informed=names,
                members=self.members,
                seed=seed,
            )
        explained = model.simulate(samples[:40], [visit.day for visit in visits[1:]], treatments)
        notes = posterior_notes(effective, visits, explained, treatments)
        return Posterior(model, prior.names, samples, visits, treatments, len(visits) > 1, effective, notes)

    def continued(
        self, parameters: Array, visits: Sequence[Visit], treatments: Treatments
    ) -> tuple[SpatialGrowth, Array]:
        """Start anew from the last mask, each sample with its own volume of that day, if no treatment lies between.

        Treatment thins out cells inside the mask, which a mask does not tell: then the run goes on from the start.
        """
        last = visits[-1]
        if len(visits) == 1 or last.mask is None or not last.mask.any() or treated_between(visits, treatments):
            return self, parameters
        parameters = parameters.copy()
        simulated = self.simulate(parameters, [last.day], treatments)[:, 0]
        parameters[:, _FIRST_VOLUME_ERROR] = log_volume(simulated) - last.log_volume
        return self._started(last), parameters

    def _started(self, visit: Visit) -> SpatialGrowth:
        return self if visit is self.start else SpatialGrowth(visit, self.brain, **self._options)

    def _run(
        self,
        parameters: Array,
        days: Sequence[float],
        treatments: Treatments,
        collect: Callable[[int, NDArray[np.intp], Tensor], None],
    ) -> None:
        """Run all samples in batches of like speed; `collect` gets the day's number, who, and their visible shares."""
        check_days(self.start, days, treatments)
        effect = TreatmentEffect(treatments)
        rates = Rates(*(parameters[:, column] for column in (0, 1, 2, 4, 5)))
        width = np.sqrt(rates.diffusion / rates.proliferation)
        factor = np.exp(parameters[:, _FIRST_VOLUME_ERROR])
        # Alike in step length, so that no sample waits for a faster one
        order = np.lexsort((rates.diffusion, np.round(np.log(rates.proliferation) * 2)))
        batch = int(np.clip(BATCH_VOXELS // np.prod(self._coarse.tissue.shape), 4, 64))
        for first in range(0, len(order), batch):
            chosen = order[first : first + batch]
            members = Ensemble(
                self._coarse.tissue,
                rates[chosen],
                self._start.densities(width[chosen], rates.white_to_grey[chosen], factor[chosen]),
                self.start.day,
                effect,
                on_grid=self._coarse.from_brain,
            )
            for number, day in enumerate(days):
                members.advance(day)
                collect(number, chosen, self._coarse.visible_share(members.density, self.visible_density))


_FIRST_VOLUME_ERROR = 3
_RANGES = "published range, as given in the project's design; Harpold, Alvord and Swanson 2007 review such values"
_RATIO = "5 (Swanson, Alvord and Murray 2000) to 10 and more (Jbabdi et al. 2005)"
