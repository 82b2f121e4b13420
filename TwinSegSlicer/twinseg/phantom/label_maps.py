"""Anatomies from a folder of label maps with FreeSurfer numbers, each warped at random so that every seed is a new
head."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinseg.errors import InputError
from twinseg.phantom.anatomy import Anatomy, Tissue, add_vessels, add_white_lesions
from twinseg.phantom.fields import Grid, mesh, rotation, smooth_noise
from twinseg.volumes import read_labels, to_ras

FREESURFER: dict[Tissue, tuple[int, ...]] = {
    Tissue.WHITE: (2, 41, 85, *range(251, 256)),
    Tissue.GREY: (3, 42, 19, 20, 55, 56, 80, 81, 82),
    Tissue.VENTRICLE: (4, 5, 14, 15, 43, 44, 72, 213, 221),
    Tissue.CEREBELLAR_WHITE: (7, 46),
    Tissue.CEREBELLAR_GREY: (8, 47),
    Tissue.DEEP_GREY: (9, 10, 11, 12, 13, 17, 18, 26, 28, 48, 49, 50, 51, 52, 53, 54, 58, 60, 136, 137, 163, 164),
    Tissue.BRAIN_STEM: (16, 170, 173, 174, 175, 178, 512),
    Tissue.CSF: (24, 122, 257),
    Tissue.WHITE_LESION: (25, 57, 77, 78, 79),
    Tissue.CHOROID: (31, 63),
    Tissue.VESSEL: (30, 62, 502, 514),
    Tissue.EYE: (506,),
    Tissue.MUSCLE: (258, 507, 508, 509, 530),
    Tissue.FAT: (130, 131, 511),
    Tissue.BONE: (165, 515),
    Tissue.MARROW: (516,),
}
"""FreeSurferColorLUT numbers, and the 502-530 that segmentations of the whole head add outside the brain."""


def find_label_maps(folder: str | Path) -> tuple[Path, ...]:
    """The NIfTI files in `folder`, in the order of their names; `InputError` if there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a folder of label maps (.nii or .nii.gz)")
    found = sorted(path for path in folder.iterdir() if path.name.endswith((".nii", ".nii.gz")))
    if not found:
        raise InputError(f"{folder}: holds no label map; put FreeSurfer label maps (.nii or .nii.gz) there")
    return tuple(found)


def warped_anatomy(seed: int | tuple[int, ...], grid: Grid, folder: str | Path) -> Anatomy:
    """A head from one of the label maps in `folder`, mirrored, turned, scaled and bent at random.

    Raises `InputError` where the folder has no label map or a file is not one.
    """
    rng = np.random.default_rng(seed)
    paths = find_label_maps(folder)
    path = paths[int(rng.integers(len(paths)))]
    source, to_voxel, centre = _load(path, path.stat().st_mtime_ns)
    turn = rotation(rng.normal(0.0, 0.09, size=3)) @ np.diag(rng.normal(1.0, 0.05, size=3) * rng.normal(1.0, 0.04))
    if rng.random() < 0.5:
        turn = turn @ np.diag([-1.0, 1.0, 1.0])
    shift = centre + rng.normal(0.0, 3.0, size=3)
    bend = [2.5 * smooth_noise(rng, grid.axes, 70.0) + 1.1 * smooth_noise(rng, grid.axes, 30.0) for _ in range(3)]
    x, y, z = (part + move for part, move in zip(mesh(grid.axes), bend, strict=True))
    matrix = to_voxel[:3, :3] @ turn
    offset = to_voxel[:3, :3] @ shift + to_voxel[:3, 3]
    index = []
    for axis, count in enumerate(source.shape):
        a, b, c = (np.float32(value) for value in matrix[axis])
        position = a * x + b * y + c * z + np.float32(offset[axis] + 0.5)
        index.append(np.clip(position, 0, count - 1).astype(np.intp))
    tissues = source[index[0], index[1], index[2]]
    if rng.random() < 0.5:  # the few heads with severe white matter disease shall not always show it
        tissues[tissues == Tissue.WHITE_LESION] = Tissue.WHITE
    add_vessels(rng, tissues, grid)
    add_white_lesions(rng, tissues, grid)
    return Anatomy(tissues, grid)


@lru_cache(maxsize=32)
def _load(path: Path, changed: int) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]:
    """A label map as tissues in RAS with an empty border, its RAS-mm-to-voxel matrix and the brain's centre in mm.

    `changed` (the file's time stamp) makes the cache forget a file that was rewritten.
    """
    volume = to_ras(read_labels(path))
    labels = volume.array
    table = np.zeros(int(labels.max()) + 1, dtype=np.uint8)
    for tissue, numbers in FREESURFER.items():
        table[[number for number in numbers if number < len(table)]] = tissue
    table[1000:3000] = Tissue.GREY  # parcellated cortex in aparc+aseg
    tissues = table[labels]
    brain = np.argwhere((tissues == Tissue.WHITE) | (tissues == Tissue.GREY))
    if len(brain) < 1000:
        raise InputError(f"{path}: no brain in this label map (FreeSurfer numbers 2, 3, 41, 42); remove it")
    tissues[[0, -1]] = Tissue.AIR  # what lies beyond the border is read from the border
    tissues[:, [0, -1]] = Tissue.AIR
    tissues[:, :, [0, -1]] = Tissue.AIR
    middle = (brain.min(axis=0) + brain.max(axis=0)) / 2
    centre = volume.affine[:3, :3] @ middle + volume.affine[:3, 3]
    centre[2] -= 5.0  # leave room for the hindbrain
    return tissues, np.linalg.inv(volume.affine), centre
