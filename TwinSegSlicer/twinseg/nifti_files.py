"""NIfTI files, by way of nibabel. See `volumes`."""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from pathlib import Path

import numpy as np

from twinseg.errors import InputError

ENDINGS = (".nii.gz", ".nii")
logger = logging.getLogger(__name__)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Array of any dimension, scaled by slope and intercept, and its 4x4 affine to RAS mm. Raises InputError."""
    import nibabel

    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":  # by content: .nii.gz files that are not packed, and the reverse, are about
        try:
            # All of it at once: twice as fast as a stream, and the checksum at the end is looked at.
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: the file is damaged or cut short; copy or download it again") from error
    kind = nibabel.Nifti2Image if content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nibabel.Nifti1Image
    try:
        image = kind.from_bytes(content)
        affine = np.array(image.affine, float)
    except Exception as error:  # a header of random bytes makes nibabel raise anything
        raise InputError(f"{path}: this is not a NIfTI file, whatever its name says; export it as NIfTI") from error
    # Looked at first, as nibabel takes the memory that the header asks for before it reads.
    if min(image.shape, default=0) < 0 or math.prod(image.shape) * image.get_data_dtype().itemsize > len(content):
        raise InputError(f"{path}: the file is damaged or cut short; copy or download it again")
    try:
        array = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: the file is damaged or cut short; copy or download it again") from error
    if not image.header["sform_code"] and not image.header["qform_code"]:
        logger.warning("%s: the header states no orientation (qform and sform code 0); left-right is a guess", path)
    return array, affine


def to_bytes(path: Path, array: np.ndarray, affine: np.ndarray) -> bytes:
    """The content of a NIfTI-1 file, not yet packed, with the affine as sform and qform."""
    import nibabel

    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    # A qform cannot hold shear, and turns near 180 degrees badly; a reader that prefers it would then put the voxels
    # elsewhere, so it is left out.
    image.set_qform(affine, code=1)
    if not np.allclose(image.header.get_qform(), affine, rtol=0, atol=1e-4):
        image.set_qform(None, code=0)
    content: bytes = image.to_bytes()
    return content
