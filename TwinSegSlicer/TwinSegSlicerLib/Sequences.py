"""Which volume is which sequence: found by names, DICOM descriptions and the subject hierarchy."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import slicer
from slicer.i18n import tr as _

from twinseg.tasks import Sequence, Task

from .VolumeBridge import refusal

DESCRIPTION, PROTOCOL = "0008,103E", "0018,1030"  # DICOM: SeriesDescription, ProtocolName
RESULT_ATTRIBUTE = "TwinSeg.Result"  # on nodes that this module made

# "T1 pre contrast" and "T1 without Gd" speak of contrast, and have none.
WITHOUT_CONTRAST = re.compile(r"\b(pre|non|no|without|w/?o|unenhanced)[ _.-]*(contrast|gad\w*|gd|km|ce)\b")
# Derived images, and those for planning, are no input.
NOT_AN_INPUT = {"adc", "dwi", "dti", "swi", "localizer", "localiser", "scout", "survey", "perfusion", "mask", "seg"}


@dataclass(frozen=True)
class Candidate:
    """A volume that may be an input. texts: what names and describes it; group: what ties it to its siblings (their
    study in the subject hierarchy, or 0); voxels: how many it has."""

    node: Any
    texts: tuple[str, ...]
    group: int
    voxels: int


def findSequences(task: Task) -> dict[str, Any]:
    """Sequence name -> volume node of the scene, for those sequences of the task that are found."""
    return chooseSequences(task, sceneCandidates())


def sceneCandidates() -> list[Candidate]:
    """All volumes of the scene that can be segmented, and what is known of them."""
    nodes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    return [
        Candidate(node, tuple(_texts(node)), _study(node), node.GetImageData().GetNumberOfPoints())
        for node in nodes
        if node.GetAttribute(RESULT_ATTRIBUTE) is None and not node.GetHideFromEditors() and not refusal(node)
    ]


def chooseSequences(task: Task, candidates: Iterable[Candidate]) -> dict[str, Any]:
    """Sequence name -> node. Of several patients or dates, the one with most of the sequences is taken (the first, if
    equal); of several volumes that fit, the one that names the sequence most precisely, then that with most voxels."""
    candidates = list(candidates)
    groups: dict[tuple[int, str], dict[str, list[tuple[int, int, Any]]]] = defaultdict(lambda: defaultdict(list))
    for candidate in candidates:
        matches = [match for text in candidate.texts if (match := matchSequence(text, task))]
        if matches:
            sequence, score, rest = max(matches, key=lambda match: match[1])
            # Without a study, what is left of the name tells the patient: "P1_t1" and "P1_flair" belong together.
            group = (candidate.group, "" if candidate.group else rest)
            groups[group][sequence].append((score, candidate.voxels, candidate.node))
    if not groups:
        only = candidates[0].node if len(candidates) == len(task.sequences) == 1 else None
        return {task.sequences[0].name: only} if only is not None else {}
    best = max(groups.values(), key=len)
    if len(best) == 1:  # names that have nothing in common: all of the scene
        best = defaultdict(list)
        for group in groups.values():
            for sequence, found in group.items():
                best[sequence] += found
    return {s.name: max(best[s.name], key=lambda f: f[:2])[2] for s in task.sequences if s.name in best}


def matchSequence(text: str, task: Task) -> tuple[str, int, str] | None:
    """The sequence that a text names, how precisely (letters matched), and the rest of the text; None if it names none.

    A name's words must stand in the text in their order, others may stand between them: "t1_gd" is found in
    "T1 mprage sag post Gd". T1 or T2 in the text excludes sequences of the other weighting: "T1 FLAIR" is a T1.
    """
    words = _words(WITHOUT_CONTRAST.sub("native", text.lower()))
    if NOT_AN_INPUT.intersection(words):
        return None
    weightings = {"t1", "t2"}.intersection(words)
    best: tuple[str, int, str] | None = None
    for sequence in task.sequences:
        names = [_words(name.lower()) for name in (sequence.name, *sequence.synonyms)]
        own = {name[0] for name in names}.intersection({"t1", "t2"})
        if len(weightings) == 1 and own and not own.intersection(weightings):
            continue
        for name in names:
            score = sum(map(len, name))
            if (places := _find(name, words)) and (best is None or score > best[1]):
                rest = [word for index, word in enumerate(words) if index not in places]
                best = sequence.name, score, " ".join(rest)
    return best


def missingNote(task: Task, found: Iterable[str]) -> str:
    """What it costs that sequences are missing, in words; empty where none is."""
    missing = [sequence for sequence in task.sequences if sequence.name not in found]
    if not missing or len(missing) == len(task.sequences):
        return ""
    names = ", ".join(sequence.title for sequence in missing)
    costs = " ".join(cost for sequence in missing if (cost := _cost(sequence)))
    return _("Missing: {names}. It can be segmented, less reliably. {costs}").format(names=names, costs=costs).strip()


def _cost(sequence: Sequence) -> str:
    return {
        "t1ce": _("Without contrast, the enhancing part and the core cannot be told apart."),
        "flair": _("Without FLAIR, the border of the oedema is uncertain."),
        "t2": _("Without T2, oedema and cysts are harder to tell apart."),
        "t1": _("Without plain T1, blood may be taken for enhancement."),
    }.get(sequence.name, "")


def _words(text: str) -> list[str]:
    """Words and numbers; "T1ce" is "t1", "ce", and "ct1" is "c", "t1". A plus says contrast, as in "T1+C"."""
    text = re.sub(r"\+ ?c\b|c ?\+|\+", " contrast ", text)
    text = re.sub(r"(?<![a-z0-9])(c?)(t[12])(w?)(?=[a-z_ ])", r"\1 \2 \3 ", text)
    return re.findall(r"[^\W_]+", text)


def _find(name: list[str], words: list[str]) -> list[int]:
    """Where a name's words stand in a text's, in order; single letters must follow at once. Empty: not there."""
    for start in [index for index, word in enumerate(words) if word == name[0]]:
        places = [start]
        for word in name[1:]:
            end = places[-1] + 2 if len(word) == 1 else len(words)
            place = next((i for i in range(places[-1] + 1, min(end, len(words))) if words[i] == word), None)
            if place is None:
                break
            places.append(place)
        if len(places) == len(name):
            return places
    return []


def _texts(node: Any) -> Iterable[str]:
    """The node's name, its name in the subject hierarchy, and its series' description and protocol."""
    yield node.GetName() or ""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if item := hierarchy.GetItemByDataNode(node):
        yield hierarchy.GetItemName(item)
    instances = (node.GetAttribute("DICOM.instanceUIDs") or "").split()
    database = slicer.app.dicomDatabase() if hasattr(slicer.app, "dicomDatabase") else None
    if instances and database is not None and database.isOpen:
        for tag in (DESCRIPTION, PROTOCOL):
            yield database.instanceValue(instances[0], tag)


def _study(node: Any) -> int:
    """The item of the node's study in the subject hierarchy, 0 where it has none."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    constants = slicer.vtkMRMLSubjectHierarchyConstants
    item = hierarchy.GetItemByDataNode(node)
    found = hierarchy.GetItemAncestorAtLevel(item, constants.GetDICOMLevelStudy()) if item else 0
    return int(found)
