"""A folder of schema 1, as it was, brought up to today's."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from twinseg.errors import InputError
from twinseg.twin import store_files
from twinseg.twin.store import Twin
from twinseg.twin.store_verify import verify
from twinseg.volumes import write_volume


@pytest.fixture
def old(tmp_path: Path, scan) -> Path:
    """A twin of schema 1 with two scans; the second lies 5 mm to the patient's left, 7 behind, 3 above."""
    folder = tmp_path / "old"
    drawn = {name: scan(number) for number, name in enumerate(("000", "001"))}
    for name, day in (("000", 0), ("001", 60)):
        place = folder / "timepoints" / name
        (place / "images").mkdir(parents=True)
        paths = {"t1ce": f"timepoints/{name}/images/t1ce.nii.gz", "seg": f"timepoints/{name}/seg.nii.gz"}
        write_volume(folder / paths["t1ce"], drawn[name]["t1ce"])
        write_volume(folder / paths["seg"], drawn[name]["labels"])
        shift = [5.0, 7.0, 3.0] if day else [0.0, 0.0, 0.0]
        record = {
            "day": day,
            "images": {"t1ce": paths["t1ce"]},
            "transform": [1, 0, 0, shift[0], 0, 1, 0, shift[1], 0, 0, 1, shift[2]],
            "quality": 1.12 if day else None,
            "segmentation": paths["seg"],
            "origin": "expert",
            "files": {path: hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in paths.values()},
        }
        (place / "timepoint.json").write_text(json.dumps(record))
    grid = {"affine": drawn["000"]["labels"].affine.tolist(), "shape": [24, 20, 16]}
    head = {"schema": 1, "patient": "P-1", "task": "brats-glioma", "baseline_grid": grid}
    (folder / "twin.json").write_text(json.dumps(head))
    (folder / "events.jsonl").write_text('{"kind": "created"}\n{"kind": "added 000"}\n{"kind": "added 001"}\n')
    treatments = [
        {"kind": "surgery", "day": -20, "extent": "subtotal"},
        {"kind": "radiotherapy", "days": [1, 2, 3], "dose_gy": [2.0, 2.0, 2.0]},
    ]
    (folder / "treatments.json").write_text(json.dumps(treatments))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name[0] != "."}


def test_everything_comes_along(old: Path, scan) -> None:
    before = content(old)

    twin = Twin.open(old)

    assert (twin.pseudonym, twin.task, [point.day for point in twin.timepoints]) == ("P-1", "brats-glioma", [0, 60])
    np.testing.assert_array_equal(twin.labels(twin.timepoints[1]).array, scan(1)["labels"].array)
    # ITK's left and posterior are our minus right and minus anterior.
    np.testing.assert_allclose(twin.timepoints[1].to_baseline[:3, 3], [-5, -7, 3])
    assert twin.timepoints[1].registration == {"kind": "affine", "quality": 1.12}
    assert twin.document("treatments.json")["chemotherapy"] is None
    assert twin.document("treatments.json")["surgery"][0]["extent"] == "subtotal"
    assert twin.frame is not None
    assert twin.frame.shape == (24, 20, 16)
    assert verify(old).whole
    for name in ("twin.json", "events.jsonl", "treatments.json", "timepoints/000/timepoint.json"):
        assert (old / "history" / "schema-1" / name).read_bytes() == before[name]


def test_a_migrated_twin_goes_on(old: Path, scan) -> None:
    twin = Twin.open(old)
    twin.add_segmentation("001", scan(1, 4.0)["labels"], "edited")
    twin.set_document("treatments.json", {"surgery": None})

    assert Twin.open(old).revision == twin.revision == 6
    assert verify(old).whole


def test_a_damaged_old_folder_is_left_as_it_is(old: Path) -> None:
    (old / "timepoints" / "001" / "seg.nii.gz").write_bytes(b"something else")
    before = content(old)

    with pytest.raises(InputError, match="was changed"):
        Twin.open(old)

    assert content(old) == before


@pytest.mark.parametrize("head", [{"schema": 1}, {"schema": 0}, {"schema": "x"}, {}, []])
def test_a_head_that_never_was_is_refused(old: Path, head: object) -> None:
    (old / "twin.json").write_text(json.dumps(head))

    with pytest.raises(InputError, match="restore"):
        Twin.open(old)


@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_death_while_migrating_leaves_a_folder_that_opens(old: Path) -> None:
    for number in range(60):
        child = os.fork()
        if not child:
            real, left = os.replace, [number]

            def dying(*arguments: object, real: object = real, left: list[int] = left) -> object:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments)  # type: ignore[operator]

            os.replace = dying  # type: ignore[assignment]
            Twin.open(old)
            os._exit(0)
        died = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        schema = json.loads((old / "twin.json").read_bytes())["schema"]
        if not died or (schema == 1 and (old / store_files.JOURNAL).exists()):
            break
    assert number > 3
    assert len(Twin.open(old).timepoints) == 2
    assert verify(old).whole
