"""Older schemas of a twin's folder, brought up to today's in one revision; what is replaced is kept in history/.

Schema 1 had a flat `events.jsonl` without hashes, transforms as the 12 numbers of ITK (LPS, row by row), no
uncertainty of days, one segmentation a scan, and `treatments.json` as one list with a `kind` in each entry.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from twinseg import __version__
from twinseg.errors import InputError
from twinseg.itk_files import LPS
from twinseg.twin.store_files import EVENTS, HEAD, Event, chain, sha256, to_json, write_revision
from twinseg.twin.store_records import Segmentation, checked_pseudonym
from twinseg.twin.treatments import Treatments

KINDS = ("radiotherapy", "chemotherapy", "surgery", "steroids")


def migrate(folder: Path, schema: int) -> None:
    """Bring a folder of an older schema to today's, all or nothing. The caller holds the lock.

    Raises InputError for a damaged folder or a schema that never was; then nothing has changed.
    """
    if schema != 1:
        raise InputError(f"{folder}: there was never a schema {schema}; restore twin.json from a copy")
    try:
        files = _from_schema_1(folder)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:80]
        raise InputError(f"{folder}: this twin of schema 1 is damaged ({reason}); restore it from a copy") from error
    write_revision(folder, files)


def _from_schema_1(folder: Path) -> dict[str, bytes]:
    """The files to write: the new ones, and copies of those that they replace."""
    old = json.loads((folder / HEAD).read_bytes())
    grid = old["baseline_grid"]
    frame = None if grid is None else {"space": "RAS", "unit": "mm", **grid}
    about = {"pseudonym": checked_pseudonym(old["patient"]), "task": old["task"], "frame": frame}
    events: list[Event] = []
    files: dict[str, bytes] = {}

    def add(kind: str, detail: dict[str, Any], written: dict[str, bytes], kept: tuple[str, ...] = ()) -> None:
        files.update(written)
        hashes = {path: sha256(content) for path, content in written.items()}
        hashes |= {path: sha256((folder / path).read_bytes()) for path in kept}
        event = {"kind": kind, "detail": detail, "files": hashes, "about": sha256(to_json(about))}
        events.append(chain(events, {**event, "software": f"twinseg {__version__}"}))

    add("created", {}, {"treatments.json": to_json(_treatments(json.loads((folder / "treatments.json").read_bytes())))})
    replaced = [HEAD, EVENTS, "treatments.json"]
    for scan in sorted(path.name for path in (folder / "timepoints").glob("*")):
        path = f"timepoints/{scan}/timepoint.json"
        detail, content, kept = _timepoint(folder, scan, json.loads((folder / path).read_bytes()))
        add("time point added", detail, {path: to_json(content)}, kept)
        replaced.append(path)
    add("migrated", {"from": 1}, {f"history/schema-1/{path}": (folder / path).read_bytes() for path in replaced})
    head = {"revision": len(events), "hash": events[-1]["hash"]}
    files[EVENTS] = b"".join(to_json(event, indent=None) for event in events)
    files[HEAD] = to_json({"schema": 2, **about, "head": head})
    return files


def _timepoint(folder: Path, name: str, old: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """Event detail, new record, and the files that stay where they are, each checked against its old hash."""
    for path, digest in old["files"].items():
        if sha256((folder / path).read_bytes()) != digest:
            raise InputError(f"{folder / path}: it was changed since it was written; restore it from a copy")
    transform = np.eye(4)
    transform[:3] = np.reshape(old["transform"], (3, 4))
    quality = old["quality"]
    content = {
        "day": old["day"],
        "day_uncertainty": 0.0,  # schema 1 did not ask; days counted from two known dates are exact
        "images": old["images"],
        "source_sha256": {},
        "to_baseline": (LPS @ transform @ LPS).tolist(),
        "registration": None if quality is None else {"kind": "affine", "quality": quality},
    }
    detail: dict[str, Any] = {"timepoint": name}
    if old["segmentation"] is not None:
        detail["segmentation"] = dataclasses.asdict(Segmentation(old["segmentation"], old["origin"]))
    return detail, content, tuple(old["files"])


def _treatments(old: list[dict[str, Any]]) -> dict[str, Any]:
    """Schema 1 could not tell "none given" from "unknown": a kind without entries becomes unknown."""
    by_kind = {
        kind: [{key: value for key, value in entry.items() if key != "kind"} for entry in old if entry["kind"] == kind]
        for kind in KINDS
    }
    return Treatments.from_json({kind: entries for kind, entries in by_kind.items() if entries}).to_json()
