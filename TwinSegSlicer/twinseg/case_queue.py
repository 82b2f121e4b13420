"""The case queue: corrected cases that wait on this machine to be trained on. Nothing leaves it from here.

A folder a case, with its images, every version of the labels, what the model had drawn and the record (case.json); and
`index.sqlite`, which holds the records too and is what counts. Patients stand in it as pseudonyms; dates do not.

Several processes may use a queue at once: who changes it holds SQLite's write lock from the first file to the commit.
Whatever moment a process is killed at, a case is there whole or not at all: its folder is made under a temporary name
and renamed, then the index speaks of it. What a killed process left behind is removed when the queue is opened next. If
the index is lost, it is made anew from the records.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from twinseg.case_queue_checks import check_images, check_labels, content_digest, measure_change
from twinseg.case_queue_record import IN_TRAINING, RECORD, STATES, SUBMITTED, TRAINED, WITHDRAWN, Correction, QueuedCase
from twinseg.cases import Case
from twinseg.errors import InputError, OutOfSpaceError
from twinseg.home import data_folder
from twinseg.pseudonyms import Pseudonyms, load_pseudonyms
from twinseg.tasks import Task
from twinseg.volumes import Volume, read_labels, sync_folder, write_atomically, write_volume

logger = logging.getLogger(__name__)

SCHEMA = """CREATE TABLE IF NOT EXISTS cases (
    name TEXT PRIMARY KEY, task TEXT NOT NULL, patient TEXT NOT NULL, part TEXT NOT NULL, key_id TEXT NOT NULL,
    state TEXT NOT NULL, record TEXT NOT NULL)"""
STAGED = ".part-"


class CaseQueue:
    """The queue in a folder (default: ``cases`` in the data folder), which is made if it is not there.

    Its methods may be called from any thread. All raise InputError where the queue cannot be read or written.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = data_folder() / "cases" if folder is None else Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # images of patients
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be made ({error.strerror}); set TWINSEG_HOME") from error
        with self._locked() as db:
            db.execute(SCHEMA)
            self._sweep(db)
            db.execute("COMMIT")

    def add(
        self,
        *,
        task: Task,
        patient: str,
        images: Mapping[str, Volume],
        labels: Volume,
        predicted: Volume | None = None,
        model: str | None = None,
        who: str = "",
        note: str = "",
        allow_empty: bool = False,
    ) -> QueuedCase:
        """Submit a corrected case; for images that were submitted before, a new version of their labels.

        Args:
            patient: the patient's id or name, which is hashed and not stored.
            images: a volume a sequence, all on one grid.
            labels: the corrected label map, with the task's values, on that grid.
            predicted: what the model had drawn, and `model`: its hash.
            who: who corrected it. note: their words.
            allow_empty: the case is healthy and its label map empty on purpose.

        Raises:
            InputError: what `case_queue_checks` refuses, a case that was withdrawn, labels that did not change.
            OutOfSpaceError: no space left; the queue is as it was before.
        """
        check_images(images, task)
        check_labels(labels, predicted, images, task, allow_empty)
        if not patient.strip():
            raise InputError("the case names no patient; give the patient's id, of which only a hash is stored")
        if re.search(rf"(?<!\w){re.escape(patient.strip())}(?!\w)", f"{who} {note}", re.IGNORECASE):
            raise InputError("the note names the patient, which must not be stored; take it out")
        change, digest = measure_change(labels, predicted, task), content_digest(images, task)
        with self._locked() as db:
            pseudonyms = self._pseudonyms(db)
            pseudonym = pseudonyms.patient(patient)
            name = f"{pseudonym}-{pseudonyms.content(digest)}"
            case = self._find(db, name)
            if case is None:
                self._check_patient(db, pseudonyms.content(digest))
                case = QueuedCase(
                    name=name,
                    task=task.name,
                    patient=pseudonym,
                    part=self._part(db, pseudonym, pseudonyms),
                    key_id=pseudonyms.key_id,
                    state=SUBMITTED,
                    since=now(),
                    images={sequence: f"{sequence}.nii.gz" for sequence in images},
                    corrections=(),
                    folder=self.folder / name,
                )
            self._check_new(case, labels)
            number = len(case.corrections) + 1
            drawn = None if predicted is None else f"predicted-{number}.nii.gz"
            correction = Correction(f"labels-{number}.nii.gz", drawn, model, who.strip(), now(), note.strip(), change)
            case = replace(case, state=SUBMITTED, since=now(), corrections=(*case.corrections, correction))
            volumes = {correction.labels: labels} | ({drawn: predicted} if drawn and predicted else {})
            if number == 1:
                volumes |= {case.images[sequence]: image for sequence, image in images.items()}
            self._store(db, case, volumes, new=number == 1)
        return case

    def cases(self, *, task: str | None = None, state: str | None = None) -> list[QueuedCase]:
        """The cases of a task (of all) in a state (in any), by name."""
        with self._connected() as db:
            rows = db.execute(
                "SELECT name, record FROM cases "
                "WHERE task = ifnull(?, task) AND state = ifnull(?, state) ORDER BY name",
                (task, state),
            ).fetchall()
        return [QueuedCase.from_json(record, self.folder / name) for name, record in rows]

    def case(self, name: str) -> QueuedCase:
        """The case of a name. Raises InputError where there is none."""
        with self._connected() as db:
            return self._found(db, name)

    def cases_for_training(self, task: str, part: str | None = None) -> list[Case]:
        """The cases of a task (of one part of the split, or of all), with the newest labels, as the trainer takes them.
        Withdrawn ones are not among them; of one whose files are gone a warning is logged."""
        found = []
        for case in self.cases(task=task):
            if case.state == WITHDRAWN or part not in (None, case.part):
                continue
            if gone := [file for file in (*case.image_files.values(), case.labels) if not file.is_file()]:
                logger.warning("%s: it is gone, so its case is left out; restore or withdraw %s", gone[0], case.name)
                continue
            found.append(case.as_case())
        return found

    def mark(self, name: str, state: str) -> QueuedCase:
        """Put a case into the state submitted, in training or trained. Raises InputError for one that was withdrawn."""
        if state not in (SUBMITTED, IN_TRAINING, TRAINED):
            raise InputError(f"{name}: {state!r} is no state to be marked with; use one of {', '.join(STATES[:3])}")
        with self._locked() as db:
            case = self._found(db, name)
            if case.state == WITHDRAWN:
                raise InputError(f"{name}: it was withdrawn ({case.reason}), which is for good")
            case = replace(case, state=state, since=now())
            self._commit(db, case)
            self._write_record(case)
        return case

    def withdraw(self, name: str, reason: str, *, remove_files: bool = False) -> QueuedCase:
        """Take a case out for good: it is never trained on again, and the record says so and why. Its files stay unless
        they are to be removed; the record always stays, so that the same images are refused."""
        if not reason.strip():
            raise InputError(f"{name}: give the reason for which it is withdrawn")
        with self._locked() as db:
            case = self._found(db, name)
            if case.state != WITHDRAWN:
                case = replace(case, state=WITHDRAWN, since=now(), reason=reason.strip())
            case = replace(case, files_removed=case.files_removed or remove_files)
            self._commit(db, case)
            self._write_record(case)
            if left := remove_strangers(case):
                raise InputError(f"{left[0]}: it is withdrawn, but the file is in use; close it and withdraw it again")
        return case

    # --- what counts is the index ------------------------------------------------------------------------------------

    def _store(self, db: sqlite3.Connection, case: QueuedCase, volumes: Mapping[str, Volume], new: bool) -> None:
        """Write the volumes of a case into its folder (a new one or its own), then commit the record; or nothing."""
        folder = self.folder / f"{STAGED}{secrets.token_hex(4)}" if new else case.folder
        try:
            folder.mkdir(exist_ok=not new)
            for name, volume in volumes.items():
                write_volume(folder / name, volume)
            if new:
                write_atomically(folder / RECORD, case.to_json().encode())
                os.rename(folder, case.folder)
                sync_folder(self.folder)
            self._commit(db, case)
        except BaseException:
            if new:
                shutil.rmtree(folder, ignore_errors=True)
                shutil.rmtree(case.folder, ignore_errors=True)
            for name in volumes:
                (case.folder / name).unlink(missing_ok=True)
            raise
        if not new:
            self._write_record(case)

    def _commit(self, db: sqlite3.Connection, case: QueuedCase) -> None:
        self._index(db, case)
        db.execute("COMMIT")

    def _write_record(self, case: QueuedCase) -> None:
        """The record beside the files, after the index."""
        try:
            write_atomically(case.folder / RECORD, case.to_json().encode())
        except InputError as error:  # it counts all the same, and is written when the queue is opened next
            logger.warning("%s", error)

    def _index(self, db: sqlite3.Connection, case: QueuedCase) -> None:
        row = (case.name, case.task, case.patient, case.part, case.key_id, case.state, case.to_json())
        db.execute("INSERT OR REPLACE INTO cases VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def _find(self, db: sqlite3.Connection, name: str) -> QueuedCase | None:
        row = db.execute("SELECT record FROM cases WHERE name = ?", (name,)).fetchone()
        return None if row is None else QueuedCase.from_json(row[0], self.folder / name)

    def _found(self, db: sqlite3.Connection, name: str) -> QueuedCase:
        if (case := self._find(db, name)) is None:
            raise InputError(f"{name}: no such case in the queue; twinseg cases list shows them")
        return case

    def _check_new(self, case: QueuedCase, labels: Volume) -> None:
        """Raise InputError where a case was withdrawn, or has these labels already."""
        if case.state == WITHDRAWN:
            raise InputError(f"{case.name}: it was withdrawn ({case.reason}) and is never trained on again")
        if case.corrections and case.labels.is_file():
            newest = read_labels(case.labels)
            if np.array_equal(newest.array, labels.array):
                when = case.corrections[-1].when
                raise InputError(f"{case.name}: these labels were submitted before ({when}); correct them further")

    def _check_patient(self, db: sqlite3.Connection, content: str) -> None:
        """Raise InputError where these images are another patient's, who may stand on another side of the split."""
        if row := db.execute("SELECT name FROM cases WHERE name LIKE '%-' || ?", (content,)).fetchone():
            raise InputError(f"{row[0]}: these images are in the queue under another patient id; use that id again")

    def _pseudonyms(self, db: sqlite3.Connection) -> Pseudonyms:
        """The key that the patients of this queue are known by; another one would take them for new ones."""
        file = self.folder.parent / "pseudonyms.key"
        known = {row[0] for row in db.execute("SELECT DISTINCT key_id FROM cases")}
        if not known or file.exists():
            pseudonyms = load_pseudonyms(file)
            if known <= {pseudonyms.key_id}:
                return pseudonyms
        raise InputError(
            f"{file}: it is not the key by which the queue knows its patients; restore the file from a backup"
        )

    def _part(self, db: sqlite3.Connection, pseudonym: str, pseudonyms: Pseudonyms) -> str:
        """The patient's side of the split: the one of the cases that are there, or drawn."""
        row = db.execute("SELECT part FROM cases WHERE patient = ?", (pseudonym,)).fetchone()
        return pseudonyms.part(pseudonym) if row is None else str(row[0])

    def _sweep(self, db: sqlite3.Connection) -> None:
        """Bring the folders in line with the index. While this process holds the lock no other one writes here, so what
        is not finished was left behind."""
        for folder in sorted(path for path in self.folder.iterdir() if path.is_dir()):
            if folder.name.startswith(STAGED):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            record = folder / RECORD
            text = record.read_text("utf-8", errors="replace") if record.is_file() else None
            case = self._find(db, folder.name)
            if case is not None:
                remove_strangers(case)
                if text != case.to_json():
                    self._write_record(case)
            elif text is not None:  # the index was lost, or the process was killed just before the commit
                try:
                    self._index(db, QueuedCase.from_json(text, folder))
                except InputError as error:
                    logger.warning("%s", error)

    @contextmanager
    def _locked(self) -> Iterator[sqlite3.Connection]:
        """A connection that alone may write. What is not committed in the block does not happen."""
        with self._connected() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection for a moment, so that no thread shares one and no file is held open."""
        file = self.folder / "index.sqlite"
        try:
            with closing(sqlite3.connect(file, timeout=60, isolation_level=None)) as db:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                yield db
        except (sqlite3.Error, OSError) as error:
            raise translated(error, file) from error


def translated(error: sqlite3.Error | OSError, file: Path) -> InputError:
    """An error of SQLite or the system in words that say what to do."""
    text = str(error)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "full" in text or ("disk I/O" in text and shutil.disk_usage(file.parent).free < 2**20):
        return OutOfSpaceError(f"{file.parent}: no space left to write to the queue; free some")
    if "locked" in text:
        return InputError(f"{file}: another program is writing to it; try again when that is done")
    if "not a database" in text or "malformed" in text:
        return InputError(f"{file}: it is damaged; move it away, and it is made anew from the records of the cases")
    return InputError(f"{file}: the queue cannot be used ({text}); check the folder and its rights")


def remove_strangers(case: QueuedCase) -> list[Path]:
    """Remove from a case's folder what its record does not name, and tell what could not be."""
    left = []
    for file in case.folder.iterdir() if case.folder.is_dir() else ():
        if file.is_file() and file.name not in (*case.files, RECORD):
            try:
                file.unlink()
            except OSError:  # open in another program, on Windows
                left.append(file)
    return left


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
