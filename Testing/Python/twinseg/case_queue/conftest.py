"""Small cases to submit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinseg.case_queue import CaseQueue
from twinseg.tasks import Task
from twinseg.volumes import Volume


@pytest.fixture
def queue(tmp_path: Path) -> CaseQueue:
    return CaseQueue(tmp_path / "cases")


@pytest.fixture
def submission(toy: Task) -> Callable[..., dict[str, Any]]:
    """What is submitted of a patient: the images of a number, labels, and what a model had drawn."""

    def make(patient: str = "Zoë Müller", number: int = 0, version: int = 0, **changes: Any) -> dict[str, Any]:
        random = np.random.default_rng(number)
        affine = np.array([[0, -1.5, 0, 20], [1.25, 0, 0, -7], [0, 0, 3, 4], [0, 0, 0, 1.0]])
        images = {name: Volume(random.integers(0, 900, (7, 6, 5)).astype(np.int16), affine) for name in ("t1", "flair")}
        labels, predicted = np.zeros((7, 6, 5), np.uint8), np.zeros((7, 6, 5), np.uint8)
        labels[1:4, 2:4, 1 + version % 4] = 2
        labels[5, 5, : 1 + version % 5] = 7
        predicted[2:5, 2:4, 1] = 2
        made = {"task": toy, "patient": patient, "images": images, "labels": Volume(labels, affine)}
        made |= {"predicted": Volume(predicted, affine), "model": "abc123", "who": "Dr. Who", "note": "the edge"}
        return made | changes

    return make
