"""Segments many cases one after another, each as the Segment button would; a panel with a row a case."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ctk
import qt
import slicer
from slicer.i18n import tr as _

from twinseg.tasks import load_task

from .BatchCases import BatchCase, BatchParameters, ResultFolder, folderCases, frameCases, sceneCases, summary
from .ParameterNode import SegmentParameters
from .Worker import Signal, WorkerError

RETRY_MS = 200
logger = logging.getLogger(__name__)


class Segmenter(Protocol):
    """What the batch needs of `Segmenter.Segmenter`."""

    progressed: Signal

    @property
    def isRunning(self) -> bool: ...

    def segment(
        self,
        volumes: Mapping[str, Any],
        parameters: SegmentParameters,
        onFinished: Callable[[Any], None],
        onError: Callable[[WorkerError], None],
    ) -> None: ...

    def cancel(self) -> None: ...


class Batch:
    """Works through cases in order. A case that fails is noted and the next one begins; Cancel ends it all.

    Signals: `changed(row, text)` when a case's state changes, in words; `ended(done, failed)` once, at the end.
    """

    def __init__(self, segmenter: Segmenter, cases: Sequence[BatchCase], parameters: SegmentParameters) -> None:
        self._segmenter = segmenter
        self._cases = cases
        self._parameters = BatchParameters.of(parameters)
        self._row = -1
        self._isSegmenting = False
        self._done = self._failed = 0
        self.isRunning = False
        self.changed, self.ended = Signal(), Signal()

    def start(self) -> None:
        """Begin with the first case; returns at once."""
        self.isRunning = True
        self._segmenter.progressed.connect(self._onProgress)
        self._next()

    def cancel(self) -> None:
        """Stop, within a second; what is done stays."""
        if self._isSegmenting:
            self._segmenter.cancel()  # it answers with the error "cancelled"
        elif self.isRunning:
            self._stop()

    def _next(self) -> None:
        if not self.isRunning:
            return
        self._row += 1
        if self._row == len(self._cases):
            self._end()
            return
        self.changed.emit(self._row, _("reading the images"))
        self._cases[self._row].load(self._onLoaded, self._onError)

    def _onLoaded(self, volumes: dict[str, Any]) -> None:
        if not self.isRunning:
            return
        if self._segmenter.isRunning:  # the user segments a case of their own in between
            self.changed.emit(self._row, _("waiting for another segmentation"))
            qt.QTimer.singleShot(RETRY_MS, lambda: self._onLoaded(volumes))
            return
        parameters = self._parameters.fitting(self._cases[self._row], volumes)
        try:
            self._segmenter.segment(volumes, parameters, self._onFinished, self._onError)
            self._isSegmenting = True
        except ValueError as error:
            self._onError(error)

    def _onProgress(self, done: float, stage: str) -> None:
        if self._isSegmenting:
            self.changed.emit(self._row, f"{done:.0%}, {stage}")

    def _onFinished(self, segmentation: Any) -> None:
        self._isSegmenting = False
        try:
            volumes = {name: value for name, value in summary(segmentation).items() if name.endswith(" mL")}
            words = ", ".join(f"{name.removesuffix(' mL')} {value:.1f} mL" for name, value in volumes.items())
            self._cases[self._row].store(segmentation, lambda: self._onStored(words), self._onError)
        except Exception as error:  # whatever a case stumbles over, the next one shall have its turn
            logger.exception("batch: the result of %s", self._cases[self._row].name)
            self._onError(error)

    def _onStored(self, words: str) -> None:
        self._done += 1
        self._goOn(_("done: {volumes}").format(volumes=words))

    def _onError(self, error: Exception) -> None:
        self._isSegmenting = False
        if getattr(error, "kind", "") == "cancelled":
            self._stop()
            return
        self._failed += 1
        self._cases[self._row].fail(error)
        self._goOn(_("failed: {reason}").format(reason=error))

    def _goOn(self, state: str) -> None:
        self._cases[self._row].release()
        self.changed.emit(self._row, state)
        qt.QTimer.singleShot(0, self._next)

    def _stop(self) -> None:
        self._cases[self._row].release()
        self.changed.emit(self._row, _("cancelled"))
        self._end()

    def _end(self) -> None:
        self.isRunning = False
        self._segmenter.progressed.disconnect(self._onProgress)
        self.ended.emit(self._done, self._failed)


class BatchPanel:
    """Chooses the cases, shows them in a table, and runs the batch with the parameters chosen above.

    parameters: gives the present choice of task, model and device when cases are searched and when the batch starts.
    """

    def __init__(self, frame: Any, segmenter: Segmenter, parameters: Callable[[], SegmentParameters]) -> None:
        self._segmenter = segmenter
        self._parameters = parameters
        self._cases: Sequence[BatchCase] = []
        self._results: ResultFolder | None = None
        self._batch: Batch | None = None
        self._build(frame)
        self._onSource()

    @property
    def isRunning(self) -> bool:
        """Whether a batch is under way."""
        return self._batch is not None and self._batch.isRunning

    def cancel(self) -> None:
        """Stop the batch, if one runs."""
        if self._batch is not None:
            self._batch.cancel()

    def clear(self) -> None:
        """Stop, and forget the cases: the scene that they were found in is gone."""
        if self._batch is not None:
            self._batch.changed.disconnect(self._onChanged)
            self._batch.ended.disconnect(self._onEnded)
            self._batch.cancel()
            self._batch = None
        self._fill([])
        self.statusLabel.text = ""

    def _build(self, frame: Any) -> None:
        layout = qt.QFormLayout(frame)
        self.sourceSelector = qt.QComboBox()
        self.sourceSelector.addItems([_("Volumes of the scene"), _("Folder of image files"), _("Sequence browser")])
        self.sourceSelector.toolTip = _("Where the cases are that are to be segmented")
        self.folderEdit = ctk.ctkPathLineEdit()
        self.folderEdit.filters = ctk.ctkPathLineEdit.Dirs
        self.folderEdit.toolTip = _(
            "A folder of cases: in BraTS, Decathlon or nnU-Net layout, or a folder a patient, files named by sequence"
        )
        self.browserSelector = slicer.qMRMLNodeComboBox()
        self.browserSelector.nodeTypes = ["vtkMRMLSequenceBrowserNode"]
        self.browserSelector.addEnabled = self.browserSelector.removeEnabled = False
        self.browserSelector.setMRMLScene(slicer.mrmlScene)
        self.browserSelector.toolTip = _("The sequence browser whose frames are segmented, one after another")
        self.findButton = qt.QPushButton(_("Find cases"))
        self.findButton.toolTip = _("Lists the cases that there are, and which sequences each has")
        self.table = self._makeTable()
        self.startButton = qt.QPushButton(_("Segment all"))
        self.cancelButton = qt.QPushButton(_("Cancel"))
        self.cancelButton.toolTip = _("Stops within a second. What is done stays.")
        self.statusLabel = qt.QLabel()
        self.statusLabel.wordWrap = True
        buttons = qt.QHBoxLayout()
        buttons.addWidget(self.startButton)
        buttons.addWidget(self.cancelButton)
        layout.addRow(_("Cases:"), self.sourceSelector)
        layout.addRow(self.folderEdit)
        layout.addRow(self.browserSelector)
        layout.addRow(self.findButton)
        layout.addRow(self.table)
        layout.addRow(buttons)
        layout.addRow(self.statusLabel)
        self.sourceSelector.connect("currentIndexChanged(int)", lambda _index: self._onSource())
        for signal in ("currentPathChanged(QString)", "validInputChanged(bool)"):  # the second one: it was emptied
            self.folderEdit.connect(signal, lambda _value: self._fill([]))
        self.browserSelector.connect("currentNodeChanged(vtkMRMLNode*)", lambda _node: self._fill([]))
        self.findButton.connect("clicked(bool)", lambda _checked=False: self.findCases())
        self.startButton.connect("clicked(bool)", lambda _checked=False: self.start())
        self.cancelButton.connect("clicked(bool)", lambda _checked=False: self.cancel())

    def _makeTable(self) -> Any:
        table = qt.QTableWidget()
        table.setColumnCount(3)
        table.setHorizontalHeaderLabels([_("Case"), _("Sequences"), _("State")])
        table.horizontalHeader().setStretchLastSection(True)
        table.verticalHeader().setVisible(False)
        table.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
        table.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
        table.setMinimumHeight(120)
        table.toolTip = _("A row a case. Its whole state is shown when the mouse rests on it.")
        return table

    def _onSource(self) -> None:
        source = self.sourceSelector.currentIndex
        self.folderEdit.setVisible(source == 1)
        self.browserSelector.setVisible(source == 2)
        self._fill([])

    def findCases(self) -> None:
        """Fill the table with the cases of the chosen source; a reason that there are none is told below it."""
        self._fill([])
        try:
            self._fill(self._casesOfSource())
        except ValueError as error:
            self.statusLabel.text = str(error)
            return
        count = len(self._cases)
        if not count:
            self.statusLabel.text = _("No volume of the scene is named by a sequence of the task. Rename or load some.")
        elif self._results is not None:
            self.statusLabel.text = _("{count} cases. Results go to {folder}").format(
                count=count, folder=self._results.path
            )
        else:
            self.statusLabel.text = _("{count} cases").format(count=count)

    def _casesOfSource(self) -> Sequence[BatchCase]:
        task = load_task(self._parameters().task)
        self._results = None
        if self.sourceSelector.currentIndex == 0:
            return sceneCases(task)
        if self.sourceSelector.currentIndex == 1:
            if not self.folderEdit.currentPath:
                raise ValueError(_("Choose a folder first"))
            cases, self._results = folderCases(Path(self.folderEdit.currentPath), task)
            return cases
        if (browser := self.browserSelector.currentNode()) is None:
            raise ValueError(_("Choose a sequence browser first"))
        return frameCases(browser, task)

    def _fill(self, cases: Sequence[BatchCase]) -> None:
        self._cases = cases
        self.table.setRowCount(len(cases))
        for row, case in enumerate(cases):
            for column, text in enumerate((case.name, " ".join(case.sequences), _("waiting"))):
                self._setText(row, column, text)
        self._showButtons()

    def _setText(self, row: int, column: int, text: str) -> None:
        item = self.table.item(row, column)
        if item is None:
            item = qt.QTableWidgetItem()
            self.table.setItem(row, column, item)
        item.setText(text)
        item.setToolTip(text)

    def _showButtons(self) -> None:
        running = self.isRunning
        for widget in (self.sourceSelector, self.folderEdit, self.browserSelector, self.findButton):
            widget.enabled = not running
        self.startButton.enabled = bool(self._cases) and not running
        self.cancelButton.enabled = running
        if running:
            self.startButton.toolTip = _("A batch is running")
        elif self._cases:
            self.startButton.toolTip = _("Segments all cases of the table, one after another")
        else:
            self.startButton.toolTip = _("Press Find cases first")

    def start(self) -> None:
        """Segment the cases of the table."""
        if self._results is not None and self._results.path.exists():
            self.findCases()  # a batch before wrote there: this one gets a folder of its own
        if self.isRunning or not self._cases:
            return
        batch = Batch(self._segmenter, self._cases, self._parameters())
        batch.changed.connect(self._onChanged)
        batch.ended.connect(self._onEnded)
        self._batch = batch
        batch.start()
        self._showButtons()

    def _onChanged(self, row: int, text: str) -> None:
        self._setText(row, 2, text)
        self.table.scrollToItem(self.table.item(row, 0))

    def _onEnded(self, done: int, failed: int) -> None:
        text = _("{done} of {count} cases done").format(done=done, count=len(self._cases))
        if failed:
            text += ", " + _("{failed} failed: rest the mouse on a row to read why").format(failed=failed)
        if done and self._results is not None:
            text += ". " + _("Label maps and volumes.csv are in {folder}").format(folder=self._results.path)
        self.statusLabel.text = text
        self._showButtons()
