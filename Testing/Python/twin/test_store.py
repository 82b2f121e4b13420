"""The twin's folder: what is kept, what is refused, and that nothing but whole revisions is ever seen."""

from __future__ import annotations

import builtins
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinseg.errors import InputError
from twinseg.twin.store import Twin
from twinseg.twin.store_files import locked
from twinseg.twin.store_records import days_since, refuse_calendar_dates
from twinseg.twin.store_verify import verify
from twinseg.volumes import Volume, write_volume

LIBRARY = Path(__file__).resolve().parents[3] / "TwinSegSlicer"


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name[:5] != ".lock"
    }


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_a_twin_is_read_back_as_it_was_written(twin: Twin, scan) -> None:
    again = Twin.open(twin.folder)

    assert (again.pseudonym, again.task, again.revision) == ("P-7", "brats-glioma", 3)
    assert [(point.name, point.day) for point in again.timepoints] == [("000", 0), ("001", 60)]
    baseline, follow_up = again.timepoints
    np.testing.assert_array_equal(again.image(baseline, "t1ce").array, scan(0)["t1ce"].array)
    labels = again.labels(follow_up)
    assert labels is not None
    np.testing.assert_array_equal(labels.array, scan(60, 6.0)["labels"].array)
    assert again.frame is not None
    assert again.frame.shape == (24, 20, 16)
    assert baseline.registration is None
    assert follow_up.registration == {"kind": "rigid", "agreement": 0.9}


def test_the_most_trusted_and_then_the_newest_segmentation_counts(twin: Twin, scan) -> None:
    twin.add_segmentation("001", scan(0, 3.0)["labels"], "model", model="abc")
    assert twin.timepoint("001").segmentation.origin == "expert"

    drawn = twin.add_segmentation("001", scan(0, 4.0)["labels"], "expert")

    point = Twin.open(twin.folder).timepoint("001")
    assert [s.origin for s in point.segmentations] == ["expert", "model", "expert"]
    assert point.segmentation == drawn
    assert point.segmentations[1].model == "abc"


def test_a_document_that_is_replaced_is_kept_in_history(twin: Twin) -> None:
    for dose in (4, 8):
        twin.set_document("treatments.json", {"steroids": [{"first_day": 3, "dexamethasone_mg": dose}]})

    kept = [json.loads(path.read_bytes()) for path in sorted((twin.folder / "history").glob("*treatments.json"))]

    assert kept == [{}, {"steroids": [{"first_day": 3, "dexamethasone_mg": 4}]}]
    assert twin.document("treatments.json")["steroids"][0]["dexamethasone_mg"] == 8
    assert verify(twin.folder).whole


def test_records_are_sealed_and_a_forecast_is_scored_only_by_a_later_scan(twin: Twin, scan) -> None:
    forecast = twin.add_record("forecasts", {"day": 120, "median_ml": 31.5}, {"members.npz": b"PK..."})
    with pytest.raises(InputError, match="was known"):
        twin.score_forecast(forecast.name, "001", {"error_ml": 2})
    later = scan(120, 6.5)
    twin.add_timepoint(120, {"t1ce": later["t1ce"]}, to_baseline=np.eye(4))

    scored = twin.score_forecast(forecast.name, "002", {"error_ml": 2.5})

    assert scored.content == {"day": 120, "median_ml": 31.5}
    assert scored.scores == ({"timepoint": "002", "error_ml": 2.5},)
    assert twin.read(scored.files["members.npz"]) == b"PK..."
    assert [record.name for record in twin.records("growth")] == []
    assert verify(twin.folder).whole


def test_neither_the_header_nor_the_path_of_an_image_is_kept(tmp_path: Path, scan) -> None:
    drawn = scan()
    header = nibabel.Nifti1Header()
    header["descrip"], header["db_name"] = b"MUELLER^ZOE 1961-04-12", b"MUELLER"
    file = tmp_path / "Mueller_Zoe_19610412.nii.gz"
    nibabel.save(nibabel.Nifti1Image(drawn["t1ce"].array, drawn["t1ce"].affine, header), file)
    from twinseg.volumes import read_image

    twin = Twin.create(tmp_path / "twin", task="brats-glioma")
    twin.add_timepoint(0, {"t1ce": read_image(file)})

    everything = b"".join(files_of(twin.folder).values()) + " ".join(files_of(twin.folder)).encode()
    stored = nibabel.load(twin.folder / twin.timepoints[0].images["t1ce"])
    assert bytes(stored.header["descrip"]).strip(b"\0") == b""
    for secret in (b"Mueller", b"MUELLER", b"1961", b"0412"):
        assert secret not in everything


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("day", "said"),
    [(60, "already"), (30, "comes before day 60"), (-5, "comes before"), (float("nan"), "number"), (10**6, "36525")],
)
def test_a_day_that_does_not_follow_is_refused_and_nothing_is_lost(twin: Twin, scan, day: float, said: str) -> None:
    before = files_of(twin.folder)

    with pytest.raises(InputError, match=said):
        twin.add_timepoint(day, {"t1ce": scan()["t1ce"]}, to_baseline=np.eye(4))

    assert files_of(twin.folder) == before
    assert len(twin.timepoints) == 2


def test_the_first_scan_is_day_0(tmp_path: Path, scan) -> None:
    with pytest.raises(InputError, match="baseline, which is day 0"):
        Twin.create(tmp_path / "twin", task="brats-glioma").add_timepoint(5, {"t1ce": scan()["t1ce"]})


def test_dates_become_days_and_bad_ones_are_refused() -> None:
    today = date(2024, 6, 1)

    assert days_since(date(2024, 2, 28), date(2024, 3, 1), today) == 2
    with pytest.raises(InputError, match="future"):
        days_since(date(2024, 2, 28), date(2024, 6, 2), today)
    with pytest.raises(InputError, match="out of order"):
        days_since(date(2024, 2, 28), date(2024, 2, 27), today)


@given(st.dates(date(1920, 1, 1), date(2090, 1, 1)), st.sampled_from(["%Y-%m-%d", "%Y%m%d", "%d.%m.%Y", "%m/%d/%Y"]))
def test_a_calendar_date_in_any_text_is_refused(day: date, written: str) -> None:
    with pytest.raises(InputError, match="reads as a date"):
        refuse_calendar_dates({"note": ["seen on " + day.strftime(written)]}, "record.json")


@given(st.lists(st.integers() | st.floats() | st.binary(min_size=32, max_size=32).map(bytes.hex)))
def test_numbers_and_hashes_are_no_dates(data: object) -> None:
    refuse_calendar_dates(data, "record.json")


def test_a_date_never_reaches_the_disk(twin: Twin) -> None:
    before = files_of(twin.folder)

    with pytest.raises(InputError, match="reads as a date"):
        twin.add_record("assessments", {"reason": "biopsy of 2024-03-05 showed necrosis"})

    assert files_of(twin.folder) == before


@pytest.mark.parametrize("pseudonym", ["Zoë Müller", "", "../x", "a" * 65, "19610412"])
def test_a_name_is_no_pseudonym(tmp_path: Path, pseudonym: str) -> None:
    if pseudonym:
        with pytest.raises(InputError):
            Twin.create(tmp_path / "twin", task="brats-glioma", pseudonym=pseudonym)
    else:
        assert Twin.create(tmp_path / "twin", task="brats-glioma").pseudonym.startswith("twin-")


def test_a_segmentation_on_another_grid_is_refused(twin: Twin) -> None:
    with pytest.raises(InputError, match="grid of none of its images"):
        twin.add_segmentation("001", Volume(np.zeros((5, 5, 5), np.uint8), np.eye(4)), "edited")


def test_a_folder_that_is_no_twin_or_not_empty_is_refused(tmp_path: Path, twin: Twin) -> None:
    with pytest.raises(InputError, match="no twin here"):
        Twin.open(tmp_path / "nothing")
    with pytest.raises(InputError, match="not empty"):
        Twin.create(twin.folder, task="brats-glioma")


def test_a_newer_schema_is_refused(twin: Twin) -> None:
    head = json.loads((twin.folder / "twin.json").read_text())
    (twin.folder / "twin.json").write_text(json.dumps({**head, "schema": 99}))

    with pytest.raises(InputError, match="update twinseg"):
        Twin.open(twin.folder)


# --- damage ----------------------------------------------------------------------------------------------------------


def test_verify_proves_a_whole_folder(twin: Twin) -> None:
    found = verify(twin.folder)

    assert found.whole
    assert found.revisions == 3
    assert found.files == len(files_of(twin.folder)) - 2  # all but twin.json and events.jsonl
    assert found.head == twin.events[-1]["hash"]


def test_every_flipped_byte_missing_and_foreign_file_is_found(twin: Twin) -> None:
    twin.add_record("growth", {"model": "logistic"}, {"posterior.npz": b"0123456789"})
    generator = random.Random(3)
    for path, content in files_of(twin.folder).items():
        file = twin.folder / path
        changed = bytearray(content)
        changed[generator.randrange(len(changed) - 1)] ^= 1  # but for the last line's end, which says nothing
        file.write_bytes(bytes(changed))
        assert not verify(twin.folder).whole, path
        file.unlink()
        assert not verify(twin.folder).whole, path
        file.write_bytes(content)
    assert verify(twin.folder).whole
    (twin.folder / "growth" / "note.txt").write_text("hello")
    assert verify(twin.folder).faults == ("growth/note.txt: this file is not the twin's",)


def test_an_end_that_was_cut_off_is_found_by_a_head_noted_earlier(twin: Twin) -> None:
    copy = files_of(twin.folder)
    twin.set_document("treatments.json", {"surgery": []})
    noted = verify(twin.folder).head
    for path in set(files_of(twin.folder)) - set(copy):
        (twin.folder / path).unlink()
    for path, content in copy.items():
        (twin.folder / path).write_bytes(content)

    assert verify(twin.folder).whole
    assert "cut off" in verify(twin.folder, expected_head=noted).faults[0]


def test_a_damaged_file_is_refused_when_it_is_read(twin: Twin) -> None:
    path = twin.timepoints[0].images["t1ce"]
    write_volume(twin.folder / path, Volume(np.ones((24, 20, 16)) * np.arange(16), np.eye(4)))

    with pytest.raises(InputError, match="was changed"):
        twin.image(twin.timepoints[0], "t1ce")


# --- one writer at a time --------------------------------------------------------------------------------------------


def test_two_writers_cannot_interleave(twin: Twin) -> None:
    other = Twin.open(twin.folder)
    twin.set_document("treatments.json", {"surgery": []})

    with pytest.raises(InputError, match="changed it meanwhile"):
        other.document("treatments.json")
    with pytest.raises(InputError, match="changed it meanwhile"):
        other.set_document("treatments.json", {"surgery": None})

    assert Twin.open(twin.folder).document("treatments.json") == {"surgery": []}
    assert verify(twin.folder).whole


def test_a_second_process_waits_and_is_told_who_writes(twin: Twin) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {str(LIBRARY)!r})
from pathlib import Path
from twinseg.twin.store_files import locked
with locked(Path({str(twin.folder)!r}), writing=True):
    print("holding", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holding\n"
    try:
        with (
            pytest.raises(InputError, match=rf"\(process {holder.pid}\)"),
            locked(twin.folder, writing=True, seconds=0.2),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()

    with locked(twin.folder, writing=True, seconds=0.2):  # a dead owner's lock is nobody's
        pass


def test_many_processes_that_add_at_once_lose_nothing(twin: Twin) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(LIBRARY)!r})
from twinseg.errors import InputError
from twinseg.twin.store import Twin
for number in range(5):
    while True:
        try:
            Twin.open({str(twin.folder)!r}).add_record("growth", {{"by": int(sys.argv[1]), "number": number}})
            break
        except InputError as error:
            assert "meanwhile" in str(error), error
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, str(n)]) for n in range(3)]

    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    written = [(r.content["by"], r.content["number"]) for r in Twin.open(twin.folder).records("growth")]
    assert sorted(written) == [(n, number) for n in range(3) for number in range(5)]
    assert verify(twin.folder).whole


# --- crashes ---------------------------------------------------------------------------------------------------------


WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from twinseg.twin.store import Twin
twin = Twin.open(sys.argv[2])
print("ready", flush=True)
for number in range(10_000):
    twin.add_record("growth", {"number": twin.revision}, {"a.bin": bytes(5000), "b.bin": bytes(70_000)})
    twin.set_document("treatments.json", {"steroids": [{"first_day": twin.revision}]})
    print(twin.revision, flush=True)
"""


def killed_writer(twin: Twin, seconds: float) -> int:
    """Start a process that writes, kill it after a while; the last revision that it said was done."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(LIBRARY), str(twin.folder)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    time.sleep(seconds)
    writer.kill()
    said = writer.communicate()[0].split("\n")[:-1]
    return int(said[-1]) if said else 0


@pytest.mark.parametrize("seed", range(4))
def test_kill_at_any_moment_leaves_the_old_or_the_new(twin: Twin, seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(3):
        acknowledged = killed_writer(twin, generator.uniform(0, 0.3))

        found = verify(twin.folder)

        assert found.whole, found.faults
        assert found.revisions >= acknowledged
    assert Twin.open(twin.folder).add_record("growth", {"after": "all"}).content == {"after": "all"}


def dies_at(number: int, module: object, name: str, write: Callable[[], object]) -> bool:
    """Whether a copy of this process, killed when it calls `module.name` for the n-th time, dies before it is done."""
    child = os.fork()
    if not child:
        real, left = getattr(module, name), [number]

        def dying(*arguments: object, **named: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        setattr(module, name, dying)
        write()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.skipif(os.name != "posix", reason="forks")
@pytest.mark.parametrize(
    ("module", "name"), [(os, "rename"), (os, "replace"), (os, "fsync"), (shutil, "rmtree"), (builtins, "open")]
)
def test_death_at_each_single_system_call_leaves_the_old_or_the_new(twin: Twin, module: object, name: str) -> None:
    seen = set()
    for number in range(100):
        before = Twin.open(twin.folder).document("treatments.json")
        new = {"surgery": [{"day": number}]}

        died = dies_at(
            number, module, name, lambda new=new: Twin.open(twin.folder).set_document("treatments.json", new)
        )

        after = Twin.open(twin.folder).document("treatments.json")
        assert after in (before, new)
        assert verify(twin.folder).whole
        seen.add("old" if after == before else "new")
        if not died:
            assert after == new
            break
    assert not died
    assert "new" in seen


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="rights do not bind root")
def test_a_read_only_folder_can_be_read(twin: Twin) -> None:
    twin.folder.chmod(0o500)
    try:
        assert Twin.open(twin.folder).revision == 3
        with pytest.raises(InputError, match="cannot be written"):
            twin.set_document("treatments.json", {"surgery": []})
    finally:
        twin.folder.chmod(0o700)


@pytest.mark.skipif(os.name != "posix", reason="RLIMIT_FSIZE")
def test_a_full_disk_leaves_the_old(twin: Twin) -> None:
    before = files_of(twin.folder)
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(LIBRARY)!r})
from twinseg.errors import OutOfSpaceError
from twinseg.twin.store import Twin
twin = Twin.open({str(twin.folder)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    twin.add_record("growth", {{}}, {{"large.bin": bytes(50_000)}})
except OutOfSpaceError:
    sys.exit(7)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7
    assert files_of(twin.folder) == before
    assert verify(twin.folder).whole
