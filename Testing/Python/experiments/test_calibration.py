"""The calibration experiment: halves keep the promise, rows are kept and read again, the page tells the truth."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import calibration
import numpy as np
import pytest

from twinseg.calibration import RegionMeasure, Reliability


def patients(count: int, error: float = 0.5) -> list[RegionMeasure]:
    """Volumes that are drawn wrong by a random factor, in intervals of ± 10 %."""
    random = np.random.default_rng(0)
    true = random.lognormal(3, 1, count)
    drawn = true * np.exp(random.normal(0, error, count))
    reliability = Reliability.of(np.array([0.95, 0.95]), np.array([True, False]))
    return [RegionMeasure(d, 0.9 * d, 1.1 * d, t, reliability) for d, t in zip(drawn, true, strict=True)]


def rows(measures: list[RegionMeasure]) -> list[dict[str, Any]]:
    made = [
        {"patient": f"p{n}", "site": "AB"[n % 2], "regions": {"WT": dataclasses.asdict(one)}}
        for n, one in enumerate(measures)
    ]
    return list(json.loads(json.dumps(made)))


def test_the_margins_of_one_half_hold_in_the_other() -> None:
    tried = calibration.random_halves(patients(93))

    assert tried is not None
    assert 0.87 <= tried["coverage_mean"] <= 0.95
    assert tried["coverage_lowest_highest"][0] < tried["coverage_mean"] < tried["coverage_lowest_highest"][1]
    assert tried["width_ml_mean"] > np.mean([calibration.width_ml(one, 0) for one in patients(93)])


def test_too_few_patients_have_no_halves() -> None:
    assert calibration.random_halves(patients(17)) is None
    assert calibration.random_halves(patients(18)) is not None


def test_rows_are_read_as_they_were_kept() -> None:
    measures = patients(3)

    assert [calibration.measures_of(row)["WT"] for row in rows(measures)] == measures


def test_the_page_tells_coverage_and_where_it_is_not_promised() -> None:
    real, synthetic = rows(patients(40)), rows(patients(40, error=0.01))
    found = {"real": calibration.summary(real), "synthetic": calibration.summary(synthetic)}
    moved = {**(calibration.from_synthetic(real, synthetic, "WT") or {}), "region": "WT"}

    page = calibration.report({"model": "ab" * 32, "commit": "c", "summary": found, "from_synthetic": moved})

    assert found["real"]["WT"]["uncalibrated_coverage"] < 0.4
    assert found["synthetic"]["WT"]["uncalibrated_coverage"] == 1
    assert moved["coverage"] < 0.5  # synthetic patients that are too easy promise too much
    assert [trial["site"] for trial in found["real"]["WT"]["other_sites"]] == ["A", "B"]
    assert "| real, WT | 40 synthetic patients |" in page
    assert "| real, WT, A | the other sites |" in page
    assert "| real | WT | 0.450 | 0 % |" in page


def test_few_patients_are_said_to_be_few() -> None:
    found = {"real": calibration.summary(rows(patients(4)))}

    page = calibration.report({"model": "ab" * 32, "commit": None, "summary": found, "from_synthetic": None})

    assert "fewer than 18 patients" in page
    assert "Where it is not promised" not in page


def test_only_rows_of_the_same_model_are_kept(tmp_path: Path) -> None:
    file, model = tmp_path / "calibration.json", SimpleNamespace(hash="one")

    assert calibration.kept_rows(file, model) == {"real": {}, "synthetic": {}}
    calibration.write(file, {"model": "one", "cohorts": {"real": {"p": {"site": None, "nan": math.nan}}}})
    assert calibration.kept_rows(file, model) == {"real": {"p": {"site": None, "nan": None}}, "synthetic": {}}
    assert calibration.kept_rows(file, SimpleNamespace(hash="other")) == {"real": {}, "synthetic": {}}


def test_a_real_patient_is_kept_under_a_hash(tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parents[4] / "shared/data/lgg"
    if not folder.is_dir():
        pytest.skip(f"{folder}: the real patients are not there")

    found = calibration.real_patients(folder, calibration.load_task("lgg-flair"), 5)

    assert len(found) == 5
    assert all(len(patient.name) == 10 and "TCGA" not in patient.name for patient in found)
    assert found[0].load().labels is not None
