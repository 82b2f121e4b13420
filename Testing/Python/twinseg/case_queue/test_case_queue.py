"""The case queue: what is submitted is kept voxel for voxel, every version of it, and trained on until withdrawn."""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinseg.case_queue import CaseQueue
from twinseg.cases import load_case, split_cases
from twinseg.errors import InputError
from twinseg.pseudonyms import Pseudonyms, load_pseudonyms
from twinseg.tasks import Task
from twinseg.volumes import Volume, read_image, read_labels

Submission = Callable[..., dict[str, Any]]


# --- submitting ------------------------------------------------------------------------------------------------------


def test_what_is_submitted_is_kept_voxel_for_voxel(queue: CaseQueue, submission: Submission) -> None:
    wanted = submission()

    case = queue.add(**wanted)

    assert queue.case(case.name) == case
    assert (case.state, case.task) == ("submitted", "toy")
    for name, image in wanted["images"].items():
        kept = read_image(case.image_files[name])
        assert np.array_equal(kept.array, image.array)
        assert np.array_equal(kept.affine, image.affine)
    labels, predicted = read_labels(case.labels), read_labels(case.folder / "predicted-1.nii.gz")
    assert np.array_equal(labels.array, wanted["labels"].array)
    assert np.array_equal(labels.affine, wanted["labels"].affine)
    assert np.array_equal(predicted.array, wanted["predicted"].array)
    correction = case.corrections[0]
    assert (correction.model, correction.who, correction.note) == ("abc123", "Dr. Who", "the edge")
    assert json.loads((case.folder / "case.json").read_text("utf-8"))["name"] == case.name
    assert {file.name for file in case.folder.iterdir()} == {*case.files, "case.json"}


def test_the_change_is_told_by_region(queue: CaseQueue, submission: Submission) -> None:
    """6 + 1 voxels of 5.625 mm³ drawn by hand, 6 by the model, 4 of them the same."""
    change = queue.add(**submission()).corrections[0].change

    ml = 1.5 * 1.25 * 3 / 1000
    expected = {"corrected_ml": 7 * ml, "predicted_ml": 6 * ml, "change_ml": ml, "dice": 8 / 13}
    assert change["WT"] == pytest.approx(expected, abs=1e-6)
    assert change["ET"] == pytest.approx({"corrected_ml": ml, "predicted_ml": 0, "change_ml": ml, "dice": 0}, abs=1e-6)


def test_a_case_that_no_model_had_drawn(queue: CaseQueue, submission: Submission) -> None:
    case = queue.add(**submission(predicted=None, model=None))

    assert case.corrections[0].predicted is None
    assert case.corrections[0].change["WT"].keys() == {"corrected_ml"}


def test_every_version_is_kept_and_the_newest_is_used(queue: CaseQueue, submission: Submission) -> None:
    first = queue.add(**submission())
    queue.mark(first.name, "trained")

    second = queue.add(**submission(version=1))

    assert second.name == first.name
    assert len(queue.cases()) == 1
    assert second.state == "submitted"  # as it is to be trained on anew
    assert [version.labels for version in second.corrections] == ["labels-1.nii.gz", "labels-2.nii.gz"]
    assert np.array_equal(read_labels(first.labels).array, submission()["labels"].array)
    assert np.array_equal(read_labels(second.labels).array, submission(version=1)["labels"].array)
    assert queue.cases_for_training("toy")[0].labels == second.labels


def test_two_scans_of_a_patient_are_two_cases(queue: CaseQueue, submission: Submission) -> None:
    one, other = queue.add(**submission(number=1)), queue.add(**submission(number=2))

    assert one.name != other.name
    assert one.patient == other.patient
    assert one.part == other.part


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.integers(2, 6)] * 3),
    st.lists(st.floats(-3, 3, width=32).filter(lambda x: abs(x) > 0.2), min_size=12, max_size=12),
    st.sampled_from([np.uint8, np.int16, np.uint16, np.float32, np.float64]),
    st.integers(0, 2**32 - 1),
)
def test_any_grid_and_number_type_comes_back(
    toy: Task, shape: tuple[int, int, int], numbers: list[float], kind: Any, seed: int
) -> None:
    random = np.random.default_rng(seed)
    affine = np.vstack([np.reshape(numbers, (3, 4)), [0, 0, 0, 1]])
    affine[:3, :3] += np.diag([7.0, -8, 9])  # far from singular
    image = Volume(np.asfortranarray(random.integers(0, 200, shape).astype(kind)), affine)
    image.array.flat[:2] = (1, 2)
    labels = Volume(random.choice(np.array([0, 2, 7], np.int32), shape), affine)
    labels.array.flat[0] = 2

    with TemporaryDirectory() as folder:
        case = CaseQueue(Path(folder) / "cases").add(task=toy, patient="P", images={"t1": image}, labels=labels)
        loaded = load_case(case.as_case(), toy)

    assert np.array_equal(loaded.images["t1"].array, image.array)
    assert np.array_equal(loaded.labels.array, labels.array)
    assert np.abs(loaded.reference.affine - affine).max() < 1e-5


# --- refused ---------------------------------------------------------------------------------------------------------


def moved(volume: Volume) -> Volume:
    return Volume(volume.array, volume.affine + np.array([[0, 0, 0, 0.5], *[[0] * 4] * 3]))


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "unchanged": (lambda s: {"labels": s["predicted"]}, "the labels are what the model drew, unchanged"),
    "empty": (lambda s: {"labels": Volume(0 * s["labels"].array, s["labels"].affine)}, "the labels are empty"),
    "another place": (lambda s: {"labels": moved(s["labels"])}, "the labels: off the grid of t1"),
    "another shape": (
        lambda s: {"labels": Volume(s["labels"].array[1:], s["labels"].affine)},
        "the labels: off the grid of t1",
    ),
    "the model's elsewhere": (lambda s: {"predicted": moved(s["predicted"])}, "what the model drew: off the grid"),
    "unknown label": (
        lambda s: {"labels": Volume(s["labels"].array // 2, s["labels"].affine)},
        "the labels: 1 is no label of toy (2 ED, 7 ET)",
    ),
    "interpolated": (
        lambda s: {"labels": Volume(s["labels"].array * 0.5, s["labels"].affine)},
        "the labels: float64 is no label of toy",
    ),
    "differing grids": (
        lambda s: {"images": {**s["images"], "flair": moved(s["images"]["flair"])}},
        "flair: it lies on another grid than t1",
    ),
    "no image": (lambda s: {"images": {}}, "the case has no image; give at least one of t1, flair"),
    "unknown sequence": (lambda s: {"images": {"pet": s["images"]["t1"]}}, "pet: the task toy has no such sequence"),
    "NaN": (
        lambda s: {"images": {"t1": Volume(s["images"]["t1"].array * np.nan, s["labels"].affine)}},
        "t1: it holds NaN",
    ),
    "constant": (
        lambda s: {"images": {"t1": Volume(s["images"]["t1"].array * 0, s["labels"].affine)}},
        "t1: every voxel is 0",
    ),
    "no patient": (lambda s: {"patient": "  "}, "the case names no patient"),
    "a note that names the patient": (lambda s: {"note": "ZOË MÜLLER moved"}, "the note names the patient"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_correction_is_refused_in_one_line(queue: CaseQueue, submission: Submission, case: str) -> None:
    changes, said = REFUSED[case]
    wanted = submission()

    with pytest.raises(InputError) as refusal:
        queue.add(**wanted | changes(wanted))

    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert queue.cases() == []
    assert not [path for path in queue.folder.iterdir() if path.is_dir()]


def test_labels_that_were_submitted_before_are_refused(queue: CaseQueue, submission: Submission) -> None:
    queue.add(**submission())

    with pytest.raises(InputError, match="these labels were submitted before"):
        queue.add(**submission(predicted=None))


def test_a_healthy_case_is_taken_when_it_is_said_so(queue: CaseQueue, submission: Submission) -> None:
    wanted = submission()
    empty = Volume(0 * wanted["labels"].array, wanted["labels"].affine)

    case = queue.add(**wanted | {"labels": empty, "allow_empty": True})

    assert not read_labels(case.labels).array.any()


def test_the_images_of_one_patient_are_not_taken_as_another_s(queue: CaseQueue, submission: Submission) -> None:
    queue.add(**submission("Müller"))

    with pytest.raises(InputError, match="under another patient id"):
        queue.add(**submission("PAT-0815", version=1))


# --- states ----------------------------------------------------------------------------------------------------------


def test_cases_are_listed_by_state(queue: CaseQueue, submission: Submission) -> None:
    names = sorted(queue.add(**submission(number=number)).name for number in range(3))

    queue.mark(names[0], "in training")
    queue.mark(names[1], "in training")
    queue.mark(names[1], "trained")

    assert [case.name for case in queue.cases()] == names
    assert [case.name for case in queue.cases(state="in training")] == names[:1]
    assert [case.name for case in queue.cases(state="trained")] == names[1:2]
    assert queue.cases(task="brats-glioma") == []
    assert len(queue.cases_for_training("toy")) == 3


def test_a_withdrawn_case_is_never_trained_on_again(queue: CaseQueue, submission: Submission) -> None:
    case = queue.add(**submission())

    queue.withdraw(case.name, "consent was taken back")

    assert queue.cases_for_training("toy") == []
    record = json.loads((case.folder / "case.json").read_text("utf-8"))
    assert (record["state"], record["reason"]) == ("withdrawn", "consent was taken back")
    assert case.labels.is_file()
    with pytest.raises(InputError, match="it was withdrawn \\(consent was taken back\\) and is never trained on again"):
        queue.add(**submission(version=1))
    with pytest.raises(InputError, match="which is for good"):
        queue.mark(case.name, "submitted")


def test_the_files_of_a_withdrawn_case_go_when_asked_and_its_record_stays(
    queue: CaseQueue, submission: Submission
) -> None:
    case = queue.add(**submission())
    queue.add(**submission(version=1))

    queue.withdraw(case.name, "consent was taken back")
    queue.withdraw(case.name, "really", remove_files=True)

    assert [file.name for file in case.folder.iterdir()] == ["case.json"]
    kept = CaseQueue(queue.folder).case(case.name)
    assert (kept.state, kept.reason, kept.files_removed) == ("withdrawn", "consent was taken back", True)
    assert len(kept.corrections) == 2
    with pytest.raises(InputError, match="withdrawn"):
        queue.add(**submission(version=2))


@pytest.mark.parametrize(
    ("do", "said"),
    [
        (lambda queue, name: queue.withdraw(name, " "), "give the reason"),
        (lambda queue, name: queue.withdraw("nobody", "why"), "nobody: no such case in the queue"),
        (lambda queue, name: queue.mark("nobody", "trained"), "nobody: no such case in the queue"),
        (lambda queue, name: queue.mark(name, "withdrawn"), "is no state to be marked with"),
        (lambda queue, name: queue.case("../cases"), "no such case in the queue"),
    ],
)
def test_bad_orders_are_refused(
    queue: CaseQueue, submission: Submission, do: Callable[[CaseQueue, str], object], said: str
) -> None:
    name = queue.add(**submission()).name

    with pytest.raises(InputError, match=said):
        do(queue, name)


# --- training --------------------------------------------------------------------------------------------------------


def test_cases_come_to_the_trainer_with_their_part(queue: CaseQueue, submission: Submission, toy: Task) -> None:
    for number in range(40):
        queue.add(**submission(f"patient {number}", number))

    cases = queue.cases_for_training("toy")

    split = split_cases(queue.folder, cases)
    for part in ("train", "validation", "test"):
        assert {case.name for case in queue.cases_for_training("toy", part)} == {*getattr(split, part)}
    assert len(split.train) > len(split.validation) > 0
    assert not (queue.folder / "splits.json").exists()
    assert load_case(cases[0], toy).images.keys() == {"t1", "flair"}


def test_a_case_whose_file_has_vanished_is_left_out_and_said(
    queue: CaseQueue, submission: Submission, caplog: pytest.LogCaptureFixture
) -> None:
    whole, broken = queue.add(**submission(number=1)), queue.add(**submission(number=2))
    broken.image_files["flair"].unlink()

    with caplog.at_level(logging.WARNING):
        cases = queue.cases_for_training("toy")

    assert [case.name for case in cases] == [whole.name]
    assert caplog.messages == [
        f"{broken.image_files['flair']}: it is gone, so its case is left out; restore or withdraw {broken.name}"
    ]


# --- pseudonyms ------------------------------------------------------------------------------------------------------


def test_who_the_patient_is_stands_nowhere(queue: CaseQueue, submission: Submission) -> None:
    queue.add(**submission("SCHMIDT^ANNA 19431207"))
    queue.add(**submission("SCHMIDT^ANNA 19431207", version=1))

    for file in [path for path in queue.folder.parent.rglob("*") if path.is_file()]:
        content = file.read_bytes()
        content += gzip.decompress(content) if file.name.endswith(".gz") else b""
        for trace in (b"SCHMIDT", b"ANNA", b"19431207"):
            assert trace not in content + str(file).encode()


@pytest.mark.skipif(os.name != "posix", reason="rights are as POSIX has them")
def test_nobody_else_may_read_the_key_or_the_images(queue: CaseQueue, submission: Submission) -> None:
    queue.add(**submission())

    assert stat.S_IMODE((queue.folder.parent / "pseudonyms.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(queue.folder.stat().st_mode) == 0o700


def test_a_queue_whose_key_is_gone_or_another_takes_nothing(queue: CaseQueue, submission: Submission) -> None:
    queue.add(**submission())
    key = queue.folder.parent / "pseudonyms.key"
    right = key.read_text()

    for wrong in (None, "0" * 64, right[:20], "no key", "\xff"):
        key.unlink(missing_ok=True)
        if wrong is not None:
            key.write_text(wrong, encoding="latin-1")
        with pytest.raises(InputError, match=r"pseudonyms\.key: .* restore the file from a backup"):
            queue.add(**submission("another", number=1))
    key.write_text(right)
    queue.add(**submission("another", number=1))

    assert len({case.patient for case in queue.cases()}) == 2


def test_a_name_is_the_same_however_its_accents_are_written(tmp_path: Path) -> None:
    pseudonyms = load_pseudonyms(tmp_path / "key")

    assert pseudonyms.patient("Zo\u00eb ") == pseudonyms.patient("Zoe\u0308")
    assert pseudonyms.patient("a\udcff") != pseudonyms.patient("a")


def test_patients_are_split_70_15_15_and_never_change_sides() -> None:
    pseudonyms = Pseudonyms(b"k" * 32)
    patients = [pseudonyms.patient(str(number)) for number in range(4000)]

    parts = [pseudonyms.part(patient) for patient in patients]

    assert parts == [pseudonyms.part(patient) for patient in patients]
    assert len(set(patients)) == 4000
    shares = [parts.count(part) / 4000 for part in ("train", "validation", "test")]
    assert shares == pytest.approx([0.70, 0.15, 0.15], abs=0.02)
    other = [Pseudonyms(b"l" * 32).part(patient) for patient in patients]
    assert other != parts


def test_a_patient_s_part_is_kept_though_the_rule_may_change(
    queue: CaseQueue, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = queue.add(**submission(number=1)).part
    other = "test" if part == "train" else "train"
    monkeypatch.setattr(Pseudonyms, "part", lambda self, pseudonym: other)

    assert queue.add(**submission(number=2)).part == part
    assert queue.add(**submission("another", number=3)).part == other


def test_times_are_utc_and_nothing_else_of_the_record_is_lost(queue: CaseQueue, submission: Submission) -> None:
    case = queue.add(**submission())

    stored = json.loads((case.folder / "case.json").read_text("utf-8"))

    expected = dataclasses.asdict(case) | {"corrections": [dataclasses.asdict(v) for v in case.corrections]}
    del expected["folder"]
    assert stored == expected
    assert case.since.endswith("+00:00")
    assert case.since[:13] in {time.strftime("%Y-%m-%dT%H", time.gmtime(time.time() - late)) for late in (0, 60)}
