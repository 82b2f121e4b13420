"""The models that are on this machine for a task, and what each says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from twinseg.home import data_folder, resource_folders
from twinseg.model_file import ModelCard, read_card
from twinseg.tasks import Task

STARTER = ""  # how the parameter node names the model that ships, wherever it is installed


@dataclass(frozen=True)
class ModelChoice:
    """A model to choose. path: its file, "" for the starter model; description: what it is, in plain text."""

    path: str
    title: str
    description: str


def hasStarter(task: Task) -> bool:
    """Whether a model ships for the task."""
    return any((folder / f"{task.name}.safetensors").is_file() for folder in resource_folders("Models"))


def modelsFor(task: Task) -> list[ModelChoice]:
    """The models of a task: the starter first, then those of the data folder by name."""
    files = [file for folder in resource_folders("Models") for file in sorted(folder.glob("*.safetensors"))]
    choices = [choice for file in files if (choice := modelChoice(file, task))]
    return sorted(choices, key=lambda choice: (choice.path != STARTER, choice.title))


def modelChoice(file: Path, task: Task) -> ModelChoice | None:
    """What a model file offers for a task; None where it is no model, or one for another task."""
    shipped = not file.is_relative_to(data_folder())
    try:
        card = read_card(file)
    except ImportError:  # before the first installation; the starter is named for its task
        text = _("What it was trained on is shown once the Python packages are installed.")
        return ModelChoice(STARTER, _("Starter model"), text) if shipped and file.stem == task.name else None
    except ValueError:
        return None
    if card.task.name != task.name:
        return None
    if shipped and file.stem == task.name:
        return ModelChoice(STARTER, _("Starter model"), describe(card))
    title = f"{file.stem[:12]}…" if len(file.stem) > 40 else file.stem  # stored under its hash
    return ModelChoice(str(file), title, describe(card))


def describe(card: ModelCard) -> str:
    """What a model was trained on, how well it did and where it comes from, in a few short sentences."""
    provenance = card.provenance
    parts = [_("Trained on {data}.").format(data=provenance.get("data", _("data that it does not name")))]
    parts.append(_diceText(provenance.get("metrics")))
    origin = [str(provenance[key]) for key in ("made_by", "program", "date") if provenance.get(key)]
    if provenance.get("parent"):
        origin.append(_("from {parent}").format(parent=str(provenance["parent"])[:12]))
    if origin:
        parts.append(_("Made by {origin}.").format(origin=", ".join(origin)))
    parts.append(
        _("{count:.1f} million parameters, hash {hash}.").format(count=card.parameters / 1e6, hash=card.hash[:12])
    )
    return " ".join(parts)


def _diceText(metrics: Any) -> str:
    scores = {key: value for key, value in (metrics or {}).items() if "dice" in key.lower()}
    numbers = {key: value for key, value in scores.items() if isinstance(value, (int, float))}
    if not numbers:
        return _("Its Dice was not measured.")
    named = "; ".join(f"{_spoken(key)} {value:.2f}" for key, value in numbers.items())
    return _("Measured: {scores}.").format(scores=named)


def _spoken(key: str) -> str:
    """ "validation_dice" as it is read: "validation Dice"."""
    return key.replace("_", " ").replace("dice", "Dice")
