"""Arms that are federations: what is made wrong or taken away at a site, and what is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from federations import changed_sites, run_arm, spoiled

from twinfed.client.case_source import CaseSource
from twinseg.errors import InputError
from twinseg.phantom import write_cohort
from twinseg.tasks import Task, load_task
from twinseg.volumes import Volume, read_labels

TINY = {
    "task": "brats-glioma",
    "spacing": 5.0,
    "patch": 16,
    "rounds": 2,
    "epochs": 1,
    "network": {"channels": [4, 4, 4, 4], "embedding": 12, "depth": 1, "heads": 1},
    "strategy": {"name": "fedavg"},
    "name": "trial",
    "seed": 0,
}
PHANTOMS = {"sites": 2, "patients": 4, "size": 24, "spacing": 6.0}


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, seed=1, **PHANTOMS)
    return {name: folder / name for name in ("SITE-01", "SITE-02")}


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("brats-glioma")


def label_maps(folder: Path, task: Task, part: str) -> list[np.ndarray]:
    return [read_labels(case.labels).array for case in CaseSource(folder=folder).find(task)[part] if case.labels]


@pytest.mark.parametrize("how", ["shift", "erode", "swap"])
def test_only_the_training_labels_of_the_named_site_are_wrong(
    sites: dict[str, Path], task: Task, tmp_path: Path, how: str
) -> None:
    changed = changed_sites(sites, task, tmp_path, spoil={"site": "SITE-02", "how": how})

    assert changed["SITE-01"] == sites["SITE-01"]
    before, after = (label_maps(one["SITE-02"], task, "train") for one in (sites, changed))
    assert any((one != other).any() for one, other in zip(before, after, strict=True))
    assert [one.shape for one in before] == [other.shape for other in after]
    for part in ("validation", "test"):
        for one, other in zip(*(label_maps(all_["SITE-02"], task, part) for all_ in (sites, changed)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_labels_shift_in_mm_erode_in_voxels_and_swap_onto_the_grid() -> None:
    labels = np.zeros((12, 12, 4), np.uint8)
    labels[4:9, 4:9, :] = 2
    one, other = Volume(labels, np.diag([5, 5, 5, 1])), Volume(np.full((6, 6, 2), 3, np.uint8), np.eye(4))

    np.testing.assert_array_equal(spoiled(one, "shift", other).array, np.roll(labels, (3, 3), (0, 1)))
    assert np.count_nonzero(spoiled(one, "erode", other).array) < np.count_nonzero(labels)
    assert spoiled(one, "swap", other).array.shape == labels.shape
    assert (spoiled(one, "swap", other).array == 3).all()
    with pytest.raises(InputError, match="shift, erode or swap"):
        spoiled(one, "paint", other)


def test_sequences_lack_in_all_cases_of_a_site_and_the_originals_stay(
    sites: dict[str, Path], task: Task, tmp_path: Path
) -> None:
    changed = changed_sites(sites, task, tmp_path, lacking={"SITE-01": ["t2", "flair"]})

    for part in ("train", "validation", "test"):
        for case in CaseSource(folder=changed["SITE-01"]).find(task)[part]:
            assert set(case.images) == {"t1", "t1ce"}
        for case in CaseSource(folder=sites["SITE-01"]).find(task)[part]:
            assert set(case.images) == {"t1", "t1ce", "t2", "flair"}


def test_an_arm_gives_the_columns_of_the_table(tmp_path: Path) -> None:
    settings = {**TINY, "phantoms": PHANTOMS, "local_only": True, "twin_epochs": 1}
    settings["spoil"] = {"site": "SITE-01", "how": "erode"}

    measured = run_arm(settings, tmp_path, "cpu", "trial")

    columns = measured["measures"]
    assert next(iter(columns)) == "Dice"
    assert {"alone", "twins at home", "least twin gain", "sensitivity", "specificity", "MB"} <= columns.keys()
    assert columns["Dice"] == measured["rounds"][-1]["union"]
    assert columns["MB"] * 1e6 < sum(measured["bytes"].values())
    assert len(measured["curves"]["Dice on test cases"]) == 3
