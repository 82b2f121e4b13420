"""A site's part in a round: from the global model's file to the update's file. The very same in every engine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.fl.utils.exchange_object import ExchangeObject
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from twinfed.client.instructions import Instructions
from twinfed.client.site_trainer import SiteTrainer
from twinfed.wire import Compression, Header, Report, TensorFile, write_update
from twinseg.volumes import write_atomically


@dataclass(frozen=True)
class Residual:
    """Files of what compressed updates left out (error feedback): as the last one left it, and as this one will."""

    before: Path | None
    after: Path


def take_up(trainer: SiteTrainer, model: Path) -> None:
    """Initialize a trainer by the metadata of a global model's file. Raises InputError, or Refusal for no such file."""
    trainer.initialize(TensorFile(model).metadata)


def make_update(
    trainer: SiteTrainer,
    told: Instructions,
    site: str,
    model: Path,
    update: Path,
    residual: Residual,
    *,
    how: Callable[[], Compression] | None = None,
    most_samples: int | None = None,
) -> Report:
    """Score the global model, train, score the local one, and write the update.

    Args:
        trainer: initialized by `take_up` with this model.
        told: the round.
        site: the site's name.
        model: the global model's file.
        update: the file to write.
        how: asked after the training for the compression, where it may be another than the federation's.
        most_samples: the number of cases that is registered.

    Raises:
        InputError: the model does not fit; OSError: no space left. What the trainer's `watch` raises.
    """
    weights: dict[str, NDArray[np.float32]] = load_file(model)
    before = trainer.evaluate(ExchangeObject(weights=weights)).metrics
    seed = round_seed(told.federation, site, told.round)
    name = f"round-{told.round}-{told.base[:16]}"
    extra: dict[str, Any] = {"epochs": told.epochs, "seed": seed, "proximal_mu": told.proximal_mu, "name": name}
    extra["part"] = part_of_training(told.round, told.rounds)
    trainer.watch(0.0, "the first step")  # minutes of scoring lie before it
    trainer.train(ExchangeObject(weights=weights), extra)
    after = trainer.evaluate(ExchangeObject()).metrics
    known = trainer.get_data_stats().statistics
    report = Report(
        samples=min(known["samples"], most_samples or known["samples"]),
        labels=known["labels"],
        dice_before=before["dice"],
        dice_after=after["dice"],
        hd95_before=before["hd95"],
        hd95_after=after["hd95"],
    )
    header = Header(federation=told.federation, round=told.round, site=site, base=told.base, report=report)
    held = load_file(residual.before) if residual.before is not None and residual.before.is_file() else {}
    write_update(update, trainer.change(), header, how() if how else told.upload, residual=held, seed=seed)
    write_atomically(residual.after, save(held))
    return report


def part_of_training(number: int, rounds: int) -> tuple[float, float]:
    """Where on the course of the learning rate over all rounds a round begins and ends: it falls once, as in a training
    in one place, so that late rounds settle what early ones found. A round beyond the last goes on as the last."""
    number = min(number, rounds)
    return (number - 1) / rounds, number / rounds


def round_seed(federation: str, site: str, number: int) -> int:
    """The seed of a site's round, 31 bits: the same in a simulation and in a site process."""
    digest = hashlib.sha256(f"{federation}\0{site}\0{number}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1
