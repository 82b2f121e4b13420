"""The commands `twinseg twin …` that prove, copy and list what a twin holds; `cli_twin` has the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from twinseg.errors import InputError
from twinseg.terminal import Json, finish, in_a_folder, print_table

Folder = Annotated[Path, typer.Argument(help="Folder of the patient's twin.")]


def verify(
    folder: Folder,
    head: Annotated[
        str | None, typer.Option(help="Hash of a revision, noted earlier, that must be among them.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Prove that a twin's folder is whole: every file, every event, nothing foreign. Exit code 2 if it is not."""
    import dataclasses

    from twinseg.twin.store_verify import verify as verify_folder

    found = verify_folder(folder, head)
    for fault in found.faults:
        typer.echo(fault)
    measured = {**dataclasses.asdict(found), "whole": found.whole}
    if not found.whole:
        finish("", measured, json_file)
        raise InputError(f"{folder}: the twin is not whole ({len(found.faults)} faults); restore it from a copy")
    finish(f"{folder}: whole; {found.files} files, {found.revisions} revisions, head {found.head}", measured, json_file)


def export(
    folder: Folder,
    output: Annotated[Path, typer.Option(help="Folder to make.")],
    json_file: Json = None,
) -> None:
    """Write a copy for other programs, in the shape of BIDS derivatives; days take the place of dates."""
    from twinseg.twin.store import Twin
    from twinseg.twin.store_export import export_bids

    twin = Twin.open(folder)
    made = export_bids(twin, output)
    finish(f"{made}: {len(twin.timepoints)} scans of {twin.pseudonym} written", {"output": made}, json_file)


def dicom(
    folder: Folder,
    timepoint: Annotated[str, typer.Argument(help="Scan of the twin; twinseg twin list shows which there are.")],
    series: Annotated[Path, typer.Option(help="Folder of the DICOM series that one of its images was made from.")],
    output: Annotated[Path, typer.Option(callback=in_a_folder, help="DICOM file to write (.dcm), not in the twin.")],
    description: Annotated[str | None, typer.Option(help="Of the new series; without it the task's title.")] = None,
    json_file: Json = None,
) -> None:
    """Write a scan's segmentation as DICOM SEG. It carries the patient's identity: keep it where the series is kept."""
    from twinseg.dicom_segmentation import write_dicom_segmentation, written_text
    from twinseg.dicom_series import check_source, read_series
    from twinseg.tasks import load_task
    from twinseg.twin.store import Twin

    twin = Twin.open(folder)
    if output.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{output}: a twin holds nothing of the patient's identity; write it beside the series")
    scan = twin.timepoint(timepoint)
    labels, drawn = twin.labels(scan), scan.segmentation
    if labels is None or drawn is None:
        raise InputError(f"{folder}: scan {timepoint} has no segmentation; add one (twinseg twin correct)")
    found = read_series(series)
    image, correlation = check_source(found, {name: twin.image(scan, name) for name in scan.images})
    made = write_dicom_segmentation(
        labels,
        load_task(twin.task),
        found,
        output,
        origin=drawn.origin,
        description=description,
        model=drawn.model,
        delta=drawn.delta,
    )
    measured = {"timepoint": timepoint, "source_of": image, "correlation": round(correlation, 4), **made}
    finish(f"{output}: {written_text(made)}", {**measured, **head(twin)}, json_file)


def list_twins(
    folder: Annotated[Path | None, typer.Argument(help="A twin, or a folder of twins; else the data folder's.")] = None,
    json_file: Json = None,
) -> None:
    """List the scans of a twin, or of all twins in a folder."""
    from twinseg.home import data_folder
    from twinseg.twin.store import Twin
    from twinseg.twin.store_files import HEAD

    place = folder or data_folder() / "twins"
    if not place.is_dir():
        raise InputError(f"{place}: there is no such folder; make a twin with twinseg twin create")
    found = [place] if (place / HEAD).is_file() else sorted(path.parent for path in place.glob(f"*/{HEAD}"))
    rows, measured = [], []
    for path in found:
        twin = Twin.open(path)
        scans = [{"timepoint": scan.name, "day": scan.day, "images": sorted(scan.images)} for scan in twin.timepoints]
        measured.append({"folder": path, "pseudonym": twin.pseudonym, "task": twin.task, "scans": scans, **head(twin)})
        drawn = {scan.name: scan.segmentation.origin if scan.segmentation else "–" for scan in twin.timepoints}
        rows += [
            [path.name, twin.pseudonym, scan.name, f"{scan.day:g}", ", ".join(scan.images), drawn[scan.name]]
            for scan in twin.timepoints
        ] or [[path.name, twin.pseudonym, "–", "–", "–", "–"]]
    print_table(str(place), ["folder", "pseudonym", "scan", "day", "sequences", "segmentation"], rows)
    finish(f"{place}: {len(found)} twins", {"twins": measured}, json_file)


def head(twin: Any) -> dict[str, Any]:
    """What every command tells of the state that it left."""
    return {"revision": twin.revision, "head": twin.events[-1]["hash"]}
