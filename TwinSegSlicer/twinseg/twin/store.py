"""The twin's folder: append-only, content-hashed, chained. One patient, every scan and everything said about it.

::

    twin.json        schema, pseudonym, task, the baseline's frame, and the head: the newest revision and its hash
    events.jsonl     one line a revision: what happened, the hash of every file it wrote, the hash of the line before
    timepoints/NNN/  timepoint.json, images/, segmentations/ (each a label map and a record)
    lesions.json, treatments.json      replaced as knowledge grows; what they said before is kept in history/
    models/ growth/ forecasts/ assessments/    NNNNNN/record.json with its files; a forecast's scores lie beside it

Files are never edited: a new revision adds some. `store_files` says how that survives a crash, `store_verify` proves
a folder whole, `migration` reads older schemas.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twinseg import __version__
from twinseg.errors import InputError
from twinseg.twin import store_files
from twinseg.twin.store_files import EVENTS, HEAD, Event, chain, locked, sha256, to_json
from twinseg.twin.store_records import (
    DOCUMENTS,
    ROOMS,
    Frame,
    Record,
    Segmentation,
    TimePoint,
    checked_day,
    checked_origin,
    checked_pseudonym,
    refuse_calendar_dates,
)
from twinseg.volumes import Volume, grids_agree, read_image, read_labels, volume_bytes


class Twin:
    """An open twin: its folder as it was when it was opened. What is added goes to the disk at once.

    Raises InputError for a folder that holds no twin, or a damaged one; for a write when another program added a
    revision in the meantime (open the twin again and repeat).
    """

    def __init__(self, folder: Path, head: dict[str, Any], events: list[Event]) -> None:
        self.folder = folder
        self._head = head
        self.events = events

    @classmethod
    def create(cls, folder: str | Path, *, task: str, pseudonym: str | None = None) -> Twin:
        """A new twin in a folder that does not exist yet, or is empty. Without a pseudonym one is drawn."""
        folder = Path(folder)
        name = checked_pseudonym(pseudonym or f"twin-{secrets.token_hex(4)}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            unexpected = {entry.name for entry in folder.iterdir()} - {store_files.LOCK, store_files.OWNER}
        except OSError as error:
            raise InputError(f"{folder}: it cannot be made ({error.strerror}); choose another folder") from error
        if unexpected:
            raise InputError(f"{folder}: it is not empty; choose a new folder for the twin")
        twin = cls(folder, {"pseudonym": name, "task": task, "frame": None}, [])
        twin._commit("created", {"treatments.json": to_json({})})
        return twin

    @classmethod
    def open(cls, folder: str | Path) -> Twin:
        """The twin in a folder. A write that was cut short is finished or undone; an older schema is migrated."""
        folder = Path(folder)
        if not (folder / HEAD).is_file() and not store_files.interrupted(folder):
            raise InputError(f"{folder}: there is no twin here (no {HEAD}); make one with twinseg twin create")
        with locked(folder, writing=False):
            store_files.recover(folder)
            head, events = store_files.read_head(folder)
            if head["schema"] < store_files.SCHEMA:
                from twinseg.twin.migration import migrate

                migrate(folder, head["schema"])
                head, events = store_files.read_head(folder)
        return cls(folder, head, events)

    # --- what is known -----------------------------------------------------------------------------------------------

    @property
    def pseudonym(self) -> str:
        """The patient's name in this record."""
        return str(self._head["pseudonym"])

    @property
    def task(self) -> str:
        """The task whose labels the segmentations carry, by name."""
        return str(self._head["task"])

    @property
    def frame(self) -> Frame | None:
        """The baseline's grid; None before the first scan."""
        return Frame.from_json(self._head["frame"]) if self._head["frame"] else None

    @property
    def revision(self) -> int:
        """How many revisions there are."""
        return len(self.events)

    @property
    def manifest(self) -> dict[str, str]:
        """The SHA-256 of every file of the twin but its head and its events."""
        return {path: digest for event in self.events for path, digest in event["files"].items()}

    @property
    def timepoints(self) -> tuple[TimePoint, ...]:
        """All scans, by day."""
        drawn: dict[str, list[Segmentation]] = {}
        scans: list[TimePoint] = []
        for event in self.events:
            if segmentation := event["detail"].get("segmentation"):
                drawn.setdefault(event["detail"]["timepoint"], []).append(Segmentation(**segmentation))
            if event["kind"] == "time point added":
                scans.append(self._timepoint(event))
        return tuple(dataclasses.replace(scan, segmentations=tuple(drawn.get(scan.name, ()))) for scan in scans)

    def timepoint(self, name: str) -> TimePoint:
        """A scan by its name ("000" is the baseline). Raises InputError."""
        for scan in self.timepoints:
            if scan.name == name:
                return scan
        raise InputError(f"{self.folder}: it has no time point {name}; twinseg twin list shows which there are")

    def document(self, name: str) -> dict[str, Any]:
        """The newest `lesions.json` or `treatments.json`; empty before the first."""
        content: dict[str, Any] = json.loads(self.read(name)) if name in self.manifest else {}
        return content

    def records(self, room: str) -> tuple[Record, ...]:
        """All records of a room, oldest first."""
        added = [event for event in self.events if event["detail"].get("room") == room]
        return tuple(self._record(event, added) for event in added if event["kind"] == "record added")

    def read(self, path: str) -> bytes:
        """A file of the twin. Raises InputError where it is missing or not what was written."""
        try:
            content = (self.folder / path).read_bytes()
        except OSError as error:
            raise InputError(f"{self.folder / path}: it cannot be read ({error.strerror}); restore it") from error
        if sha256(content) != self.manifest.get(path):
            self._check_newest()  # a document that another program replaced is not damaged
            raise InputError(f"{self.folder / path}: it was changed since it was written; restore it from a copy")
        return content

    def image(self, timepoint: TimePoint, sequence: str) -> Volume:
        """An image of a scan, float32, on its own grid."""
        path = timepoint.images[sequence]
        self.read(path)
        return read_image(self.folder / path)

    def labels(self, timepoint: TimePoint) -> Volume | None:
        """The label map that counts for a scan, on its own grid; None where there is none."""
        drawn = timepoint.segmentation
        if drawn is None:
            return None
        self.read(drawn.path)
        return read_labels(self.folder / drawn.path)

    # --- what is added -----------------------------------------------------------------------------------------------

    def add_timepoint(
        self,
        day: float,
        images: Mapping[str, Volume],
        *,
        day_uncertainty: float = 0.0,
        to_baseline: np.ndarray | None = None,
        registration: dict[str, Any] | None = None,
        source_sha256: Mapping[str, str] | None = None,
        segmentation: tuple[Volume, str] | None = None,
        uncertainty: Volume | None = None,
        model: str | None = None,
        delta: str | None = None,
        lesions: Mapping[str, Any] | None = None,
    ) -> TimePoint:
        """Add a scan: copies of its images by sequence, without what their headers say of the patient, and if given
        its segmentation (label map and origin) and the new `lesions.json`. The first scan is the baseline, and its
        grid the twin's frame.

        Raises InputError for a day that does not follow on the last, and like `add_segmentation`.
        """
        scans = self.timepoints
        checked_day(day, day_uncertainty, [scan.day for scan in scans])
        if not images:
            raise InputError(f"{self.folder}: a time point needs at least one image")
        if scans and to_baseline is None:
            raise InputError(f"{self.folder}: a scan after the baseline needs its registration to the baseline")
        name = f"{len(scans):03d}"
        paths = {sequence: f"timepoints/{name}/images/{sequence}.nii.gz" for sequence in images}
        files = {paths[sequence]: _image_bytes(image) for sequence, image in images.items()}
        content = {
            "day": day,
            "day_uncertainty": day_uncertainty,
            "images": paths,
            "source_sha256": dict(source_sha256 or {}),
            "to_baseline": (np.eye(4) if to_baseline is None else to_baseline).tolist(),
            "registration": registration,
        }
        files[f"timepoints/{name}/timepoint.json"] = to_json(content)
        detail: dict[str, Any] = {"timepoint": name}
        if segmentation is not None:
            drawn, drawn_files = self._segmentation(name, images.values(), *segmentation, uncertainty, model, delta)
            detail["segmentation"] = dataclasses.asdict(drawn)
            files |= drawn_files
        if lesions is not None:
            files["lesions.json"] = to_json(lesions)
        reference = next(iter(images.values())) if segmentation is None else segmentation[0]
        frame = Frame(reference.affine, reference.shape) if not scans else None
        self._commit("time point added", files, detail, frame)
        return self.timepoint(name)

    def add_segmentation(
        self,
        timepoint: str,
        labels: Volume,
        origin: str,
        *,
        uncertainty: Volume | None = None,
        model: str | None = None,
        delta: str | None = None,
        lesions: Mapping[str, Any] | None = None,
    ) -> Segmentation:
        """Add a segmentation of a scan that is there, and the new `lesions.json`; earlier ones stay. labels: on the
        grid of one of its images. Raises InputError for an unknown origin or another grid."""
        scan = self.timepoint(timepoint)
        images = (self.image(scan, sequence) for sequence in scan.images)
        drawn, files = self._segmentation(timepoint, images, labels, origin, uncertainty, model, delta)
        if lesions is not None:
            files["lesions.json"] = to_json(lesions)
        detail = {"timepoint": timepoint, "segmentation": dataclasses.asdict(drawn)}
        self._commit("segmentation added", files, detail)
        return drawn

    def set_document(self, name: str, content: Mapping[str, Any]) -> None:
        """Replace `lesions.json` or `treatments.json`; what it said before is kept in history/."""
        if name not in DOCUMENTS:
            raise ValueError(f"{name} is none of {DOCUMENTS}")
        self._commit(f"{name} replaced", {name: to_json(content)})

    def add_record(self, room: str, content: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> Record:
        """Add a record to one of the `ROOMS`, with files by name. It is sealed: nothing ever changes it."""
        if room not in ROOMS:
            raise ValueError(f"{room} is none of {ROOMS}")
        name = f"{self.revision + 1:06d}"
        inside = {f"{room}/{name}/{file}": data for file, data in (files or {}).items()}
        inside[f"{room}/{name}/record.json"] = to_json(content)
        self._commit("record added", inside, {"room": room, "name": name})
        return self.records(room)[-1]

    def score_forecast(self, name: str, timepoint: str, score: Mapping[str, Any]) -> Record:
        """Add to a forecast how it fared at a scan. Raises InputError for a scan that was there before the forecast."""
        forecast = next((record for record in self.records("forecasts") if record.name == name), None)
        if forecast is None:
            raise InputError(f"{self.folder}: it has no forecast {name}")
        if self.timepoint(timepoint).revision < forecast.revision:
            raise InputError(
                f"{self.folder}: forecast {name} was made when scan {timepoint} was known; score it on a later one"
            )
        path = f"forecasts/{name}/score-{self.revision + 1:06d}.json"
        content = {"timepoint": timepoint, **score}
        self._commit("forecast scored", {path: to_json(content)}, {"room": "forecasts", "name": name, "score": path})
        return next(record for record in self.records("forecasts") if record.name == name)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _commit(
        self, kind: str, files: dict[str, bytes], detail: dict[str, Any] | None = None, frame: Frame | None = None
    ) -> None:
        """Write one revision. Only `DOCUMENTS` may replace what is there; `frame` comes with the baseline."""
        about = {key: self._head[key] for key in ("pseudonym", "task", "frame")}
        if frame is not None:
            about["frame"] = frame.to_json()
        for path, content in files.items():
            if path.endswith(".json"):
                refuse_calendar_dates(json.loads(content), path)
        with locked(self.folder, writing=True):
            store_files.recover(self.folder)
            self._check_newest()
            manifest = self.manifest
            for path in [path for path in files if path in manifest]:
                if path not in DOCUMENTS:
                    raise ValueError(f"{path} is there already, and files are never edited")
                files = {**files, f"history/{self.revision:06d}-{path}": self.read(path)}
            event = chain(
                self.events,
                {
                    "kind": kind,
                    "detail": detail or {},
                    "files": {path: sha256(content) for path, content in files.items()},
                    "about": sha256(to_json(about)),
                    "software": f"twinseg {__version__}",
                },
            )
            head = {
                "schema": store_files.SCHEMA,
                **about,
                "head": {"revision": event["revision"], "hash": event["hash"]},
            }
            lines = b"".join(to_json(line, indent=None) for line in [*self.events, event])
            store_files.write_revision(self.folder, {**files, EVENTS: lines, HEAD: to_json(head)})
        self._head = head
        self.events = [*self.events, event]

    def _check_newest(self) -> None:
        """Raises InputError where the folder holds a revision that this object does not know."""
        there = store_files.read_head(self.folder)[1] if (self.folder / HEAD).exists() else []
        if [event["hash"] for event in there[-1:]] != [event["hash"] for event in self.events[-1:]]:
            raise InputError(f"{self.folder}: another program changed it meanwhile; open it again and repeat")

    def _segmentation(
        self,
        timepoint: str,
        images: Iterable[Volume],
        labels: Volume,
        origin: str,
        uncertainty: Volume | None,
        model: str | None,
        delta: str | None,
    ) -> tuple[Segmentation, dict[str, bytes]]:
        checked_origin(origin)
        if not any(grids_agree(labels, image) for image in images):
            raise InputError(
                f"time point {timepoint}: the segmentation {labels.shape} lies on the grid of none of its images; "
                "resample it to one"
            )
        if uncertainty is not None and not grids_agree(uncertainty, labels):
            raise InputError(f"time point {timepoint}: label map and uncertainty lie on different grids; give one grid")
        if uncertainty is not None and uncertainty.array.min() == uncertainty.array.max():
            uncertainty = None  # the same everywhere says nothing, and is no image
        stem = f"timepoints/{timepoint}/segmentations/{self.revision + 1:06d}-{origin}"
        unsure = None if uncertainty is None else f"{stem}-uncertainty.nii.gz"
        drawn = Segmentation(f"{stem}.nii.gz", origin, model, delta, unsure)
        files = {drawn.path: _compressed(labels), f"{stem}.json": to_json(dataclasses.asdict(drawn))}
        if unsure is not None and uncertainty is not None:
            files[unsure] = _compressed(uncertainty)
        return drawn, files

    def _timepoint(self, event: Event) -> TimePoint:
        name = event["detail"]["timepoint"]
        content = json.loads(self.read(f"timepoints/{name}/timepoint.json"))
        content["to_baseline"] = np.array(content["to_baseline"], float)
        return TimePoint(name=name, revision=event["revision"], **content)

    def _record(self, event: Event, events: list[Event]) -> Record:
        room, name = event["detail"]["room"], event["detail"]["name"]
        folder = f"{room}/{name}/"
        files = {path.removeprefix(folder): path for path in event["files"] if path.startswith(folder)}
        content = json.loads(self.read(files.pop("record.json")))
        scored = [e["detail"] for e in events if e["kind"] == "forecast scored"]
        scores = [detail["score"] for detail in scored if detail["name"] == name]
        return Record(room, name, event["revision"], content, files, tuple(json.loads(self.read(s)) for s in scores))


def _image_bytes(image: Volume) -> bytes:
    """NIfTI content; whole numbers, as scanners give them, as integers: a third of the size of floats."""
    array = image.array
    if array.dtype.kind == "f" and np.abs(array).max() < 2**31 and np.array_equal(array, np.rint(array)):
        array = array.astype(np.int32)
    return _compressed(Volume(array, image.affine))


def _compressed(volume: Volume) -> bytes:
    return volume_bytes(Path("volume.nii.gz"), volume)
