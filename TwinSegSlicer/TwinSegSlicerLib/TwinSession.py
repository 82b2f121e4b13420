"""The twin that is open, and the steps that can be done with it: one at a time, all beside the window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from slicer.i18n import tr as _

from twinseg.errors import InputError
from twinseg.home import data_folder
from twinseg.twin.treatments import Treatments
from twinseg.volumes import Volume

from .Background import BackgroundTask
from .Segmenter import Worker
from .TwinRecord import TwinRecord, readTwin, twinsFolder
from .TwinVisit import VisitFiles, refuseOtherPatients
from .Worker import Signal, WorkerError

OnDone = Callable[[Any], None]


class TwinSession:
    """Opens, makes and extends twins. `record` is what is known of the open one; None where there is none; `forecasts`
    what was last forecast from all of its scans, one a scenario, and `forecastName` that forecast's record.

    Signals: `changed()`, the record is another; `stepped()`, `step` is another (what is being done, "" if nothing), or
    `done` (the share of it that is done, None where that is not known); `failed(what, exception)`.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._background: BackgroundTask | None = None
        self._files: VisitFiles | None = None
        self._request = 0
        self._isWriting = False
        self.record: TwinRecord | None = None
        self.forecasts: list[dict[str, Any]] = []
        self.forecastName = ""
        self.step = ""
        self.done: float | None = None
        self.changed, self.stepped, self.failed = Signal(), Signal(), Signal()

    @property
    def isBusy(self) -> bool:
        return bool(self.step)

    # --- which twin --------------------------------------------------------------------------------------------------

    def open(self, folder: Path) -> None:
        """Read a twin, which becomes the open one."""
        self._start(_("Opening the twin"))
        self._inBackground(lambda: readTwin(folder), self._take)

    def create(self, pseudonym: str, task: str) -> None:
        """Make a twin in the data folder and open it. pseudonym: "" draws one."""

        def make() -> TwinRecord:
            import secrets

            from twinseg.twin.store import Twin

            name = pseudonym or f"twin-{secrets.token_hex(4)}"
            return readTwin(Twin.create(twinsFolder() / name, task=task, pseudonym=name).folder)

        self._start(_("Making the twin"))
        self._inBackground(make, self._take)

    def close(self) -> None:
        """No twin is open any more; nothing on the disk changes."""
        self.record, self.forecasts, self.forecastName = None, [], ""
        self.changed.emit()

    # --- what is added to it -----------------------------------------------------------------------------------------

    def addTimePoint(
        self, node: Any, day: float, dayUncertainty: float, *, byExpert: bool = False, noTumour: bool = False
    ) -> None:
        """Add the scan and the labels that a segmentation node shows: registered to the baseline, lesions followed.

        Raises ValueError, at once, for a segmentation that cannot be added.
        """
        message = {
            "do": "add_time_point",
            "twin": str(self._openFolder),
            "day": day,
            "day_uncertainty": dayUncertainty,
            "no_tumour": noTumour,
        }
        self._refuseWhileBusy()
        assert self.record is not None
        if not byExpert:
            refuseOtherPatients(node, self.record.pseudonym)

        def add(fields: dict[str, Any]) -> None:
            drawn = {"origin": "expert", "model": None, "delta": None} if byExpert else {}
            self._tell(_("Handing the scan over"))
            self._ask({**message, **fields, **drawn}, lambda answer: self._reread())

        self._files = VisitFiles(node, add, self._fail)
        self._tell(_("Writing the images"))

    def setTreatments(self, treatments: Treatments) -> None:
        """Replace what is known of the treatment; what was said before is kept in the twin's history."""
        self._change(
            _("Writing the treatments"), lambda twin: twin.set_document("treatments.json", treatments.to_json())
        )

    def assess(
        self,
        clinical: Mapping[str, str] | None = None,
        steroids: Mapping[str, float] | None = None,
        override: tuple[str, str, str] | None = None,
    ) -> None:
        """Assess the response at all scans. clinical, steroids (mg a day): by time point; override: (time point,
        response, reason) of a reader."""

        def assess(twin: Any) -> None:
            from twinseg.twin.assessments import respond
            from twinseg.twin.response import Override

            overrides = (Override(*override),) if override is not None else ()
            respond(twin, clinical=clinical, steroids_mg=steroids, overrides=overrides)

        self._change(_("Assessing the response"), assess)

    def correct(
        self,
        scan: str,
        labels: Volume,
        onDone: Callable[[], None],
        *,
        byExpert: bool = False,
        noTumour: bool = False,
    ) -> None:
        """Keep labels, on the grid of its image, as the segmentation of a scan that is in the twin, and follow the
        lesions anew; ends with `onDone()`. What the twin has already fails, unless an expert vouches for it now."""

        def correct(twin: Any) -> None:
            from twinseg.twin.timeline import correct_scan

            point = twin.timepoint(scan)
            has = twin.labels(point)
            isUnchanged = has is not None and np.array_equal(has.array, labels.array)
            if isUnchanged and (not byExpert or point.segmentation.origin == "expert"):
                raise InputError(_("These labels are what the twin has; press Edit and correct them first"))
            correct_scan(twin, scan, labels, "expert" if byExpert else "edited", no_tumour=noTumour)

        self._change(_("Correcting the scan, following the lesions"), correct, onDone)

    def report(self, onDone: Callable[[Path], None]) -> None:
        """Write the patient's page, as HTML and PDF, into `reports` of the data folder; ends with `onDone(HTML
        file)`."""
        assert self.record is not None
        file = data_folder() / "reports" / f"{self.record.pseudonym}.html"
        pdf = file.with_suffix(".pdf")
        message = {"do": "report", "twin": str(self._openFolder), "html": str(file), "pdf": str(pdf)}

        def done(_answer: Any) -> None:
            self._end()
            onDone(file)

        self._start(_("Writing the report"))
        file.parent.mkdir(parents=True, exist_ok=True)
        self._ask(message, done)

    def changeMap(self, before: str, after: str, onDone: Callable[[Volume, dict[str, float]], None]) -> None:
        """What became of the tumour between two time points; ends with `onDone(map, mL of each value)`."""
        assert self.record is not None
        twin = self.record.twin

        def compute() -> Any:
            from twinseg.twin.timeline import change_map

            return change_map(twin, before, after)

        def done(found: Any) -> None:
            self._end()
            onDone(*found)

        self._start(_("Comparing the two scans"))
        self._inBackground(compute, done)

    # --- its model and what may come ----------------------------------------------------------------------------------

    def adapt(self, model: str, device: str) -> None:
        """Let the model learn from the patient's corrected scans; the gate's verdict is in the record afterwards."""
        message = {"do": "adapt", "twin": str(self._openFolder), "model": model or None, "device": device}
        self._start(_("Adapting the model"))
        self._ask(message, lambda answer: self._reread())

    def rollBack(self, model: str) -> None:
        """Take the adapted model out of use; the one before it is used again."""
        message = {"do": "roll_back", "twin": str(self._openFolder), "model": model or None}
        self._start(_("Rolling back"))
        self._ask(message, lambda answer: self._reread())

    def forecast(self, days: list[float], mapDay: float | None, onDone: Callable[[dict[str, Any]], None]) -> None:
        """Forecast the volume under each scenario, and where tumour will be on a day; ends with `onDone(answer)`, the
        twin's record read anew."""
        message = {"do": "forecast", "twin": str(self._openFolder), "days": days, "map_day": mapDay}

        def answered(answer: dict[str, Any]) -> None:
            self.forecasts, self.forecastName = answer["forecasts"], answer["record"]
            self._reread(lambda: onDone(answer))

        self._start(_("Forecasting"))
        self._ask(message, answered)

    # --- one step at a time ------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Stop what is being done; the twin stays as it was. What writes to it beside the window goes on to its end."""
        if self._request:
            self._worker.cancel(self._request)
        elif self._isWriting:
            self._tell(_("It is being written and cannot be stopped any more"))
        elif self.isBusy:
            self._fail(_cancelled())

    def stop(self) -> None:
        """Forget what is being done: the module goes, and the worker with it."""
        self._end()

    @property
    def _openFolder(self) -> Path:
        if self.record is None:
            raise ValueError(_("Open a twin first"))
        return self.record.twin.folder

    def _isOpen(self, record: TwinRecord) -> bool:
        return self.record is not None and self.record.twin.folder == record.twin.folder

    def _refuseWhileBusy(self) -> None:
        if self.isBusy:
            raise ValueError(_("Another step is under way: wait until it is done, or cancel it"))

    def _start(self, step: str) -> None:
        self._refuseWhileBusy()
        self._tell(step)

    def _tell(self, step: str, done: float | None = None) -> None:
        self.step, self.done = step, done
        self.stepped.emit()

    def _end(self) -> None:
        if self._background is not None:
            self._background.abandon()
        if self._files is not None:
            self._files.remove()
        self._background = self._files = None
        self._request, self._isWriting = 0, False
        self._tell("")

    def _fail(self, error: Exception) -> None:
        step = self.step
        self._end()
        self.failed.emit(step, error)

    def _inBackground(self, function: Callable[[], Any], onDone: OnDone) -> None:
        self._background = BackgroundTask(function, onDone, self._fail)

    def _change(self, step: str, change: OnDone, then: Callable[[], None] = lambda: None) -> None:
        """Let `change(twin)` write to the open twin, and read it anew; then `then()`."""
        folder = self._openFolder

        def run() -> TwinRecord:
            from twinseg.twin.store import Twin

            change(Twin.open(folder))
            return readTwin(folder)

        self._start(step)
        self._isWriting = True
        self._inBackground(run, lambda record: self._take(record, then))

    def _ask(self, message: dict[str, Any], onAnswer: OnDone) -> None:
        """Let the worker do what the present step needs."""
        number = self._worker.request(message, onAnswer, self._onRefused, self._onProgress)
        self._request = number if self.isBusy else 0

    def _onRefused(self, error: WorkerError) -> None:
        """Read the twin anew before this is told: it may have been done when it was cancelled or the worker died."""
        step, before = self.step, self.record
        assert before is not None
        self._request = 0

        def told(record: TwinRecord) -> None:
            wasDone = record.twin.revision != before.twin.revision
            self._take(record)
            if isCancelled(error):
                self.failed.emit(step, _cancelled(wasDone))
            else:
                self.failed.emit(step, error)

        folder = before.twin.folder
        self._background = BackgroundTask(lambda: readTwin(folder), told, lambda _unread: self._fail(error))

    def _onProgress(self, done: float, stage: str) -> None:
        self._tell(f"{stage}, {done:.0%}", done)

    def _reread(self, then: Callable[[], None] = lambda: None) -> None:
        """Read the open twin anew at the end of a step."""
        self._request = 0
        folder = self._openFolder
        self._inBackground(lambda: readTwin(folder), lambda record: self._take(record, then))

    def _take(self, record: TwinRecord, then: Callable[[], None] = lambda: None) -> None:
        known = [(scan.name, scan.segmentation) for scan in self.record.scans] if self.record is not None else []
        if known != [(scan.name, scan.segmentation) for scan in record.scans] or not self._isOpen(record):
            self.forecasts, self.forecastName = [], ""  # of another patient, or they know less than the twin does now
        self.record = record
        self._end()
        self.changed.emit()
        then()


def _cancelled(wasDone: bool = False) -> WorkerError:
    told = _("It was done before it could be cancelled.") if wasDone else _("Cancelled; the twin is as it was.")
    return WorkerError("cancelled", told)


def isCancelled(error: Exception) -> bool:
    """Whether the user stopped it."""
    return isinstance(error, WorkerError) and error.kind == "cancelled"


def inWords(error: Exception) -> str:
    """What an exception says to the user."""
    if isinstance(error, (InputError, WorkerError)):
        return str(error)
    return f"{type(error).__name__}: {error}"
