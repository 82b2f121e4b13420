"""A scripted module in the order in which Slicer developers expect its parts."""

from typing import Annotated

import slicer
import vtk
from HostSampleLib.threshold import threshold_array
from slicer import vtkMRMLScalarVolumeNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import *
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin


class HostSample(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Host Sample")
        self.parent.categories = ["Examples"]
        self.parent.contributors = ["SlicerHost"]
        self.parent.helpText = _("Keeps the bright voxels of a volume.")


@parameterNodeWrapper
class HostSampleParameterNode:
    inputVolume: vtkMRMLScalarVolumeNode
    imageThreshold: Annotated[float, WithinRange(-100, 500)] = 100
    invertThreshold: bool = False
    outputVolume: vtkMRMLScalarVolumeNode


class HostSampleWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/HostSample.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = HostSampleLogic()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.ui.applyButton.connect("clicked(bool)", self.onApplyButton)
        self.initializeParameterNode()

    def cleanup(self):
        self.removeObservers()

    def enter(self):
        self.initializeParameterNode()

    def exit(self):
        self.setParameterNode(None)

    def onSceneStartClose(self, caller, event):
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event):
        self.initializeParameterNode()

    def initializeParameterNode(self):
        self.setParameterNode(self.logic.getParameterNode())
        if not self._parameterNode.inputVolume:
            first = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
            if first:
                self._parameterNode.inputVolume = first

    def setParameterNode(self, parameterNode):
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(self._parameterNode.parameterNode, vtk.vtkCommand.ModifiedEvent, self._checkCanApply)
        self._parameterNode = parameterNode
        if self._parameterNode:
            self._parameterNodeGuiTag = self._parameterNode.connectGui(self.ui)
            self.addObserver(self._parameterNode.parameterNode, vtk.vtkCommand.ModifiedEvent, self._checkCanApply)
            self._checkCanApply()

    def _checkCanApply(self, caller=None, event=None):
        ready = bool(self._parameterNode and self._parameterNode.inputVolume and self._parameterNode.outputVolume)
        self.ui.applyButton.toolTip = _("Compute") if ready else _("Select an input and an output volume")
        self.ui.applyButton.enabled = ready

    def onApplyButton(self):
        with slicer.util.tryWithErrorDisplay(_("Failed to compute results."), waitCursor=True):
            p = self._parameterNode
            self.logic.process(p.inputVolume, p.outputVolume, p.imageThreshold, p.invertThreshold)


class HostSampleLogic(ScriptedLoadableModuleLogic):
    def getParameterNode(self):
        return HostSampleParameterNode(super().getParameterNode())

    def process(self, inputVolume, outputVolume, imageThreshold, invert=False):
        if not inputVolume or not outputVolume:
            raise ValueError("Input or output volume is invalid")
        if inputVolume.GetImageData() is None:
            raise ValueError("The input volume is empty")
        array = threshold_array(slicer.util.arrayFromVolume(inputVolume), imageThreshold, invert=invert)
        slicer.util.updateVolumeFromArray(outputVolume, array)
        outputVolume.CopyOrientation(inputVolume)


class HostSampleTest(ScriptedLoadableModuleTest):
    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_threshold()

    def test_threshold(self):
        import SampleData

        volume = SampleData.downloadSample("MRHead")
        output = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
        HostSampleLogic().process(volume, output, 100)
        kept = slicer.util.arrayFromVolume(output)
        self.assertGreaterEqual(kept[kept > 0].min(), 100)
        self.delayDisplay("Test passed")
