"""A federation's description: one TOML file, verified as a whole before anything starts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from twinfed.wire import Compression, InputError

from .clustered import Clustered
from .robust import Median, MultiKrum, TrimmedMean
from .strategies import Adaptive, FedAdam, FedAvg, FedAvgM, FedExP, FedProx, Strategy, Transfer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (
        FedAvg, FedProx, FedExP, FedAvgM, FedAdam, Adaptive, Clustered, Transfer, TrimmedMean, Median, MultiKrum,
    )
}  # fmt: skip
MAY_CHANGE = ("rounds", "quorum", "deadline_minutes", "keep_rounds", "limits")  # in a federation that runs


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of what is taken.

    Args:
        norm_factor: multiple of the accepted updates' median norm.
        largest_value: magnitude of an entry of an update.
        chunk_mb: largest piece of an upload, in MB.
        free_mb: room on the disk below which no upload begins.
        quarantine: refused updates whose files are kept; older ones leave only their record.
    """

    norm_factor: float = 10.0
    largest_value: float = 8192.0
    chunk_mb: int = 8
    free_mb: int = 256
    quarantine: int = 20

    def __post_init__(self) -> None:
        _positive("limits", asdict(self))


@dataclass(frozen=True, kw_only=True)
class FederationConfig:
    """What the sites agree on.

    Args:
        name: of the federation.
        task, network: names that only the sites understand.
        model: the initial model, a safetensors file.
        rounds: how many there are.
        quorum: updates that a round needs.
        deadline_minutes: after the round opened; without a quorum it is extended by the same time.
        strategy: ``name`` and its options.
        upload, download: what is done to updates and, for the way back, to new models.
        epochs: local epochs a round.
        keep_rounds: published rounds whose updates are kept, so that their models can be made again; models all stay.
        limits: bounds.
    """

    name: str
    task: str
    network: str
    model: str
    rounds: int = 10
    quorum: int = 2
    deadline_minutes: float = 24 * 60
    epochs: int = 1
    keep_rounds: int = 1
    strategy: Mapping[str, Any] = field(default_factory=lambda: {"name": "fedavg"})
    upload: Compression = field(default_factory=Compression)
    download: Compression = field(default_factory=Compression)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for key in ("name", "task", "network", "model"):
            text = getattr(self, key)
            if not isinstance(text, str) or not 0 < len(text) <= 200 or not text.isprintable():
                raise InputError(f"The federation's {key} must be a short text. Correct it.")
        numbers = {"rounds": self.rounds, "quorum": self.quorum, "epochs": self.epochs}
        _positive("federation", {**numbers, "deadline_minutes": self.deadline_minutes})
        for key, number in numbers.items():
            if not isinstance(number, int):
                raise InputError(f"The federation's {key} must be a whole number, not {number}. Correct it.")
        if type(self.keep_rounds) is not int or self.keep_rounds < 0:
            raise InputError(f"The federation's keep_rounds must be 0 or more, not {self.keep_rounds!r}. Correct it.")
        self.make_strategy()

    def make_strategy(self) -> Strategy:
        options = dict(self.strategy)
        name = options.pop("name", None)
        if name not in STRATEGIES:
            raise InputError(f"Unknown strategy {name!r}. Name one of {', '.join(sorted(STRATEGIES))}.")
        try:
            return STRATEGIES[name](**options)
        except TypeError as error:
            raise InputError(f"Strategy {name} has no such option ({error}). Take it out of the file.") from error

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FederationConfig:
        """Raises InputError for a field that is unknown, missing or out of range."""
        values = dict(content)
        for key, kind in (("upload", Compression), ("download", Compression), ("limits", Limits)):
            if key in values:
                values[key] = _build(kind, values[key], key)
        result: FederationConfig = _build(cls, values, "federation")
        return result


def load_config(path: str | Path) -> FederationConfig:
    """Read a federation's TOML file; ``model`` is taken relative to it.

    Raises:
        InputError: it cannot be read, or says something impossible.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}). Name a federation's TOML file.") from error
    content.pop("nvflare", None)  # what the other engine does besides: twinfed.engines.nvflare.job
    if isinstance(content.get("model"), str):
        content["model"] = str(path.parent / content["model"])
    try:
        return FederationConfig.from_dict(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def check_change(old: FederationConfig, new: FederationConfig, reached: int) -> list[str]:
    """The fields that a restart changes.

    Args:
        reached: the round that is open, or the last one.

    Raises:
        InputError: one that sites already rely on, or fewer rounds than there are already.
    """
    if new.rounds < reached:
        raise InputError(f"rounds = {new.rounds}: round {reached} has begun. Write {reached} to make it the last one.")
    changed = [key for key, value in old.to_dict().items() if new.to_dict()[key] != value]
    if fixed := [key for key in changed if key not in (*MAY_CHANGE, "model")]:
        raise InputError(
            f"The federation already runs with another {', '.join(fixed)}. Take a new folder, or change only "
            f"{', '.join(MAY_CHANGE)}."
        )
    return changed


def _build(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise InputError(f"{where} must be a table. Correct it.")
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"{where}: {str(error).partition('__init__() ')[2] or error}. Correct it.") from error


def _positive(where: str, numbers: Mapping[str, Any]) -> None:
    for key, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < 1e9:
            raise InputError(f"{where}: {key} must be a positive number, not {number!r}. Correct it.")
