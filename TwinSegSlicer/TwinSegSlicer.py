"""TwinSegSlicer: segments tumours in 3D Slicer, and follows them over time. The inside is TwinSegSlicerLib."""

from __future__ import annotations

import sys

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin

from TwinSegSlicerLib import SelfTest as _selfTest  # the class itself would be collected as a test, too
from TwinSegSlicerLib.Batch import BatchPanel
from TwinSegSlicerLib.CorrectionPanel import CorrectionPanel
from TwinSegSlicerLib.Corrections import Corrections
from TwinSegSlicerLib.InputsPanel import InputsPanel
from TwinSegSlicerLib.Packages import InstallPanel
from TwinSegSlicerLib.ParameterNode import SegmentParameters, TwinSegSlicerParameterNode
from TwinSegSlicerLib.ResultPanel import ResultPanel
from TwinSegSlicerLib.SampleDataSource import registerSampleData
from TwinSegSlicerLib.SegmentationResult import SECONDS
from TwinSegSlicerLib.Segmenter import OnError, OnFinished, Segmenter
from TwinSegSlicerLib.SegmentPanel import SegmentPanel
from TwinSegSlicerLib.TwinPanel import TwinPanel
from TwinSegSlicerLib.Worker import WorkerProcess


class TwinSegSlicer(ScriptedLoadableModule):
    """The module as Slicer lists it."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("TwinSeg Segmentation")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.contributors = ["The TwinSegSlicer contributors"]
        self.parent.helpText = _(
            "Segments tumours and follows them over time; nothing is sent. For research only: not a medical device."
        )
        self.parent.helpText += self.getDefaultModuleDocumentationLink()
        self.parent.acknowledgementText = _("Reproduces and joins what TwinSegNet and FedSegNet describe.")
        slicer.app.connect("startupCompleted()", registerSampleData)


class TwinSegSlicerWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The module's panel: holds the parameter node, and joins the panel's parts, which do the work."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = self._parameterNodeGuiTag = None

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/TwinSegSlicer.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = TwinSegSlicerLogic()
        self.installPanel = InstallPanel(self.ui.installFrame, self._checkCanApply)
        self.inputsPanel = InputsPanel(self.ui)
        self.segmentPanel = SegmentPanel(self.ui, self.logic.segmenter, self.logic.worker)
        self.resultPanel = ResultPanel(self.ui)
        self.correctionPanel = CorrectionPanel(self.ui, self.logic.corrections, self._select)
        self.batchPanel = BatchPanel(self.ui.batchCollapsibleButton, self.logic.segmenter, lambda: self._parameterNode)
        self.twinPanel = TwinPanel(self.ui, self.logic.worker, lambda: self._parameterNode)
        self.ui.segmentButton.connect("clicked(bool)", self.onSegment)
        self.ui.cancelButton.connect("clicked(bool)", self.logic.segmenter.cancel)
        self.logic.segmenter.runningChanged.connect(self._checkCanApply)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        for event in (slicer.mrmlScene.EndCloseEvent, slicer.mrmlScene.EndImportEvent):  # references may come in later
            self.addObserver(slicer.mrmlScene, event, self.onSceneEnd)
        self.initializeParameterNode()

    def cleanup(self):
        self.batchPanel.clear()
        self.setParameterNode(None)
        self.twinPanel.stop()
        self.logic.stop()
        self.removeObservers()

    def enter(self):
        self.initializeParameterNode()
        self.correctionPanel.enter()

    def onReload(self):
        for name in [name for name in sys.modules if name.startswith("TwinSegSlicerLib")]:
            del sys.modules[name]  # or only this file would be read anew
        super().onReload()

    def exit(self):
        self.correctionPanel.exit()
        self.setParameterNode(None)

    def onSceneStartClose(self, caller, event):
        self.batchPanel.clear()
        self.logic.segmenter.cancel()
        self.setParameterNode(None)
        self.correctionPanel.clear()
        self.twinPanel.clear()

    def onSceneEnd(self, caller, event):
        if self.parent.isEntered:
            self.initializeParameterNode()

    def initializeParameterNode(self):
        self.setParameterNode(self.logic.getParameterNode())

    def setParameterNode(self, parameterNode):
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(self._parameterNode.parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParameters)
        self._parameterNode = parameterNode
        self.inputsPanel.setParameterNode(parameterNode)
        self.segmentPanel.setParameterNode(parameterNode)
        if parameterNode is not None:
            self._parameterNodeGuiTag = parameterNode.connectGui(self.ui)
            self.addObserver(parameterNode.parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParameters)
        self._onParameters()

    def onSegment(self):
        with slicer.util.tryWithErrorDisplay(_("The segmentation could not be started.")):
            volumes = self.inputsPanel.volumes
            self.logic.segment(volumes, self._parameterNode, self._onFinished, self.segmentPanel.showError)

    def _onFinished(self, segmentation):
        self.segmentPanel.showFinished(segmentation.GetAttribute(SECONDS))
        self._select(segmentation)

    def _select(self, segmentation):
        self.logic.getParameterNode().segmentation = segmentation

    def _onParameters(self, caller=None, event=None):
        node = self._parameterNode.segmentation if self._parameterNode is not None else None
        self.inputsPanel.update()
        for panel in (self.resultPanel, self.correctionPanel, self.twinPanel):
            panel.show(node)
        self._checkCanApply()

    def _checkCanApply(self, caller=None, event=None):
        reason = _("The scene is being closed")
        if not self.installPanel.ready:
            reason = _("Install the missing packages first: see the top of this panel")
        elif self._parameterNode is not None:
            reason = self.logic.segmenter.whyNot(self.inputsPanel.volumes, self._parameterNode)
        self.segmentPanel.setReason(reason)


class TwinSegSlicerLogic(ScriptedLoadableModuleLogic):
    """What the module can do, usable without its panel."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        self.worker = WorkerProcess()
        self.segmenter = Segmenter(self.worker)
        self.corrections = Corrections()

    def getParameterNode(self) -> TwinSegSlicerParameterNode:
        return TwinSegSlicerParameterNode(super().getParameterNode())

    def segment(self, volumesBySequence, parameters: SegmentParameters, onFinished: OnFinished, onError: OnError):
        """Segment beside the window; then `onFinished(node)` or `onError(WorkerError)`. Raises ValueError, too."""
        self.segmenter.segment(volumesBySequence, parameters, onFinished, onError)

    def stop(self):
        """End the worker; a run is forgotten. The scene stays as it is."""
        self.worker.stop()
        self.segmenter.abandon()


class TwinSegSlicerTest(_selfTest.SelfTest):
    """The whole story on a phantom; see TwinSegSlicerLib.SelfTest."""

    makeLogic = TwinSegSlicerLogic
