"""What the panel shows of a twin: read from its folder in one go, beside the window."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinseg.home import data_folder
from twinseg.twin.treatments import Treatments

if TYPE_CHECKING:  # these import packages that may not be installed yet
    from twinseg.twin.assessments import Assessed
    from twinseg.twin.lesions import Lesion, LesionHistory
    from twinseg.twin.store import Twin
    from twinseg.twin.store_records import Record, TimePoint
    from twinseg.volumes import Volume

HEAD = "twin.json"


@dataclass(frozen=True)
class TwinRecord:
    """A twin as it was when it was read. scans: by day; history: the lesions of each; assessed: the newest assessments
    by measure; notAssessed: why there can be none, "" if there can; models, forecasts: those records, oldest first."""

    twin: Twin
    scans: tuple[TimePoint, ...]
    history: LesionHistory
    treatments: Treatments
    assessed: Assessed
    notAssessed: str
    models: tuple[Record, ...]
    forecasts: tuple[Record, ...]

    @property
    def pseudonym(self) -> str:
        return self.twin.pseudonym

    @property
    def segmented(self) -> tuple[TimePoint, ...]:
        """The scans that have a segmentation."""
        return tuple(scan for scan in self.scans if scan.segmentation is not None)

    @property
    def region(self) -> str:
        """The region that lesions are followed in, as the task calls it; "" before there is any."""
        return str(self.twin.document("lesions.json").get("region", ""))

    def lesion(self, scan: str, number: int) -> Lesion | None:
        """A lesion at a scan; None where it is not there."""
        return next((lesion for lesion in self.history.lesions.get(scan, ()) if lesion.id == number), None)

    @property
    def lesions(self) -> tuple[int, ...]:
        """The numbers of all lesions there ever were."""
        return tuple(sorted({lesion.id for there in self.history.lesions.values() for lesion in there}))

    def total(self, scan: str) -> tuple[float, float]:
        """The volume of all lesions of a scan and its standard deviation, mL; their errors are taken as independent."""
        there = self.history.lesions.get(scan, ())
        return math.fsum(x.volume_ml for x in there), math.hypot(*(x.volume_sd_ml for x in there))

    def probability(self, forecast: str, scenario: int) -> Volume:
        """Where tumour will be: the map of a scenario of a forecast, on the twin's frame. For a thread."""
        from twinseg import nifti_files
        from twinseg.volumes import Volume

        record = next(record for record in self.forecasts if record.name == forecast)
        path = record.files[record.content["scenarios"][scenario]["probability_file"]]
        self.twin.read(path)  # which raises for a file that was changed
        return Volume(*nifti_files.read(self.twin.folder / path))  # not as an image: it may be 0 everywhere

    def centre(self, scan: str) -> tuple[float, float, float] | None:
        """The middle of the largest lesion of a scan, RAS mm in the baseline's frame."""
        there = self.history.lesions.get(scan, ())
        return max(there, key=lambda lesion: lesion.volume_ml).centre if there else None


def readTwin(folder: Path) -> TwinRecord:
    """Read a twin. Raises InputError where the folder holds none, or a damaged one. For a thread."""
    from twinseg.twin.assessments import last_assessments, why_not_assessed
    from twinseg.twin.store import Twin
    from twinseg.twin.timeline import lesion_history

    twin = Twin.open(folder)
    return TwinRecord(
        twin,
        twin.timepoints,
        lesion_history(twin),
        Treatments.from_json(twin.document("treatments.json")),
        last_assessments(twin),
        why_not_assessed(twin),
        twin.records("models"),
        twin.records("forecasts"),
    )


def twinsFolder() -> Path:
    """Where this computer's twins are, a folder each."""
    return data_folder() / "twins"


def listTwins() -> dict[Path, str]:
    """Folder -> pseudonym of the twins on this computer, by pseudonym."""
    heads = sorted(twinsFolder().glob(f"*/{HEAD}"))
    return dict(sorted(((head.parent, _pseudonym(head)) for head in heads), key=lambda entry: entry[1]))


def _pseudonym(head: Path) -> str:
    """Who a twin is. One that cannot be read is listed by its folder: opening it says what is wrong."""
    try:
        content: dict[str, Any] = json.loads(head.read_text(encoding="utf-8"))
        return str(content["pseudonym"])
    except (OSError, ValueError, KeyError, TypeError):
        return head.parent.name
