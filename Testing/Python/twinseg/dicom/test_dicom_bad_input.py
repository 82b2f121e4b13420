"""What is not one whole series of the right patient is refused in one line, and nothing is written."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from twinseg.dicom_segmentation import write_dicom_segmentation
from twinseg.dicom_series import check_source, read_series
from twinseg.errors import InputError, OutOfSpaceError
from twinseg.tasks import Task, load_task
from twinseg.volumes import Volume


@contextmanager
def told(what: object, *words: str) -> Iterator[None]:
    """One line that names what is at fault and says these words, but nothing of the patient."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert message.startswith(str(what))
    assert "\n" not in message
    assert len(message) < len(str(what)) + 250
    for word in words:
        assert word in message
    assert "Müller" not in message
    assert "4711" not in message


def slices(folder: Path) -> list[Path]:
    """The files of a series, in order of their place."""
    return [Path(str(header.filename)) for header in read_series(folder).slices]


def change(file: Path, **attributes: Any) -> None:
    header = dcmread(file)
    for keyword, value in attributes.items():
        setattr(header, keyword, value)
    header.save_as(file)


def test_two_series(series: Path, head: Any) -> None:
    other = head.save(series.parent / "8", SeriesNumber=8)
    for file in other.iterdir():
        file.rename(series / f"other-{file.name}")

    with told(series, "it holds 2 series", "number 7 with 10 slices", "number 8"):
        read_series(series)


@pytest.mark.parametrize(("gone", "distance"), [((4,), "6.00"), ((4, 5), "9.00"), ((2, 4, 6), "6.00")])
def test_missing_slices(series: Path, gone: tuple[int, ...], distance: str) -> None:
    there = slices(series)
    for index in gone:
        there[index].unlink()

    with told(series, "slices are missing between", f"{distance} mm instead of 3.00"):
        read_series(series)


def test_most_slices_missing(series: Path) -> None:
    for index in (1, 2, 4, 5, 8):  # 0, 3, 6, 7 and 9 are left
        slices_there = sorted(series.glob("IM*"), key=lambda file: int(dcmread(file).InstanceNumber))
        next(file for file in slices_there if dcmread(file).InstanceNumber == index + 1).unlink()

    with told(series, "unevenly spaced"):
        read_series(series)


def test_slices_that_differ(series: Path, head: Any) -> None:
    turned = np.array(dcmread(slices(series)[3]).ImageOrientationPatient, float)[[3, 4, 5, 0, 1, 2]].tolist()
    for keyword, value, words in (
        ("ImageOrientationPatient", turned, "differ in angle"),
        ("PixelSpacing", [2.0, 2.0], "differ in angle or pixel size"),
        ("PatientID", "4712", "differ in PatientID"),
        ("FrameOfReferenceUID", "1.2.3", "differ in FrameOfReferenceUID"),
        ("Rows", 8, "differ in Rows"),
        ("NumberOfFrames", 5, "multi-frame"),
        ("ImagePositionPatient", None, "lacks ImagePositionPatient"),
        ("ImagePositionPatient", [1, 2], "damaged"),
    ):
        folder = head.save(series.parent / keyword)
        file = slices(folder)[3]
        change(file, **{keyword: value})

        with told(series.parent, words):
            read_series(folder)


def test_a_volume_twice_in_one_series(series: Path, tmp_path: Path) -> None:
    for file in slices(series):
        header = dcmread(file)
        header.SOPInstanceUID = generate_uid()
        header.save_as(series / f"second-{file.name}")

    with told(series, "several slices lie at the same place"):
        read_series(series)


def test_a_slice_beside_the_stack_and_one_at_half_a_step(series: Path, head: Any) -> None:
    for shift, words in ((0, "one straight stack"), (2, "unevenly spaced")):
        folder = head.save(series.parent / str(shift))
        file = slices(folder)[5]
        header = dcmread(file)
        axes = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        direction = np.cross(*axes) if shift else axes[0]
        position = np.array(header.ImagePositionPatient, float) + direction
        change(file, ImagePositionPatient=[f"{v:.6f}" for v in position])

        with told(folder, words):
            read_series(folder)


@pytest.mark.parametrize("keep", [0, 100, 200, 700])
def test_a_slice_that_was_cut_short(series: Path, keep: int) -> None:
    file = slices(series)[9]
    file.write_bytes(file.read_bytes()[:keep])
    file = file.rename(file.with_suffix(".dcm"))

    with told(file):
        read_series(series)


def test_bytes_of_a_slice_changed(series: Path) -> None:
    """Whatever a changed byte of the header does, it is an InputError or no harm."""
    file = slices(series)[0]
    content = file.read_bytes()
    generator = np.random.default_rng(0)
    read = 0
    for place in generator.integers(132, len(content) - 640, 80):  # the pixels are the last 640 bytes
        changed = bytearray(content)
        changed[place] ^= int(generator.integers(1, 256))
        file.write_bytes(changed)
        with suppress(InputError):
            read_series(series)
            read += 1
    assert 10 < read < 70


def test_pixels_cut_short(series: Path, head: Any) -> None:
    file = slices(series)[5]
    file.write_bytes(file.read_bytes()[:-100])

    with told(file, "its pixels cannot be read"):
        check_source(read_series(series), {"t1": Volume(head.pixels, head.labels.affine)})


def test_no_series(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no DICOM")

    with told(tmp_path, "it holds 0 slices"):
        read_series(tmp_path)
    with told(tmp_path / "none", "No such file"):
        read_series(tmp_path / "none")
    with told(tmp_path / "notes.txt", "Not a directory"):
        read_series(tmp_path / "notes.txt")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX rights")
def test_no_permission(tmp_path: Path, head: Any, glioma: Task) -> None:
    series = head.save(tmp_path / "series")
    found = read_series(series)
    write_dicom_segmentation(head.labels, glioma, found, tmp_path / "seg.dcm")  # imports what nobody may read later
    series.chmod(0)
    (tmp_path / "closed").mkdir(mode=0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with told(series, "Permission denied"):
            read_series(series)
        with told(tmp_path / "closed" / "seg.dcm", "may not be written to"):
            write_dicom_segmentation(head.labels, glioma, found, tmp_path / "closed" / "seg.dcm")
    finally:
        os.seteuid(user)
        series.chmod(0o755)


def test_a_full_disk(mount_small_disk: Callable[..., Path], tmp_path: Path, make_head: Any, glioma: Task) -> None:
    disk = mount_small_disk(tmp_path / "disk", "16k")
    head = make_head(shape=(200, 160, 20))
    series = read_series(head.save(tmp_path / "series"))

    with pytest.raises(OutOfSpaceError):
        write_dicom_segmentation(head.labels, glioma, series, disk / "seg.dcm")
    assert list(disk.iterdir()) == []


# --- segmentations ---------------------------------------------------------------------------------------------------


def test_segmentations_that_cannot_be_written(series: Path, head: Any, glioma: Task, toy: Task, tmp_path: Path) -> None:
    found, affine = read_series(series), head.labels.affine
    for labels, task, words in (
        (np.zeros_like(head.labels.array), glioma, "the segmentation is empty"),
        (head.labels.array + 7, glioma, "the segmentation holds the label 7"),
        (np.where(head.labels.array, 2, 0), toy, "the label ED has no DICOM codes"),
    ):
        with told("", words):
            write_dicom_segmentation(Volume(labels, affine), task, found, tmp_path / "seg.dcm")
    with told(series, "this is a MR series, but lits-liver needs CT"):
        write_dicom_segmentation(head.labels, load_task("lits-liver"), found, tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


def test_a_segmentation_that_lies_elsewhere(series: Path, head: Any, glioma: Task, tmp_path: Path) -> None:
    affine = head.labels.affine.copy()
    affine[0, 3] += 12

    with told(series, "of the segmentation lies outside of this series"):
        write_dicom_segmentation(Volume(head.labels.array, affine), glioma, read_series(series), tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


def test_the_series_is_never_overwritten(series: Path, head: Any, glioma: Task) -> None:
    file = series / "IM0003.dcm"
    (series / "IM0003").rename(file)
    content = file.read_bytes()

    with told(file, "a slice of the series"):
        write_dicom_segmentation(head.labels, glioma, read_series(series), file)
    assert file.read_bytes() == content


def test_slices_missing_at_the_end_where_the_tumour_is(series: Path, head: Any, glioma: Task, tmp_path: Path) -> None:
    for file in slices(series)[:3]:
        file.unlink()

    with told(series, "slices are missing at its ends"):
        write_dicom_segmentation(head.labels, glioma, read_series(series), tmp_path / "seg.dcm")


# --- the source of a scan --------------------------------------------------------------------------------------------


def test_the_source_is_known_by_its_pixels(series: Path, head: Any, make_head: Any) -> None:
    found = read_series(series)
    image = Volume(head.pixels.astype(np.float32), head.labels.affine)
    stranger = Volume(make_head(seed=1).pixels.astype(np.float32), head.labels.affine)
    field = 1 + 0.4 * np.sin(np.indices(head.pixels.shape).sum(0) / 9)
    prepared = Volume(np.where(head.pixels > 3, 0.01 * field * head.pixels, 0).astype(np.float32), image.affine)

    assert check_source(found, {"t1": stranger, "flair": image}) == ("flair", pytest.approx(1.0))
    assert check_source(found, {"t1": prepared})[1] > 0.8
    with told(series, "it does not show what the scan shows", "with t1"):
        check_source(found, {"t1": stranger})


def test_a_series_of_another_place(series: Path, head: Any) -> None:
    affine = head.labels.affine.copy()
    affine[2, 3] += 15

    with told(series, "of its field of view is common with the scan"):
        check_source(read_series(series), {"t1": Volume(head.pixels.astype(np.float32), affine)})
