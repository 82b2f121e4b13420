"""New patients from old ones: the lesion of one case put into the head of another, and lesions given another core.

A few dozen patients show few of the places, sizes and hearts that a tumour may have; these changes multiply them.
Cases are those of `preprocessing.PreparedCase`: cropped to the head, so that equal places in the box are, nearly, equal
places in the head.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from twinseg.preprocessing import PreparedCase

Box = tuple[slice, slice, slice]


def paste_lesion(
    host: PreparedCase, donor: PreparedCase, channels: list[int], random: np.random.Generator
) -> PreparedCase:
    """The host with the donor's lesion in it, at the donor's place or the mirrored one, give or take a tenth.

    What is pasted is the lesion shrunk or grown by a random distance (CarveMix, Zhang et al. 2021, eq. 1-4; grown by
    less than there, so that little of the donor's head comes along). `channels`: the labels that make up a lesion. The
    host itself is given back where the donor has no lesion, or the two have no sequence in common.
    """
    present = tuple(a and b for a, b in zip(host.present, donor.present, strict=True))
    assert host.labels is not None
    assert donor.labels is not None
    lesion = np.isin(donor.labels, channels)
    if not lesion.any() or not any(present):
        return host
    box = bounding_box(lesion, margin=3)
    distance = signed_distance(lesion[box], donor.spacing)
    depth = -float(distance.min())
    threshold = random.uniform(-0.5 * depth, 0.0) if random.random() < 0.5 else random.uniform(0.0, min(depth, 6.0))
    mask = distance <= threshold
    image, labels = donor.image[(slice(None), *box)], donor.labels[box]
    start = np.array([part.start for part in box])
    if random.random() < 0.5:
        mask, image, labels = mask[::-1], image[:, ::-1], labels[::-1]
        start[0] = donor.labels.shape[0] - box[0].stop
    start = start + (np.array(host.labels.shape) - donor.labels.shape) // 2
    start += (random.uniform(-0.1, 0.1, 3) * host.labels.shape).round().astype(int)
    low, high = np.maximum(start, 0), np.minimum(start + mask.shape, host.labels.shape)
    if (low >= high).any():
        return host
    there = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    here = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
    mixed_image, mixed_labels = host.image.copy(), host.labels.copy()
    np.copyto(mixed_image[(slice(None), *there)], image[(slice(None), *here)], where=mask[here])
    np.copyto(mixed_labels[there], labels[here], where=mask[here])
    return replace(host, image=mixed_image, labels=mixed_labels, present=present)


def change_core(case: PreparedCase, channels: list[int], random: np.random.Generator) -> PreparedCase:
    """The case with its lesion's core brighter or darker, sequence by sequence: cysts, necrosis, blood, calcium.

    The core is what lies deeper than a random share of the lesion's depth; the change sets in over 3 mm.
    """
    assert case.labels is not None
    lesion = np.isin(case.labels, channels)
    if not lesion.any():
        return case
    box = bounding_box(lesion, margin=1)
    distance = signed_distance(lesion[box], case.spacing)
    start = random.uniform(0.1, 0.7) * -float(distance.min())
    core = np.clip((-distance - start) / 3.0, 0.0, 1.0).astype(np.float32)
    image = case.image.copy()
    for channel, present in enumerate(case.present):
        shift = random.uniform(-2.5, 1.0)
        if present:
            image[channel][box] += np.float32(shift) * core
    return replace(case, image=image)


def bounding_box(mask: NDArray[np.bool_], margin: int) -> Box:
    """The box around a mask that is not empty, wider by `margin` voxels where the array goes on."""
    box = ndimage.find_objects(mask.view(np.uint8))[0]
    x, y, z = (
        slice(max(0, part.start - margin), min(size, part.stop + margin))
        for part, size in zip(box, mask.shape, strict=True)
    )
    return x, y, z


def signed_distance(mask: NDArray[np.bool_], spacing: tuple[float, float, float]) -> NDArray[np.float64]:
    """Distance in mm to the mask's border, negative inside."""
    padded = np.pad(mask, 1)  # so that a mask that fills its box has an outside
    inside = ndimage.distance_transform_edt(padded, spacing)[1:-1, 1:-1, 1:-1]
    outside = ndimage.distance_transform_edt(~mask, spacing) if mask.any() else 0.0
    signed: NDArray[np.float64] = outside - inside
    return signed
