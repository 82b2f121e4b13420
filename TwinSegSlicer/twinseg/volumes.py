"""Volumes: a 3-D array and where its voxels lie in the world (RAS, mm). Reading, writing, moving between grids."""

from __future__ import annotations

import errno
import gzip
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from twinseg import itk_files, nifti_files
from twinseg.errors import InputError, OutOfSpaceError

ENDINGS = nifti_files.ENDINGS + itk_files.ENDINGS
SAME_VOXEL = 1e-3  # voxels: positions closer than this at the far corner of a volume are one voxel


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar image. array: (X, Y, Z); affine: 4x4 float64, voxel indices to RAS mm of the voxel's centre."""

    array: np.ndarray
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along the array's axes."""
        x, y, z = self.array.shape
        return x, y, z

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxel centres along the array's axes."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in mL. Of a scan with a tilted gantry it is less than the product of the spacings."""
        return voxel_ml(self.affine)


def voxel_ml(affine: np.ndarray) -> float:
    """Volume in mL of a voxel of a grid with this affine (mm), also where its axes are not at right angles."""
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000


def read_image(path: str | Path, channel: int | None = None) -> Volume:
    """Read a 3-D image as float32, or one channel of a 4-D file (index along its last axis).

    The affine is nibabel's choice: sform where its code is set, else qform, else the spacing alone (logged).
    Raises InputError where the file cannot be read, is not 3-D, holds NaN or Inf, or is constant.
    """
    array, affine = _read(Path(path), channel, np.float32)
    check_intensities(Path(path), array)
    return Volume(array, affine)


def read_labels(path: str | Path, channel: int | None = None) -> Volume:
    """Read a label map as the smallest of uint8, uint16 and int32 that holds it. Raises InputError like `read_image`,
    and for values that are negative or no whole numbers."""
    array, affine = _read(Path(path), channel, None)
    if array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
        raise InputError(f"{path}: labels must be whole numbers; was it interpolated? Save the label map itself")
    lowest, highest = float(array.min()), float(array.max())
    if lowest < 0 or highest > np.iinfo(np.int32).max:
        raise InputError(f"{path}: the label {lowest if lowest < 0 else highest:g} is out of range; use 0 to 65535")
    return Volume(array.astype(_label_type(int(highest)), copy=False), affine)


def read_picture(path: str | Path) -> np.ndarray:
    """Read a 2-D picture (PNG, JPEG, ...) as grey values: float32 (rows, columns). Raises InputError like
    `read_image`."""
    from PIL import Image

    _check_readable(Path(path))
    try:
        with Image.open(path) as picture:
            array = np.array(picture.convert("F"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: this is no whole picture ({_line(error)}); copy or download it again") from error
    check_intensities(Path(path), array)
    return array


def write_volume(path: str | Path, volume: Volume) -> None:
    """Write a volume; the file appears whole or not at all. Whole numbers are written as uint8 or uint16 (int32 where
    they are negative or larger), the rest as float32; the affine as sform and qform.

    Raises OutOfSpaceError where the disk is full, InputError where the folder or the file's ending forbids it.
    """
    write_atomically(path, volume_bytes(Path(path), volume))


def volume_bytes(path: Path, volume: Volume) -> bytes:
    """The content of an image file of `path`'s ending; equal volumes give equal bytes. Else as `write_volume`."""
    array = volume.array
    if array.dtype.kind in "iub":
        array = array.astype(np.int32 if array.min() < 0 else _label_type(int(array.max())), copy=False)
    else:
        array = array.astype(np.float32, copy=False)
    ending = _ending(path)
    files = itk_files if ending in itk_files.ENDINGS else nifti_files
    content = files.to_bytes(path, array, volume.affine)
    # Level 1 and no time stamp: fast, and equal volumes give equal files.
    return gzip.compress(content, 1, mtime=0) if ending == ".nii.gz" else content


def write_atomically(path: str | Path, content: bytes) -> None:
    """Put `content` into `path` so that a crash or a full disk leaves the old file or the new one, never a part.
    Raises OutOfSpaceError where there is no room, InputError where the folder is missing or not writable."""
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}-{path.name}"[:200])
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutOfSpaceError(f"{path}: no space left to write it; free some, or choose another folder") from error
        reasons = {errno.ENOENT: "its folder does not exist", errno.EACCES: "its folder may not be written to"}
        reason = reasons.get(error.errno or 0, error.strerror)
        raise InputError(f"{path}: it cannot be written ({reason}); choose another folder") from error


def sync_folder(folder: Path) -> None:
    """Let a new name reach the disk, where the platform can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# --- grids -----------------------------------------------------------------------------------------------------------


def grids_agree(a: Volume, b: Volume, tolerance: float = 1e-3) -> bool:
    """Whether two volumes have the same shape and affines that differ by at most `tolerance` in every entry."""
    return a.shape == b.shape and bool(np.max(np.abs(a.affine - b.affine)) <= tolerance)


def overlap(a: Volume, b: Volume) -> float:
    """The share (0 to 1) of the smaller of two fields of view that lies in the other, by a lattice of 16^3 points."""
    return max(_inside(a, b), _inside(b, a))


def to_ras(volume: Volume) -> Volume:
    """The same voxels with axes flipped and exchanged so that they run closest to right, anterior, superior."""
    import nibabel

    axes = nibabel.orientations.io_orientation(volume.affine)
    if np.array_equal(axes, [[0, 1], [1, 1], [2, 1]]):
        return volume
    array = nibabel.orientations.apply_orientation(volume.array, axes)
    return Volume(array, volume.affine @ nibabel.orientations.inv_ornt_aff(axes, volume.shape))


def crop(volume: Volume, lower: tuple[int, ...], upper: tuple[int, ...]) -> Volume:
    """The box of voxels from `lower` up to, not including, `upper`; each kept voxel stays where it is in the world."""
    if not all(0 <= a < b <= n for a, b, n in zip(lower, upper, volume.shape, strict=True)):
        raise ValueError(f"the box {lower} to {upper} does not lie in a volume of {volume.shape} voxels")
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.asarray(lower, float)
    return Volume(volume.array[tuple(slice(a, b) for a, b in zip(lower, upper, strict=True))], affine)


def ras_grid(volume: Volume, spacing: tuple[float, float, float]) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Affine and shape of the grid with `spacing` (mm) that covers the volume's field of view, axes closest to RAS.

    The field's centre stays the centre. Along an axis whose spacing is already within 0.1 % nothing changes.
    """
    ras = to_ras(volume)
    old = np.array(ras.spacing)
    scale = np.asarray(spacing, float) / old
    scale[np.abs(scale - 1) < 1e-3] = 1.0
    before = np.array(ras.shape)
    after = np.maximum(np.rint(before / scale), 1).astype(int)
    affine = ras.affine.copy()
    affine[:3, :3] *= scale
    affine[:3, 3] += ras.affine[:3, :3] @ ((before - 1) / 2 - scale * (after - 1) / 2)
    x, y, z = (int(n) for n in after)
    return affine, (x, y, z)


def resample_to(
    volume: Volume,
    affine: np.ndarray,
    shape: tuple[int, ...],
    mode: Literal["linear", "nearest"] = "linear",
    fill: float | None = None,
) -> Volume:
    """The volume on another grid (affine, shape), sampled in world coordinates; outside of its field of view `fill`
    is put (default: 0 for whole numbers, else the volume's minimum).

    Where the voxels of both grids coincide (same grid, flipped or exchanged axes, crop, pad) they are copied exactly;
    the same grid costs nothing and shares the array. Linear sampling on a coarser grid is smoothed first, each axis
    by a Gaussian with sigma = sqrt(s^2 - 1) / 2.355 voxels at s voxels a sample, which matches the two grids'
    point spread functions (Cardoso et al., MICCAI 2015, "Scale factor point spread function matching").
    """
    affine = np.asarray(affine, float)
    if tuple(shape) == volume.shape and np.max(np.abs(affine - volume.affine)) <= 1e-9:
        return volume
    array = volume.array
    if fill is None:
        fill = 0.0 if array.dtype.kind in "iub" else float(array.min())
    matrix = np.linalg.inv(volume.affine) @ affine  # target voxel -> source voxel
    linear = matrix[:3, :3]
    order = np.argmax(np.abs(linear), axis=0)  # the source axis that each target axis runs along
    oblique = linear.copy()
    oblique[order, range(3)] = 0
    aligned = sorted(order) == [0, 1, 2] and np.max(np.abs(oblique) @ np.array(shape)) <= SAME_VOXEL
    sigma = np.sqrt(np.maximum(np.sum(linear**2, axis=1) - 1, 0)) / 2.355 * (mode == "linear")
    if not aligned:
        for along in range(3):
            array = _smooth_axis(array, along, sigma[along])
        return Volume(_sample_obliquely(array, matrix, shape, mode, fill), affine)
    sampled, reached = array.transpose(order), []
    for axis, along in enumerate(order):
        positions = linear[along, axis] * np.arange(shape[axis]) + matrix[along, 3]
        last = sampled.shape[axis] - 1
        inside = np.flatnonzero((positions >= -0.5 - SAME_VOXEL) & (positions <= last + 0.5 + SAME_VOXEL))
        if inside.size == 0:
            return Volume(np.full(shape, fill, sampled.dtype), affine)
        # Smoothed just before it is sampled, so that the axes after the first have fewer voxels to smooth.
        smooth = _smooth_axis(sampled, axis, sigma[along])
        sampled = _sample_axis(smooth, axis, np.clip(positions[inside], 0, last), mode)
        reached.append(slice(int(inside[0]), int(inside[-1]) + 1))
    if sampled.shape == tuple(shape):
        return Volume(np.ascontiguousarray(sampled), affine)
    result = np.full(shape, fill, sampled.dtype)
    result[tuple(reached)] = sampled
    return Volume(result, affine)


def _smooth_axis(array: np.ndarray, axis: int, sigma: float) -> np.ndarray:
    """Smooth one axis by a Gaussian, sigma in voxels, unless that is too narrow to change anything."""
    if sigma <= 0.1:
        return array
    from scipy import ndimage

    smooth: np.ndarray = ndimage.gaussian_filter1d(
        array.astype(np.float32, copy=False), sigma, axis, mode="nearest", truncate=3
    )
    return smooth


def _sample_axis(array: np.ndarray, axis: int, within: np.ndarray, mode: str) -> np.ndarray:
    """Sample one axis at fractional voxel positions inside of it. Two voxels weighted, axis by axis, is five times as
    fast as scipy's or torch's sampling of three axes at once, and the same."""
    last = array.shape[axis] - 1
    if mode == "nearest" or np.all(np.abs(within - np.rint(within)) <= SAME_VOXEL):
        return _take(array, axis, np.floor(within + 0.5).astype(int))
    array = array.astype(np.float32, copy=False)
    lower = np.minimum(within.astype(int), max(last - 1, 0))
    weight = (within - lower).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    sampled: np.ndarray = array.take(lower, axis)
    step = array.take(np.minimum(lower + 1, last), axis)
    step -= sampled
    step *= weight
    sampled += step
    return sampled


def _take(array: np.ndarray, axis: int, indices: np.ndarray) -> np.ndarray:
    """`array.take`, as a view where the indices run on by one, up or down."""
    first, final = int(indices[0]), int(indices[-1])
    sign = 1 if final >= first else -1
    if not np.array_equal(indices, np.arange(first, final + sign, sign)):
        return array.take(indices, axis)
    cut = [slice(None)] * 3
    cut[axis] = slice(first, final + sign if final + sign >= 0 else None, sign)
    return array[tuple(cut)]


def _sample_obliquely(
    array: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...], mode: str, fill: float
) -> np.ndarray:
    from scipy import ndimage

    # One repeated voxel all round, so that the outer half of the border voxels is theirs and not `fill`.
    array = np.pad(array.astype(np.float32, copy=False) if mode == "linear" else array, 1, mode="edge")
    order = 1 if mode == "linear" else 0
    sampled: np.ndarray = ndimage.affine_transform(
        array, matrix[:3, :3], matrix[:3, 3] + 1, tuple(shape), order=order, mode="constant", cval=fill
    )
    return sampled


def _inside(a: Volume, b: Volume) -> float:
    """The share of a's field of view that lies in b's."""
    steps = (np.arange(16) + 0.5) / 16
    points = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3) * a.shape - 0.5
    matrix = np.linalg.inv(b.affine) @ a.affine
    voxels = points @ matrix[:3, :3].T + matrix[:3, 3]
    return float(np.mean(np.all((voxels >= -0.5) & (voxels <= np.array(b.shape) - 0.5), axis=1)))


# --- files -----------------------------------------------------------------------------------------------------------


def _ending(path: Path) -> str:
    for ending in ENDINGS:
        if path.name.lower().endswith(ending):
            return ending
    raise InputError(f"{path}: unknown file type; use one of {', '.join(ENDINGS)}")


def _check_readable(path: Path) -> None:
    if os.path.isdir(path):  # unlike Path.is_dir, False where the folder above may not be entered
        raise InputError(f"{path}: this is a folder; name the image file in it")
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        reasons = {errno.ENOENT: "there is no such file", errno.EACCES: "it may not be read"}
        reason = reasons.get(error.errno or 0, error.strerror)
        raise InputError(f"{path}: {reason}; check the path and its rights") from error
    if empty:
        raise InputError(f"{path}: the file is empty (0 bytes); copy or download it again")


def check_intensities(path: Path, array: np.ndarray) -> None:
    lowest, highest = float(array.min()), float(array.max())
    # NaN spreads to both ends, so that two reductions find NaN and Inf without another array.
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise InputError(f"{path}: it holds NaN or infinite values; replace them (by 0, say) and save it again")
    if lowest == highest:
        raise InputError(f"{path}: every voxel is {lowest:g}, so there is no image in it; export it again")


def _read(path: Path, channel: int | None, dtype: DTypeLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Array (X, Y, Z), C order, and affine of a file, with every fault of the file told as InputError."""
    ending = _ending(path)
    _check_readable(path)
    try:
        array, affine = (itk_files if ending in itk_files.ENDINGS else nifti_files).read(path)
        array = one_volume(path, array, channel)
        if array.dtype.kind not in "iufb":
            raise InputError(f"{path}: colour or complex voxels; save it as a grey-value image")
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes Inf, which is told as such
            array = np.array(array, dtype=dtype, order="C")
    except MemoryError as error:
        raise OutOfSpaceError(f"{path}: too large for this machine's memory; crop or resample it first") from error
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.all(np.isfinite(affine)) or lengths.min() <= 1e-6:
        raise InputError(f"{path}: its affine has a zero or undefined spacing; export the image again from its source")
    if abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise InputError(f"{path}: its affine is singular (two axes point the same way); export the image again")
    return array, affine


def one_volume(path: Path, array: np.ndarray, channel: int | None) -> np.ndarray:
    """The (X, Y, Z) of an array that may have more axes, of which `channel` is wanted; else InputError."""
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 4 and channel is not None:
        if channel >= array.shape[3]:
            raise InputError(
                f"{path}: it has {array.shape[3]} channels, not the number {channel} (from 0); correct dataset.json"
            )
        array = array[..., channel]
    if array.ndim > 3:
        raise InputError(f"{path}: {array.ndim}-D image {array.shape}, but one 3-D volume is needed; split it first")
    if array.ndim < 3 or min(array.shape) < 2:
        raise InputError(f"{path}: 2-D image {array.shape}, but a 3-D volume is needed; give the whole series")
    return array


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]


def _label_type(highest: int) -> type[np.integer[Any]]:
    return np.uint8 if highest < 256 else np.uint16 if highest < 65536 else np.int32
