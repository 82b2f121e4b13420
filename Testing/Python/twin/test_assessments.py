"""Assessments of a twin, with what is known of its treatment, as they are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from twinseg.errors import InputError
from twinseg.tasks import load_task
from twinseg.twin.assessments import last_assessments, respond
from twinseg.twin.report import write_report
from twinseg.twin.response import Override
from twinseg.twin.store import Twin
from twinseg.twin.timeline import correct_scan
from twinseg.twin.treatments import Radiotherapy, Steroids, Surgery, Treatments


def test_assessments_remember_what_was_said_before(assessed: Twin) -> None:
    respond(assessed, steroids_mg={"000": 4.0, "001": 2.0})
    kept, found = respond(assessed, overrides=(Override("001", "PD", "seen on perfusion"),))

    assert kept.content["clinical"] == {"001": "stable"}
    assert kept.content["steroids_mg"] == {"000": 4.0, "001": 2.0}
    assert (found["2D"][1].response, found["2D"][1].overridden) == ("PD", "SD")
    assert last_assessments(Twin.open(assessed.folder)) == found
    assert len(assessed.records("assessments")) == 3


def test_treatments_tell_the_steroids_and_the_end_of_radiotherapy(assessed: Twin) -> None:
    treatments = Treatments(
        radiotherapy=(Radiotherapy((-5.0, -4.0, -3.0), (2.0, 2.0, 2.0)),),
        steroids=(Steroids(-10, 30, 8.0), Steroids(31, 90, 2.0)),
    )
    assessed.set_document("treatments.json", treatments.to_json())

    kept, found = respond(assessed)

    assert kept.content["steroids_mg"] == {"000": 8.0, "001": 2.0}
    assert kept.content["radiotherapy"] == [[-5.0, -3.0]]
    assert found["2D"][1].rule == "SD-steroids-reduced"


def test_many_specks_of_tumour_are_no_complete_response(assessed: Twin, scan) -> None:
    specks = scan()["labels"]
    specks.array[:] = 0
    specks.array[::5, ::5, ::5] = 3  # 80 voxels of 8 mm³ that do not touch
    correct_scan(assessed, "001", specks, "expert")

    _, found = respond(assessed)

    assert [found[measure][1].response for measure in ("2D", "3D")] == ["PR", "PR"]
    assert "0.64 mL in specks" in " ".join(found["3D"][1].trace)


def test_the_first_scan_after_radiotherapy_becomes_the_baseline(assessed: Twin, scan) -> None:
    respond(assessed, overrides=(Override("001", "SD", "seen on perfusion"),))
    given = Treatments(radiotherapy=(Radiotherapy((10.0, 30.0), (2.0, 2.0)),))
    assessed.set_document("treatments.json", given.to_json())

    _, found = respond(assessed)

    # The override of what is the baseline now decides nothing
    assert [one.words for one in found["3D"]] == ["before the baseline", "baseline"]
    assert "first one after radiotherapy" in found["2D"][0].trace[0]
    assert found["2D"][0].size > 0
    assert last_assessments(assessed) == found
    with pytest.raises(InputError, match="no assessment of it to override"):
        respond(assessed, overrides=(Override("000", "SD", "why"),))
    assert [one.response for one in respond(assessed, settings={"baseline": "first"})[1]["3D"]] == ["baseline", "SD"]


def followed(folder: Path, scan, radii: dict[float, float], treatments: Treatments) -> Twin:
    """A twin with a ball of tumour of this radius (voxels; 0 is none) at each day."""
    twin = Twin.create(folder / "followed", task="brats-glioma")
    for day, radius in radii.items():
        added = twin.add_timepoint(day, {"t1ce": scan()["t1ce"]}, to_baseline=np.eye(4))
        correct_scan(twin, added.name, scan(0, radius)["labels"], "expert", no_tumour=not radius)
    twin.set_document("treatments.json", treatments.to_json())
    return twin


@pytest.mark.parametrize(
    ("radii", "operations", "expected"),
    [
        ({0: 8, 5: 5}, [(3, "subtotal")], ["baseline", "baseline"]),
        ({0: 8, 5: 5}, [(3, None)], ["baseline", "baseline"]),
        ({0: 8, 5: 5}, [(3, "biopsy")], ["baseline", "PR"]),
        ({0: 8, 5: 0, 40: 0}, [(3, "gross total")], ["baseline", "baseline", "SD"]),
        ({0: 6, 90: 8, 100: 5, 130: 5}, [(95, "partial")], ["baseline", "PD", "baseline", "SD"]),
        ({0: 6, 90: 8, 100: 5, 130: 6}, [(-9, "partial"), (95, "partial")], ["baseline", "PD", "baseline", "PD"]),
    ],
)
def test_what_an_operation_took_is_no_response(tmp_path: Path, scan, radii, operations, expected) -> None:
    given = Treatments(surgery=tuple(Surgery(day, extent) for day, extent in operations))

    _, found = respond(followed(tmp_path, scan, radii, given))

    for measure in ("2D", "3D"):
        assert [one.response for one in found[measure]] == expected
    if "biopsy" not in operations[0]:
        baseline = [one for one in found["3D"] if one.response == "baseline"][-1]
        assert f"after the operation of day {operations[-1][0]:g}" in baseline.trace[1]


def test_the_first_scan_after_radiotherapy_is_the_baseline_where_it_follows_an_operation(tmp_path: Path, scan) -> None:
    given = Treatments(radiotherapy=(Radiotherapy((14.0, 52.0), (2.0, 2.0)),), surgery=(Surgery(3, "subtotal"),))

    _, found = respond(followed(tmp_path, scan, {0: 8, 5: 5, 80: 6, 140: 7}, given))

    assert [one.response for one in found["3D"]] == ["baseline", "before the baseline", "baseline", "PD"]


def test_another_baseline_counts_until_the_next_operation(tmp_path: Path, scan) -> None:
    given = Treatments(surgery=(Surgery(3, "subtotal"), Surgery(95, "subtotal")))
    twin = followed(tmp_path, scan, {0: 8, 30: 7, 60: 6, 90: 6, 100: 5, 130: 5}, given)

    _, found = respond(twin, settings={"baseline_day": 60.0})

    expected = [*["before the baseline"] * 2, "baseline", "SD", "baseline", "SD"]
    assert [one.response for one in found["3D"]] == expected
    with pytest.raises(InputError, match="no assessment of it to override"):
        respond(twin, overrides=(Override("004", "SD", "why"),))


@pytest.mark.parametrize(
    ("given", "said"),
    [({"clinical": {"009": "stable"}}, "time point 009"), ({"settings": {"no_such": 1}}, "settings")],
)
def test_bad_inputs_to_an_assessment_leave_no_record(assessed: Twin, given, said: str) -> None:
    with pytest.raises(InputError, match=said):
        respond(assessed, **given)
    assert len(assessed.records("assessments")) == 1


@pytest.mark.parametrize("task", ["lits-liver", "lgg-flair"])
def test_a_task_without_enhancing_tumour_is_not_assessed_and_its_page_says_why(tmp_path: Path, scan, task: str) -> None:
    twin = Twin.create(tmp_path / "twin", task=task)
    sequence = load_task(task).sequences[0].name
    for day in (0, 60):
        added = twin.add_timepoint(day, {sequence: scan()["t1ce"]}, to_baseline=np.eye(4))
        labels = scan(0, 5.0)["labels"]
        labels.array[labels.array > 0] = 1
        correct_scan(twin, added.name, labels, "expert")
    twin.add_record("assessments", {"assessed": {"2D": []}})  # from a version that did assess it

    with pytest.raises(InputError, match=f"the task {task} draws none") as raised:
        respond(twin)
    write_report(twin, tmp_path / "r.html", tmp_path / "r.pdf")

    assert "\n" not in str(raised.value)
    assert f"<p>Not assessed: {raised.value}.</p>" in (tmp_path / "r.html").read_text("utf-8")
    assert last_assessments(twin) == {}
