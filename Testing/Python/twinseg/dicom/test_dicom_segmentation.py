"""A label map goes back to the DICOM series that it was drawn on: every voxel, what it means and who drew it."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread

from twinseg.dicom_segmentation import write_dicom_segmentation
from twinseg.dicom_series import read_series
from twinseg.tasks import Task, load_task
from twinseg.volumes import Volume, resample_to, to_ras

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def marked(path: Path) -> dict[str, np.ndarray]:
    """The places (RAS, mm, sorted) of each segment's voxels, worked out anew from what the file says."""
    file = dcmread(path)
    shared = file.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    between_rows, between_columns = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    names = {int(s.SegmentNumber): str(s.SegmentLabel) for s in file.SegmentSequence}
    found: dict[str, list[np.ndarray]] = {}
    for group, frame in zip(file.PerFrameFunctionalGroupsSequence, np.atleast_3d(file.pixel_array.T).T, strict=True):
        corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.nonzero(frame)
        there = corner + np.outer(columns * between_columns, orientation[:3])
        there = there + np.outer(rows * between_rows, orientation[3:])
        number = int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        found.setdefault(names[number], []).append(there @ LPS[:3, :3])
    return {name: in_order(np.concatenate(places)) for name, places in found.items()}


def drawn(labels: Volume, task: Task) -> dict[str, np.ndarray]:
    """The same of a label map."""
    found = {label.title: np.argwhere(labels.array == label.value) for label in task.labels}
    return {
        name: in_order(voxels @ labels.affine[:3, :3].T + labels.affine[:3, 3])
        for name, voxels in found.items()
        if len(voxels)
    }


def in_order(places: np.ndarray) -> np.ndarray:
    rounded = np.round(places, 2)
    return places[np.lexsort(rounded.T)]


def assert_same_places(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, places in found.items():
        assert len(places) == len(wanted[name])
        distance = np.linalg.norm(places[:, None] - wanted[name][None], axis=2)
        assert distance.min(axis=1).max() < 1e-3
        assert distance.min(axis=0).max() < 1e-3


def test_the_series_lies_where_it_was_put(series: Path, head: Any) -> None:
    found = read_series(series)

    assert found.shape == head.pixels.shape
    np.testing.assert_allclose(found.affine, head.labels.affine, atol=1e-6)
    np.testing.assert_array_equal(found.pixels().array, head.pixels)


def test_every_voxel_is_where_it_was_drawn(series: Path, head: Any, glioma: Task, tmp_path: Path) -> None:
    written = write_dicom_segmentation(head.labels, glioma, read_series(series), tmp_path / "seg.dcm")

    assert_same_places(marked(tmp_path / "seg.dcm"), drawn(head.labels, glioma))
    counts = {segment["label"]: segment["voxels"] for segment in written["segments"]}
    assert counts == {label.name: int((head.labels.array == label.value).sum()) for label in glioma.labels}


def test_highdicom_reads_the_label_map_back(series: Path, head: Any, glioma: Task, tmp_path: Path) -> None:
    from highdicom.seg import segread

    write_dicom_segmentation(head.labels, glioma, read_series(series), tmp_path / "seg.dcm")

    volume = segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    back = Volume(np.asarray(volume.array), LPS @ volume.affine)
    back = resample_to(back, head.labels.affine, head.labels.shape, "nearest")
    np.testing.assert_array_equal(back.array, head.labels.array)


def test_segments_say_what_they_are_and_what_they_were_drawn_on(
    series: Path, head: Any, glioma: Task, tmp_path: Path
) -> None:
    write_dicom_segmentation(
        head.labels, glioma, read_series(series), tmp_path / "seg.dcm", model="ab12", delta="000007"
    )

    file = dcmread(tmp_path / "seg.dcm")
    assert (file.Modality, file.SegmentationType) == ("SEG", "BINARY")
    types = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in file.SegmentSequence]
    assert [(code.CodingSchemeDesignator, code.CodeValue) for code in types] == [
        ("SCT", "6574001"),
        ("SCT", "79654002"),
        ("NCIt", "C113842"),
    ]
    for segment in file.SegmentSequence:
        assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
        assert segment.AnatomicRegionSequence[0].CodeValue == "12738006"
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        parameters = segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
        assert "ab12" in parameters
        assert "000007" in parameters
    slices = {header.SOPInstanceUID: header for header in read_series(series).slices}
    for group in file.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert slices[source].ImagePositionPatient == group.PlanePositionSequence[0].ImagePositionPatient


def test_it_opens_beside_the_series(series: Path, head: Any, glioma: Task, tmp_path: Path) -> None:
    found = read_series(series)

    write_dicom_segmentation(head.labels, glioma, found, tmp_path / "seg.dcm", description="Tumeur, Gehirn – 腫瘍")

    file, source = dcmread(tmp_path / "seg.dcm"), found.slices[0]
    for name in ("PatientID", "PatientBirthDate", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate"):
        assert file[name].value == source[name].value
    assert (str(file.PatientName), file.SeriesDescription) == ("Müller^Zoë", "Tumeur, Gehirn – 腫瘍")
    assert file.SeriesInstanceUID != source.SeriesInstanceUID


def test_an_anonymised_series_whose_headers_tell_the_gap_for_the_distance(
    head: Any, glioma: Task, tmp_path: Path
) -> None:
    empty = dict.fromkeys(("PatientName", "PatientID", "PatientSex", "PatientBirthDate", "StudyDate"))
    series = head.save(tmp_path / "series", SpacingBetweenSlices=0.3, **empty)

    write_dicom_segmentation(head.labels, glioma, read_series(series), tmp_path / "seg.dcm")

    file = dcmread(tmp_path / "seg.dcm")
    measures = file.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == pytest.approx(3)
    assert not file.PatientID
    assert_same_places(marked(tmp_path / "seg.dcm"), drawn(head.labels, glioma))


def test_colours_come_back(series: Path, head: Any, glioma: Task, tmp_path: Path) -> None:
    from highdicom.color import CIELabColor

    write_dicom_segmentation(head.labels, glioma, read_series(series), tmp_path / "seg.dcm")

    for segment, label in zip(dcmread(tmp_path / "seg.dcm").SegmentSequence, glioma.labels, strict=True):
        shown = CIELabColor.from_dicom_value(tuple(segment.RecommendedDisplayCIELabValue)).to_rgb()
        assert np.abs(np.array(shown) - label.color).max() <= 1


@pytest.mark.parametrize(
    ("origin", "kind"), [("model", "AUTOMATIC"), ("edited", "SEMIAUTOMATIC"), ("expert", "MANUAL")]
)
def test_who_drew_it_is_told(series: Path, head: Any, glioma: Task, tmp_path: Path, origin: str, kind: str) -> None:
    write_dicom_segmentation(head.labels, glioma, read_series(series), tmp_path / "seg.dcm", origin=origin)

    for segment in dcmread(tmp_path / "seg.dcm").SegmentSequence:
        assert segment.SegmentAlgorithmType == kind
        assert ("SegmentAlgorithmName" in segment) == (kind != "MANUAL")


def test_the_side_of_a_paired_organ_is_kept(series: Path, head: Any, tmp_path: Path, toy: Task) -> None:
    terms = "~".join(
        (
            "Slicer",
            "SCT^123037004^Anatomical Structure",
            "SCT^64033007^Kidney",
            "SCT^24028007^Right",
            "Regions",
            "SCT^113345001^Abdomen",
            "SCT^7771000^Left",
        )
    )
    kidney = dataclasses.replace(toy.labels[0], title="Niere", terminology=terms)
    task = dataclasses.replace(toy, labels=(kidney, toy.labels[1]))
    labels = Volume(np.where(head.labels.array == 2, 2, 0), head.labels.affine)

    write_dicom_segmentation(labels, task, read_series(series), tmp_path / "seg.dcm")

    (segment,) = dcmread(tmp_path / "seg.dcm").SegmentSequence
    kind, region = segment.SegmentedPropertyTypeCodeSequence[0], segment.AnatomicRegionSequence[0]
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Right"
    assert region.AnatomicRegionModifierSequence[0].CodeMeaning == "Left"


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.floats(-0.7, 0.7)] * 3),
    st.tuples(*[st.floats(0.4, 6.0)] * 3),
    st.tuples(*[st.floats(-300, 300)] * 3),
    st.tuples(*[st.integers(8, 14)] * 3),
    st.permutations(range(3)),
    st.tuples(*[st.booleans()] * 3),
)
def test_any_geometry_keeps_every_voxel_where_it_is(
    grid: Callable[..., np.ndarray],
    make_head: Callable[..., Any],
    angles: tuple[float, float, float],
    spacing: tuple[float, float, float],
    corner: tuple[float, float, float],
    shape: tuple[int, int, int],
    order: list[int],
    flips: tuple[bool, bool, bool],
) -> None:
    """Whichever way the label map's axes run in memory, and the series' in the world."""
    glioma = load_task("brats-glioma")
    head = make_head(grid(angles, spacing, corner), shape)
    turned = rearranged(head.labels, order, flips)
    with tempfile.TemporaryDirectory() as folder:
        series = read_series(head.save(Path(folder) / "series"))

        write_dicom_segmentation(turned, glioma, series, Path(folder) / "seg.dcm")

        assert_same_places(marked(Path(folder) / "seg.dcm"), drawn(head.labels, glioma))


def rearranged(labels: Volume, order: list[int], flips: tuple[bool, bool, bool]) -> Volume:
    """The same voxels with their axes exchanged and flipped."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3)[:, order]
    array = labels.array.transpose(order)
    for axis, flip in enumerate(flips):
        if flip:
            mirror = np.eye(4)
            mirror[axis, axis], mirror[axis, 3] = -1, array.shape[axis] - 1
            array, matrix = np.flip(array, axis), matrix @ mirror
    return Volume(array, labels.affine @ matrix)


def test_a_mirrored_stack_and_a_tilted_gantry(
    grid: Callable[..., np.ndarray], make_head: Callable[..., Any], tmp_path: Path, glioma: Task
) -> None:
    mirrored = grid() @ np.diag([1.0, 1.0, -1.0, 1.0])
    tilted = grid(angles=(0, 0, 0))
    tilted[:3, 2] += [0, 0.8, 0]  # slices shifted against one another
    for name, affine in (("mirrored", mirrored), ("tilted", tilted)):
        head = make_head(affine)
        series = read_series(head.save(tmp_path / name))

        write_dicom_segmentation(head.labels, glioma, series, tmp_path / f"{name}.dcm")

        assert_same_places(marked(tmp_path / f"{name}.dcm"), drawn(head.labels, glioma))


def test_a_finer_label_map_takes_the_nearest_voxel(series: Path, head: Any, glioma: Task, tmp_path: Path) -> None:
    found = read_series(series)
    finer = resample_to(to_ras(head.labels), found.affine @ np.diag([0.5, 0.5, 0.25, 1]), (39, 31, 37), "nearest")

    written = write_dicom_segmentation(finer, glioma, found, tmp_path / "seg.dcm")

    assert_same_places(marked(tmp_path / "seg.dcm"), drawn(head.labels, glioma))
    for segment in written["segments"]:
        assert segment["ml"] == pytest.approx(segment["ml_before"], rel=0.35)


def test_a_spot_between_two_slices_is_told_as_lost(series: Path, head: Any, glioma: Task, tmp_path: Path) -> None:
    finer = Volume(np.zeros((20, 16, 46), np.uint8), head.labels.affine @ np.diag([1, 1, 0.2, 1]))
    finer.array[5:9, 5:9, 10:30] = 2
    finer.array[6, 6, 13] = 3  # slices of the series are at 10, 15, 20 …

    written = write_dicom_segmentation(finer, glioma, read_series(series), tmp_path / "seg.dcm")

    assert written["lost"] == ["ET"]
    assert [segment["label"] for segment in written["segments"]] == ["ED"]
