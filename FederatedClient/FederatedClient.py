"""FederatedClient: trains a shared model with other hospitals, without anyone's images. Inside: FederatedClientLib."""

from __future__ import annotations

import sys
from pathlib import Path

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin

from FederatedClientLib import SelfTest as _selfTest  # the class itself would be collected as a test, too
from TwinSegSlicerLib.Packages import InstallPanel


class FederatedClient(ScriptedLoadableModule):
    """The module as Slicer lists it."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("TwinSeg Federation")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["TwinSegSlicer"]
        self.parent.contributors = ["The TwinSegSlicer contributors"]
        self.parent.helpText = _(
            "Trains a model together with other hospitals: changes of its weights are exchanged, images never. Nothing "
            "is sent before you have read what, and agreed. For research only: not a medical device."
        )
        self.parent.helpText += self.getDefaultModuleDocumentationLink()
        self.parent.acknowledgementText = _("Reproduces and joins what TwinSegNet and FedSegNet describe.")


class FederatedClientWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The module's panel. There is no parameter node: how this computer takes part is no part of a scene, which people
    share; it is kept in the site's folder."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.aggregatorPanel = None

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/FederatedClient.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = FederatedClientLogic()
        self.installPanel = InstallPanel(self.ui.installFrame, self._build, self._requirements("federation"))
        aggregatorFrame = self.ui.aggregatorInstallFrame
        self.aggregatorInstallPanel = InstallPanel(
            aggregatorFrame, self._onAggregator, self._requirements("aggregator")
        )
        self.ui.federationWidget.setVisible(self.installPanel.ready)
        if self.installPanel.ready:
            self._build()

    def _build(self):
        """Join the panel's parts, which do the work; they need the packages."""
        from FederatedClientLib.AggregatorPanel import AggregatorPanel
        from FederatedClientLib.JoinPanel import JoinPanel
        from FederatedClientLib.RoundsPanel import RoundsPanel
        from FederatedClientLib.SitePanel import SitePanel

        federation = self.logic.federation
        self.joinPanel = JoinPanel(self.ui, federation)
        self.sitePanel = SitePanel(self.ui, federation)
        self.roundsPanel = RoundsPanel(self.ui, federation)
        self.aggregatorPanel = AggregatorPanel(self.ui, federation, lambda: self.aggregatorInstallPanel.ready)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.ui.federationWidget.setVisible(True)

    def cleanup(self):
        self.removeObservers()
        self.logic.stop()

    def onReload(self):
        for name in [name for name in sys.modules if name.startswith("FederatedClientLib")]:
            del sys.modules[name]  # or only this file would be read anew
        super().onReload()

    def onSceneEndClose(self, caller, event):
        self.roundsPanel.updatePlot()

    def _onAggregator(self):
        if self.aggregatorPanel is not None:
            self.aggregatorPanel.update()

    def _requirements(self, name):
        return Path(self.resourcePath(f"{name}-requirements.txt"))


class FederatedClientLogic(ScriptedLoadableModuleLogic):
    """What the module can do, usable without its panel."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        self._federation = None

    @property
    def federation(self):
        """The `FederatedClientLib.Federation`, made when it is first asked for, as it needs packages."""
        if self._federation is None:
            from FederatedClientLib.Federation import Federation

            self._federation = Federation()
        return self._federation

    def stop(self):
        """End what is not to go on without Slicer."""
        if self._federation is not None:
            self._federation.leave()


class FederatedClientTest(_selfTest.SelfTest):
    """The whole story on phantoms; see FederatedClientLib.SelfTest."""

    makeLogic = FederatedClientLogic
