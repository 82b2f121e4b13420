"""Tasks: the built-in ones hold together, a user's own takes their place, and a task survives its file."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinseg.errors import InputError
from twinseg.tasks import Sequence, Task, list_tasks, load_task

BUILT_IN = ["acdc-cardiac", "brats-glioma", "chest-ct-cancer", "lgg-flair", "lits-liver"]


@pytest.fixture(autouse=True)
def no_tasks_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWINSEG_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "tasks").mkdir(parents=True)
    return tmp_path / "home" / "tasks"


def test_the_five_tasks_are_built_in() -> None:
    assert [task.name for task in list_tasks()] == BUILT_IN


@pytest.mark.parametrize("name", BUILT_IN)
def test_toml_gives_back_the_same_task_and_fingerprint(name: str) -> None:
    task = load_task(name)

    again = Task.from_toml(task.to_toml())

    assert again == task
    assert again.fingerprint() == task.fingerprint()
    assert hash(again) == hash(task)


@settings(deadline=None)
@given(st.text(min_size=1), st.text(), st.floats(0.1, 10))
def test_toml_holds_any_text_and_number(name: str, title: str, spacing: float) -> None:
    task = dataclasses.replace(
        load_task("lgg-flair"), sequences=(Sequence(name, title, (title,)),), spacing=(spacing, 1.0, 1.0)
    )

    assert Task.from_toml(task.to_toml()) == task


def test_glioma_regions_nest_and_old_labels_are_known() -> None:
    task = load_task("brats-glioma")

    regions = {region.name: set(region.labels) for region in task.regions}

    assert regions == {"WT": {1, 2, 3}, "TC": {1, 3}, "ET": {3}}
    assert task.legacy_labels == {4: 3}
    assert [sequence.name for sequence in task.sequences] == ["t1", "t1ce", "t2", "flair"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_terminology_is_in_slicers_form(name: str) -> None:
    code = r"\w+\^[\w]+\^[^~^]+"
    form = rf"[^~]+~{code}~{code}~\^\^~[^~]+~({code}|\^\^)~\^\^"

    for label in load_task(name).labels:
        assert re.fullmatch(form, label.terminology), label.terminology


def test_a_fingerprint_tells_tasks_apart() -> None:
    task = load_task("lgg-flair")

    assert dataclasses.replace(task, spacing=(1.0, 1.0, 1.0)).fingerprint() != task.fingerprint()


def test_a_users_task_hides_the_built_in_one(no_tasks_of_the_users_own: Path) -> None:
    own = dataclasses.replace(load_task("lgg-flair"), title="Ours")
    (no_tasks_of_the_users_own / "lgg-flair.toml").write_text(own.to_toml(), encoding="utf-8")

    assert load_task("lgg-flair").title == "Ours"
    assert len(list_tasks()) == len(BUILT_IN)


def test_a_task_is_read_from_a_path(tmp_path: Path) -> None:
    file = tmp_path / "mein Täsk.toml"
    file.write_text(load_task("acdc-cardiac").to_toml(), encoding="utf-8")

    assert load_task(file) == load_task("acdc-cardiac")


def test_an_unknown_task_is_told_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="kidney: no such task; known tasks are acdc-cardiac, brats-glioma"):
        load_task("kidney")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("spacing = [1.0, 1.0, 1.0]", ""), "'spacing' is missing"),
        (("spacing = [1.0, 1.0, 1.0]", "spacing = [1.0, 1.0]"), "'spacing' needs 3 numbers"),
        (("spacing = [1.0, 1.0, 1.0]", "spacing = [1.0, 1.0, 0.0]"), "must be positive"),
        (('kind = "segmentation"', 'kind = "drawing"'), "kind 'drawing'"),
        (('kind = "segmentation"', 'kind = "segmentation"\ncolour = "red"'), "unknown entry 'colour'"),
        (("patch = [128, 128, 128]", "patch = [100, 128, 128]"), "100 voxels along axis 0, is no multiple"),
        (("labels = [1, 2, 3]", "labels = [1, 2, 7]"), "unknown label 7"),
        (("value = 2", "value = 1"), "stands twice"),
        (('normalization = "zscore"', 'normalization = "window"'), "a window belongs to"),
        (('name = "brats-glioma"', 'name = "brats-glioma'), "not a valid task"),
    ],
)
def test_a_faulty_task_file_is_told_in_one_line(tmp_path: Path, change: tuple[str, str], fault: str) -> None:
    text = load_task("brats-glioma").to_toml()
    assert change[0] in text
    file = tmp_path / "faulty.toml"
    file.write_text(text.replace(*change), encoding="utf-8")

    with pytest.raises(InputError, match=re.escape(fault)) as told:
        load_task(file)

    assert str(file) in str(told.value)
    assert "\n" not in str(told.value)


def test_reading_tasks_does_not_import_heavy_libraries() -> None:
    heavy = "('torch', 'monai', 'scipy', 'nibabel')"
    program = f"import sys, twinseg.tasks as t; t.list_tasks(); print([m for m in {heavy} if m in sys.modules])"

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=_package_folder()
    )

    assert done.stdout.strip() == "[]"


def _package_folder() -> Path:
    import twinseg

    assert twinseg.__file__
    return Path(twinseg.__file__).parent.parent
