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
from twinseg.twin.posterior import Array, GrowthModel, Parameter, Prior, Visit, fresh_start, log_volume
from twinseg.twin.reaction_diffusion import Ensemble, Rates
from twinseg.twin.start_density import StartDensities
from twinseg.twin.treatments import Treatments

VISIBLE_ON_FLAIR, VISIBLE_ENHANCING = 0.16, 0.8
"""The density at a segmentation's edge, as a share of the most that tissue holds: FLAIR or T2, and contrast-enhanced T1
(Swanson et al., Br. J. Cancer 98 (2008) 113-119)."""

WIDEST_FRONT_MM = 6.0
"""sqrt(D / rho): a wider front has no edge that a segmentation could follow, and its volume hangs on details."""

START_SD, GROWTH_SD = 0.02, 0.06
"""What the coarse grid and the density at the start make wrong in ln(volume): this, and this share of its change. Seen
on 40 phantoms of another scheme on a finer grid, simulated with their own parameters (Testing/Benchmarks/growth.py)."""

BATCH_VOXELS = 400_000
"""Samples run together have this many voxels: enough to hide the cost of a call, few enough to stay in the cache."""


class SpatialGrowth(GrowthModel):
    """Reaction and diffusion (`reaction_diffusion`), started from the mask of one visit.

    `visible_density` is the density at the segmentation's edge; `reach_mm` how far beyond the tumour the surroundings
    are followed, on a grid of some `coarse_voxels`. `members` is the number of samples of a posterior. `look` is called
    after every batch of samples, and may raise to stop the work. Raises InputError where the start has no mask, an
    empty one, or one that does not fit `brain`.
    """

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
        look: Callable[[], None] = lambda: None,
    ) -> None:
        if start.mask is None or not start.mask.any() or start.volume_ml <= 0:
            raise InputError(f"growth: the visit on day {start.day:g} has no segmented tumour; segment it first.")
        if start.mask.shape != brain.white.shape:
            raise InputError(f"growth: the mask {start.mask.shape} and the brain {brain.white.shape} differ in shape.")
        self.start, self.brain, self.visible_density, self.look = start, brain, visible_density, look
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
        """D and rho by published growth within published ranges; the first volume's error; response to treatment."""
        return Prior.of_growth(
            Parameter("diffusion", "mm²/day", "log-normal", 0.1, 1.0, f"{_SPEED}; {_RANGES}"),
            Parameter("proliferation", "1/day", "log-normal", 0.0142, 1.0, f"{_SPEED}; {_RANGES}"),
            Parameter("white_to_grey", "", "log-normal", 7.5, 0.35, _RATIO),
            Parameter("first_volume_error", "", "normal", 0.0, self.start.log_sd, "the first visit's own error"),
            allowed=_allowed,
        )

    def living(self, parameters: Array, days: Array, treatments: Treatments) -> Array:
        """Volumes in mL (n,m), as a segmentation would measure them without error."""
        volumes = np.empty((len(parameters), len(days)))

        def measure(day: int, chosen: NDArray[np.intp], shares: Tensor) -> None:
            volumes[chosen, day] = shares.sum(dim=(0, 1, 2)).cpu().numpy()

        self._run(parameters, days.tolist(), treatments, measure)
        return volumes * self._coarse.voxel_ml * self._measured_share

    def probability_map(self, parameters: Array, day: float, treatments: Treatments) -> NDArray[np.float32]:
        """The probability (X,Y,Z), on the brain's grid, that a voxel is visible living tumour on `day`."""
        total = torch.zeros(self._coarse.tissue.shape, device=self.device)

        def collect(_: int, __: NDArray[np.intp], shares: Tensor) -> None:
            total.add_(shares.sum(dim=3))

        self._run(parameters, [day], treatments, collect)
        return self._coarse.to_brain((total / len(parameters)).cpu().numpy())

    def simulation_sd(self, log_volumes: Array) -> Array:
        """Grows with the change since the start."""
        return np.hypot(START_SD, GROWTH_SD * (log_volumes - self.start.log_volume))

    def started_at(self, visit: Visit) -> SpatialGrowth:
        """The same model from the mask of another visit on."""
        return self if visit is self.start else SpatialGrowth(visit, self.brain, look=self.look, **self._options)

    def sampled(
        self, log_measured: Array, sd: Array, days: Sequence[float], treatments: Treatments, seed: int
    ) -> tuple[Array, float]:
        """By importance sampling, with `members` runs."""
        prior, treated = self.prior(), TreatmentEffect(treatments).between(self.start.day, days[-1])
        silent = set() if treated else {"radiosensitivity", "chemo_kill", "clearance_half_life"}
        if not treatments.kills_unknown:
            silent.add("unknown_kill")
        return importance_sample(
            prior,
            lambda parameters: log_volume(self.simulate(parameters, days, treatments)),
            log_measured,
            np.hypot(sd, self.simulation_sd(log_measured)),
            informed=[name for name in prior.names if name not in silent],
            members=self.members,
            seed=seed,
        )

    def continued(
        self, parameters: Array, visits: Sequence[Visit], treatments: Treatments
    ) -> tuple[SpatialGrowth, Array]:
        """Start anew from the last mask where that is possible, each sample with its own volume of that day."""
        last = fresh_start(visits, treatments)
        if last is None or last.mask is None or not last.mask.any():
            return self, parameters
        parameters = parameters.copy()
        simulated = self.simulate(parameters, [last.day], treatments)[:, 0]
        parameters[:, _FIRST_VOLUME_ERROR] = log_volume(simulated) - last.log_volume
        return self.started_at(last), parameters

    def _run(
        self,
        parameters: Array,
        days: Sequence[float],
        treatments: Treatments,
        collect: Callable[[int, NDArray[np.intp], Tensor], None],
    ) -> None:
        """Run all samples in batches of like speed; `collect` gets the day's number, who, and their visible shares."""
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
                TreatmentEffect(treatments, parameters[chosen, _UNKNOWN_KILL]),
                on_grid=self._coarse.from_brain,
            )
            for number, day in enumerate(days):
                members.advance(day)
                self.look()
                collect(number, chosen, self._coarse.visible_share(members.density, self.visible_density))


def _allowed(samples: Array) -> NDArray[np.bool_]:
    """D and rho within their ranges, and a front that is not too wide."""
    diffusion, proliferation = samples[:, 0], samples[:, 1]
    moves = (diffusion >= 0.02) & (diffusion <= 1.3) & (diffusion <= WIDEST_FRONT_MM**2 * proliferation)
    return np.asarray(moves & (proliferation >= 0.0027) & (proliferation <= 0.19))


_FIRST_VOLUME_ERROR, _UNKNOWN_KILL = 3, 7
_SPEED = (
    "so that a ball of 17.7 mL, the median at diagnosis, grows by 1.4 % a day at the median (Stensjøen et al. 2015), "
    "with about the spread of the volume curves' prior"
)
_RANGES = (
    "cut to 0.02-1.3 mm²/day and 0.0027-0.19 /day, as given in the project's design; Harpold, Alvord and Swanson 2007 "
    "review such values"
)
_RATIO = "5 (Swanson, Alvord and Murray 2000) to 10 and more (Jbabdi et al. 2005)"
