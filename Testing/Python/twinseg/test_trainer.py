"""The trainer alone, on a line to fit: what a federation's site and a patient's adaptation ask of it."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import get_track_meta
from torch import Tensor, nn
from torch.nn import functional

from twinseg.errors import InputError
from twinseg.trainer import ExtraLoss, RandomSamples, Trainer, TrainingConfig

CONFIG = TrainingConfig(epochs=20, learning_rate=0.1, weight_decay=0.0, average_decay=0.5, validations=4)


class Points(RandomSamples):
    """Eight points of y = 2x + 1; which x is the only random change."""

    def sample(self, number: int, random: np.random.Generator) -> dict[str, Tensor]:
        x = torch.tensor([number + float(random.uniform(-0.5, 0.5))]) / 8
        return {"image": x, "labels": 2 * x + 1}


class LineTrainer(Trainer[nn.Module]):
    score_name = "closeness"

    def supervised_loss(self, outputs: Tensor | list[Tensor], labels: Tensor) -> Tensor:
        assert isinstance(outputs, Tensor)
        return functional.mse_loss(outputs.float(), labels)

    def scores(self) -> list[float]:
        x = torch.linspace(0, 1, 5)[:, None]
        with torch.inference_mode():
            return (-(self.network(x) - (2 * x + 1)).abs()).flatten().tolist()


def line() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 1))


def trainer(network: nn.Module, config: TrainingConfig = CONFIG, extra_loss: ExtraLoss | None = None) -> LineTrainer:
    return LineTrainer(network, Points(8, config.seed), config, extra_loss=extra_loss)


def copies(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_a_score_may_be_negative_and_the_best_is_the_highest() -> None:
    learner = trainer(line())

    learner.run()

    scores = [row["score"] for row in learner.state.history]
    assert len(scores) == 4
    assert learner.state.best_score == max(scores) < 0
    assert np.mean(learner.validation_scores(learner.best_weights)) == pytest.approx(max(scores))
    assert max(scores) > -0.3


def test_each_sample_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    points = Points(8, seed=3)

    epochs = [[round(float(points[index]["image"]) * 8) for index in range(start, start + 8)] for start in (0, 8)]

    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(8))
    assert epochs[0] != epochs[1]


def test_two_trainings_in_one_process_leave_monais_switch_as_it_was() -> None:
    first_is_in, second_is_started = threading.Event(), threading.Event()

    class Slow(Points):
        def sample(self, number: int, random: np.random.Generator) -> dict[str, Tensor]:
            first_is_in.set()
            second_is_started.wait(10)
            time.sleep(0.05)  # the other thread stands at the switch by now
            return super().sample(number, random)

    def take_second() -> None:
        first_is_in.wait(10)
        second_is_started.set()
        Slow(8, seed=1)[0]

    threads = [threading.Thread(target=lambda: Slow(8, seed=0)[0]), threading.Thread(target=take_second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert get_track_meta()


def test_a_site_trains_given_weights_for_its_local_epochs() -> None:
    network, given = line(), {name: torch.full_like(tensor, 0.5) for name, tensor in line().state_dict().items()}
    network.load_state_dict(given)

    site = trainer(network, replace(CONFIG, epochs=2, batch_size=3))

    assert all(torch.equal(site.best_weights[name], given[name]) for name in given)
    site.run()
    assert site.state.step == 6  # three batches of up to three hold the eight points
    assert not any(torch.equal(site.network.state_dict()[name], given[name]) for name in given)


def test_a_proximal_term_holds_the_weights_near_those_given() -> None:
    """FedProx (Li et al. 2020, eq. 2): mu / 2 times the squared distance from the weights of the round."""
    moved = []
    for mu in (0.0, 1000.0):
        network = line()
        given = [parameter.detach().clone() for parameter in network.parameters()]

        def pull(network: nn.Module, given: list[Tensor] = given, mu: float = mu) -> Tensor:
            pairs = zip(network.parameters(), given, strict=True)
            return mu / 2 * torch.stack([(now - then).square().sum() for now, then in pairs]).sum()

        trainer(network, extra_loss=pull).run()
        moved.append(
            sum(float((now - then).detach().abs().sum()) for now, then in zip(network.parameters(), given, strict=True))
        )

    assert moved[1] < 0.2 * moved[0]


def test_only_parameters_that_ask_for_a_gradient_are_trained() -> None:
    network = line()
    network[0].requires_grad_(False)
    before = copies(network)

    learner = trainer(network)
    learner.run()

    for weights in (network.state_dict(), learner.averaged_weights, learner.best_weights):
        for name, tensor in weights.items():
            assert torch.equal(tensor, before[name]) == name.startswith("0.")


def test_a_training_of_some_parameters_resumes_bit_for_bit(tmp_path: Path) -> None:
    def adapted() -> LineTrainer:
        network = line()
        network[0].requires_grad_(False)
        return trainer(network)

    whole, first, second = adapted(), adapted(), adapted()
    whole.run()
    first.run(lambda progress: progress.step == 33)
    first.save(tmp_path / "a.checkpoint")

    second.resume(tmp_path / "a.checkpoint")
    second.run()

    assert all(torch.equal(t, whole.best_weights[name]) for name, t in second.best_weights.items())
    assert all(torch.equal(t, whole.network.state_dict()[name]) for name, t in second.network.state_dict().items())


def test_a_checkpoint_in_which_other_parameters_were_trained_is_refused(tmp_path: Path) -> None:
    partly = line()
    partly[0].requires_grad_(False)
    learner = trainer(partly)
    learner.run(lambda progress: True)
    learner.save(tmp_path / "a.checkpoint")

    with pytest.raises(InputError, match=r"a\.checkpoint: other parameters were trained in it"):
        trainer(line()).resume(tmp_path / "a.checkpoint")


def test_a_checkpoint_from_before_the_first_step(tmp_path: Path) -> None:
    trainer(line()).save(tmp_path / "a.checkpoint")
    whole, resumed = trainer(line()), trainer(line())

    resumed.resume(tmp_path / "a.checkpoint")
    for one in (whole, resumed):
        one.run()

    assert all(torch.equal(t, whole.best_weights[name]) for name, t in resumed.best_weights.items())


def test_a_training_that_would_keep_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="validated at least once"):
        replace(CONFIG, validations=0)


class SometimesNot(LineTrainer):
    """Its loss is no number at the steps that it is told."""

    lost: range = range(3, 5)

    def supervised_loss(self, outputs: Tensor | list[Tensor], labels: Tensor) -> Tensor:
        factor = float("nan") if self.state.step in self.lost else 1.0
        return factor * super().supervised_loss(outputs, labels)


def test_a_gradient_that_is_no_number_changes_nothing() -> None:
    whole, spoilt = trainer(line()), SometimesNot(line(), Points(8, CONFIG.seed), CONFIG)
    before: list[dict[str, Tensor]] = []

    spoilt.run(lambda progress: before.append(copies(spoilt.network)))
    whole.run()

    assert all(torch.equal(before[2][name], before[4][name]) for name in before[2])
    assert all(torch.isfinite(tensor).all() for tensor in spoilt.averaged_weights.values())
    assert spoilt.state.best_score == pytest.approx(whole.state.best_score, abs=0.1)


def test_a_training_without_gradients_is_given_up() -> None:
    spoilt = SometimesNot(line(), Points(8, CONFIG.seed), CONFIG)
    spoilt.lost = range(1000)

    with pytest.raises(InputError, match="no gradient was a number in 20 steps; take a lower learning rate"):
        spoilt.run()
