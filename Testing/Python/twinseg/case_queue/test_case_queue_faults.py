"""The case queue under faults: killed at any moment, several writers, a full disk, a lost index. No case is lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinseg import case_queue
from twinseg.case_queue import CaseQueue
from twinseg.errors import InputError, OutOfSpaceError
from twinseg.tasks import Task
from twinseg.volumes import Volume, read_image, read_labels

Submission = Callable[..., dict[str, Any]]
LIBRARY = Path(__file__).resolve().parents[4] / "TwinSegSlicer"

# Submits scan after scan of a few patients, corrects and withdraws some, and says what was acknowledged.
WRITER = """
import sys
import numpy as np
from pathlib import Path
from twinseg.case_queue import CaseQueue
from twinseg.tasks import Task
from twinseg.volumes import Volume

folder, task, who, first, count = sys.argv[1:]
task = Task.from_toml(Path(task).read_text())
queue = CaseQueue(folder)
for number in range(int(first), int(first) + int(count)):
    random = np.random.default_rng(number)
    image = Volume(random.integers(0, 900, (20, 20, 20)).astype(np.int16), np.eye(4))
    for version in (1, 2):
        labels = np.zeros((20, 20, 20), np.uint8)
        labels[:version, 0, 0] = 2
        name = queue.add(task=task, patient=f"{who}{number % 3}", images={"t1": image, "flair": image},
                         labels=Volume(labels, image.affine), note=str(number)).name
        print("added", name, version, number, flush=True)
    if number % 5 == 4:
        queue.withdraw(name, "no consent", remove_files=number % 2 == 0)
        print("withdrawn", name, number, number % 2, flush=True)
print("done", flush=True)
"""


@pytest.fixture
def write(tmp_path: Path, toy: Task) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that submits `count` scans from the number `first` on; none outlives its test."""
    (tmp_path / "toy.toml").write_text(toy.to_toml(), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(LIBRARY), os.environ.get("PYTHONPATH", "")])}
    processes = []

    def start(first: int, count: int, who: str = "patient", folder: Path = tmp_path / "cases") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITER, str(folder), str(tmp_path / "toy.toml"), who, str(first), str(count)]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def assert_whole(queue: CaseQueue) -> None:
    """Index, records and files agree, and there is nothing else."""
    cases = queue.cases()
    assert {case.name for case in cases} == {path.name for path in queue.folder.iterdir() if path.is_dir()}
    for case in cases:
        assert (case.folder / "case.json").read_text("utf-8") == case.to_json()
        assert {file.name for file in case.folder.iterdir()} == {*case.files, "case.json"}
        if not case.files_removed:
            for version, correction in enumerate(case.corrections, 1):
                assert np.count_nonzero(read_labels(case.folder / correction.labels).array) == version
            expected = np.random.default_rng(int(case.corrections[0].note)).integers(0, 900, (20, 20, 20))
            assert all(np.array_equal(read_image(file).array, expected) for file in case.image_files.values())


def test_killed_at_random_moments_no_case_is_lost_and_none_is_half(
    tmp_path: Path, write: Callable[..., subprocess.Popen[str]]
) -> None:
    moments = random.Random(7)
    acknowledged: dict[str, int] = {}
    withdrawn: set[str] = set()
    first = 0
    for _ in range(12):
        writer = write(first, 1000)
        assert writer.stdout is not None
        lines = [writer.stdout.readline()]  # it has begun
        time.sleep(moments.uniform(0, 0.3))
        writer.kill()
        lines += writer.stdout.readlines()

        for kind, name, *numbers in (line.split() for line in lines if line.endswith("\n")):
            first = int(numbers[0 if kind == "withdrawn" else 1]) + 1
            if kind == "added":
                acknowledged[name] = int(numbers[0])
            else:
                withdrawn.add(name)
        queue = CaseQueue(tmp_path / "cases")
        assert_whole(queue)
        first += 1  # what the kill interrupted may be there or not

    cases = {case.name: case for case in queue.cases()}
    assert acknowledged.keys() <= cases.keys()
    assert all(len(cases[name].corrections) >= version for name, version in acknowledged.items())
    assert all(cases[name].state == "withdrawn" for name in withdrawn)
    assert len(acknowledged) >= 12


def test_several_writers_at_once_on_a_queue_that_is_not_there_yet(
    tmp_path: Path, write: Callable[..., subprocess.Popen[str]]
) -> None:
    writers = [write(10 * number, 6) for number in range(4)]

    assert [writer.communicate(timeout=240)[0].splitlines()[-1] for writer in writers] == ["done"] * 4

    queue = CaseQueue(tmp_path / "cases")
    assert_whole(queue)
    assert len(queue.cases()) == 24
    assert len({case.patient for case in queue.cases()}) == 3  # so all of them used one key
    assert {len(case.corrections) for case in queue.cases()} == {2}


def test_what_a_killed_process_left_behind_is_removed(queue: CaseQueue, submission: Submission) -> None:
    case = queue.add(**submission())
    (queue.folder / ".part-1234").mkdir()
    (queue.folder / ".part-1234" / "t1.nii.gz").write_bytes(b"half")
    for left in ("labels-2.nii.gz", ".a1b2c3d4-labels-2.nii.gz"):
        (case.folder / left).write_bytes(b"half")
    (case.folder / "case.json").write_text("{}")

    again = CaseQueue(queue.folder)

    assert {path.name for path in again.folder.iterdir() if path.is_dir()} == {case.name}
    assert {file.name for file in case.folder.iterdir()} == {*case.files, "case.json"}
    assert (case.folder / "case.json").read_text("utf-8") == case.to_json()


def test_a_lost_index_is_made_anew_from_the_records(queue: CaseQueue, submission: Submission) -> None:
    queue.add(**submission(number=1))
    queue.add(**submission(number=1, version=1))
    queue.withdraw(queue.add(**submission(number=2)).name, "why not")
    before = queue.cases()
    for file in queue.folder.glob("index.sqlite*"):
        file.unlink()

    again = CaseQueue(queue.folder)

    assert again.cases() == before
    assert len(again.cases_for_training("toy")) == 1


@pytest.mark.parametrize("content", [b"this is no database at all" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_index_is_one_line_that_says_what_to_do(
    queue: CaseQueue, submission: Submission, content: bytes
) -> None:
    queue.add(**submission())
    for file in queue.folder.glob("index.sqlite*"):
        file.unlink()
    (queue.folder / "index.sqlite").write_bytes(content)

    with pytest.raises(InputError, match="it is damaged; move it away, and it is made anew"):
        CaseQueue(queue.folder)


def test_a_damaged_record_stops_nobody(queue: CaseQueue, submission: Submission) -> None:
    strange = queue.folder / "strange"
    strange.mkdir()
    (strange / "case.json").write_bytes(b"\xff{")

    assert CaseQueue(queue.folder).add(**submission()).state == "submitted"
    assert (strange / "case.json").is_file()


def test_a_queue_that_is_busy_says_so(
    queue: CaseQueue, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(case_queue.sqlite3, "connect", lambda file, **how: connect(file, **how | {"timeout": 0.1}))
    other = connect(queue.folder / "index.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(InputError, match="another program is writing to it"):
        queue.add(**submission())

    assert queue.cases() == []  # reading goes on
    other.close()


# --- a full disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path, mount_small_disk: Callable[[Path, str], Path]) -> Path:
    return mount_small_disk(tmp_path / "disk", "400k")


def test_a_full_disk_leaves_the_queue_as_it_was(disk: Path, toy: Task) -> None:
    """Whatever the room that is left: a case is added whole, or the user is told and nothing is there."""
    queue = CaseQueue(disk / "cases")
    noise = np.random.default_rng(0).integers(0, 30000, (24, 24, 24)).astype(np.int16)  # 30 kB that do not compress

    def submit(number: int, version: int = 1) -> None:
        labels = np.zeros(noise.shape, np.uint8)
        labels[:version, 0, 0] = 2
        images = {"t1": Volume(noise + number, np.eye(4))}
        drawn = Volume(labels, np.eye(4))
        queue.add(task=toy, patient=f"patient {number}", images=images, labels=drawn, note=str(number))

    submit(0)
    told: list[str] = []
    added = 0
    ballast = disk / "ballast"
    for number in range(1, 31):
        before = queue_state(disk)
        ballast.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - 4096 * (number - 1))))
        try:
            submit(number)
            added += 1
        except OutOfSpaceError as error:
            told.append(str(error))
            ballast.unlink()
            assert queue_state(disk) == before
        else:
            ballast.unlink()
            case = next(case for case in queue.cases() if case.corrections[0].note == str(number))
            queue.withdraw(case.name, "to make room", remove_files=True)
        ballast.unlink(missing_ok=True)

    assert len(told) >= 5
    assert all("no space left" in line and "\n" not in line for line in told)
    assert added >= 5
    submit(0, version=2)
    assert len(CaseQueue(disk / "cases").cases()) == 1 + added


def test_a_full_disk_keeps_the_old_version_of_the_labels(disk: Path, toy: Task) -> None:
    queue = CaseQueue(disk / "cases")
    image = Volume(np.random.default_rng(0).integers(0, 30000, (24, 24, 24)).astype(np.int16), np.eye(4))
    random = np.random.default_rng(1)

    def submit() -> None:
        labels = Volume(random.choice(np.array([0, 2, 7], np.uint8), image.shape), np.eye(4))  # 3 kB
        queue.add(task=toy, patient="a", images={"t1": image}, labels=labels)

    submit()
    before = queue_state(disk)
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free))

    with pytest.raises(OutOfSpaceError):
        submit()

    (disk / "ballast").unlink()
    assert queue_state(disk) == before
    submit()
    assert len(queue.cases()[0].corrections) == 2


def test_a_queue_cannot_be_made_on_a_full_disk(disk: Path) -> None:
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free))

    with pytest.raises(OutOfSpaceError, match="no space left"):
        CaseQueue(disk / "cases")

    (disk / "ballast").unlink()
    assert CaseQueue(disk / "cases").cases() == []


@pytest.mark.skipif(os.name != "posix", reason="the size of files is limited on POSIX only")
def test_a_file_that_does_not_fit_leaves_the_queue_as_it_was(
    queue: CaseQueue, submission: Submission, toy: Task
) -> None:
    import resource

    queue.add(**submission())
    before = queue_state(queue.folder.parent)
    noise = Volume(np.random.default_rng(0).integers(0, 30000, (40, 40, 40)).astype(np.int16), np.eye(4))
    labels = Volume((noise.array > 15000).astype(np.uint8) * 2, np.eye(4))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(OutOfSpaceError, match="no space left to write it"):
            queue.add(task=toy, patient="a", images={"t1": noise}, labels=labels)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert queue_state(queue.folder.parent) == before


def queue_state(disk: Path) -> tuple[set[str], list[str]]:
    """All files but SQLite's own, and all records."""
    files = {str(file) for file in (disk / "cases").rglob("*") if not file.name.startswith("index.sqlite")}
    index = sqlite3.connect(f"file:{disk / 'cases' / 'index.sqlite'}?mode=ro", uri=True)
    records = [json.dumps(row) for row in index.execute("SELECT * FROM cases ORDER BY name")]
    index.close()
    return files, records
