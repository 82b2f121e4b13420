"""Whole synthetic patients, in memory and on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from twinseg.cases import find_cases
from twinseg.errors import InputError, OutOfSpaceError
from twinseg.phantom import KINDS, Patient, Scanner, cohort, make_patient, write_cohort
from twinseg.tasks import load_task
from twinseg.volumes import Volume, read_image, read_labels

SMALL = {"size": 48, "spacing": 4.0}


def patient(seed: int, **options: object) -> Patient:
    return make_patient(seed, scanner=Scanner.for_site(0), **{**SMALL, **options})  # type: ignore[arg-type]


def test_a_patient_is_the_same_to_the_bit_whatever_was_made_before() -> None:
    first = patient(8)
    patient(9)
    again = patient(8)

    assert first.truth == again.truth
    np.testing.assert_array_equal(first.labels.array, again.labels.array)
    for name, image in first.images.items():
        np.testing.assert_array_equal(image.array, again.images[name].array)
        assert image.array.dtype == np.float32
        assert np.isfinite(image.array).all()


@pytest.mark.parametrize(
    ("kind", "has", "has_not"),
    [
        ("ring", {1, 2, 3}, set()),
        ("solid", {2, 3}, set()),
        ("low-grade", {1, 2}, {3}),
        ("cystic", {1, 2, 3}, set()),
        ("none", set(), {1, 2, 3}),
    ],
)
def test_each_kind_has_its_labels(kind: str, has: set[int], has_not: set[int]) -> None:
    found: set[int] = set()
    for seed in range(4):
        found |= set(np.unique(patient(seed, kind=kind).labels.array).tolist())
    assert has <= found
    assert not has_not & found


def test_tumours_differ_in_kind_size_and_place() -> None:
    truths = [patient(seed).truth for seed in range(16)]

    volumes = [sum(truth["visits"][0]["volumes_ml"].values()) for truth in truths]
    places = np.array([truth["seeds_mm"][0] for truth in truths])
    assert {truth["kind"] for truth in truths} <= set(KINDS)
    assert len({truth["kind"] for truth in truths}) >= 3
    assert min(volumes) > 0
    assert max(volumes) > 4 * min(volumes)
    assert np.all(places.std(axis=0) > 10)


def test_the_truth_says_what_the_labels_say() -> None:
    made = patient(5)

    counts = np.bincount(made.labels.array.ravel(), minlength=4)
    told = made.truth["visits"][0]["volumes_ml"]
    assert [told["NCR"], told["ED"], told["ET"]] == pytest.approx((counts[1:] * 0.064).tolist())
    assert made.truth["diffusion_white_mm2_per_day"] > made.truth["diffusion_grey_mm2_per_day"] > 0
    assert made.truth["visits"][0]["cells"] > 0


def test_an_untreated_tumour_grows_from_visit_to_visit() -> None:
    made = next(p for p in (patient(seed, visits=3, kind="ring") for seed in range(9)) if not p.truth["treatment"])

    days = [visit.day for visit in made.visits]
    cells = [visit["cells"] for visit in made.truth["visits"]]
    whole = [float((visit.labels.array > 0).sum()) for visit in made.visits]
    assert days == sorted(set(days))
    assert days[0] == 0
    assert cells == sorted(cells)
    assert whole[0] < whole[-1]


def test_treatment_kills_cells() -> None:
    made = next(p for p in (patient(seed, visits=2) for seed in range(20)) if p.truth["treatment"])

    surviving = made.truth["treatment"]["surviving_fraction"]
    first, second = (visit["cells"] for visit in made.truth["visits"])
    interval, rate = made.visits[1].day, made.truth["proliferation_per_day"]
    assert 0 < surviving < 1
    assert second < first * surviving * np.exp(rate * interval) * 1.001


def test_a_cohort_on_disk_is_read_back_as_cases(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    summary = write_cohort(
        tmp_path / "añ o", sites=2, patients=2, seed=3, progress=lambda *report: told.append(report), **SMALL
    )

    cases = find_cases(tmp_path / "añ o", load_task("brats-glioma"), require_labels=True)
    assert len(cases) == len(summary["cases"]) == 4
    assert len({case.patient for case in cases}) == 4
    assert {case.site for case in cases} == {"SITE-01", "SITE-02"}
    assert [done for done, _, _ in told] == [1, 2, 3, 4]
    assert told[-1][1] == 4
    image, labels = read_image(cases[0].images["flair"]), read_labels(cases[0].labels)  # type: ignore[arg-type]
    assert image.shape == labels.shape == (48, 48, 48)
    np.testing.assert_allclose(image.affine @ [23.5, 23.5, 23.5, 1], [0, 0, 0, 1], atol=1e-6)
    direct = make_patient((3, 0, 0), scanner=Scanner.for_site(0, 3), **SMALL)  # type: ignore[arg-type]
    np.testing.assert_array_equal(image.array, direct.images["flair"].array)


def test_visits_become_folders_named_by_date(tmp_path: Path) -> None:
    write_cohort(tmp_path, sites=1, patients=1, visits=2, **SMALL)

    dates = sorted(path.name for path in (tmp_path / "SITE-01" / "S01P001").iterdir() if path.is_dir())
    truth = json.loads((tmp_path / "SITE-01" / "S01P001" / "truth.json").read_text())
    assert dates[0] == "2020-01-06"
    assert len(dates) == len(truth["visits"]) == 2


def test_a_second_run_keeps_what_is_there_and_refuses_another_cohort(tmp_path: Path) -> None:
    first = write_cohort(tmp_path, sites=1, patients=1, **SMALL)
    file = tmp_path / "SITE-01" / "S01P001" / "t1.nii.gz"
    written = file.stat().st_mtime_ns

    again = write_cohort(tmp_path, sites=1, patients=1, **SMALL)

    assert again == first
    assert file.stat().st_mtime_ns == written
    with pytest.raises(InputError, match="another cohort"):
        write_cohort(tmp_path, sites=1, patients=1, seed=1, **SMALL)


def test_a_folder_of_the_users_own_is_never_replaced(tmp_path: Path) -> None:
    own = tmp_path / "SITE-01" / "S01P001" / "notes.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")

    with pytest.raises(InputError, match="holds something else"):
        write_cohort(tmp_path, sites=1, patients=1, **SMALL)

    assert own.read_text() == "mine"


def test_a_full_disk_leaves_no_half_patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cohort.write_volume

    def fill_up(path: Path, volume: Volume) -> None:
        if path.name == "seg.nii.gz":
            raise OutOfSpaceError(f"{path}: no space left")
        real(path, volume)

    monkeypatch.setattr(cohort, "write_volume", fill_up)

    with pytest.raises(OutOfSpaceError):
        write_cohort(tmp_path, sites=1, patients=1, **SMALL)

    assert list((tmp_path / "SITE-01").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": 8}, "too small"),
        ({"spacing": 0.0}, "above zero"),
        ({"spacing": -1.0}, "above zero"),
        ({"spacing": float("nan")}, "above zero"),
        ({"size": 16, "spacing": 1.0}, "field of view"),
        ({"sites": 0}, "at least one"),
        ({"patients": 0}, "at least one"),
        ({"visits": 0}, "at least 1"),
        ({"seed": -1}, "0 or above"),
        ({"anatomy": "/nowhere/at all"}, "no such folder"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, options: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        write_cohort(tmp_path / "out", **{**SMALL, **options})  # type: ignore[arg-type]

    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("options", "told"), [({"kind": "wart"}, "wart"), ({"contrast": "loud"}, "loud")])
def test_unknown_kinds_and_contrasts_are_refused(options: dict[str, str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        patient(0, **options)
