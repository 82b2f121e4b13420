"""Heads drawn by rule and heads from label maps."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from twinseg.errors import InputError
from twinseg.phantom.anatomy import SOLID_BRAIN, Tissue, procedural_anatomy
from twinseg.phantom.fields import Grid
from twinseg.phantom.label_maps import FREESURFER, warped_anatomy

GRID = Grid((64, 64, 64), (3.0, 3.0, 3.0))
REAL_MAPS = Path(__file__).parents[3] / "../shared/data/anatomy"


def volume_ml(tissues: np.ndarray, *kinds: Tissue, grid: Grid = GRID) -> float:
    return float(np.isin(tissues, kinds).sum()) * grid.voxel_ml


@pytest.mark.parametrize("seed", range(5))
def test_a_drawn_head_has_the_volumes_of_an_adult(seed: int) -> None:
    tissues = procedural_anatomy(seed, GRID).tissues

    assert 900 < volume_ml(tissues, *SOLID_BRAIN) < 1800
    assert 300 < volume_ml(tissues, Tissue.WHITE, Tissue.WHITE_LESION) < 900
    assert 250 < volume_ml(tissues, Tissue.GREY) < 900
    assert 3 < volume_ml(tissues, Tissue.VENTRICLE) < 200
    for kind in (Tissue.FAT, Tissue.BONE, Tissue.CSF, Tissue.DEEP_GREY, Tissue.BRAIN_STEM, Tissue.CEREBELLAR_GREY):
        assert volume_ml(tissues, kind) > 1


def test_every_seed_is_another_head_and_the_same_seed_the_same_one() -> None:
    first, again, other = (procedural_anatomy(seed, GRID).tissues for seed in (1, 1, 2))

    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.05


def test_the_two_sides_resemble_but_do_not_equal_each_other() -> None:
    tissues = procedural_anatomy(4, GRID).tissues
    brain = np.isin(tissues, SOLID_BRAIN)

    mirrored = brain[::-1]

    overlap = 2 * (brain & mirrored).sum() / (brain.sum() + mirrored.sum())
    assert 0.85 < overlap < 0.999


def test_the_head_does_not_depend_on_the_voxel_size() -> None:
    fine = procedural_anatomy(7, Grid((129, 129, 129), (1.5, 1.5, 1.5))).tissues[::2, ::2, ::2]
    coarse = procedural_anatomy(7, Grid((65, 65, 65), (3.0, 3.0, 3.0))).tissues

    assert (fine == coarse).mean() > 0.9


@pytest.fixture
def label_folder(tmp_path: Path) -> Path:
    """A folder with one FreeSurfer label map, stored in the order that FreeSurfer uses (left, inferior, anterior)."""
    grid = Grid((96, 96, 96), (2.0, 2.0, 2.0))
    tissues = procedural_anatomy(0, grid).tissues
    table = np.zeros(len(Tissue), dtype=np.int32)
    for tissue, numbers in FREESURFER.items():
        table[tissue] = numbers[0]
    ras = nibabel.Nifti1Image(table[tissues], grid.affine)
    target = nibabel.orientations.axcodes2ornt(("L", "I", "A"))
    stored = ras.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(ras.affine), target))
    nibabel.save(stored, tmp_path / "subject.nii.gz")
    return tmp_path


def test_a_label_map_is_turned_to_ras_and_warped(label_folder: Path) -> None:
    one, two = (warped_anatomy(seed, GRID, label_folder).tissues for seed in (0, 1))

    assert 800 < volume_ml(one, *SOLID_BRAIN) < 2000
    assert (one != two).mean() > 0.05
    # the brain stem lies below and behind the middle, the eyes in front: RAS
    _, stem_y, stem_z = np.argwhere(one == Tissue.BRAIN_STEM).mean(axis=0)
    brain_z = np.argwhere(one == Tissue.GREY).mean(axis=0)[2]
    eyes_y = np.argwhere(one == Tissue.EYE).mean(axis=0)[1]
    assert stem_z < brain_z
    assert stem_y < 32 < eyes_y


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "no such folder"), ({}, "no label map"), ({"a.nii.gz": b"text"}, "a.nii.gz")],
)
def test_a_folder_without_label_maps_is_refused_in_one_line(
    tmp_path: Path, content: dict[str, bytes] | None, told: str
) -> None:
    folder = tmp_path / "maps"
    if content is not None:
        folder.mkdir()
        for name, data in content.items():
            (folder / name).write_bytes(data)

    with pytest.raises(InputError, match=told) as caught:
        warped_anatomy(0, GRID, folder)

    assert "\n" not in str(caught.value)


def test_a_label_map_without_a_brain_is_refused(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((20, 20, 20), np.uint8), np.eye(4)), tmp_path / "liver.nii.gz")

    with pytest.raises(InputError, match=r"liver\.nii\.gz.*no brain"):
        warped_anatomy(0, GRID, tmp_path)


@pytest.mark.skipif(not REAL_MAPS.is_dir(), reason="../shared/data/anatomy is not there")
def test_real_label_maps_make_adult_heads() -> None:
    tissues = warped_anatomy(5, GRID, REAL_MAPS).tissues

    assert 700 < volume_ml(tissues, *SOLID_BRAIN) < 1900
    assert volume_ml(tissues, Tissue.FAT) > 100
