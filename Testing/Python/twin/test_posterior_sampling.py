"""Priors and importance sampling: shapes of priors, an exact posterior, calibration, and treatment left alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from twinseg.twin.importance import importance_sample
from twinseg.twin.posterior import Parameter, Prior

LINEAR = Prior(tuple(Parameter(name, "", "normal", 0.0, 1.0, "test") for name in ("a", "b", "c")))


def test_priors_are_as_they_say() -> None:
    prior = Prior(
        (
            Parameter("uniform", "", "log-uniform", 0.02, 1.3, "test"),
            Parameter("normal", "", "log-normal", 5.0, 0.5, "test"),
        )
    )

    samples = prior.from_normal(prior.draw(2000, np.random.default_rng(0)))

    place = np.log(samples[:, 0] / 0.02) / np.log(1.3 / 0.02)
    assert kstest(place, "uniform").pvalue > 0.01
    assert np.median(samples[:, 1]) == pytest.approx(5.0, rel=0.03)
    assert np.log(samples[:, 1]).std() == pytest.approx(0.5, rel=0.05)


def test_what_is_not_allowed_is_never_drawn() -> None:
    prior = Prior(LINEAR.parameters, allowed=lambda samples: samples[:, 0] > 0.5)

    samples, _ = importance_sample(
        prior, lambda x: x[:, :1], np.array([0.6]), np.array([0.3]), informed=["a", "b", "c"], members=200
    )

    assert (samples[:, 0] > 0.5).all()
    # Truncated normal with mean 0.6 / 1.09 and deviation 0.3 / sqrt(1.09)
    mean, sd = 0.6 / 1.09, 0.3 / np.sqrt(1.09)
    reference = np.random.default_rng(0).normal(mean, sd, 200_000)
    assert samples[:, 0].mean() == pytest.approx(reference[reference > 0.5].mean(), abs=0.04)


def test_a_linear_model_has_its_exact_posterior() -> None:
    slopes = np.array([[1.0, 0.5, 0.0], [0.3, -1.0, 0.0]])
    measured, sd = np.array([1.0, 0.4]), np.array([0.1, 0.1])
    precision = np.eye(3) + slopes.T @ np.diag(sd**-2) @ slopes
    covariance = np.linalg.inv(precision)
    mean = covariance @ slopes.T @ (measured / sd**2)

    samples, effective = importance_sample(
        LINEAR, lambda x: x @ slopes.T, measured, sd, informed=["a", "b"], members=500
    )

    assert samples.mean(axis=0) == pytest.approx(mean, abs=0.15)
    assert samples[:, 0].mean() == pytest.approx(mean[0], abs=0.03)
    assert samples.std(axis=0) == pytest.approx(np.sqrt(np.diag(covariance)), rel=0.25)
    assert effective > 100


def test_the_model_is_run_for_as_many_samples_as_asked_and_no_more() -> None:
    runs = []

    def model(samples: np.ndarray) -> np.ndarray:
        runs.append(len(samples))
        return samples[:, :1] ** 3

    samples, _ = importance_sample(LINEAR, model, np.array([0.2]), np.array([0.05]), informed=["a"], members=120)

    assert sum(runs) == 120
    assert samples.shape == (120, 3)


def test_a_curved_ridge_is_calibrated() -> None:
    """Only the product of two parameters is seen, as the front's speed sees D times rho."""
    rng = np.random.default_rng(4)
    inside = 0
    for trial in range(40):
        truth = rng.standard_normal(3)
        measured = np.array([np.exp(0.5 * (truth[0] + truth[1])), truth[1] + 0.3 * truth[0] ** 2])
        measured = measured + 0.1 * rng.standard_normal(2)
        samples, _ = importance_sample(
            LINEAR,
            lambda x: np.stack([np.exp(0.5 * (x[:, 0] + x[:, 1])), x[:, 1] + 0.3 * x[:, 0] ** 2], axis=1),
            measured,
            np.array([0.1, 0.1]),
            informed=["a", "b"],
            members=100,
            seed=trial,
        )
        low, high = np.quantile(samples[:, 0], [0.05, 0.95])
        inside += bool(low <= truth[0] <= high)

    assert inside >= 30  # 90 % of 40 is 36; three standard deviations are 6


def test_the_same_seed_gives_the_same_samples() -> None:
    draws = [
        importance_sample(
            LINEAR, lambda x: x[:, :1], np.array([1.0]), np.array([0.1]), informed=["a"], members=60, seed=seed
        )[0]
        for seed in (1, 1, 2)
    ]

    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
