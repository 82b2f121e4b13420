"""What the commands that take one case share: its folder or a file a sequence, the model, where to compute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinseg.errors import InputError

if TYPE_CHECKING:
    from twinseg.cases import Case
    from twinseg.tasks import Task

# typer reads these at run time.
CaseFolder = Annotated[Path | None, typer.Argument(help="Folder of one case; or name its files by the options.")]
T1 = Annotated[Path | None, typer.Option("--t1")]
T1ce = Annotated[Path | None, typer.Option("--t1ce")]
T2 = Annotated[Path | None, typer.Option("--t2")]
Flair = Annotated[Path | None, typer.Option("--flair")]
Image = Annotated[list[str], typer.Option(help="SEQUENCE=FILE, for a task with other sequences.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Model = Annotated[Path | None, typer.Option(help="Model file; without it the task's starter model.")]


def chosen_case(folder: Path | None, named: dict[str, Path | None], entries: list[str], task: Task) -> Case:
    """The case that a command was given, by its folder or by its files. Raises InputError for both or neither."""
    from twinseg.segmentation import case_of_files, case_of_folder

    files = files_by_sequence(named, entries)
    if (folder is None) == (not files):
        raise InputError("give either the folder of a case or its image files (--help tells how)")
    return case_of_files(files, task) if folder is None else case_of_folder(folder, task)


def files_by_sequence(named: dict[str, Path | None], entries: list[str]) -> dict[str, Path]:
    """The image files of a case from the options of their own and from entries SEQUENCE=FILE."""
    files = {name: path for name, path in named.items() if path is not None}
    for entry in entries:
        name, _, path = entry.partition("=")
        if not name or not path:
            raise InputError(f"--image {entry}: name the sequence and the file, for instance flair=flair.nii.gz")
        if name in files:
            raise InputError(f"{path}: {files[name]} is {name} as well; keep one file a sequence")
        files[name] = Path(path)
    return files
