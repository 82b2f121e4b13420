"""The solver in space: exact cases, conservation, symmetry, step convergence, front speed, edges, batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twinseg.errors import InputError
from twinseg.phantom.growth import GrowthSolver, initial_density
from twinseg.twin.dose_response import TreatmentEffect
from twinseg.twin.reaction_diffusion import Ensemble, Rates, TissueGrid, front_speed, lattice_factor
from twinseg.twin.treatments import Radiotherapy, Treatments

UNTREATED = TreatmentEffect(Treatments.none_given())
SHAPE = (20, 24, 18)


def rates(diffusion: list[float], proliferation: list[float], ratio: float = 5.0) -> Rates:
    ones = np.ones(len(diffusion))
    return Rates(np.array(diffusion), np.array(proliferation), ratio * ones, 0.05 * ones, 0.02 * ones)


def brain(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A ball of tissue, half of it white matter, with a hole."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    tissue = (x**2 + y**2 + z**2 < 0.95) & (x**2 + y**2 + z**2 > 0.04)
    white = tissue & (np.random.default_rng(seed).random(SHAPE) < 0.5)
    return white.astype(np.float32), (tissue & ~white).astype(np.float32)


def droplet(count: int = 1, centre: tuple[float, float, float] = (24.0, 24.0, 18.0)) -> torch.Tensor:
    white, grey = brain()
    drop = initial_density(SHAPE, 2.0, np.array([centre]), 4.0) * (white + grey)
    return torch.as_tensor(drop)[..., None].repeat(1, 1, 1, count).contiguous()


def grow(sample: Rates, days: float, density: torch.Tensor | None = None, **options: float) -> torch.Tensor:
    density = droplet(len(sample)) if density is None else density
    members = Ensemble(TissueGrid(*brain(), (2.0, 2.0, 2.0)), sample, density, 0.0, UNTREATED, **options)
    members.advance(days)
    return members.density


@settings(max_examples=15, deadline=None)
@given(st.floats(0.02, 1.3), st.floats(0.5, 40.0))
def test_diffusion_keeps_the_number_of_cells_and_stays_in_the_tissue(diffusion: float, days: float) -> None:
    white, grey = brain()
    before = float(droplet().double().sum())

    after = grow(rates([diffusion], [1e-12]), days, windowed=False)

    assert float(after.double().sum()) == pytest.approx(before, rel=2e-3)
    assert float(after[..., 0].numpy()[(white + grey) == 0].sum()) == 0.0
    assert float(after.min()) >= 0.0


def test_a_full_uniform_tissue_grows_as_the_logistic_formula_says() -> None:
    white, grey = brain()
    start = torch.as_tensor((white + grey) * 0.1)[..., None].contiguous()

    after = grow(rates([0.5], [0.03]), 60.0, start)

    expected = 0.1 * np.exp(1.8) / (1 + 0.1 * (np.exp(1.8) - 1))
    assert after[..., 0].numpy()[(white + grey) > 0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("diffusion", "proliferation"), [(0.16, 0.0226), (1.3, 0.0205), (0.02, 0.19), (0.5, 0.08)])
def test_the_default_step_is_converged(diffusion: float, proliferation: float) -> None:
    sample = rates([diffusion], [proliferation])
    days = 15.0 / front_speed(diffusion, proliferation)
    step = TissueGrid(*brain(), (2.0, 2.0, 2.0)).default_step(sample)

    coarse, fine = (float(grow(sample, days, step_days=s).double().sum()) for s in (step, step / 10))

    assert coarse == pytest.approx(fine, rel=0.01)


def test_another_scheme_finds_the_same_density() -> None:
    white, grey = brain()
    sample = rates([0.3], [0.02])  # a front of 3.9 mm, which both grids resolve
    explicit = GrowthSolver((0.3 * (white + grey / 5)).astype(np.float32), 2.0, 0.02)
    density = droplet()[..., 0].numpy().copy()
    for _ in range(120):
        density = explicit.advance(density, 0.5)

    ours = grow(sample, 60.0)[..., 0].numpy()

    assert float(ours.sum()) == pytest.approx(float(density.sum()), rel=0.03)
    assert np.abs(ours - density).max() < 0.05


@pytest.mark.parametrize("spacing", [1.0, 3.0])
def test_a_front_runs_at_its_theoretical_speed_on_any_lattice(spacing: float) -> None:
    diffusion, rho = 0.16, 0.0226
    width, speed, days = np.sqrt(diffusion / rho), front_speed(diffusion, rho), np.array([20.0, 60.0]) / rho
    x = np.arange(0, speed * days[1] + 60 * width, spacing)
    line = np.ones((len(x), 1, 1), np.float32)
    start = torch.as_tensor((x < 5 * width).astype(np.float32)).reshape(-1, 1, 1, 1).contiguous()
    members = Ensemble(
        TissueGrid(line, 0 * line, (spacing,) * 3), rates([diffusion], [rho]), start, 0.0, UNTREATED, windowed=False
    )

    places = []
    for day in days:
        members.advance(float(day))
        places.append(float((members.density.clamp(0, 1)).sum()) * spacing)

    # From a sharp edge a front lags by 3/2 width ln(t) (Bramson 1983)
    run = places[1] - places[0] + 1.5 * width * np.log(days[1] / days[0])
    assert run == pytest.approx(speed * (days[1] - days[0]), rel=0.02)


def test_the_lattice_factor_is_one_for_fine_grids_and_falls() -> None:
    factors = lattice_factor(np.array([0.01, 1.0, 2.0, 4.0, 20.0]))

    assert factors[0] == pytest.approx(1.0, abs=1e-4)
    assert (np.diff(factors) < 0).all()
    # The least of (rho + 2 D / h^2 (cosh(s h) - 1)) / s with the corrected D is 2 sqrt(D rho); here D = rho = 1
    s = np.linspace(0.1, 3.0, 20000)
    speeds = [(1 + 2 * f / h**2 * (np.cosh(s * h) - 1)) / s for f, h in zip(factors[1:4], (1.0, 2.0, 4.0), strict=True)]
    assert [speed.min() for speed in speeds] == pytest.approx([2.0] * 3, rel=1e-4)


def test_samples_of_a_batch_do_not_disturb_each_other() -> None:
    both = grow(rates([0.1, 0.9], [0.05, 0.01]), 40.0, step_days=2.0)

    for i, sample in enumerate((rates([0.1], [0.05]), rates([0.9], [0.01]))):
        alone = grow(sample, 40.0, step_days=2.0)
        assert both[..., i].numpy() == pytest.approx(alone[..., 0].numpy(), abs=1e-5)


def test_the_window_changes_nothing_and_stops_add_up() -> None:
    sample = rates([0.3], [0.03])
    grid = TissueGrid(*brain(), (2.0, 2.0, 2.0))
    stepwise = Ensemble(grid, sample, droplet(centre=(10.0, 24.0, 18.0)), 0.0, UNTREATED)
    for day in (7.0, 20.0, 20.0, 41.0):
        stepwise.advance(day)

    whole = grow(sample, 41.0, droplet(centre=(10.0, 24.0, 18.0)), windowed=False)

    assert float(stepwise.density.sum()) == pytest.approx(float(whole.sum()), rel=3e-3)


def test_a_dose_map_kills_where_the_dose_is() -> None:
    dose = np.zeros(SHAPE, np.float32)
    dose[:10] = 1.0
    effect = TreatmentEffect(Treatments((Radiotherapy((1.0, 2.0), (6.0, 6.0), relative_dose=dose),), (), (), ()))
    grid = TissueGrid(*brain(), (2.0, 2.0, 2.0))
    members = Ensemble(grid, rates([1e-4], [1e-6]), droplet(), 0.0, effect, on_grid=lambda field: field)

    members.advance(5.0)

    ratio = (members.density / droplet().clamp(min=1e-12))[..., 0].numpy()
    inside = droplet()[..., 0].numpy() > 0.05
    assert ratio[10:][inside[10:]] == pytest.approx(1.0, abs=1e-2)
    surviving = np.exp(-2 * 0.05 * 6 * 1.6)  # of the share that proliferates
    expected = surviving / (1 - (1 - surviving) * droplet()[..., 0].numpy())
    assert ratio[:9][inside[:9]] == pytest.approx(expected[:9][inside[:9]], rel=2e-2)


def test_maps_that_do_not_fit_are_refused() -> None:
    white, grey = brain()

    with pytest.raises(InputError, match="shape"):
        TissueGrid(white, grey[1:], (2.0, 2.0, 2.0))
    with pytest.raises(InputError, match="spacing"):
        TissueGrid(white, grey, (2.0, 0.0, 2.0))
    with pytest.raises(InputError, match="density"):
        Ensemble(TissueGrid(white, grey, (2.0,) * 3), rates([1.0, 1.0], [0.1, 0.1]), droplet(), 0.0, UNTREATED)
