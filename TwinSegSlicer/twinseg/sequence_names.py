"""Which sequence of a task a file holds, by its name; above all whether a T1 is one with contrast."""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from pathlib import Path

from twinseg.errors import InputError
from twinseg.tasks import Task

logger = logging.getLogger(__name__)

LABELS = "labels"  # stands where a sequence's name stands, for the file that holds the label map
LABEL_NAMES = (LABELS, "label", "seg", "segmentation", "segmentations", "mask", "gt", "labelmap", "ground_truth")
NamedFile = tuple[str, str, Path]  # its sequence (or LABELS), what stands before that in its name, the file

_GADOLINIUM = r"gd|gad(?:o(?:linium|vist|butrol|ter[a-z]+)?|avist)?"  # no more of it: a patient may be called Gadsby
_AGENT = rf"(?:{_GADOLINIUM}|km|ce|contrast|enhanced|\+ ?c|c\+)"
_WITH = rf"(?:post[-_. ]?)?(?:contrast[-_. ]?)?{_AGENT}"
_WITHOUT = rf"(?:native|unenhanced|(?:pre|non?|without|w/?o)[-_. ]?{_AGENT})"
_BEFORE = r"(?P<rest>(?:.*?[-_. ])?)(?:acq-)?"
# BIDS' entity for contrast may stand anywhere before the sequence; the words of others stand right before or behind it.
_BIDS_AGENT = re.compile(r"(?:^|_)ce-(?P<agent>[a-z0-9]+)(?=_|$)", re.IGNORECASE)
_NO_AGENT = ("none", "no", "native", "pre", "precontrast", "nocontrast")
_BEFORE_T1 = re.compile(rf"{_BEFORE}(?:(?P<without>{_WITHOUT})|(?P<with>{_WITH}))", re.IGNORECASE)
_BEHIND_T1 = re.compile(rf"(?P<rest>.*?t1w?)[-_. ]?(?:(?P<without>{_WITHOUT})|(?P<with>{_WITH}))", re.IGNORECASE)
# A visit (before surgery), a patient's initials, or contrast: only the other files of the case can tell.
_OPEN = re.compile(r"(?P<rest>(?:.*[-_. ])?)(?P<word>pre|post|c)|(?P<initials>gd|km|ce)", re.IGNORECASE)


def sequence_in(stem: str, task: Task) -> tuple[str, str] | None:
    """The sequence's name (or LABELS) that a file's stem ends with, and what stands before it; None if it has none.

    `BraTS-GLI-00000-000-t1c` gives ("t1ce", "BraTS-GLI-00000-000"), as does a T1 with contrast told before it:
    `sub-01_ce-gadolinium_T1w` gives ("t1ce", "sub-01").
    """
    found = named_in(stem, task)
    if found is None or found[0] != _t1(task):
        return found
    told = _contrast_told(found[1])
    if told is None:
        return found
    name = _t1(task, contrast=True) if told[0] else found[0]
    return None if name is None else (name, told[1])


def named_in(stem: str, task: Task) -> tuple[str, str] | None:
    """As `sequence_in`, with no thought of what is told before a T1. The longest name wins, so that t1ce is not t1.
    A name may also stand first if only a number follows (`volume-12`)."""
    for name, pattern in _patterns(task):
        if match := pattern.fullmatch(stem):
            prefix = match.group(1) or match.group(2) or ""
            # A label map may be named for the image that it was drawn on: P1_flair_seg is of the case P1.
            if name == LABELS and (drawn_on := sequence_in(prefix, task)):
                prefix = drawn_on[1]
            return name, prefix
    behind = _BEHIND_T1.fullmatch(stem)
    plain = named_in(behind["rest"], task) if behind else None
    if behind is None or plain is None or plain[0] != _t1(task):
        return None
    name_or_none = _t1(task, contrast=behind["with"] is not None)
    return None if name_or_none is None else (name_or_none, plain[1])


def told_by_siblings(files: list[NamedFile], task: Task) -> list[NamedFile]:
    """The files of one folder, named by `named_in`, each T1 with contrast as such.

    `P1_post_T1` is with contrast where the others are named `P1_flair`, and of a visit where they are named
    `P1_post_flair`. Raises InputError where there is neither: a T1 taken for the other kind would not be noticed.
    """
    kept = []
    for file in files:
        told = _told_by_siblings(file, files, task) if file[0] == _t1(task) else file
        if told is None:
            logger.warning("left out, as no sequence of %s: %s", task.name, file[2])
        else:
            kept.append(told)
    return kept


def _told_by_siblings(file: NamedFile, files: list[NamedFile], task: Task) -> NamedFile | None:
    t1, prefix, path = file
    others = {before for name, before, _ in files if name not in (t1, _t1(task, contrast=True))}
    is_open = _OPEN.fullmatch(prefix)
    if is_open and prefix in others:
        return file
    if is_open and is_open["word"]:
        base, word = is_open["rest"].rstrip("-_. "), is_open["word"].lower()
        known = base in others | {before for _, before, other in files if other != path}
        contrast = word != "pre"
        if not known and word == "post" and word not in path.parent.name.lower():
            raise InputError(
                f"{path}: 'post' may mean contrast or a visit after surgery; name it t1ce or t1 (a visit: as a folder)"
            )
        told = (contrast, base) if known else None
    else:
        told = _contrast_told(prefix)
    if told is None:
        return file
    name = _t1(task, contrast=True) if told[0] else t1
    return None if name is None else (name, told[1], path)


def _contrast_told(prefix: str) -> tuple[bool, str] | None:
    """Whether what stands before a T1's name tells of contrast, and the prefix without it; None if it tells nothing."""
    if entity := _BIDS_AGENT.search(prefix):
        rest = prefix[: entity.start()] + prefix[entity.end() :]
        return entity["agent"].lower() not in _NO_AGENT, rest.strip("_")
    if match := _BEFORE_T1.fullmatch(prefix):
        return match["with"] is not None, match["rest"].rstrip("-_. ")
    return None


@lru_cache(maxsize=16)
def _t1(task: Task, contrast: bool = False) -> str | None:
    """The name that the task gives the T1 without or with contrast; None where it has none."""
    token = "t1ce" if contrast else "t1"
    return next((name for name, pattern in _patterns(task) if pattern.fullmatch(token)), None)


@lru_cache(maxsize=16)
def _patterns(task: Task) -> list[tuple[str, re.Pattern[str]]]:
    """For each sequence's name and synonyms, the longest first, what a file's stem must look like."""
    tokens = [(token, s.name) for s in task.sequences for token in (s.name, *s.synonyms)]
    tokens += [(token, LABELS) for token in LABEL_NAMES]
    patterns = []
    for token, name in sorted(tokens, key=lambda pair: -len(pair[0])):
        words = "[-_. ]?".join(re.escape(word) for word in re.split("[-_. ]", token))
        patterns.append((name, re.compile(rf"(?:(.*)[-_. ])?{words}|{words}[-_. ](\d+)", re.IGNORECASE)))
    return patterns
