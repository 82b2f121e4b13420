"""From an ideal image to what a hospital has on its disk: motion, shading, slices, noise, ghosts, windows; by torch.

`scanner.Scanner` is a site's own, the same for all its patients; here every image is taken by another one, and worse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinseg.phantom.anatomy import SOLID_BRAIN, Tissue
from twinseg.phantom.fields import gaussian_matrix, rotation, slice_matrices
from twinseg.phantom.lesions import PatchState
from twinseg.phantom.random_fields import Patch, Warp, affine_positions, along_axes

BRAIN = (*SOLID_BRAIN, Tissue.VENTRICLE, Tissue.CHOROID)
COVERINGS = (Tissue.CSF, Tissue.VESSEL)


@dataclass(frozen=True)
class Acquisition:
    """How one image is taken. Lengths in mm, amplitudes as shares of the brain's mean signal.

    `axis` of the slices (0-2) and their `thickness`; `blur` in the plane (standard deviation); `turn` (3) in radians
    and `shift` (3) of the head against the other images; `slice_gain` the spread of brightness between slices and
    `slice_shift` of the head's place in them; `ghost` the strength of a copy that is moved by `ghost_offset` (share of
    the field of view); `gamma` and `window` (lowest and highest quantile that is kept) of the export.
    """

    axis: int
    thickness: float
    blur: float
    noise: float
    bias: float
    bias_width: float
    turn: NDArray[np.float64] | None
    shift: NDArray[np.float64]
    slice_gain: float
    slice_shift: float
    ghost: float
    ghost_offset: float
    gamma: float
    window: tuple[float, float]


def draw_acquisitions(rng: np.random.Generator, count: int) -> list[Acquisition]:
    """The images of one examination: the slices mostly lie alike, and an examination is good or bad as a whole."""
    axis = 2 if rng.random() < 0.92 else int(rng.integers(0, 2))
    thick = float(rng.choice([1.0, 2.0, 3.0, 4.0, 5.0, 6.5, 8.0], p=[0.3, 0.1, 0.1, 0.1, 0.15, 0.15, 0.1]))
    noise = float(np.exp(rng.uniform(np.log(0.005), np.log(0.06))))
    bias = float(rng.uniform(0.0, 0.28))
    moved = rng.random() < 0.3
    ghosts = rng.random() < 0.12
    gains = rng.random() < 0.25
    eight_bit = rng.random() < 0.35
    return [
        _draw_one(rng, axis, thick, noise, bias, moved=moved, ghosts=ghosts, gains=gains, windowed=eight_bit)
        for _ in range(count)
    ]


def _draw_one(
    rng: np.random.Generator,
    axis: int,
    thick: float,
    noise: float,
    bias: float,
    *,
    moved: bool,
    ghosts: bool,
    gains: bool,
    windowed: bool,
) -> Acquisition:
    other = rng.random() < 0.15  # some sequences are taken in their own way
    apart = moved and rng.random() < 0.5
    return Acquisition(
        axis=int(rng.integers(0, 3)) if other else axis,
        thickness=float(rng.uniform(1.0, 7.0)) if other else thick * float(rng.uniform(0.9, 1.1)),
        blur=float(rng.uniform(0.9, 1.9)),  # at least the partial volume of a voxel of 2 mm
        noise=noise * float(np.exp(rng.normal(0, 0.3))),
        bias=bias * float(rng.uniform(0.5, 1.5)),
        bias_width=float(rng.uniform(70.0, 180.0)),
        turn=rng.normal(0, np.deg2rad(1.5), size=3) if apart else None,
        shift=rng.normal(0, 1.5, size=3),
        slice_gain=float(rng.uniform(0.01, 0.10)) if gains else 0.0,
        slice_shift=float(rng.uniform(0.5, 1.5)) if gains and rng.random() < 0.2 else 0.0,
        ghost=float(rng.uniform(0.02, 0.15)) if ghosts and rng.random() < 0.6 else 0.0,
        ghost_offset=float(rng.uniform(0.1, 0.5)),
        gamma=float(np.exp(rng.normal(0, 0.25))) if rng.random() < 0.5 else 1.0,
        window=(0.0, float(rng.uniform(0.93, 0.999))) if windowed else (0.0, 1.0),
    )


def acquire(
    ideal: Tensor, taken: Acquisition, patch: Patch, rng: np.random.Generator, generator: torch.Generator
) -> Tensor:
    """The image (X, Y, Z) of an ideal one whose brain has a mean near one, before it is stripped or windowed."""
    if taken.turn is not None:
        ideal = _moved(ideal, taken, patch)
    if taken.bias > 0:
        ideal = ideal * (taken.bias * patch.noise(generator, taken.bias_width)[0]).exp_()
    sample, spread = _matrices(taken, patch)
    slices = along_axes(ideal, sample)
    slices = _uneven_slices(slices, taken, patch, rng)
    sigma = taken.noise
    real = slices + sigma * torch.randn(slices.shape, generator=generator, device=slices.device)
    imaginary = sigma * torch.randn(slices.shape, generator=generator, device=slices.device)
    image = along_axes(torch.hypot(real, imaginary), spread)  # Rician (Gudbjartsson and Patz 1995)
    if taken.ghost > 0:
        along = (taken.axis + 1) % 3
        image = image + taken.ghost * image.roll(int(taken.ghost_offset * image.shape[along]), along)
    return image


def _moved(ideal: Tensor, taken: Acquisition, patch: Patch) -> Tensor:
    assert taken.turn is not None
    middle = (np.array(patch.shape) - 1) / 2
    positions = affine_positions(patch, rotation(taken.turn) / patch.spacing, middle + taken.shift / patch.spacing)
    return Warp(positions, patch.shape).linear(ideal[None])[0]


def _matrices(taken: Acquisition, patch: Patch) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """How the scanner samples each axis, and the way back."""
    sample: list[Tensor | None] = [None] * 3
    spread: list[Tensor | None] = [None] * 3
    for axis, count in enumerate(patch.shape):
        if axis == taken.axis and taken.thickness > 1.2 * patch.spacing:
            there, back = slice_matrices(count, patch.spacing, taken.thickness)
            sample[axis] = torch.from_numpy(there).to(patch.device)
            spread[axis] = torch.from_numpy(back).to(patch.device)
        elif taken.blur > 0.25 * patch.spacing:
            matrix = gaussian_matrix(count, taken.blur / patch.spacing)
            sample[axis] = torch.from_numpy(matrix).to(patch.device)
    return sample, spread


def _uneven_slices(slices: Tensor, taken: Acquisition, patch: Patch, rng: np.random.Generator) -> Tensor:
    """Each slice with its own brightness, and with the head at its own place in it."""
    count = slices.shape[taken.axis]
    if taken.slice_gain > 0:
        gains = torch.from_numpy(np.exp(rng.normal(0, taken.slice_gain, size=count)).astype(np.float32))
        shape = [1, 1, 1]
        shape[taken.axis] = count
        slices = slices * gains.to(slices.device).reshape(shape)
    if taken.slice_shift > 0:
        steps = np.rint(rng.normal(0, taken.slice_shift / patch.spacing, size=count)).astype(int)
        parts = slices.unbind(taken.axis)
        slices = torch.stack([part.roll(int(n), 0) for part, n in zip(parts, steps, strict=True)], taken.axis)
    return slices


def brain_mask(
    state: PatchState, patch: Patch, rng: np.random.Generator, generator: torch.Generator, *, poor: bool
) -> Tensor:
    """The brain as a stripping tool finds it, (X, Y, Z). A `poor` tool leaves a rim of skull or cuts into the brain in
    places."""
    inside = state.is_one_of(BRAIN) | (state.labels > 0) | (state.tissues >= int(Tissue.NECROSIS))
    coverings = state.is_one_of(COVERINGS)
    near = patch.blur(inside + 0.35 * coverings, 3.0)
    uneven = patch.noise(generator, 25.0)[0]
    if poor:
        return near > float(rng.uniform(0.08, 0.5)) + float(rng.uniform(0.05, 0.15)) * uneven
    return (inside | coverings) & (near > float(rng.uniform(0.3, 0.45)) + 0.04 * uneven)


def export(image: Tensor, taken: Acquisition) -> Tensor:
    """What a viewer's window and gamma make of an image, from zero up."""
    if taken.window[1] < 1:
        part = image[::3, ::3, ::3].flatten()
        tissue = part[part > 0.1 * part.mean()]
        image = image.clamp(max=float(torch.quantile(tissue, taken.window[1]))) if tissue.numel() else image
    if taken.gamma != 1:
        top = image.max().clamp(min=1e-6)
        image = (image / top).clamp_(min=0).pow_(taken.gamma).mul_(top)
    return image
