"""`twinfed simulate`: a federation of several sites in one process.

Nothing is simulated but the network: sites train by the site trainer, updates are written, checked and taken in as an
aggregator does it, models are made by its strategies and stored in its folder, which `twinfed verify` can prove.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twinfed.aggregator.config import FederationConfig
from twinfed.aggregator.intake import Intake
from twinfed.aggregator.rounds import Federation
from twinfed.aggregator.store import Store
from twinfed.client.case_source import CaseSource
from twinfed.client.initial_model import task_of, write_initial_model
from twinfed.client.instructions import Instructions
from twinfed.client.simulated_site import PooledCases, SimulatedSite, phantom_sites
from twinfed.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Report = Callable[[float, str], None]
OF_THE_FEDERATION = ("rounds", "epochs", "quorum", "strategy", "upload", "download", "limits", "keep_rounds")
FOREVER = 1e8  # minutes: nobody is late in a simulation


@dataclass(frozen=True, kw_only=True)
class SimulationConfig:
    """What is simulated; the file's keys are these fields and those of a federation's file (`OF_THE_FEDERATION`).

    Args:
        name: of the federation; with the site's name and the round it seeds each training.
        task: name, or .toml file; `spacing` (mm) and `patch` (voxels) change it.
        network: preset or table of the network's fields; or `model`: a model file to begin with.
        init: a segmentation model, also of another task, whose weights the network begins with where they fit.
        sites: name -> folder of labelled cases; or `phantoms`: options of `twinseg phantom`.
        seed: of the initial weights and the phantoms.
        learning_rate: highest of each local training; None for the default.
        participation: how often a site takes part in a round, 0 to 1; of all sites, or a table of some sites'. The
            others skip it, one at least stays.
        local_only: also train every site alone, for as many epochs.
        pooled: also train on the cases of all sites together, for as many epochs in one go: what no federation may do.
        twin_epochs: also fine-tune the final model at every site; 0 does not.
    """

    name: str
    task: str
    network: Any = "small"
    model: Path | None = None
    init: Path | None = None
    sites: Mapping[str, Path] = field(default_factory=dict)
    phantoms: Mapping[str, Any] = field(default_factory=dict)
    spacing: Any = None
    patch: Any = None
    seed: int = 0
    learning_rate: float | None = None
    participation: Any = 1.0
    local_only: bool = False
    pooled: bool = False
    twin_epochs: int = 0
    federation: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.sites) == bool(self.phantoms):
            raise InputError("A simulation needs either [sites] (name = folder) or [phantoms]. Name one of them.")
        often = self.participation
        shares = list(often.values()) if isinstance(often, Mapping) else [often]
        if not all(isinstance(share, int | float) and 0 <= share <= 1 for share in shares):
            raise InputError(f"participation = {often!r}: a number from 0 to 1, or a table of them. Correct it.")


def load_simulation(path: Path) -> SimulationConfig:
    """Read a simulation's TOML file; paths in it are relative to it. Raises InputError."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}). Name a simulation's TOML file.") from error
    try:
        return simulation_of(content, path.parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def simulation_of(content: Mapping[str, Any], beside: Path) -> SimulationConfig:
    """A simulation from what its file holds; paths in it are relative to the folder `beside`. Raises InputError."""
    values = {key: value for key, value in content.items() if key not in OF_THE_FEDERATION}
    values["federation"] = {key: content[key] for key in OF_THE_FEDERATION if key in content}
    try:
        if str(values.get("task", "")).endswith(".toml"):
            values["task"] = str(beside / values["task"])
        for key in ("model", "init"):
            if key in values:
                values[key] = beside / values[key]
        values["sites"] = {name: beside / folder for name, folder in values.get("sites", {}).items()}
        return SimulationConfig(**values)
    except (TypeError, AttributeError) as error:
        raise InputError(f"{str(error).partition('__init__() ')[2] or error}. Correct it.") from error


def simulate(
    config: SimulationConfig, output: Path, device: str = "cpu", report: Report = lambda done, stage: None
) -> dict[str, Any]:
    """Run a simulation and return what was measured. `output`/federation, an aggregator's folder, begins anew.

    Raises InputError for a configuration or cases that cannot be.
    """
    output.mkdir(parents=True, exist_ok=True)
    initial = config.model or _initial_model(config, output)
    report(0.0, "making or finding the cases")
    folders = dict(config.sites) or phantom_sites(output / "phantoms", config.phantoms, config.seed)
    for old in ("federation", "sites"):
        shutil.rmtree(output / old, ignore_errors=True)
    store = Store(output / "federation")
    try:

        def site(name: str, cases: CaseSource) -> SimulatedSite:
            return SimulatedSite(name, cases, output / "sites" / name, device, config.learning_rate)

        sites = {name: site(name, CaseSource(folder=folder)) for name, folder in sorted(folders.items())}
        pooled = site("pooled", PooledCases.of(folders.values())) if config.pooled else None
        run = _Run(config, store, sites, pooled, initial, report)
        return run.measured()
    finally:
        store.close()


class _Run:
    """The rounds of a simulation, and what is measured in them."""

    def __init__(
        self,
        config: SimulationConfig,
        store: Store,
        sites: Mapping[str, SimulatedSite],
        pooled: SimulatedSite | None,
        initial: Path,
        report: Report,
    ) -> None:
        self.config, self.store, self.sites, self.initial, self.report = config, store, sites, initial, report
        self.pooled = pooled
        everybody = config.participation == 1.0
        options = {"quorum": len(sites) if everybody else 1, "keep_rounds": 10**6, **config.federation}
        agreed = FederationConfig.from_dict(
            {
                "name": config.name,
                "task": Path(config.task).stem,
                "network": "as the model says",
                "model": str(initial),
                "deadline_minutes": FOREVER,
                **options,
            }
        )
        self.federation = Federation(store, agreed)
        self.intake = Intake(self.federation)
        self.rounds: list[dict[str, Any]] = []
        self.bytes: dict[str, dict[str, int]] = {name: {"up": 0, "down": 0} for name in sites}
        self.started = time.perf_counter()

    def measured(self) -> dict[str, Any]:
        agreed = self.federation.config
        for name, site in self.sites.items():
            self.federation.accounts.add(name)
            self.federation.accounts.register(name, site.prepare(self._first))
        self.federation.advance()
        self._score(0)
        while not self._round():
            pass
        result: dict[str, Any] = {
            "name": self.config.name,
            "task": agreed.task,
            "strategy": dict(agreed.strategy),
            "seed": self.config.seed,
            "rounds": self.rounds,
            "bytes": {way: sum(row["bytes"][way] for row in self.rounds) for way in ("up", "down")},
            "model_bytes": self._first.stat().st_size,
            "federated": self.rounds[-1]["union"],
            "by_site": {name: site.measure(self._fetch(name, self._told(name))) for name, site in self.sites.items()},
            "validation": self._validation(),
        }
        if self.config.local_only:
            self.report(0.95, "training every site alone")
            result["local_only"] = {
                name: self._everywhere(site.train_alone(agreed.name, self._first, agreed.rounds, agreed.epochs))
                for name, site in self.sites.items()
            }
        if self.pooled is not None:
            self.report(0.97, "training on the cases of all sites together")
            self.pooled.prepare(self._first)
            trained = self.pooled.train_alone(agreed.name, self._first, 1, agreed.rounds * agreed.epochs)
            result["pooled"] = self._everywhere(trained)
        if self.config.twin_epochs:
            self.report(0.98, "fine-tuning the site twins")
            result["twins"] = {name: self._twin(site) for name, site in self.sites.items()}
        result["final"] = {name: self._told(name).base for name in self.sites}
        result["seconds"] = round(time.perf_counter() - self.started, 2)
        self.report(1.0, f"{agreed.rounds} rounds")
        return result

    def _round(self) -> bool:
        """Let the sites that are asked to train for the open round; True when all rounds are over."""
        number = self.federation.current()["number"]
        asked = self._taking_part(number, [name for name in self.sites if self._told(name).do == "train"])
        for position, name in enumerate(asked):
            done = (number - 1 + position / len(asked)) / self.federation.config.rounds
            self.report(0.94 * done, f"round {number} of {self.federation.config.rounds}: {name}")
            told, site = self._told(name), self.sites[name]
            update, digest = site.update(told, self._fetch(name, told))
            self.bytes[name]["up"] += update.stat().st_size
            self.intake.check_may_send(name, number, digest)
            self.intake.receive(name, number, digest, update)
        self.report(0.94 * number / self.federation.config.rounds, f"round {number} is aggregated")
        self.federation.advance()
        over = self._told(next(iter(self.sites))).do == "finished"
        if over or self.federation.current()["number"] > number:
            self._score(number)
        elif not asked:
            raise InputError("No site may train, and the round does not close. Lower the quorum.")
        return over

    def _taking_part(self, number: int, asked: list[str]) -> list[str]:
        """Those of the asked sites that are there in this round; the others skip it."""
        told = self.config.participation
        often = {name: told.get(name, 1.0) if isinstance(told, Mapping) else told for name in asked}
        draws = {name: random.Random(f"{self.config.seed} {name} {number}").random() for name in asked}
        there = {name for name in asked if draws[name] < often[name]}
        there |= {min(asked, key=draws.__getitem__)} if asked and not there else set()
        for name in set(asked) - there:
            self.intake.skip(name, number)
        return [name for name in asked if name in there]

    def _score(self, number: int) -> None:
        """What the model of each site is worth after a round, on its test cases and on those of all."""
        each = {}
        for name, site in self.sites.items():
            told = self._told(name)  # one that is not asked to train fetches nothing
            each[name] = site.score(self.store.file(told.base) if told.do == "wait" else self._fetch(name, told))
        row = self.store.row("SELECT weights FROM rounds WHERE number = ?", number)
        self.rounds.append(
            {
                "round": number,
                "sites": {name: _mean(scores) for name, scores in each.items()},
                "union": _mean([dice for scores in each.values() for dice in scores]),
                "weights": json.loads(row["weights"]) if row and row["weights"] else {},
                "bytes": {way: sum(one[way] for one in self.bytes.values()) for way in ("up", "down")},
                "bytes_by_site": self.bytes,
            }
        )
        self.bytes = {name: {"up": 0, "down": 0} for name in self.sites}

    def _validation(self) -> float | None:
        """Dice of the final model on the validation cases of all: what settings are to be chosen by."""
        each = [site.measure(self._fetch(name, self._told(name)), "validation") for name, site in self.sites.items()]
        return _mean([dice for one in each for dice in one["each"]])

    def _everywhere(self, weights: Mapping[str, Any]) -> float | None:
        return _mean([dice for site in self.sites.values() for dice in site.score(weights)])

    def _twin(self, site: SimulatedSite) -> dict[str, float | None]:
        model = self._fetch(site.name, self._told(site.name))
        twin = site.twin(self.config.name, model, self.config.twin_epochs)
        return {"global": _mean(site.score(model)), "twin": _mean(site.score(twin))}

    def _told(self, name: str) -> Instructions:
        return Instructions.from_dict(self.federation.instructions(name))

    @property
    def _first(self) -> Path:
        """The model that the first round began from."""
        row = self.store.row("SELECT bases FROM rounds WHERE number = 1")
        assert row is not None
        return self.store.file(json.loads(row["bases"])["0"])

    def _fetch(self, name: str, told: Instructions) -> Path:
        row = self.store.row("SELECT file FROM deltas WHERE model = ?", told.base)
        delta = self.store.file(row["file"]) if row else None
        path, count = self.sites[name].fetch(told, self.store.file(told.base), delta)
        self.bytes[name]["down"] += count
        return path


def _initial_model(config: SimulationConfig, output: Path) -> Path:
    changes = {key: value for key in ("spacing", "patch") if (value := getattr(config, key)) is not None}
    path = output / "initial.safetensors"
    write_initial_model(path, task_of(config.task, changes), config.network, config.seed, config.init)
    return path


def _mean(scores: list[float]) -> float | None:
    return sum(scores) / len(scores) if scores else None
