"""How exact, how fast and how honest the growth models are.

    python Testing/Benchmarks/growth.py [--quick] [--json FILE] [--phantoms N] [--first N] [--members N]

1. Cells after up to 180 days at the default step against a step ten times finer, over the corners of the prior's range.
2. The front's speed against 2 sqrt(D rho) in one dimension: from the travelling wave, and from a sharp edge, where a
   front lags by 3/2 sqrt(D / rho) ln(t) (Bramson 1983), so that the speed between two late times is compared with
   the theory after this lag is taken off. On voxels wider than the front the wave is not the lattice's own and has to
   adapt first: the second figure is the one to go by there.
3. 270 days on a 77 x 116 x 36 grid, beside an explicit scheme (the phantoms' own) at its largest step for 1 % error.
4. A posterior of 500 members from three visits.
5. Calibration: synthetic patients whose truth is made on a finer grid by the phantoms' explicit scheme, whose
   parameters come from the prior, and whose volumes are measured with 6 % error. Of their sealed fourth visits, and of
   their true parameters, the 90 % intervals should hold 85-95 %.
6. What the simulation alone makes wrong, with the true parameters and no noise.
7. Calibration of volume curves, also with three known visits and a sealed fourth: of patients of whose treatment
   nothing is known, and of such that were irradiated between the first two visits.

`--quick` makes 1 and 2 at fewer places, 60 members in 4 (scaled up), 3 patients in 5 and one in 6 and 7, too few for a
verdict.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.ndimage import gaussian_filter
from scipy.stats import beta

from twinseg.errors import InputError
from twinseg.phantom.growth import GrowthSolver, initial_density
from twinseg.twin.coarse_grid import Brain
from twinseg.twin.dose_response import TreatmentEffect, enhancement_sd
from twinseg.twin.forecast import forecast
from twinseg.twin.growth_curves import GrowthCurve
from twinseg.twin.posterior import Visit, log_volume
from twinseg.twin.reaction_diffusion import Ensemble, Rates, TissueGrid, front_speed, lattice_factor
from twinseg.twin.spatial_growth import VISIBLE_ON_FLAIR, SpatialGrowth
from twinseg.twin.treatments import Treatments, radiotherapy_40_gy_hypofractionated
from twinseg.volumes import write_atomically

UNTREATED = Treatments.none_given()
NOISE = 0.06
TRUTH_SPACING, BRAIN_RADIUS_MM = 2.0, 42.0
CORNERS = ((0.16, 0.0226), (0.3, 0.05), (1.3, 0.0365), (1.3, 0.19), (0.02, 0.19), (0.02, 0.0027))
"""D (mm2/day) and rho (per day): the prior's median and its corners, as far as a front is narrower than 6 mm."""


def rates(diffusion: float, proliferation: float) -> Rates:
    """One sample with 7.5 times faster diffusion in white matter."""
    return Rates(*(np.array([x]) for x in (diffusion, proliferation, 7.5, 0.045, 0.02)))


def head(shape: tuple[int, int, int], spacing: float, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """An ellipsoid of brain that fills `shape`, and the patches of it that are white matter."""
    rng = np.random.default_rng(seed)
    axes = [np.linspace(-1, 1, n) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    brain = x**2 + y**2 + z**2 < 0.97
    patches = gaussian_filter(rng.standard_normal(shape), 8.0 / spacing)
    return brain, brain & (patches > np.quantile(patches, 0.45))


def grown(diffusion: float, proliferation: float, days: float, step: float | None = None) -> tuple[float, float, float]:
    """Cells (in mL of full tissue), seconds and the step in days, on the 77 x 116 x 36 grid of 2 mm."""
    shape = (77, 116, 36)
    brain, white = head(shape, 2.0, 0)
    grid = TissueGrid(white, brain & ~white, (2.0, 2.0, 2.0))
    seed = initial_density(shape, 2.0, np.array([[60.0, 100.0, 36.0]]), 5.0) * brain
    began = time.perf_counter()
    members = Ensemble(
        grid,
        rates(diffusion, proliferation),
        torch.as_tensor(seed)[..., None].contiguous(),
        0.0,
        TreatmentEffect(UNTREATED),
        step_days=step,
    )
    members.advance(days)
    cells = float(members.density.double().sum()) * 0.008
    return cells, time.perf_counter() - began, members.longest_step


def step_convergence(quick: bool) -> list[dict[str, float]]:
    """Cells at the default step against a ten times finer one."""
    rows = []
    for diffusion, proliferation in CORNERS[:2] if quick else CORNERS:
        days = min(180.0, 25.0 / front_speed(diffusion, proliferation))  # before it fills the head
        cells, _, step = grown(diffusion, proliferation, days)
        fine, _, _ = grown(diffusion, proliferation, days, step / 10)
        rows.append(
            {
                "diffusion": diffusion,
                "proliferation": proliferation,
                "days": days,
                "step_days": step,
                "cells_ml": cells,
                "error_percent": 100 * (cells / fine - 1),
            }
        )
    return rows


def travelling_wave(depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """The front u'' + 2 u' + u (1 - u) = 0 that falls from 1 to 0, shot from u = 1."""
    small, slope = 1e-6, np.sqrt(2.0) - 1.0
    start = [1 - small, -small * slope]
    shot = solve_ivp(
        lambda _, u: [u[1], -2 * u[1] - u[0] * (1 - u[0])], (0, 110), start, rtol=1e-10, atol=1e-45, dense_output=True
    )
    return np.clip(shot.sol(np.clip(depth + 30, 0, 110))[0], 1e-38, 1.0)


def speed_error(diffusion: float, proliferation: float, spacing: float, sharp: bool) -> float:
    """The front's speed at the default step against the theory, in percent."""
    width, speed = np.sqrt(diffusion / proliferation), front_speed(diffusion, proliferation)
    unit = 1 / proliferation
    times = np.array([20.0, 60.0]) * unit if sharp else np.array([2.0, 22.0]) * unit
    length = speed * times[1] * 1.1 + 100 * width
    x = np.arange(0, length, spacing)
    profile = np.where(x < 10 * width, 1.0, 0.0) if sharp else travelling_wave(x / width - 10)
    line = np.ones((len(x), 1, 1))
    members = Ensemble(
        TissueGrid(line, 0 * line, (spacing,) * 3),
        rates(diffusion, proliferation),
        torch.as_tensor(profile, dtype=torch.float32).reshape(-1, 1, 1, 1).contiguous(),
        0.0,
        TreatmentEffect(UNTREATED),
        windowed=False,
    )
    places = []
    for day in times.tolist():
        members.advance(day)
        level = members.density.flatten().double().numpy()
        edge = int(np.flatnonzero(level > 0.5)[-1])
        above, below = np.log(level[edge] / (1 - level[edge])), np.log(level[edge + 1] / (1 - level[edge + 1]))
        places.append(x[edge] + spacing * above / (above - below))
    lag = 1.5 * width * np.log(times[1] / times[0]) if sharp else 0.0
    return float(100 * ((places[1] - places[0] + lag) / (speed * (times[1] - times[0])) - 1))


def front_speeds(quick: bool) -> list[dict[str, Any]]:
    """Errors of the front's speed, by width of the front in voxels."""
    places = [(0.16, 0.0226, 2.0), (0.16, 0.0226, 1.0), (0.16, 0.0226, 4.0), (1.3, 0.0365, 4.0), (0.1, 0.1, 2.0)]
    rows = []
    for diffusion, proliferation, spacing in places[:1] if quick else places:
        row: dict[str, Any] = {"diffusion": diffusion, "proliferation": proliferation, "spacing_mm": spacing}
        row["voxels_a_width"] = np.sqrt(diffusion / proliferation) / spacing
        row["from_wave_percent"] = speed_error(diffusion, proliferation, spacing, sharp=False)
        row["from_edge_percent"] = speed_error(diffusion, proliferation, spacing, sharp=True)
        rows.append(row)
    return rows


def explicit_seconds(diffusion: float, proliferation: float, days: float) -> float:
    """Seconds of the phantoms' explicit scheme on the same grid at 1 % error.

    Its steps are of first order: a front's speed is low by rho * days / 4, which bounds them beside stability.
    """
    brain, white = head((77, 116, 36), 2.0, 0)
    field = np.where(white, diffusion, diffusion / 7.5).astype(np.float32) * brain
    density = initial_density(brain.shape, 2.0, np.array([[60.0, 100.0, 36.0]]), 5.0) * brain
    began = time.perf_counter()
    solver, steps = GrowthSolver(field, 2.0, proliferation), int(np.ceil(days * proliferation / 0.04))
    for _ in range(steps):
        density = solver.advance(density, days / steps)
    return time.perf_counter() - began


def speed_of_270_days(quick: bool) -> list[dict[str, float]]:
    """Seconds for 270 days, ours and the explicit scheme's."""
    rows = []
    for diffusion, proliferation in CORNERS[:2] if quick else CORNERS:
        row = {"diffusion": diffusion, "proliferation": proliferation}
        row["seconds"] = min(grown(diffusion, proliferation, 270.0)[1] for _ in range(1 if quick else 3))
        row["explicit_seconds"] = explicit_seconds(diffusion, proliferation, 270.0)
        rows.append(row)
    return rows


class Phantom:
    """A synthetic patient: truth from the prior, on a grid of 2 mm by an explicit scheme, followed for three visits
    and a sealed fourth. Days are drawn; the first volume is 5 to 25 mL. `noise` is the measurement's relative error."""

    def __init__(self, seed: int, noise: float = NOISE) -> None:
        self.rng, self.noise = np.random.default_rng((7, seed)), noise
        shape = (int(2 * BRAIN_RADIUS_MM / TRUTH_SPACING),) * 3
        brain, white = head(shape, TRUTH_SPACING, seed)
        self.brain = Brain(white.astype(np.float32), (brain & ~white).astype(np.float32), (TRUTH_SPACING,) * 3)
        self.parameters = self._draw()
        d, rho, ratio = self.parameters[:3]
        self.voxel_ml = TRUTH_SPACING**3 / 1000
        field = np.where(white, d, d / ratio).astype(np.float32) * brain
        # The least speed of a front on a lattice is a matter of the grid, not of the scheme: both must correct it
        field *= lattice_factor(TRUTH_SPACING * np.sqrt(rho / np.maximum(field, 1e-9))).astype(np.float32)
        self.solver = GrowthSolver(field, TRUTH_SPACING, rho)
        self.step = 0.05 / rho  # the explicit scheme is of first order in diffusion
        place = np.argwhere(brain & (gaussian_filter(brain.astype(float), 6) > 0.9))
        seed_mm = place[self.rng.integers(len(place))][None] * TRUTH_SPACING
        density = initial_density(shape, TRUTH_SPACING, seed_mm, 2.0) * brain
        wanted = float(np.exp(self.rng.uniform(np.log(5.0), np.log(25.0))))
        while self.volume(density) < wanted:
            density = self.solver.advance(density, self.step)
        gaps = self.rng.uniform(15.0, 45.0, 3)
        self.days = np.concatenate([[0.0], np.cumsum(gaps)]).tolist()
        first = self.volume(density)
        measured = [first * self._error()]
        mask = density > np.sort(density.ravel())[-max(1, round(measured[0] / self.voxel_ml))]
        for before, after in pairwise(self.days):
            parts = max(1, int(np.ceil((after - before) / self.step)))
            for _ in range(parts):
                density = self.solver.advance(density, (after - before) / parts)
            measured.append(self.volume(density) * self._error())
        self.visits = [Visit(day, v, noise * v) for day, v in zip(self.days, measured, strict=True)]
        self.visits[0] = Visit(0.0, measured[0], noise * measured[0], mask)

    def _draw(self) -> NDArray[np.float64]:
        whole = Visit(0.0, 10.0, 0.6, self.brain.white > 0)
        prior = SpatialGrowth(whole, self.brain).prior()
        while True:
            deviates = self.rng.standard_normal((1, len(prior.parameters)))
            if np.isfinite(prior.log_density(deviates))[0]:
                return prior.from_normal(deviates)[0]

    def _error(self) -> float:
        return float(np.exp(self.noise * self.rng.standard_normal()))

    def volume(self, density: NDArray[np.float32]) -> float:
        """The visible volume in mL, counted in voxels."""
        return float((density > VISIBLE_ON_FLAIR).sum()) * self.voxel_ml


def fit_and_forecast(phantom: Phantom, members: int, seed: int) -> dict[str, Any]:
    """Whether the 90 % intervals of the sealed volume and of the parameters hold the truth."""
    known, sealed = phantom.visits[:3], phantom.visits[3]
    posterior = SpatialGrowth(known[0], phantom.brain, members=members, coarse_voxels=12_000).fit(
        known, UNTREATED, seed=seed
    )
    result = forecast(posterior, [sealed.day], members=members, seed=seed)
    low, high = np.quantile(posterior.samples[:, :2], [0.05, 0.95], axis=0)
    inside = ((low <= phantom.parameters[:2]) & (phantom.parameters[:2] <= high)).tolist()
    band50, band = result.bands
    extrapolated = result.log_linear
    assert extrapolated is not None
    return {
        "diffusion": float(phantom.parameters[0]),
        "proliferation": float(phantom.parameters[1]),
        "days": phantom.days,
        "measured_ml": [visit.volume_ml for visit in phantom.visits],
        "median_ml": float(result.median[0]),
        "low90_ml": float(band.low[0]),
        "high90_ml": float(band.high[0]),
        "volume_in_90": bool(band.low[0] <= sealed.volume_ml <= band.high[0]),
        "volume_in_50": bool(band50.low[0] <= sealed.volume_ml <= band50.high[0]),
        "diffusion_in_90": inside[0],
        "proliferation_in_90": inside[1],
        "effective_size": posterior.effective_size,
        "log_error": float(abs(np.log(result.median[0] / sealed.volume_ml))),
        "log_error_persistence": float(abs(np.log(result.persistence[0] / sealed.volume_ml))),
        "log_error_log_linear": float(abs(np.log(extrapolated[0] / sealed.volume_ml))),
    }


def simulation_errors(first: int, count: int) -> dict[str, float]:
    """How far off ln(volume) is with the true parameters and no noise, at the three later visits, and in multiples of
    what the model says of itself (about 1)."""
    apart, claimed = [], []
    for seed in range(first, first + count):
        phantom = Phantom(seed, noise=0.0)
        parameters = phantom.parameters.copy()
        parameters[3] = 0.0  # the first volume is exact
        model = SpatialGrowth(phantom.visits[0], phantom.brain, members=1, coarse_voxels=12_000)
        simulated = log_volume(model.simulate(parameters[None], phantom.days[1:], UNTREATED)[0])
        apart.append(simulated - np.array([visit.log_volume for visit in phantom.visits[1:]]))
        claimed.append(model.simulation_sd(simulated))
    errors = np.sqrt(np.mean(np.square(apart), axis=0)).tolist()
    multiples = float(np.sqrt(np.mean(np.square(np.array(apart) / np.array(claimed)))))
    return {"count": count, **{f"visit_{n + 2}": error for n, error in enumerate(errors)}, "of_what_is_said": multiples}


def calibration(first: int, count: int, members: int) -> dict[str, Any]:
    """Coverage over `count` phantoms, and each one's row."""
    rows = []
    for seed in range(first, first + count):
        rows.append({"seed": seed, **fit_and_forecast(Phantom(seed), members, seed)})
        print(f"   phantom {seed}: {rows[-1]}" if count > 20 else "", end="\n" if count > 20 else "", flush=True)
    return {"members": members, **coverage(rows), "phantoms": rows}


def coverage(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of rows whose intervals hold the truth, with 95 % confidence limits (Clopper-Pearson), and errors."""
    result: dict[str, Any] = {"count": len(rows)}
    for name in ("volume_in_90", "volume_in_50", "diffusion_in_90", "proliferation_in_90"):
        hits = sum(row[name] for row in rows)
        low = beta.ppf(0.025, hits, len(rows) - hits + 1) if hits else 0.0
        high = beta.ppf(0.975, hits + 1, len(rows) - hits) if hits < len(rows) else 1.0
        result[name] = {"share": hits / len(rows), "low95": float(low), "high95": float(high)}
    for name in ("log_error", "log_error_persistence", "log_error_log_linear", "effective_size"):
        result[f"median_{name}"] = float(np.median([row[name] for row in rows]))
    return result


def curve_calibration(count: int) -> list[dict[str, Any]]:
    """How often the bands of a Gompertz curve hold a sealed fourth volume, by what is known of the treatment."""
    plans = {"unknown": Treatments(), "40 Gy after the first visit": radiotherapy_40_gy_hypofractionated(3.0)}
    rows = []
    for name, plan in plans.items():
        inside = np.array([curve_and_forecast(plan, seed) for seed in range(count)])
        in_50, in_90 = inside.mean(axis=0).tolist()
        rows.append({"treatment": name, "count": count, "volume_in_90": in_90, "volume_in_50": in_50})
    return rows


def curve_and_forecast(plan: Treatments, seed: int) -> list[bool]:
    """Whether the 50 and the 90 % band hold the sealed fourth volume of a curve from the prior."""
    rng = np.random.default_rng((8, seed))
    first = float(rng.uniform(5.0, 40.0))
    model = GrowthCurve(Visit(0.0, first, NOISE * first), members=200, steps=600)
    prior, days = model.prior(), np.cumsum(rng.uniform(25.0, 60.0, 3)).tolist()
    truth = prior.from_normal(rng.standard_normal((1, len(prior.parameters))))
    noise = np.hypot(NOISE, enhancement_sd(plan, days))
    volumes = (model.simulate(truth, days, plan)[0] * np.exp(noise * rng.standard_normal(3))).tolist()
    later = [Visit(day, volume, NOISE * volume) for day, volume in zip(days, volumes, strict=True)]
    result = forecast(model.fit([model.start, *later[:2]], plan, seed=seed), days[2:], seed=seed)
    return [bool(band.low[0] <= volumes[2] <= band.high[0]) for band in result.bands]


def posterior_seconds(members: int) -> dict[str, float]:
    """Seconds for a posterior of `members` from three visits, and what 500 would take."""
    phantom = Phantom(1)
    began = time.perf_counter()
    SpatialGrowth(phantom.visits[0], phantom.brain, members=members).fit(phantom.visits[:3], UNTREATED)
    seconds = time.perf_counter() - began
    return {"members": members, "seconds": seconds, "seconds_for_500": seconds * 500 / members}


def run(quick: bool, json_file: Path | None, phantoms: int, first: int, members: int) -> None:
    """Measure all, print it, and write it to `json_file`."""
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise InputError(f"{json_file}: its folder does not exist; make it first")
    measured: dict[str, Any] = {"quick": quick, "threads": torch.get_num_threads()}
    print("Cells at the default step against a ten times finer one (wanted: within 1 %)")
    measured["step_convergence"] = show(step_convergence(quick))
    print("Speed of the front against 2 sqrt(D rho) (wanted: within 2 %)")
    measured["front_speed"] = show(front_speeds(quick))
    print("270 days on 77 x 116 x 36 (wanted: under 1 s on 2 cores)")
    measured["days_270"] = show(speed_of_270_days(quick))
    print("Posterior (wanted: 500 members in under 600 s)")
    measured["posterior"] = show([posterior_seconds(60 if quick else 500)])[0]
    count = 3 if quick else phantoms
    print(f"Calibration on {count} phantoms" + (" (quick: too few for a verdict)" if quick else ""))
    measured["calibration"] = calibration(first, count, 60 if quick else members)
    show([{k: v for k, v in measured["calibration"].items() if k != "phantoms"}])
    print("Errors of the simulation with the true parameters")
    measured["simulation_errors"] = show([simulation_errors(first, 1 if quick else 40)])[0]
    print("Calibration of volume curves")
    measured["curves"] = show(curve_calibration(1 if quick else 60))
    if json_file is not None:
        write_atomically(json_file, (json.dumps(measured, indent=1) + "\n").encode())


def show(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print rows of names and numbers."""
    for row in rows:
        parts = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print("  " + ", ".join(parts), flush=True)
    return rows


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the growth models: exactness, speed, calibration.")
    parser.add_argument("--quick", action="store_true", help="a subset, within 40 s on two cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured to this file")
    parser.add_argument("--phantoms", type=int, default=100, help="how many phantoms to calibrate on")
    parser.add_argument("--first", type=int, default=0, help="the first phantom's seed")
    parser.add_argument("--members", type=int, default=200, help="posterior members for each phantom")
    options = parser.parse_args()
    try:
        run(options.quick, options.json, options.phantoms, options.first, options.members)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
