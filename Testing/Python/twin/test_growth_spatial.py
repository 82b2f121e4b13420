"""The model in space for one patient: its start, posterior, maps, treatment, odd grids and bad input."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from twinseg.errors import InputError
from twinseg.phantom.growth import GrowthSolver, initial_density
from twinseg.twin.coarse_grid import Brain, CoarseGrid, signed_distance
from twinseg.twin.posterior import PRIOR_ONLY, Posterior, Visit
from twinseg.twin.spatial_growth import VISIBLE_ENHANCING, VISIBLE_ON_FLAIR, SpatialGrowth
from twinseg.twin.treatments import (
    Radiotherapy,
    Surgery,
    Treatments,
    radiotherapy_60_gy_with_temozolomide,
)

UNTREATED = Treatments.none_given()
SHAPE, SPACING = (36, 40, 34), (2.0, 2.0, 2.0)
TRUTH = np.array([[0.2, 0.03, 7.0, 0.0, 0.06, 0.02, 1e-3, 0.012]])  # killed cells vanish at once


@cache
def brain() -> Brain:
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    inside = x**2 + y**2 + z**2 < 0.97
    white = inside & (np.sin(9 * x) + np.cos(8 * y + 1) + np.sin(7 * z) > 0)
    return Brain(white.astype(np.float32), (inside & ~white).astype(np.float32), SPACING)


def ball(radius_mm: float = 12.0, centre: tuple[float, float, float] = (36.0, 40.0, 34.0)) -> np.ndarray:
    axes = np.meshgrid(*[np.arange(n) * 2.0 for n in SHAPE], indexing="ij")
    return np.sqrt(sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True))) < radius_mm


def visit(mask: np.ndarray, day: float = 0.0, spacing: tuple[float, float, float] = SPACING) -> Visit:
    volume = float(mask.sum() * np.prod(spacing) / 1000)
    return Visit(day, volume, 0.06 * volume, mask)


@cache
def truth() -> tuple[Visit, ...]:
    """A tumour from a few cells, by the phantoms' explicit scheme: a mask, and three later volumes."""
    tissue = brain().white + brain().grey
    solver = GrowthSolver((0.2 * (brain().white + brain().grey / 7)).astype(np.float32), 2.0, 0.03)
    density = initial_density(SHAPE, 2.0, np.array([[34.0, 42.0, 34.0]]), 2.0) * tissue
    while (density > 0.16).sum() * 0.008 < 8.0:
        density = solver.advance(density, 2.0)
    visits = [visit(density > 0.16)]
    for day in (40.0, 80.0, 120.0):
        for _ in range(20):
            density = solver.advance(density, 2.0)
        visits.append(visit(density > 0.16, day))
    return tuple(visits)


@cache
def fitted() -> Posterior:
    return SpatialGrowth(truth()[0], brain(), members=80, coarse_voxels=8000).fit(truth()[:3], UNTREATED)


def test_it_starts_with_the_measured_volume_whatever_the_parameters() -> None:
    model = SpatialGrowth(visit(ball()), brain(), coarse_voxels=8000)
    samples = model.prior().from_normal(model.prior().draw(24, np.random.default_rng(0)))

    volumes = model.simulate(samples, [0.0], UNTREATED)[:, 0]

    assert volumes == pytest.approx(model.start.volume_ml * np.exp(samples[:, 3]), rel=0.03)


def parameters_of(model: SpatialGrowth, count: int) -> np.ndarray:
    """Samples (count, p) of a model's prior, with the first volume as it was measured."""
    samples = model.prior().from_normal(model.prior().draw(count, np.random.default_rng(0)))
    samples[:, 3] = 0.0
    return samples


@pytest.mark.parametrize("visible_density", [VISIBLE_ENHANCING, VISIBLE_ON_FLAIR])
@pytest.mark.parametrize("radius_mm", [4.2, 5.5, 7.8])  # 0.3 to 2 mL
def test_a_small_tumour_starts_with_its_volume_and_grows_untreated(radius_mm: float, visible_density: float) -> None:
    model = SpatialGrowth(visit(ball(radius_mm)), brain(), visible_density=visible_density)

    volumes = model.simulate(parameters_of(model, 40), [0.0, 2.0, 10.0, 30.0], UNTREATED)

    assert volumes[:, 0] == pytest.approx(model.start.volume_ml, rel=0.01)
    assert (np.diff(volumes, axis=1) > -0.01 * model.start.volume_ml).all()


def test_a_tumour_in_specks_does_not_melt_untreated() -> None:
    specks = np.zeros(SHAPE, bool)
    specks[tuple(np.random.default_rng(2).integers(11, 25, (3, 150)))] = True
    model = SpatialGrowth(visit(specks), brain(), visible_density=VISIBLE_ENHANCING, coarse_voxels=8000)

    volumes = model.simulate(parameters_of(model, 40), [0.0, 5.0, 10.0, 20.0], UNTREATED) / model.start.volume_ml

    assert volumes[:, 0] == pytest.approx(1.0, rel=0.01)
    assert (np.median(volumes, axis=0) > 0.95).all()


def test_the_true_parameters_foresee_what_another_scheme_grows() -> None:
    first, *later = truth()
    days = [v.day for v in later]

    fine = SpatialGrowth(first, brain()).simulate(TRUTH, days, UNTREATED)[0]
    coarse = SpatialGrowth(first, brain(), coarse_voxels=8000).simulate(TRUTH, days, UNTREATED)[0]

    assert fine == pytest.approx([v.volume_ml for v in later], rel=0.08)
    assert coarse == pytest.approx([v.volume_ml for v in later], rel=0.2)


def test_the_posterior_narrows_and_holds_the_truth() -> None:
    posterior = fitted()
    low, high = np.quantile(posterior.samples, [0.02, 0.98], axis=0)
    speed = 2 * np.sqrt(posterior.samples[:, 0] * posterior.samples[:, 1])

    assert posterior.informed
    assert posterior.effective_size > 15
    assert low[0] < 0.2 < high[0]
    assert low[1] < 0.03 < high[1]
    # The speed is what volumes show best; the prior's spreads over a factor of 70
    assert np.quantile(speed, 0.95) / np.quantile(speed, 0.05) < 4
    assert (posterior.samples[:, 0] / posterior.samples[:, 1] <= 36.0).all()


def test_one_time_point_gives_the_prior_and_says_so() -> None:
    posterior = SpatialGrowth(truth()[0], brain(), members=200).fit(truth()[:1], UNTREATED)

    assert not posterior.informed
    assert posterior.notes[0] == PRIOR_ONLY
    assert posterior.samples[:, 0].min() < 0.05
    assert posterior.samples[:, 0].max() > 0.5


def test_treatment_that_no_visit_saw_keeps_its_prior() -> None:
    sensitivity = fitted().samples[:, 4]

    assert np.median(sensitivity) == pytest.approx(0.045, rel=0.35)
    assert np.log(sensitivity).std() == pytest.approx(0.6, rel=0.35)


def test_the_map_is_a_probability_of_the_mask_s_shape() -> None:
    model = SpatialGrowth(visit(ball()), brain(), coarse_voxels=8000)

    now = model.probability_map(TRUTH, 0.0, UNTREATED)
    later = model.probability_map(TRUTH, 90.0, UNTREATED)

    assert now.shape == SHAPE
    assert (now >= 0).all()
    assert (later <= 1).all()
    assert 2 * ((now > 0.5) & ball()).sum() / ((now > 0.5).sum() + ball().sum()) > 0.9
    assert later.sum() > 1.5 * now.sum()
    outside = (brain().white + brain().grey) == 0
    assert later[outside].mean() < 0.2 * later[~outside].mean()


def test_radiotherapy_shrinks_and_a_dose_map_spares_what_it_spares() -> None:
    model = SpatialGrowth(visit(ball()), brain(), coarse_voxels=8000)
    half = np.zeros(SHAPE, np.float32)
    half[:18] = 1.0
    days = tuple(float(day) for day in range(10))
    uniform = Treatments((Radiotherapy(days, (4.0,) * 10),), (), (), ())
    partial = Treatments((Radiotherapy(days, (4.0,) * 10, relative_dose=half),), (), (), ())

    none, both, one = (model.simulate(TRUTH, [20.0], plan)[0, 0] for plan in (UNTREATED, uniform, partial))
    there = model.probability_map(TRUTH, 20.0, partial)

    assert both < one < none
    assert there[:16].sum() < 0.3 * there[20:].sum()
    wrong = Treatments((Radiotherapy((1.0,), (2.0,), relative_dose=half[1:]),), (), (), ())
    with pytest.raises(InputError, match="dose map"):
        model.simulate(TRUTH, [20.0], wrong)


def test_treatment_in_the_past_is_fitted_too() -> None:
    first = visit(ball())
    plan = radiotherapy_60_gy_with_temozolomide(1.0)
    later = Visit(60.0, 0.3 * first.volume_ml, 0.5)

    posterior = SpatialGrowth(first, brain(), members=60, coarse_voxels=4000).fit([first, later], plan)

    assert np.isfinite(posterior.samples).all()
    assert np.median(posterior.samples[:, 4]) > 0.046  # it shrank more than most would
    assert np.median(posterior.samples[:, 6]) < 60.0  # and sooner


def test_a_forecast_goes_on_from_the_last_mask_unless_treatment_lies_between() -> None:
    posterior = fitted()

    model, samples = posterior.model.continued(posterior.samples[:20], truth()[:3], UNTREATED)
    volumes = model.simulate(samples, [truth()[2].day], UNTREATED)[:, 0]
    before = posterior.model.simulate(posterior.samples[:20], [truth()[2].day], UNTREATED)[:, 0]
    treated, _ = posterior.model.continued(
        posterior.samples[:20], truth()[:3], radiotherapy_60_gy_with_temozolomide(10.0)
    )

    assert model.start == truth()[2]
    assert volumes == pytest.approx(before, rel=0.08)
    assert treated is posterior.model


@pytest.mark.parametrize("spacing", [(0.94, 0.94, 6.5), (3.0, 1.0, 2.0)])
def test_odd_voxels_and_a_tumour_at_the_border_of_the_image(spacing: tuple[float, float, float]) -> None:
    mask = np.zeros((40, 44, 12), bool)
    mask[0:14, 20:32, 3:6] = True
    everywhere = Brain.of_unknown_tissue(np.ones(mask.shape, bool), spacing)
    model = SpatialGrowth(visit(mask, spacing=spacing), everywhere)

    volumes = model.simulate(TRUTH, [0.0, 60.0], UNTREATED)[0]

    assert volumes[0] == pytest.approx(model.start.volume_ml, rel=0.03)
    assert volumes[1] > volumes[0]


def test_a_hole_in_the_mask_keeps_its_share_of_the_volume() -> None:
    hollow = ball(14.0) & ~ball(8.0)
    model = SpatialGrowth(visit(hollow), brain(), coarse_voxels=8000)

    assert model.simulate(TRUTH, [0.0], UNTREATED)[0, 0] == pytest.approx(model.start.volume_ml, rel=0.03)


def test_bad_input_is_refused_in_one_line() -> None:
    start = visit(ball())
    model = SpatialGrowth(start, brain(), coarse_voxels=4000)

    with pytest.raises(InputError, match="no segmented tumour"):
        SpatialGrowth(visit(np.zeros(SHAPE, bool)), brain())
    with pytest.raises(InputError, match="no segmented tumour"):
        SpatialGrowth(Visit(0.0, 10.0, 1.0), brain())
    with pytest.raises(InputError, match="differ in shape"):
        SpatialGrowth(visit(ball()[1:]), brain())
    with pytest.raises(InputError, match="days must rise"):
        model.simulate(TRUTH, [20.0, 10.0], UNTREATED)
    with pytest.raises(InputError, match="operation"):
        model.simulate(TRUTH, [20.0], Treatments((), (), (Surgery(10.0),), ()))


def test_signed_distance_is_that_of_a_ball() -> None:
    distance = signed_distance(ball(12.0), SPACING)
    axes = np.meshgrid(*[np.arange(n) * 2.0 for n in SHAPE], indexing="ij")
    exact = np.sqrt(sum((a - c) ** 2 for a, c in zip(axes, (36.0, 40.0, 34.0), strict=True))) - 12.0

    assert np.abs(distance - exact).max() < 2.0


def test_the_coarse_grid_returns_what_it_averaged() -> None:
    grid = CoarseGrid(ball(), brain(), 60.0, 3000, "cpu")
    ramp = np.linspace(0, 1, SHAPE[0], dtype=np.float32)[:, None, None] * np.ones(SHAPE, np.float32)

    back = grid.to_brain(grid.from_brain(ramp))

    assert min(grid.block) > 1
    assert np.abs(back - ramp)[4:-4].max() < 0.06
