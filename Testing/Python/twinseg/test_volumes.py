"""Volumes: a voxel's place in the world survives files, flips, crops and resampling."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from twinseg.volumes import (
    Volume,
    crop,
    grids_agree,
    overlap,
    ras_grid,
    read_image,
    read_labels,
    read_picture,
    resample_to,
    to_ras,
    write_atomically,
    write_volume,
)

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def affines(draw: st.DrawFn, oblique: bool = True) -> np.ndarray:
    """Voxel to RAS mm: any order and sense of the axes (so also left-handed), any rotation, spacings 0.3 to 8 mm."""
    spacing = draw(st.tuples(*[st.floats(0.3, 8)] * 3))
    signs = draw(st.tuples(*[st.sampled_from((-1, 1))] * 3))
    order = draw(st.permutations(range(3)))
    turn = Rotation.from_euler("xyz", draw(st.tuples(*[st.floats(-0.6, 0.6)] * 3))).as_matrix() if oblique else np.eye(3)
    affine = np.eye(4)
    affine[:3, :3] = turn @ (np.diag(signs)[:, order] * spacing)
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    return affine


shapes = st.tuples(*[st.integers(2, 9)] * 3)


def numbered(shape: tuple[int, int, int], affine: np.ndarray) -> Volume:
    """A volume of which every voxel has its own value, by which it is found again."""
    return Volume(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), affine)


def places(volume: Volume) -> dict[float, np.ndarray]:
    """The world coordinates (RAS mm) of each value."""
    indices = np.indices(volume.shape).reshape(3, -1).T
    world = indices @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return dict(zip(volume.array.reshape(-1).tolist(), world, strict=True))


def world_ramp(shape: tuple[int, int, int], affine: np.ndarray) -> Volume:
    """A volume whose value is a linear function of the world coordinates, which linear sampling must keep."""
    points = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    return Volume((points @ [1.0, -2.0, 0.5] + 7).astype(np.float32), affine)


# --- reorientation and crop ------------------------------------------------------------------------------------------


@quick
@given(shapes, affines())
def test_to_ras_keeps_every_voxel_where_it_is(shape: tuple[int, int, int], affine: np.ndarray) -> None:
    volume = numbered(shape, affine)

    turned = to_ras(volume)

    before, after = places(volume), places(turned)
    assert before.keys() == after.keys()
    assert all(np.allclose(before[v], after[v], atol=1e-9) for v in before)
    assert nibabel.aff2axcodes(turned.affine) == ("R", "A", "S")


@quick
@given(shapes, affines(), st.data())
def test_crop_keeps_every_voxel_where_it_is(shape: tuple[int, int, int], affine: np.ndarray, data: st.DataObject) -> None:
    volume = numbered(shape, affine)
    lower = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    upper = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(lower, shape, strict=True))

    part = crop(volume, lower, upper)

    before = places(volume)
    assert part.shape == tuple(b - a for a, b in zip(lower, upper, strict=True))
    assert all(np.allclose(before[v], place, atol=1e-9) for v, place in places(part).items())


def test_a_crop_beyond_the_volume_is_refused() -> None:
    with pytest.raises(ValueError, match="does not lie in"):
        crop(numbered((4, 4, 4), np.eye(4)), (0, 0, 0), (4, 5, 4))


# --- resampling ------------------------------------------------------------------------------------------------------


def test_the_same_grid_costs_nothing() -> None:
    volume = numbered((240, 240, 155), np.diag([-1.0, -1, 1, 1]))

    assert resample_to(volume, volume.affine.copy(), volume.shape) is volume


@quick
@given(shapes, affines(), st.sampled_from(["linear", "nearest"]))
def test_there_and_back_between_flipped_grids_is_exact(shape: tuple[int, int, int], affine: np.ndarray, mode: str) -> None:
    volume = numbered(shape, affine)
    ras = to_ras(volume)

    there = resample_to(volume, ras.affine, ras.shape, mode)
    back = resample_to(there, affine, shape, mode)

    np.testing.assert_array_equal(there.array, ras.array)
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.affine, affine, atol=1e-6)


@quick
@given(shapes, affines(), st.data())
def test_a_crop_put_back_fills_the_rest(shape: tuple[int, int, int], affine: np.ndarray, data: st.DataObject) -> None:
    volume = numbered(shape, affine)
    lower = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    upper = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(lower, shape, strict=True))

    back = resample_to(crop(to_ras(volume), (0, 0, 0), to_ras(volume).shape), affine, shape)
    part = resample_to(crop(volume, lower, upper), affine, shape, fill=-1.0)

    np.testing.assert_array_equal(back.array, volume.array)
    box = tuple(slice(a, b) for a, b in zip(lower, upper, strict=True))
    np.testing.assert_array_equal(part.array[box], volume.array[box])
    assert np.count_nonzero(part.array == -1) == volume.array.size - part.array[box].size


@quick
@given(affines(), affines(), st.booleans())
def test_linear_sampling_keeps_world_coordinates(source: np.ndarray, target: np.ndarray, aligned: bool) -> None:
    if aligned:  # the way that goes axis by axis
        target[:3, :3] = source[:3, :3] * np.linalg.norm(target[:3, :3], axis=0) / np.linalg.norm(source[:3, :3], axis=0)
    shape = (12, 13, 14)
    volume = world_ramp(shape, source)
    target[:3, 3] += (source @ [5.5, 6, 6.5, 1] - target @ [3.5, 3.5, 3.5, 1])[:3]  # the same centre
    matrix = np.linalg.inv(source) @ target
    assume(np.all(np.linalg.norm(matrix[:3, :3], axis=1) <= 1))  # no coarser, so that nothing is smoothed

    sampled = resample_to(volume, target, (8, 8, 8))

    indices = np.moveaxis(np.indices((8, 8, 8)), 0, -1) @ matrix[:3, :3].T + matrix[:3, 3]
    inside = np.all((indices >= 0) & (indices <= np.array(shape) - 1), axis=-1)
    assert inside.any()
    np.testing.assert_allclose(
        sampled.array[inside], world_ramp((8, 8, 8), target).array[inside], rtol=1e-4, atol=np.ptp(volume.array) * 1e-4
    )


@quick
@given(affines(oblique=False), st.tuples(*[st.floats(0.5, 3)] * 3))
def test_a_new_spacing_keeps_the_field_of_view(affine: np.ndarray, spacing: tuple[float, float, float]) -> None:
    volume = numbered((20, 21, 22), affine)

    new_affine, shape = ras_grid(volume, spacing)

    centre = affine @ [*(np.array(volume.shape) - 1) / 2, 1]
    np.testing.assert_allclose(new_affine @ [*(np.array(shape) - 1) / 2, 1], centre, atol=1e-9)
    extent, before = np.array(shape) * Volume(np.empty(shape), new_affine).spacing, to_ras(volume)
    assert np.all(np.abs(extent - np.array(before.shape) * before.spacing) <= np.array(spacing) / 2 + 1e-6)
    assert nibabel.aff2axcodes(new_affine) == ("R", "A", "S")


def test_a_spacing_that_is_there_already_changes_nothing() -> None:
    volume = to_ras(numbered((20, 21, 22), np.diag([-1.0, -1.0002, 1.0, 1])))

    affine, shape = ras_grid(volume, (1.0, 1.0, 1.0))

    assert resample_to(volume, affine, shape) is volume


def test_linear_sampling_agrees_with_scipy_axis_by_axis() -> None:
    from twinseg import volumes

    array = np.random.default_rng(0).random((11, 12, 13), dtype=np.float32)
    affine = np.diag([0.7, 0.9, 0.8, 1.0])
    affine[:3, 3] = 0.2, 1.3, 2.1

    fast = resample_to(Volume(array, np.eye(4)), affine, (12, 10, 11), fill=-5.0)
    general = volumes._sample_obliquely(array, affine, (12, 10, 11), "linear", -5.0)

    np.testing.assert_allclose(fast.array, general, atol=1e-5)


def test_a_coarser_grid_averages_instead_of_aliasing() -> None:
    stripes = np.zeros((64, 64, 64), np.float32)
    stripes[::2] = 1  # every second slice: taking every fourth voxel would give all ones or all zeros
    volume = Volume(stripes, np.eye(4))

    coarse = resample_to(volume, *ras_grid(volume, (4.0, 4.0, 4.0)))

    assert coarse.shape == (16, 16, 16)
    np.testing.assert_allclose(coarse.array[1:-1], 0.5, atol=0.02)


@pytest.mark.parametrize("turn", [0.0, 0.2])
def test_labels_stay_labels(turn: float) -> None:
    labels = Volume((np.random.default_rng(1).random((16, 17, 18)) > 0.5).astype(np.uint8) * 3, np.eye(4))
    affine = np.eye(4) * [0.7, 0.7, 0.7, 1]
    affine[:3, :3] = Rotation.from_euler("z", turn).as_matrix() @ affine[:3, :3]

    sampled = resample_to(labels, affine, (20, 20, 20), mode="nearest")

    assert sampled.array.dtype == np.uint8
    assert set(np.unique(sampled.array)) == {0, 3}


def test_a_constant_volume_stays_constant_to_its_border_and_is_filled_beyond() -> None:
    volume = Volume(np.full((8, 8, 8), 5, np.float32), np.eye(4))
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = -0.25 - 1  # four samples before the field of view begins, at -0.5
    affine[:3, :3] = Rotation.from_euler("z", 1e-3).as_matrix() @ affine[:3, :3]

    for turned in (affine, np.where(np.abs(affine) < 2e-3, 0, affine)):
        sampled = resample_to(volume, turned, (20, 20, 20), fill=-1.0).array

        assert np.all(sampled[3:17, 3:17, 3:17] == pytest.approx(5))
        assert np.all(sampled[0] == -1)


# --- grids -----------------------------------------------------------------------------------------------------------


def test_grids_agree_within_a_thousandth() -> None:
    volume = numbered((4, 5, 6), np.eye(4))
    near, far = np.eye(4), np.eye(4)
    near[0, 3], far[0, 3] = 9e-4, 2e-3

    assert grids_agree(volume, Volume(volume.array, near))
    assert not grids_agree(volume, Volume(volume.array, far))
    assert not grids_agree(volume, numbered((4, 5, 7), np.eye(4)))


def test_overlap_is_the_share_of_the_smaller_field_of_view() -> None:
    head, slab, elsewhere = np.eye(4), np.eye(4), np.eye(4)
    slab[2, 3], elsewhere[0, 3] = 8, 24
    volume = numbered((32, 32, 32), head)

    assert overlap(volume, numbered((32, 32, 4), slab)) == 1.0
    assert overlap(volume, numbered((32, 32, 32), elsewhere)) == pytest.approx(0.25)


# --- files -----------------------------------------------------------------------------------------------------------


@quick
@given(shapes, affines(), st.sampled_from([".nii.gz", ".nii"]))
def test_a_written_volume_is_read_back(
    tmp_path: Path, shape: tuple[int, int, int], affine: np.ndarray, ending: str
) -> None:
    stored = affine.astype(np.float32).astype(float)  # what a NIfTI header can hold
    file = tmp_path / f"volume{ending}"

    write_volume(file, numbered(shape, stored))

    back, header = read_image(file), nibabel.load(file).header
    np.testing.assert_array_equal(back.array, numbered(shape, stored).array)
    np.testing.assert_allclose(back.affine, stored, atol=1e-6)
    np.testing.assert_allclose(header.get_qform(), stored, atol=1e-3)
    assert header["sform_code"] == header["qform_code"] == 1


def test_a_sheared_affine_is_not_put_into_a_qform(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.3

    write_volume(tmp_path / "a.nii", numbered((3, 4, 5), affine))

    header = nibabel.load(tmp_path / "a.nii").header
    assert header["qform_code"] == 0
    np.testing.assert_allclose(header.get_sform(), affine, atol=1e-7)


@pytest.mark.parametrize(("highest", "stored"), [(3, np.uint8), (300, np.uint16), (70000, np.int32)])
def test_labels_are_stored_in_as_few_bytes_as_hold_them(tmp_path: Path, highest: int, stored: type) -> None:
    labels = np.zeros((4, 5, 6), np.int64)
    labels[1, 2, 3] = highest

    write_volume(tmp_path / "seg.nii.gz", Volume(labels, np.eye(4)))

    assert nibabel.load(tmp_path / "seg.nii.gz").get_data_dtype() == stored
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
    expected = nibabel.load(tmp_path / "ct.nii.gz").get_fdata()
    assert expected.max() > 60  # the scaling is in the file, not in the integers

    np.testing.assert_allclose(read_image(tmp_path / "ct.nii.gz").array, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["<f8", ">f8", ">i2", "<u4", "<f4", "u1"])
def test_every_number_type_and_byte_order_is_read(tmp_path: Path, dtype: str) -> None:
    array = np.arange(60).reshape(3, 4, 5)
    header = nibabel.Nifti1Header(endianness=dtype[0] if dtype[0] in "<>" else "<")
    header.set_data_dtype(np.dtype(dtype))
    nibabel.save(nibabel.Nifti1Image(array.astype(dtype), np.eye(4), header), tmp_path / "a.nii")

    image, labels = read_image(tmp_path / "a.nii"), read_labels(tmp_path / "a.nii")

    assert (image.array.dtype, labels.array.dtype) == (np.float32, np.uint8)
    np.testing.assert_array_equal(image.array, array)
    np.testing.assert_array_equal(labels.array, array)


def test_nifti_2_is_read(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(np.arange(60.0).reshape(3, 4, 5), np.diag([2.0, 2, 2, 1])), tmp_path / "a.nii.gz")

    assert read_image(tmp_path / "a.nii.gz").spacing == (2, 2, 2)


def test_a_packed_file_is_known_by_its_content_not_its_name(tmp_path: Path, save_nifti) -> None:  # type: ignore[no-untyped-def]
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
    np.testing.assert_allclose(read_image(tmp_path / "none.nii").affine, nibabel.load(tmp_path / "none.nii").affine)
    assert "none.nii: the header states no orientation" in caplog.text


def test_a_trailing_axis_of_one_is_dropped_and_a_channel_is_picked(tmp_path: Path, save_nifti) -> None:  # type: ignore[no-untyped-def]
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
