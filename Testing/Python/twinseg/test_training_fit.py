"""The task of a training is fitted to how fine the data are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from twinseg.cases import find_cases
from twinseg.tasks import Task, load_task
from twinseg.training_run import fit_to_data

SaveNifti = Callable[..., Path]


def cases_of(folder: Path, save_nifti: SaveNifti, task: Task, *spacings: tuple[float, float, float]):
    for number, spacing in enumerate(spacings):
        save_nifti(folder / f"P{number}" / "t1.nii.gz", affine=np.diag([*spacing, 1]))
        save_nifti(folder / f"P{number}" / "flair.nii.gz", affine=np.diag([9.0, 9, 9, 1]))
    return find_cases(folder, task)


@pytest.mark.parametrize(
    ("spacing", "fitted", "patch"),
    [
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (16, 16, 16)),
        ((0.5, 0.7, 0.9), (1.0, 1.0, 1.0), (16, 16, 16)),  # finer data: as asked
        ((1.04, 1.0, 1.0), (1.0, 1.0, 1.0), (16, 16, 16)),  # within the tolerance
        ((2.0, 2.0, 2.0), (2.0, 2.0, 2.0), (8, 8, 8)),
        ((0.5, 1.0, 5.0), (1.0, 1.0, 5.0), (16, 16, 4)),
        ((3.0, 1.2, 1.0), (3.0, 1.2, 1.0), (8, 16, 16)),
        ((90.0, 90.0, 90.0), (90.0, 90.0, 90.0), (4, 4, 4)),
    ],
)
def test_coarse_data_give_a_coarse_task_and_fine_data_the_one_that_was_asked_for(
    tmp_path: Path, save_nifti: SaveNifti, toy: Task, spacing: tuple, fitted: tuple, patch: tuple
) -> None:
    made = fit_to_data(toy, cases_of(tmp_path, save_nifti, toy, spacing))

    assert made == replace(toy, spacing=fitted, patch=patch)


def test_most_of_the_images_decide(tmp_path: Path, save_nifti: SaveNifti, toy: Task) -> None:
    cases = cases_of(tmp_path, save_nifti, toy, (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (2.0, 2.0, 2.0))

    assert fit_to_data(toy, cases).spacing == (2.0, 2.0, 2.0)


def test_axes_are_taken_in_ras_order(tmp_path: Path, save_nifti: SaveNifti, toy: Task) -> None:
    sagittal = np.array([[0, 0, -5.0, 0], [1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
    save_nifti(tmp_path / "P" / "t1.nii.gz", affine=sagittal)

    assert fit_to_data(toy, find_cases(tmp_path, toy)).spacing == (5.0, 1.0, 2.0)


def test_a_task_with_an_uneven_spacing_stays_as_it_is(tmp_path: Path, save_nifti: SaveNifti, toy: Task) -> None:
    third = replace(toy, spacing=(1 / 3, 2 / 3, 1.0))

    assert fit_to_data(third, cases_of(tmp_path, save_nifti, toy, (0.3, 0.3, 0.3))) == third


@pytest.mark.parametrize("name", ["brats-glioma", "lgg-flair", "lits-liver", "acdc-cardiac"])
def test_a_fitted_task_is_still_a_task(tmp_path: Path, save_nifti: SaveNifti, name: str) -> None:
    task = load_task(name)
    save_nifti(tmp_path / "P" / f"{task.sequences[0].name}.nii.gz", affine=np.diag([3.3, 2.7, 7.1, 1]))

    made = fit_to_data(task, find_cases(tmp_path, task))

    assert Task.from_toml(made.to_toml()) == made
    assert made.spacing == (3.3, 2.7, max(7.1, task.spacing[2]))
