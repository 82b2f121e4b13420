"""The command `twinseg dicom-seg`: a label map that was drawn on a DICOM series, back to where the series came from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinseg.errors import InputError
from twinseg.terminal import Json, finish, in_a_folder


def dicom_seg(
    labels: Annotated[Path, typer.Argument(help="Label map (.nii.gz), drawn on images made from the series.")],
    series: Annotated[Path, typer.Option(help="Folder of the DICOM series.")],
    output: Annotated[Path, typer.Option(callback=in_a_folder, help="DICOM file to write (.dcm).")],
    task: Annotated[str, typer.Option(help="Task by name, or its .toml file.")] = "brats-glioma",
    origin: Annotated[str, typer.Option(help="Who drew it: expert, edited or model.")] = "model",
    description: Annotated[str | None, typer.Option(help="Of the new series; without it the task's title.")] = None,
    json_file: Json = None,
) -> None:
    """Write a label map as DICOM SEG. It carries the patient's identity: keep it where the series is kept."""
    from twinseg.dicom_segmentation import ALGORITHMS, write_dicom_segmentation, written_text
    from twinseg.dicom_series import read_series
    from twinseg.tasks import load_task
    from twinseg.volumes import read_labels

    if origin not in ALGORITHMS:
        raise InputError(f"--origin {origin} is unknown; use {', '.join(ALGORITHMS)}")
    drawn, found = read_labels(labels), read_series(series)
    written = write_dicom_segmentation(drawn, load_task(task), found, output, origin=origin, description=description)
    finish(f"{output}: {written_text(written)}", written, json_file)
