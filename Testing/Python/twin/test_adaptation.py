"""Adaptation: learning from the patient's own scans, the gate, the delta, the roll-back. Small nets on small balls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from twinseg.errors import Cancelled, InputError
from twinseg.network import NetworkConfig, build_network
from twinseg.preprocessing import PreparedCase
from twinseg.segmentation import LoadedModel
from twinseg.tasks import Label, Region, Sequence, Task, load_task
from twinseg.twin import adaptation
from twinseg.twin.adaptation import (
    PARAMETERS,
    Adaptation,
    AdaptationConfig,
    Comparison,
    adapt,
    fine_tune,
    hold_out,
    keep,
)
from twinseg.twin.adaptation_delta import FILE, active_delta, adapted_network, keep_delta, roll_back
from twinseg.twin.adaptation_general import general_file, general_set, read_set, write_set
from twinseg.twin.store import Twin
from twinseg.volumes import Volume

THOROUGH = AdaptationConfig(parameters="all", steps=60, learning_rate=1e-2, crop=16)
Home = Callable[[bool], Task]


def ball(seed: int, radius: float, bright: bool) -> dict[str, Volume]:
    """Noise with a ball that is brighter (or darker) than the rest, labelled as enhancing tumour (7) in oedema (2)."""
    random = np.random.default_rng(seed)
    distance = np.sqrt(((np.indices((24, 24, 24)) - random.uniform(10, 13, (3, 1, 1, 1))) ** 2).sum(0))
    labels = np.select([distance < radius / 2, distance < radius], [7, 2], 0).astype(np.uint8)
    image = 500 + random.normal(0, 30, labels.shape) + (300 if bright else -300) * (distance < radius)
    images = {name: Volume(np.rint(image).astype(np.float32), np.eye(4)) for name in ("t1", "flair")}
    return {**images, "labels": Volume(labels, np.eye(4))}


def prepared(seed: int, bright: bool) -> PreparedCase:
    scan = ball(seed, 6.0, bright)
    image = np.stack([(scan[name].array - 500) / 150 for name in ("t1", "flair")]).astype(np.float32)
    channels = np.select([scan["labels"].array == 2, scan["labels"].array == 7], [1, 2], 0).astype(np.uint8)
    return PreparedCase(f"ball {seed}", None, image, (True, True), np.eye(4), channels)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Makes a data folder with a task for balls and, in place of synthetic heads, general sets of bright or dark ones
    (whose making is tried in `test_the_general_set_is_made_once`)."""

    def make(bright: bool) -> Task:
        monkeypatch.setenv("TWINSEG_HOME", str(tmp_path / "home"))
        task = Task(
            name="balls",
            title="Balls",
            kind="segmentation",
            modality="MR",
            sequences=(Sequence("t1", "T1"), Sequence("flair", "FLAIR")),
            spacing=(1.0, 1.0, 1.0),
            patch=(16, 16, 16),
            labels=(Label(2, "ED", "Oedema", (9, 9, 9)), Label(7, "ET", "Enhancing tumour", (8, 8, 8))),
            regions=(Region("WT", "Whole tumour", (2, 7)), Region("ET", "Enhancing tumour", (7,))),
            strides=((2, 2, 2), (2, 2, 2)),
            flip_axes=(0,),
        )
        file = tmp_path / "home" / "tasks" / "balls.toml"
        file.parent.mkdir(parents=True)
        file.write_text(task.to_toml(), encoding="utf-8")
        for number, part in enumerate(("test", "rehearsal")):
            path = general_file(task, part)
            path.parent.mkdir(exist_ok=True)
            write_set(path, [prepared(100 * number + seed, bright) for seed in range(2)])
        return load_task("balls")

    return make


@pytest.fixture
def untrained() -> Callable[[Task], LoadedModel]:
    def make(task: Task) -> LoadedModel:
        torch.manual_seed(0)
        config = NetworkConfig(2, 3, channels=(4, 6), strides=((2, 2, 2),) * 2, embedding=24, depth=1, heads=2)
        return LoadedModel(build_network(config).eval(), task, "ab" * 32)

    return make


def patient(folder: Path, visits: int, *, bright: bool = True, origin: str = "expert") -> Twin:
    """A twin of one ball that grows."""
    twin = Twin.create(folder, task="balls")
    for number in range(visits):
        scan = ball(number, 5.0 + number, bright)
        twin.add_timepoint(
            60 * number,
            {name: scan[name] for name in ("t1", "flair")},
            to_baseline=np.eye(4),
            segmentation=(scan["labels"], origin),
        )
    return twin


def weights(model: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_helps_is_accepted_used_and_rolled_back_bit_for_bit(
    tmp_path: Path, home: Home, untrained: Callable[[Task], LoadedModel]
) -> None:
    base = untrained(home(True))
    before, twin = weights(base), patient(tmp_path / "twin", visits=2)

    adapted = adapt(twin, base, config=THOROUGH)
    record = keep(twin, adapted)

    assert adapted.accepted
    assert adapted.strength == 1
    assert adapted.learnt_from == ("001",)
    assert adapted.held_out.on == "the held-out scan 000"
    assert adapted.held_out.adapted > adapted.held_out.base + 0.2
    used, name = adapted_network(Twin.open(twin.folder), base)
    assert name == record.name
    assert same(weights(used), {**before, **adapted.tensors})
    assert not same(weights(used), before)
    assert record.content["base"] == base.hash
    assert "Accepted." in record.content["reason"]

    assert roll_back(twin, base.hash) is None

    again, name = adapted_network(twin, base)
    assert name is None
    assert same(weights(again), before)
    with pytest.raises(InputError, match="nothing to roll back"):
        roll_back(twin, base.hash)


def test_what_harms_others_is_weakened_or_else_kept_but_rejected(
    tmp_path: Path, home: Home, untrained: Callable[[Task], LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = home(True)
    fresh = untrained(task)
    learnt = fine_tune(fresh, [prepared(5, True)], [prepared(6, True)], THOROUGH, "cpu", lambda done, stage: None)
    fresh.network.load_state_dict({**weights(fresh), **learnt})  # a base model that knows bright balls, as others have
    write_set(general_file(task, "rehearsal"), [prepared(7, False)])  # and a training that does not recall them
    twin = patient(tmp_path / "twin", visits=2, bright=False)

    weakened = adapt(twin, fresh, config=THOROUGH)
    monkeypatch.setattr(adaptation, "STRENGTHS", (1.0,))
    adapted = adapt(twin, fresh, config=THOROUGH)
    record = keep(twin, adapted)

    assert weakened.strength < 1
    assert weakened.general.adapted > adapted.general.adapted
    assert adapted.general.base > 0.5
    assert not adapted.general.passed
    assert not adapted.accepted
    assert "Rejected" in adapted.reason
    assert "general set" in adapted.reason.split("Rejected")[1]
    assert FILE in record.files
    assert active_delta(twin, fresh.hash) is None
    assert adapted_network(twin, fresh) == (fresh, None)


def test_the_gate_allows_a_hundredth() -> None:
    assert Comparison("x", 0.80, 0.7901, -0.01).passed
    assert not Comparison("x", 0.80, 0.7899, -0.01).passed
    assert Comparison("x", 0.80, 0.8051, 0.005).passed
    assert not Comparison("x", 0.80, 0.8049, 0.005).passed
    one = Adaptation(
        "a",
        {},
        1.0,
        Comparison("scan", 0.5, 0.9, 0.005),
        Comparison("others", 0.8, 0.7, -0.01),
        ("000",),
        AdaptationConfig(),
        1.0,
    )
    assert not one.accepted
    assert one.reason == (
        "Dice on scan: 0.500 before, 0.900 after; Dice on others: 0.800 before, 0.700 after. "
        "Rejected: it has to lose 0.01 at most on others."
    )


def test_deltas_stack_and_belong_to_their_base(
    tmp_path: Path, home: Home, untrained: Callable[[Task], LoadedModel]
) -> None:
    base, twin = untrained(home(True)), patient(tmp_path / "twin", visits=1)
    bias = base.network.heads[0].bias.detach()
    one = keep_delta(twin, base.hash, {"heads.0.bias": bias + 1}, {"accepted": True})
    keep_delta(twin, base.hash, {"heads.0.bias": bias + 2}, {"accepted": False})
    three = keep_delta(twin, base.hash, {"heads.0.bias": bias + 3}, {"accepted": True})
    keep_delta(twin, "cd" * 32, {"heads.0.bias": bias + 4}, {"accepted": True})

    assert adapted_network(twin, base)[1] == three.name
    back = roll_back(twin, base.hash)

    assert back is not None
    assert back.name == one.name
    used, _ = adapted_network(twin, base)
    assert torch.equal(used.network.heads[0].bias, bias + 1)
    assert torch.equal(base.network.heads[0].bias, bias)


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_only_the_chosen_parameters_move(parameters: str, home: Home, untrained: Callable[[Task], LoadedModel]) -> None:
    base = untrained(home(True))
    before = weights(base)

    config = AdaptationConfig(parameters=parameters, steps=4, crop=16)
    tensors = fine_tune(base, [prepared(1, True)], [], config, "cpu", lambda done, stage: None)

    assert set(tensors) == {name for name, _ in base.network.named_parameters() if PARAMETERS[parameters](name)}
    assert any(not torch.equal(tensor, before[name]) for name, tensor in tensors.items())
    assert same(weights(base), before)
    again = fine_tune(base, [prepared(1, True)], [], config, "cpu", lambda done, stage: None)
    assert same(tensors, again)


def test_a_single_scan_is_cut_in_two() -> None:
    case = prepared(3, True)
    assert case.labels is not None

    training, held_out, words = hold_out([case])

    (_, start) = held_out[0]
    assert training[0].labels is not None
    assert training[0].labels.shape[2] == start  # not one held-out voxel is trained on
    assert training[0].image.shape[3] == start
    share = np.count_nonzero(case.labels[..., start:]) / np.count_nonzero(case.labels)
    assert 0.1 < share <= 1 / 3
    assert "upper third" in words


def test_what_cannot_be_learnt_from_is_said(
    tmp_path: Path, home: Home, untrained: Callable[[Task], LoadedModel]
) -> None:
    base = untrained(home(True))
    with pytest.raises(InputError, match="no corrected scan"):
        adapt(patient(tmp_path / "by a model", visits=2, origin="model"), base)
    flat = prepared(1, True)
    assert flat.labels is not None
    flat.labels[:] = 0
    with pytest.raises(InputError, match="show no tumour"):
        hold_out([flat])
    flat.labels[10, 10, 10] = 1
    with pytest.raises(InputError, match="too small"):
        hold_out([flat])
    with pytest.raises(InputError, match="no synthetic patients"):
        general_set(load_task("lits-liver"), "test")


def test_it_can_be_stopped_and_leaves_nothing(
    tmp_path: Path, home: Home, untrained: Callable[[Task], LoadedModel]
) -> None:
    base, twin = untrained(home(True)), patient(tmp_path / "twin", visits=2)
    revision, before = twin.revision, weights(base)

    with pytest.raises(Cancelled):
        adapt(twin, base, config=THOROUGH, report=lambda done, stage: stage.startswith("learning"))

    assert Twin.open(twin.folder).revision == revision
    assert same(weights(base), before)


def test_a_delta_that_was_tampered_with_is_refused(
    tmp_path: Path, home: Home, untrained: Callable[[Task], LoadedModel]
) -> None:
    base, twin = untrained(home(True)), patient(tmp_path / "twin", visits=1)
    record = keep_delta(twin, base.hash, {"heads.0.bias": torch.zeros(3)}, {"accepted": True})
    path = twin.folder / record.files[FILE]
    content = path.read_bytes()

    path.write_bytes(content[:-1] + b"\x01")
    with pytest.raises(InputError, match="changed since it was written"):
        adapted_network(twin, base)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        adapted_network(twin, base)

    path.write_bytes(content)
    keep_delta(twin, base.hash, {"heads.0.bias": torch.zeros(5)}, {"accepted": True})
    with pytest.raises(InputError, match="does not fit"):
        adapted_network(twin, base)
    keep_delta(twin, base.hash, {"heads.0.bias": torch.full((3,), float("nan"))}, {"accepted": True})
    with pytest.raises(InputError, match="NaN"):
        adapted_network(twin, base)


def test_a_damaged_general_set_is_made_anew(home: Home) -> None:
    task = home(True)
    path = general_file(task, "test")
    assert len(read_set(path, task) or []) == 2
    path.write_bytes(path.read_bytes()[:100])
    assert read_set(path, task) is None


@pytest.mark.slow
def test_the_general_set_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINSEG_HOME", str(tmp_path))
    task = load_task("lgg-flair")

    made = general_set(task, "test")
    read = general_set(task, "test", lambda done, stage: pytest.fail("it was made again"))

    assert all(case.labels is not None and set(np.unique(case.labels)) == {0, 1} for case in made)
    assert all(np.array_equal(one.image, other.image) for one, other in zip(made, read, strict=True))
