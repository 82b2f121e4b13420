"""Bad input: one line that names the file, what is wrong and what to do."""

from __future__ import annotations

import gzip
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twinseg.cases import Case, find_cases, load_case
from twinseg.errors import InputError
from twinseg.tasks import Task, load_task
from twinseg.volumes import Volume, read_image, read_labels, read_picture, write_volume

SaveNifti = Callable[..., Path]


@contextmanager
def told(path: Path, fault: str) -> Iterator[None]:
    """The block raises InputError with one line: first the file, then the fault, then, behind a semicolon, a remedy."""
    with pytest.raises(InputError, match=re.escape(fault)) as error:
        yield
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert re.search(r"; \w+", message), f"no remedy in: {message}"


def case_of(folder: Path, labels: Path | None = None, **images: Path) -> Case:
    return Case("P1", str(folder), None, None, images, labels)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    with told(tmp_path / "t1.nii.gz", "there is no such file"):
        read_image(tmp_path / "t1.nii.gz")


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "t1.nii.gz").mkdir()

    with told(tmp_path / "t1.nii.gz", "this is a folder"):
        read_image(tmp_path / "t1.nii.gz")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX rights")
def test_a_file_that_may_not_be_read(tmp_path: Path, save_nifti: SaveNifti) -> None:
    file = save_nifti(tmp_path / "t1.nii.gz")
    file.chmod(0)

    with _not_root(), told(file, "it may not be read"):
        read_image(file)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX rights")
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)

    with _not_root(), told(tmp_path / "seg.nii.gz", "it cannot be written (its folder may not be written to)"):
        write_volume(tmp_path / "seg.nii.gz", Volume(np.zeros((3, 3, 3), np.uint8), np.eye(4)))


@contextmanager
def _not_root() -> Iterator[None]:
    """Rights bind everybody but root, so that root becomes nobody for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_file_of_zero_bytes(tmp_path: Path) -> None:
    (tmp_path / "t1.nii.gz").touch()

    with told(tmp_path / "t1.nii.gz", "the file is empty (0 bytes)"):
        read_image(tmp_path / "t1.nii.gz")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_a_truncated_gzip(tmp_path: Path, save_nifti: SaveNifti, keep: float) -> None:
    file = save_nifti(tmp_path / "t1.nii.gz", np.random.default_rng(0).random((9, 9, 9)))
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])

    with told(file, "the file is damaged or cut short"):
        read_image(file)


def test_a_changed_byte_in_a_gzip(tmp_path: Path, save_nifti: SaveNifti) -> None:
    file = save_nifti(tmp_path / "t1.nii.gz", np.random.default_rng(0).integers(0, 255, (9, 9, 9)).astype(np.uint8))
    content = bytearray(file.read_bytes())
    content[-100] ^= 0xFF
    file.write_bytes(content)

    with told(file, "the file is damaged or cut short"):
        read_image(file)


def test_a_truncated_plain_nifti(tmp_path: Path, save_nifti: SaveNifti) -> None:
    file = save_nifti(tmp_path / "t1.nii")
    file.write_bytes(file.read_bytes()[:-50])

    with told(file, "the file is damaged or cut short"):
        read_image(file)


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    content = bytearray(_nifti_bytes())
    content[42:48] = np.array([30000] * 3, "<i2").tobytes()  # 54 TB, which must not be asked for
    file = tmp_path / "t1.nii.gz"
    file.write_bytes(gzip.compress(content))

    with told(file, "the file is damaged or cut short"):
        read_image(file)


@pytest.mark.parametrize("packed", [True, False])
def test_a_text_file_named_nifti(tmp_path: Path, packed: bool) -> None:
    file = tmp_path / "t1.nii.gz"
    text = b"<html>404: the page was not found</html>" * 20
    file.write_bytes(gzip.compress(text) if packed else text)

    with told(file, "this is not a NIfTI file"):
        read_image(file)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_header_is_told_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(_nifti_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, 347))] = data.draw(st.integers(0, 255))
    file = tmp_path / "t1.nii"
    file.write_bytes(content)

    fault = _fault_of(file)

    assert fault is None or (fault.startswith(f"{file}: ") and "\n" not in fault)


def _fault_of(file: Path) -> str | None:
    """What is told of a file; None where it is read, which it then must be wholly."""
    try:
        image = read_image(file)
    except InputError as error:
        return str(error)
    assert image.array.ndim == 3
    assert np.all(np.isfinite(image.affine))
    return None


def _nifti_bytes() -> bytes:
    content: bytes = nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), np.eye(4)).to_bytes()
    return content


def test_an_unknown_ending(tmp_path: Path) -> None:
    (tmp_path / "t1.jpg").write_bytes(b"x")

    with told(tmp_path / "t1.jpg", "unknown file type"):
        read_image(tmp_path / "t1.jpg")


def test_nrrd_without_simpleitk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)  # as if it were not installed
    (tmp_path / "t1.nrrd").write_bytes(b"NRRD0004")

    with told(tmp_path / "t1.nrrd", "this file type needs SimpleITK"):
        read_image(tmp_path / "t1.nrrd")


# --- content ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_nan_and_infinite_values(tmp_path: Path, save_nifti: SaveNifti, value: float) -> None:
    array = np.random.default_rng(0).random((4, 5, 6))
    array[1, 2, 3] = value
    file = save_nifti(tmp_path / "t1.nii.gz", array)

    with told(file, "NaN or infinite values"):
        read_image(file)


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image(tmp_path: Path, save_nifti: SaveNifti, value: int) -> None:
    file = save_nifti(tmp_path / "t1.nii.gz", np.full((4, 5, 6), value, np.int16))

    with told(file, f"every voxel is {value}"):
        read_image(file)


@pytest.mark.parametrize(
    ("shape", "fault"),
    [((4, 5, 6, 3), "4-D image (4, 5, 6, 3)"), ((4, 5), "2-D image (4, 5)"), ((4, 5, 1), "2-D image (4, 5, 1)")],
)
def test_an_image_that_is_not_3d(tmp_path: Path, save_nifti: SaveNifti, shape: tuple[int, ...], fault: str) -> None:
    file = save_nifti(tmp_path / "t1.nii.gz", np.arange(np.prod(shape), dtype=np.int16).reshape(shape))

    with told(file, fault):
        read_image(file)


def test_a_channel_that_is_not_there(tmp_path: Path, save_nifti: SaveNifti) -> None:
    file = save_nifti(tmp_path / "all.nii.gz", np.random.default_rng(0).random((4, 5, 6, 2)))

    with told(file, "it has 2 channels, not the number 2 (from 0)"):
        read_image(file, channel=2)


def test_colours_and_complex_numbers(tmp_path: Path, save_nifti: SaveNifti) -> None:
    file = save_nifti(tmp_path / "t1.nii.gz", np.ones((4, 5, 6), np.complex64))

    with told(file, "colour or complex voxels"):
        read_image(file)


@pytest.mark.parametrize(
    ("affine", "fault"),
    [
        (np.diag([1.0, 0, 1, 1]), "zero or undefined spacing"),
        (np.diag([1.0, np.nan, 1, 1]), "zero or undefined spacing"),
        (np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
    ],
)
def test_a_degenerate_affine(tmp_path: Path, affine: np.ndarray, fault: str) -> None:
    image = nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), np.eye(4))
    for row, name in zip(affine, ("srow_x", "srow_y", "srow_z"), strict=False):
        image.header[name] = row
    image.header["sform_code"] = 1
    header = image.header.binaryblock
    (tmp_path / "t1.nii").write_bytes(header + image.to_bytes()[len(header) :])

    with told(tmp_path / "t1.nii", fault):
        read_image(tmp_path / "t1.nii")


@pytest.mark.parametrize(
    ("value", "fault"), [(0.5, "whole numbers"), (np.nan, "whole numbers"), (-1, "the label -1 is out of range")]
)
def test_labels_that_are_none(tmp_path: Path, save_nifti: SaveNifti, value: float, fault: str) -> None:
    array = np.zeros((4, 5, 6), np.float32)
    array[1, 2, 3] = value
    file = save_nifti(tmp_path / "seg.nii.gz", array)

    with told(file, fault):
        read_labels(file)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n" + b"0" * 40])
def test_a_picture_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)

    with told(tmp_path / "a.png", "no whole picture" if content else "0 bytes"):
        read_picture(tmp_path / "a.png")


# --- cases -----------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there(tmp_path: Path, glioma: Task) -> None:
    with told(tmp_path / "nowhere", "there is no such folder"):
        find_cases(tmp_path / "nowhere", glioma)


def test_an_empty_folder(tmp_path: Path, glioma: Task) -> None:
    with told(tmp_path, "there is no image in it"):
        find_cases(tmp_path, glioma)


def test_unknown_sequences_alone(tmp_path: Path, glioma: Task, save_nifti: SaveNifti) -> None:
    save_nifti(tmp_path / "adc.nii.gz")
    save_nifti(tmp_path / "seg.nii.gz")

    with told(tmp_path, "found adc.nii.gz, seg.nii.gz, but no t1, t1ce, t2, flair"):
        find_cases(tmp_path, glioma)


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [("t1.nii", "t1.nii.gz", "t1"), ("t1c.nii.gz", "t1ce.nii.gz", "t1ce"), ("P_flair.nii.gz", "flair.nii.gz", "flair"),
     ("mask.nii.gz", "seg.nii.gz", "labels")],
)  # fmt: skip
def test_two_files_for_one_sequence(
    tmp_path: Path, glioma: Task, save_nifti: SaveNifti, first: str, second: str, name: str
) -> None:
    for file in ("t2.nii.gz", first, second):
        save_nifti(tmp_path / file)

    with pytest.raises(InputError, match=rf"is {name} as well; keep one file a sequence") as error:
        find_cases(tmp_path, glioma)

    assert first in str(error.value)
    assert second in str(error.value)


def test_no_labels_where_they_are_needed(tmp_path: Path, glioma: Task, save_nifti: SaveNifti) -> None:
    save_nifti(tmp_path / "t1.nii.gz")

    with told(tmp_path, "no case has labels"):
        find_cases(tmp_path, glioma, require_labels=True)


def test_no_known_sequence_in_a_case(tmp_path: Path, glioma: Task, save_nifti: SaveNifti) -> None:
    case = case_of(tmp_path, adc=save_nifti(tmp_path / "adc.nii.gz"))

    with told(tmp_path, "it has adc, but needs t1, t1ce, t2, flair"):
        load_case(case, glioma)


@pytest.mark.parametrize("shift", [2.5, 1000.0])
def test_grids_without_a_common_field_of_view(
    tmp_path: Path, glioma: Task, save_nifti: SaveNifti, shift: float
) -> None:
    elsewhere = np.eye(4)
    elsewhere[0, 3] = shift
    t1, t2 = save_nifti(tmp_path / "t1.nii.gz"), save_nifti(tmp_path / "t2.nii.gz", affine=elsewhere)

    with told(t2, "of its field of view is common with t1.nii.gz"):
        load_case(case_of(tmp_path, t1=t1, t2=t2), glioma)


def test_labels_outside_the_task(tmp_path: Path, glioma: Task, save_nifti: SaveNifti) -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0, 0, :3] = 1, 4, 9  # 4 is the enhancing tumour of older data
    seg = save_nifti(tmp_path / "seg.nii.gz", labels)

    with told(seg, "the label 9 is not one of brats-glioma (1 NCR, 2 ED, 3 ET)"):
        load_case(case_of(tmp_path, seg, t1=save_nifti(tmp_path / "t1.nii.gz")), glioma)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "it does not name the channels"),
        ("{}", "it does not name the channels"),
        ('{"modality": {"0": "ADC", "1": "DWI"}}', "its channels are ADC, DWI, but the task's are t1"),
        ('{"modality": {"0": "T1", "1": "t1w"}}', "two channels are t1"),
        ('{"modality": {"0": "T1"}, "labels": {"1": "liver", "2": "spleen"}}', "its labels are liver, spleen"),
    ],
)
def test_a_faulty_dataset_file(tmp_path: Path, glioma: Task, save_nifti: SaveNifti, content: str, fault: str) -> None:
    save_nifti(tmp_path / "imagesTr" / "a.nii.gz")
    (tmp_path / "dataset.json").write_text(content)

    with told(tmp_path / "dataset.json", fault):
        find_cases(tmp_path, glioma)


def test_folders_that_are_no_classes(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "1.png").write_bytes(b"x")

    with told(tmp_path, "found cats, but expected folders named adenocarcinoma"):
        find_cases(tmp_path, load_task("chest-ct-cancer"))


def test_spaces_and_accents_in_paths_work(tmp_path: Path, glioma: Task, save_nifti: SaveNifti) -> None:
    folder = tmp_path / "Würzburg Ω" / "Zoë Müller" / "2020-01-05"
    save_nifti(folder / "Zoë Müller t1.nii.gz")
    save_nifti(folder / "Zoë Müller seg.nii.gz", np.zeros((4, 5, 6), np.uint8))

    (case,) = find_cases(tmp_path, glioma)
    loaded = load_case(case, glioma)
    assert loaded.labels is not None
    write_volume(folder / "résultat 1.nii.gz", loaded.labels)

    assert (case.patient, case.site) == ("Zoë Müller", "Würzburg Ω")
    assert read_labels(folder / "résultat 1.nii.gz").shape == (4, 5, 6)
