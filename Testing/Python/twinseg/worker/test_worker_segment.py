"""The worker segments: as the library does, on the reference's grid, whole files or none, refused or stopped if due."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from twinseg.calibration import Calibration
from twinseg.cases import LoadedCase
from twinseg.errors import Cancelled
from twinseg.inference import segment
from twinseg.model_file import load_model, save_model
from twinseg.phantom import Scanner, make_patient
from twinseg.preprocessing import PreparedCase
from twinseg.region_volumes import region_volumes
from twinseg.segmentation import load_network, starter_model
from twinseg.tasks import Task
from twinseg.volumes import Volume
from twinseg.worker_models import file_state, looked_in_on, warm_model

BRATS = Path(__file__).resolve().parents[5] / "shared/data/brats-gli"


def files(request: dict[str, Any]) -> set[str]:
    return {path.name for path in Path(request["labels"]).parent.iterdir()}


def test_a_phantom_is_segmented_as_by_the_library(worker: Any, wanted: dict[str, Any]) -> None:
    messages = worker.until_answered(worker.ask("segment", **wanted))

    value = messages[-1]["value"]
    model = load_network(Path(wanted["model"]))
    images = {
        name: Volume(np.load(entry["array"]), np.array(entry["affine"])) for name, entry in wanted["images"].items()
    }
    expected = segment(model.network, LoadedCase(images, images["flair"], None), model.task, uncertainty=True)
    labels, uncertainty = np.load(wanted["labels"]), np.load(wanted["uncertainty"])
    # Two processes may choose different types of numbers (bfloat16 or float32), which moves a border by little.
    assert np.mean(labels == expected.labels.array) > 0.97
    assert np.abs(uncertainty - expected.uncertainty.array).mean() < 0.01
    assert (labels.dtype, labels.shape) == (np.uint8, (32, 32, 32))
    assert (uncertainty.dtype, uncertainty.shape) == (np.float32, (32, 32, 32))
    assert labels.any()
    assert value["model"] == model.hash
    assert (value["task"], value["model_title"], value["missing"]) == ("toy", "toy 1", [])
    assert value["computed"] == "cpu, whole volume"
    assert value["seconds"] > 0
    assert value["volumes_ml"]["WT"]["volume"] == pytest.approx(np.count_nonzero(labels) / 1000, abs=1e-4)
    for volume in value["volumes_ml"].values():
        assert 0 <= volume["low"] <= volume["volume"] <= volume["high"]
    shares = [message["done"] for message in messages[:-1] if message["type"] == "progress"]
    assert shares == sorted(shares)
    assert len(shares) >= 5
    assert files(wanted) == {"t1.npy", "flair.npy", "labels.npy", "uncertainty.npy"}


def test_the_starter_model_finds_a_phantom_s_tumour_without_a_sequence(worker: Any, tmp_path: Path) -> None:
    patient = make_patient(5, scanner=Scanner.for_site(0, 0), size=64, spacing=2.5, kind="ring")
    images = {}
    for name in ("t1ce", "t2", "flair"):
        np.save(tmp_path / f"{name}.npy", patient.images[name].array)
        images[name] = {"array": str(tmp_path / f"{name}.npy"), "affine": patient.images[name].affine.tolist()}

    answer = worker.answer(
        "segment", task="brats-glioma", images=images, reference="t1ce", labels=str(tmp_path / "out.npy")
    )

    assert answer["value"]["missing"] == ["t1"]
    drawn, truth = np.load(tmp_path / "out.npy") > 0, patient.labels.array > 0
    assert (drawn & truth).sum() / truth.sum() > 0.5
    assert drawn.mean() < 0.05
    assert files({"labels": str(tmp_path / "out.npy")}) == {"t1ce.npy", "t2.npy", "flair.npy", "out.npy"}


def test_the_result_lies_on_the_reference_s_grid_whatever_the_arrays_look_like(
    worker: Any, wanted: dict[str, Any]
) -> None:
    """t1 in another number type, order in memory and grid (flipped, and every second slice)."""
    t1 = wanted["images"]["t1"]
    array = np.load(t1["array"])[::-1, :, ::2].astype(np.int16)
    np.save(t1["array"], np.asfortranarray(array))
    moved = np.array(t1["affine"]) @ np.diag([-1.0, 1, 2, 1])
    moved[:3, 3] += np.array(t1["affine"])[:3, 0] * 31
    t1["affine"] = moved.tolist()
    other = {**wanted, "reference": "t1", "labels": wanted["labels"].replace("labels", "on t1")}

    assert worker.answer("segment", **wanted)["type"] == "result"
    assert worker.answer("segment", **other)["type"] == "result"

    on_flair, on_t1 = np.load(wanted["labels"]), np.load(other["labels"])
    assert (on_flair.shape, on_t1.shape) == ((32, 32, 32), (32, 32, 16))
    assert np.mean(on_flair[::-1, :, ::2] == on_t1) > 0.8


def spoil(array: np.ndarray, how: str) -> np.ndarray:
    spoiled = {
        "4-D": np.stack([array, array], -1),
        "2-D": array[0],
        "empty": array[:0],
        "NaN": np.where(array > 100, np.nan, array),
        "infinite in float32": array.astype(float) * 1e300,
        "constant": np.full_like(array, 7),
        "pickled": np.array([{"a": 1}]),
        "complex": array.astype(complex),
        "text": np.array(["a", "b"]),
    }
    return spoiled[how]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("4-D", "flair: 4-D image (32, 32, 32, 2), but one 3-D volume is needed"),
        ("2-D", "flair: 2-D image (32, 32), but a 3-D volume is needed"),
        ("empty", "flair: the image is empty (0, 32, 32)"),
        ("NaN", "flair: it holds NaN or infinite values"),
        ("infinite in float32", "flair: it holds NaN or infinite values"),
        ("constant", "flair: every voxel is 7, so there is no image in it"),
        ("pickled", "flair: its .npy file cannot be read"),
        ("complex", "flair: colour, complex or no voxels"),
        ("text", "flair: colour, complex or no voxels"),
    ],
)
def test_an_image_that_is_none_is_refused(worker: Any, wanted: dict[str, Any], how: str, said: str) -> None:
    file = wanted["images"]["flair"]["array"]
    np.save(file, spoil(np.load(file), how))

    refused(worker, wanted, said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "knee"}, "knee: no such task"),
        ({"task": "lgg-flair"}, "a model for another task"),
        ({"model": "/nowhere/m.safetensors"}, "/nowhere/m.safetensors: the model cannot be read"),
        ({"model": __file__}, "not a .safetensors file"),
        ({"model": "a\0b"}, "the model cannot be read"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"flips": "yes"}, "the field 'flips' must be true or false, not 'yes'"),
        ({"images": {}}, "no image was chosen; choose at least one of t1, flair"),
        ({"images": None}, "the field 'images' is missing"),
        ({"images": {"pet": {}}}, "pet: the task toy has no such sequence; it has t1, flair"),
        ({"images": {"flair": "flair.npy"}}, "flair: it must be given as a file"),
        ({"reference": "t2"}, "t2: the result should lie on its grid, but it is not among the images"),
        ({"labels": "/nowhere/labels.npy"}, "/nowhere/labels.npy: its folder does not exist"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(
    worker: Any, wanted: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    refused(worker, wanted | changes, said)


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.eye(3), np.full((4, 4), np.nan), np.diag([1, 1, 0, 1])])
def test_an_affine_that_is_none_is_refused(worker: Any, wanted: dict[str, Any], affine: np.ndarray) -> None:
    wanted["images"]["t1"]["affine"] = affine.tolist()

    refused(worker, wanted, "t1: its affine is not 4x4 numbers that can be inverted")


def test_images_that_lie_apart_are_refused(worker: Any, wanted: dict[str, Any]) -> None:
    wanted["images"]["t1"]["affine"][0][3] += 28

    refused(worker, wanted, "t1: only 12% of its field of view is common with flair")


def test_one_file_for_both_results_is_refused(worker: Any, wanted: dict[str, Any]) -> None:
    refused(worker, {**wanted, "uncertainty": wanted["labels"]}, "two results need a file each")


def test_a_file_that_is_cut_short_is_refused(worker: Any, wanted: dict[str, Any]) -> None:
    file = Path(wanted["images"]["t1"]["array"])
    file.write_bytes(file.read_bytes()[:5000])

    refused(worker, wanted, "t1: its .npy file cannot be read")


def refused(worker: Any, request: dict[str, Any], said: str) -> None:
    answer = worker.answer("segment", **request)
    assert (answer["type"], answer["kind"]) == ("error", "input"), answer
    assert said in answer["message"]
    assert "\n" not in answer["message"]
    assert not Path(request["labels"]).exists()


# --- stopped, killed, out of space -----------------------------------------------------------------------------------


def test_cancelled_at_once_it_leaves_no_file_and_the_next_one_works(worker: Any, wanted: dict[str, Any]) -> None:
    before = files(wanted)
    number = worker.ask("segment", **wanted)
    worker.ask("cancel", target=number)

    answer = worker.until_answered(number)[-1]

    assert answer["kind"] == "cancelled"
    assert files(wanted) == before
    assert worker.answer("segment", **wanted)["type"] == "result"


@pytest.mark.parametrize("stage", ["reading the images", "segmenting"])
def test_killed_at_a_stage_it_leaves_no_file_and_a_new_one_works(
    start: Callable[..., Any], worker: Any, wanted: dict[str, Any], stage: str
) -> None:
    before = files(wanted)
    # It stays where it says that it is, so that the kill strikes there.
    wait = "import time\nfrom twinseg.worker import Request\ntell = Request.progress\n"
    wait += "def progress(request, done, stage):\n    tell(request, done, stage)\n"
    wait += f"    time.sleep(600 if stage == {stage!r} else 0)\nRequest.progress = progress"
    child = start(before=wait)
    child.ask("segment", **wanted)
    while child.hear().get("stage") != stage:
        pass

    child.process.kill()

    assert child.wait() != 0
    assert files(wanted) == before
    assert worker.answer("segment", **wanted)["type"] == "result"


def test_killed_while_it_writes_it_leaves_no_result_by_its_name(
    start: Callable[..., Any], wanted: dict[str, Any]
) -> None:
    child = start(before="import os, time\nos.replace = lambda source, target: time.sleep(600)")
    child.ask("segment", **wanted)
    while not any(name.endswith("-labels.npy") for name in files(wanted)):
        time.sleep(0.01)

    child.process.kill()

    assert child.wait() != 0
    assert not files(wanted) & {"labels.npy", "uncertainty.npy"}


@pytest.mark.skipif(os.name != "posix", reason="the size of files is limited on POSIX only")
@pytest.mark.parametrize("room", [1000, 100_000])  # neither file fits; the labels do and the uncertainty does not
def test_a_full_disk_leaves_neither_file(start: Callable[..., Any], wanted: dict[str, Any], room: int) -> None:
    before = files(wanted)
    child = start(before=f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))")

    answer = child.answer("segment", **wanted)

    assert answer["kind"] == "memory", answer
    assert "no space left to write it" in answer["message"]
    assert files(wanted) == before
    child.process.kill()


def test_a_smaller_way_that_is_taken_is_said(start: Callable[..., Any], wanted: dict[str, Any]) -> None:
    child = start(
        before="from twinseg import inference\nfree = iter([0, 1e12])\ninference.free_memory = lambda d: next(free)"
    )

    messages = child.until_answered(child.ask("segment", **wanted))

    notices = [message["message"] for message in messages if message["type"] == "notice"]
    assert len(notices) == 1
    assert notices[0].startswith("cpu, whole volume would need")
    assert messages[-1]["value"]["computed"] == "cpu, windows of 16×16×16"
    child.process.kill()


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.passed = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passed += 1
        return x


def test_a_pass_stops_between_two_layers() -> None:
    layers = [Counted() for _ in range(5)]
    network = nn.Sequential(*layers)
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 4:  # the network itself, and two layers
            raise Cancelled("now")

    with pytest.raises(Cancelled), looked_in_on(network, look):
        network(torch.zeros(1))
    network(torch.zeros(1))  # nobody looks any longer

    assert looks == 4
    assert [layer.passed for layer in layers] == [2, 2, 1, 1, 1]


# --- warm models -----------------------------------------------------------------------------------------------------


def test_two_models_stay_warm_and_one_that_was_replaced_is_read_anew(
    toy: Task, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    paths = [make_model(tmp_path / f"{number}.safetensors", number) for number in range(3)]

    def load(number: int) -> Any:
        return warm_model(*file_state(paths[number]), toy)

    warm_model.cache_clear()
    first, second = load(0), load(1)

    assert load(0) is first
    assert load(1) is second
    load(2)
    assert load(1) is second
    assert load(0) is not first
    shutil.copy(paths[2], paths[1])
    os.utime(paths[1], ns=(1, 1))
    assert load(1).hash == load(2).hash != second.hash


# --- volumes ---------------------------------------------------------------------------------------------------------


def test_a_volume_s_interval_is_that_of_the_level_sets(toy: Task) -> None:
    """A border that fades over five voxels of 8 mm³: sure from 1 to 10, drawn from 11 to 12, and possible up to 14."""
    region = np.zeros(20, np.float32)
    region[:15] = [0.95] * 11 + [0.7, 0.55, 0.3, 0.12]
    probabilities = np.stack([1 - region, region * 0.6, region * 0.4]).reshape(3, 20, 1, 1)
    spacing = np.diag([2.0, 2, 2, 1])
    labels = Volume((region > 0.5).astype(np.uint8).reshape(20, 1, 1) * 2, spacing)
    prepared = PreparedCase("", None, np.zeros((2, 20, 1, 1), np.float32), (True, True), spacing, None)

    volumes = region_volumes(labels, probabilities, prepared, toy)

    assert volumes["WT"] == pytest.approx({"volume": 0.104, "low": 0.088, "high": 0.12, "level": 0.8})
    assert volumes["ET"] == pytest.approx({"volume": 0.0, "low": 0.0, "high": 0.112, "level": 0.8})


def test_a_calibrated_model_s_intervals_are_wider_and_say_so(
    worker: Any, wanted: dict[str, Any], tmp_path: Path
) -> None:
    plain = worker.answer("segment", **wanted)["value"]["volumes_ml"]
    model = load_model(wanted["model"])
    calibration = Calibration(12, "elsewhere", "all", ("t1",), {}, {"WT": 0.7})
    told = {"network": model.card.network, "provenance": {"calibration": calibration.to_json()}}
    save_model(tmp_path / "calibrated.safetensors", model.tensors, task=model.card.task, **told)

    wider = worker.answer("segment", **{**wanted, "model": str(tmp_path / "calibrated.safetensors")})
    volumes = wider["value"]["volumes_ml"]

    assert {region: one["level"] for region, one in plain.items()} == dict.fromkeys(plain, 0.8)
    assert volumes["WT"] == pytest.approx(
        {
            "volume": plain["WT"]["volume"],
            "low": max(0, (plain["WT"]["low"] + 1) * math.exp(-0.7) - 1),
            "high": (plain["WT"]["high"] + 1) * math.exp(0.7) - 1,
            "level": 0.9,
        },
        abs=2e-4,
    )
    assert volumes["ET"] == plain["ET"]  # has no margin


def test_the_interval_holds_the_volume_whatever_was_cleaned_up(toy: Task) -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        probabilities = random.dirichlet(np.full(3, 0.3), 64).T.reshape(3, 4, 4, 4).astype(np.float32)
        labels = Volume(random.choice(np.array([0, 2, 7], np.uint8), (4, 4, 4)), np.eye(4))
        prepared = PreparedCase("", None, np.zeros((2, 4, 4, 4), np.float32), (True, True), np.eye(4), None)

        for volume in region_volumes(labels, probabilities, prepared, toy).values():
            assert volume["low"] <= volume["volume"] <= volume["high"]


# --- a real case -----------------------------------------------------------------------------------------------------


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


@pytest.mark.slow
@pytest.mark.skipif(not BRATS.is_dir(), reason="the BraTS case is not there (shared/data/brats-gli)")
def test_a_real_case_is_cancelled_at_any_moment_within_a_second(
    start: Callable[..., Any], glioma: Task, tmp_path: Path
) -> None:
    from twinseg.cases import find_cases
    from twinseg.volumes import read_image

    images = {}
    for name, file in find_cases(BRATS, glioma)[0].images.items():
        volume = read_image(file)
        np.save(tmp_path / f"{name}.npy", volume.array)
        images[name] = {"array": str(tmp_path / f"{name}.npy"), "affine": volume.affine.tolist()}
    request = {"task": "brats-glioma", "images": images, "reference": "flair", "labels": str(tmp_path / "labels.npy")}
    child = start()
    moments = np.random.default_rng(0).uniform(0, 4, 12)
    cancelled = 0

    for moment in moments:
        number = child.ask("segment", **request)
        time.sleep(moment)
        with within(1.0):
            child.ask("cancel", target=number)
            answer = child.until_answered(number)[-1]
        if answer["type"] == "error":
            assert answer["kind"] == "cancelled"
            assert not Path(request["labels"]).exists()
            cancelled += 1
        Path(request["labels"]).unlink(missing_ok=True)

    assert cancelled
    assert child.answer("segment", **request)["value"]["model"] == load_network(starter_model("brats-glioma")).hash
