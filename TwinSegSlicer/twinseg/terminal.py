"""What the commands share on a terminal: the option --json, the progress bar, the tables and the last line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from twinseg.errors import InputError


def in_a_folder(path: Path | None) -> Path | None:
    """The path. Raises InputError, before any work is done, where its folder is missing."""
    if path is not None and not path.parent.is_dir():
        raise InputError(f"{path}: its folder does not exist; make it first")
    return path


# typer reads it at run time.
Json = Annotated[
    Path | None, typer.Option("--json", callback=in_a_folder, help="Write what was measured or made to this file.")
]


@contextmanager
def progress_bar(stage: str) -> Iterator[Callable[[float, str], None]]:
    """A progress bar on the terminal, or a line every 5 % in a log; gives a function of share done and stage."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    if not sys.stderr.isatty():
        yield log_lines(stage)
        return
    columns = (BarColumn(30), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), TimeRemainingColumn())
    words_column = TextColumn("{task.description}", markup=False)  # a case may be named [a]
    with Progress(*columns, words_column, console=Console(stderr=True)) as progress:
        bar = progress.add_task(stage, total=1.0)
        yield lambda done, words: progress.update(bar, completed=done, description=f"{stage}: {words}")


def log_lines(stage: str) -> Callable[[float, str], None]:
    """Prints a line for every twentieth of the work."""
    printed = -1

    def line(done: float, words: str) -> None:
        nonlocal printed
        if int(done * 20) > printed:
            printed = int(done * 20)
            print(f"{stage}: {done:.0%}, {words}", file=sys.stderr, flush=True)

    return line


def segmentation_table(measured: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: every case, then the mean of each site and of all."""
    regions = list(measured["summary"]["all"])
    header = ["case", "site", *(f"{region} {what}" for region in regions for what in ("Dice", "HD95 mm"))]
    rows = []
    for row in measured["cases"]:
        numbers = [f"{row['regions'][r]['dice']:.3f}|{row['regions'][r]['hd95']:.1f}".split("|") for r in regions]
        rows.append([row["case"], row["site"] or "", *(number for pair in numbers for number in pair)])
    for site, summary in [*measured["summary"]["sites"].items(), ("all", measured["summary"]["all"])]:
        numbers = [[f"{summary[r]['dice']['mean']:.3f}", f"{summary[r]['hd95']['mean']:.1f}"] for r in regions]
        rows.append(["mean", site, *(number for pair in numbers for number in pair)])
    return header, rows


def classification_table(measured: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: precision, recall and F1 of each class, their mean, and the accuracy."""
    names = ("precision", "recall", "f1")
    rows = [
        [c, *(f"{scores[name]:.3f}" for name in names), str(scores["n"])] for c, scores in measured["classes"].items()
    ]
    rows.append(["mean", *(f"{measured['macro'][name]:.3f}" for name in names), str(measured["n"])])
    rows.append([f"accuracy {measured['accuracy']:.3f}", "", "", "", ""])
    return ["class", *names, "images"], rows


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A table on the terminal."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    # Folded, as a hash that ends in an ellipsis is of no use; Text, as a case may be named [a].
    table = Table(*(Column(name, overflow="fold") for name in header), title=Text(title))
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def finish(line: str, measured: dict[str, Any], json_file: Path | None) -> None:
    """Print the last line and write what was measured; a number that is not defined (NaN) is null in JSON."""
    if line:
        typer.echo(line)
    if json_file is not None:
        from twinseg.volumes import write_atomically

        defined = json.loads(json.dumps(measured, default=str), parse_constant=lambda name: None)
        write_atomically(json_file, (json.dumps(defined, indent=1, ensure_ascii=False) + "\n").encode())
