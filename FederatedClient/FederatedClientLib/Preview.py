"""What leaves this computer, in full: the numbers and the names of the tensors, of the last update or of the next."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from twinfed.client.case_source import CaseSource
from twinfed.client.connection import Connection
from twinfed.client.errors import Unreachable
from twinfed.wire import UpdateFile
from twinfed.wire.messages import thousandths
from twinseg.cases import Case
from twinseg.tasks import Task, load_task
from twinseg.volumes import read_labels

from .JoinSettings import JoinSettings


@dataclass(frozen=True)
class Preview:
    """title: which update; numbers: by name; shapes: of the tensors by name; bytes: of the file, None for the next."""

    title: str
    numbers: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    bytes: int | None

    def toHtml(self) -> str:
        """Tables of the numbers and of the tensors."""
        count = sum(math.prod(shape) for shape in self.shapes.values())
        size = "" if self.bytes is None else _(", {size:.0f} kB as it was sent").format(size=self.bytes / 1000)
        tensors = _("{tensors} tensors of {count:,} numbers{size}: the change of each weight, by name").format(
            tensors=len(self.shapes), count=count, size=size
        )
        rows = ((name, " × ".join(map(str, shape)) or "1") for name, shape in self.shapes.items())
        return (
            f"<b>{html.escape(self.title)}</b>{_table(self.numbers.items())}<p>{html.escape(tensors)}</p>{_table(rows)}"
        )


def makePreview(folder: Path, settings: JoinSettings) -> Preview:
    """The last update of a site's folder; before there is one, what the next would be: the cases are counted, and the
    aggregator is asked for the model's tensors, by which it learns this site's token and nothing else.

    Raises ValueError where that cannot be done.
    """
    updates = sorted((folder / "updates").glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
    if updates:
        update = UpdateFile(updates[-1])
        head = update.header.to_dict()
        report = head.pop("report")
        title = _("The update of round {number}, as it stands in the file").format(number=head["round"])
        return Preview(title, _flat({**head, **report}), update.shapes, updates[-1].stat().st_size)
    try:
        agreed = Connection(settings.server(folder)).federation()
    except Unreachable as error:
        raise ValueError(_("The aggregator: {error}").format(error=error)) from error
    task = load_task(str(agreed.get("task")))
    cases = CaseSource(folder=Path(settings.cases) if settings.cases else None).find(task)
    measured = _("measured in the first round")
    numbers = {
        "federation": agreed.get("name"),
        "samples": len(cases["train"]),
        "labels": _labels(cases["train"], task),
    }
    numbers |= {f"{name}_{when}": measured for name in ("dice", "hd95") for when in ("before", "after")}
    shapes = {str(name): tuple(shape) for name, shape in (agreed.get("shapes") or {}).items()}
    return Preview(_("What the first update would hold"), _flat(numbers), shapes, None)


def _labels(cases: list[Case], task: Task) -> dict[str, int]:
    """For each label its share of all that is labelled, in thousandths."""
    volumes = dict.fromkeys((label.name for label in task.labels), 0.0)
    for case in cases:
        if case.labels is not None:
            drawn = read_labels(case.labels)
            for label in task.labels:
                volumes[label.name] += float((drawn.array == label.value).sum()) * math.prod(drawn.spacing)
    return thousandths(volumes)


def _flat(numbers: Mapping[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in numbers.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": str(count) for inner, count in value.items()}
        else:
            flat[name] = "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
    return flat


def _table(rows: Any) -> str:
    cells = (f"<tr><td>{html.escape(name)}&nbsp;</td><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"
