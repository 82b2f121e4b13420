"""`twinseg twin adapt` and `forecast` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from twinseg.cli_twin import twin_app
from twinseg.errors import InputError
from twinseg.model_file import read_card
from twinseg.segmentation import load_network, starter_model
from twinseg.twin.adaptation_delta import keep_delta
from twinseg.twin.store import Twin
from twinseg.volumes import Volume, read_image, write_volume

SHAPE = (32, 36, 30)


def grow(twin: Twin, day: float, radius: float) -> None:
    """A scan of a bright brain on a grid of 4 mm with a ball of tumour in it."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    places = (np.indices(SHAPE) - (np.array(SHAPE).reshape(3, 1, 1, 1) - 1) / 2) * 4.0
    brain = ((places / np.array([55.0, 62.0, 50.0]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 1
    distance = np.sqrt((places**2).sum(0))
    labels = np.select([distance < radius - 5, distance < radius], [3, 2], 0).astype(np.uint8)
    texture = np.random.default_rng(0).integers(400, 600, SHAPE)
    image = np.where(brain, texture, 0) + 200 * (labels > 0)
    twin.add_timepoint(
        day,
        {"flair": Volume(image.astype(np.float32), affine)},
        to_baseline=np.eye(4),
        segmentation=(Volume(labels, affine), "expert"),
    )


@pytest.fixture
def twin(tmp_path: Path) -> Twin:
    made = Twin.create(tmp_path / "twin", task="brats-glioma", pseudonym="P-1")
    for day, radius in ((0, 14.0), (60, 17.0)):
        grow(made, day, radius)
    return made


def run(*arguments: object) -> str:
    """Run a command; its output, or the InputError that it ended with."""
    result = CliRunner().invoke(twin_app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def test_forecast_then_report(twin: Twin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    quick = ("--growth", "curve", "--horizon", 60, "--members", 40, "--device", "cpu")

    said = run("forecast", twin.folder, *quick, "--json", tmp_path / "f.json")

    assert "60 Gy in 30 fractions with temozolomide" in said
    assert "persistence" in said
    assert "log-linear extrapolation" in said
    assert "Research only: not for treatment decisions." in said
    assert "it needs three" in said
    told = read(tmp_path / "f.json")
    assert told["scenarios"][0]["days"][-1] == 120
    assert told["record"] == Twin.open(twin.folder).records("forecasts")[0].name

    newer = Twin.open(twin.folder)
    grow(newer, 90, 18.0)
    said = run("forecast", twin.folder, *quick, "--json", tmp_path / "g.json")
    assert "90 % band" in said
    assert read(tmp_path / "g.json")["forecasts_scored"][0]["timepoint"] == "002"

    run("report", twin.folder, "--output", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "Volume over time, and forecast" in page
    assert "scan of day 90" in page


def test_forecast_in_space_writes_its_map(twin: Twin, tmp_path: Path) -> None:
    map_file = tmp_path / "where.nii.gz"

    run("forecast", twin.folder, "--members", 40, "--horizon", 30, "--device", "cpu", "--probability", map_file)

    probability = read_image(map_file)
    assert probability.shape == SHAPE
    assert 0.9 < probability.array.max() <= 1


def test_roll_back_names_the_model_that_is_used_now(twin: Twin, tmp_path: Path) -> None:
    base = read_card(starter_model("brats-glioma")).hash
    bias = load_network(starter_model("brats-glioma")).network.heads[0].bias.detach()
    first = keep_delta(twin, base, {"heads.0.bias": torch.zeros_like(bias)}, {"accepted": True})
    keep_delta(twin, base, {"heads.0.bias": torch.ones_like(bias)}, {"accepted": True})

    said = run("adapt", twin.folder, "--roll-back", "--json", tmp_path / "one.json")
    assert f"rolled back to the adapted model {first.name}" in said
    assert read(tmp_path / "one.json")["in_use"] == first.name
    assert "rolled back to the base model" in run("adapt", twin.folder, "--roll-back")
    with pytest.raises(InputError, match="nothing to roll back"):
        run("adapt", twin.folder, "--roll-back")


def test_what_cannot_be_is_told_in_one_line_and_changes_nothing(twin: Twin, tmp_path: Path) -> None:
    wrong_dose = tmp_path / "dose.nii.gz"
    in_centigray = np.linspace(0, 6000, int(np.prod(SHAPE)), dtype=np.float32).reshape(SHAPE)
    write_volume(wrong_dose, Volume(in_centigray, np.diag([4.0, 4.0, 4.0, 1.0])))
    empty = Twin.create(tmp_path / "empty", task="brats-glioma")
    for arguments, said in (
        (("adapt", empty.folder), "no corrected scan"),
        (("forecast", empty.folder), "no scan shows"),
        (("forecast", twin.folder, "--growth", "magic"), "space or curve"),
        (("forecast", twin.folder, "--region", "XX"), "no region XX"),
        (("forecast", twin.folder, "--horizon", -5), "must rise"),
        (("forecast", twin.folder, "--members", 1), "members"),
        (("forecast", twin.folder, "--dose-map", wrong_dose), "dose in Gy"),
        (("forecast", twin.folder, "--growth", "curve", "--probability", tmp_path / "p.nii.gz"), "gives a map"),
        (("forecast", tmp_path / "nothing"), "no twin here"),
    ):
        with pytest.raises(InputError, match=said) as raised:
            run(*arguments)
        assert "\n" not in str(raised.value)
    assert Twin.open(twin.folder).revision == twin.revision


def test_a_scan_is_segmented_by_the_patients_own_model(twin: Twin, tmp_path: Path) -> None:
    base = read_card(starter_model("brats-glioma")).hash
    all_oedema = torch.tensor([-50.0, -50.0, 50.0, -50.0])
    record = keep_delta(twin, base, {"heads.0.bias": all_oedema}, {"accepted": True})
    write_volume(tmp_path / "flair.nii.gz", twin.image(twin.timepoints[0], "flair"))

    run("add", twin.folder, "--flair", tmp_path / "flair.nii.gz", "--day", 90, "--device", "cpu")

    scan = Twin.open(twin.folder).timepoints[-1]
    assert scan.segmentation is not None
    assert (scan.segmentation.model, scan.segmentation.delta) == (base, record.name)
    labels = Twin.open(twin.folder).labels(scan)
    assert labels is not None
    assert set(np.unique(labels.array)) == {0, 2}
