"""The host's fixtures. Without slicer-core or PySide6 the tests are skipped."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

collect_ignore = ["data"]  # the sample extension's own tests run in the host
if find_spec("slicer_core") is None or find_spec("PySide6") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from SlicerHost.pytest_plugin import slicer_host  # noqa: F401

SAMPLE_EXTENSION = Path(__file__).parent / "data/SampleExtension"
SAMPLE_MODULE = SAMPLE_EXTENSION / "HostSample/HostSample.py"


@pytest.fixture
def sample_module() -> Path:
    """The script of a module in the shape of Slicer's template."""
    return SAMPLE_MODULE


@pytest.fixture
def sample_extension() -> Path:
    """The extension that the sample module belongs to."""
    return SAMPLE_EXTENSION


@pytest.fixture
def head_volume(slicer_host):
    """A sphere (value 100) with a smaller, brighter one (200) off its centre, 2 mm voxels."""
    import numpy as np
    import slicer

    z, y, x = np.mgrid[:40, :40, :40]
    array = np.zeros((40, 40, 40), np.float32)
    array[(z - 20) ** 2 + (y - 20) ** 2 + (x - 20) ** 2 < 16**2] = 100
    array[(z - 20) ** 2 + (y - 20) ** 2 + (x - 26) ** 2 < 6**2] = 200
    node = slicer.util.addVolumeFromArray(array, name="Head")
    node.SetSpacing(2, 2, 2)
    node.SetOrigin(-40, -40, -40)
    return node


@pytest.fixture
def tumor_segmentation(head_volume):
    """A segmentation of the brighter sphere, red, with a closed surface."""
    import numpy as np
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Tumor")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(head_volume)
    segment = node.GetSegmentation().AddEmptySegment("tumor", "tumor", [0.9, 0.1, 0.1])
    array = (slicer.util.arrayFromVolume(head_volume) > 150).astype(np.uint8)
    slicer.util.updateSegmentBinaryLabelmapFromArray(array, node, segment, head_volume)
    node.CreateClosedSurfaceRepresentation()
    return node
