"""The site's side without NVFlare: the same trainer, seeds and files as a site process, told what to do by messages.

What it does is written to the site's folder as a site process does, so that Slicer's panel shows the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.fl.utils.exchange_object import ExchangeObject
from safetensors.numpy import load_file

from twinfed.client.case_source import CaseSource
from twinfed.client.controls import NVFLARE, STOP, Hours, read_consent, tell, why_wait
from twinfed.client.errors import INPUT_ERRORS, Changed, Stopped
from twinfed.client.instructions import Instructions
from twinfed.client.local_round import Residual, make_update, take_up
from twinfed.client.site_process import locked
from twinfed.client.site_state import REFUSED, SENT, SiteState
from twinfed.client.site_trainer import SiteTrainer
from twinfed.client.site_twin import make_twin
from twinfed.engines.nvflare.exchange import FAULTS, FINAL, Arrays, outgoing, summed
from twinfed.engines.nvflare.site_file import SiteFile
from twinfed.errors import InputError
from twinfed.wire import ArrayTensors, hash_file, write_model
from twinseg.case_queue_record import IN_TRAINING, TRAINED
from twinseg.home import data_folder
from twinseg.inference import choose_device

ENGINE = "nvflare"
TELL_PROGRESS, LOOK_AT_CASES = 0.5, 10.0
LOOK = 1.0
"""Seconds between two looks while it stands still."""
TEST = "test"


class SitePart:
    """One site, in one job.

    Args:
        name: of the site.
        settings: its own.

    Raises:
        InputError: another process works in the site's folder, or it cannot be written.
    """

    def __init__(self, name: str, settings: SiteFile) -> None:
        self.name, self.settings, self.folder = name, settings, settings.folder
        self._lock = locked(self.folder)
        (self.folder / STOP).unlink(missing_ok=True)
        for part in ("models", "checkpoints", "residuals"):
            (self.folder / part).mkdir(exist_ok=True)
        self.state = SiteState(self.folder)
        self.state.set(engine=ENGINE, site=name, pid=os.getpid(), started=time.time(), phase="waiting for others")
        self.hours = Hours.parse(settings.hours) if settings.hours else None
        self.trainer = SiteTrainer(
            CaseSource(folder=settings.cases),
            device=choose_device(settings.device),
            checkpoints=self.folder / "checkpoints",
            learning_rate=settings.learning_rate,
            watch=self._watch,
        )
        self._published: tuple[Path, Instructions] | None = None
        self._told_progress = self._looked_at_cases = 0.0

    def register(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Read the cases for the job's model; what is registered of them. Does so even while it is paused: all others
        wait for it.

        Raises InputError where the site cannot learn from them, or has not consented.
        """
        told, metadata = self._learn(content)
        consent = read_consent(self.folder)
        if consent is None or not consent.holds_for(NVFLARE):
            raise InputError(f"{self.folder}: no consent was given. Give it with twinfed nvflare site {self.name} …")
        self._stop_if_told()
        self._phase("reading the cases")
        self.trainer.initialize(metadata)
        if not self.trainer.data.samples:
            raise InputError(self.trainer.source.what_to_do(self.trainer.data.task))
        self.state.set(task=self.trainer.data.task.name)
        self._say(f"{told.federation}: takes part under NVFlare with {self.trainer.data.samples} training cases")
        self._phase("waiting for others")
        return {"samples": self.trainer.data.samples}

    def train(self, content: Mapping[str, Any], arrays: Arrays, form: str) -> tuple[Arrays, dict[str, Any]]:
        """Train for a round from the model in `arrays`: the update in the form asked for, and what is said of it.

        Raises InputError where the model or the cases do not allow it; Stopped.
        """
        told, metadata = self._learn(content)
        self._wait_if_told()
        base = self._store(arrays, told.base, metadata)
        self.state.set(base=told.base)
        if told.round > 1:
            self._published = base, told
        self._phase("reading the cases")
        take_up(self.trainer, base)
        if not self.trainer.data.samples:
            raise InputError(self.trainer.source.what_to_do(self.trainer.data.task))
        self._phase("training")
        self._say(f"round {told.round} of {told.rounds}: training on {self.trainer.data.samples} cases")
        self.state.begin(told.round, told.base)
        update, residual = self.folder / "update.safetensors", self._residual(told)
        source, names = self.trainer.source, self.trainer.data.names
        source.mark(names, IN_TRAINING)
        try:
            report = make_update(self.trainer, told, self.name, base, update, residual)
        except Changed as changed:
            self._say(str(changed))
            return self.train(content, arrays, form)
        self._wait_if_told()
        source.mark(names, TRAINED)
        self.state.made(told.round, told.base, hash_file(update), update.stat().st_size, report)
        sent = outgoing(update, base, form)
        size = sum(array.nbytes for array in sent.values())
        self.state.count(told.round, size, base.stat().st_size)
        before = self.state.get("residual")
        self.state.end(told.round, told.base, SENT, residual=residual.after.name, residual_before=before)
        self._phase("waiting for others")
        self._say(f"round {told.round}: handed to NVFlare, {size / 1000:.0f} kB")
        said = {"form": form, "federation": told.federation, "round": told.round, "base": told.base}
        return sent, {**said, "report": report.to_dict()}

    def evaluate(self, content: Mapping[str, Any], arrays: Arrays) -> dict[str, float]:
        """Score a model on the site's test cases, which no training has seen: "dice", "hd95" (mm) and "cases"."""
        told, metadata = self._learn(content)
        self._wait_if_told()
        if told.do == "finished" and content.get("owner") == FINAL:
            self._published = self._store(arrays, told.base, metadata), told
        self._phase("scoring a model")
        metrics = self.trainer.evaluate(ExchangeObject(weights=dict(arrays)), {"part": TEST}).metrics
        self._phase("waiting for others")
        self.make_twin()
        self._wait_if_told()
        self._say(f"scored the model of {content.get('owner')} on {metrics['n']} test cases")
        found = {"dice": metrics["dice"], "hd95": metrics["hd95"], "cases": float(metrics["n"])}
        return {key: float(value) for key, value in found.items() if value is not None}

    def make_twin(self) -> None:
        """Fine-tune the last published model for this site, for the viewer, which otherwise keeps what it has: after an
        answer, while others are waited for; and before the last one, as the process ends soon after it. Raises Stopped.
        """
        published, self._published = self._published, None
        if published is None or not self.settings.twins:
            return
        model, told = published
        self._phase("fine-tuning the site twin")
        try:
            make_twin(self.trainer, self.state, self.folder, model, told, self.name)
            self._phase("waiting for others")
        except FAULTS as error:
            self.in_trouble(error)

    def local_model(self) -> Arrays | None:
        """The weights of the last training here; None where this site does not share them, or has not trained."""
        if not self.settings.share_local_model or (base := self.state.get("base")) is None:
            return None
        model = self.folder / "models" / f"{base}.safetensors"
        try:
            change = self.trainer.change()
        except INPUT_ERRORS:  # nothing was trained in this job
            return None
        return summed(load_file(model), change)

    def finish(self, words: str = "finished") -> None:
        """The job is over for this site."""
        self._phase(words)
        self._say(f"the job is over: {words}")
        self.trainer.finalize()
        self.state.close()
        self._lock.release()

    def in_trouble(self, error: Exception) -> None:
        """Show what went wrong."""
        text = " ".join(str(error).split())
        self.state.set(phase="in trouble", trouble=text)
        self._say(text, "warning")

    # -- private -------------------------------------------------------------------------------------------------------

    def _learn(self, content: Mapping[str, Any]) -> tuple[Instructions, dict[str, str]]:
        """Take in what a message says. Raises InputError for another federation than this folder's."""
        told = Instructions.from_dict(content["instructions"])
        before = self.state.get("federation", told.federation)
        if told.federation != before:
            raise InputError(f"{self.folder}: it belongs to the federation {before}, not {told.federation}.")
        self.state.set(federation=told.federation, round=told.round, rounds=told.rounds, log_head=told.log_head)
        if told.weights:
            self.state.set(weights=told.weights)
        last = self.state.get("last")
        if last is not None and (why := content.get("refused", {}).get(self.name)):
            number, base = int(last[0]), str(last[1])
            entry = self.state.round(number, base)
            if entry is not None and entry.phase != REFUSED:
                self.state.end(number, base, REFUSED, residual=self.state.get("residual_before"))
                self._say(f"round {number}: not taken. {why}", "warning")
        self.state.set(last=[told.round, told.base])
        return told, {str(key): str(text) for key, text in content["metadata"].items()}

    def _store(self, arrays: Arrays, base: str, metadata: Mapping[str, str]) -> Path:
        """The model as a file of the hash that the server named. Raises InputError where it is another."""
        path = self.folder / "models" / f"{base}.safetensors"
        ready = {name: np.ascontiguousarray(array, np.float32).reshape(array.shape) for name, array in arrays.items()}
        write_model(path, ArrayTensors(ready), metadata)
        if hash_file(path) != base:
            path.unlink()
            raise InputError("The model arrived damaged; a filter of NVFlare may have changed it. Ask the operator.")
        for old in path.parent.iterdir():
            if old.stem not in (base, self.state.get("base")):
                old.unlink()
        return path

    def _residual(self, told: Instructions) -> Residual:
        """What compressed updates left out: as the last update that was taken left it, and as this one will."""
        folder, before = self.folder / "residuals", self.state.get("residual")
        for old in folder.iterdir():
            if old.name != before:
                old.unlink()
        return Residual(folder / before if before else None, folder / f"{told.round}-{told.base[:16]}")

    def _watch(self, done: float, stage: str) -> None:
        """Called by the trainer after each step."""
        now = time.monotonic()
        if now - self._told_progress > TELL_PROGRESS:
            self._told_progress = now
            self.state.set(progress=round(done, 4), stage=stage)
            self._wait_if_told()
        if now - self._looked_at_cases > LOOK_AT_CASES:
            self._looked_at_cases = now
            self.trainer.check_cases()

    def _wait_if_told(self) -> None:
        """Stand still as long as it is paused, without consent, outside its hours, or the viewer computes."""
        phase = self.state.get("phase")
        while why := why_wait(self.folder, NVFLARE, data_folder(), self.hours):
            self._stop_if_told()
            self._phase(why)
            time.sleep(LOOK)
        self._stop_if_told()
        self._phase(phase)

    def _stop_if_told(self) -> None:
        if (self.folder / STOP).exists():
            raise Stopped("told to stop")

    def _phase(self, phase: str) -> None:
        self.state.set(phase=phase, trouble=None)

    def _say(self, text: str, level: str = "info") -> None:
        tell(f"{self.name}: {text}")
        self.state.line(level, text)
