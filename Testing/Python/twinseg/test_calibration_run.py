"""A model is calibrated on patients: in training, by `twinseg calibrate`, and in what it then says of a case."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from twinseg.calibration import Calibration
from twinseg.calibration_measures import calibrate_on, measure
from twinseg.calibration_run import calibrate, calibration_table
from twinseg.cases import Case, LoadedCase, find_cases, load_case
from twinseg.errors import Cancelled, InputError
from twinseg.inference import segment
from twinseg.model_file import load_model, read_card, save_model
from twinseg.network import PRESETS, NetworkConfig, build_network
from twinseg.segmentation import LoadedModel, load_network, segment_to_file
from twinseg.tasks import Task
from twinseg.training_run import TrainingRequest, train

SaveNifti = Callable[..., Path]
CONFIG = NetworkConfig(2, 3, channels=(8, 12), strides=((2, 2, 2),) * 2, embedding=24, depth=1, heads=2)
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def model(tmp_path: Path, toy: Task) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    provenance = {"data": "elsewhere"}
    weights = build_network(CONFIG).state_dict()
    save_model(path, weights, task=toy, network=CONFIG.to_dict(), provenance=provenance, dtype="float16")
    return path


@pytest.fixture
def data(tmp_path: Path, save_nifti: SaveNifti) -> Path:
    """Ten patients, one of them at two dates, with 1 to 10 mL of oedema and nothing enhancing."""
    for number in range(10):
        image = np.random.default_rng(number).random((16, 16, 16)).astype(np.float32)
        labels = np.zeros(image.shape, np.uint8)
        labels[:, :, : 1 + number] = 2
        for date in ("2020-01-01", "2021-01-01") if number == 3 else ("2020-01-01",):
            folder = tmp_path / "data" / "HOSPITAL" / f"P{number}" / date
            save_nifti(folder / "t1.nii.gz", image)
            save_nifti(folder / "seg.nii.gz", labels)
            if number != 5:
                save_nifti(folder / "flair.nii.gz", image)
    return tmp_path / "data"


def cases(data: Path, toy: Task) -> list[Case]:
    return find_cases(data, toy, require_labels=True)


def test_a_calibrated_model_is_the_model_with_margins(model: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "calibrated.safetensors"

    said = calibrate(data, model, output, part="all")

    before, after = load_model(model), load_model(output)
    assert after.card.hash == said["model_hash"] != before.card.hash
    assert all(torch.equal(after.tensors[name], tensor) for name, tensor in before.tensors.items())
    assert (after.card.dtype, after.card.task, after.card.network) == ("float16", before.card.task, before.card.network)
    assert after.card.provenance["data"] == "elsewhere"
    assert after.card.provenance["calibrated_from"] == before.card.hash
    calibration = load_network(output).calibration
    assert calibration is not None
    assert (calibration.patients, calibration.data, calibration.part) == (10, "data", "all")  # P3 counts once
    assert calibration.sequences == ("t1",)  # P5 has no FLAIR
    assert set(calibration.margins) == {"WT", "ET"}
    assert (tmp_path / "calibrated.reliability.png").read_bytes().startswith(PNG)
    assert said["words"] == "90 % volume intervals from 10 patients"
    header, rows = calibration_table(said)
    assert [row[0] for row in rows] == ["WT", "ET"]
    assert all(len(row) == len(header) for row in rows)
    assert rows[1][3] == "–"  # of nothing nothing can be missed


def test_a_model_without_margins_loads_as_before(model: Path) -> None:
    assert load_network(model).calibration is None


def test_nine_of_ten_patients_it_was_calibrated_on_are_held(model: Path, data: Path, toy: Task, tmp_path: Path) -> None:
    output = tmp_path / "calibrated.safetensors"
    calibrate(data, model, output, part="all")
    calibrated, plain, held = load_network(output), load_network(model), 0

    for case in cases(data, toy):
        loaded = load_case(case, toy)
        said = segment(calibrated.network, loaded, toy, calibration=calibrated.calibration).volumes["WT"]
        assert said["level"] == 0.9
        assert said["low"] <= said["volume"] <= said["high"]
        assert segment(plain.network, loaded, toy).volumes["WT"]["level"] == 0.8
        assert loaded.labels is not None
        held += said["low"] - 1e-3 <= np.count_nonzero(loaded.labels.array) / 1000 <= said["high"] + 1e-3

    assert held >= 9


def test_a_case_without_a_sequence_that_all_had_is_promised_less(toy: Task, data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    calibration = Calibration(12, "data", "all", ("flair", "t1"), {}, {"WT": 0.5, "ET": 0.5})
    model = LoadedModel(build_network(CONFIG).eval(), toy, "ab", calibration)
    case = cases(data, toy)[0]

    whole = segment_to_file(case, model, tmp_path / "a.nii.gz")["volumes_ml"]
    lacking = replace(case, images={"t1": case.images["t1"]})
    without = segment_to_file(lacking, model, tmp_path / "b.nii.gz")["volumes_ml"]

    assert (whole["WT"]["level"], whole["ET"]["level"]) == (0.9, 0.9)
    assert without["WT"]["level"] == 0.8


def test_too_few_patients_give_no_margin_and_say_so(model: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "few.safetensors"

    said = calibrate(data, model, output)  # the validation part: one or two of ten

    assert said["words"].startswith("no 90 % volume intervals: ")
    assert read_card(output).provenance["calibration"]["margins"] == {}
    assert said["regions"]["WT"]["margin"] is None
    assert calibration_table(said)[1][0][-2:] == ["none", "9 patients are needed"]
    calibration = load_network(output).calibration
    assert calibration is not None
    assert not math.isnan(calibration.errors["WT"])


def test_what_cannot_be_calibrated(model: Path, data: Path, tmp_path: Path, toy: Task) -> None:
    with pytest.raises(InputError, match="this is the model itself, which is kept"):
        calibrate(data, model, model, part="all")
    with pytest.raises(InputError, match=r"a model file ends in \.safetensors"):
        calibrate(data, model, tmp_path / "m.txt", part="all")
    damaged = tmp_path / "damaged.safetensors"
    weights = build_network(CONFIG).state_dict()
    save_model(damaged, weights, task=toy, network=CONFIG.to_dict(), provenance={"calibration": {"margins": "wide"}})
    with pytest.raises(InputError, match="its calibration is damaged"):
        load_network(damaged)


def test_a_stopped_calibration_writes_nothing(model: Path, data: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())

    with pytest.raises(Cancelled, match="stopped while calibrating"):
        calibrate(data, model, tmp_path / "c.safetensors", part="all", report=lambda done, stage: done > 0.3)

    assert set(tmp_path.iterdir()) == before


def test_the_first_date_of_each_patient_counts(model: Path, data: Path, toy: Task) -> None:
    told: list[str] = []
    loaded = load_network(model)

    calibrate_on(cases(data, toy), loaded, data="d", part="all", report=lambda done, stage: told.append(stage))

    names = [stage.partition(": ")[2] for stage in told[:-1]]
    assert len(names) == 10
    assert [name for name in names if "P3" in name] == [name for name in names if "P3" in name and "2020" in name]


def test_the_truth_is_measured_on_the_label_map_s_own_grid(model: Path, data: Path, toy: Task) -> None:
    case: LoadedCase = load_case(cases(data, toy)[0], toy)
    assert case.labels is not None

    measured = measure(load_network(model), case)

    assert measured["WT"].true_ml == pytest.approx(np.count_nonzero(case.labels.array) / 1000)
    assert measured["ET"].true_ml == 0
    reliability = measured["WT"].reliability
    assert sum(reliability.found) + reliability.missed == np.count_nonzero(case.labels.array)


# --- in training -----------------------------------------------------------------------------------------------------


@pytest.fixture
def training(data: Path, toy: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingRequest:
    """A training with nine patients to validate on, and a network smaller than the real one by far."""
    monkeypatch.setitem(PRESETS, "small", {"channels": (8, 8, 8, 8), "embedding": 24, "depth": 1, "heads": 2})
    names = sorted({case.patient for case in cases(data, toy)})
    parts = {"train": names[:1], "validation": names[1:], "test": []}
    (data / "splits.json").write_text(json.dumps({"seed": 0, "patients": parts}), "utf-8")
    task = replace(toy, strides=((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1)))
    return TrainingRequest(data, task, tmp_path / "trained.safetensors", epochs=1)


def test_training_calibrates_on_its_validation_patients(training: TrainingRequest, data: Path, tmp_path: Path) -> None:
    measured = train(training)

    loaded = load_network(training.output)
    assert loaded.calibration is not None
    assert (loaded.calibration.patients, loaded.calibration.part) == (9, "validation")
    assert set(loaded.calibration.margins) == {"WT", "ET"}
    assert measured["intervals"] == "90 % volume intervals from 9 patients"
    assert "calibration" not in read_card(training.output).provenance["metrics"]
    again = calibrate(data, training.output, tmp_path / "again.safetensors")
    assert again["calibration"]["margins"] == pytest.approx(loaded.calibration.margins)


def test_a_training_stopped_while_it_calibrates_goes_on(training: TrainingRequest) -> None:
    with pytest.raises(Cancelled, match=r"stopped while calibrating; go on with --resume \(checkpoint .*\)"):
        train(training, lambda done, stage: stage.startswith("3 of 9"))
    assert training.checkpoint.exists()
    assert not training.output.exists()

    measured = train(replace(training, resume=True))

    assert measured["steps"] == 1
    assert measured["calibration"]["patients"] == 9
    assert not training.checkpoint.exists()
