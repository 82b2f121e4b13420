"""The sample data registry: modules register their samples here. The host downloads nothing unless a test allows it.

``SampleDataLogic.downloadSample("MRHead")`` gives a small synthetic volume of that name in place of Slicer's samples,
so that a module's self-test has something to work on.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import slicer

# Slicer's well-known samples -> shape (slices, rows, columns) and spacing (mm) of the stand-in.
STAND_INS = {
    "MRHead": ((65, 64, 64), (4.0, 4.0, 2.6)),
    "CTChest": ((70, 64, 64), (6.0, 6.0, 5.0)),
    "CTACardio": ((64, 64, 64), (3.0, 3.0, 3.0)),
    "MRBrainTumor1": ((56, 64, 64), (3.6, 3.6, 2.8)),
    "MRBrainTumor2": ((56, 64, 64), (3.6, 3.6, 2.8)),
    "CTLiver": ((60, 64, 64), (5.6, 5.6, 5.0)),
}


class SampleDataSource:
    """One entry: its name, where its files are, and what they are called when loaded."""

    def __init__(
        self,
        sampleName: str | None = None,
        sampleDescription: str | None = None,
        uris: Any = None,
        fileNames: Any = None,
        nodeNames: Any = None,
        checksums: Any = None,
        loadFiles: Any = None,
        customDownloader: Any = None,
        thumbnailFileName: str | None = None,
        loadFileType: Any = None,
        loadFileProperties: Any = None,
        **others: Any,
    ):
        def as_list(value: Any) -> list[Any]:
            return list(value) if isinstance(value, (list, tuple)) else [value]

        self.sampleName = sampleName
        self.sampleDescription = sampleDescription or sampleName
        self.uris, self.fileNames, self.nodeNames = as_list(uris), as_list(fileNames), as_list(nodeNames)
        count = len(self.uris)
        self.checksums = as_list(checksums) * (count if not isinstance(checksums, (list, tuple)) else 1)
        self.loadFiles = as_list(loadFiles) * (count if not isinstance(loadFiles, (list, tuple)) else 1)
        self.loadFileTypes = as_list(loadFileType) * (count if not isinstance(loadFileType, (list, tuple)) else 1)
        self.loadFileProperties = loadFileProperties or {}
        self.customDownloader = customDownloader
        self.thumbnailFileName = thumbnailFileName


class SampleDataLogic:
    """Registers samples and gets them."""

    @staticmethod
    def registerCustomSampleDataSource(category: str = "Custom", **options: Any) -> None:
        """Add a sample under a category."""
        if not hasattr(slicer.modules, "sampleDataSources"):
            slicer.modules.sampleDataSources = {}
        source = SampleDataSource(**options)
        for other in slicer.modules.sampleDataSources.setdefault(category, []):
            if other.sampleName == source.sampleName:
                slicer.modules.sampleDataSources[category].remove(other)
        slicer.modules.sampleDataSources[category].append(source)

    @staticmethod
    def registerCustomSampleDataCategory(category: str = "Custom", title: str | None = None, **options: Any) -> None:
        """Name a category; samples are registered under it."""
        if not hasattr(slicer.modules, "sampleDataSources"):
            slicer.modules.sampleDataSources = {}
        slicer.modules.sampleDataSources.setdefault(category, [])

    def __init__(self, logMessage: Any = None):
        self.logMessage = logMessage or (lambda message, level=logging.INFO: logging.log(level, message))

    def sourceForSampleName(self, sampleName: str) -> SampleDataSource | None:
        """The registered sample of a name, or None."""
        registered = getattr(slicer.modules, "sampleDataSources", {})
        return next((s for sources in registered.values() for s in sources if s.sampleName == sampleName), None)

    def downloadFromSource(self, source: SampleDataSource, maximumAttemptsCount: int = 1) -> list[Any]:
        """Load a sample: by its own downloader, from files (``file:`` addresses and the cache only), or a stand-in."""
        if source.customDownloader is not None:
            return [source.customDownloader(source)]
        nodes = []
        for uri, file_name, node_name, load in zip(
            source.uris, source.fileNames, source.nodeNames, source.loadFiles, strict=False
        ):
            path = self.downloadFileIntoCache(uri, file_name)
            if load is False or not node_name:
                nodes.append(path)
            elif Path(path).is_file():
                nodes.append(slicer.util.loadNodeFromFile(path, properties={"name": node_name}))
            else:
                nodes.append(self._stand_in(node_name))
        return nodes

    def downloadFileIntoCache(self, uri: str, name: str | None, checksum: str | None = None) -> str:
        """The path of a file: of a ``file:`` address itself, else where it lies, or would lie, in the cache."""
        if uri and uri.startswith("file:"):
            return uri.removeprefix("file://")
        return str(Path(slicer.app.cachePath) / (name or Path(uri or "sample").name))

    downloadFile = downloadFileIntoCache

    def _stand_in(self, name: str) -> Any:
        """A head-like ellipsoid in a volume, 0 to 695 as the sample of Slicer's template, brighter inside."""
        shape, spacing = STAND_INS.get(name, ((48, 48, 48), (4.0, 4.0, 4.0)))
        axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
        distance = np.sqrt(sum((axis / 0.8) ** 2 for axis in axes))
        array = np.where(distance < 0.5, 180, np.where(distance < 1, 90, 0)).astype(np.int16)
        array += np.random.default_rng(0).integers(0, 12, shape, dtype=np.int16)
        array[0, 0, 0], array[tuple(size // 2 for size in shape)] = 0, 695
        node = slicer.util.addVolumeFromArray(array, name=slicer.mrmlScene.GenerateUniqueName(name))
        node.SetSpacing(*spacing)
        node.SetOrigin(*(-0.5 * size * step for size, step in zip(shape[::-1], spacing, strict=True)))
        logging.warning("SampleData: %s is a synthetic stand-in, SlicerHost downloads nothing", name)
        return node

    def downloadSamples(self, sampleName: str) -> list[Any]:
        """All nodes of a sample."""
        source = self.sourceForSampleName(sampleName)
        return self.downloadFromSource(source) if source is not None else [self._stand_in(sampleName)]

    def downloadSample(self, sampleName: str) -> Any:
        """The first node of a sample."""
        return self.downloadSamples(sampleName)[0]

    def downloadMRHead(self) -> Any:
        """The stand-in of a head MRI."""
        return self.downloadSample("MRHead")

    def downloadCTChest(self) -> Any:
        """The stand-in of a chest CT."""
        return self.downloadSample("CTChest")


def downloadSample(sampleName: str) -> Any:
    """The first node of a sample."""
    return SampleDataLogic().downloadSample(sampleName)


def downloadSamples(sampleName: str) -> list[Any]:
    """All nodes of a sample."""
    return SampleDataLogic().downloadSamples(sampleName)


def downloadFromURL(uris: Any = None, fileNames: Any = None, nodeNames: Any = None, **options: Any) -> list[Any]:
    """Nodes from addresses; only ``file:`` ones and what is in the cache."""
    source = SampleDataSource(uris=uris, fileNames=fileNames, nodeNames=nodeNames, **options)
    return SampleDataLogic().downloadFromSource(source)
