"""What the aggregator tells a site to do, read with care: the answer may be damaged."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twinfed.client.errors import Unreachable
from twinfed.wire import Compression, InputError

HASH = re.compile(r"[0-9a-f]{64}")
MOST_EPOCHS = 10_000
FEW_SITES = 3
"""Below so many changes in a model each can be worked out by those who know the others."""


@dataclass(frozen=True)
class Instructions:
    """An answer to "what now?".

    Attributes:
        do: train, wait or finished; why: in words.
        federation: its name. round, rounds: the open one, and how many there are.
        base: hash of the model to begin from, or of the final one.
        delta_from: hash of the model from which a compressed change leads to the base, if there is such a change.
        epochs: local epochs. proximal_mu: of FedProx, else 0.
        upload: what is done to the update.
        seconds_left: until the round is over. poll_seconds: when to ask again.
        log_head: hash of the last entry of the aggregator's log.
        weights: site -> its share in the last model, where the aggregator tells.
    """

    do: str
    why: str
    federation: str
    round: int
    rounds: int
    base: str
    delta_from: str | None
    epochs: int
    proximal_mu: float
    upload: Compression
    seconds_left: float
    poll_seconds: float
    log_head: str
    weights: dict[str, float]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Instructions:
        """Raises Unreachable for what no aggregator says."""
        try:
            told = cls(
                do=str(content["do"]),
                why=str(content["why"])[:200],
                federation=str(content["federation"]),
                round=int(content["round"]),
                rounds=int(content["rounds"]),
                base=str(content["base"]),
                delta_from=content["delta_from"],
                epochs=int(content["epochs"]),
                proximal_mu=float(content["client_terms"].get("proximal_mu", 0)),
                upload=Compression(**content["upload"]),
                seconds_left=float(content["seconds_left"]),
                poll_seconds=float(content["poll_seconds"]),
                log_head=str(content["log_head"]),
                weights={str(site): float(share) for site, share in (content.get("weights") or {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
            raise Unreachable(f"the answer is damaged ({error})") from error
        believable = (
            told.do in ("train", "wait", "finished")
            and HASH.fullmatch(told.base)
            and (told.delta_from is None or (isinstance(told.delta_from, str) and HASH.fullmatch(told.delta_from)))
            and 1 <= told.round <= told.rounds + 1
            and 1 <= told.epochs <= MOST_EPOCHS
            and 0 <= told.proximal_mu <= 100
            and math.isfinite(told.seconds_left)
            and 0 <= told.poll_seconds <= 3600
        )
        if not believable:
            raise Unreachable("the answer is damaged (a value that cannot be)")
        return told


def hands_models_on(agreed: Mapping[str, Any]) -> bool:
    """Whether a federation gives one site's own model to the others: its strategy is transfer."""
    strategy = agreed.get("strategy")
    return isinstance(strategy, Mapping) and strategy.get("name") == "transfer"


def has_few_sites(agreed: Mapping[str, Any]) -> bool:
    """Whether a federation may make a model of so few changes that each can be worked out."""
    quorum = agreed.get("quorum")
    return not isinstance(quorum, int) or quorum < FEW_SITES
