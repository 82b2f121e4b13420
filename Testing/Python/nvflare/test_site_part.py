"""A site's part over phantoms: the light engine's model, the same state for the panel, the site's own say."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from twinfed.client.controls import NVFLARE, PAUSE, STOP, give_consent, withdraw_consent
from twinfed.client.errors import Stopped
from twinfed.client.initial_model import task_of, write_initial_model
from twinfed.client.simulated_site import phantom_sites
from twinfed.client.site_state import read_state
from twinfed.client.site_trainer import SiteTrainer
from twinfed.client.site_twin import first_offer
from twinfed.engines.nvflare import site_part as room
from twinfed.engines.nvflare.exchange import told, write_text
from twinfed.engines.nvflare.job import Job, load_job
from twinfed.engines.nvflare.job_federation import JobFederation
from twinfed.engines.nvflare.site_file import SiteFile
from twinfed.engines.nvflare.site_part import SitePart
from twinfed.errors import InputError
from twinfed.simulation import load_simulation, simulate
from twinseg.errors import InputError as TwinSegError

NETWORK = {"channels": [4, 8], "embedding": 8, "depth": 1, "heads": 1}
SITES = ("SITE-01", "SITE-02", "SITE-03")
TOML = 'name = "trial"\ntask = "brats-glioma"\nmodel = "initial.safetensors"\nrounds = 2\nquorum = 3\n'


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites of four patients, a tiny initial model, and a federation's TOML file."""
    folder = tmp_path_factory.mktemp("phantoms")
    task = task_of("brats-glioma", {"spacing": 6.0, "patch": 16})
    write_initial_model(folder / "initial.safetensors", task, NETWORK)
    phantom_sites(folder / "cases", {"sites": 3, "patients": 4, "size": 24, "spacing": 6.0}, seed=0)
    (folder / "federation.toml").write_text(f'{TOML}network = "small"\n[strategy]\nname = "adaptive"\n')
    return folder


@pytest.fixture
def job(phantoms: Path) -> Job:
    return load_job(phantoms / "federation.toml")


@pytest.fixture
def site(phantoms: Path, tmp_path: Path) -> Iterator[Callable[..., SitePart]]:
    """A site of that name, with consent."""
    opened: list[SitePart] = []

    def make(name: str = "SITE-01", **changes: Any) -> SitePart:
        give_consent(tmp_path / name, NVFLARE, "a test")
        settings = SiteFile(folder=tmp_path / name, cases=phantoms / "cases" / name, device="cpu", **changes)
        opened.append(SitePart(name, settings))
        return opened[-1]

    yield make
    for one in opened:
        one.finish()


def message(federation: JobFederation) -> dict[str, Any]:
    return told(write_text(federation.message()))


@pytest.mark.parametrize("form", ["differences", "packed"])
def test_a_job_gives_the_light_engines_model(
    job: Job, site: Callable[..., SitePart], phantoms: Path, tmp_path: Path, form: str
) -> None:
    upload = "[upload]\nbits = 8\nentropy = true\n" if form == "packed" else ""
    sites = "".join(f'{name} = "cases/{name}"\n' for name in SITES)
    simulation = phantoms / f"simulation-{form}.toml"
    simulation.write_text(f'{TOML}[strategy]\nname = "adaptive"\n{upload}[sites]\n{sites}', encoding="utf-8")
    federation_file = phantoms / f"{form}.toml"
    federation_file.write_text(f'{TOML}network = "small"\n[strategy]\nname = "adaptive"\n{upload}', encoding="utf-8")
    job = load_job(federation_file)
    measured = simulate(load_simulation(simulation), tmp_path / "light")
    final = measured["final"]["SITE-01"]

    federation = JobFederation(tmp_path / "federation", job.federation, job.form)
    parts = {name: site(name) for name in SITES}
    for name, part in parts.items():
        federation.register(name, part.register(message(federation)))
    federation.begin()
    while not federation.over:
        for name in federation.asked(SITES):
            arrays, said = parts[name].train(message(federation), federation.model(), job.form)
            assert federation.take(name, arrays, write_text(said)) is None
        federation.close_round()

    assert job.form == form
    light = load_file(tmp_path / "light/federation/files" / final[:2] / final)
    assert all(np.array_equal(array, light[name]) for name, array in federation.model().items())
    assert federation.federation.instructions("SITE-01")["base"] == final


def test_the_panel_finds_the_state_of_a_site_process(job: Job, site: Callable[..., SitePart], tmp_path: Path) -> None:
    federation, part = JobFederation(tmp_path / "federation", job.federation), site()
    federation.register("SITE-01", part.register(message(federation)))
    content = message(federation)
    part.train(content, federation.model(), "differences")

    state = read_state(tmp_path / "SITE-01")

    facts = state["facts"]
    assert facts["engine"] == "nvflare"
    assert (facts["federation"], facts["task"], facts["round"], facts["rounds"]) == ("trial", "brats-glioma", 1, 2)
    assert facts["phase"] == "waiting for others"
    assert [(row["number"], row["phase"]) for row in state["rounds"]] == [(1, "sent")]
    assert state["rounds"][0]["report"]["dice_before"] is not None
    assert state["traffic"][0]["up"] > 10_000
    assert "round 1 of 2: training on 2 cases" in [line["text"] for line in state["lines"]]

    part.evaluate({**content, "refused": {"SITE-01": "not-finite: NaN"}, "owner": "final"}, federation.model())

    state = read_state(tmp_path / "SITE-01")
    assert [row["phase"] for row in state["rounds"]] == ["refused"]
    assert state["facts"]["residual"] is None  # what that update left out goes with it
    assert "round 1: not taken. not-finite: NaN" in [line["text"] for line in state["lines"]]


def test_scores_are_of_cases_that_were_not_trained_on(job: Job, site: Callable[..., SitePart], tmp_path: Path) -> None:
    federation, part = JobFederation(tmp_path / "federation", job.federation), site()
    part.register(message(federation))

    scores = part.evaluate({**message(federation), "owner": "initial"}, federation.model())

    assert scores["cases"] == 1
    assert 0 <= scores["dice"] <= 1


def test_a_model_that_a_filter_changed_is_not_trained(job: Job, site: Callable[..., SitePart], tmp_path: Path) -> None:
    federation, part = JobFederation(tmp_path / "federation", job.federation), site()
    arrays = federation.model()
    name = sorted(arrays)[0]
    arrays[name] = arrays[name] + np.float32(1e-3)

    with pytest.raises(InputError, match="arrived damaged"):
        part.train(message(federation), arrays, "differences")


def test_the_local_model_is_given_only_where_the_site_allows_it(
    job: Job, site: Callable[..., SitePart], tmp_path: Path
) -> None:
    federation = JobFederation(tmp_path / "federation", job.federation)
    private, open_ = site("SITE-01"), site("SITE-02", share_local_model=True)

    assert open_.local_model() is None  # nothing was trained yet
    for part in (private, open_):
        arrays, _ = part.train(message(federation), federation.model(), "weights")

    assert private.local_model() is None
    given = open_.local_model()
    assert given is not None
    assert all(np.array_equal(given[name], array) for name, array in arrays.items())


def test_a_paused_site_registers_and_trains_once_it_goes_on(
    job: Job, site: Callable[..., SitePart], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "LOOK", 0.05)
    federation, part = JobFederation(tmp_path / "federation", job.federation), site()
    (tmp_path / "SITE-01" / PAUSE).touch()
    seen: list[str] = []

    def look() -> None:
        end = time.monotonic() + 60
        while (not seen or seen[-1] != "paused") and time.monotonic() < end:
            seen.append(str(read_state(tmp_path / "SITE-01")["facts"].get("phase")))
            time.sleep(0.05)
        (tmp_path / "SITE-01" / PAUSE).unlink()

    registered = part.register(message(federation))
    thread = threading.Thread(target=look)
    thread.start()
    part.train(message(federation), federation.model(), "differences")
    thread.join()

    assert registered == {"samples": 2}
    assert seen[-1] == "paused"


def test_without_consent_a_site_does_not_take_part(job: Job, site: Callable[..., SitePart], tmp_path: Path) -> None:
    federation, part = JobFederation(tmp_path / "federation", job.federation), site()
    withdraw_consent(tmp_path / "SITE-01")

    with pytest.raises(InputError, match="no consent was given"):
        part.register(message(federation))


def test_an_update_is_not_handed_on_where_the_consent_was_withdrawn_while_it_was_scored(
    job: Job, site: Callable[..., SitePart], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, folder = SiteTrainer.evaluate, tmp_path / "SITE-01"

    def withdrawn_meanwhile(self: SiteTrainer, data: Any, extra: Any = None) -> Any:
        if not data.weights:  # after the training
            withdraw_consent(folder)
            threading.Timer(1.0, (folder / STOP).touch).start()
        return evaluate(self, data, extra)

    monkeypatch.setattr(SiteTrainer, "evaluate", withdrawn_meanwhile)
    federation, part = JobFederation(tmp_path / "federation", job.federation), site()
    federation.register("SITE-01", part.register(message(federation)))

    with pytest.raises(Stopped):
        part.train(message(federation), federation.model(), "differences")

    state = read_state(folder)
    assert state["facts"]["phase"] == "without consent"
    assert [row["phase"] for row in state["rounds"]] == ["training"]


def test_the_final_model_and_its_twin_are_offered_to_the_viewer(
    job: Job, site: Callable[..., SitePart], tmp_path: Path
) -> None:
    alone = dataclasses.replace(job.federation, rounds=1, quorum=1)
    federation, part = JobFederation(tmp_path / "federation", alone), site()
    federation.register("SITE-01", part.register(message(federation)))
    federation.begin()
    arrays, said = part.train(message(federation), federation.model(), "differences")
    federation.take("SITE-01", arrays, write_text(said))
    federation.close_round()

    part.evaluate({**message(federation), "owner": "initial"}, federation.first_model())
    before = read_state(tmp_path / "SITE-01")["twins"]
    part.evaluate({**message(federation), "owner": "final"}, federation.model())

    assert before == []
    (twin,) = read_state(tmp_path / "SITE-01")["twins"]
    assert twin["round"] == 1
    assert twin["twin_dice"] is not None
    offer = first_offer(tmp_path / "SITE-01")
    assert offer is not None
    assert offer.file.is_file()


def test_the_stop_file_ends_it(job: Job, site: Callable[..., SitePart], tmp_path: Path) -> None:
    federation, part = JobFederation(tmp_path / "federation", job.federation), site()
    (tmp_path / "SITE-01" / STOP).touch()

    with pytest.raises(Stopped):
        part.register(message(federation))


def test_a_site_without_cases_says_what_to_do(job: Job, site: Callable[..., SitePart], tmp_path: Path) -> None:
    federation, part = JobFederation(tmp_path / "federation", job.federation), site("SITE-04")

    with pytest.raises((InputError, TwinSegError), match="SITE-04"):
        part.register(message(federation))


def test_a_folder_belongs_to_one_federation_and_one_process(
    job: Job, site: Callable[..., SitePart], tmp_path: Path
) -> None:
    first = JobFederation(tmp_path / "first", job.federation)
    other = JobFederation(tmp_path / "other", dataclasses.replace(job.federation, name="other"))
    part = site()
    part.register(message(first))

    with pytest.raises(InputError, match="it belongs to the federation trial, not other"):
        part.register(message(other))
    with pytest.raises(InputError, match="another process takes part from this folder"):
        SitePart("SITE-01", part.settings)
