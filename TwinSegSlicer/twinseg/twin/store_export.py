"""A twin as a folder in the shape of BIDS derivatives (BIDS 1.10), for other programs to read."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from twinseg import __version__
from twinseg.errors import InputError
from twinseg.tasks import Task, load_task
from twinseg.twin.store import Twin
from twinseg.twin.store_files import to_json
from twinseg.twin.store_records import TimePoint
from twinseg.volumes import write_atomically

SUFFIXES = {"t1": "T1w", "t1ce": "ce-gadolinium_T1w", "t2": "T2w", "flair": "FLAIR", "ct": "ct"}


def export_bids(twin: Twin, folder: str | Path) -> Path:
    """Write images, segmentations, transforms and records to a folder that does not exist yet; returns it.

    Days take the place of dates (`sessions.tsv`). It appears whole or not at all. Raises InputError where the folder
    is there already or a file of the twin is damaged.
    """
    folder = Path(folder)
    if folder.exists():
        raise InputError(f"{folder}: it is there already; name a folder that is not")
    task = load_task(twin.task)
    subject = "sub-" + re.sub(r"[^A-Za-z0-9]", "", twin.pseudonym)
    files: dict[str, bytes] = {
        "dataset_description.json": to_json(
            {
                "Name": "Patient twin",
                "BIDSVersion": "1.10.0",
                "DatasetType": "derivative",
                "GeneratedBy": [{"Name": "TwinSegSlicer", "Version": __version__}],
            }
        ),
        "participants.tsv": _table([["participant_id"], [subject]]),
        f"{subject}/{subject}_sessions.tsv": _table(
            [["session_id", "day", "day_standard_deviation"]]
            + [[f"ses-{scan.name}", scan.day, scan.day_uncertainty] for scan in twin.timepoints]
        ),
        f"{subject}/{subject}_desc-twin_lesions.json": to_json(twin.document("lesions.json")),
        f"{subject}/{subject}_desc-twin_treatments.json": to_json(twin.document("treatments.json")),
        "dseg.tsv": _table([["index", "name"], *([label.value, label.title] for label in task.labels)]),
    }
    if assessments := [record.content for record in twin.records("assessments")]:
        files[f"{subject}/{subject}_desc-twin_assessments.json"] = to_json(assessments)
    for scan in twin.timepoints:
        files |= _session(twin, task, subject, scan)
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for path, content in files.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(temporary / path, content)
        temporary.rename(folder)
    except OSError as error:
        raise InputError(f"{folder}: it cannot be written ({error.strerror}); choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _session(twin: Twin, task: Task, subject: str, scan: TimePoint) -> dict[str, bytes]:
    """The files of one scan."""
    stem = f"{subject}/ses-{scan.name}/anat/{subject}_ses-{scan.name}"
    files: dict[str, bytes] = {}
    for sequence, path in scan.images.items():
        entity, _, suffix = SUFFIXES.get(sequence, f"acq-{sequence}_{task.modality}").rpartition("_")
        entities = f"_{entity}" if entity else ""
        files[f"{stem}{entities}_desc-preproc_{suffix}.nii.gz"] = twin.read(path)
        files[f"{stem}{entities}_desc-preproc_{suffix}.json"] = to_json({"SkullStripped": None, "Sequence": sequence})
    if scan.segmentation is not None:
        drawn = scan.segmentation
        about: dict[str, Any] = {"Manual": drawn.origin == "expert", "Origin": drawn.origin, "Model": drawn.model}
        files[f"{stem}_desc-{drawn.origin}_dseg.nii.gz"] = twin.read(drawn.path)
        files[f"{stem}_desc-{drawn.origin}_dseg.json"] = to_json({**about, "Delta": drawn.delta})
    transform = {
        "Description": "Points of this scan (RAS, mm) to the baseline's: 4x4, homogeneous coordinates",
        "Matrix": scan.to_baseline.tolist(),
        "Registration": scan.registration,
    }
    files[f"{stem}_from-scan_to-baseline_mode-image_xfm.json"] = to_json(transform)
    return files


def _table(rows: list[list[Any]]) -> bytes:
    return "".join("\t".join(str(cell) for cell in row) + "\n" for row in rows).encode()
