"""Grown heads for training by synthesis: kept small in memory, and on disk, so that a training can be stopped and
gone on with."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinseg.errors import InputError
from twinseg.phantom.anatomy import SOLID_BRAIN, lookup
from twinseg.phantom.cohort import HEALTHY, GrownPatient, grow_patient
from twinseg.volumes import write_atomically

HEAD_SIZE, HEAD_SPACING = 104, 2.0
"""A head is a cube of so many voxels of so many mm: the same physical size as the scanner's largest field of view."""

ENHANCEMENT_UNIT = 1 / 100
"""Enhancement is kept in hundredths (it rarely passes 2), infiltration in 255ths."""


@dataclass(frozen=True)
class GrownHead:
    """A head with and without its tumour, uint8 tensors (X, Y, Z) on the grid of `HEAD_SIZE` and `HEAD_SPACING`.

    `healthy` and `tissues` hold `Tissue` numbers, before and after the tumour grew (mass effect included); `labels` is
    0, NCR 1, ED 2, ET 3; `infiltration` in 255ths, `enhancement` in hundredths.
    """

    healthy: Tensor
    tissues: Tensor
    labels: Tensor
    infiltration: Tensor
    enhancement: Tensor

    @classmethod
    def of(cls, patient: GrownPatient) -> GrownHead:
        """The first visit of a patient, with a border of air: what lies beyond the grid is read from the border."""
        state = patient.states[0][1]
        infiltration = np.rint(np.clip(state.infiltration, 0, 1) * 255)
        enhancement = np.rint(np.clip(state.enhancement / ENHANCEMENT_UNIT, 0, 255))
        arrays = (patient.head.tissues, state.tissues, state.labels, infiltration, enhancement)
        return cls(*(torch.from_numpy(_with_empty_border(array)) for array in arrays))

    def to(self, device: torch.device) -> GrownHead:
        """The same on another device."""
        return GrownHead(**{part.name: getattr(self, part.name).to(device) for part in fields(self)})

    @cached_property
    def brain_centre(self) -> NDArray[np.float64]:
        """The middle of the brain in mm, from the grid's middle."""
        brain = torch.from_numpy(lookup(SOLID_BRAIN)).to(self.healthy.device)[self.healthy.long()]
        middle = [
            brain.sum(dim=[other for other in range(3) if other != axis]).double().cpu().numpy() for axis in range(3)
        ]
        places = (np.arange(HEAD_SIZE) - (HEAD_SIZE - 1) / 2) * HEAD_SPACING
        return np.array([float((line * places).sum() / max(line.sum(), 1.0)) for line in middle])

    def save(self, path: Path) -> None:
        """Write it, compressed, in one stroke."""
        content = io.BytesIO()
        np.savez_compressed(content, **{part.name: getattr(self, part.name).cpu().numpy() for part in fields(self)})
        write_atomically(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> GrownHead:
        """Read what `save` wrote. Raises `InputError` for any other file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {part.name: file[part.name] for part in fields(cls)}
        except (OSError, ValueError, KeyError, BadZipFile, EOFError) as error:
            raise InputError(f"{path}: this is no grown head ({error}); remove it") from error
        if any(array.shape != (HEAD_SIZE,) * 3 or array.dtype != np.uint8 for array in arrays.values()):
            raise InputError(f"{path}: a grown head of another size; remove it")
        return cls(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def grow_heads(
    number: int,
    seed: int,
    *,
    anatomy: Path | None = None,
    folder: Path | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> list[GrownHead]:
    """Heads 0 to `number` - 1 of a seed. Where an `anatomy` folder of label maps is given, every second head is drawn
    from it, the others by rule; one head in ten has no tumour.

    What stands in `folder` is read, what is missing is grown and kept there: a run that was killed goes on. `report`
    is told how many are done.
    """
    heads = []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        source = anatomy if index % 4 >= 2 else None
        kept = None
        if folder is not None:
            kept = folder / f"{seed}-{'label-map' if source is not None else 'drawn'}-{index:05d}.npz"
        if kept is not None and kept.exists():
            head = GrownHead.load(kept)
        else:
            kind = HEALTHY if index % 10 == 9 else None
            head = GrownHead.of(
                grow_patient((seed, index), size=HEAD_SIZE, spacing=HEAD_SPACING, anatomy=source, kind=kind)
            )
            if kept is not None:
                head.save(kept)
        heads.append(head)
        report(index + 1)
    return heads


def _with_empty_border(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    copy = np.zeros(array.shape, np.uint8)
    inside = (slice(1, -1),) * 3
    copy[inside] = array[inside].astype(np.uint8)
    return copy
