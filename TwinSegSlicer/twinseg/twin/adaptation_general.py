"""The general sets: synthetic patients from fixed seeds, the same on every machine. On those of the part "test" no
adapted model may be worse than its base; those of the part "rehearsal" are trained on beside the patient's own scans,
so that the model does not forget what other patients look like.

Heads are grown on a 2 mm grid; half of them are scanned as at hospitals of their own, half by scanners at random. A set
is made once for a task's sequences, labels and spacing, and kept in the data folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from twinseg import __version__
from twinseg.cases import LoadedCase
from twinseg.errors import InputError
from twinseg.home import data_folder
from twinseg.lesion_mixing import bounding_box
from twinseg.phantom import SEQUENCES, Scanner, grow_patient, take_images
from twinseg.preprocessing import PreparedCase, prepare
from twinseg.tasks import Task
from twinseg.volumes import Volume, write_atomically

logger = logging.getLogger(__name__)

CASES = {"test": 16, "rehearsal": 24}
SEEDS = {"test": 7_000_000, "rehearsal": 7_100_000}
LARGEST_BOX = 128
"""Voxels a side that are kept at most: a whole head, as a model that draws tumours elsewhere in it is worse, too."""
PHANTOM_LABELS = {"NCR": 1, "ED": 2, "ET": 3}


def general_set(
    task: Task, part: str, look: Callable[[float, str], None] = lambda done, stage: None
) -> list[PreparedCase]:
    """A part (of `SEEDS`) of the general set of a task, from the data folder or made now. `look` is told how far that
    is, and may raise.

    Raises InputError for a task of which there are no synthetic patients.
    """
    path = general_file(task, part)
    if not path.is_file() or (cases := read_set(path, task)) is None:
        made: list[PreparedCase] = []
        for number in range(CASES[part]):
            look(number / CASES[part], f"making the general set, {number + 1} of {CASES[part]}")
            made.append(_cut(_phantom(SEEDS[part], number, task)))
        write_set(path, made)
        cases = read_set(path, task)  # as every later use will find it
        assert cases is not None
    return cases


def general_file(task: Task, part: str) -> Path:
    """Where the data folder keeps a part of the general set of a task. Raises InputError like `general_set`."""
    names, values = [sequence.name for sequence in task.sequences], phantom_values(task)
    facts = [
        __version__,
        CASES[part],
        SEEDS[part],
        LARGEST_BOX,
        names,
        values,
        task.spacing,
        task.normalization,
        task.window,
    ]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return data_folder() / "general" / f"{task.name}-{part}-{key}.safetensors"


def phantom_values(task: Task) -> dict[int, int]:
    """The task's label value for each of a synthetic patient's. Raises InputError for a task without such patients."""
    known = any(sequence.name in SEQUENCES for sequence in task.sequences)
    if known and len(task.labels) == 1 and task.lesions == (task.labels[0].value,):
        return dict.fromkeys(PHANTOM_LABELS.values(), task.labels[0].value)
    if known and all(label.name in PHANTOM_LABELS for label in task.labels):
        return {PHANTOM_LABELS[label.name]: label.value for label in task.labels}
    raise InputError(
        f"the task {task.name} has no synthetic patients to test an adapted model on; adapt a model for gliomas"
    )


def _phantom(seed: int, number: int, task: Task) -> PreparedCase:
    """One patient with a tumour that the task can see, as the network sees it."""
    for seeds in ((seed, number, attempt) for attempt in count()):
        patient = grow_patient(seeds, size=88, spacing=2.0)
        labels = np.zeros(patient.head.grid.shape, np.uint8)
        for theirs, ours in phantom_values(task).items():
            labels[patient.states[0][1].labels == theirs] = ours
        if np.count_nonzero(labels) * patient.head.grid.voxel_ml > 5:
            break
    scanner = Scanner.for_site(number // 2, seed) if number % 2 else Scanner.random((*seeds, 1))
    images = take_images(patient, 0, scanner, seed=seeds)
    reference = next(iter(images.values()))
    known = {s.name: images[s.name] for s in task.sequences if s.name in images}
    return prepare(LoadedCase(known, reference, Volume(labels, reference.affine)), task, name=f"general-{number}")


def _cut(case: PreparedCase) -> PreparedCase:
    """A box of at most `LARGEST_BOX` voxels a side with the tumour in its middle, as far as the image reaches."""
    assert case.labels is not None
    parts = []
    for part, size in zip(bounding_box(case.labels > 0, 0), case.labels.shape, strict=True):
        start = (part.start + part.stop - LARGEST_BOX) // 2
        start = max(0, min(start, size - LARGEST_BOX))
        parts.append(slice(start, start + LARGEST_BOX))
    x, y, z = parts
    return PreparedCase(case.name, None, case.image[:, x, y, z], case.present, case.affine, case.labels[x, y, z])


def write_set(path: Path, cases: list[PreparedCase]) -> None:
    """Write cases to a file, their images as float16."""
    tensors = {}
    for number, case in enumerate(cases):
        assert case.labels is not None
        tensors[f"image.{number}"] = torch.from_numpy(case.image.astype(np.float16))
        tensors[f"labels.{number}"] = torch.from_numpy(np.ascontiguousarray(case.labels))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, serialize(tensors))


def read_set(path: Path, task: Task) -> list[PreparedCase] | None:
    """The cases of a file; None for a file that is damaged, which is then made anew."""
    try:
        with safe_open(path, "numpy") as file:
            arrays: list[tuple[NDArray[np.float16], NDArray[np.uint8]]] = [
                (file.get_tensor(f"image.{number}"), file.get_tensor(f"labels.{number}"))
                for number in range(len(file.keys()) // 2)
            ]
    except (OSError, SafetensorError) as error:
        logger.warning("%s: damaged (%s); it is made anew", path, error)
        return None
    present = tuple(sequence.name in SEQUENCES for sequence in task.sequences)
    affine = np.diag([*task.spacing, 1.0])
    return [
        PreparedCase(f"general-{number}", None, image.astype(np.float32), present, affine, labels)
        for number, (image, labels) in enumerate(arrays)
    ]
