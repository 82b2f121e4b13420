"""The trainer: it learns, resumes bit for bit, keeps the best weights, stops when told or when nothing is gained."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from twinseg import inference
from twinseg.errors import InputError
from twinseg.network import NetworkConfig, build_network
from twinseg.preprocessing import PreparedCase
from twinseg.tasks import Task
from twinseg.trainer import TrainingProgress, schedule
from twinseg.training import SegmentationConfig, SegmentationLoss, SegmentationTrainer

CONFIG = NetworkConfig(2, 3, channels=(8, 12), strides=((2, 2, 2),) * 2, embedding=24, depth=1, heads=2)


def blob(seed: int) -> PreparedCase:
    """A noisy cube with a bright ball (channel 1) around a brighter one (channel 2), somewhere."""
    random = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*[np.arange(20)] * 3, indexing="ij"), -1)
    distance = np.linalg.norm(places - random.uniform(7, 13, 3), axis=-1)
    labels = np.where(distance < 3.5, 2, np.where(distance < 6, 1, 0)).astype(np.uint8)
    image = random.normal(0, 0.2, (2, 20, 20, 20)) + np.stack([labels * 1.5, labels * -1.0])
    return PreparedCase(f"P{seed}", None, image.astype(np.float32), (True, True), np.eye(4), labels)


def trainer(
    task: Task, config: SegmentationConfig, network: NetworkConfig = CONFIG, validation: int = 1
) -> SegmentationTrainer:
    torch.manual_seed(0)
    cases = [blob(seed) for seed in range(3)]
    return SegmentationTrainer(
        build_network(network), task, cases, [blob(seed) for seed in range(10, 10 + validation)], config
    )


def copies(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights.items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Scripted(SegmentationTrainer):
    """A trainer whose validation gives the score that the script says."""

    script: Iterator[float]

    def scores(self) -> list[float]:
        return [next(self.script)]


def scripted(task: Task, script: list[float], **settings) -> Scripted:
    torch.manual_seed(0)
    made = Scripted(build_network(CONFIG), task, [blob(0)], [], SegmentationConfig(**settings))
    made.script = iter(script)
    return made


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_a_short_training_learns_blobs(toy: Task, deep_supervision: bool) -> None:
    config = SegmentationConfig(epochs=40, validations=1, learning_rate=3e-3)
    learner = trainer(toy, config, replace(CONFIG, deep_supervision=deep_supervision), validation=2)
    before = np.mean(learner.validation_scores(learner.averaged_weights))

    learner.run()

    assert before < 0.4
    assert learner.state.best_score > 0.8
    assert learner.state.best_score == pytest.approx(np.mean(learner.validation_scores(learner.best_weights)))


def test_coarser_predictions_are_held_against_the_labels_at_their_own_places(toy: Task) -> None:
    learner = trainer(toy, SegmentationConfig(epochs=1), replace(CONFIG, deep_supervision=True))
    labels = blob(0).labels
    assert labels is not None
    cut = torch.from_numpy(labels)[None, None, :18, :, :17]  # no multiple of the strides: the network pads it
    padded = functional.pad(cut, (0, 3, 0, 0, 0, 2))[..., ::2, ::2, ::2]
    right = [50.0 * functional.one_hot(one[:, 0].long(), 3).movedim(-1, 1) for one in (cut, padded)]

    loss = learner.supervised_loss(right, cut)

    assert [tuple(one.shape[2:]) for one in right] == [(18, 20, 17), (10, 10, 10)]
    assert float(loss) < 0.01


def test_progress_is_told_after_each_step(toy: Task) -> None:
    told: list[TrainingProgress] = []

    trainer(toy, SegmentationConfig(epochs=4, validations=2)).run(told.append)

    assert [progress.step for progress in told] == list(range(1, 13))
    assert [progress.done for progress in told] == pytest.approx([step / 12 for step in range(1, 13)])
    assert [progress.step for progress in told if progress.score is not None] == [6, 12]
    assert all(np.isfinite(progress.loss) for progress in told)


def test_batches_of_several_crops(toy: Task) -> None:
    learner = trainer(toy, SegmentationConfig(epochs=2, batch_size=2))

    learner.run()

    assert learner.state.step == 4
    assert learner.done == 1


def test_validation_does_not_change_what_is_learnt(toy: Task) -> None:
    seldom, often = (trainer(toy, SegmentationConfig(epochs=2, validations=count)) for count in (1, 6))

    seldom.run()
    often.run()

    assert len(often.state.history) == 6
    assert equal(seldom.network.state_dict(), often.network.state_dict())


def test_training_in_minutes_ends_with_the_clock(toy: Task) -> None:
    learner = trainer(toy, SegmentationConfig(minutes=0.02, validations=3))
    started = time.perf_counter()

    learner.run()

    assert time.perf_counter() - started >= 1.2
    assert learner.done == 1
    assert learner.state.history[-1]["step"] == learner.state.step
    assert learner.state.history[-1]["seconds"] <= learner.state.seconds


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    rates = [schedule(done) for done in np.linspace(0, 1, 501)]

    assert 0 < rates[0] < 0.05
    assert np.argmax(rates) == pytest.approx(10, abs=1)
    assert max(rates) == pytest.approx(1, abs=0.01)
    assert rates[12:] == sorted(rates[12:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_a_resumed_training_equals_an_unbroken_one_bit_for_bit(toy: Task, tmp_path: Path, stop_after: int) -> None:
    config = SegmentationConfig(epochs=2, validations=4)
    whole = trainer(toy, config)
    whole.run()

    first = trainer(toy, config)
    first.run(lambda progress: progress.step == stop_after)
    first.save(tmp_path / "half.checkpoint")
    torch.manual_seed(99)
    second = SegmentationTrainer(build_network(CONFIG), toy, [blob(seed) for seed in range(3)], [blob(10)], config)
    second.resume(tmp_path / "half.checkpoint")
    assert second.state.step == stop_after
    second.run()

    assert second.state.step == whole.state.step == 6
    assert equal(second.network.state_dict(), whole.network.state_dict())
    assert equal(second.averaged_weights, whole.averaged_weights)
    assert equal(second.best_weights, whole.best_weights)
    assert second.state.best_score == whole.state.best_score
    assert second.state.without_gain == whole.state.without_gain
    for one, other in zip(second.state.history, whole.state.history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    ours, theirs = (run.optimizer.state_dict()["state"] for run in (second, whole))
    assert ours.keys() == theirs.keys() != set()
    assert all(equal(ours[index], theirs[index]) for index in ours)


def test_a_stopped_training_goes_on_in_the_same_process_too(toy: Task) -> None:
    config = SegmentationConfig(epochs=2, validations=2)
    whole, halved = trainer(toy, config), trainer(toy, config)

    whole.run()
    halved.run(lambda progress: progress.step == 3)
    halved.run()

    assert equal(halved.network.state_dict(), whole.network.state_dict())


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")
def test_loader_processes_do_not_change_the_training(toy: Task) -> None:
    alone, helped = (
        trainer(toy, SegmentationConfig(epochs=2, validations=1, loader_processes=count)) for count in (0, 2)
    )

    alone.run()
    helped.run()

    assert equal(helped.network.state_dict(), alone.network.state_dict())


def test_a_checkpoint_survives_being_overwritten_after_resuming(toy: Task, tmp_path: Path) -> None:
    """What was resumed must not hang on the file: it is written again two minutes later."""
    path = tmp_path / "a.checkpoint"
    first = trainer(toy, SegmentationConfig(epochs=1, validations=1))
    first.save(path)
    second = trainer(toy, SegmentationConfig(epochs=1, validations=1))
    second.resume(path)
    before = copies(second.best_weights)

    with open(path, "r+b") as file:  # in place, as no careful program would
        file.write(b"\0" * path.stat().st_size)

    assert equal(second.best_weights, before)


def test_a_checkpoint_of_other_settings_is_refused(toy: Task, tmp_path: Path) -> None:
    trainer(toy, SegmentationConfig(epochs=2)).save(tmp_path / "a.checkpoint")

    with pytest.raises(InputError, match=r"a\.checkpoint: was made with other training settings"):
        trainer(toy, SegmentationConfig(epochs=3)).resume(tmp_path / "a.checkpoint")


@pytest.mark.parametrize("change", [{"channels": (8, 16)}, {"depth": 2}, {"variant": "cnn"}])
def test_a_checkpoint_of_another_network_is_refused_and_changes_nothing(
    toy: Task, tmp_path: Path, change: dict
) -> None:
    config = SegmentationConfig(epochs=2)
    trainer(toy, config, replace(CONFIG, **change)).save(tmp_path / "a.checkpoint")
    fresh = trainer(toy, config)
    before = copies(fresh.network.state_dict())

    with pytest.raises(InputError, match=r"a\.checkpoint: was made with another network"):
        fresh.resume(tmp_path / "a.checkpoint")

    assert equal(fresh.network.state_dict(), before)
    fresh.run(lambda progress: True)


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"\x10\0\0\0\0\0\0\0" + b"{}" * 20])
def test_what_is_no_checkpoint_is_refused(toy: Task, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.checkpoint").write_bytes(content)

    with pytest.raises(InputError, match=r"a\.checkpoint: ") as error:
        trainer(toy, SegmentationConfig(epochs=2)).resume(tmp_path / "a.checkpoint")

    assert "\n" not in str(error.value)


# --- the best, and enough --------------------------------------------------------------------------------------------


def test_the_best_weights_are_those_of_the_best_validation(toy: Task) -> None:
    learner = scripted(toy, [0.1, 0.9, 0.2, 0.3], epochs=4, validations=4)
    averages: list[dict[str, Tensor]] = []

    learner.run(lambda progress: averages.append(copies(learner.averaged_weights)))

    assert learner.state.best_score == 0.9
    assert learner.state.without_gain == 2
    assert equal(learner.best_weights, averages[1])
    assert not equal(learner.best_weights, averages[3])
    assert not equal(averages[0], averages[1])


def test_best_average_and_network_share_no_memory(toy: Task, tmp_path: Path) -> None:
    learner = scripted(toy, [0.5] * 9, epochs=3, validations=3)
    learner.run(lambda progress: progress.step == 2)
    learner.save(tmp_path / "a.checkpoint")
    resumed = scripted(toy, [0.5] * 9, epochs=3, validations=3)
    resumed.resume(tmp_path / "a.checkpoint")

    for one in (learner, resumed):
        parts = (one.network.state_dict(), one.averaged_weights, one.best_weights)
        places = [tensor.data_ptr() for part in parts for tensor in part.values()]
        assert len(set(places)) == len(places)


def test_the_average_follows_its_formula(toy: Task) -> None:
    learner = scripted(toy, [0.5] * 9, epochs=2, validations=1, average_decay=0.2)
    expected = copies(learner.averaged_weights)

    def follow(progress: TrainingProgress) -> None:
        decay = min(0.2, (1 + progress.step) / (10 + progress.step))
        for name, tensor in learner.network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor

    learner.run(follow)

    assert all(torch.allclose(learner.averaged_weights[name], expected[name], atol=1e-6) for name in expected)


def test_patience_ends_a_training_that_gains_nothing(toy: Task) -> None:
    learner = scripted(toy, [0.5, 0.6, *[0.6] * 20], epochs=20, validations=20, patience=3)

    learner.run()

    assert learner.state.step == 5
    assert learner.done < 1


def test_without_validation_cases_the_last_average_is_kept(toy: Task) -> None:
    learner = trainer(toy, SegmentationConfig(epochs=2, validations=2, patience=1), validation=0)

    learner.run()

    assert learner.done == 1
    assert equal(learner.best_weights, learner.averaged_weights)
    assert all("score" not in row for row in learner.state.history)


# --- the loss --------------------------------------------------------------------------------------------------------


def test_the_loss_is_nothing_for_the_truth_and_much_for_its_opposite(toy: Task) -> None:
    labels = torch.from_numpy(blob(0).labels)[None, None]
    sure = torch.nn.functional.one_hot(labels[:, 0].long(), 3).movedim(-1, 1) * 40.0
    loss = SegmentationLoss(toy, 0.5)

    assert loss(sure, labels) < 0.01
    assert loss(sure.flip(1), labels) > 5


def test_lambda_weighs_dice_against_cross_entropy(toy: Task) -> None:
    labels, logits = torch.from_numpy(blob(0).labels)[None, None], torch.randn(1, 3, 20, 20, 20)
    dice, entropy, mixed = (float(SegmentationLoss(toy, weight)(logits, labels)) for weight in (1, 0, 0.3))

    assert entropy == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels[:, 0].long())))
    assert mixed == pytest.approx(0.3 * dice + 0.7 * entropy, rel=1e-5)


def test_the_dice_loss_is_taken_on_the_nested_regions(toy: Task) -> None:
    labels = torch.from_numpy(blob(0).labels)[None, None]
    probabilities = torch.softmax(torch.randn(1, 3, 20, 20, 20), 1)
    expected = []
    for channels in ((1, 2), (2,)):  # WT holds both labels, ET the second
        region, truth = probabilities[0, list(channels)].sum(0), torch.isin(labels[0, 0], torch.tensor(channels))
        expected.append(1 - (2 * (region * truth).sum() + 1) / (region.sum() + truth.sum() + 1))

    loss = SegmentationLoss(toy, 1.0)(probabilities.log(), labels)

    assert float(loss) == pytest.approx(float(sum(expected) / 2), abs=1e-4)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_no_case_to_train_on(toy: Task) -> None:
    with pytest.raises(InputError, match="no labelled case to train on"):
        SegmentationTrainer(build_network(CONFIG), toy, [], [], SegmentationConfig(epochs=1))


@pytest.mark.parametrize("both", [{}, {"epochs": 1, "minutes": 1.0}])
def test_either_epochs_or_minutes(toy: Task, both: dict) -> None:
    with pytest.raises(ValueError, match="either epochs or minutes"):
        trainer(toy, SegmentationConfig(**both))


def test_float32_is_used_where_bfloat16_is_slow(toy: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "bfloat16_is_faster", lambda: False)
    learner = trainer(toy, SegmentationConfig(epochs=1))
    kinds = set()
    learner.network.stem.convolution.register_forward_hook(lambda module, given, made: kinds.add(made.dtype))

    learner.run()

    assert kinds == {torch.float32}
