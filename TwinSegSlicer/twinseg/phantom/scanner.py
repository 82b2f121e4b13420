"""A site's scanner: its protocols and everything between the ideal signal and the stored image."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from twinseg.phantom.fields import Field, Grid, along_axes, slice_matrices, smooth_noise
from twinseg.phantom.physics import Protocol, TissueMaps, signal

SEQUENCES = ("t1", "t1ce", "t2", "flair")


@dataclass(frozen=True)
class Scanner:
    """One site's scanner; immutable, drawn from a seed by `for_site` or `random`.

    `field_strength` in tesla; `protocols`, `resolution` (mm along R, A, S) and `scale` (stored units of the mean
    brain signal) by sequence; `bias` is the standard deviation of the logarithm of the coil's sensitivity; `noise`
    the Rician noise's standard deviation as a fraction of the mean brain signal; `dose` of contrast agent in mmol/kg;
    `skull` False blanks all but the brain; sequences in `missing` are not delivered.
    """

    name: str
    field_strength: float
    protocols: dict[str, Protocol]
    resolution: dict[str, tuple[float, float, float]]
    scale: dict[str, float]
    bias: float
    noise: float
    dose: float
    skull: bool
    missing: tuple[str, ...] = field(default=())

    @classmethod
    def for_site(
        cls, index: int, seed: int = 0, *, skull: bool | None = None, missing: tuple[str, ...] = ()
    ) -> Scanner:
        """The scanner of site number `index`. Neighbouring sites differ in field strength and in slice thickness on
        purpose."""
        rng = np.random.default_rng((seed, index, 7))
        strength = (3.0, 1.5)[index % 2]
        thick = (1.0, 5.0, 3.0)[index % 3]
        return cls._draw(rng, f"SITE-{index + 1:02d}", strength, thick, False if skull is None else skull, missing)

    @classmethod
    def random(cls, seed: int | tuple[int, ...], *, skull: bool | None = None) -> Scanner:
        """Any scanner at all: for training on a new one at every step."""
        rng = np.random.default_rng(seed)
        strength = float(rng.choice([1.5, 3.0]))
        thick = float(rng.choice([1.0, 1.0, 2.0, 3.0, 5.0, 6.5]))
        keep = bool(rng.random() < 0.35)
        return cls._draw(rng, "random", strength, thick, keep if skull is None else skull, ())

    @classmethod
    def _draw(
        cls, rng: np.random.Generator, name: str, strength: float, thick: float, skull: bool, missing: tuple[str, ...]
    ) -> Scanner:
        t1 = _t1_protocol(rng, strength)
        after = t1 if rng.random() < 0.6 else _t1_protocol(rng, strength)
        repetition = float(rng.uniform(8000, 11000))
        # the inversion time that nulls CSF of T1 4.1 s, missed by a little
        null = 4100 * (np.log(2) - np.log(1 + np.exp(-repetition / 4100)))
        protocols = {
            "t1": t1,
            "t1ce": Protocol(after.kind, after.repetition, after.echo, after.inversion, after.flip, True),
            "t2": Protocol("spin echo", float(rng.uniform(3000, 6500)), float(rng.uniform(80, 120))),
            "flair": Protocol(
                "inversion recovery", repetition, float(rng.uniform(90, 140)), float(null * rng.uniform(0.93, 1.03))
            ),
        }
        resolution = {}
        for sequence in SEQUENCES:
            axis = 2 if rng.random() < 0.8 else int(rng.integers(0, 2))
            plane = float(rng.uniform(0.8, 1.4))
            size = [plane, plane, plane]
            size[axis] = max(plane, thick * float(rng.uniform(0.85, 1.15)))
            resolution[sequence] = (size[0], size[1], size[2])
        return cls(
            name=name,
            field_strength=strength,
            protocols=protocols,
            resolution=resolution,
            scale={sequence: float(np.exp(rng.uniform(np.log(150), np.log(2000)))) for sequence in SEQUENCES},
            bias=float(rng.uniform(0.03, 0.22)) * (1.3 if strength > 2 else 0.8),
            noise=float(np.exp(rng.uniform(np.log(0.008), np.log(0.06)))),
            dose=float(rng.choice([0.05, 0.1, 0.1, 0.1, 0.2])),
            skull=skull,
            missing=missing,
        )

    def signals(self, maps: TissueMaps) -> dict[str, Field]:
        """The ideal images by sequence, (X,Y,Z), from the tissue maps."""
        return {
            name: signal(maps, protocol, self.field_strength, self.dose)
            for name, protocol in self.protocols.items()
            if name not in self.missing
        }

    def acquire(
        self, rng: np.random.Generator, ideal: Field, sequence: str, grid: Grid, brain: NDArray[np.bool_]
    ) -> Field:
        """The stored image (X,Y,Z) of an ideal one: sampled in slices, shaded, noisy, scaled; integers as float32.

        Noise is added at the scanner's own resolution, so that in thick slices it is smooth, as in resampled real
        images.
        """
        pairs = [
            slice_matrices(n, step, size)
            for n, step, size in zip(grid.shape, grid.spacing, self.resolution[sequence], strict=True)
        ]
        level = float(ideal[brain].mean()) if brain.any() else 1.0
        shading = np.exp(np.float32(self.bias) * smooth_noise(rng, grid.axes, 130.0))
        sampled = along_axes(ideal * shading / np.float32(level), (pairs[0][0], pairs[1][0], pairs[2][0]))
        sigma = np.float32(self.noise)
        real = sampled + sigma * rng.standard_normal(sampled.shape, dtype=np.float32)
        imaginary = sigma * rng.standard_normal(sampled.shape, dtype=np.float32)
        magnitude = np.sqrt(real * real + imaginary * imaginary)  # Rician (Gudbjartsson and Patz 1995)
        image = along_axes(magnitude, (pairs[0][1], pairs[1][1], pairs[2][1]))
        if not self.skull:
            image *= brain
        stored = np.clip(np.rint(image * np.float32(self.scale[sequence])), 0, np.iinfo(np.int16).max)
        return np.asarray(stored, dtype=np.float32)


def _t1_protocol(rng: np.random.Generator, strength: float) -> Protocol:
    """T1 weighting as hospitals do it: spin echo, spoiled gradient echo, or a prepared gradient echo."""
    kind = str(rng.choice(["spin echo", "gradient echo", "prepared gradient echo"], p=[0.4, 0.25, 0.35]))
    if kind == "spin echo":
        return Protocol(kind, float(rng.uniform(420, 650)) * (1.15 if strength > 2 else 1), float(rng.uniform(8, 16)))
    if kind == "gradient echo":
        return Protocol(kind, float(rng.uniform(18, 32)), float(rng.uniform(3, 6)), flip=float(rng.uniform(22, 32)))
    return Protocol(kind, float(rng.uniform(1700, 2300)), float(rng.uniform(2.5, 4)), float(rng.uniform(850, 1050)))
