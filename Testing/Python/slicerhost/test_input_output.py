"""Nodes to files and back, by ``slicer.util``."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.mark.parametrize("ending", ["nrrd", "nii.gz", "mha"])
def test_a_volume(slicer_host, head_volume, tmp_path, ending):
    import slicer

    path = tmp_path / f"tête 1.{ending}"
    assert slicer.util.saveNode(head_volume, str(path))
    loaded = slicer.util.loadVolume(str(path), {"name": "Loaded", "show": False})
    assert loaded.GetName() == "Loaded"
    assert loaded.GetSpacing() == pytest.approx((2, 2, 2))
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(loaded), slicer.util.arrayFromVolume(head_volume))


def test_a_segmentation(slicer_host, tumor_segmentation, tmp_path):
    import slicer

    path = tmp_path / "tumor.seg.nrrd"
    assert slicer.util.saveNode(tumor_segmentation, str(path))
    loaded = slicer.util.loadSegmentation(str(path))
    assert list(loaded.GetSegmentation().GetSegmentIDs()) == ["tumor"]
    assert slicer.app.ioManager().fileType(str(path)) == "SegmentationFile"


def test_a_label_map_becomes_a_segmentation(slicer_host, head_volume, tmp_path):
    import slicer

    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    slicer.util.updateVolumeFromArray(labels, (slicer.util.arrayFromVolume(head_volume) > 150).astype(np.uint8))
    assert slicer.util.exportNode(labels, str(tmp_path / "labels.nii.gz"))
    loaded = slicer.util.loadSegmentation(str(tmp_path / "labels.nii.gz"))
    assert loaded.GetSegmentation().GetNumberOfSegments() == 1


def test_a_table_and_a_model(slicer_host, tmp_path):
    import slicer
    import vtk

    table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode")
    slicer.util.updateTableFromArray(table, np.array([[1.0], [2.5]]), ["ml"])
    assert slicer.util.saveNode(table, str(tmp_path / "volumes.csv"))
    assert slicer.util.loadTable(str(tmp_path / "volumes.csv")).GetNumberOfRows() == 2

    sphere = vtk.vtkSphereSource()
    sphere.Update()
    model = slicer.modules.models.logic().AddModel(sphere.GetOutput())
    assert slicer.util.saveNode(model, str(tmp_path / "sphere.vtp"))
    assert slicer.util.loadModel(str(tmp_path / "sphere.vtp")).GetPolyData().GetNumberOfPoints() > 10


def test_a_missing_file_is_an_error_that_names_it(slicer_host, tmp_path):
    import slicer

    with pytest.raises(RuntimeError, match=r"missing\.nrrd"):
        slicer.util.loadVolume(str(tmp_path / "missing.nrrd"))


def test_sample_data_is_synthetic(slicer_host):
    import SampleData
    import slicer

    node = SampleData.downloadSample("MRHead")
    assert node.GetName() == "MRHead"
    assert slicer.util.arrayFromVolume(node).max() > 100


def test_a_registered_sample_with_its_own_downloader(slicer_host):
    import SampleData
    import slicer

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="Tests of the host",
        sampleName="Synthetic",
        customDownloader=lambda source: slicer.util.addVolumeFromArray(np.zeros((3, 3, 3)), name=source.sampleName),
    )
    assert SampleData.downloadSample("Synthetic").GetName() == "Synthetic"


def test_packages(slicer_host, tmp_path):
    import slicer.packaging as packaging

    (tmp_path / "requirements.txt").write_text(
        "# what it needs\nnumpy>=1.20  # arrays\n--no-deps\nno-such-package>=1\n"
    )
    requirements = packaging.load_requirements(tmp_path / "requirements.txt")
    assert [str(requirement) for requirement in requirements] == ["numpy>=1.20", "no-such-package>=1"]
    assert packaging.pip_check("numpy>=1.20")
    assert not packaging.pip_check(requirements)
    assert not packaging.pip_check("numpy>=99")
    assert packaging.pip_check("no-such-package; sys_platform == 'plan9'")
    assert packaging.pip_ensure("numpy") == []
    with pytest.raises(packaging.InstallationRefused, match="no-such-package"):
        packaging.pip_ensure(requirements, requester="Test")
    assert packaging.installation_requests[-1] == "install no-such-package>=1"
    with slicer_host.dialogs.answer("Install them", 0x00400000), pytest.raises(RuntimeError, match="declined"):
        packaging.pip_ensure("no-such-package")


def test_translation_keeps_the_text_and_its_placeholders(slicer_host, monkeypatch, tmp_path):
    import slicer
    from slicer.i18n import getContext
    from slicer.i18n import tr as _

    assert _("delete {count} files").format(count=2) == "delete 2 files"
    monkeypatch.setattr(type(slicer.app), "translate", lambda self, context, text: "supprimer {compter} fichiers")
    assert _("delete {count} files") == "delete {count} files"
    (tmp_path / "Panel.py").touch()
    assert getContext(str(tmp_path / "Panel.py")) == "Panel"


@pytest.mark.parametrize(
    ("kind", "expected"), [("Above", {0, 100}), ("Below", {0, 100, 200}), ("Outside", {0, 100, 200})]
)
def test_the_command_line_module_that_the_template_runs(slicer_host, head_volume, kind, expected):
    import slicer

    output = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    parameters = {
        "InputVolume": head_volume,
        "OutputVolume": output.GetID(),
        "ThresholdValue": 100.0,
        "ThresholdType": kind,
    }
    node = slicer.cli.runSync(slicer.modules.thresholdscalarvolume, None, parameters)
    assert node.GetStatus() == node.Completed
    assert set(np.unique(slicer.util.arrayFromVolume(output))) == expected


def test_a_module_that_the_host_does_not_have_is_named(slicer_host):
    import slicer

    with pytest.raises(AttributeError, match="brainsfit"):
        _ = slicer.modules.brainsfit
