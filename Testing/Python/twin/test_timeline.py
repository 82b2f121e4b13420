"""Scans that are added to a twin, and what is told about them over time."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from twinseg.errors import Cancelled, InputError
from twinseg.phantom import make_patient
from twinseg.phantom.cohort import Patient
from twinseg.phantom.scanner import Scanner
from twinseg.tasks import load_task
from twinseg.twin import timeline as timeline_module
from twinseg.twin.store import Twin
from twinseg.twin.store_verify import verify
from twinseg.twin.timeline import add_scan, change_map, correct_scan, lesion_history, timeline, volume_chart
from twinseg.volumes import Volume


@pytest.fixture(scope="module")
def patients() -> list[Patient]:
    return [make_patient((5, n), scanner=Scanner.for_site(0, 1), size=48, spacing=4.0, visits=2) for n in range(2)]


def t1ce(patient: Patient, visit: int) -> dict[str, Volume]:
    return {"t1ce": patient.visits[visit].images["t1ce"]}


@pytest.fixture(scope="module")
def two_visits(tmp_path_factory: pytest.TempPathFactory, patients: list[Patient]) -> Path:
    folder = tmp_path_factory.mktemp("twins") / "two visits"
    twin = Twin.create(folder, task="brats-glioma")
    for number, visit in enumerate(patients[0].visits):
        add_scan(twin, visit.day, t1ce(patients[0], number), labels=visit.labels)
    return folder


@pytest.fixture
def followed(two_visits: Path, tmp_path: Path) -> Twin:
    """A copy of a twin with both visits of the first patient, for a test to change."""
    return Twin.open(shutil.copytree(two_visits, tmp_path / "twin"))


def test_volumes_are_those_of_the_label_maps(followed: Twin, patients: list[Patient]) -> None:
    measured = timeline(followed)

    assert [point.day for point in measured] == [visit.day for visit in patients[0].visits]
    for point, visit in zip(measured, patients[0].visits, strict=True):
        assert point.volumes is not None
        volume, deviation = point.volumes["WT"]
        assert volume == pytest.approx(np.count_nonzero(visit.labels.array) * 64 / 1000)
        assert 0 < deviation < volume
    assert followed.timepoints[1].registration["agreement"] > 0.6
    assert verify(followed.folder).whole


def test_lesions_are_followed_as_scans_are_added(followed: Twin) -> None:
    history = lesion_history(followed)

    assert set(history.lesions) == {"000", "001"}
    assert {x.id for x in history.lesions["000"]} & {x.id for x in history.lesions["001"]}
    assert followed.document("lesions.json")["region"] == "TC"


def test_another_patients_scan_is_refused_and_nothing_is_added(followed: Twin, patients: list[Patient]) -> None:
    revision = followed.revision

    with pytest.raises(InputError, match="another patient's"):
        add_scan(followed, 900, t1ce(patients[1], 1), labels=patients[1].visits[1].labels)

    assert Twin.open(followed.folder).revision == revision


def test_it_tells_where_it_is_from_checking_to_writing(two_visits: Path, patients: list[Patient]) -> None:
    twin = Twin.create(two_visits.parent / "told", task="brats-glioma")
    add_scan(twin, 0, t1ce(patients[0], 0), labels=patients[0].labels)
    told: list[tuple[float, str]] = []

    add_scan(
        twin, 60, t1ce(patients[0], 1), labels=patients[0].visits[1].labels, report=lambda *said: told.append(said)
    )

    shares, stages = [done for done, _ in told], " / ".join(dict.fromkeys(stage for _, stage in told))
    assert shares == sorted(shares)
    places = [stages.index(part) for part in ("checking", "rigid", "affine", "comparing", "lesions", "writing")]
    assert places == sorted(places)


@pytest.mark.parametrize("stage", ["checking", "rigid", "affine", "comparing", "lesions", "writing"])
def test_a_scan_that_is_cancelled_leaves_the_twin_as_it_was(
    followed: Twin, patients: list[Patient], stage: str
) -> None:
    files = {path: path.read_bytes() for path in followed.folder.rglob("*") if path.is_file()}

    with pytest.raises(Cancelled, match="nothing was changed"):
        add_scan(
            followed,
            900,
            t1ce(patients[0], 1),
            labels=patients[0].visits[1].labels,
            report=lambda _done, said: stage in said,
        )

    assert {path: path.read_bytes() for path in followed.folder.rglob("*") if path.is_file()} == files
    assert verify(followed.folder).whole
    add_scan(followed, 900, t1ce(patients[0], 1), labels=patients[0].visits[1].labels)


def test_an_empty_segmentation_must_be_meant(followed: Twin, patients: list[Patient], tmp_path: Path) -> None:
    empty = Volume(np.zeros((48, 48, 48), np.uint8), patients[0].labels.affine)
    with pytest.raises(InputError, match="is empty; a twin needs a tumour"):
        add_scan(Twin.create(tmp_path / "new", task="brats-glioma"), 0, t1ce(patients[0], 0), labels=empty)
    with pytest.raises(InputError, match="--no-tumour"):
        add_scan(followed, 900, t1ce(patients[0], 1), labels=empty)

    add_scan(followed, 900, t1ce(patients[0], 1), labels=empty, no_tumour=True)

    assert timeline(followed)[-1].volumes["WT"] == (0.0, 0.0)
    vanished = [change for change in lesion_history(followed).changes if change.kind == "vanished"]
    assert [change.timepoint for change in vanished] == ["002"] * len(lesion_history(followed).lesions["001"])


def test_unknown_labels_and_sequences_are_refused(followed: Twin, patients: list[Patient]) -> None:
    labels = patients[0].labels
    with pytest.raises(InputError, match="the label 9"):
        add_scan(followed, 900, t1ce(patients[0], 1), labels=Volume(np.where(labels.array > 0, 9, 0), labels.affine))
    with pytest.raises(InputError, match="shares no sequence with the baseline"):
        add_scan(followed, 900, {"t2": patients[0].visits[1].images["t2"]})


def test_a_scan_without_a_segmentation_waits_for_one(followed: Twin, patients: list[Patient]) -> None:
    visit = patients[0].visits[1]
    added = add_scan(followed, 900, t1ce(patients[0], 1))
    assert timeline(followed)[-1].volumes is None
    with pytest.raises(InputError, match="no segmentation"):
        change_map(followed, "000", added.name)

    correct_scan(followed, added.name, visit.labels, "edited")

    assert timeline(followed)[-1].volumes is not None
    assert lesion_history(followed).lesions["002"]


def test_a_model_that_draws_again_does_not_replace_an_experts_lesions(followed: Twin, patients: list[Patient]) -> None:
    before = followed.document("lesions.json")

    correct_scan(followed, "001", patients[0].labels, "model")

    assert followed.document("lesions.json") == before


def test_change_maps_say_what_went_stayed_and_came(tmp_path: Path, scan, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = Twin.create(tmp_path / "twin", task="brats-glioma")
    small, large = scan(0, 5.0), scan(0, 7.0)
    add_scan(twin, 0, {"t1ce": large["t1ce"]}, labels=large["labels"])
    shifted = np.roll(small["labels"].array, 2, axis=0)
    shift = np.eye(4)
    shift[0, 3] = -4.0  # the new scan lies two voxels of 2 mm to the right
    monkeypatch.setattr(
        timeline_module, "register", lambda *a, **k: timeline_module.Registration(shift, "rigid", 0.9, 1.2)
    )
    add_scan(twin, 30, {"t1ce": small["t1ce"]}, labels=Volume(shifted, small["labels"].affine))

    changed, counts = change_map(twin, "000", "001", "WT")

    inner, outer = (np.count_nonzero(drawn["labels"].array) * 8 / 1000 for drawn in (small, large))
    assert counts == pytest.approx({"gone": outer - inner, "stayed": inner, "new": 0.0})
    np.testing.assert_array_equal(changed.array == timeline_module.STAYED, small["labels"].array > 0)
    assert change_map(twin, "001", "000", "WT")[1]["new"] == pytest.approx(outer - inner)


def test_the_chart_is_a_picture(followed: Twin) -> None:
    assert volume_chart(timeline(followed), load_task("brats-glioma")).startswith(b"\x89PNG")
