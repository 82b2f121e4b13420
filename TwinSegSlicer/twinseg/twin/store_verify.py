"""Proof that a twin's folder is whole: every file as it was written, every event in its place, nothing foreign."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twinseg.errors import InputError
from twinseg.twin.store import Twin
from twinseg.twin.store_files import EVENTS, HEAD, LOCK, OWNER, sha256


@dataclass(frozen=True)
class Verification:
    """faults: one line each, none where the folder is whole; head: the newest event's hash, which stands for all that
    came before: kept elsewhere, it proves that nothing was taken off the end."""

    faults: tuple[str, ...]
    files: int
    revisions: int
    head: str

    @property
    def whole(self) -> bool:
        """Whether no fault was found."""
        return not self.faults


def verify(folder: str | Path, expected_head: str | None = None) -> Verification:
    """Check a twin's folder: the chain of events, the hash of every file, and that there is no other file.

    expected_head: a head noted earlier; it must be one of the revisions. Raises InputError where there is no twin.
    """
    folder = Path(folder)
    if not (folder / HEAD).exists() and not (folder / EVENTS).exists():
        raise InputError(f"{folder}: there is no twin here (no {HEAD}); check the path")
    try:
        twin = Twin.open(folder)
    except InputError as error:
        return Verification((str(error),), 0, 0, "")
    manifest = twin.manifest
    faults = []
    for path, digest in sorted(manifest.items()):
        try:
            if sha256((folder / path).read_bytes()) != digest:
                faults.append(f"{path}: it was changed after it was written")
        except OSError as error:
            faults.append(f"{path}: it cannot be read ({error.strerror})")
    known = {*manifest, HEAD, EVENTS, LOCK, OWNER}
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    faults += [f"{path}: this file is not the twin's" for path in there if path not in known]
    if expected_head is not None and expected_head not in [event["hash"] for event in twin.events]:
        faults.append(f"{EVENTS}: the noted head {expected_head[:12]} is none of its revisions; the end was cut off")
    return Verification(tuple(faults), len(manifest), twin.revision, twin.events[-1]["hash"])
