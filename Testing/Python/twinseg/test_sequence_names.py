"""Which sequence a file holds, by its name alone."""

from __future__ import annotations

import pytest

from twinseg.sequence_names import sequence_in
from twinseg.tasks import Task


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("t1", ("t1", "")),
        ("T1CE", ("t1ce", "")),
        ("BraTS20_Training_001_flair", ("flair", "BraTS20_Training_001")),
        ("BraTS2021_00000_t1ce", ("t1ce", "BraTS2021_00000")),
        ("BraTS-GLI-00000-000-t1n", ("t1", "BraTS-GLI-00000-000")),
        ("BraTS-GLI-00000-000-t1c", ("t1ce", "BraTS-GLI-00000-000")),
        ("BraTS-GLI-00000-000-t2w", ("t2", "BraTS-GLI-00000-000")),
        ("BraTS-GLI-00000-000-t2f", ("flair", "BraTS-GLI-00000-000")),
        ("BraTS-GLI-00000-000-seg", ("labels", "BraTS-GLI-00000-000")),
        ("patient 7_T1-Gd", ("t1ce", "patient 7")),
        ("Jürgen.T2.FLAIR", ("flair", "Jürgen")),
        ("P1_flair_seg", ("labels", "P1")),
        ("t1map", None),
        ("dwi", None),
        ("split1", None),
    ],
)
def test_the_longest_name_of_a_sequence_wins(glioma: Task, stem: str, expected: tuple[str, str] | None) -> None:
    assert sequence_in(stem, glioma) == expected


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("sub-01_ce-gadolinium_T1w", ("t1ce", "sub-01")),
        ("sub-P7_ses-001_ce-gadolinium_desc-preproc_T1w", ("t1ce", "sub-P7_ses-001_desc-preproc")),
        ("sub-01_acq-postcontrast_T1w", ("t1ce", "sub-01")),
        ("gad_t1", ("t1ce", "")),
        ("P1_gd_t1w", ("t1ce", "P1")),
        ("P1_KM_T1", ("t1ce", "P1")),
        ("P1_contrast-T1", ("t1ce", "P1")),
        ("P1_post-contrast_T1", ("t1ce", "P1")),
        ("P1_contrast-enhanced_T1", ("t1ce", "P1")),
        ("P1_+c_T1", ("t1ce", "P1")),
        ("P1_c+_T1", ("t1ce", "P1")),
        ("T1w_ce", ("t1ce", "")),
        ("P1_T1_post_contrast", ("t1ce", "P1")),
        ("T1+C", ("t1ce", "")),
        ("P1_gd_t1w_seg", ("labels", "P1")),
        ("sub-01_ce-none_T1w", ("t1", "sub-01")),
        ("P1_pre-contrast_T1", ("t1", "P1")),
        ("P1_without_gd_T1", ("t1", "P1")),
        ("P1_unenhanced_t1", ("t1", "P1")),
        ("P1_T1_non_contrast", ("t1", "P1")),
        ("post-op_P1_t1", ("t1", "post-op_P1")),
        ("P1_post-op_T1", ("t1", "P1_post-op")),
        ("Gadsby_t1", ("t1", "Gadsby")),
        ("Lance_t1", ("t1", "Lance")),
        ("C_t1", ("t1", "C")),
        ("P1_gd_flair", ("flair", "P1_gd")),
    ],
)
def test_a_t1_with_contrast_is_none_without(glioma: Task, stem: str, expected: tuple[str, str]) -> None:
    assert sequence_in(stem, glioma) == expected
