"""What the queue knows of a case: the record that stands in its index and, as case.json, beside the case's files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from twinseg.cases import Case
from twinseg.errors import InputError

SUBMITTED, IN_TRAINING, TRAINED, WITHDRAWN = "submitted", "in training", "trained", "withdrawn"
STATES = (SUBMITTED, IN_TRAINING, TRAINED, WITHDRAWN)
RECORD = "case.json"


@dataclass(frozen=True)
class Correction:
    """One version of a case's labels. labels, predicted: names of files; model: the hash of the model whose labels were
    corrected; when: UTC; change: by region the Dice of the model's labels and this version, and mL before and after."""

    labels: str
    predicted: str | None
    model: str | None
    who: str
    when: str
    note: str
    change: dict[str, dict[str, float]]


@dataclass(frozen=True)
class QueuedCase:
    """A case of the queue, as immutable as its record: what changes it gives another.

    Attributes:
        name: unique in the queue; also the name of its folder.
        patient: pseudonym of the patient.
        part: train, validation or test; the same for all cases of the patient.
        key_id: which key made the pseudonym.
        state: one of `STATES`, since the time `since` (UTC).
        images: file name by sequence.
        corrections: every version of the labels, the newest last.
        folder: where its files are.
        reason: why it was withdrawn; files_removed: whether its files went with it.
    """

    name: str
    task: str
    patient: str
    part: str
    key_id: str
    state: str
    since: str
    images: dict[str, str]
    corrections: tuple[Correction, ...]
    folder: Path
    reason: str | None = None
    files_removed: bool = False

    @property
    def image_files(self) -> dict[str, Path]:
        """The image of each sequence that is there."""
        return {sequence: self.folder / name for sequence, name in self.images.items()}

    @property
    def labels(self) -> Path:
        """The newest label map."""
        return self.folder / self.corrections[-1].labels

    @property
    def files(self) -> set[str]:
        """The names of all files that it should have, but for the record."""
        if self.files_removed:
            return set()
        drawn = (file for version in self.corrections for file in (version.labels, version.predicted))
        return {*self.images.values(), *filter(None, drawn)}

    def as_case(self) -> Case:
        """As the trainer takes it, with the newest labels and the part of the split that it belongs to."""
        return Case(self.patient, self.name, None, None, self.image_files, self.labels, part=self.part)

    def to_json(self) -> str:
        """The record as text."""
        content = asdict(self)
        del content["folder"]
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, folder: Path) -> QueuedCase:
        """The case of a record. Raises InputError where it is damaged."""
        try:
            content = json.loads(text)
            content["corrections"] = tuple(Correction(**version) for version in content["corrections"])
            case = cls(**content, folder=folder)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{folder / RECORD}: the record is damaged; restore it from a backup") from error
        return case
