"""How a twin's folder is written: in whole revisions, by one writer at a time, each event chained to the one before.

A revision is first written aside (`.staging`) and flushed to the disk; one rename (to `.commit`) makes it valid; then
its files are moved to their places, the head `twin.json` last. Who opens the folder next finishes a move that was cut
short and throws away a staging that was never renamed, so that a crash leaves the old revision or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from twinseg.errors import InputError, OutOfSpaceError
from twinseg.volumes import sync_folder, write_atomically

HEAD = "twin.json"
EVENTS = "events.jsonl"
LOCK = ".lock"
OWNER = ".lock-owner"
STAGING = ".staging"
JOURNAL = ".commit"
SCHEMA = 2  # of what a folder holds; `migration` reads older ones
FIRST = "0" * 64  # what stands for the hash of the event before the first

Event = dict[str, Any]


def sha256(content: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def to_json(data: Any, indent: int | None = 1) -> bytes:
    """JSON with sorted keys, UTF-8: equal data give equal bytes. Raises ValueError for NaN, which is no JSON."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(data, indent=indent, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=separators)
    return (text + "\n").encode()


def event_hash(event: Mapping[str, Any]) -> str:
    """SHA-256 of an event without its own hash; the hash of the event before it is part of it."""
    return sha256(to_json({key: value for key, value in event.items() if key != "hash"}, indent=None))


def chain(events: list[Event], event: Mapping[str, Any]) -> Event:
    """The event as it follows on `events`: numbered, chained, hashed."""
    previous = events[-1]["hash"] if events else FIRST
    chained = {**event, "revision": len(events) + 1, "previous": previous}
    return {**chained, "hash": event_hash(chained)}


def chain_fault(events: list[Event]) -> str:
    """What is wrong with the chain of events, in words; empty where nothing is."""
    previous = FIRST
    for number, event in enumerate(events, 1):
        if event.get("revision") != number:
            return f"event {number} is numbered {event.get('revision')}"
        if event.get("previous") != previous:
            return f"event {number} does not follow on the one before"
        if event.get("hash") != event_hash(event):
            return f"event {number} was changed after it was written"
        previous = event["hash"]
    return ""


def read_head(folder: Path) -> tuple[dict[str, Any], list[Event]]:
    """Head and events of a folder, checked against each other. Raises InputError."""
    try:
        head = json.loads((folder / HEAD).read_bytes())
        schema = int(head["schema"])
        lines = (folder / EVENTS).read_bytes().splitlines() if schema == SCHEMA else []
        events: list[Event] = [json.loads(line) for line in lines]
        if schema == SCHEMA:
            about = {key: head[key] for key in ("pseudonym", "task", "frame")}
            fault = chain_fault(events)
            if not fault and (not events or head["head"] != {"revision": len(events), "hash": events[-1]["hash"]}):
                fault = f"{HEAD} does not name the last event"
            if not fault and sha256(to_json(about)) != events[-1]["about"]:
                fault = f"{HEAD} was changed after it was written"
            if fault:
                raise InputError(f"{folder}: the twin is damaged ({fault}); restore it from a copy")
    except OSError as error:
        raise InputError(f"{folder}: {HEAD} or {EVENTS} cannot be read ({error.strerror}); restore them") from error
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:80]
        raise InputError(f"{folder}: the twin is damaged ({reason}); restore it from a copy") from error
    if schema > SCHEMA:
        raise InputError(f"{folder}: it was written by a newer version (schema {schema}); update twinseg")
    return head, events


@contextlib.contextmanager
def locked(folder: Path, *, writing: bool, seconds: float = 10.0) -> Iterator[None]:
    """Hold the folder for this process alone. The lock is the operating system's, so it ends with its owner, however
    that dies; the owner's number is kept beside it for the message alone.

    Readers hold it too, so that they never see a revision halfway; where the folder is read-only (an archive) they
    go without. Raises InputError where another process holds it for longer than `seconds`.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise InputError(f"{folder}: another program{_owner(folder)} writes to it; try again later") from error
    except OSError as error:
        if writing:
            raise InputError(f"{folder}: it cannot be written ({error.strerror}); check its rights") from error
        yield
        return
    try:
        with contextlib.suppress(OSError):  # for a message only
            (folder / OWNER).write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        lock.release()


def write_revision(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put `files` (path in the folder -> content) in their places, all or none. The caller holds the lock.

    Raises OutOfSpaceError or InputError where they cannot be written; then nothing has changed.
    """
    staging = folder / STAGING
    try:
        shutil.rmtree(staging, ignore_errors=True)
        for path, content in files.items():
            (staging / path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(staging / path, content)
        os.rename(staging, folder / JOURNAL)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpaceError(f"{folder}: no space left to write to; free some, then try again") from error
        raise InputError(f"{folder}: it cannot be written ({error.strerror}); check its rights") from error
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    sync_folder(folder)
    _move_into_place(folder)


def recover(folder: Path) -> None:
    """Finish or undo what a writer that died left behind. The caller holds the lock."""
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    if (folder / JOURNAL).is_dir():
        _move_into_place(folder)


def interrupted(folder: Path) -> bool:
    """Whether a writer died in this folder, or is at work."""
    return (folder / JOURNAL).exists() or (folder / STAGING).exists()


def _move_into_place(folder: Path) -> None:
    journal = folder / JOURNAL
    waiting = sorted(path.relative_to(journal) for path in journal.rglob("*") if path.is_file())
    for path in sorted(waiting, key=lambda path: path == Path(HEAD)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(journal / path, folder / path)
        sync_folder((folder / path).parent)
    shutil.rmtree(journal, ignore_errors=True)  # empty now; if it stays, the next writer takes it away
    sync_folder(folder)


def _owner(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return f" (process {(folder / OWNER).read_text(encoding='utf-8')[:20]})"
    return ""
