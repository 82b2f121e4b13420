"""Twins of small scans for the tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from twinseg.twin.assessments import respond
from twinseg.twin.store import Twin
from twinseg.twin.timeline import correct_scan
from twinseg.volumes import Volume

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in the processes that tests start


def small_scan(seed: int = 0, radius: float = 5.0, shape: tuple[int, int, int] = (24, 20, 16)) -> dict[str, Volume]:
    """An image of noise and a label map with a ball of enhancing tumour (3) in oedema (2), on one grid of 2 mm."""
    generator = np.random.default_rng(seed)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    grid = np.indices(shape) - (np.array(shape).reshape(3, 1, 1, 1) - 1) / 2
    distance = np.sqrt((grid**2).sum(0))
    labels = np.select([distance < radius - 1.5, distance < radius], [3, 2], 0).astype(np.uint8)
    image = generator.integers(1, 1000, shape).astype(np.float32)
    return {"t1ce": Volume(image, affine), "labels": Volume(labels, affine)}


@pytest.fixture
def scan() -> Callable[..., dict[str, Volume]]:
    """Makes a small scan; see `small_scan`."""
    return small_scan


@pytest.fixture
def twin(tmp_path: Path) -> Twin:
    """A twin with a baseline and a scan on day 60, both segmented by an expert."""
    made = Twin.create(tmp_path / "Zoë Müller's twin", task="brats-glioma", pseudonym="P-7")
    for day, radius in ((0, 5.0), (60, 6.0)):
        drawn = small_scan(day, radius)
        made.add_timepoint(
            day,
            {"t1ce": drawn["t1ce"]},
            to_baseline=np.eye(4),
            registration={"kind": "rigid", "agreement": 0.9} if day else None,
            segmentation=(drawn["labels"], "expert"),
        )
    return made


@pytest.fixture
def assessed(twin: Twin) -> Twin:
    """The same, drawn anew so that both show one ball that grew, and assessed."""
    for number, radius in (("000", 5.0), ("001", 6.0)):
        correct_scan(twin, number, small_scan(0, radius)["labels"], "expert")
    respond(twin, clinical={"001": "stable"})
    return twin
