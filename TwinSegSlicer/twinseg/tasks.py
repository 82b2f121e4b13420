"""Tasks: what a model sees and draws. One TOML file a task, built in (`Resources/Tasks`) or the user's own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from twinseg.errors import InputError
from twinseg.home import resource_folders

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Sequence:
    """One input image of the task (an MR sequence or a CT) and the names that files give it."""

    name: str
    title: str
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Label:
    """One value of the label map. `terminology` is Slicer's terminology string (DICOM, SNOMED CT codes)."""

    value: int
    name: str
    title: str
    color: Triple
    terminology: str = ""
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Region:
    """A union of labels that is scored as one; regions may nest (WT holds TC holds ET)."""

    name: str
    title: str
    labels: tuple[int, ...]
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cleanup:
    """What is taken out of a prediction: components under `smallest_ml` millilitres, or all but the largest."""

    smallest_ml: float = 0.0
    keep_largest: bool = False


@dataclass(frozen=True)
class Task:
    """All that distinguishes one task from another. Axes are RAS: x to the right, y to the front, z upwards.

    spacing: mm of the grid that the network sees; patch: voxels of a training patch; strides: downsampling of each
    level of the network; window: the (low, high) intensities that a CT is clipped to; flip_axes: axes that may be
    mirrored; lesions: label values that a training may copy from one patient into another; legacy_labels: label values
    of older data and what they are called here.
    """

    name: str
    title: str
    kind: Literal["segmentation", "classification"]
    modality: Literal["MR", "CT"]
    sequences: tuple[Sequence, ...]
    spacing: tuple[float, float, float]
    patch: Triple
    labels: tuple[Label, ...] = ()
    regions: tuple[Region, ...] = ()
    classes: tuple[str, ...] = ()
    strides: tuple[Triple, ...] = ()
    normalization: Literal["zscore", "window"] = "zscore"
    window: tuple[float, float] | None = None
    cleanup: Cleanup = Cleanup()
    flip_axes: tuple[int, ...] = ()
    lesions: tuple[int, ...] = ()
    legacy_labels: dict[int, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        fault = _fault(self)
        if fault:
            raise InputError(f"Task {self.name}: {fault}")

    def to_toml(self) -> str:
        """The task as TOML text, from which `from_toml` makes an equal task."""
        return _to_toml(self)

    @staticmethod
    def from_toml(text: str, source: str = "task") -> Task:
        """Read a task from TOML text. Raises InputError that names `source` (a file) and the fault."""
        try:
            task: Task = _build(Task, tomllib.loads(text))
            return task
        except (tomllib.TOMLDecodeError, TypeError, ValueError) as error:
            raise InputError(f"{source}: not a valid task ({error}); compare it with a built-in task file") from error

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the task's content; equal tasks have equal fingerprints, whatever their file looks like."""
        content = json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()


def load_task(name_or_path: str | Path) -> Task:
    """The task of this name (the user's own before the built-in) or of this .toml file. Raises InputError."""
    path = Path(name_or_path)
    if path.suffix == ".toml":
        return _read(path)
    for folder in resource_folders("Tasks"):
        if (file := folder / f"{name_or_path}.toml").is_file():
            return _read(file)
    known = ", ".join(task.name for task in list_tasks())
    raise InputError(f"{name_or_path}: no such task; known tasks are {known}, or give the path of a .toml file")


def list_tasks() -> list[Task]:
    """All tasks that are known by name, sorted; a user's task hides the built-in one of the same name."""
    files = {
        file.stem: file for folder in reversed(resource_folders("Tasks")) for file in sorted(folder.glob("*.toml"))
    }
    return [_read(files[stem]) for stem in sorted(files)]


def _read(path: Path) -> Task:
    try:
        return Task.from_toml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the task file cannot be read ({error}); check its path and rights") from error


def _fault(task: Task) -> str:
    """What contradicts itself in a task, in words; empty where nothing does."""
    values = [label.value for label in task.labels]
    named = [*(s.name for s in task.sequences)], [*(x.name for x in task.labels)], [*(r.name for r in task.regions)]
    if task.kind not in ("segmentation", "classification"):
        return f"the kind {task.kind!r} is neither segmentation nor classification"
    if task.modality not in ("MR", "CT"):
        return f"the modality {task.modality!r} is neither MR nor CT"
    if not task.sequences:
        return "it names no sequence"
    if any(len(set(names)) < len(names) for names in (*named, values)):
        return "a sequence, label or region stands twice"
    if any(not 0 < value < 65536 for value in values):
        return "label values must be 1 to 65535 (0 is the background)"
    if unknown := {v for region in task.regions for v in region.labels} - set(values):
        return f"a region holds the unknown label {min(unknown)}"
    if unknown := set(task.lesions) - set(values):
        return f"the unknown label {min(unknown)} is named as a lesion"
    if task.kind == "segmentation" and not (task.labels and task.regions and task.strides):
        return "a segmentation needs labels, regions and strides"
    if task.kind == "classification" and len(task.classes) < 2:
        return "a classification needs at least two classes"
    if min(task.spacing) <= 0 or min(task.patch) < 1 or any(min(stride) < 1 for stride in task.strides):
        return "spacing, patch and strides must be positive"
    for axis in range(3):
        step = 1
        for stride in task.strides:
            step *= stride[axis]
        if task.patch[axis] % step:
            return f"the patch, {task.patch[axis]} voxels along axis {axis}, is no multiple of the strides' {step}"
    if task.normalization not in ("zscore", "window"):
        return f"the normalization {task.normalization!r} is neither zscore nor window"
    if (task.normalization == "window") != (task.window is not None):
        return "a window belongs to the normalization 'window', and only to it"
    if task.window and task.window[0] >= task.window[1]:
        return "the window's low end is not below its high end"
    return ""


_TABLES: dict[str, Any] = {"sequences": Sequence, "labels": Label, "regions": Region, "cleanup": Cleanup}
_LENGTHS = {"spacing": 3, "patch": 3, "color": 3, "window": 2}
_FLOATS = {"spacing", "window", "smallest_ml"}


def _build(kind: Any, table: dict[str, Any]) -> Any:
    """A dataclass from a TOML table: lists become tuples, whole numbers become floats where mm are meant."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := sorted(set(table) - set(fields)):
        raise ValueError(f"unknown entry {unknown[0]!r}")
    needed = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(needed - set(table)):
        raise ValueError(f"the entry {missing[0]!r} is missing")
    return kind(**{name: _value(kind, name, value) for name, value in table.items()})


def _value(kind: Any, name: str, value: Any) -> Any:
    if kind is Task and name in _TABLES:
        if name == "cleanup":
            return _build(Cleanup, value)
        return tuple(_build(_TABLES[name], row) for row in value)
    if name == "legacy_labels":
        return {int(old): int(new) for old, new in value.items()}
    if name in _LENGTHS and len(value) != _LENGTHS[name]:
        raise ValueError(f"{name!r} needs {_LENGTHS[name]} numbers")
    if isinstance(value, list):
        return tuple(float(v) if name in _FLOATS else tuple(v) if isinstance(v, list) else v for v in value)
    return float(value) if name in _FLOATS else value


def _to_toml(task: Task) -> str:
    plain, tables = [], []
    for item in dataclasses.fields(task):
        value = getattr(task, item.name)
        if value is None:
            continue
        if item.name == "cleanup":
            tables.append(_table("[cleanup]", dataclasses.asdict(value)))
        elif item.name == "legacy_labels":
            tables.append(_table("[legacy_labels]", {str(old): new for old, new in value.items()}))
        elif item.name in _TABLES:
            tables += [_table(f"[[{item.name}]]", dataclasses.asdict(row)) for row in value]
        else:
            plain.append(f"{item.name} = {_literal(value)}")
    return "\n".join(plain) + "\n\n" + "\n".join(tables)


def _table(head: str, entries: dict[str, Any]) -> str:
    return "\n".join([head, *(f"{key} = {_literal(value)}" for key, value in entries.items())]) + "\n"


def _literal(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_literal(v) for v in value) + "]"
    if isinstance(value, str):
        # TOML's basic strings know JSON's escapes; TOML forbids a bare DEL, which JSON lets pass.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
