"""The Fisher-KPP solver against what is known of the equation in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from twinseg.phantom.growth import GrowthRates, GrowthSolver, initial_density


def front_position(density: np.ndarray) -> float:
    """Where the density along the first axis falls below one half, in voxels."""
    line = density[:, 1, 1]
    last = int(np.flatnonzero(line > 0.5)[-1])
    return last + (line[last] - 0.5) / (line[last] - line[last + 1])


def test_the_front_moves_at_twice_the_root_of_diffusion_times_proliferation() -> None:
    rates = GrowthRates(diffusion_white=0.5, white_to_grey=10.0, proliferation=0.05)
    solver = GrowthSolver(np.full((200, 3, 3), 0.5, np.float32), 1.0, rates.proliferation)
    density = np.zeros((200, 3, 3), np.float32)
    density[:5] = 1.0

    early = solver.advance(density, 150.0)
    late = solver.advance(early, 250.0)

    # Bramson (1983): the front lags behind 2 sqrt(D rho) t by 3/2 sqrt(D/rho) ln t
    lag = 1.5 * np.sqrt(0.5 / 0.05) * np.log(400 / 150)
    expected = rates.front_speed * 250.0 - lag
    assert front_position(late) - front_position(early) == pytest.approx(expected, rel=0.04)


def test_pure_diffusion_keeps_every_cell_and_lets_none_through_a_wall() -> None:
    rng = np.random.default_rng(0)
    diffusion = rng.uniform(0.02, 0.3, (20, 20, 20)).astype(np.float32)
    diffusion[10] = 0.0
    density = np.zeros((20, 20, 20), np.float32)
    density[4:7, 9:12, 9:12] = 0.8

    after = GrowthSolver(diffusion, 2.0, 0.0).advance(density, 200.0)

    assert after.sum() == pytest.approx(density.sum(), rel=1e-5)
    assert after[10:].sum() == 0.0
    assert after.max() < 0.5
    assert after.min() >= 0.0


def test_without_diffusion_growth_is_logistic() -> None:
    density = np.full((4, 4, 4), 0.01, np.float32)

    after = GrowthSolver(np.zeros((4, 4, 4), np.float32), 2.0, 0.03).advance(density, 100.0)

    expected = 0.01 * np.exp(3.0) / (1 + 0.01 * (np.exp(3.0) - 1))
    np.testing.assert_allclose(after, expected, rtol=1e-5)


def test_one_long_step_equals_two_short_ones() -> None:
    diffusion = np.full((16, 16, 16), 0.1, np.float32)
    density = initial_density((16, 16, 16), 2.0, np.array([[15.0, 15.0, 15.0]]), 4.0)
    solver = GrowthSolver(diffusion, 2.0, 0.02)

    whole = solver.advance(density, 60.0)
    halves = solver.advance(solver.advance(density, 30.0), 30.0)

    np.testing.assert_allclose(whole, halves, atol=1e-4)


def test_cells_spread_farther_in_white_matter_than_in_grey() -> None:
    diffusion = np.full((40, 5, 5), 0.3, np.float32)
    diffusion[20:] /= 10
    density = initial_density((40, 5, 5), 1.0, np.array([[19.5, 2.0, 2.0]]), 3.0)

    after = GrowthSolver(diffusion, 1.0, 0.02).advance(density, 80.0)

    assert after[:20].sum() > 1.3 * after[20:].sum()
