"""Lesions on made label maps: what is found, how sure its volume is, and who is who at the next date."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from twinseg.tasks import load_task
from twinseg.twin.lesions import (
    LesionHistory,
    LesionSettings,
    Scan,
    follow_lesions,
    followed_region,
    measure_volume,
)
from twinseg.volumes import Volume

SHAPE = (60, 50, 40)


def balls(
    *centres_and_radii: tuple[float, float, float, float], value: int = 3, affine: np.ndarray | None = None
) -> Volume:
    """A label map with balls at (x, y, z) voxels of a radius."""
    grid = np.indices(SHAPE)
    array = np.zeros(SHAPE, np.uint8)
    for *centre, radius in centres_and_radii:
        array[((grid - np.array(centre).reshape(3, 1, 1, 1)) ** 2).sum(0) <= radius**2] = value
    return Volume(array, np.eye(4) if affine is None else affine)


def follow(*maps: Volume, **named: object) -> LesionHistory:
    return follow_lesions([Scan(f"{n:03d}", labels, np.eye(4)) for n, labels in enumerate(maps)], (1, 3), **named)


def told(history: LesionHistory) -> list[tuple[str, str, int, tuple[int, ...]]]:
    return [(c.timepoint, c.kind, c.lesion, c.others) for c in history.changes if c.timepoint != "000"]


def ids(history: LesionHistory, name: str) -> list[int]:
    return [lesion.id for lesion in history.lesions[name]]


# --- who is who ------------------------------------------------------------------------------------------------------


def test_lesions_keep_their_ids_however_they_grow_shrink_and_shift() -> None:
    history = follow(
        balls((20, 20, 20, 6), (45, 35, 20, 4)),
        balls((21, 20, 20, 9), (44, 36, 20, 3)),
        balls((22, 21, 20, 4), (45, 36, 21, 6)),
    )

    assert [ids(history, name) for name in history.lesions] == [[1, 2]] * 3
    assert told(history) == []
    assert history.lesions["001"][0].volume_ml > history.lesions["000"][0].volume_ml


def test_born_vanished_and_back_again() -> None:
    one, two = (20, 20, 20, 6), (45, 35, 20, 4)

    history = follow(balls(one), balls(one, two), balls(two), balls(one, two))

    assert told(history) == [
        ("001", "born", 2, ()),
        ("002", "vanished", 1, ()),
        ("003", "reappeared", 1, ()),
    ]


def test_split_and_merged() -> None:
    whole = balls((20, 25, 20, 8), (30, 25, 20, 8))
    parts = balls((18, 25, 20, 6), (33, 25, 20, 5))

    history = follow(whole, parts, whole)

    assert told(history) == [("001", "split", 2, (1,)), ("002", "merged", 2, (1,))]
    assert [ids(history, name) for name in history.lesions] == [[1], [1, 2], [1]]


def test_a_neighbour_is_not_the_same_lesion() -> None:
    history = follow(balls((20, 25, 20, 5)), balls((33, 25, 20, 5)))

    assert told(history) == [("001", "born", 2, ()), ("001", "vanished", 1, ())]


def test_a_scan_that_lies_elsewhere_is_compared_in_the_baselines_frame() -> None:
    to_baseline = np.eye(4)
    to_baseline[:3, :3] = Rotation.from_euler("xyz", (20, -10, 30), degrees=True).as_matrix()
    to_baseline[:3, 3] = (100, -50, 30)
    moved = balls((20, 20, 20, 6), (45, 35, 20, 4), affine=np.linalg.inv(to_baseline))

    history = follow_lesions(
        [Scan("000", balls((45, 35, 20, 4), (20, 20, 20, 6)), np.eye(4)), Scan("001", moved, to_baseline)], (3,)
    )

    assert ids(history, "001") == [1, 2]
    for before, after in zip(history.lesions["000"], history.lesions["001"], strict=True):
        np.testing.assert_allclose(before.centre, after.centre, atol=0.01)


def test_an_empty_scan_has_no_lesions_and_specks_are_none() -> None:
    history = follow(balls((20, 20, 20, 6)), balls(), balls((20, 20, 20, 1)))

    assert history.lesions["001"] == history.lesions["002"] == ()
    assert told(history) == [("001", "vanished", 1, ())]


def test_oedema_is_no_lesion_and_necrosis_is_part_of_one() -> None:
    labels = balls((20, 20, 20, 8), value=2)
    labels.array[balls((20, 20, 20, 6)).array > 0] = 3
    labels.array[balls((20, 20, 20, 3)).array > 0] = 1

    found = follow(labels).lesions["000"]

    assert len(found) == 1
    assert found[0].volume_ml == pytest.approx(np.count_nonzero(np.isin(labels.array, (1, 3))) / 1000)
    assert found[0].longest == pytest.approx(13, abs=0.6)


def test_a_corrected_scan_keeps_the_ids_that_were_given() -> None:
    one, two, three = (20, 20, 20, 6), (45, 35, 20, 4), (15, 40, 10, 4)
    before = follow(balls(one), balls(one, two))
    # The baseline is corrected: a third lesion was overlooked. By the order of finding it would take two's id.
    after = follow(balls(one, three), balls(one, two, three), previous=before)

    assert ids(after, "000") == [1, 3]
    assert ids(after, "001") == [1, 2, 3]
    assert told(after) == [("001", "born", 2, ())]


def test_json_and_back() -> None:
    history = follow(balls((20, 25, 20, 8), (30, 25, 20, 8)), balls((18, 25, 20, 6), (33, 25, 20, 5)))

    again = LesionHistory.from_json(history.to_json())

    assert again.changes == history.changes
    assert [lesion.volume_ml for lesion in again.lesions["001"]] == [x.volume_ml for x in history.lesions["001"]]
    assert LesionHistory.from_json({}) == LesionHistory({}, ())


@pytest.mark.parametrize(
    ("task", "wanted", "expected"),
    [
        ("brats-glioma", None, "TC"),
        ("brats-glioma", "WT", "WT"),
        ("lgg-flair", None, "WT"),
        ("lits-liver", None, "tumour"),  # not the liver
        ("acdc-cardiac", None, "RV"),
    ],
)
def test_the_region_that_is_followed(task: str, wanted: str | None, expected: str) -> None:
    assert followed_region(load_task(task), LesionSettings(region=wanted))[0] == expected


def test_what_a_task_calls_its_lesions_is_followed() -> None:
    heart = replace(load_task("acdc-cardiac"), lesions=(2,))

    assert followed_region(heart, LesionSettings()) == ("MYO", (2,))


# --- volume and its error --------------------------------------------------------------------------------------------


def test_volume_of_a_box_and_the_outlines_error_by_hand() -> None:
    array = np.zeros((40, 40, 40), np.uint8)
    array[5:35, 5:25, 10:20] = 1
    mask = Volume(array, np.diag([1.0, 1.0, 2.0, 1.0]))

    volume, deviation = measure_volume(mask, outline_mm=0.5)
    exact = measure_volume(mask, outline_mm=0.0)[1]

    assert volume == 12.0
    surface = 2 * (30 * 20 + 30 * 20 + 20 * 20)  # mm²: 30 x 20 x 20 mm
    assert deviation**2 - exact**2 == pytest.approx((0.5 * 2 / 3 * surface / 1000) ** 2)
    border = 6000 - 28 * 18 * 8
    assert exact**2 == pytest.approx((2 * np.sqrt(border / 12) / 1000) ** 2 + (12 / np.sqrt(5) / 100) ** 2)


@pytest.mark.parametrize("radius", [9.0, 20.0])
@pytest.mark.parametrize("slice_mm", [1.0, 6.0])
def test_the_error_of_resolution_is_what_balls_at_random_places_show(radius: float, slice_mm: float) -> None:
    generator = np.random.default_rng(1)
    reach = np.ceil((radius + 2) / np.array([1.0, 1.0, slice_mm])).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"))
    affine = np.diag([1.0, 1.0, slice_mm, 1.0])
    volumes, said = [], []
    for _ in range(150):
        points = (grid + generator.uniform(-0.5, 0.5, 3).reshape(3, 1, 1, 1)) * np.array([1, 1, slice_mm]).reshape(
            3, 1, 1, 1
        )
        volume, deviation = measure_volume(Volume((points**2).sum(0) <= radius**2, affine), outline_mm=0.0)
        volumes.append(volume)
        said.append(deviation)

    ratio = np.mean(said) / np.std(volumes)

    assert 0.5 < ratio < 2.5
    assert np.mean(volumes) == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.02)


def test_the_surface_of_a_ball_is_that_of_a_ball() -> None:
    ball = balls((30, 25, 20, 15))

    with_outline = measure_volume(ball, outline_mm=1.0)[1]
    without = measure_volume(ball, outline_mm=0.0)[1]

    assert np.sqrt(with_outline**2 - without**2) == pytest.approx(4 * np.pi * 15**2 / 1000, rel=0.05)


def test_an_uncertain_rim_widens_the_error_and_uncertainty_elsewhere_does_not() -> None:
    mask = balls((30, 25, 20, 10))
    rim = (balls((30, 25, 20, 11)).array > 0) & (balls((30, 25, 20, 9)).array == 0)
    inner = balls((30, 25, 20, 5)).array > 0

    def deviation(unsure: np.ndarray) -> float:
        return measure_volume(mask, Volume(np.where(unsure, 0.9, 0.1), np.eye(4)))[1]

    assert deviation(rim) ** 2 - deviation(inner) ** 2 == pytest.approx(
        (np.count_nonzero(rim) / 1000 / (2 * 1.645)) ** 2, rel=0.01
    )


def test_nothing_has_no_volume() -> None:
    assert measure_volume(balls()) == (0.0, 0.0)
