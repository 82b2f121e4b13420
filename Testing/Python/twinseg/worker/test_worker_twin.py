"""The worker on a patient's twin: adapt, segment with what was learnt, forecast, and be cancelled in all of them.

How it adds a scan and writes the report stands in `test_worker_visits`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twinseg.nifti_files import read
from twinseg.preprocessing import PreparedCase
from twinseg.tasks import Task
from twinseg.twin.adaptation_delta import keep_delta, roll_back
from twinseg.twin.adaptation_general import general_file, write_set
from twinseg.twin.store import Twin
from twinseg.twin.store_verify import verify
from twinseg.volumes import Volume

CURVE = {"growth": "curve", "days": [120, 150], "members": 40, "device": "cpu"}


def ball(seed: int, radius: float) -> tuple[dict[str, Volume], Volume]:
    """Images of noise with a bright ball, and its label map."""
    random = np.random.default_rng(seed)
    distance = np.sqrt(((np.indices((24, 24, 24)) - 11.5) ** 2).sum(0))
    labels = np.select([distance < radius / 2, distance < radius], [7, 2], 0).astype(np.uint8)
    image = np.rint(500 + random.normal(0, 30, labels.shape) + 300 * (distance < radius)).astype(np.float32)
    return {name: Volume(image, np.eye(4)) for name in ("t1", "flair")}, Volume(labels, np.eye(4))


@pytest.fixture
def twin(tmp_path: Path, toy: Task, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Twin:
    """A twin with two corrected scans, and small general sets where the worker looks for them."""
    monkeypatch.setenv("TWINSEG_HOME", environment["TWINSEG_HOME"])
    for number, part in enumerate(("test", "rehearsal")):
        images, labels = ball(10 + number, 6.0)
        image = np.stack([(one.array - 500) / 150 for one in images.values()]).astype(np.float32)
        channels = np.searchsorted([0, 2, 7], labels.array).astype(np.uint8)
        path = general_file(toy, part)
        path.parent.mkdir(exist_ok=True)
        write_set(path, [PreparedCase("general-0", None, image, (True, True), np.eye(4), channels)])
    made = Twin.create(tmp_path / "Zoë's twin", task="toy")
    for number in range(2):
        images, labels = ball(number, 6.0 + number)
        made.add_timepoint(60 * number, images, to_baseline=np.eye(4), segmentation=(labels, "expert"))
    return made


def test_adapt_keeps_a_delta_and_says_how_it_fared(worker: Any, twin: Twin, make_model: Callable[..., Path]) -> None:
    model = str(make_model())

    messages = worker.until_answered(worker.ask("adapt", twin=str(twin.folder), model=model, device="cpu"))

    told = messages[-1]["value"]
    assert {"progress"} == {message["type"] for message in messages[:-1]}
    assert any("learning" in message["stage"] for message in messages[:-1])
    (record,) = Twin.open(twin.folder).records("models")
    assert told["delta"] == record.name
    assert told["in_use"] == (record.name if told["accepted"] else None)
    assert told["base"] == record.content["base"]
    assert told["learnt_from"] == ["001"]
    assert told["held_out"] == record.content["held_out"]
    assert verify(twin.folder).whole


def test_segment_uses_the_delta_in_use_until_it_is_rolled_back(worker: Any, twin: Twin, wanted: dict[str, Any]) -> None:
    plain = worker.answer("segment", **wanted)["value"]
    before = np.load(wanted["labels"])
    everything = torch.tensor([-50.0, 50.0, -50.0])  # a delta whose mark cannot be missed: all is oedema
    record = keep_delta(twin, plain["model"], {"heads.0.bias": everything}, {"accepted": True})

    told = worker.answer("segment", **wanted, twin=str(twin.folder))["value"]

    assert (plain["delta"], plain["twin"]) == (None, None)
    assert (told["delta"], told["twin"]) == (record.name, twin.pseudonym)
    assert told["model"] == plain["model"]
    assert np.mean(np.load(wanted["labels"]) == 2) > 0.5  # beyond the head nothing is labelled

    rolled = worker.answer("roll_back", twin=str(twin.folder), model=wanted["model"])["value"]
    again = worker.answer("segment", **wanted, twin=str(twin.folder))["value"]

    assert rolled == {"base": plain["model"], "in_use": None}
    assert (again["delta"], again["twin"]) == (None, None)
    assert np.array_equal(np.load(wanted["labels"]), before)


def test_deltas_names_the_twins_with_an_accepted_one_on_this_very_model(
    worker: Any, twin: Twin, tmp_path: Path, wanted: dict[str, Any], make_model: Callable[..., Path]
) -> None:
    base = worker.answer("segment", **wanted)["value"]["model"]
    other = make_model(tmp_path / "other.safetensors", seed=1)
    bias = {"heads.0.bias": torch.zeros(3)}
    folders = {name: tmp_path / name for name in ("none", "rejected", "foreign", "rolled", "damaged", "glioma")}
    rejected, foreign, rolled = (Twin.create(folders[name], task="toy") for name in ("rejected", "foreign", "rolled"))
    keep_delta(rejected, base, bias, {"accepted": False})
    keep_delta(foreign, "0" * 64, bias, {"accepted": True})
    keep_delta(rolled, base, bias, {"accepted": True})
    roll_back(rolled, base)
    folders["damaged"].mkdir()
    (folders["damaged"] / "twin.json").write_text("{")
    keep_delta(Twin.create(folders["glioma"], task="brats-glioma"), base, bias, {"accepted": True})
    record = keep_delta(twin, base, bias, {"accepted": True, "learnt_from": ["000", "001"]})
    asked = {"task": "toy", "twins": [*map(str, folders.values()), str(twin.folder)]}

    told = worker.answer("deltas", model=wanted["model"], **asked)["value"]

    offered = {"pseudonym": twin.pseudonym, "delta": record.name, "day": 60}
    assert told == {"base": base, "deltas": {str(twin.folder): offered}}
    assert worker.answer("deltas", model=str(other), **asked)["value"]["deltas"] == {}


def test_forecast_is_sealed_and_scored_later(worker: Any, twin: Twin) -> None:
    first = worker.answer("forecast", twin=str(twin.folder), **CURVE)["value"]

    assert first["scored"] == []
    assert [one["probability_file"] for one in first["forecasts"]] == [None] * 3
    assert first["forecasts"][0]["scenario"] == "no further treatment"
    assert first["forecasts"][0]["days"] == [120.0, 150.0]
    assert first["beats_both"] is None
    assert first["verdict"] in first["notes"]
    twin = Twin.open(twin.folder)
    assert twin.records("forecasts")[0].name == first["record"]

    images, labels = ball(5, 8.0)
    twin.add_timepoint(100, images, to_baseline=np.eye(4), segmentation=(labels, "expert"))
    second = worker.answer("forecast", twin=str(twin.folder), **CURVE)["value"]

    assert second["scored"][0]["forecast"] == first["record"]
    assert second["scored"][0]["timepoint"] == "002"
    assert Twin.open(twin.folder).records("forecasts")[0].scores[0]["day"] == 100


def test_a_forecast_in_space_seals_a_map_for_every_scenario(worker: Any, twin: Twin) -> None:
    wanted = {"days": [120], "map_day": 110, "members": 40, "device": "cpu", "treatment_days_ahead": 0}

    told = worker.answer("forecast", twin=str(twin.folder), **wanted)["value"]

    twin = Twin.open(twin.folder)
    (record,) = twin.records("forecasts")
    maps = {}
    for scenario in told["forecasts"]:
        assert scenario["probability_day"] == 110
        maps[scenario["scenario"]] = read(twin.folder / record.files[scenario["probability_file"]])[0]
    assert len(maps) == len(told["forecasts"]) == 3
    assert verify(twin.folder).whole
    untreated, treated = maps["no further treatment"], maps["60 Gy in 30 fractions with temozolomide"]
    assert untreated.shape == (24, 24, 24)
    assert 0 <= treated.min() <= untreated.max() <= 1
    assert treated.sum() < untreated.sum()


@pytest.mark.parametrize(
    ("do", "fields"), [("adapt", {"device": "cpu"}), ("forecast", {"days": [200], "members": 2000})]
)
def test_a_cancelled_request_ends_within_a_second_and_changes_nothing(
    do: str, fields: dict[str, Any], worker: Any, twin: Twin, make_model: Callable[..., Path]
) -> None:
    if do == "adapt":
        fields = {**fields, "model": str(make_model())}
    number = worker.ask(do, twin=str(twin.folder), **fields)
    while worker.hear().get("stage", "").split(",")[0] not in ("learning", "fitting the growth model"):
        pass
    asked = time.monotonic()
    worker.ask("cancel", target=number)

    answer = worker.until_answered(number)[-1]

    assert answer["kind"] == "cancelled"
    assert time.monotonic() - asked < 1.0
    assert worker.answer("hello")["value"]["protocol"] == 1  # it goes on
    assert Twin.open(twin.folder).revision == twin.revision


def test_what_is_wrong_is_said(
    worker: Any, twin: Twin, tmp_path: Path, wanted: dict[str, Any], make_model: Callable[..., Path]
) -> None:
    model, folder = str(make_model()), str(twin.folder)
    other = Twin.create(tmp_path / "other", task="brats-glioma")
    for do, fields, said in (
        ("adapt", {"twin": str(tmp_path / "none"), "model": model}, "there is no twin here"),
        ("adapt", {"model": model}, "'twin' is missing"),
        ("roll_back", {"twin": folder, "model": model}, "nothing to roll back"),
        ("adapt", {"twin": str(other.folder), "model": model}, "for another task"),
        ("forecast", {"twin": folder}, "'days' is missing"),
        ("forecast", {"twin": folder, "days": [50]}, "must rise and come after the last scan"),
        ("forecast", {"twin": folder, "days": ["soon"]}, "'days' must hold numbers"),
        ("forecast", {"twin": folder, "days": [90], "growth": "magic"}, "use space or curve"),
        ("forecast", {"twin": folder, "days": [90], "members": float("nan")}, "'members' must hold numbers"),
        ("forecast", {"twin": folder, "days": [90], "dose_map": {}}, "dose map: it must be given"),
        ("forecast", {"twin": str(other.folder), "days": [90]}, "no scan shows"),
        ("deltas", {"task": "toy", "model": model}, "'twins' is missing"),
        ("deltas", {"task": "toy", "model": __file__, "twins": []}, "not a .safetensors file"),
        ("segment", {**wanted, "twin": str(other.folder)}, "this twin is of the task brats-glioma"),
    ):
        answer = worker.answer(do, **fields)
        assert answer["kind"] == "input", answer
        assert said in answer["message"]
        assert "\n" not in answer["message"]
