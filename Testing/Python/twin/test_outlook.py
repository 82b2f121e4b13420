"""From the store to the growth models and back: forecasts that are sealed, scored and drawn in the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from twinseg.errors import Cancelled, InputError
from twinseg.twin.outlook import MAP_FILE, OutlookConfig, look_ahead, seal
from twinseg.twin.outlook_brain import brain_mask
from twinseg.twin.outlook_score import newest_bands, score_forecasts
from twinseg.twin.outlook_table import forecast_table
from twinseg.twin.posterior import PRIOR_ONLY
from twinseg.twin.report import write_report
from twinseg.twin.store import Twin
from twinseg.twin.store_verify import verify
from twinseg.twin.treatments import Radiotherapy, Surgery, Treatments
from twinseg.volumes import Volume, read_image

SHAPE, SPACING = (40, 44, 36), 4.0
CURVE = OutlookConfig(growth="curve", days_ahead=(30, 60, 90), sampler_steps=150)
SPACE = OutlookConfig(days_ahead=(45, 90), map_days_ahead=60, members=40)


def head(radius: float) -> dict[str, Volume]:
    """A stripped brain, an ellipsoid of 60 x 70 x 55 mm, with a ball of enhancing tumour in oedema off its centre."""
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    places = (np.indices(SHAPE) - (np.array(SHAPE).reshape(3, 1, 1, 1) - 1) / 2) * SPACING
    brain = ((places / np.array([60.0, 70.0, 55.0]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 1
    distance = np.sqrt(((places - np.array([15.0, 10.0, 0.0]).reshape(3, 1, 1, 1)) ** 2).sum(0))
    labels = np.select([distance < radius - 5, distance < radius], [3, 2], 0).astype(np.uint8)
    image = np.where(brain, 400 + 50 * np.random.default_rng(0).random(SHAPE), 0) + 300 * (labels == 3)
    return {"flair": Volume(image.astype(np.float32), affine), "labels": Volume(labels, affine)}


def grow(twin: Twin, day: float, radius: float) -> None:
    scan = head(radius)
    twin.add_timepoint(day, {"flair": scan["flair"]}, to_baseline=np.eye(4), segmentation=(scan["labels"], "expert"))


@pytest.fixture
def grown(tmp_path: Path) -> Twin:
    """A twin with three scans of a tumour that grows, and no treatment."""
    twin = Twin.create(tmp_path / "twin", task="brats-glioma", pseudonym="P-1")
    twin.set_document("treatments.json", Treatments.none_given().to_json())
    for day, radius in ((0, 14.0), (60, 17.0), (120, 20.0)):
        grow(twin, day, radius)
    return twin


def test_a_forecast_is_sealed_scored_and_reported(grown: Twin, tmp_path: Path) -> None:
    outlook = look_ahead(grown, CURVE)
    record = seal(grown, outlook)

    first = record.content["scenarios"][0]
    assert first["days"] == [150.0, 180.0, 210.0]
    assert first["persistence_ml"] == [record.content["last"]["volume_ml"]] * 3
    assert first["log_linear_ml"][0] > record.content["last"]["volume_ml"]
    assert [one["scenario"] for one in record.content["scenarios"]] == [
        "no further treatment",
        "60 Gy in 30 fractions with temozolomide",
        "40 Gy in 15 fractions",
    ]
    assert first["median_ml"][-1] > record.content["scenarios"][1]["median_ml"][-1]  # treatment helps
    narrow, wide = first["bands"]
    assert np.all(np.array(wide["low_ml"]) < narrow["low_ml"])
    assert np.all(np.array(wide["high_ml"]) > narrow["high_ml"])
    assert len(record.content["back_test"]["trials"]) == 1
    assert record.content["back_test"]["verdict"] in record.content["notes"]
    assert record.content["known"] == ["000", "001", "002"]
    assert grown.records("growth")[0].name == record.content["fit"]
    assert score_forecasts(grown) == ()  # no scan has come since

    grow(grown, 165, 21.5)
    (scored,) = score_forecasts(grown)

    score = scored.scores[0]
    assert score["timepoint"] == "003"
    assert score["measured_ml"] == pytest.approx(4 / 3 * np.pi * 1.65**3, rel=0.15)
    assert first["median_ml"][0] < score["forecast_ml"]["median"] < first["median_ml"][1]
    assert score["in_90"] is True
    assert score["nearest"] is (
        score["log_errors"]["median"] < min(score["log_errors"][k] for k in ("persistence", "log_linear"))
    )
    assert "inside the band" in score["words"]
    assert score_forecasts(grown) == ()  # once
    assert scored.content == record.content

    grown.add_segmentation("003", head(23.0)["labels"], "expert")
    assert len(score_forecasts(grown)[0].scores) == 2  # and once for a corrected segmentation
    assert verify(grown.folder).whole

    bands = newest_bands(grown)
    assert bands is not None
    assert bands.days[0] == 120
    assert bands.median[0] == pytest.approx(record.content["last"]["volume_ml"])
    assert np.all(bands.low90 <= bands.low50)
    assert np.all(bands.high50 <= bands.high90)
    said = " ".join(bands.notes)
    assert "not for treatment decisions" in said
    assert "was the newest" in said
    assert said.count("answered by what is known of other patients alone") == 2
    assert bands.table[0][0] == "scenario"
    write_report(grown, tmp_path / "r.html", tmp_path / "r.pdf", forecast=bands)
    assert "Volume over time, and forecast" in (tmp_path / "r.html").read_text("utf-8")


def test_the_model_in_space_gives_a_map_on_the_baselines_grid(grown: Twin) -> None:
    stages: list[str] = []

    outlook = look_ahead(grown, SPACE, lambda done, stage: stages.append(stage))
    record = seal(grown, outlook)

    path = grown.folder / record.files[MAP_FILE]
    probability = read_image(path)
    assert grown.frame is not None
    assert probability.shape == grown.frame.shape
    assert np.allclose(probability.affine, grown.frame.affine)
    assert 0 <= probability.array.min() < probability.array.max() <= 1
    tumour, brain = head(20.0)["labels"].array == 3, brain_mask(head(20.0)["flair"])
    assert probability.array[tumour].mean() > 0.8
    assert probability.array[~brain].max() < 0.5
    assert record.content["scenarios"][0]["probability_day"] == 180
    assert any("outline is estimated" in note for note in record.content["notes"])
    assert {"fitting the growth model", "trying it on the past scans", "no further treatment"} <= set(stages)


def test_one_scan_gives_the_prior_and_says_so(tmp_path: Path) -> None:
    twin = Twin.create(tmp_path / "twin", task="brats-glioma")
    grow(twin, 0, 15.0)

    record = seal(twin, look_ahead(twin, CURVE))

    assert PRIOR_ONLY in record.content["notes"]
    assert any("was or is radiotherapy or chemotherapy is not known" in note for note in record.content["notes"])
    assert record.content["scenarios"][0]["informed"] is False
    assert record.content["scenarios"][0]["log_linear_ml"] is None
    assert record.content["back_test"]["beats_both"] is None
    bands = newest_bands(twin)
    assert bands is not None
    assert PRIOR_ONLY in bands.notes
    header, rows = forecast_table(record.content)
    assert [row[0] for row in rows][-1] == "persistence"
    assert all(len(row) == len(header) for row in rows)


def test_visits_count_from_the_operation_on(grown: Twin) -> None:
    grown.set_document("treatments.json", Treatments(surgery=(Surgery(90.0, "subtotal"),)).to_json())
    outlook = look_ahead(grown, CURVE)
    assert outlook.timepoints == ("002",)
    assert not outlook.posterior.informed

    grown.set_document("treatments.json", Treatments(surgery=(Surgery(125.0, "subtotal"),)).to_json())
    with pytest.raises(InputError, match="start from a scan after it"):
        look_ahead(grown, CURVE)


def test_a_vanished_lesion_can_be_forecast_but_not_one_that_never_was(tmp_path: Path) -> None:
    twin = Twin.create(tmp_path / "twin", task="brats-glioma")
    with pytest.raises(InputError, match="no scan shows"):
        look_ahead(twin, CURVE)
    grow(twin, 0, 4.0)  # nothing but oedema: no enhancing tumour
    with pytest.raises(InputError, match="no scan shows the region ET"):
        look_ahead(twin, OutlookConfig(region="ET", growth="curve"))
    grow(twin, 60, 0.0)

    record = seal(twin, look_ahead(twin, replace(SPACE, region="WT")))

    assert record.content["last"]["volume_ml"] == 0
    assert all(np.isfinite(record.content["scenarios"][0]["median_ml"]))
    json.dumps(record.content, allow_nan=False)


def test_a_dose_map_is_one_more_scenario(grown: Twin) -> None:
    assert grown.frame is not None
    dose = Volume(np.full(SHAPE, 60.0, np.float32), grown.frame.affine)
    outlook = look_ahead(grown, replace(CURVE, dose_map=dose))
    assert outlook.forecasts[-1].scenario == "60 Gy in 30 fractions by dose map, with temozolomide"
    for wrong in (dose.array * 0, dose.array * 100, -dose.array):
        with pytest.raises(InputError, match="the dose map holds"):
            look_ahead(grown, replace(CURVE, dose_map=Volume(wrong, dose.affine)))


def test_it_says_when_treatment_was_recorded_after_the_forecast(grown: Twin) -> None:
    seal(grown, look_ahead(grown, CURVE))
    given = Treatments((Radiotherapy((130.0,), (2.0,)),), (), (), ())
    grown.set_document("treatments.json", given.to_json())
    grow(grown, 150, 18.0)

    (scored,) = score_forecasts(grown)

    assert scored.scores[0]["treatments_changed_since"] is True
    assert scored.scores[0]["words"].endswith("recorded of the treatment has changed since.")


def test_scans_beyond_the_horizon_are_not_scored(grown: Twin) -> None:
    seal(grown, look_ahead(grown, CURVE))
    grow(grown, 500, 25.0)
    assert score_forecasts(grown) == ()


def test_a_forecast_that_a_scan_overtook_is_not_sealed(grown: Twin) -> None:
    outlook = look_ahead(grown, CURVE)
    grow(grown, 150, 21.0)
    with pytest.raises(InputError, match="meanwhile"):
        seal(grown, outlook)
    assert grown.records("forecasts") == ()


def test_it_can_be_stopped_in_the_midst_of_a_fit(grown: Twin) -> None:
    calls = 0

    def stop(done: float, stage: str) -> bool:
        nonlocal calls
        calls += stage == "fitting the growth model"
        return calls > 2  # after the first batch of samples

    with pytest.raises(Cancelled):
        look_ahead(grown, SPACE, stop)
    assert grown.records("growth") == ()


def test_settings_that_cannot_be_are_refused(grown: Twin) -> None:
    with pytest.raises(InputError, match="use space or curve"):
        OutlookConfig(growth="magic")
    for wrong in ({"days_ahead": ()}, {"days_ahead": (30, 30)}, {"days_ahead": (-5,)}, {"map_days_ahead": -1}):
        with pytest.raises(InputError, match="days"):
            OutlookConfig(**wrong)
    with pytest.raises(InputError, match="members"):
        OutlookConfig(members=1)
    with pytest.raises(InputError, match="has no region XX"):
        look_ahead(grown, OutlookConfig(region="XX"))


def test_the_brain_is_found_with_and_without_its_skull() -> None:
    spacing = 3.0
    places = (np.indices((64, 72, 60)) - np.array([31.5, 35.5, 29.5]).reshape(3, 1, 1, 1)) * spacing
    scaled = np.sqrt(((places / np.array([68.0, 85.0, 65.0]).reshape(3, 1, 1, 1)) ** 2).sum(0))
    affine = np.diag([spacing, spacing, spacing, 1.0])
    brain = scaled < 1
    random = np.random.default_rng(1)
    tissue = random.normal(500, 30, brain.shape)
    ventricle = np.linalg.norm(places, axis=0) < 12
    stripped = np.where(brain, np.where(ventricle, 20, tissue), 0).astype(np.float32)
    whole = np.where(scaled < 1.14, tissue, random.normal(10, 5, brain.shape)).astype(np.float32)
    for image in (stripped, whole):
        found = brain_mask(Volume(image, affine))
        assert 2 * np.count_nonzero(found & brain) / (found.sum() + brain.sum()) > 0.93
        assert found[ventricle].all()
    with pytest.raises(InputError, match="empty"):
        brain_mask(Volume(np.zeros((20, 20, 20), np.float32), affine))
