"""Cases: one grid for all images of a case, and splits that are drawn once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinseg.cases import Case, Split, _tell_of_cavities, find_cases, load_case, split_cases
from twinseg.errors import InputError
from twinseg.phantom import Scanner, make_patient, write_patient
from twinseg.tasks import Task
from twinseg.volumes import Volume, crop, to_ras, write_volume

SaveNifti = Callable[..., Path]
SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the development images (../shared/data) are not there")


# --- one grid --------------------------------------------------------------------------------------------------------


def make_case(
    save_nifti: SaveNifti, folder: Path, affines: dict[str, np.ndarray], shape: tuple[int, int, int] = (6, 6, 6)
) -> Case:
    images = {}
    for name, affine in affines.items():
        array = np.random.default_rng(len(name)).integers(0, 3 if name == "seg" else 100, shape).astype(np.uint8)
        images[name] = save_nifti(folder / f"{name}.nii.gz", array, affine)
    return Case("P1", "P1", None, None, images, images.pop("seg", None))


def moved(by: float, axis: int = 0) -> np.ndarray:
    affine = np.eye(4)
    affine[axis, 3] = by
    return affine


def test_the_first_sequence_of_the_task_is_the_reference(tmp_path: Path, glioma: Task, save_nifti: SaveNifti) -> None:
    case = make_case(save_nifti, tmp_path, {"flair": moved(1), "t1ce": moved(2), "seg": moved(2.0005)})

    loaded = load_case(case, glioma)

    assert list(loaded.images) == ["t1ce", "flair"]
    assert loaded.reference is loaded.images["t1ce"]
    assert loaded.labels is not None
    np.testing.assert_array_equal(loaded.labels.affine, moved(2))


def test_the_label_map_is_never_resampled(tmp_path: Path, glioma: Task, save_nifti: SaveNifti) -> None:
    case = make_case(save_nifti, tmp_path, {"t1": moved(0), "t2": moved(1), "seg": moved(1)})

    loaded = load_case(case, glioma)

    assert loaded.labels is not None
    np.testing.assert_array_equal(loaded.reference.affine, moved(1))
    np.testing.assert_array_equal(loaded.images["t1"].array[:-1], load_case(case, glioma, False).images["t1"].array[1:])


def labelled_patient(folder: Path) -> Path:
    """A synthetic patient's files, t1 to flair and seg, whose tumour is far from filling the head."""
    write_patient(folder, make_patient(3, scanner=Scanner.for_site(0, 0), size=40, spacing=5.0))
    return folder


@pytest.mark.parametrize("turned", [False, True], ids=["as the images lie", "in another orientation"])
def test_a_label_map_cut_to_the_tumour_does_not_cut_the_images(tmp_path: Path, glioma: Task, turned: bool) -> None:
    (case,) = find_cases(labelled_patient(tmp_path / "P1"), glioma)
    whole = load_case(case, glioma)
    assert whole.labels is not None
    assert case.labels is not None
    tumour = np.argwhere(whole.labels.array)
    cut = crop(whole.labels, tuple(tumour.min(axis=0)), tuple(tumour.max(axis=0) + 1))
    cut = Volume(cut.array[::-1], cut.affine @ reversed_axis(cut.shape[0])) if turned else cut
    write_volume(case.labels, cut)

    loaded = load_case(case, glioma)

    assert loaded.labels is not None
    np.testing.assert_array_equal(loaded.labels.array, whole.labels.array)
    for name, image in whole.images.items():
        np.testing.assert_array_equal(loaded.images[name].array, image.array)


def test_a_cut_label_map_is_put_on_the_image_that_it_was_drawn_on(
    tmp_path: Path, glioma: Task, save_nifti: SaveNifti
) -> None:
    head = np.random.default_rng(0).integers(1, 99, (20, 20, 20)).astype(np.int16)
    labels = np.zeros((20, 20, 6), np.uint8)
    labels[8:12, 8:12] = 2
    images = {
        "t1": save_nifti(tmp_path / "t1.nii.gz", head, moved(0.4)),
        "flair": save_nifti(tmp_path / "flair.nii.gz", head),
    }
    seg = save_nifti(tmp_path / "seg.nii.gz", labels, moved(7, axis=2))

    loaded = load_case(Case("P1", "P1", None, None, images, seg), glioma)

    assert loaded.labels is not None
    assert loaded.reference is loaded.images["flair"]
    np.testing.assert_array_equal(loaded.labels.array[:, :, 7:13], labels)
    assert not loaded.labels.array[:, :, :7].any()


def reversed_axis(size: int) -> np.ndarray:
    affine = np.diag([-1.0, 1, 1, 1])
    affine[0, 3] = size - 1
    return affine


def test_without_labels_the_images_own_grid_is_kept(tmp_path: Path, glioma: Task, save_nifti: SaveNifti) -> None:
    case = make_case(save_nifti, tmp_path, {"t1": moved(0), "seg": moved(1)})

    loaded = load_case(case, glioma, with_labels=False)

    assert loaded.labels is None
    np.testing.assert_array_equal(loaded.reference.affine, moved(0))


def test_affines_within_a_thousandth_are_one_grid(tmp_path: Path, glioma: Task, save_nifti: SaveNifti) -> None:
    case = make_case(save_nifti, tmp_path, {"t1": moved(0), "t2": moved(9e-4)})

    loaded = load_case(case, glioma)

    np.testing.assert_array_equal(loaded.images["t2"].affine, moved(0))
    np.testing.assert_array_equal(loaded.images["t2"].array, _array(case.images["t2"]))


def test_a_sequence_in_another_orientation_falls_into_place(
    tmp_path: Path, glioma: Task, save_nifti: SaveNifti
) -> None:
    array = np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(np.int16)
    t1 = save_nifti(tmp_path / "t1.nii.gz", array, np.diag([-2.0, -1, 3, 1]))
    turned = to_ras(load_case(Case("P", "P", None, None, {"t1": t1}), glioma).reference)
    t2 = save_nifti(tmp_path / "t2.nii.gz", turned.array, turned.affine)

    loaded = load_case(Case("P", "P", None, None, {"t1": t1, "t2": t2}), glioma)

    np.testing.assert_array_equal(loaded.images["t2"].array, array)


def test_another_grid_of_the_same_head_is_resampled(tmp_path: Path, glioma: Task, save_nifti: SaveNifti) -> None:
    ramp = np.arange(10, dtype=np.float32)[:, None, None] * np.ones((10, 10, 10), np.float32)
    fine = save_nifti(tmp_path / "t1.nii.gz", ramp, np.eye(4))
    coarse = save_nifti(tmp_path / "t2.nii.gz", ramp[:5, :5, :5] * 2 + 0.5, np.array(
        [[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 2, 0.5], [0, 0, 0, 1.0]]))  # fmt: skip

    loaded = load_case(Case("P", "P", None, None, {"t1": fine, "t2": coarse}), glioma)

    np.testing.assert_allclose(loaded.images["t2"].array[1:-1], loaded.images["t1"].array[1:-1], atol=1e-5)


def test_labels_of_older_data_are_renamed(tmp_path: Path, glioma: Task, save_nifti: SaveNifti) -> None:
    labels = np.zeros((4, 5, 6), np.float32)
    labels[0, 0, :3] = 1, 2, 4
    case = Case(
        "P", "P", None, None, {"t1": save_nifti(tmp_path / "t1.nii.gz")}, save_nifti(tmp_path / "s.nii", labels)
    )

    loaded = load_case(case, glioma)

    assert loaded.labels is not None
    assert loaded.labels.array.dtype == np.uint8
    assert loaded.labels.array[0, 0].tolist() == [1, 2, 3, 0, 0, 0]


def case_with_labels(save_nifti: SaveNifti, folder: Path, patient: str, *values: int) -> Case:
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0, 0, : len(values)] = values
    image = save_nifti(folder / "t1.nii.gz")
    return Case(patient, patient, None, None, {"t1": image}, save_nifti(folder / "seg.nii.gz", labels))


def test_the_resection_cavity_of_brats_2024_is_no_enhancing_tumour(
    tmp_path: Path, glioma: Task, save_nifti: SaveNifti, caplog: pytest.LogCaptureFixture
) -> None:
    _tell_of_cavities.cache_clear()
    for number, values in enumerate([(1, 2, 3, 4), (2, 4)]):
        case = case_with_labels(save_nifti, tmp_path / str(number), f"BraTS-GLI-0000{number}", *values)

        loaded = load_case(case, glioma)

        assert loaded.labels is not None
        assert loaded.labels.array[0, 0, : len(values)].tolist() == [*values[:-1], 0]
    assert [record.getMessage() for record in caplog.records] == [
        "label 4 of BraTS 2024 is the resection cavity; brats-glioma has no such label: read as background"
    ]


def test_a_label_of_older_data_beside_the_newer_one_is_refused(
    tmp_path: Path, glioma: Task, save_nifti: SaveNifti
) -> None:
    case = case_with_labels(save_nifti, tmp_path, "P1", 2, 3, 4)

    with pytest.raises(InputError, match=r"seg\.nii\.gz: label 4 beside 3, .*resection cavity\); set it to 0"):
        load_case(case, glioma)


def test_the_numbers_of_the_childrens_brats_of_2024_are_not_taken_for_those_of_others(
    tmp_path: Path, glioma: Task, save_nifti: SaveNifti
) -> None:
    case = case_with_labels(save_nifti, tmp_path, "BraTS-PED-00001", 1, 2, 4)

    with pytest.raises(InputError, match=r"seg\.nii\.gz: BraTS-PED numbers .*4 oedema.*relabel all maps"):
        load_case(case, glioma)


def _array(path: Path) -> np.ndarray:
    import nibabel

    return np.asarray(nibabel.nifti1.load(path).dataobj)


@needs_shared
def test_a_real_case_is_loaded_on_its_own_grid(glioma: Task) -> None:
    (case,) = find_cases(SHARED / "brats-gli", glioma)

    loaded = load_case(case, glioma)

    assert {v.shape for v in loaded.images.values()} == {(240, 240, 155)}
    assert loaded.reference is loaded.images["t1"]
    assert loaded.labels is not None
    assert set(np.unique(loaded.labels.array)) == {0, 1, 2, 3}


# --- splits ----------------------------------------------------------------------------------------------------------


def cohort(sites: dict[str, int], visits: int = 1) -> list[Case]:
    return [
        Case(f"{site}{n}", f"{site}{n}_{visit}", site, str(visit), {})
        for site, patients in sites.items()
        for n in range(patients)
        for visit in range(visits)
    ]


def patients(names: tuple[str, ...]) -> set[str]:
    return {name.split("_")[0] for name in names}


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("ABCD"), st.integers(1, 40), min_size=1), st.integers(1, 3), st.integers(0, 9))
def test_every_case_has_one_part_and_no_patient_two(
    tmp_path_factory: pytest.TempPathFactory, sites: dict[str, int], visits: int, seed: int
) -> None:
    cases = cohort(sites, visits)

    split = split_cases(tmp_path_factory.mktemp("split"), cases, seed)

    parts = [split.train, split.validation, split.test]
    assert sorted(name for part in parts for name in part) == sorted(c.name for c in cases)
    assert sum(len(patients(part)) for part in parts) == sum(sites.values())
    if sum(sites.values()) >= 3:
        assert all(parts)
    n = sum(sites.values())
    assert abs(len(patients(split.train)) - 0.7 * n) <= 2 + len(sites)
    assert abs(len(patients(split.test)) - 0.15 * n) <= 2 + len(sites)


def test_sites_are_split_alike(tmp_path: Path) -> None:
    split = split_cases(tmp_path, cohort({"CS": 12, "DU": 41, "FG": 10, "HT": 30}))

    tested = Counter(name[:2] for name in split.test)
    assert sum(tested.values()) in (13, 14, 15)
    assert all(0.08 <= tested[site] / n <= 0.25 for site, n in {"CS": 12, "DU": 41, "FG": 10, "HT": 30}.items())


def test_a_split_is_never_drawn_again(tmp_path: Path) -> None:
    first = split_cases(tmp_path, cohort({"A": 20}), seed=1)
    written = (tmp_path / "splits.json").read_bytes()

    again = split_cases(tmp_path, cohort({"A": 20}), seed=2)

    assert again == first
    assert (tmp_path / "splits.json").read_bytes() == written
    assert split_cases(tmp_path / "other.json", cohort({"A": 20}), seed=2) != first


def test_new_patients_join_and_old_ones_stay(tmp_path: Path) -> None:
    first = split_cases(tmp_path, cohort({"A": 20}))

    grown = split_cases(tmp_path, cohort({"A": 40, "B": 10}, visits=2))
    again = split_cases(tmp_path, cohort({"A": 20}))

    for before, after in zip(_parts(first), _parts(grown), strict=True):
        assert patients(before) < patients(after)
    assert again == first  # patients who are not there now keep their part for when they come back
    assert abs(len(patients(grown.test)) - 7.5) <= 2


def test_two_patients_who_come_first_are_joined_by_others_in_every_part(tmp_path: Path) -> None:
    split_cases(tmp_path, cohort({"A": 2}))

    assert all(_parts(split_cases(tmp_path, cohort({"A": 4}))))


def test_a_first_split_says_once_what_it_was_drawn_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        split_cases(tmp_path, cohort({"A": 5, "B": 7}, visits=2))

    assert caplog.messages == [f"{tmp_path / 'splits.json'}: drawn by patient, for 12 patients, 24 cases, 2 sites"]


@pytest.mark.parametrize(
    ("folders", "doubtful"),
    [
        ([f"P{patient}/{visit}" for patient in range(12) for visit in ("early", "late")], "early, late"),
        (["P1/2020-01-05", "P1/again", "P2/2020-01-05", "P3", "P4"], "P1"),
        ([f"SITE-0{site}/{patient:03}" for site in range(1, 4) for patient in range(1, 6)], None),
        ([f"SITE-0{site}/S{site}P{patient}/2020-01-05" for site in range(1, 9) for patient in range(4)], None),
        ([f"P{patient}/scan{visit}" for patient in range(12) for visit in (1, 2)], None),
    ],
    ids=["unknown visits", "one unknown visit", "sites that number alike", "a phantom cohort", "known visits"],
)
def test_visits_that_may_have_been_taken_for_patients_are_said(
    tmp_path: Path, glioma: Task, caplog: pytest.LogCaptureFixture, folders: list[str], doubtful: str | None
) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "t1.nii.gz").write_bytes(b"x")

    split_cases(tmp_path, find_cases(tmp_path, glioma))

    assert [text.split(" patients?")[0] for text in caplog.messages[1:]] == ([f"are {doubtful}"] if doubtful else [])


def test_the_split_lies_in_the_file_that_the_caller_names(tmp_path: Path) -> None:
    file = tmp_path / "run 1" / "parts.json"
    with pytest.raises(InputError, match=r"its folder does not exist\); choose another folder"):
        split_cases(file, cohort({"A": 5}))
    file.parent.mkdir()

    split = split_cases(file, cohort({"A": 5}))

    assert set(json.loads(file.read_text())["patients"]["train"]) == patients(split.train)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"seed": 0}', '{"seed": 0, "patients": {"train": ["a"], "validation": [], "test": ["a"]}}']
)
def test_a_damaged_split_is_not_drawn_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "splits.json").write_text(content)

    with pytest.raises(InputError, match=r"splits\.json: this is no whole split .* move it away"):
        split_cases(tmp_path, cohort({"A": 5}))

    assert (tmp_path / "splits.json").read_text() == content


def _parts(split: Split) -> list[tuple[str, ...]]:
    return [split.train, split.validation, split.test]
