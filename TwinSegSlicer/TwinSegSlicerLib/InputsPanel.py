"""The part of the panel where task, model and sequences are chosen."""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from twinseg.tasks import Task, list_tasks

from .Models import STARTER, ModelChoice, modelsFor
from .ParameterNode import TwinSegSlicerParameterNode
from .Sequences import findSequences, missingNote

FIRST_SEQUENCE_ROW = 5  # of the form: task, model, what the model says of itself and the patient's twin come first


class InputsPanel:
    """Shows the parameter node's task, model, volumes and reference, and writes into it what the user chooses."""

    def __init__(self, ui: Any) -> None:
        self._ui = ui
        self._parameters: TwinSegSlicerParameterNode | None = None
        self._tasks = {task.name: task for task in list_tasks() if task.kind == "segmentation"}
        self._models: list[ModelChoice] = []
        self._shownTask = ""
        self._isUpdating = False
        self.selectors: dict[str, Any] = {}
        for task in self._tasks.values():
            ui.taskComboBox.addItem(task.title, task.name)
        ui.taskComboBox.connect("currentIndexChanged(int)", self._onTask)
        ui.modelComboBox.connect("currentIndexChanged(int)", self._onModel)
        ui.referenceComboBox.connect("currentIndexChanged(int)", self._onReference)
        ui.findButton.connect("clicked(bool)", self.findSequences)

    @property
    def task(self) -> Task | None:
        """The chosen task; None without a parameter node, or for a task that is not on this computer."""
        return self._tasks.get(self._parameters.task) if self._parameters is not None else None

    @property
    def volumes(self) -> dict[str, Any]:
        """The chosen volume node of each sequence of the task that has one."""
        if self._parameters is None or self.task is None:
            return {}
        chosen = dict(self._parameters.volumes.items())
        return {s.name: node for s in self.task.sequences if (node := chosen.get(s.name)) is not None}

    def setParameterNode(self, parameters: TwinSegSlicerParameterNode | None) -> None:
        """Show another parameter node; sequences are looked for where none was chosen yet."""
        self._parameters = parameters
        if parameters is not None and not self.volumes:
            self.findSequences()
        self.update()

    def findSequences(self) -> None:
        """Choose the volumes that names and descriptions tell; what was chosen stays where they tell nothing."""
        if self._parameters is not None and self.task is not None:
            found = {**self.volumes, **findSequences(self.task)}
            if found != self.volumes:
                self._parameters.volumes = found

    def update(self) -> None:
        """Show what the parameter node holds."""
        if self._isUpdating or self._parameters is None:
            return
        self._isUpdating = True
        try:
            self._showTask()
            for name, selector in self.selectors.items():
                selector.setCurrentNode(self.volumes.get(name))
            self._showModel()
            self._showReference()
            note = missingNote(self.task, self.volumes) if self.task is not None else ""
            self._ui.missingLabel.text = note
            self._ui.missingLabel.setVisible(bool(note))
        finally:
            self._isUpdating = False

    def _showTask(self) -> None:
        """One selector a sequence; made anew when the task is another one."""
        assert self._parameters is not None
        self._ui.taskComboBox.setCurrentIndex(self._ui.taskComboBox.findData(self._parameters.task))
        if self._shownTask == self._parameters.task:
            return
        self._shownTask = self._parameters.task
        form = self._ui.inputsCollapsibleButton.layout()
        for selector in self.selectors.values():
            form.removeRow(selector)
        self.selectors = {}
        for index, sequence in enumerate(self.task.sequences if self.task is not None else ()):
            selector = self._makeSelector(sequence.title)
            self.selectors[sequence.name] = selector
            form.insertRow(FIRST_SEQUENCE_ROW + index, f"{sequence.title}:", selector)
        self._models = modelsFor(self.task) if self.task is not None else []

    def _makeSelector(self, title: str) -> Any:
        selector = slicer.qMRMLNodeComboBox()
        # With volumes of other kinds, so that a wrong choice is told and not only missing from the list.
        selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        selector.showChildNodeTypes = True
        selector.addEnabled = selector.removeEnabled = False
        selector.noneEnabled = True
        selector.noneDisplay = _("not there")
        selector.setMRMLScene(slicer.mrmlScene)
        selector.toolTip = _("The {title} volume; leave it out if there is none").format(title=title)
        selector.connect("currentNodeChanged(vtkMRMLNode*)", self._onVolume)
        return selector

    def _showModel(self) -> None:
        assert self._parameters is not None
        box, path = self._ui.modelComboBox, self._parameters.model
        box.clear()
        for model in self._models:
            box.addItem(model.title, model.path)
            box.setItemData(box.count - 1, model.description, qt.Qt.ToolTipRole)
        if box.findData(path) < 0:
            box.addItem(_("not on this computer") if path else _("none is on this computer"), path)
        box.setCurrentIndex(box.findData(path))
        chosen = next((model for model in self._models if model.path == path), None)
        self._ui.modelLabel.text = chosen.description if chosen is not None else path

    def _showReference(self) -> None:
        assert self._parameters is not None
        box = self._ui.referenceComboBox
        box.clear()
        box.addItem(_("finest sequence"), "")
        for sequence in self.task.sequences if self.task is not None else ():
            box.addItem(sequence.title, sequence.name)
        box.setCurrentIndex(max(0, box.findData(self._parameters.reference)))

    def _onTask(self) -> None:
        if not self._isUpdating and self._parameters is not None:
            with slicer.util.NodeModify(self._parameters):
                self._parameters.task = self._ui.taskComboBox.currentData
                models = modelsFor(self.task) if self.task is not None else []
                self._parameters.model = models[0].path if models else STARTER
                self._parameters.reference = self._parameters.twin = ""
                self.findSequences()

    def _onModel(self) -> None:
        if not self._isUpdating and self._parameters is not None and self._ui.modelComboBox.currentIndex >= 0:
            self._parameters.model = self._ui.modelComboBox.currentData

    def _onReference(self) -> None:
        if not self._isUpdating and self._parameters is not None and self._ui.referenceComboBox.currentIndex >= 0:
            self._parameters.reference = self._ui.referenceComboBox.currentData

    def _onVolume(self, _node: Any = None) -> None:
        if not self._isUpdating and self._parameters is not None:
            chosen = {name: selector.currentNode() for name, selector in self.selectors.items()}
            self._parameters.volumes = {name: node for name, node in chosen.items() if node is not None}
