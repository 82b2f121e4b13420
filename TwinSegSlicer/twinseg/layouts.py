"""Folders as people have them, read as cases: which file is which sequence of which patient at which date.

Known are BraTS 2017-2024, BIDS, the Medical Segmentation Decathlon (`dataset.json`), nnU-Net raw, LiTS, ACDC, plain
trees (.../site/patient/date/t1.nii.gz), class folders for classification. Only names and small texts are read here.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twinseg.errors import InputError
from twinseg.folder_names import CONTAINER, DATE, identity, numbered_visits
from twinseg.sequence_names import LABELS, NamedFile, named_in, sequence_in, told_by_siblings
from twinseg.tasks import Task
from twinseg.volumes import ENDINGS

logger = logging.getLogger(__name__)

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
DATASET_IMAGES = ("imagesTr", "imagesTs")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "val": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Case:
    """One patient at one date. `date` is a date or time point as the data name it; `name` is unique among the cases.

    images: the file of each sequence that is there; channels: which channel, where that file holds several;
    label_map: values in the file and the task's, where a dataset.json numbers them differently; target: the class's
    index (classification); part: train, validation or test, where the data come with a split of their own.
    """

    patient: str
    name: str
    site: str | None
    date: str | None
    images: dict[str, Path]
    labels: Path | None = None
    target: int | None = None
    channels: dict[str, int] = field(default_factory=dict)
    label_map: dict[int, int] | None = None
    part: str | None = None


def find_cases(folder: str | Path, task: Task, require_labels: bool = False) -> list[Case]:
    """All cases below `folder` (a data set or one case's folder), sorted by name.

    require_labels: leave out those without a label map (or class). A sequence that is not there is absent from
    `Case.images`. Raises InputError where there is no case, and where two files claim to be the same sequence.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):  # unlike Path.is_dir, False where the folder above may not be entered
        raise InputError(f"{folder}: there is no such folder; check the path")
    if task.kind == "classification":
        cases = _read_classes(folder, task)
    elif (folder / "dataset.json").is_file() and any((folder / name).is_dir() for name in DATASET_IMAGES):
        cases = _read_dataset(folder, task)
    else:
        cases = _read_tree(folder, task)
    if require_labels:
        cases = [case for case in cases if case.labels is not None or case.target is not None]
        if not cases:
            raise InputError(f"{folder}: no case has labels; name the label map seg.nii.gz beside its images")
    return sorted(_with_unique_names(folder, cases), key=lambda case: case.name)


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    found = (p for p in folder.rglob("*") if p.name.lower().endswith(endings) and p.is_file())
    # What is hidden is another program's, or the remains of a writing that was broken off.
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def _stem(path: Path) -> str:
    ending = next(e for e in ENDINGS + PICTURES if path.name.lower().endswith(e))
    return path.name[: -len(ending)]


# --- a tree of folders -----------------------------------------------------------------------------------------------


def _read_tree(folder: Path, task: Task) -> list[Case]:
    files = _files(folder, ENDINGS)
    if not files:
        raise InputError(f"{folder}: there is no image in it ({', '.join(ENDINGS)}); name the folder of your images")
    groups: dict[tuple[str, ...], list[NamedFile]] = defaultdict(list)
    unknown = []
    for path in files:
        parts = tuple(p for p in path.relative_to(folder).parts[:-1] if not CONTAINER.fullmatch(p))
        found = _acdc_frame(_stem(path), task) or named_in(_stem(path), task)
        if found:
            groups[parts].append((*found, path))
        else:
            unknown.append(path)
    visits = numbered_visits(groups)
    cases = []
    for parts, rows in groups.items():
        if told := told_by_siblings(rows, task):
            is_visit = parts in visits or bool(parts and DATE.fullmatch(parts[-1]))
            above, date = (parts[:-1], parts[-1]) if is_visit else (parts, None)
            cases += _cases_of_folder(folder, above, date, told)
    if not cases:
        names = ", ".join(sorted({p.name for p in files})[:4])
        wanted = ", ".join(s.name for s in task.sequences)
        raise InputError(f"{folder}: found {names}, but no {wanted}; name each file by its sequence ({wanted})")
    if unknown:
        logger.warning("left out, as no sequence of %s: %s (%d files in all)", task.name, unknown[0], len(unknown))
    return cases


def _acdc_frame(stem: str, task: Task) -> tuple[str, str] | None:
    """ACDC: `patient001_frame01` and its labels `patient001_frame01_gt`, for a task of one sequence."""
    match = re.fullmatch(r"(patient\d+_frame\d+)(_gt)?", stem, re.IGNORECASE)
    if match is None or len(task.sequences) != 1:
        return None
    return (LABELS if match.group(2) else task.sequences[0].name), match.group(1)


def _cases_of_folder(root: Path, above: tuple[str, ...], date: str | None, rows: list[NamedFile]) -> list[Case]:
    """The cases among the files of one folder: `above` it those that may tell patient and site, `date` if it is one."""
    prefixes = sorted({prefix for _, prefix, _ in rows})
    once = max(Counter(name for name, _, _ in rows).values()) == 1
    # Bare names (t1.nii.gz), or no sequence twice: the folder is one case, whatever stands before the names.
    if once or "" in prefixes or len(prefixes) == 1:
        common = prefixes[0] if len(prefixes) == 1 else ""
        cases = [_case(root, above, date, common, rows, alone=True)]
    else:
        by_prefix = {prefix: [row for row in rows if row[1] == prefix] for prefix in prefixes}
        cases = [_case(root, above, date, prefix, own, alone=False) for prefix, own in by_prefix.items()]
    for case in cases:
        if not case.images:
            logger.warning("left out, as there is no image to it: %s", case.labels)
    return [case for case in cases if case.images]


def _case(
    root: Path, parts: tuple[str, ...], date: str | None, prefix: str, rows: list[NamedFile], alone: bool
) -> Case:
    """One case of files; `alone`: its folder holds no other case, so that the folder's name is the patient's."""
    images: dict[str, Path] = {}
    for name, _, path in rows:
        if name in images:
            raise InputError(f"{path}: {images[name].name} is {name} as well; keep one file a sequence")
        images[name] = path
    above = list(parts)
    known = identity(prefix)
    if above and (alone or (known and above[-1] in (known[0], known["patient"]))):
        patient = above.pop()
    elif prefix:
        patient = prefix
    else:  # the files lie in `root` itself, or in its folders of dates
        here = root.resolve()
        if date is None and DATE.fullmatch(here.name):
            date, here = here.name, here.parent
        patient = here.name
    site = above[-1] if above else None
    labels = images.pop(LABELS, None)
    if known := known or identity(patient):
        return Case(known["patient"], known[0], site or known.groupdict().get("site"), known["date"], images, labels)
    return Case(patient, f"{patient}_{date}" if date else patient, site, date, images, labels)


def _with_unique_names(root: Path, cases: list[Case]) -> list[Case]:
    """Put the site before names that several cases bear. Raises InputError where that does not help."""
    counts = Counter(case.name for case in cases)
    cases = [replace(c, name=f"{c.site}_{c.name}") if counts[c.name] > 1 and c.site else c for c in cases]
    twice = [name for name, number in Counter(case.name for case in cases).items() if number > 1]
    if twice:
        raise InputError(f"{root}: two cases are both named {twice[0]}; give each patient's folder its own name")
    return cases


# --- dataset.json ----------------------------------------------------------------------------------------------------


def _read_dataset(folder: Path, task: Task) -> list[Case]:
    """Medical Segmentation Decathlon (one file a case, 4-D if several channels) or nnU-Net raw (CASE_0000.nii.gz)."""
    file = folder / "dataset.json"
    try:
        dataset = json.loads(file.read_text(encoding="utf-8"))
        channels = dataset.get("channel_names") or dataset["modality"]
        names = [str(channels[key]) for key in sorted(channels, key=int)]
        values = dict(dataset.get("labels", {}))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{file}: it does not name the channels ({error!r}); see a Decathlon data set's") from error
    known = _channels(file, names, task)
    label_map = _label_map(file, values, task)
    files = _files(folder, ENDINGS)
    images = [path for path in files if path.parent.name in DATASET_IMAGES]
    labels = {_stem(path): path for path in files if path.parent.name in ("labelsTr", "labelsTs")}
    if not images:
        raise InputError(f"{folder}: imagesTr and imagesTs hold no image; unpack the data set anew")
    cases = []
    if all(re.fullmatch(r".+_\d{4}", _stem(path)) for path in images):
        by_stem = {_stem(path): path for path in images}
        for name in sorted({stem[:-5] for stem in by_stem}):
            found = {s: by_stem[f"{name}_{c:04}"] for s, c in known.items() if f"{name}_{c:04}" in by_stem}
            cases.append(_dataset_case(name, found, labels.get(name), {}, label_map))
    else:
        for path in images:
            index = known if len(names) > 1 else {}  # a single channel is a plain 3-D file
            cases.append(
                _dataset_case(_stem(path), dict.fromkeys(known, path), labels.get(_stem(path)), index, label_map)
            )
    return [case for case in cases if case.images]


def _dataset_case(
    name: str, images: dict[str, Path], labels: Path | None, channels: dict[str, int], label_map: dict[int, int] | None
) -> Case:
    known = identity(name)
    patient, date = (known["patient"], known["date"]) if known else (name, None)
    return Case(patient, name, None, date, images, labels, channels=channels, label_map=label_map)


def _channels(file: Path, names: list[str], task: Task) -> dict[str, int]:
    """The channel of each sequence of the task, by the names that dataset.json gives the channels."""
    if len(names) == len(task.sequences) == 1:
        return {task.sequences[0].name: 0}
    known: dict[str, int] = {}
    for index, name in enumerate(names):
        match = sequence_in(name, task)
        if match and match[0] != LABELS:
            if match[0] in known:
                raise InputError(f"{file}: two channels are {match[0]}; name each channel once")
            known[match[0]] = index
    if not known:
        wanted = ", ".join(s.name for s in task.sequences)
        raise InputError(f"{file}: its channels are {', '.join(names)}, but the task's are {wanted}; rename them")
    return known


def _label_map(file: Path, labels: dict[str, Any], task: Task) -> dict[int, int] | None:
    """Values in the files -> the task's, matched by the labels' names, since data sets number the same labels
    differently (the Decathlon's oedema is 1, BraTS's 2). None where dataset.json names no labels."""
    if all(key.isdigit() for key in labels):
        labels = {str(name): int(value) for value, name in labels.items()}  # the Decathlon's {"1": "edema"}
    named = {n: v for n, v in labels.items() if v not in (0, "0") and _plain(n) not in ("background", "ignore")}
    if not named:
        return None
    if any(isinstance(value, list) for value in named.values()):
        mapped = _label_map_of_regions(named, task)
    elif len(named) == len(task.labels) == 1:
        mapped = {int(value): task.labels[0].value for value in named.values()}
    else:
        mapped = {
            int(value): label.value
            for name, value in named.items()
            for label in task.labels
            if _plain(name) in map(_plain, (label.name, label.title, *label.synonyms))
        }
    values = {int(v) for value in named.values() for v in (value if isinstance(value, list) else [value])}
    if set(mapped) != values:
        wanted = ", ".join(x.name for x in task.labels)
        raise InputError(f"{file}: its labels are {', '.join(named)}, but the task's are {wanted}; rename them")
    return {0: 0, **mapped}


def _label_map_of_regions(named: dict[str, Any], task: Task) -> dict[int, int]:
    """nnU-Net's regions ({"whole tumor": [1, 2, 3], ...}): a value is the label that lies in the same regions."""
    within: dict[int, set[str]] = defaultdict(set)
    for name, value in named.items():
        region = next((r for r in task.regions if _plain(name) in map(_plain, (r.name, r.title, *r.synonyms))), None)
        for v in value if isinstance(value, list) else [value]:
            within[int(v)].add(region.name if region else name)
    regions_of = {x.value: {r.name for r in task.regions if x.value in r.labels} for x in task.labels}
    return {v: label for v, regions in within.items() for label, same in regions_of.items() if regions == same}


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower().replace("tumour", "tumor").replace("oedema", "edema"))


# --- class folders ---------------------------------------------------------------------------------------------------


def _read_classes(folder: Path, task: Task) -> list[Case]:
    """[train|valid|test/]class/picture; a class's folder may say more behind its name (normal_left.lobe)."""
    cases = []
    unknown = set()
    for path in _files(folder, PICTURES):
        parts = path.relative_to(folder).parts[:-1]
        target = next((t for part in reversed(parts) if (t := _class(part, task)) is not None), None)
        if target is None:
            unknown.add(path.parent.name)
            continue
        part = next((SPLIT_NAMES[p.lower()] for p in parts if p.lower() in SPLIT_NAMES), None)
        name = "_".join([*parts, _stem(path)])
        cases.append(Case(name, name, None, None, {task.sequences[0].name: path}, None, target, part=part))
    if not cases:
        found = ", ".join(sorted(unknown)[:4]) or "no picture"
        raise InputError(f"{folder}: found {found}, but expected folders named {', '.join(task.classes)}; rename them")
    if unknown:
        logger.warning("%s: the folders %s are no class of %s, left out", folder, ", ".join(sorted(unknown)), task.name)
    return cases


def _class(folder: str, task: Task) -> int | None:
    plain = re.sub(r"[-_. ]+", "-", folder.lower())
    matches = [i for i, name in enumerate(task.classes) if plain == name or plain.startswith(f"{name}-")]
    return matches[0] if matches else None
