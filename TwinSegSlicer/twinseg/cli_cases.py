"""`twinseg cases`: the local queue of corrected cases."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinseg.errors import InputError
from twinseg.terminal import Json, finish, print_table

if TYPE_CHECKING:
    from twinseg.case_queue_record import QueuedCase
    from twinseg.cases import Case
    from twinseg.tasks import Task

cases_app = typer.Typer(no_args_is_help=True, help="Corrected cases that wait on this machine to be trained on.")

# typer reads these at run time.
Name = Annotated[str, typer.Argument(help="The case's name, as `twinseg cases list` shows it.")]


@cases_app.command("add")
def add(
    folder: Annotated[Path, typer.Argument(help="Folder of one case or of many, each with its images and label map.")],
    task: Annotated[str, typer.Option(help="Task by name, or its .toml file.")] = "brats-glioma",
    patient: Annotated[
        str | None, typer.Option(help="The patient's id, for one case; without it the folder's. Only a hash is stored.")
    ] = None,
    predicted: Annotated[Path | None, typer.Option(help="What a model had drawn, for one case.")] = None,
    model: Annotated[Path | None, typer.Option(help="That model's file.")] = None,
    who: Annotated[str | None, typer.Option(help="Who corrected it; without it the name you are logged in by.")] = None,
    note: Annotated[str, typer.Option(help="Any words about it, but nothing that names the patient.")] = "",
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Empty label maps are of healthy patients.")
    ] = False,
    json_file: Json = None,
) -> None:
    """Submit corrected cases; images that were submitted before get a new version of their labels."""
    from twinseg.case_queue import CaseQueue
    from twinseg.cases import find_cases
    from twinseg.model_file import read_card
    from twinseg.tasks import load_task
    from twinseg.volumes import read_labels

    loaded_task = load_task(task)
    found = find_cases(folder, loaded_task, require_labels=True)
    if len(found) > 1 and (patient is not None or predicted is not None):
        raise InputError(f"{folder}: it holds {len(found)} cases; --patient and --predicted are for the folder of one")
    told: dict[str, Any] = {
        "predicted": read_labels(predicted) if predicted else None,
        "model": read_card(model).hash if model else None,
        "who": getpass.getuser() if who is None else who,
        "note": note,
        "allow_empty": allow_empty,
    }
    queue, added, refused = CaseQueue(), [], []
    for case in found:
        try:
            added.append(queue.add(**contents(case, loaded_task, patient), **told))
        except InputError as error:
            if len(found) == 1:
                raise
            refused.append(f"{case.name}: {error}")
            typer.echo(f"twinseg: {refused[-1]}", err=True)
    made = {"added": [described(case) for case in added], "refused": refused}
    names = ", ".join(case.name for case in added[:3]) + (", …" if len(added) > 3 else "")
    finish(f"{len(added)} of {len(found)} cases added: {names or 'none'}", made, json_file)
    if refused:
        raise typer.Exit(2)


@cases_app.command("list")
def list_cases(
    task: Annotated[str | None, typer.Option(help="Only those of this task.")] = None,
    state: Annotated[str | None, typer.Option(help="Only those submitted, in training, trained or withdrawn.")] = None,
    json_file: Json = None,
) -> None:
    """The queue's cases with their state, and what was changed in them."""
    from twinseg.case_queue import CaseQueue
    from twinseg.case_queue_record import STATES

    if state not in (None, *STATES):
        raise InputError(f"--state {state} is unknown; use one of {', '.join(STATES)}")
    found = [described(case) for case in CaseQueue().cases(task=task, state=state)]
    if found:
        header = ["case", "task", "part", "state", "versions", "last", "by", "change"]
        rows = [[str(row[name]) for name in ("name", "task", "part", "state")] for row in found]
        for row, case in zip(rows, found, strict=True):
            last = case["corrections"][-1]
            row += [str(len(case["corrections"])), last["when"], last["who"], changes(last["change"])]
        print_table("cases", header, rows)
    finish(f"{len(found)} cases", {"cases": found}, json_file)


@cases_app.command("withdraw")
def withdraw(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why; it stays in the record.")],
    remove_files: Annotated[bool, typer.Option("--remove-files", help="Remove its images and labels, too.")] = False,
    json_file: Json = None,
) -> None:
    """Take a case out for good: it is never trained on again."""
    from twinseg.case_queue import CaseQueue

    case = CaseQueue().withdraw(name, reason, remove_files=remove_files)
    gone = " and its files removed" if case.files_removed else ""
    finish(f"{name}: withdrawn{gone}", described(case), json_file)


def contents(case: Case, task: Task, patient: str | None) -> dict[str, Any]:
    """What the queue takes of a case that was found in a folder."""
    from twinseg.cases import load_case

    loaded = load_case(case, task)
    return {"task": task, "patient": patient or case.patient, "images": loaded.images, "labels": loaded.labels}


def described(case: QueuedCase) -> dict[str, Any]:
    """The record of a case, and where its files are."""
    return {**json.loads(case.to_json()), "folder": str(case.folder)}


def changes(change: dict[str, dict[str, float]]) -> str:
    """The change of each region in a few words: `WT +3.1 mL`, or its volume where no model had drawn it."""
    words = [
        f"{region} {row['change_ml']:+.1f} mL" if "change_ml" in row else f"{region} {row['corrected_ml']:.1f} mL"
        for region, row in change.items()
    ]
    return ", ".join(words)
