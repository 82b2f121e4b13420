"""The server's side without NVFlare: a job's rounds in the folder of a light aggregator, by its very classes.

`Federation`, `Intake` and the strategies check, record and aggregate; `twinfed verify` proves the folder, and the light
aggregator can carry on from it where a server's job was killed.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from twinfed.aggregator.audit import record
from twinfed.aggregator.config import FederationConfig
from twinfed.aggregator.intake import Intake
from twinfed.aggregator.rounds import PUBLISHED, Federation
from twinfed.aggregator.store import Store
from twinfed.engines.nvflare.exchange import incoming, told
from twinfed.engines.nvflare.job import DIFFERENCES, WEIGHTS
from twinfed.errors import InputError, Refusal, shown
from twinfed.wire import TensorFile, hash_file

logger = logging.getLogger(__name__)


class RoundFailed(RuntimeError):
    """A round came to nothing: the job must not go on as if it had."""


class JobFederation:
    """The rounds of one job.

    Args:
        folder: the aggregator's; one that a killed job left is gone on with.
        config: of the federation; may be left out for a folder that has one.
        form: in which sites send updates.

    Raises:
        InputError: a model that cannot be read, or a folder of another federation.
    """

    def __init__(self, folder: Path, config: FederationConfig | None = None, form: str = DIFFERENCES) -> None:
        self.store, self.form = Store(folder), form
        self.federation = Federation(self.store, config)
        self.intake = Intake(self.federation)
        self.config = self.federation.config
        self._lock = threading.Lock()  # NVFlare hands over results in several threads
        self._passed_over = 0

    def register(self, site: str, content: Mapping[str, Any]) -> None:
        """Let a site take part that says how many training cases it has. Raises Refusal, InputError for its name."""
        with self._lock:
            if all(known["name"] != site for known in self.federation.accounts.sites()):
                self.federation.accounts.add(site)
            self.federation.accounts.register(site, content.get("samples", 0))

    def begin(self) -> None:
        """All sites are registered: settle whose turn it is. Raises RoundFailed where there are too few."""
        self.federation.advance()
        with self.store.transaction() as db:
            active = self.federation.accounts.active(db)
        if len(active) < (1 if self._in_turn else self.config.quorum):
            raise RoundFailed(f"{len(active)} sites can take part ({', '.join(active)}); see the logs of the others")

    @property
    def number(self) -> int:
        """The open round, from 1; the last one when all are over."""
        return int(self.federation.current()["number"])

    @property
    def over(self) -> bool:
        """Whether all rounds are published."""
        row = self.federation.current()
        return row["state"] == PUBLISHED and row["number"] >= self.config.rounds

    @property
    def rounds_left(self) -> int:
        return 0 if self.over else self.config.rounds - self.number + 1

    def asked(self, sites: Sequence[str]) -> list[str]:
        """Those of the sites that are to train for the open round."""
        return [site for site in sorted(sites) if self.federation.instructions(site)["do"] == "train"]

    def message(self) -> dict[str, Any]:
        """What the sites need to know of the round: instructions, the model's metadata, and who was refused why."""
        do = "finished" if self.over else "train"
        instructions = {**self.federation.instructions(""), "do": do, "update": None}
        query = "SELECT site, code, reason FROM updates WHERE round = ? AND state = 'refused'"
        refused = {row["site"]: f"{row['code']}: {row['reason']}" for row in self.store.rows(query, self._last)}
        metadata = TensorFile(self._file()).metadata
        return {"instructions": instructions, "metadata": metadata, "refused": refused, "form": self.form}

    def model(self) -> dict[str, NDArray[np.float32]]:
        """The round's model: name -> float32 array."""
        return dict(load_file(self._file()))

    def first_model(self) -> dict[str, NDArray[np.float32]]:
        """The model that the first round began from."""
        row = self.store.row("SELECT bases FROM rounds WHERE number = 1")
        assert row is not None
        return dict(load_file(self.store.file(json.loads(row["bases"])["0"])))

    def take(self, site: str, params: Mapping[str, Any], meta: Mapping[str, Any]) -> str | None:
        """Check an update and take it into the round; why it was refused, None if it was not. Refusals are recorded."""
        with self._lock, self.store.temporary() as folder:
            path = folder / "update"
            try:
                content = told(meta)
                base = self.model() if content.get("form") == WEIGHTS else {}
                incoming(params, content, base, site, path)
            except (Refusal, InputError) as error:
                return self._refuse(site, error)
            try:
                self.intake.receive(site, self.number, hash_file(path), path)
            except Refusal as refusal:
                return f"{refusal.code}: {refusal.reason}"
        return None

    def close_round(self) -> bool:
        """Every answer is in: aggregate and publish. True if the model is a new one; False where the turn passes to
        another site, as this one's update was refused.

        Raises:
            RoundFailed: too few updates were accepted, or the model is as it was.
        """
        number, before = self.number, self._file()
        row = self.federation.current()
        invited = json.loads(row["invited"] or "null")
        accepted = {one.site for one in self.federation.contributions(number)}
        with self.store.transaction() as db:
            awaited = self.federation.accounts.active(db) if invited is None else invited
        for site in awaited:
            if site not in accepted:
                self.intake.skip(site, number)
        self.federation.advance()
        if self.number == number and not self.over:
            self._pass_over(number, accepted, len(awaited))
            return False
        self._passed_over = 0
        after = self._file()
        if _same(TensorFile(before), TensorFile(after)):
            raise RoundFailed(f"Round {number} left the model as it was. See the updates in {self.store.folder}.")
        return True

    def report(self) -> list[dict[str, Any]]:
        """By round: the sites' weights, what was refused and why, and seconds."""
        rows = self.store.rows("SELECT * FROM rounds WHERE published IS NOT NULL ORDER BY number")
        refused = self.store.rows("SELECT * FROM updates WHERE state = 'refused' ORDER BY received")
        return [
            {
                "round": row["number"],
                "weights": json.loads(row["weights"] or "{}"),
                "refused": {one["site"]: one["code"] for one in refused if one["round"] == row["number"]},
                "seconds": round(row["published"] - row["opened"], 3),
                "model": json.loads(row["models"])["0"],
            }
            for row in rows
        ]

    def close(self) -> None:
        self.store.close()

    @property
    def _in_turn(self) -> bool:
        return self.federation.strategy.name == "transfer"

    @property
    def _last(self) -> int:
        """The round that was closed last, or the open one where the turn passed in it."""
        return self.number if self._passed_over or self.over else self.number - 1

    def _file(self) -> Path:
        row = self.federation.current()
        return self.store.file(json.loads(row["models"] or row["bases"])["0"])

    def _pass_over(self, number: int, accepted: set[str], asked: int) -> None:
        self._passed_over += 1
        with self.store.transaction() as db:
            sites = len(self.federation.accounts.active(db))
        if not self._in_turn or self._passed_over >= sites:
            wanted = 1 if self._in_turn else self.config.quorum
            raise RoundFailed(
                f"Round {number}: {len(accepted)} of {asked} updates were accepted, {wanted} are needed. The reasons "
                f"are in the log and in {self.store.folder}."
            )

    def _refuse(self, site: str, error: Refusal | InputError) -> str:
        """Record an update of which there is no file."""
        code = error.code if isinstance(error, Refusal) else "malformed"
        reason = error.reason if isinstance(error, Refusal) else shown(error, 200)
        remedy = error.remedy if isinstance(error, Refusal) else "Train again from the model."
        with self.store.transaction() as db:
            now, number = self.store.now(), self.number
            marker = f"unread-{site}-{number}-{now}"
            db.execute(
                "INSERT INTO updates VALUES (?, ?, ?, 'refused', ?, ?, ?, NULL, NULL, 0, NULL, ?)",
                (marker, number, site, code, reason, remedy, now),
            )
            record(db, now, site, "update-refused", round=number, hash=marker, code=code, reason=reason)
        return f"{code}: {reason}"


def _same(one: TensorFile, other: TensorFile) -> bool:
    return all(np.array_equal(one.raw(name), other.raw(name)) for name in one.shapes)
