"""Folder layouts: the files of each case are found, and its patient, site and date, in the layouts that are about."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinseg.cases import load_case, split_cases
from twinseg.errors import InputError
from twinseg.layouts import find_cases
from twinseg.tasks import Task, load_task

SaveNifti = Callable[..., Path]
SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the development images (../shared/data) are not there")


def touch(folder: Path, *names: str) -> None:
    """Files with something in them: a layout is read from names alone."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


# --- T1 with and without contrast ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "sequences"),
    [
        ("P1_post_T1 P1_pre_T1 P1_FLAIR", [{"t1ce", "t1", "flair"}]),
        ("P1_post_T1 P1_T2 P2_post_T1 P2_T2", [{"t1ce", "t2"}] * 2),
        ("P1_post_T1 P1_post_T2 P1_pre_T1 P1_pre_T2", [{"t1", "t2"}] * 2),
        ("P1_T1 P1_c_T1 P2_T1 P2_c_T1", [{"t1", "t1ce"}] * 2),
        ("A_t1 A_t2 C_t1 C_t2", [{"t1", "t2"}] * 2),
        ("GD_t1 GD_t2 KM_t1 KM_t2", [{"t1", "t2"}] * 2),
        ("pre_T1 gd_T1 FLAIR", [{"t1", "t1ce", "flair"}]),
    ],
)
def test_what_a_word_before_a_t1_means_the_other_files_of_the_folder_tell(
    tmp_path: Path, glioma: Task, names: str, sequences: list[set[str]]
) -> None:
    touch(tmp_path, *(f"{name}.nii.gz" for name in names.split()))

    assert [set(case.images) for case in find_cases(tmp_path, glioma)] == sequences


def test_a_t1_that_may_be_with_contrast_or_after_surgery_is_refused(tmp_path: Path, glioma: Task) -> None:
    touch(tmp_path, "P1_post_T1.nii.gz")

    with pytest.raises(InputError, match=r"P1_post_T1\.nii\.gz: 'post' may mean contrast or .*; name it t1ce or t1"):
        find_cases(tmp_path, glioma)


# --- layouts ---------------------------------------------------------------------------------------------------------


def test_brats_2023(tmp_path: Path, glioma: Task) -> None:
    for name in ("BraTS-GLI-00000-000", "BraTS-GLI-00000-001"):
        touch(tmp_path, *(f"{name}/{name}-{s}.nii.gz" for s in ("t1n", "t1c", "t2w", "t2f", "seg")))

    first, second = find_cases(tmp_path, glioma)

    assert (first.patient, first.name, first.date) == ("BraTS-GLI-00000", "BraTS-GLI-00000-000", "000")
    assert (second.patient, second.date) == ("BraTS-GLI-00000", "001")
    assert set(first.images) == {"t1", "t1ce", "t2", "flair"}
    assert first.labels == tmp_path / "BraTS-GLI-00000-000/BraTS-GLI-00000-000-seg.nii.gz"
    assert first.site is None


@pytest.mark.parametrize("flat", [False, True])
def test_brats_2020_and_2021(tmp_path: Path, glioma: Task, flat: bool) -> None:
    for name in ("BraTS20_Training_001", "BraTS2021_00002"):
        touch(tmp_path / ("" if flat else name), *(f"{name}_{s}.nii" for s in ("t1", "t1ce", "t2", "flair", "seg")))

    cases = find_cases(tmp_path, glioma)

    assert [(c.patient, c.name) for c in cases] == [("BraTS2021_00002",) * 2, ("BraTS20_Training_001",) * 2]
    assert all(len(c.images) == 4 and c.labels for c in cases)


def test_brats_2019_tells_the_site_and_the_grade_is_none(tmp_path: Path, glioma: Task) -> None:
    for name in ("HGG/BraTS19_CBICA_AAB_1", "HGG/BraTS19_2013_10_1", "LGG/BraTS19_TCIA01_131_1"):
        touch(tmp_path / name, f"{Path(name).name}_t1.nii.gz", f"{Path(name).name}_seg.nii.gz")

    cases = find_cases(tmp_path, glioma)

    assert [c.site for c in cases] == ["2013", "CBICA", "TCIA01"]
    assert cases[1].patient == "BraTS19_CBICA_AAB"


def test_a_plain_tree_gives_site_patient_and_date(tmp_path: Path, glioma: Task) -> None:
    touch(tmp_path, *(f"Köln/P 1/{day}/{s}.nii.gz" for day in ("2020-01-05", "2021-02-06") for s in ("t1", "seg")))
    touch(tmp_path, "Basel/P2/FLAIR.nii.gz", "Basel/P2/._FLAIR.nii.gz", "Basel/P2/notes.txt")

    cases = find_cases(tmp_path, glioma)

    assert [(c.name, c.patient, c.site, c.date) for c in cases] == [
        ("P 1_2020-01-05", "P 1", "Köln", "2020-01-05"),
        ("P 1_2021-02-06", "P 1", "Köln", "2021-02-06"),
        ("P2", "P2", "Basel", None),
    ]
    assert cases[2].images == {"flair": tmp_path / "Basel/P2/FLAIR.nii.gz"}
    assert cases[2].labels is None
    assert len(find_cases(tmp_path, glioma, require_labels=True)) == 2


def test_one_cases_folder_is_that_case(tmp_path: Path, glioma: Task) -> None:
    touch(tmp_path, "P1/2020-01-05/t1.nii.gz")

    for folder in ("P1", "P1/2020-01-05"):
        (case,) = find_cases(tmp_path / folder, glioma)

        assert (case.name, case.patient, case.site, case.date) == ("P1_2020-01-05", "P1", None, "2020-01-05")


@pytest.mark.parametrize(
    "file",
    [
        "S/P1/P1_2020-01-05_{}.nii.gz",
        "S/P1_2020-01-05/{}.nii.gz",
        "S/P1_2020-01-05_{}.nii.gz",
        "S/P1/2020-01-05/x_{}.nii",
    ],
)
def test_a_date_in_a_name_is_no_other_patient(tmp_path: Path, glioma: Task, file: str) -> None:
    for day in ("2020-01-05", "2020-03-05"):
        touch(tmp_path, *(file.format(name).replace("2020-01-05", day) for name in ("t1", "t2")))

    cases = find_cases(tmp_path, glioma)

    assert [(c.patient, c.site, c.date) for c in cases] == [("P1", "S", "2020-01-05"), ("P1", "S", "2020-03-05")]


def test_bids(tmp_path: Path, glioma: Task) -> None:
    touch(tmp_path, *(f"sub-01/ses-{n}/anat/sub-01_ses-{n}_{s}.nii.gz" for n in (1, 2) for s in ("T1w", "FLAIR")))

    cases = find_cases(tmp_path, glioma)

    assert [(c.patient, c.name, c.site, c.date) for c in cases] == [
        ("sub-01", "sub-01_ses-1", None, "ses-1"),
        ("sub-01", "sub-01_ses-2", None, "ses-2"),
    ]


def test_both_t1_of_a_bids_session_are_one_case(tmp_path: Path, glioma: Task) -> None:
    names = ("ce-gadolinium_T1w", "T1w", "T2w", "FLAIR")
    touch(tmp_path, *(f"sub-0{n}/ses-1/anat/sub-0{n}_ses-1_{name}.nii.gz" for n in (1, 2) for name in names))
    touch(tmp_path / "flat", *(f"sub-0{n}_ses-1_{name}.nii.gz" for n in (3, 4) for name in names))

    cases = find_cases(tmp_path, glioma)

    assert [case.patient for case in cases] == ["sub-01", "sub-02", "sub-03", "sub-04"]
    assert all(set(case.images) == {"t1", "t1ce", "t2", "flair"} for case in cases)


def test_a_t1_with_contrast_is_left_out_where_the_task_has_none(
    tmp_path: Path, toy: Task, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, *(f"sub-01_{name}.nii.gz" for name in ("ce-gadolinium_T1w", "T1", "FLAIR")))
    toy = replace(toy, sequences=(replace(toy.sequences[0], synonyms=("t1w",)), toy.sequences[1]))

    (case,) = find_cases(tmp_path, toy)

    assert case.images["t1"].name == "sub-01_T1.nii.gz"
    assert "sub-01_ce-gadolinium_T1w.nii.gz" in caplog.text


@pytest.mark.parametrize("above", ["", "Basel/", "imagesTr/"], ids=["patients", "patients of a site", "a container"])
@pytest.mark.parametrize(
    "visits",
    [
        "scan1 scan2 scan3",
        "MR1 MR2",
        "MRI_01 MRI_02",
        "exam-1 exam-2",
        "0 1 2",
        "01 02",
        "v1 v2",
        "preop postop",
        "pre-op post-op",
        "preoperative early_postop post_op_2",
        "pre_surgery post_surgery",
        "week-000-1 week-000-2 week-031",
        "10.3.2018 4.11.2018",
        "03-10-2018 11-04-2018",
        "2018-03-10 20181104",
        "ses-preop ses-20181104",
        "baseline 3months year_2 FU3",
        "01-10-2001-NA-MR_BRAIN-12345 03-27-2002-NA-MR_BRAIN-4711",
    ],
)
def test_visits_are_no_patients(tmp_path: Path, glioma: Task, above: str, visits: str) -> None:
    patients = [f"P{n:02}" for n in range(12)]
    touch(tmp_path, *(f"{above}{patient}/{visit}/t1.nii.gz" for patient in patients for visit in visits.split()))

    cases = find_cases(tmp_path, glioma)

    assert sorted({case.patient for case in cases}) == patients
    assert {case.date for case in cases} == set(visits.split())
    assert {case.site for case in cases} == {"Basel" if above == "Basel/" else None}


@pytest.mark.parametrize(
    "folders",
    [
        [f"SITE-0{site}/{patient}" for site in (1, 2, 3) for patient in range(1, 9)],
        [f"SITE-0{site}/{patient:03}" for site in range(1, 6) for patient in range(1, 5)],
        [f"Basel/MR{patient:03}" for patient in range(40)],
        [f"scan{patient}" for patient in range(12)],
    ],
    ids=["few sites, many numbers", "equal names at many sites", "patients numbered by examination", "no site"],
)
def test_numbered_patients_are_no_visits(tmp_path: Path, glioma: Task, folders: list[str]) -> None:
    touch(tmp_path, *(f"{folder}/t1.nii.gz" for folder in folders))

    cases = find_cases(tmp_path, glioma)

    assert {case.patient for case in cases} == {Path(folder).name for folder in folders}
    assert all(case.date is None for case in cases)


def test_upenn_gbm_tells_before_and_after_surgery(tmp_path: Path, glioma: Task) -> None:
    for name in ("UPENN-GBM-00001_11", "UPENN-GBM-00001_21", "UPENN-GBM-00002_11"):
        touch(tmp_path / name, *(f"{name}_{s}.nii.gz" for s in ("T1", "T1GD", "T2", "FLAIR")))

    cases = find_cases(tmp_path, glioma)

    assert [(case.patient, case.date) for case in cases] == [
        ("UPENN-GBM-00001", "11"),
        ("UPENN-GBM-00001", "21"),
        ("UPENN-GBM-00002", "11"),
    ]


def test_numbered_patients_of_a_site_in_one_folder(tmp_path: Path, glioma: Task) -> None:
    touch(tmp_path, *(f"UPENN/UPENN_{n}_{s}.nii.gz" for n in ("00010001", "00010002") for s in ("t1", "seg")))

    assert [(c.patient, c.site) for c in find_cases(tmp_path, glioma)] == [
        ("UPENN_00010001", "UPENN"),
        ("UPENN_00010002", "UPENN"),
    ]


def test_the_same_patient_name_at_two_sites_gives_two_names(tmp_path: Path, glioma: Task) -> None:
    touch(tmp_path, "A/P1/t1.nii.gz", "B/P1/t1.nii.gz", "B/P2/t1.nii.gz")

    assert [c.name for c in find_cases(tmp_path, glioma)] == ["A_P1", "B_P1", "P2"]


def test_unknown_files_are_left_out_and_said(tmp_path: Path, glioma: Task, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "t1.nii.gz", "adc.nii.gz")

    (case,) = find_cases(tmp_path, glioma)

    assert set(case.images) == {"t1"}
    assert "adc.nii.gz" in caplog.text


DECATHLON = {
    "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
    "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
}


def test_decathlon_brain_tumours_have_other_channels_and_labels(
    tmp_path: Path, glioma: Task, save_nifti: SaveNifti
) -> None:
    channels = np.random.default_rng(0).random((4, 5, 6, 4)).astype(np.float32)
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0, 0, :3] = 1, 2, 3
    save_nifti(tmp_path / "imagesTr/BRATS_001.nii.gz", channels)
    save_nifti(tmp_path / "labelsTr/BRATS_001.nii.gz", labels)
    save_nifti(tmp_path / "imagesTs/BRATS_485.nii.gz", channels)
    (tmp_path / "dataset.json").write_text(json.dumps(DECATHLON))

    cases = find_cases(tmp_path, glioma)
    loaded = load_case(cases[0], glioma)

    assert [(c.name, c.labels is not None) for c in cases] == [("BRATS_001", True), ("BRATS_485", False)]
    for name, channel in {"flair": 0, "t1": 1, "t1ce": 2, "t2": 3}.items():
        np.testing.assert_array_equal(loaded.images[name].array, channels[..., channel])
    assert loaded.labels is not None
    assert loaded.labels.array[0, 0, :4].tolist() == [2, 1, 3, 0]  # ED, NCR, ET as the task numbers them


def test_nnunet_with_regions(tmp_path: Path, glioma: Task) -> None:
    for number in range(4):
        touch(tmp_path, f"imagesTr/BraTS-GLI-00002-001_{number:04}.nii.gz")
    touch(tmp_path, "labelsTr/BraTS-GLI-00002-001.nii.gz")
    dataset = {
        "channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"},
        "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))

    (case,) = find_cases(tmp_path, glioma)

    assert (case.name, case.patient) == ("BraTS-GLI-00002-001", "BraTS-GLI-00002")
    numbers = {sequence: path.name[-11:-7] for sequence, path in case.images.items()}
    assert numbers == {"t1": "0000", "t1ce": "0001", "t2": "0002", "flair": "0003"}
    assert case.label_map == {0: 0, 1: 2, 2: 1, 3: 3}
    assert case.channels == {}


@pytest.mark.parametrize(
    ("task", "channel", "sequence", "labels", "expected"),
    [
        ("lits-liver", "CT", "ct", {"0": "background", "1": "liver", "2": "cancer"}, {0: 0, 1: 1, 2: 2}),
        ("acdc-cardiac", "cineMRI", "cine", {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}, {0: 0, 1: 1, 2: 2, 3: 3}),
        ("lgg-flair", "FLAIR", "flair", {"background": 0, "glioma": 1}, {0: 0, 1: 1}),
    ],
)
def test_other_dataset_files(
    tmp_path: Path, task: str, channel: str, sequence: str, labels: dict[str, Any], expected: dict[int, int]
) -> None:
    touch(tmp_path, "imagesTr/case_7.nii.gz", "labelsTr/case_7.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": channel}, "labels": labels}))

    (case,) = find_cases(tmp_path, load_task(task))

    assert case.label_map == expected
    assert case.channels == {}
    assert case.images == {sequence: tmp_path / "imagesTr/case_7.nii.gz"}


def test_lits(tmp_path: Path) -> None:
    touch(tmp_path, "volume_pt1/volume-0.nii", "volume_pt1/volume-10.nii", "segmentations/segmentation-0.nii")
    touch(tmp_path, "segmentations/segmentation-10.nii")

    cases = find_cases(tmp_path, load_task("lits-liver"))

    assert [c.patient for c in cases] == ["0", "10"]
    assert [(c.images["ct"].name, c.labels.name) for c in cases if c.labels] == [
        ("volume-0.nii", "segmentation-0.nii"),
        ("volume-10.nii", "segmentation-10.nii"),
    ]


def test_acdc(tmp_path: Path) -> None:
    for frame in ("01", "12"):
        touch(tmp_path, *(f"training/patient001/patient001_frame{frame}{end}.nii.gz" for end in ("", "_gt")))
    touch(tmp_path, "training/patient001/patient001_4d.nii.gz", "training/patient001/Info.cfg")

    cases = find_cases(tmp_path, load_task("acdc-cardiac"))

    assert [(c.name, c.patient, c.date) for c in cases] == [
        ("patient001_frame01", "patient001", "frame01"),
        ("patient001_frame12", "patient001", "frame12"),
    ]
    assert all(set(c.images) == {"cine"} and c.labels and c.site is None for c in cases)


def test_class_folders_keep_their_published_split(tmp_path: Path) -> None:
    task = load_task("chest-ct-cancer")
    touch(tmp_path, "train/normal/1.png", "valid/large.cell.carcinoma_left.hilum_T2/1.png", "test/normal/1.PNG")

    cases = find_cases(tmp_path, task, require_labels=True)
    split = split_cases(tmp_path, cases)

    assert [(c.target, c.part) for c in cases] == [(2, "test"), (2, "train"), (1, "validation")]
    assert (len(split.train), len(split.validation), len(split.test)) == (1, 1, 1)
    assert not (tmp_path / "splits.json").exists()


@needs_shared
def test_the_shared_data_are_read() -> None:
    lgg = find_cases(SHARED / "lgg", load_task("lgg-flair"), require_labels=True)
    assert Counter(c.site for c in lgg) == {"CS": 12, "DU": 41, "FG": 10, "HT": 30}
    assert sum("t1" not in c.images for c in lgg) == 4

    visits = find_cases(SHARED / "progression", load_task("lgg-flair"))
    assert Counter(Counter(c.patient for c in visits).values()) == {2: 7}

    pictures = find_cases(SHARED / "chest-ct", load_task("chest-ct-cancer"))
    assert Counter(c.part for c in pictures) == {"train": 613, "validation": 72, "test": 315}


def test_hidden_files_and_folders_are_left_alone(tmp_path: Path) -> None:
    for folder in ("P1", ".P2.part"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "flair.nii.gz").touch()
    (tmp_path / "P1" / "._flair.nii.gz").touch()

    cases = find_cases(tmp_path, load_task("brats-glioma"))

    assert [case.name for case in cases] == ["P1"]
