"""Many cases, one after another, with the real worker and the starter model: scene, folder, sequence browser."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from twinseg.phantom import Scanner, make_patient, write_patient
from twinseg.volumes import read_image, read_labels

SEQUENCES = ("t1", "t1ce", "t2", "flair")
PATIENT_SECONDS = 90


@pytest.fixture(scope="session")
def patients():
    """Two synthetic patients, coarse, so that they are quick."""
    return [make_patient(seed, scanner=Scanner.for_site(0), size=(36, 44, 36), spacing=5.0) for seed in (14, 3)]


@pytest.fixture
def segmenter(own_home, worker):
    from TwinSegSlicerLib.Segmenter import Segmenter

    return Segmenter(worker)


@pytest.fixture
def parameters():
    from TwinSegSlicerLib.BatchCases import BatchParameters

    return BatchParameters(task="brats-glioma", device="cpu", uncertainty=True)


@pytest.fixture
def panel(slicer_host, segmenter, parameters):
    import ctk

    from TwinSegSlicerLib.Batch import BatchPanel

    button = ctk.ctkCollapsibleButton()
    yield BatchPanel(button, segmenter, lambda: parameters)
    button.deleteLater()


def run(slicer_host, panel):
    """Press the button and wait for the end."""
    panel.startButton.click()
    assert slicer_host.app.wait_until(lambda: not panel.isRunning, PATIENT_SECONDS)
    return states(panel)


def states(panel):
    return [panel.table.item(row, 2).text() for row in range(panel.table.rowCount)]


def names(panel):
    return [panel.table.item(row, 0).text() for row in range(panel.table.rowCount)]


def addVolumes(patient, prefix):
    import slicer

    volumes = {}
    for sequence, image in patient.images.items():
        node = slicer.util.addVolumeFromArray(image.array.T.copy(), ijkToRAS=image.affine, name=f"{prefix}_{sequence}")
        volumes[sequence] = node
    return volumes


def nodes():
    """What is in the scene, but for the colours of shares, which all results have in common."""
    import slicer

    names = [(node.GetClassName(), node.GetName()) for node in slicer.util.getNodesByClass("vtkMRMLNode")]
    return sorted(name for name in names if name != ("vtkMRMLColorTableNode", "Shares"))


def test_the_patients_of_the_scene_are_segmented_in_place(slicer_host, panel, patients):
    from TwinSegSlicerLib.SegmentationResult import imagesOf, results

    first, second = addVolumes(patients[0], "Ada"), addVolumes(patients[1], "Ben")

    panel.findButton.click()

    assert names(panel) == ["ada", "ben"]
    assert panel.table.item(0, 1).text() == "t1 t1ce t2 flair"
    texts = run(slicer_host, panel)
    assert all(text.startswith("done: WT ") for text in texts)
    assert [imagesOf(node) for node in results()] == [first, second]
    assert panel.statusLabel.text == "2 of 2 cases done"


def test_studies_of_the_subject_hierarchy_are_cases(slicer_host, panel, patients):
    import slicer

    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Ada")
    for date in ("2024", "2025"):
        study = hierarchy.CreateStudyItem(patient, date)
        for node in addVolumes(patients[0], "MR").values():
            hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), study)

    panel.findButton.click()

    assert names(panel) == ["Ada, 2024", "Ada, 2025"]


def test_volumes_whose_names_have_nothing_in_common_are_one_case(panel, patients):
    import slicer

    for sequence, name in zip(SEQUENCES, ("first t1", "t1ce again", "some t2", "flair x"), strict=True):
        image = patients[0].images[sequence]
        slicer.util.addVolumeFromArray(image.array.T.copy(), ijkToRAS=image.affine, name=name)

    panel.findButton.click()

    assert names(panel) == ["Volumes of the scene"]
    assert panel.table.item(0, 1).text() == "t1 t1ce t2 flair"


def test_a_folder_is_segmented_beside_it_and_one_bad_case_does_not_stop_the_rest(
    slicer_host, panel, patients, tmp_path
):
    folder = tmp_path / "Mes données"
    for name, patient in zip(("A1", "C3"), patients, strict=True):
        write_patient(folder / name, patient)
    write_patient(folder / "B2", patients[0])
    flair = folder / "B2/flair.nii.gz"
    flair.write_bytes(flair.read_bytes()[:2000])
    before = nodes()
    panel.sourceSelector.currentIndex = 1
    panel.folderEdit.currentPath = str(folder)

    panel.findButton.click()
    texts = run(slicer_host, panel)

    assert names(panel) == ["A1", "B2", "C3"]
    assert texts[0].startswith("done: WT ")
    assert texts[1].startswith("failed: ")
    assert "flair.nii.gz" in texts[1]
    assert texts[2].startswith("done: WT ")
    assert "2 of 3 cases done, 1 failed" in panel.statusLabel.text
    assert nodes() == before

    results = tmp_path / "Mes données-twinseg"
    assert sorted(path.name for path in results.iterdir()) == [
        "A1.nii.gz", "A1_uncertainty.nii.gz", "C3.nii.gz", "C3_uncertainty.nii.gz", "volumes.csv",
    ]  # fmt: skip
    labels, image = read_labels(results / "A1.nii.gz"), read_image(folder / "A1/t1.nii.gz")
    np.testing.assert_allclose(labels.affine, image.affine, atol=1e-6)
    truth = patients[0].labels.array > 0
    drawn = labels.array > 0
    assert 2 * (truth & drawn).sum() / (truth.sum() + drawn.sum()) > 0.5
    with open(results / "volumes.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["A1", "B2", "C3"]
    measured = drawn.sum() * np.prod(labels.spacing) / 1000
    assert float(rows[0]["WT mL"]) == pytest.approx(measured, abs=0.06)
    assert float(rows[0]["WT mL from"]) <= float(rows[0]["WT mL"]) <= float(rows[0]["WT mL to"])
    assert rows[0]["WT interval"] == "80 %"
    assert "flair.nii.gz" in rows[1]["failed"]
    assert len(rows[2]["model"]) == 64


def test_a_second_run_overwrites_nothing(panel, patients, tmp_path):
    from TwinSegSlicerLib.BatchCases import ResultFolder

    (tmp_path / "data").mkdir()
    (tmp_path / "data-twinseg").mkdir()

    assert ResultFolder.beside(tmp_path / "data").path.name == "data-twinseg-2"


def test_cancel_stops_within_a_second_and_keeps_what_is_done(slicer_host, panel, patients, tmp_path):
    import time

    for name in ("A1", "B2", "C3"):
        write_patient(tmp_path / "data" / name, patients[0])
    before = nodes()
    panel.sourceSelector.currentIndex = 1
    panel.folderEdit.currentPath = str(tmp_path / "data")
    panel.findButton.click()

    panel.startButton.click()
    assert slicer_host.app.wait_until(lambda: "%" in states(panel)[1], PATIENT_SECONDS)
    started = time.monotonic()
    panel.cancelButton.click()
    assert slicer_host.app.wait_until(lambda: not panel.isRunning, 5)

    assert time.monotonic() - started < 1.5  # a second is for the worker; this core is shared
    assert states(panel)[0].startswith("done")
    assert states(panel)[1:] == ["cancelled", "waiting"]
    assert panel.statusLabel.text.startswith("1 of 3 cases done")
    assert nodes() == before
    assert panel.startButton.enabled


def test_the_frames_of_a_browser_get_a_sequence_of_segmentations(slicer_host, panel, patients):
    import slicer

    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Visits")
    for sequence in ("t1ce", "flair"):
        frames = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", sequence)
        frames.SetIndexName("time")
        frames.SetIndexUnit("d")
        for day, patient in zip(("0", "90"), patients, strict=True):
            node = addVolumes(patient, "frame")[sequence]
            frames.SetDataNodeAtValue(node, day)
        browser.AddSynchronizedSequenceNode(frames)
    for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
        slicer.mrmlScene.RemoveNode(node)
    panel.sourceSelector.currentIndex = 2
    panel.browserSelector.setCurrentNode(browser)

    panel.findButton.click()
    texts = run(slicer_host, panel)

    assert names(panel) == ["Visits 0 d", "Visits 90 d"]
    assert all(text.startswith("done: WT ") for text in texts)
    made = slicer.util.getFirstNodeByClassByName("vtkMRMLSequenceNode", "Visits brats-glioma")
    assert made.GetNumberOfDataNodes() == 2
    for value, patient in zip(("0", "90"), patients, strict=True):
        segmentation = made.GetDataNodeAtValue(value)
        assert segmentation.GetSegmentation().GetSegmentIDs() == ("WT", "TC", "NCR", "ED", "ET")
        oriented = slicer.vtkOrientedImageData()
        segmentation.GetBinaryLabelmapRepresentation("WT", oriented)
        bounds = np.reshape(oriented.GetBounds(), (3, 2))
        where = np.argwhere(patient.labels.array > 0).mean(axis=0)
        centre = patient.labels.affine[:3] @ [*where, 1]
        assert np.all(bounds[:, 0] < centre)
        assert np.all(centre < bounds[:, 1])
    browser.SetSelectedItemNumber(1)
    slicer_host.process_events()
    assert browser.GetProxyNode(made).GetSegmentation().GetNumberOfSegments() == 5


@pytest.mark.parametrize(
    ("source", "reason"),
    [(0, "No volume of the scene is named"), (1, "Choose a folder first"), (2, "Choose a sequence browser first")],
)
def test_without_cases_the_panel_says_why(panel, source, reason):
    panel.sourceSelector.currentIndex = source

    panel.findButton.click()

    assert reason in panel.statusLabel.text
    assert not panel.startButton.enabled
    assert panel.startButton.toolTip == "Press Find cases first"


def test_a_folder_without_cases_is_refused_with_the_reason(panel, tmp_path):
    panel.sourceSelector.currentIndex = 1
    panel.folderEdit.currentPath = str(tmp_path)

    panel.findButton.click()

    assert "there is no image in it" in panel.statusLabel.text


def test_the_cases_of_a_folder_that_was_taken_away_are_no_longer_offered(panel, patients, tmp_path):
    write_patient(tmp_path / "A1", patients[0])
    panel.sourceSelector.currentIndex = 1
    panel.folderEdit.currentPath = str(tmp_path)
    panel.findButton.click()
    assert names(panel) == ["A1"]

    panel.folderEdit.currentPath = ""

    assert names(panel) == []
    assert not panel.startButton.enabled


def test_volumes_that_are_gone_fail_their_row_only(slicer_host, panel, patients):
    import slicer

    first = addVolumes(patients[0], "Ada")
    addVolumes(patients[1], "Ben")
    panel.findButton.click()
    slicer.mrmlScene.RemoveNode(first["t2"])

    texts = run(slicer_host, panel)

    assert "no longer in the scene" in texts[0]
    assert texts[1].startswith("done: ")


def test_closing_the_scene_ends_the_batch_and_a_new_one_can_begin(slicer_host, panel, segmenter, patients, tmp_path):
    import slicer

    write_patient(tmp_path / "data" / "A1", patients[0])
    panel.sourceSelector.currentIndex = 1
    panel.folderEdit.currentPath = str(tmp_path / "data")
    panel.findButton.click()
    panel.startButton.click()
    assert slicer_host.app.wait_until(lambda: segmenter.isRunning, PATIENT_SECONDS)

    panel.clear()
    slicer.mrmlScene.Clear()

    assert panel.table.rowCount == 0
    assert slicer_host.app.wait_until(lambda: not segmenter.isRunning, 5)
    panel.findButton.click()
    assert run(slicer_host, panel)[0].startswith("done: WT ")


def test_the_tasks_own_reference_is_used_where_a_case_lacks_the_chosen_one(parameters):
    from TwinSegSlicerLib.BatchCases import SceneCase

    parameters.reference = "flair"

    assert parameters.fitting(SceneCase("a", {}), {"flair": None}).reference == "flair"
    assert parameters.fitting(SceneCase("a", {}), {"t1": None}).reference == ""


def test_every_control_has_a_tool_tip(panel):
    controls = (
        panel.sourceSelector, panel.folderEdit, panel.browserSelector, panel.findButton,
        panel.table, panel.startButton, panel.cancelButton,
    )  # fmt: skip
    assert all(control.toolTip for control in controls)
