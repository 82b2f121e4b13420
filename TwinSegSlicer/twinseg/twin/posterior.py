"""What is known of a patient's growth: visits, the prior of a model's parameters, and the posterior from both.

Every parameter is a function of a standard normal deviate, so that a prior is always N(0, I) in these deviates, and
samplers need not know about bounds or scales.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import qmc

from twinseg.errors import InputError
from twinseg.twin.dose_response import TreatmentEffect, enhancement_sd, seen
from twinseg.twin.treatments import Treatments

Array = NDArray[np.float64]

LEAST_RELATIVE_ERROR = 0.02
"""No volume is taken as known better than this."""

VOLUME_FLOOR_ML = 0.1
"""Volumes are compared as ln(volume + this): a vanished lesion is then a large but finite change."""

EXPLAINED = 40
"""So many samples are run again to see whether the model explains the visits."""

POOR_FIT_SD = 3.0
"""A fitted volume this many standard deviations off means that the model does not hold for the patient."""

PRIOR_ONLY = "One time point: growth is not known for this patient, this is what is known of patients in general."


@dataclass(frozen=True)
class Visit:
    """The tumour at one date: the day, its volume and that volume's standard deviation in mL, its mask (X,Y,Z)."""

    day: float
    volume_ml: float
    sd_ml: float
    mask: NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("day", "volume_ml", "sd_ml"):
            if not np.isfinite(getattr(self, name)):
                raise InputError(f"visit on day {self.day}: {name} is {getattr(self, name)}; give a number.")
        if self.volume_ml < 0 or self.sd_ml < 0:
            raise InputError(f"visit on day {self.day:g}: a volume and its deviation cannot be negative.")

    @property
    def log_volume(self) -> float:
        """ln(volume + floor)."""
        return float(log_volume(self.volume_ml))

    @property
    def log_sd(self) -> float:
        """The standard deviation of `log_volume`."""
        return max(self.sd_ml / (self.volume_ml + VOLUME_FLOOR_ML), LEAST_RELATIVE_ERROR)


def log_volume(volume_ml: Any) -> Any:
    """ln(volume + floor), volume in mL."""
    return np.log(np.maximum(volume_ml, 0.0) + VOLUME_FLOOR_ML)


def checked(visits: Sequence[Visit]) -> tuple[Visit, ...]:
    """The visits, if there are any and their days rise; else InputError."""
    if not visits:
        raise InputError("growth: there is no visit; segment at least one scan.")
    for before, after in pairwise(visits):
        if after.day <= before.day:
            raise InputError(f"growth: day {after.day:g} comes after day {before.day:g}; give visits in order of days.")
    return tuple(visits)


def since_surgery(visits: Sequence[Visit], treatments: Treatments) -> tuple[Visit, ...]:
    """The visits after the last operation that removed tumour: earlier ones say nothing of what is left."""
    visits = checked(visits)
    operations = [s.day for s in treatments.surgery or () if s.removes_tumour and s.day <= visits[-1].day]
    left = tuple(visit for visit in visits if not operations or visit.day > max(operations))
    if not left:
        raise InputError(f"growth: no scan after the operation on day {max(operations):g}; add one.")
    return left


@dataclass(frozen=True)
class Parameter:
    """One parameter's prior: `kind` with its two numbers, and where they come from.

    "log-uniform": lowest and highest; "log-normal": median and standard deviation of the logarithm; "normal": mean and
    standard deviation.
    """

    name: str
    unit: str
    kind: Literal["log-uniform", "log-normal", "normal"]
    first: float
    second: float
    source: str

    def from_normal(self, deviates: Array) -> Array:
        """The parameter's values for standard normal deviates."""
        if self.kind == "log-uniform":
            return self.first * (self.second / self.first) ** ndtr(deviates)
        if self.kind == "log-normal":
            return self.first * np.exp(self.second * deviates)
        return self.first + self.second * deviates


@dataclass(frozen=True)
class Prior:
    """Independent parameters. `allowed`, from samples (n,p) to (n,), leaves out combinations that cannot be."""

    parameters: tuple[Parameter, ...]
    allowed: Callable[[Array], NDArray[np.bool_]] | None = None

    @classmethod
    def of_growth(cls, *parameters: Parameter, allowed: Callable[[Array], NDArray[np.bool_]] | None = None) -> Prior:
        """The parameters of growth and, last, those of the response to treatment."""
        return cls((*parameters, *TREATMENT_RESPONSE), allowed)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names, in the order of the samples' columns."""
        return tuple(parameter.name for parameter in self.parameters)

    def from_normal(self, deviates: Array) -> Array:
        """Samples (n,p) for standard normal deviates (n,p)."""
        return np.stack([p.from_normal(deviates[:, i]) for i, p in enumerate(self.parameters)], axis=1)

    def log_density(self, deviates: Array) -> Array:
        """The log density (n,) of deviates (n,p); minus infinity, and not scaled up elsewhere, where not allowed."""
        density = -0.5 * (deviates**2).sum(axis=1) - 0.5 * deviates.shape[1] * np.log(2 * np.pi)
        return density if self.allowed is None else np.where(self.allowed(self.from_normal(deviates)), density, -np.inf)

    def share_allowed(self, rng: np.random.Generator) -> float:
        """The share of independent draws that is allowed."""
        return float(np.isfinite(self.log_density(rng.standard_normal((4096, len(self.parameters))))).mean())

    def draw(self, count: int, rng: np.random.Generator) -> Array:
        """Deviates (count,p) drawn from the prior, evenly spread (scrambled Sobol points)."""
        kept = np.empty((0, len(self.parameters)))
        points = qmc.MultivariateNormalQMC(np.zeros(len(self.parameters)), rng=rng)
        while len(kept) < count:
            deviates = points.random(1 << int(np.ceil(np.log2(max(count, 2)))))
            kept = np.concatenate([kept, deviates[np.isfinite(self.log_density(deviates))]])
        return kept[:count]


TREATMENT_RESPONSE = (
    Parameter(
        "radiosensitivity",
        "1/Gy",
        "log-normal",
        0.046,
        0.73,
        "mean 0.06 and standard deviation 0.05 per Gy: Qi, Schultz and Li 2006; Rockne et al. 2010 within it",
    ),
    Parameter(
        "chemo_kill",
        "per 75 mg/m²",
        "log-normal",
        0.008,
        1.0,
        "from Stupp et al. 2005: temozolomide put off progression by 1.9 months, of growth by 1.4 % a day, in some 105 "
        "standard doses; the spread is a wide guess of this project",
    ),
    Parameter(
        "clearance_half_life",
        "days",
        "log-normal",
        60.0,
        0.8,
        "wide guess of this project: what was killed shows on scans for weeks to months",
    ),
    Parameter(
        "unknown_kill",
        "1/day",
        "log-normal",
        0.0124,
        0.7,
        "1.4 % a day untreated (Stensjøen et al. 2015), but +40 % in the 6.9 months to the median progression under "
        "treatment (Stupp et al. 2005); the spread is a wide guess of this project",
    ),
)
"""How a tumour answers to treatment: radiosensitivity alpha, the log kill of one standard dose of a drug, how long
killed tumour stays visible, and how fast a treatment kills that nobody knows of."""


class GrowthModel(ABC):
    """A model of how a tumour's volume changes, started at one visit of a patient; `members` is the number of samples
    of a posterior."""

    start: Visit
    members: int

    @abstractmethod
    def prior(self) -> Prior:
        """What is known of the parameters before any second visit; `TREATMENT_RESPONSE` comes last."""

    @abstractmethod
    def living(self, parameters: Array, days: Array, treatments: Treatments) -> Array:
        """Volumes in mL (n,m) of living tumour for parameter samples (n,p) on rising days (m,) from the start on."""

    def simulation_sd(self, log_volumes: Array) -> Array:
        """The standard deviation of simulated `log_volumes` that comes from the simulation alone."""
        return np.zeros_like(log_volumes)

    @abstractmethod
    def started_at(self, visit: Visit) -> GrowthModel:
        """The same model, started at another visit."""

    @abstractmethod
    def sampled(
        self, log_measured: Array, sd: Array, days: Sequence[float], treatments: Treatments, seed: int
    ) -> tuple[Array, float]:
        """`members` posterior samples (members,p), given ln(volume + floor) on later days with errors sd, and the
        number of independent ones that they are worth."""

    @abstractmethod
    def continued(
        self, parameters: Array, visits: Sequence[Visit], treatments: Treatments
    ) -> tuple[GrowthModel, Array]:
        """The model and samples with which to go on from the last visit."""

    def simulate(self, parameters: Array, days: Sequence[float], treatments: Treatments) -> Array:
        """Volumes in mL (n, days) that scans without error show, for samples (n,p) on rising days from the start on.

        Raises InputError for other days, and where an operation lies among them.
        """
        check_days(self.start, days, treatments)
        half_life = parameters[:, self.prior().names.index("clearance_half_life")]
        effect = TreatmentEffect(treatments)
        return seen(effect, self.start.day, days, half_life, lambda on: self.living(parameters, on, treatments))

    def fit(self, visits: Sequence[Visit], treatments: Treatments, *, seed: int = 0) -> Posterior:
        """The posterior given the visits since surgery, by the model started at the first of them."""
        visits = since_surgery(visits, treatments)
        model, later = self.started_at(visits[0]), visits[1:]
        prior, days = model.prior(), [visit.day for visit in later]
        if later:
            measured = np.array([visit.log_volume for visit in later])
            samples, effective = model.sampled(measured, log_sds(later, treatments), days, treatments, seed)
        else:
            samples = prior.from_normal(prior.draw(self.members, np.random.default_rng(seed)))
            effective = float(self.members)
        explained = model.simulate(samples[:EXPLAINED], days, treatments)
        notes = posterior_notes(effective, visits, explained, treatments)
        return Posterior(model, prior.names, samples, visits, treatments, bool(later), effective, notes)


@dataclass(frozen=True)
class Posterior:
    """Equally likely parameter samples (n,p) of `model`, given `visits`.

    `informed` is False where they are the prior, for want of a second visit. `effective_size` is the number of
    independent samples that these are worth.
    """

    model: GrowthModel
    names: tuple[str, ...]
    samples: Array
    visits: tuple[Visit, ...]
    treatments: Treatments
    informed: bool
    effective_size: float
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """For each parameter median, 5 % and 95 % quantile; whether visits informed it; notes. Ready for JSON."""
        low, median, high = np.quantile(self.samples, [0.05, 0.5, 0.95], axis=0).tolist()
        return {
            "informed": self.informed,
            "effective_size": self.effective_size,
            "notes": list(self.notes),
            "parameters": {
                name: {"median": m, "low90": a, "high90": b}
                for name, a, m, b in zip(self.names, low, median, high, strict=True)
            },
        }


def posterior_notes(
    effective_size: float, visits: Sequence[Visit], explained_ml: Array, treatments: Treatments
) -> tuple[str, ...]:
    """What a reader of this posterior must know, in plain words.

    `explained_ml` (n, visits - 1) are volumes of the later visits, simulated with samples of the posterior.
    """
    notes = [PRIOR_ONLY] if len(visits) == 1 else []
    if len(visits) > 1 and effective_size < 30:
        notes.append(f"The fit is rough: it rests on only {effective_size:.0f} independent samples.")
    for visit, volumes, sd in zip(visits[1:], explained_ml.T, log_sds(visits[1:], treatments), strict=True):
        if abs(float(np.median(log_volume(volumes))) - visit.log_volume) > POOR_FIT_SD * sd:
            notes.append(
                f"The model does not explain day {visit.day:g}: {visit.volume_ml:.1f} mL were measured, "
                f"{float(np.median(volumes)):.1f} mL is the nearest it comes. Do not rely on its forecast."
            )
    return (*notes, *treatments.assumptions())


def log_sds(visits: Sequence[Visit], treatments: Treatments) -> Array:
    """The standard deviations (n,) of the visits' `log_volume` as a measure of tumour."""
    return np.hypot([visit.log_sd for visit in visits], enhancement_sd(treatments, [visit.day for visit in visits]))


def fresh_start(visits: Sequence[Visit], treatments: Treatments) -> Visit | None:
    """The last of several visits, if a model can start anew from it: it shows tumour, and no treatment that is known of
    lies before it. That thins out cells, and what it killed may still show, neither of which a visit tells."""
    last = visits[-1]
    treated = TreatmentEffect(treatments).between(visits[0].day, last.day)
    return last if len(visits) > 1 and last.volume_ml > 0 and not treated else None


def check_days(start: Visit, days: Sequence[float], treatments: Treatments) -> None:
    """Raises InputError where days do not rise, begin before the start, or an operation lies among them."""
    if any(b < a for a, b in zip([start.day, *days], days, strict=False)):
        raise InputError(f"growth: days must rise from day {start.day:g} on; found {[float(day) for day in days]}.")
    for surgery in treatments.surgery or ():
        if surgery.removes_tumour and days and start.day < surgery.day <= days[-1]:
            raise InputError(
                f"growth: the operation on day {surgery.day:g} cannot be simulated; start from a scan after it."
            )
