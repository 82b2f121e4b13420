"""The worker adds scans to a patient's twin and writes its report: whole or not at all, whatever comes in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinseg.phantom import Scanner, make_patient
from twinseg.twin.store import Twin
from twinseg.twin.store_verify import verify
from twinseg.twin.timeline import add_scan

DAY = 90
SECONDS = 60


@pytest.fixture(scope="session")
def patients() -> list[Any]:
    """Two synthetic patients at two dates."""
    scanner = Scanner.for_site(0)
    return [make_patient((5, n), scanner=scanner, size=48, spacing=4.0, visits=2, kind="ring") for n in range(2)]


@pytest.fixture
def twin(tmp_path: Path, patients: list[Any]) -> Twin:
    """The first patient's twin with the baseline scan."""
    made = Twin.create(tmp_path / "Zoë's twin", task="brats-glioma", pseudonym="P-7")
    baseline = patients[0].visits[0]
    add_scan(made, 0, {"flair": baseline.images["flair"]}, labels=baseline.labels)
    return made


def request_of(visit: Any, twin: Twin, folder: Path, **changes: Any) -> dict[str, Any]:
    """The fields that ask to add a visit's FLAIR and labels to a twin."""
    entries = {}
    for name, volume in (("flair", visit.images["flair"]), ("segmentation", visit.labels)):
        np.save(folder / f"{name}.npy", volume.array)
        entries[name] = {"array": str(folder / f"{name}.npy"), "affine": volume.affine.tolist()}
    fields = {"twin": str(twin.folder), "day": DAY, "origin": "edited", "images": {"flair": entries["flair"]}}
    return {**fields, "segmentation": entries["segmentation"], **changes}


def test_a_scan_is_registered_its_lesions_are_followed_and_its_volumes_are_told(
    worker: Any, twin: Twin, patients: list[Any], tmp_path: Path
) -> None:
    visit = patients[0].visits[1]
    wanted = request_of(visit, twin, tmp_path, day_uncertainty=2, origin="model", model="a" * 64, delta="000009")

    messages = worker.until_answered(worker.ask("add_time_point", **wanted))

    told = messages[-1]["value"]
    shares = [message["done"] for message in messages[:-1]]
    assert shares == sorted(shares)
    assert any("registering" in message["stage"] for message in messages[:-1])
    twin = Twin.open(twin.folder)
    scan = twin.timepoints[-1]
    assert (told["timepoint"], told["day"], scan.day_uncertainty) == (scan.name, DAY, 2)
    assert told["registration"] == scan.registration
    assert told["registration"]["agreement"] > 0.5
    labels = twin.labels(scan)
    assert labels is not None
    np.testing.assert_array_equal(labels.array, visit.labels.array)
    np.testing.assert_allclose(twin.image(scan, "flair").array, visit.images["flair"].array, rtol=1e-6)
    assert scan.segmentation is not None
    assert (scan.segmentation.origin, scan.segmentation.model, scan.segmentation.delta) == ("model", "a" * 64, "000009")
    voxel = np.prod(visit.labels.spacing) / 1000
    assert told["volumes_ml"]["WT"]["volume"] == pytest.approx(voxel * np.count_nonzero(visit.labels.array))
    assert told["volumes_ml"]["WT"]["standard_deviation"] > 0
    assert {lesion["id"] for lesion in told["lesions"]} <= {1, 2, 3}
    assert told["forecasts_scored"] == []
    assert verify(twin.folder).whole


def test_images_are_resampled_onto_the_segmentation(
    worker: Any, twin: Twin, patients: list[Any], tmp_path: Path
) -> None:
    visit = patients[0].visits[1]
    wanted = request_of(visit, twin, tmp_path)
    flair = visit.images["flair"]
    np.save(tmp_path / "flipped.npy", flair.array[::-1])
    flipped = flair.affine @ np.diag([-1.0, 1, 1, 1])
    flipped[:3, 3] += flair.affine[:3, 0] * (flair.shape[0] - 1)
    wanted["images"]["flair"] = {"array": str(tmp_path / "flipped.npy"), "affine": flipped.tolist()}

    assert worker.answer("add_time_point", **wanted)["type"] == "result"

    kept = Twin.open(twin.folder)
    np.testing.assert_allclose(kept.image(kept.timepoints[-1], "flair").array, flair.array, atol=0.01)


def test_an_earlier_forecast_is_scored_on_the_scan(
    worker: Any, twin: Twin, patients: list[Any], tmp_path: Path
) -> None:
    forecast = {"growth": "curve", "days": [60, 120], "members": 40, "device": "cpu"}
    sealed = worker.answer("forecast", twin=str(twin.folder), **forecast)["value"]["record"]

    told = worker.answer("add_time_point", **request_of(patients[0].visits[1], twin, tmp_path))["value"]

    assert [score["forecast"] for score in told["forecasts_scored"]] == [sealed]
    assert told["forecasts_scored"][0]["day"] == DAY
    assert verify(twin.folder).whole


def test_what_cannot_be_added_is_refused_in_one_line_and_nothing_changes(
    worker: Any, twin: Twin, patients: list[Any], tmp_path: Path
) -> None:
    visit, stranger = patients[0].visits[1], patients[1].visits[1]
    good = request_of(visit, twin, tmp_path)
    empty = visit.labels.array * 0
    np.save(tmp_path / "empty.npy", empty)
    np.save(tmp_path / "floats.npy", empty + 0.5)
    np.save(tmp_path / "foreign.npy", empty + 9)
    drawn = good["segmentation"]
    for changes, said in (
        ({"day": 0}, "there is a scan of that day already"),
        ({"day": -3}, "comes before day 0"),
        ({"day": None}, "'day' is missing"),
        ({"day": "soon"}, "'day' must hold numbers"),
        ({"day_uncertainty": -1}, "day uncertainty -1"),
        ({"origin": "nobody"}, "origin 'nobody'"),
        ({"images": {}}, "no image was chosen"),
        ({"images": {"pet": good["images"]["flair"]}}, "has no such sequence"),
        ({"segmentation": None}, "'segmentation' is missing"),
        ({"segmentation": {**drawn, "array": str(tmp_path / "empty.npy")}}, "the segmentation is empty"),
        ({"segmentation": {**drawn, "array": str(tmp_path / "floats.npy")}}, "labels must be whole numbers"),
        ({"segmentation": {**drawn, "array": str(tmp_path / "foreign.npy")}}, "holds the label 9"),
        ({"twin": str(tmp_path)}, "there is no twin here"),
    ):
        answer = worker.answer("add_time_point", **good | changes)
        assert answer.get("kind") == "input", answer
        assert said in answer["message"]
        assert "\n" not in answer["message"]

    answer = worker.answer("add_time_point", **request_of(stranger, twin, tmp_path))
    assert answer["kind"] == "input"
    assert "the scan of day 90: it does not match the baseline (agreement 0." in answer["message"]
    assert Twin.open(twin.folder).revision == twin.revision


def test_an_empty_segmentation_is_taken_where_it_is_meant(
    worker: Any, twin: Twin, patients: list[Any], tmp_path: Path
) -> None:
    wanted = request_of(patients[0].visits[1], twin, tmp_path, no_tumour=True)
    np.save(wanted["segmentation"]["array"], np.zeros_like(patients[0].visits[1].labels.array))

    told = worker.answer("add_time_point", **wanted)["value"]

    assert told["volumes_ml"]["WT"]["volume"] == 0
    assert told["lesions"] == []


def test_cancelled_while_it_registers_it_ends_within_a_second_and_changes_nothing(
    worker: Any, twin: Twin, patients: list[Any], tmp_path: Path
) -> None:
    number = worker.ask("add_time_point", **request_of(patients[0].visits[1], twin, tmp_path))
    while "registering" not in worker.hear().get("stage", ""):
        pass
    asked = time.monotonic()
    worker.ask("cancel", target=number)

    answer = worker.until_answered(number)[-1]

    assert answer["kind"] == "cancelled"
    assert time.monotonic() - asked < 1.0
    assert worker.answer("hello")["type"] == "result"  # after it, the registration has come to its end
    assert Twin.open(twin.folder).revision == twin.revision
    assert verify(twin.folder).whole


# Renaming a file takes its time, so that a kill falls in between two.
SLOW_DISK = """
import os, time
from twinseg.twin import store_files
replace = os.replace
def slow(source, target):
    replace(source, target)
    time.sleep(0.1)
os.replace = slow
"""


@pytest.mark.parametrize(("place", "added"), [(".staging", False), (".commit", True)])
def test_killed_while_it_writes_the_twin_is_the_old_one_or_the_new_one(
    start: Callable[..., Any], twin: Twin, patients: list[Any], tmp_path: Path, place: str, added: bool
) -> None:
    child = start(before=SLOW_DISK)
    child.ask("add_time_point", **request_of(patients[0].visits[1], twin, tmp_path))
    end = time.monotonic() + SECONDS
    while not (twin.folder / place).exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    child.process.kill()
    child.wait()

    recovered = Twin.open(twin.folder)

    assert len(recovered.timepoints) == 1 + added
    assert verify(twin.folder).whole
    assert not (twin.folder / place).exists()


def test_the_report_is_written_as_html_and_pdf(worker: Any, twin: Twin, tmp_path: Path) -> None:
    html, pdf = tmp_path / "Ärzte 1.html", tmp_path / "page.pdf"

    told = worker.answer("report", twin=str(twin.folder), html=str(html), pdf=str(pdf))["value"]

    assert told == {"pseudonym": "P-7", "html": str(html), "pdf": str(pdf)}
    assert "Patient twin P-7" in html.read_text(encoding="utf-8")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert Twin.open(twin.folder).revision == twin.revision


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "'html' is missing"),
        ({"html": "/nowhere/r.html"}, "its folder does not exist"),
        ({"html": "r.html", "pdf": "r.html"}, "two results need a file each"),
        ({"html": "r.html", "pdf": 5}, "'pdf' must be text"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused(
    worker: Any, twin: Twin, tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    there = {name: str(tmp_path / file) if isinstance(file, str) else file for name, file in fields.items()}

    answer = worker.answer("report", twin=str(twin.folder), **there)

    assert answer["kind"] == "input"
    assert said in answer["message"]
    assert list(tmp_path.glob("r.*")) == []


def test_a_twin_without_a_scan_has_no_report(worker: Any, tmp_path: Path) -> None:
    empty = Twin.create(tmp_path / "empty", task="brats-glioma")

    answer = worker.answer("report", twin=str(empty.folder), html=str(tmp_path / "r.html"))

    assert "it has no scan to report on" in answer["message"]
    assert not (tmp_path / "r.html").exists()


# As where it was never installed: finders that do not find it.
WITHOUT_MATPLOTLIB = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


def test_without_matplotlib_the_report_says_what_to_install_and_the_rest_works(
    start: Callable[..., Any], twin: Twin, patients: list[Any], tmp_path: Path
) -> None:
    child = start(before=WITHOUT_MATPLOTLIB)

    answer = child.answer("report", twin=str(twin.folder), html=str(tmp_path / "r.html"))
    added = child.answer("add_time_point", **request_of(patients[0].visits[1], twin, tmp_path))

    assert answer["kind"] == "input"
    assert answer["message"].startswith("the Python package matplotlib is not installed: in Slicer, install it at the")
    assert "\n" not in answer["message"]
    assert not (tmp_path / "r.html").exists()
    assert added["type"] == "result"
