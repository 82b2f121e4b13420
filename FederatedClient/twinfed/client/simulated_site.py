"""A site of a simulation: the same trainer and the same files as a site process, without a network between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.fl.utils.exchange_object import ExchangeObject
from safetensors.numpy import load_file

from twinfed.client.case_source import PARTS, CaseSource
from twinfed.client.instructions import Instructions
from twinfed.client.local_round import Residual, make_update, part_of_training, round_seed, take_up
from twinfed.client.site_data import Schedule
from twinfed.client.site_trainer import SiteTrainer
from twinfed.client.site_twin import RATE, VALIDATIONS
from twinfed.wire import apply_update, hash_file
from twinseg.cases import Case
from twinseg.errors import InputError
from twinseg.phantom import write_cohort
from twinseg.tasks import Task


@dataclass(frozen=True)
class PooledCases(CaseSource):
    """The cases of several folders together, each in the part that its own folder's split says."""

    others: tuple[Path, ...] = ()

    @classmethod
    def of(cls, folders: Iterable[Path]) -> PooledCases:
        first, *others = folders
        return cls(folder=first, others=tuple(others))

    def find(self, task: Task) -> dict[str, list[Case]]:
        found = [CaseSource(folder=folder).find(task) for folder in (self.folder, *self.others)]
        return {part: [case for one in found for case in one[part]] for part in PARTS}


class SimulatedSite:
    """One site.

    Args:
        name: of the site.
        cases: its labelled cases.
        folder: for its files; made if it is not there.
        learning_rate: of its training; None for the default.
    """

    def __init__(
        self, name: str, cases: CaseSource, folder: Path, device: str = "cpu", learning_rate: float | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.folder = name, folder
        self.base: Path | None = None
        self.trainer = SiteTrainer(cases, device=device, learning_rate=learning_rate)

    def prepare(self, model: Path) -> int:
        """Read the cases for the model's task; the number of training cases. Raises InputError where there is none."""
        take_up(self.trainer, model)
        if not self.trainer.data.samples:
            raise InputError(self.trainer.source.what_to_do(self.trainer.data.task))
        return self.trainer.data.samples

    def fetch(self, told: Instructions, model: Path, delta: Path | None) -> tuple[Path, int]:
        """The base model, as this site comes by it, and the bytes that it takes: the change where there is one.

        The one before is removed."""
        own = self.folder / f"{told.base}.safetensors"
        if own.is_file():
            return own, 0
        before = self.folder / f"{told.delta_from}.safetensors"
        if delta is not None and before.is_file():
            if apply_update(before, delta, own) != told.base:
                raise RuntimeError("a change file does not give the model that it is for")
            count = delta.stat().st_size
        else:
            own.write_bytes(model.read_bytes())
            count = model.stat().st_size
        if self.base is not None:
            self.base.unlink()
        self.base = own
        return own, count

    def update(self, told: Instructions, model: Path) -> tuple[Path, str]:
        """Train for a round; the update's file and hash."""
        path = self.folder / "update.safetensors"
        residual = self.folder / "residual.safetensors"
        make_update(self.trainer, told, self.name, model, path, Residual(residual, residual))
        return path, hash_file(path)

    def score(self, weights: Path | Mapping[str, Any]) -> list[float]:
        """Dice of a model on each of the site's test cases."""
        each: list[float] = self.measure(weights)["each"]
        return each

    def measure(self, weights: Path | Mapping[str, Any], part: str = "test") -> dict[str, Any]:
        """All that is measured of a model on a part of the site's cases, as `SiteTrainer.evaluate` gives it."""
        tensors = load_file(weights) if isinstance(weights, Path) else weights
        return dict(self.trainer.evaluate(ExchangeObject(weights=dict(tensors)), {"part": part}).metrics)

    def train_alone(self, federation: str, model: Path, rounds: int, epochs: int) -> dict[str, Any]:
        """Weights of a site that shares nothing: as many rounds of as many epochs, from the same initial model."""
        weights: dict[str, Any] = dict(load_file(model))
        for number in range(1, rounds + 1):
            seed = round_seed(federation, self.name, number)
            extra = {"epochs": epochs, "seed": seed, "part": part_of_training(number, rounds)}
            self.trainer.train(ExchangeObject(weights=weights), extra)
            change = self.trainer.change()
            weights = {
                name: torch.as_tensor(tensor) + torch.from_numpy(change[name]) for name, tensor in weights.items()
            }
        return weights

    def twin(self, federation: str, model: Path, epochs: int) -> Mapping[str, Any]:
        """The weights that the viewer is offered first: the model fine-tuned on the own training cases where that is
        better on the validation cases, else the model as it is."""
        weights = load_file(model)
        before = self.trainer.evaluate(ExchangeObject(weights=weights)).metrics["dice"]
        schedule = Schedule(epochs, round_seed(federation, self.name, 0), RATE, min(VALIDATIONS, epochs))
        tuned, after = self.trainer.fine_tune(weights, schedule, "twin")
        return tuned if before is not None and after > before else weights


def phantom_sites(folder: Path, options: Mapping[str, Any], seed: int) -> dict[str, Path]:
    """Write synthetic sites, and name each with its folder. Raises InputError for options that no cohort has."""
    try:
        summary = write_cohort(folder, seed=seed, **options)
    except TypeError as error:
        raise InputError(f"phantoms: {error}; options are sites, patients, size, spacing, visits, anatomy") from error
    return {site: folder / site for site in sorted({case["site"] for case in summary["cases"]})}
