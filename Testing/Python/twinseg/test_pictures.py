"""Pictures for reports: what lies where, in which colour, in which proportions."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from twinseg.pictures import lesion_centre, png, slices_picture
from twinseg.tasks import Task
from twinseg.volumes import Volume

RAS = np.eye(4)


def picture(content: bytes) -> np.ndarray:
    """(rows, columns, RGB), 0 to 255."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def panels(content: bytes) -> list[np.ndarray]:
    """The sagittal, the coronal and the axial slice."""
    return np.array_split(picture(content), 3, axis=1)


def coloured(panel: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """(n, 2) rows and columns of the pixels in this colour."""
    return np.argwhere(np.abs(panel - color).max(-1) < 40)


def head(shape: tuple[int, int, int] = (40, 40, 40)) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 100, shape).astype(np.float32)


def box(shape: tuple[int, int, int], low: tuple[int, ...], high: tuple[int, ...], value: int) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = value
    return labels


@pytest.mark.parametrize("affine", [RAS, np.diag([-1.0, -1, 1, 1]), np.diag([1.0, -1, -1, 1])])
def test_the_patient_s_right_front_top_is_drawn_left_left_up(toy: Task, affine: np.ndarray) -> None:
    low, high = np.array([28, 30, 27]), np.array([36, 37, 35])  # in RAS: right, front, top
    for axis in np.flatnonzero(np.diag(affine)[:3] < 0):
        low[axis], high[axis] = 40 - high[axis], 40 - low[axis]
    labels = box((40, 40, 40), tuple(low), tuple(high), 7)

    shown = slices_picture(Volume(head(), affine), toy, Volume(labels, affine))

    for name, panel in zip(("sagittal", "coronal", "axial"), panels(shown), strict=True):
        row, column = coloured(panel, toy.labels[1].color).mean(0) / panel.shape[:2]
        assert column < 0.45, name  # the right, or seen from the side the front, is on the left
        assert row < 0.47, name  # up, or seen from below the front, is above


def test_each_label_has_its_colour_and_the_reference_is_white(toy: Task) -> None:
    distance = np.linalg.norm(np.stack(np.meshgrid(*[np.arange(40) - 20] * 3, indexing="ij")), axis=0)
    predicted = np.where(distance < 6, 7, np.where(distance < 11, 2, 0)).astype(np.uint8)
    reference = np.where(distance < 16, 2, 0).astype(np.uint8)
    image = Volume(head() / 4, RAS)

    alone = panels(slices_picture(image, toy, Volume(predicted, RAS)))
    both = panels(slices_picture(image, toy, Volume(predicted, RAS), Volume(reference, RAS)))

    for without, with_reference in zip(alone, both, strict=True):
        for label in toy.labels:
            assert len(coloured(with_reference, label.color)) > 20
        assert len(coloured(with_reference[40:], (255, 255, 255))) > len(coloured(without[40:], (255, 255, 255))) + 50


def test_thick_slices_are_drawn_in_true_proportions(toy: Task) -> None:
    cube = box((40, 40, 10), (8, 8, 2), (32, 32, 8), 7)  # 24 mm a side at slices of 4 mm
    thick = np.diag([1.0, 1, 4, 1])

    for panel in panels(slices_picture(Volume(head((40, 40, 10)), thick), toy, Volume(cube, thick))):
        rows, columns = np.ptp(coloured(panel, toy.labels[1].color), axis=0)
        assert rows == pytest.approx(columns, rel=0.1)


def test_nothing_labelled_is_a_picture_too(toy: Task) -> None:
    nothing = Volume(np.zeros((20, 20, 20), np.uint8), RAS)
    everything = Volume(np.full((20, 20, 20), 7, np.uint8), RAS)

    for predicted, reference in ((nothing, None), (nothing, nothing), (everything, everything)):
        assert picture(slices_picture(Volume(head((20, 20, 20)), RAS), toy, predicted, reference, "title")).max() > 0


def test_the_centre_of_a_lesion_is_in_its_largest_slice() -> None:
    labels = box((20, 30, 40), (2, 4, 6), (5, 9, 8), 2) + box((20, 30, 40), (10, 20, 30), (18, 28, 33), 7)

    x, y, z = lesion_centre(labels)

    assert labels[x, y, z] == 7
    assert (x, y) == (13, 23)


def test_without_a_lesion_the_centre_is_that_of_the_grid() -> None:
    assert lesion_centre(np.zeros((10, 20, 30), np.uint8)) == (5, 10, 15)


def test_a_figure_keeps_its_background() -> None:
    assert (picture(png(Figure(figsize=(1, 1), facecolor="black"))) == 0).all()
