"""What each strategy makes of the sites' updates, and what a hostile site can do to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from twinfed.aggregator.aggregation import Contribution, aggregate
from twinfed.aggregator.clustered import Clustered
from twinfed.aggregator.config import STRATEGIES
from twinfed.aggregator.robust import Median, MultiKrum, TrimmedMean
from twinfed.aggregator.strategies import Adaptive, FedAdam, FedAvg, FedAvgM, FedExP, FedProx, Strategy, Transfer
from twinfed.wire import ArrayTensors, InputError, Report

Change = NDArray[np.float32]
REPORT = Report(samples=10)


def site(name: str, change: Change, cluster: str = "0", **report: Any) -> Contribution:
    numbers = Report(**{"samples": 10, **report})
    return Contribution(name, ArrayTensors({"w": change}), numbers, float(np.linalg.norm(change)), cluster)


def run(
    strategy: Strategy, base: Change, updates: Sequence[Contribution], state: dict[str, Change] | None = None
) -> tuple[Change, dict[str, Change]]:
    """The next model and state."""
    parts: dict[str, list[Change]] = {}
    kept = {key: ArrayTensors({"w": value}) for key, value in (state or {}).items()}
    weights = strategy.weights(updates, {})
    aggregate(
        strategy,
        ArrayTensors({"w": base}),
        updates,
        weights,
        kept,
        lambda key, _, b: parts.setdefault(key, []).append(b),
    )
    whole = {key: np.concatenate(some) for key, some in parts.items()}
    return whole.pop("model"), whole


def changes(count: int, size: int = 100_000, seed: int = 0) -> list[Change]:
    return [np.random.default_rng(seed + k).standard_normal(size).astype(np.float32) * 0.01 for k in range(count)]


BASE = np.random.default_rng(99).standard_normal(100_000).astype(np.float32)


def test_fedavg_weighs_by_samples() -> None:
    updates = [site(f"s{k}", change, samples=k + 1) for k, change in enumerate(changes(3))]

    model, _ = run(FedAvg(), BASE, updates)

    wanted = BASE + sum((k + 1) / 6 * change.astype(np.float64) for k, change in enumerate(changes(3)))
    assert np.max(np.abs(model - wanted)) < 3e-7  # half a unit in the last place of a float32 near 4


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_the_order_of_arrival_changes_no_bit(name: str) -> None:
    strategy = STRATEGIES[name]()
    updates = [site(f"s{k}", change, samples=k + 1, dice_after=0.5 + k / 20) for k, change in enumerate(changes(5))]

    results = {run(strategy, BASE, order)[0].tobytes() for order in (updates, updates[::-1], updates[2:] + updates[:2])}

    assert len(results) == 1


def test_fedprox_tells_the_sites_its_mu() -> None:
    assert FedProx(mu=0.1).client_terms() == {"proximal_mu": 0.1}
    assert run(FedProx(), BASE, [site("a", changes(1)[0])])[0].tobytes() == (
        run(FedAvg(), BASE, [site("a", changes(1)[0])])[0].tobytes()
    )


def test_momentum_adds_up_over_rounds() -> None:
    strategy, change = FedAvgM(beta=0.5), np.full(3, 0.25, dtype=np.float32)

    first, state = run(strategy, np.zeros(3, np.float32), [site("a", change)])
    second, _ = run(strategy, first, [site("a", change)], state)

    assert first.tolist() == [0.25] * 3
    assert second.tolist() == [0.25 + 0.5 * 0.25 + 0.25] * 3


def test_fedexp_goes_farther_where_the_sites_differ() -> None:
    across = [
        np.array([3, 0, 0, 0], np.float32),
        np.array([0, 3, 0, 0], np.float32),
        np.array([0, 0, 3, 0], np.float32),
    ]
    zero = np.zeros(4, np.float32)

    stretched, _ = run(FedExP(), zero, [site(f"s{k}", change) for k, change in enumerate(across)])
    alike, _ = run(FedExP(), zero, [site(f"s{k}", across[0]) for k in range(3)])
    against, _ = run(FedExP(largest=2.0), zero, [site("a", across[0], samples=11), site("b", -across[0])])

    assert stretched.tolist() == [1.5, 1.5, 1.5, 0]  # 9 / (2 * 3) times the mean
    assert alike.tolist() == [3, 0, 0, 0]
    assert against.tolist() == pytest.approx([2 * 3 / 21, 0, 0, 0])  # twice the mean at most


def test_fedadam_is_the_papers_algorithm() -> None:
    strategy = FedAdam(learning_rate=0.1, beta1=0.9, beta2=0.99, tau=1e-3)
    model, m, v = np.zeros(3), np.zeros(3), np.zeros(3)
    ours, state = np.zeros(3, np.float32), {}

    for number in range(4):
        change = np.array([0.1, -0.2, 0.01 * number], dtype=np.float32)
        ours, state = run(strategy, ours, [site("a", change)], state)
        m = 0.9 * m + 0.1 * change
        v = 0.99 * v + 0.01 * change**2
        model = model + 0.1 * m / (np.sqrt(v) + 1e-3)

    assert np.allclose(ours, model, rtol=1e-5)


def test_adaptive_weights_follow_each_factor() -> None:
    change = changes(1)[0]
    better = Adaptive().weights(
        [site("good", change, dice_after=0.9, hd95_after=3.0), site("poor", change, dice_after=0.3, hd95_after=40.0)],
        {},
    )
    diverse = Adaptive().weights(
        [site("many", change, labels={"WT": 5, "ET": 5}), site("one", change, labels={"WT": 5, "ET": 0})], {}
    )
    stray = Adaptive().weights([site("a", change), site("b", change), site("far", 5 * change)], {})

    q_good, q_poor = (0.9 + 1 / 1.3) / 2, (0.3 + 1 / 5) / 2
    assert better["good"] == 0.5  # the cap: two sites have an equal share at most
    assert Adaptive(max_weight=1.0).weights(
        [site("good", change, dice_after=0.9, hd95_after=3.0), site("poor", change, dice_after=0.3, hd95_after=40.0)],
        {},
    )["good"] == pytest.approx(q_good / (q_good + q_poor))
    assert diverse == {"many": 0.5, "one": 0.5}
    assert Adaptive(max_weight=1.0).weights(
        [site("many", change, labels={"WT": 5, "ET": 5}), site("one", change, labels={"WT": 5, "ET": 0})], {}
    )["many"] == pytest.approx(2 / 3)
    assert stray["far"] == pytest.approx(1 / 11)
    assert math.fsum(stray.values()) == pytest.approx(1)


def test_a_site_that_spoils_the_model_for_its_own_cases_weighs_less() -> None:
    change = changes(1)[0]
    scores = {"same": (0.6, 0.6), "worse": (0.7, 0.6), "better": (0.4, 0.6), "unknown": (None, 0.6)}
    updates = [site(name, change, dice_before=before, dice_after=after) for name, (before, after) in scores.items()]

    weights = Adaptive().weights(updates, {})

    assert weights["worse"] == pytest.approx(weights["same"] * math.exp(-2))
    assert weights["better"] == weights["unknown"] == weights["same"]
    assert len(set(Adaptive(gain=0).weights(updates, {}).values())) == 1


def test_adaptive_by_volume_alone_is_fedavg() -> None:
    updates = [site(f"s{k}", change, samples=k + 1, dice_after=k / 5) for k, change in enumerate(changes(4))]

    ours, _ = run(Adaptive(quality=0, divergence=0, diversity=0, max_weight=1), BASE, updates)

    assert ours.tobytes() == run(FedAvg(), BASE, updates)[0].tobytes()


def test_no_site_weighs_more_than_the_cap() -> None:
    updates = [site("huge", changes(1)[0], samples=10**9), *(site(f"s{k}", changes(1)[0]) for k in range(4))]

    weights = FedAvg(max_weight=0.3).weights(updates, {})

    assert weights["huge"] == 0.3
    assert weights["s0"] == pytest.approx(0.7 / 4)


def test_transfer_visits_in_turn_and_blends() -> None:
    strategy, sites = Transfer(floor=0.2), ["a", "b", "c"]
    memory: dict[str, Any] = {}
    alphas, order = [], []
    for _ in range(4):
        (turn,) = strategy.invited(sites, memory) or []
        update = site(turn, changes(1)[0], samples={"a": 30, "b": 10, "c": 2}[turn])
        alphas.append(strategy.weights([update], memory)[turn])
        _, memory = strategy.groups([update], memory)
        order.append(turn)

    assert order == ["a", "b", "c", "a"]
    assert alphas == pytest.approx([1.0, 0.25, 0.2, 30 / 42])


def test_transfer_passes_over_a_site_that_does_not_come() -> None:
    strategy = Transfer()

    memory = strategy.passed_over(["a"], {})

    assert strategy.invited(["a", "b"], memory) == ["b"]


def test_clusters_form_where_sites_pull_apart() -> None:
    one, other = changes(2, size=1000)
    noise = changes(4, size=1000, seed=50)
    updates = [site(f"s{k}", (one, other)[k % 2] + 0.2 * noise[k]) for k in range(4)]
    opposed = [site(f"s{k}", (one, -one)[k % 2] + 0.2 * noise[k]) for k in range(4)]

    groups, memory = Clustered().groups(opposed, {})

    assert groups == {"s0": "0", "s1": "1", "s2": "0", "s3": "1"}
    assert memory["clusters"] == groups
    agreeing = [site(f"s{k}", one + 0.2 * noise[k]) for k in range(4)]
    assert set(Clustered().groups(agreeing, {})[0].values()) == {"0"}
    assert set(Clustered(split_below=0.9).groups(updates, {})[0].values()) == {"0", "1"}


def test_clusters_remember_absent_sites() -> None:
    one = changes(1, size=1000)[0]
    memory = {"clusters": {"s0": "0", "s1": "1", "away": "1"}}

    groups, after = Clustered().groups([site("s0", one), site("s1", -one, cluster="1")], memory)

    assert groups == {"s0": "0", "s1": "1"}
    assert after["clusters"]["away"] == "1"


HONEST = [change + 0.05 for change in changes(4, size=5000, seed=7)]
ATTACKS = {
    "scaled": 100 * HONEST[0],
    "flipped": -HONEST[0],
    "noise": np.random.default_rng(3).standard_normal(5000).astype(np.float32) * 10,
}


def with_hostile(attack: str) -> list[Contribution]:
    return [*(site(f"s{k}", change) for k, change in enumerate(HONEST)), site("z", ATTACKS[attack].astype(np.float32))]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("strategy", [TrimmedMean(), Median()], ids=lambda strategy: strategy.name)
def test_a_hostile_site_stays_between_the_honest(strategy: Strategy, attack: str) -> None:
    model, _ = run(strategy, np.zeros(5000, np.float32), with_hostile(attack))

    assert np.all(model >= np.min(HONEST, axis=0) - 1e-7)
    assert np.all(model <= np.max(HONEST, axis=0) + 1e-7)


@pytest.mark.parametrize("attack", ATTACKS)
def test_multi_krum_leaves_the_hostile_site_out(attack: str) -> None:
    weights = MultiKrum(hostile=1).weights(with_hostile(attack), {})

    assert weights["z"] == 0
    assert sorted(weights.values()) == [0, 0.25, 0.25, 0.25, 0.25]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("strategy", [FedAvg(), Adaptive(), FedExP(largest=1)], ids=lambda strategy: strategy.name)
def test_a_hostile_site_moves_a_mean_by_no_more_than_its_clipped_share(strategy: Strategy, attack: str) -> None:
    updates = with_hostile(attack)
    weights = strategy.weights(updates, {})
    median = float(np.median([one.norm for one in updates]))

    model, _ = run(strategy, np.zeros(5000, np.float32), updates)

    honest = sum(weights[f"s{k}"] * change for k, change in enumerate(HONEST))
    assert np.linalg.norm(model - honest) <= weights["z"] * 3.0 * median * (1 + 1e-4)  # float32
    assert median <= max(one.norm for one in updates[:4])


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_site_moves_no_entry_of_fedadam_beyond_its_bound(attack: str) -> None:
    strategy = FedAdam()
    model, state = np.zeros(5000, np.float32), {}
    bound = 1e-3 * (1 - 0.9) / math.sqrt(1 - 0.99) / (1 - 0.9 / math.sqrt(0.99))

    for _ in range(5):
        after, state = run(strategy, model, with_hostile(attack), state)
        assert np.max(np.abs(after - model)) <= bound
        model = after


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: FedAvg(clip=-1),
        lambda: FedAdam(tau=0),
        lambda: TrimmedMean(trim=0.5),
        lambda: FedProx(mu=1e9),
        lambda: FedExP(largest=0.5),
    ],
)
def test_impossible_options_are_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="must lie between"):
        wrong()


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedexp"])
@pytest.mark.parametrize("measured", ["norm.running_mean", "norm.running_var"])
def test_what_batch_normalisation_measured_is_a_mean_of_the_sites_values(name: str, measured: str) -> None:
    strategy, target = STRATEGIES[name](), np.array([0.02, 3.0], np.float32)
    model, state = {measured: np.ones(2, np.float32), "norm.weight": np.ones(2, np.float32)}, {}

    for _ in range(4):  # momentum would carry the small one below nought in the second round
        updates = [
            Contribution(f"s{k}", ArrayTensors({key: target * size - old for key, old in model.items()}), REPORT, 1.0)
            for k, size in enumerate((-1.0, 3.0))
        ]
        written: dict[str, dict[str, Change]] = {}
        aggregate(
            strategy,
            ArrayTensors(model),
            updates,
            strategy.weights(updates, {}),
            {key: ArrayTensors(kept) for key, kept in state.items()},
            lambda key, tensor, block, into=written: into.setdefault(key, {}).update({tensor: block.copy()}),
        )
        model, state = written.pop("model"), written

    assert model[measured] == pytest.approx(target, rel=1e-5)
    assert model["norm.weight"] != pytest.approx(target, rel=1e-5)  # the strategy's own step
