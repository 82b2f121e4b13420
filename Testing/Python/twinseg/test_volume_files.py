"""Files of volumes: what is written is read back, voxel for voxel and place for place, or not written at all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from twinseg.volumes import Volume, read_image, read_labels, read_picture, write_atomically, write_volume

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Voxel to RAS mm, right- or left-handed, turned by any angle; rounded to what a NIfTI header can hold."""
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", draw(st.tuples(*[st.floats(-3, 3)] * 3))).as_matrix()
    affine[:3, :3] = turn * draw(st.tuples(*[st.floats(0.3, 8)] * 3)) * [draw(st.sampled_from((-1, 1))), 1, 1]
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    return affine.astype(np.float32).astype(float)


shapes = st.tuples(*[st.integers(2, 9)] * 3)


def numbered(shape: tuple[int, int, int], affine: np.ndarray) -> Volume:
    """A volume of which every voxel has its own value."""
    return Volume(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), affine)


@quick
@given(shapes, affines(), st.sampled_from([".nii.gz", ".nii"]))
def test_a_written_volume_is_read_back(
    tmp_path: Path, shape: tuple[int, int, int], affine: np.ndarray, ending: str
) -> None:
    file = tmp_path / f"volume{ending}"

    write_volume(file, numbered(shape, affine))

    back, header = read_image(file), nibabel.nifti1.load(file).header
    np.testing.assert_array_equal(back.array, numbered(shape, affine).array)
    np.testing.assert_allclose(back.affine, affine, atol=1e-6)
    assert header["sform_code"] == 1
    if header["qform_code"]:
        np.testing.assert_allclose(header.get_qform(), affine, atol=1e-4)


def test_sform_and_qform_agree(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [0.1, 0.2, 0.3]).as_matrix() * [-1, -1, 3]

    write_volume(tmp_path / "a.nii.gz", numbered((3, 4, 5), affine))

    header = nibabel.nifti1.load(tmp_path / "a.nii.gz").header
    assert header["sform_code"] == header["qform_code"] == 1
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-5)


def test_a_sheared_affine_is_not_put_into_a_qform(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.3

    write_volume(tmp_path / "a.nii", numbered((3, 4, 5), affine))

    header = nibabel.nifti1.load(tmp_path / "a.nii").header
    assert header["qform_code"] == 0
    np.testing.assert_allclose(header.get_sform(), affine, atol=1e-7)


@pytest.mark.parametrize(("highest", "stored"), [(3, np.uint8), (300, np.uint16), (70000, np.int32)])
def test_labels_are_stored_in_as_few_bytes_as_hold_them(tmp_path: Path, highest: int, stored: type[Any]) -> None:
    labels = np.zeros((4, 5, 6), np.int64)
    labels[1, 2, 3] = highest

    write_volume(tmp_path / "seg.nii.gz", Volume(labels, np.eye(4)))

    assert nibabel.nifti1.load(tmp_path / "seg.nii.gz").get_data_dtype() == stored
    back = read_labels(tmp_path / "seg.nii.gz").array
    assert back.dtype == stored
    np.testing.assert_array_equal(back, labels)


def test_equal_volumes_give_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_volume(tmp_path / f"{name}.nii.gz", numbered((4, 5, 6), np.eye(4)))

    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    image.header.set_slope_inter(2.0, -1024.0)
    nibabel.save(image, tmp_path / "ct.nii.gz")

    read = read_image(tmp_path / "ct.nii.gz")

    np.testing.assert_array_equal(read.array.reshape(-1), np.arange(60) * 2.0 - 1024.0)


@pytest.mark.parametrize("dtype", ["<f8", ">f8", ">i2", "<u4", "<f4", "u1"])
def test_every_number_type_and_byte_order_is_read(tmp_path: Path, dtype: str) -> None:
    array = np.arange(60).reshape(3, 4, 5)
    header = nibabel.Nifti1Header(endianness=dtype[0] if dtype[0] in "<>" else "<")
    header.set_data_dtype(np.dtype(dtype))
    nibabel.save(nibabel.Nifti1Image(array.astype(dtype), np.eye(4), header), tmp_path / "a.nii")

    image, labels = read_image(tmp_path / "a.nii"), read_labels(tmp_path / "a.nii")

    assert image.array.dtype == np.dtype(np.float32)
    assert labels.array.dtype == np.dtype(np.uint8)
    np.testing.assert_array_equal(image.array, array)
    np.testing.assert_array_equal(labels.array, array)


def test_nifti_2_is_read(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(np.arange(60.0).reshape(3, 4, 5), np.diag([2.0, 2, 2, 1])), tmp_path / "a.nii.gz")

    assert read_image(tmp_path / "a.nii.gz").spacing == (2, 2, 2)


def test_a_packed_file_is_known_by_its_content_not_its_name(tmp_path: Path, save_nifti: Callable[..., Path]) -> None:
    plain, packed = save_nifti(tmp_path / "a.nii"), save_nifti(tmp_path / "b.nii.gz")

    wrongly_packed, wrongly_plain = plain.rename(tmp_path / "c.nii.gz"), packed.rename(tmp_path / "d.nii")

    np.testing.assert_array_equal(read_image(wrongly_packed).array, read_image(wrongly_plain).array)


def test_the_sform_comes_before_the_qform_and_neither_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), None)
    image.header.set_zooms((2, 2, 2))
    image.set_qform(np.diag([3.0, 3, 3, 1]), code=1)
    image.set_sform(np.diag([4.0, 4, 4, 1]), code=1)
    nibabel.save(image, tmp_path / "both.nii")
    image.set_sform(None, code=0)
    nibabel.save(image, tmp_path / "qform.nii")
    image.set_qform(None, code=0)
    nibabel.save(image, tmp_path / "none.nii")

    assert read_image(tmp_path / "both.nii").spacing == (4, 4, 4)
    assert read_image(tmp_path / "qform.nii").spacing == (3, 3, 3)
    assert not caplog.records
    np.testing.assert_allclose(
        read_image(tmp_path / "none.nii").affine, nibabel.nifti1.load(tmp_path / "none.nii").affine
    )
    assert "none.nii: the header states no orientation" in caplog.text


def test_a_trailing_axis_of_one_is_dropped_and_a_channel_is_picked(
    tmp_path: Path, save_nifti: Callable[..., Path]
) -> None:
    array = np.random.default_rng(0).integers(0, 100, (4, 5, 6, 3)).astype(np.int16)
    four = save_nifti(tmp_path / "four.nii.gz", array)
    one = save_nifti(tmp_path / "one.nii.gz", array[..., :1])

    np.testing.assert_array_equal(read_image(four, channel=2).array, array[..., 2])
    np.testing.assert_array_equal(read_image(one).array, array[..., 0])


def test_a_picture_is_read_as_grey_values(tmp_path: Path) -> None:
    from PIL import Image

    grey = np.arange(0, 120, dtype=np.uint8).reshape(10, 12)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "colour.png")

    for name in ("grey.png", "colour.png"):
        np.testing.assert_allclose(read_picture(tmp_path / name), grey, atol=0.5)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_nrrd_and_metaimage_keep_geometry(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("SimpleITK", reason="SimpleITK reads .nrrd and .mha; it comes with Slicer")
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [0.1, 0.2, 0.3]).as_matrix() * [1, -2, 3]
    affine[:3, 3] = 10.123456789, -20, 30

    write_volume(tmp_path / f"a{ending}", numbered((4, 5, 6), affine))
    back = read_image(tmp_path / f"a{ending}")

    np.testing.assert_array_equal(back.array, numbered((4, 5, 6), affine).array)
    np.testing.assert_allclose(back.affine, affine, atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == [f"a{ending}"]


def test_a_file_is_replaced_whole_and_no_temporary_one_is_left(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", b"old")

    write_atomically(tmp_path / "a.json", b"new")

    assert (tmp_path / "a.json").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


FULL_DISK = """
import resource, sys
import numpy as np
from twinseg.errors import OutOfSpaceError
from twinseg.volumes import Volume, write_volume
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
noise = np.random.default_rng(0).random((40, 40, 40), dtype=np.float32)
try:
    write_volume(sys.argv[1], Volume(noise, np.eye(4)))
except OutOfSpaceError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the limit on a file's size is POSIX's")
def test_without_space_the_old_file_stays_and_no_part_of_the_new_one(tmp_path: Path) -> None:
    import twinseg

    assert twinseg.__file__
    file = tmp_path / "seg.nii.gz"
    write_volume(file, numbered((3, 4, 5), np.eye(4)))

    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(file)], capture_output=True, text=True, check=True,
        cwd=Path(twinseg.__file__).parent.parent,
    )  # fmt: skip

    assert done.stdout == f"{file}: no space left to write it; free some, or choose another folder\n"
    assert [p.name for p in tmp_path.iterdir()] == ["seg.nii.gz"]
    assert read_image(file).shape == (3, 4, 5)
