"""What a site process does over and over: ask what is to do, fetch, train, send; and what it does when that fails.

Each step begins by looking at what is there already, so that it may end anywhere, by an error or by `kill -9`, and the
next one goes on from there.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from twinfed.client.connection import Connection
from twinfed.client.controls import read_consent, tell, why_wait
from twinfed.client.errors import INPUT_ERRORS, Changed, Stopped, Unreachable
from twinfed.client.instructions import HASH, Instructions, hands_models_on, has_few_sites
from twinfed.client.library_warnings import warnings_told
from twinfed.client.local_round import Residual, make_update, take_up
from twinfed.client.site_settings import SiteSettings
from twinfed.client.site_state import LATE, READY, REFUSED, SENT, SKIPPED, RoundEntry, SiteState
from twinfed.client.site_trainer import SiteTrainer
from twinfed.client.site_twin import make_twin
from twinfed.client.upload_size import choose_compression
from twinfed.errors import InputError, Refusal
from twinfed.wire import Compression, apply_update, hash_file
from twinseg.case_queue_record import IN_TRAINING, SUBMITTED, TRAINED
from twinseg.errors import OutOfSpaceError
from twinseg.inference import choose_device

logger = logging.getLogger(__name__)

SOONEST, LATEST, LATEST_REFUSED = 0.5, 60.0, 300.0
"""Seconds: the first wait after a failure, the longest one, and the longest after a refusal."""
LOG_HEADS = "log-heads.txt"
LOOK_AT_CASES = 10.0
TELL_PROGRESS = 0.5
NOT_NOW = ("late", "wrong-round", "not-your-turn", "stale-base")
WAIT_AND_SEE = ("disk-full", "no-token", "unknown-token", "revoked", "too-many-changes", "not-registered")


class SiteLoop:
    """Takes part in a federation until it is finished, or `stop` is set."""

    def __init__(self, settings: SiteSettings, stop: threading.Event) -> None:
        self.settings, self.folder, self.stop = settings, settings.folder, stop
        for name in ("models", "updates", "residuals", "checkpoints"):
            (self.folder / name).mkdir(exist_ok=True)
        self.state = SiteState(self.folder)
        self.connection = Connection(settings.server, self._count, before=self._wait_if_told)
        self.trainer = SiteTrainer(
            settings.source,
            device=choose_device(settings.device),
            checkpoints=self.folder / "checkpoints",
            learning_rate=settings.learning_rate,
            watch=self._watch,
        )
        self._round, self._moved, self._last_line = 0, 0, ""
        self._warned: set[tuple[int, str]] = set()
        self._agreed: dict[str, Any] = {}
        self._registered: int | None = None
        self._asked = self._told_progress = self._looked_at_cases = time.monotonic()

    def run(self) -> bool:
        """True when all rounds are over, False when told to stop."""
        failures = 0
        with warnings_told(self._warn):
            while not self.stop.is_set():
                moved = self._moved
                try:
                    waits = self._why_wait()
                    delay = self._stand_still(waits) if waits else self._step()
                    if delay is None:
                        return True
                    failures = 0
                except Stopped:
                    break
                except Exception as error:
                    failures = 1 if self._moved > moved else failures + 1
                    delay = self._after(error, failures)
                self.stop.wait(delay * random.uniform(0.75, 1.25))
        return False

    # -- one step ------------------------------------------------------------------------------------------------------

    def _step(self) -> float | None:
        """Do what is to do now; seconds until the next question, None when all is over."""
        self._asked = time.monotonic()
        told = self.connection.now()
        self._agree(told)
        self._round = told.round
        share = {} if not told.weights else {"weights": told.weights}
        if told.log_head != self.state.get("log_head") and HASH.fullmatch(told.log_head):
            with open(self.folder / LOG_HEADS, "a", encoding="utf-8") as file:  # to prove it, were the log written anew
                file.write(f"{told.round} {told.log_head}\n")
        self.state.set(round=told.round, rounds=told.rounds, why=told.why, log_head=told.log_head, **share)
        for entry in self.state.unsettled():
            if told.do != "train" or (entry.number, entry.base) != (told.round, told.base):
                self._settle(entry)
        self._check_may_share(told)
        if told.do == "train":
            self._take_part(told)
            return SOONEST
        if self._registered is None and told.do == "wait":
            self._prepare(told)
        if self._twin(told):
            return SOONEST
        if told.do == "finished":
            self._phase("finished")
            self.say("info", f"all {told.rounds} rounds of {told.federation} are over")
            return None
        self._phase("waiting for others")
        return min(told.poll_seconds, self.settings.longest_poll)

    def _agree(self, told: Instructions) -> None:
        """Learn what the sites agreed on. Raises InputError for another federation or task than this folder's."""
        if self._agreed.get("name") != told.federation:
            self._agreed = self.connection.federation()
            if has_few_sites(self._agreed):
                self.say("info", "a round here may have fewer than three sites: they can work out each other's changes")
        name, task = self._agreed.get("name"), self._agreed.get("task")
        before = self.state.get("federation", name)
        if name != before:
            raise InputError(
                f"{self.folder}: it belongs to the federation {before}, not {name}. Name another --folder."
            )
        wanted = self.settings.task or self.state.get("task", task)
        if task != wanted:
            raise InputError(f"This aggregator is for the task {task}, not {wanted}. Check its address, or the task.")
        self.state.set(federation=name, task=task)

    def _check_may_share(self, told: Instructions) -> None:
        """Raises InputError, and skips the round, where other sites would get this site's own model, and nobody here
        agreed to that."""
        consent = read_consent(self.folder)
        if told.do == "finished" or not hands_models_on(self._agreed) or (consent and consent.shares_local_model):
            return
        if told.do == "train":
            self.connection.skip(told.round)
        raise InputError(
            "In this federation other hospitals get this site's own model (strategy transfer), and nobody agreed to "
            "that here. Agree in Slicer, or join with --share-local-model."
        )

    def _settle(self, entry: RoundEntry) -> None:
        """Learn whether an update was taken whose answer was lost: what it left out belongs to the next one."""
        assert entry.hash is not None
        try:
            if self.connection.was_taken(entry.number, entry.hash):
                self._end(entry.number, entry.base, SENT, f"round {entry.number}: sent")
        except Refusal as refusal:
            if refusal.code in WAIT_AND_SEE:
                raise
            phase, words = self._refused(entry.number, refusal)
            self._end(entry.number, entry.base, SENT if phase == SENT else LATE, words)

    def _refused(self, number: int, refusal: Refusal) -> tuple[str, str]:
        """How a round ends for this site whose update was refused, and the words for it."""
        if refusal.code != "second-update":
            return LATE if refusal.code in NOT_NOW else REFUSED, f"round {number}: not taken. {refusal}"
        if any(self._was_taken(number, digest) for digest in self.state.offered(number)):
            return SENT, f"round {number}: sent"  # an earlier form of the same, whose answer was lost
        who = "another process sent an update under this site's token"
        return LATE, f"round {number}: not taken, as {who}. Give each computer a token of its own"

    def _was_taken(self, number: int, digest: str) -> bool:
        try:
            return self.connection.was_taken(number, digest)
        except Refusal as refusal:
            if refusal.code in WAIT_AND_SEE:
                raise
            return False

    def _take_part(self, told: Instructions) -> None:
        """Make the update of the round, unless it is there, and send it."""
        entry = self.state.round(told.round, told.base)
        if entry is not None and entry.phase == REFUSED:
            self.connection.skip(told.round)  # nobody is to wait for it
            return
        update = self.folder / "updates" / f"{told.round}-{told.base[:16]}.safetensors"
        there = entry is not None and entry.phase in (READY, SENT, LATE) and update.is_file()
        gone = self.settings.source.withdrawn(self.state.get("cases", []))
        if entry is None or not there or hash_file(update) != entry.hash or gone:
            self._make(told, update)
        self._send(told, update)

    def _prepare(self, told: Instructions) -> Path:
        """Fetch the base, read the cases, register them; the base's file. Raises InputError, and then skips the round,
        where this site cannot learn from it."""
        model = self._fetch(told)
        try:
            take_up(self.trainer, model)
            if self.trainer.data.task.name != self._agreed.get("task"):
                raise InputError(f"The model is for {self.trainer.data.task.name}. Tell the aggregator's operator.")
            if not self.trainer.data.samples:
                raise InputError(self.settings.source.what_to_do(self.trainer.data.task))
        except OutOfSpaceError:
            raise
        except INPUT_ERRORS:
            if told.do == "train" and self.state.get("site") is not None:
                self.connection.skip(told.round)
                self.state.end(told.round, told.base, SKIPPED)
            raise
        if self._registered != self.trainer.data.samples:
            try:
                self.state.set(site=self.connection.register(self.trainer.data.samples))
                self._registered = self.trainer.data.samples
            except Refusal as refusal:
                if refusal.code != "too-many-changes" or self._registered is None:
                    raise
        return model

    def _make(self, told: Instructions, update: Path) -> None:
        self._phase("reading the cases")
        model = self._prepare(told)
        self._phase("training")
        self.say("info", f"round {told.round} of {told.rounds}: training on {self.trainer.data.samples} cases")
        self.state.begin(told.round, told.base)
        for old in (*update.parent.iterdir(), *(self.folder / "residuals").iterdir()):
            if old.name != self.state.get("residual"):
                old.unlink()
        residuals = self.folder / "residuals"
        before = self.state.get("residual")
        residual = Residual(residuals / before if before else None, residuals / f"{told.round}-{told.base[:16]}")
        self.settings.source.mark(self.trainer.data.names, IN_TRAINING)
        self.state.set(cases=self.trainer.data.names)
        report = make_update(
            self.trainer,
            told,
            self.state.get("site"),
            model,
            update,
            residual,
            how=lambda: self._compression(told),
            most_samples=self._registered,
        )
        self.state.made(told.round, told.base, hash_file(update), update.stat().st_size, report)

    def _seconds_left(self, told: Instructions) -> float | None:
        """Of a round, asked anew: it may have been extended while the site trained. None where nobody knows, and where
        the round is over: that is told when the update is offered, before any of it is sent."""
        try:
            now = self.connection.now()
        except (Unreachable, Refusal):
            left = told.seconds_left - (time.monotonic() - self._asked)
            return left if left > 0 else None
        return now.seconds_left if (now.round, now.base) == (told.round, told.base) else None

    def _compression(self, told: Instructions) -> Compression:
        """What the federation asks for, or what the line carries in the time that is left."""
        if (seconds_left := self._seconds_left(told)) is None:
            return told.upload
        parameters = sum(math.prod(shape) for shape in (self._agreed.get("shapes") or {}).values())
        speed = self.connection.bytes_per_second
        how = choose_compression(told.upload, parameters, speed, seconds_left)
        if how != told.upload:
            line = f"the line carries {(speed or 0) / 1000:.0f} kB/s"
            self.say("info", f"{line}: {how.keep:.0%} of the update is sent, in {how.bits}-bit numbers")
        return how

    def _send(self, told: Instructions, update: Path) -> None:
        self._phase("sending")
        entry = self.state.round(told.round, told.base)
        assert entry is not None
        assert entry.hash is not None
        chunk = int(float((self._agreed.get("limits") or {}).get("chunk_mb", 1)) * 10**6)
        self.state.offer(told.round, entry.hash)
        phase, words = SENT, f"round {told.round}: sent, {update.stat().st_size / 1000:.0f} kB"
        try:
            self.connection.upload(told.round, update, entry.hash, chunk)
        except Refusal as refusal:
            if refusal.code == "not-registered":
                self._registered = None
                self._prepare(told)
            if refusal.code in WAIT_AND_SEE:
                raise
            phase, words = self._refused(told.round, refusal)
        self._end(told.round, told.base, phase, words)
        if phase == REFUSED:
            self.connection.skip(told.round)

    def _end(self, number: int, base: str, phase: str, words: str) -> None:
        """Note how a round ended for this site, and tell the queue."""
        residual = {"residual": f"{number}-{base[:16]}"} if phase == SENT else {}
        self.settings.source.mark(self.state.get("cases", []), TRAINED if phase == SENT else SUBMITTED)
        self.state.end(number, base, phase, cases=[], **residual)
        self.say("info" if phase == SENT else "warning", words)

    def _fetch(self, told: Instructions) -> Path:
        """The base's file, downloaded if need be: as a change to the last one where there is such."""
        models = self.folder / "models"
        target = models / f"{told.base}.safetensors"
        if target.is_file():
            return target
        self._phase("fetching the model")
        before = models / f"{told.delta_from}.safetensors"
        if told.delta_from and before.is_file() and not (models / f"{target.name}.part").exists():
            delta = models / f"{told.base}.delta"
            try:
                self.connection.download(told.base, delta, delta=True)
                made = models / f"{told.base}.made"
                if apply_update(before, delta, made) == told.base:
                    made.replace(target)
            except Refusal as refusal:
                logger.info("the change file is not usable: %s", refusal)
        if not target.is_file():
            self.connection.download(told.base, target)
        for old in models.iterdir():
            if old not in (target, before):
                old.unlink()
        return target

    def _twin(self, told: Instructions) -> bool:
        """Make the site twin of the last published model, where there is one and it is not made; True if so."""
        published = told.round > 1 or told.do == "finished"
        if not self.settings.twins or not published or any(t["model"] == told.base for t in self.state.twins()):
            return False
        model = self._fetch(told)
        take_up(self.trainer, model)
        self._phase("fine-tuning the site twin")
        return make_twin(self.trainer, self.state, self.folder, model, told, self.state.get("site") or "")

    # -- what happens meanwhile ----------------------------------------------------------------------------------------

    def say(self, level: str, text: str) -> None:
        """A line for the panel and the terminal; one that was just said is not repeated."""
        line = " ".join(text.split())
        if line == self._last_line:
            return
        self._last_line = line
        tell(f"{time.strftime('%H:%M:%S')} {line}")
        with contextlib.suppress(sqlite3.OperationalError):  # no room for it
            self.state.line(level, line)

    def _warn(self, text: str) -> None:
        """What a library warns of: once a round, in which the cases are read several times."""
        if (self._round, text) not in self._warned:
            self._warned.add((self._round, text))
            self.say("warning", text)

    def _after(self, error: Exception, failures: int) -> float:
        """Say what went wrong, and for how long to wait."""
        longest, level, text = LATEST, "warning", str(error)
        if isinstance(error, Changed):
            longest = SOONEST
        elif isinstance(error, Unreachable):
            text = f"the aggregator: {error}; it is tried again"
        elif isinstance(error, Refusal):
            longest, text = LATEST_REFUSED, f"the aggregator refuses: {error}"
        elif isinstance(error, INPUT_ERRORS):
            longest = LATEST
        elif isinstance(error, OSError | sqlite3.OperationalError):
            text = f"{self.folder}: {getattr(error, 'strerror', None) or error}; free some room, or mend the folder"
        elif isinstance(error, MemoryError) or "out of memory" in str(error):
            text = "there is not enough memory to train; close other programs, or choose another --device"
        else:
            level, text = "error", f"a fault: {type(error).__name__}: {error}; it is tried again"
            logger.error("a step failed", exc_info=error)
        with contextlib.suppress(sqlite3.OperationalError):
            self._phase("in trouble", trouble=" ".join(text.split()))
        self.say(level, text)
        return min(longest, SOONEST * 2 ** min(failures, 20))

    def _watch(self, done: float, stage: str) -> None:
        """Called by the trainer after each step: tells, stands still, stops."""
        if self.stop.is_set():
            raise Stopped("told to stop")
        now = time.monotonic()
        if now - self._told_progress > TELL_PROGRESS:
            self._told_progress = now
            self.state.set(progress=round(done, 4), stage=stage)
            self._wait_if_told()
        if now - self._looked_at_cases > LOOK_AT_CASES:
            self._looked_at_cases = now
            self.trainer.check_cases()

    def _wait_if_told(self) -> None:
        """Stand still as long as it is paused, without consent, outside its hours, or the viewer computes. Asked before
        each request, too: what is under way is not sent on after the consent was withdrawn."""
        if not self._why_wait():
            return
        phase = self.state.get("phase")
        while waits := self._why_wait():
            self._stand_still(waits)
            if self.stop.wait(SOONEST):
                raise Stopped("told to stop")
        self._phase(phase)

    def _why_wait(self) -> str | None:
        settings = self.settings
        return why_wait(self.folder, settings.server.url, settings.data_folder, settings.hours)

    def _stand_still(self, why: str) -> float:
        self._phase(why)
        self.say("info", why)
        return 2 * SOONEST

    def _phase(self, phase: str, trouble: str | None = None) -> None:
        self.state.set(phase=phase, trouble=trouble)

    def _count(self, up: int, down: int) -> None:
        self._moved += up + (down if down > 2**14 else 0)  # an answer that came is no progress yet
        with contextlib.suppress(sqlite3.OperationalError):
            self.state.count(self._round, up, down)
