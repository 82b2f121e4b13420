"""Three sites and an aggregator: the rounds come to an end, and their result is that of the simulation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinfed.aggregator.verify import faults
from twinfed.client.case_source import CaseSource
from twinfed.client.simulated_site import SimulatedSite
from twinfed.client.site_state import read_state
from twinfed.simulation import SimulationConfig, load_simulation, simulate

SITES = ("SITE-01", "SITE-02", "SITE-03")


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": {"name": "adaptive"}},
        {"strategy": {"name": "fedprox", "mu": 1.0}, "upload": {"keep": 0.3, "bits": 8}, "download": {"bits": 16}},
    ],
    ids=["plain", "compressed both ways"],
)
def test_sites_over_http_make_the_model_of_the_simulation(
    tmp_path: Path,
    cohort: Path,
    initial_model: Path,
    aggregator: Any,
    join: Any,
    until: Any,
    read: Any,
    options: dict[str, Any],
) -> None:
    config = SimulationConfig(
        name="trial",
        task="brats-glioma",
        model=initial_model,
        sites={name: cohort / name for name in SITES},
        learning_rate=3e-3,
        federation={"rounds": 2, **options},
    )
    there = aggregator(rounds=2, **options)

    measured = simulate(config, tmp_path / "simulated")
    for name, token in there.tokens.items():
        join(there.url, token, name, cohort / name)
    until(lambda: there.finished)

    simulated = read(tmp_path / "simulated" / "sites" / SITES[0] / f"{measured['final'][SITES[0]]}.safetensors")
    real = read(there.final_model())
    assert real.keys() == simulated.keys()
    assert max(float(np.abs(real[name] - simulated[name]).max()) for name in real) < 1e-4
    assert any(np.abs(real[name] - read(initial_model)[name]).max() > 1e-3 for name in real)
    assert list(faults(there.store.folder)) == []


@pytest.mark.slow
@pytest.mark.parametrize("file", ["smoke.toml", "lgg-federation.toml"])
def test_four_rounds_of_real_processes_beat_every_site_alone_and_equal_the_simulation(
    tmp_path: Path,
    twinfed: Any,
    aggregator: Any,
    read: Any,
    capsys: pytest.CaptureFixture[str],
    file: str,
) -> None:
    written = load_simulation(Path(__file__).parents[2] / "Experiments" / file)
    if missing := [str(folder) for folder in written.sites.values() if not folder.is_dir()]:
        pytest.skip(f"the cases of the real institutions are not here: {missing[0]}")
    config = dataclasses.replace(written, twin_epochs=0, pooled=False, federation={**written.federation, "rounds": 4})
    simulated = simulate(config, tmp_path / "simulated")
    cases = config.sites or {name: tmp_path / "simulated" / "phantoms" / name for name in SITES}
    model = tmp_path / "simulated" / "initial.safetensors"
    there = aggregator(sites=tuple(cases), name=config.name, task=config.task, model=model, **config.federation)

    processes = []
    for name, token in there.tokens.items():
        (tmp_path / f"{name}.token").write_text(token)
        words = ["join", there.url, "--token-file", tmp_path / f"{name}.token", "--folder", tmp_path / name]
        words += ["--data", cases[name], "--device", "cpu", "--longest-poll", "0.2", "--no-twins", "--normal-priority"]
        processes.append(twinfed(*words, "--learning-rate", str(config.learning_rate), log=tmp_path / f"{name}.log"))
    assert {process.wait(timeout=1500) for process in processes} == {0}, next(tmp_path.glob("*.log")).read_text()

    final, first = read(there.final_model()), next(iter(cases))
    expected = read(tmp_path / "simulated" / "sites" / first / f"{simulated['final'][first]}.safetensors")
    sites = [SimulatedSite(name, CaseSource(folder=cases[name]), tmp_path / "scored" / name) for name in cases]
    for site in sites:
        site.prepare(there.final_model())
    union = [dice for site in sites for dice in site.score(final)]
    federated, alone = sum(union) / len(union), simulated["local_only"]
    with capsys.disabled():
        print(f"\nDice on {len(union)} test cases: federated {federated:.3f}, alone {alone}")
    assert max(float(np.abs(final[name] - expected[name]).max()) for name in final) < 1e-4
    assert federated > max(alone.values())


def test_real_processes_finish_the_rounds_and_leave_twins(
    tmp_path: Path, cohort: Path, initial_model: Path, twinfed: Any, until: Any, aggregator: Any
) -> None:
    there = aggregator(rounds=2)
    processes = []
    for name, token in there.tokens.items():
        (tmp_path / f"{name}.token").write_text(token)
        words = ["join", there.url, "--token-file", tmp_path / f"{name}.token", "--folder", tmp_path / name]
        words += [
            "--data",
            cohort / name,
            "--device",
            "cpu",
            "--longest-poll",
            "0.2",
            "--learning-rate",
            "0.003",
            "--normal-priority",
        ]
        processes.append(twinfed(*words, log=tmp_path / f"{name}.log"))

    codes = [process.wait(timeout=500) for process in processes]

    assert codes == [0, 0, 0], (tmp_path / "SITE-01.log").read_text()
    assert there.finished
    for name in SITES:
        state = read_state(tmp_path / name)
        assert [row["phase"] for row in state["rounds"]] == ["sent", "sent"]
        assert state["facts"]["phase"] == "finished"
        assert [row["round"] for row in state["twins"]][-1] == 2
        assert sum(row["up"] for row in state["traffic"]) >= sum(row["bytes"] for row in state["rounds"])
    print(json.dumps(read_state(tmp_path / SITES[0])["lines"], indent=0))
