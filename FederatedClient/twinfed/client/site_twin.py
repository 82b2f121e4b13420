"""The site twin: each published model, fine-tuned on the site's own cases, and which of the two is offered first.

A published model and its twin are kept as model files in the site's folder, with their Dice on the site's validation
cases. The better one is offered first. The twin's weights were chosen on the same cases, which flatters it a little;
so a twin that is not better there is none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinfed import __version__
from twinfed.client.instructions import Instructions
from twinfed.client.site_state import SiteState, read_state
from twinfed.errors import InputError
from twinseg.model_file import save_model
from twinseg.volumes import write_atomically

if TYPE_CHECKING:
    from twinfed.client.site_trainer import SiteTrainer

KEPT = 5
"""Published models whose files are kept, besides a chosen one."""
RATE = 3e-4
VALIDATIONS = 5
CHOICE = "offer.json"
GLOBAL, TWIN = "global", "twin"


@dataclass(frozen=True)
class Offer:
    """The model that the viewer takes first.

    Attributes:
        file: a model file.
        kind: global or twin.
        round: after which it was published.
        global_dice, twin_dice: on the site's validation cases; None where there are none, or no twin.
        chosen: whether the user chose it, rather than its score.
    """

    file: Path
    kind: str
    round: int
    global_dice: float | None
    twin_dice: float | None
    chosen: bool

    @property
    def words(self) -> str:
        """What is to be told with it."""

        def shown(dice: float | None) -> str:
            return "not measured" if dice is None else f"{dice:.3f}"

        scores = f"Dice on this site's validation cases: twin {shown(self.twin_dice)}, global {shown(self.global_dice)}"
        worse = self.kind == TWIN and not _better(self.global_dice, self.twin_dice)
        warning = " The twin is not better than the global model; it was chosen by hand." if worse else ""
        return f"The {self.kind} model of round {self.round}. {scores}.{warning}"


def make_twin(trainer: SiteTrainer, state: SiteState, folder: Path, model: Path, told: Instructions, site: str) -> bool:
    """Fine-tune a published model on the site's cases and register both; False if that is done already.

    Args:
        trainer: initialized for this model.
        folder: the site's.
        model: the published model's file.
        told: with the model as base.

    Raises:
        InputError: as `SiteTrainer.fine_tune`, or no space left. What the trainer's `watch` raises.
    """
    import torch  # here, so that Slicer's own process asks for the offer without it
    from monai.fl.utils.exchange_object import ExchangeObject
    from safetensors.numpy import load_file

    from twinfed.client.local_round import round_seed
    from twinfed.client.site_data import Schedule

    if any(row["model"] == told.base for row in state.twins()):
        return False
    number = told.round if told.do == "finished" else told.round - 1
    files = folder / "twins"
    files.mkdir(exist_ok=True)
    facts = {"program": f"twinfed {__version__}", "federation": told.federation, "round": number, "parent": told.base}
    weights = load_file(model)
    before = trainer.evaluate(ExchangeObject(weights=weights)).metrics["dice"]
    global_file, twin_file, after = files / f"round-{number:04d}-global.safetensors", None, None
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    save_model(
        global_file,
        tensors,
        task=trainer.data.task,
        network=trainer.description,
        provenance={**facts, "metrics": {"validation_dice": before}},
    )
    if before is not None and trainer.data.samples:
        epochs = told.epochs
        schedule = Schedule(epochs, round_seed(told.federation, site, 0), RATE, min(VALIDATIONS, epochs))
        tuned, _ = trainer.fine_tune(weights, schedule, f"twin-{number}-{told.base[:16]}")
        after = trainer.evaluate(ExchangeObject(weights=tuned)).metrics["dice"]
        twin_file = files / f"round-{number:04d}-twin.safetensors"
        save_model(
            twin_file,
            tuned,
            task=trainer.data.task,
            network=trainer.description,
            provenance={**facts, "metrics": {"validation_dice": after, "global_validation_dice": before}},
        )
    state.add_twin(told.base, number, global_file.name, twin_file.name if twin_file else None, before, after)
    _remove_old(state, folder)
    return True


def first_offer(folder: Path) -> Offer | None:
    """What the viewer offers first: what the user chose, else the better one of the newest round. None before any."""
    rows = read_state(folder, lines=0)["twins"]
    if not rows:
        return None
    row, kind, chosen = rows[-1], GLOBAL, False
    choice = _choice(folder)
    matching = [one for one in rows if one["model"] == choice.get("model")]
    if matching and choice.get("kind") in (GLOBAL, TWIN):
        row, kind, chosen = matching[0], choice["kind"], True
    elif _better(row["global_dice"], row["twin_dice"]):
        kind = TWIN
    name = row["twin_file"] if kind == TWIN else row["global_file"]
    if name is None:
        return None
    return Offer(folder / "twins" / name, kind, row["round"], row["global_dice"], row["twin_dice"], chosen)


def choose(folder: Path, number: int, kind: str) -> Offer:
    """Go back (or forward) to the model of a round, "global" or "twin", until `choose_newest`.

    Raises InputError where there is none.
    """
    rows = [row for row in read_state(folder, lines=0)["twins"] if row["round"] == number]
    if not rows or kind not in (GLOBAL, TWIN) or rows[-1][f"{kind}_file"] is None:
        raise InputError(f"There is no {kind} model of round {number} here. Choose one of those that are listed.")
    content = json.dumps({"model": rows[-1]["model"], "kind": kind}).encode()
    write_atomically(folder / CHOICE, content)
    offer = first_offer(folder)
    assert offer is not None
    return offer


def choose_newest(folder: Path) -> None:
    """Offer the better one of the newest round again."""
    (folder / CHOICE).unlink(missing_ok=True)


def _better(global_dice: float | None, twin_dice: float | None) -> bool:
    return twin_dice is not None and (global_dice is None or twin_dice > global_dice)


def _choice(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / CHOICE).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def _remove_old(state: SiteState, folder: Path) -> None:
    for row in state.twins()[KEPT:]:
        if row["model"] == _choice(folder).get("model"):
            continue
        state.remove_twin(row["model"])
        for name in filter(None, (row["global_file"], row["twin_file"])):
            (folder / "twins" / name).unlink(missing_ok=True)
