"""Pictures for classification: found in folders named for their classes, read, and prepared for the network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from twinseg.cases import Case, find_cases
from twinseg.errors import Cancelled, InputError
from twinseg.inference import Report
from twinseg.layouts import PICTURES, SPLIT_NAMES
from twinseg.preprocessing import normalize
from twinseg.tasks import Task
from twinseg.volumes import read_picture


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures as the network sees them, and their classes.

    Attributes:
        images: (N, 1, rows, columns) float32, normalised.
        targets: (N,) int64, the indices of their classes.
        hashes: SHA-256 (hex) of each picture's own pixels, by which copies of one picture are found; may be empty.
    """

    images: NDArray[np.float32]
    targets: NDArray[np.int64]
    hashes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    def copies_of(self, other: LabelledPictures) -> NDArray[np.bool_]:
        """(N,) flags: which of these are, pixel for pixel, among the others."""
        return np.isin(np.array(self.hashes, str), np.array(other.hashes, str))


def find_pictures(data: Path, task: Task) -> list[Case]:
    """The pictures in the class folders of `data`. Raises InputError, for a folder of an unknown class too."""
    cases = find_cases(data, task, require_labels=True)
    known = {path for case in cases for path in case.images.values()}
    for path in sorted(data.rglob("*")):
        folder = path.parent
        stray = folder == data or folder.name.lower() in SPLIT_NAMES or path.name.startswith(".")
        if path.suffix.lower() in PICTURES and path not in known and not stray:
            wanted = ", ".join(task.classes)
            raise InputError(f"{folder}: no class of {task.name} has this name ({wanted}); rename or remove the folder")
    return cases


def read_pictures(cases: Sequence[Case], task: Task, report: Report = lambda done, stage: None) -> LabelledPictures:
    """Read and prepare pictures. Raises InputError for a file that is no whole picture, Cancelled by `report`."""
    images, hashes = [np.zeros((0, 1, task.patch[1], task.patch[0]), np.float32)], []
    for case in cases:
        if report(0.0, f"reading {case.name}"):
            raise Cancelled("stopped while reading the pictures")
        picture = read_picture(case.images[task.sequences[0].name])
        hashes.append(hashlib.sha256(str(picture.shape).encode() + picture.tobytes()).hexdigest())
        images.append(prepare_picture(picture, task)[None])
    targets = np.array([case.target for case in cases], np.int64)
    return LabelledPictures(np.concatenate(images), targets, tuple(hashes))


def prepare_picture(picture: NDArray[np.float32], task: Task) -> NDArray[np.float32]:
    """A picture (rows, columns) as the network sees it: (1, rows, columns) of the task's patch, normalised.

    It keeps its proportions; what they leave of the patch is filled evenly with the darkest value.
    """
    room = np.array([task.patch[1], task.patch[0]])
    rows, columns = np.maximum(1, np.rint(np.array(picture.shape) * (room / picture.shape).min()).astype(int))
    tensor = torch.from_numpy(picture)[None, None]
    fitted = functional.interpolate(tensor, (int(rows), int(columns)), mode="bilinear", antialias=True)[0]
    margins = [(0, 0), *((int(free) // 2, int(free) - int(free) // 2) for free in room - (rows, columns))]
    return normalize(np.pad(fitted.numpy(), margins, constant_values=picture.min()), task)
