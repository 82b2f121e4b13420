"""The patient twin as its user meets it: through the module's tab, in the host, with the real worker."""

from __future__ import annotations

import time
from datetime import date

import numpy as np
import psutil
import pytest

from twinseg.errors import InputError
from twinseg.twin.store import Twin
from twinseg.twin.store_verify import verify
from twinseg.twin.timeline import add_scan
from twinseg.volumes import Volume

SECONDS = 240


def test_two_scans_become_a_timeline_with_a_response(slicer_host, module_widget, panel, wait, select, patients):
    from TwinSegSlicerLib.SelfTest import drawInto

    ui = panel.ui
    assert not ui.addButton.enabled
    assert ui.addButton.toolTip == "Open a twin first"
    ui.pseudonymLineEdit.text = "P-7"
    ui.createButton.click()
    wait()
    assert ui.twinComboBox.currentText == "P-7"

    select(patients[0].visits[0])
    ui.addButton.click()
    wait()
    node = select(patients[0].visits[1], "P1_flair_2")
    drawInto(node, "ED", node.GetNodeReference("TwinSegImage_flair"))
    ui.daySpinBox.value = patients[0].visits[1].day
    ui.addButton.click()
    wait()

    record = panel.session.record
    assert [scan.day for scan in record.scans] == [visit.day for visit in patients[0].visits]
    assert [scan.segmentation.origin for scan in record.scans] == ["model", "edited"]
    assert record.scans[1].registration["agreement"] > 0.5
    np.testing.assert_array_equal(record.twin.labels(record.scans[0]).array, patients[0].visits[0].labels.array)
    assert record.twin.labels(record.scans[1]).array[3, 3, 3] == 2  # what was drawn
    assert verify(record.twin.folder).whole

    ui.assessButton.click()
    wait()
    assert (ui.responseTable.item(0, 2).text(), ui.responseTable.rowCount) == ("baseline", 2)
    assert ui.responseTable.item(1, 4).text() in {"PD", "SD", "PR", "CR"}
    assert "from the nadir of day 0" in ui.traceLabel.text


def test_the_window_stays_alive_while_a_twin_is_read_shown_and_compared(slicer_host, panel, wait, open_twin):
    from TwinSegSlicerLib.Heartbeat import Heartbeat

    ui = panel.ui
    slicer_host.process_events()
    heartbeat = Heartbeat()
    ui.twinComboBox.setCurrentIndex(0)
    ui.twinComboBox.setCurrentIndex(ui.twinComboBox.findText("P-7"))
    wait()
    ui.scansButton.click()
    assert slicer_host.app.wait_until(lambda: ui.scanSlider.enabled, SECONDS)
    heartbeat.stop()

    assert len(heartbeat.watched) > 5
    assert heartbeat.longestButOne <= 0.05  # the views are drawn once, in one go


def test_a_scan_of_another_patient_is_refused_and_the_twin_stays_as_it_was(
    slicer_host, panel, wait, open_twin, select, patients
):
    revision = panel.session.record.twin.revision
    select(patients[1].visits[1])
    panel.ui.daySpinBox.value = 900

    with slicer_host.faults.expect("does not match the baseline"):
        panel.ui.addButton.click()
        wait()

    assert Twin.open(open_twin).revision == revision
    assert "is it another patient's" in panel.ui.stepLabel.text
    assert panel.ui.addButton.enabled


def test_adding_a_scan_shows_its_stages_and_how_far_it_is(panel, wait, open_twin, select, patients):
    ui, seen = panel.ui, []
    bar = ui.stepProgressBar
    panel.session.stepped.connect(lambda: seen.append((ui.stepLabel.text, bar.maximum, bar.value)))
    select(patients[0].visits[1])
    ui.daySpinBox.value = 900
    ui.addButton.click()
    wait()

    told = " / ".join(text for text, _, _ in seen)
    stages = ("Writing the images", "checking", "rigid", "affine", "comparing", "matching the lesions", "writing")
    places = [told.index(stage) for stage in stages]
    assert places == sorted(places)
    shares = [value for text, most, value in seen if most == 100]
    assert shares == sorted(shares)
    assert len(set(shares)) > 10
    assert seen[0][1] == 0  # how long the files take is not known


def test_days_that_do_not_follow_on_are_refused(slicer_host, panel, wait, open_twin, select, patients):
    select(patients[0].visits[1])
    panel.ui.daySpinBox.value = patients[0].visits[1].day

    with slicer_host.faults.expect("there is a scan of that day already"):
        panel.ui.addButton.click()
        wait()


def test_cancel_ends_the_registration_and_leaves_a_whole_twin(slicer_host, panel, wait, open_twin, select, patients):
    before = panel.session.record.twin.revision
    select(patients[0].visits[1])
    panel.ui.daySpinBox.value = 900
    panel.ui.addButton.click()
    assert slicer_host.app.wait_until(lambda: "registering" in panel.session.step, SECONDS)
    began = time.monotonic()
    panel.ui.stopButton.click()
    wait()

    assert time.monotonic() - began < 5
    assert panel.ui.stepLabel.text == "Cancelled; the twin is as it was."
    assert slicer_host.dialogs.shown == []
    assert Twin.open(open_twin).revision == before
    assert verify(open_twin).whole


def test_a_worker_that_is_killed_leaves_a_whole_twin_and_the_next_press_works(
    slicer_host, worker, panel, wait, open_twin, select, patients
):
    before = panel.session.record.twin.revision
    select(patients[0].visits[1])
    panel.ui.daySpinBox.value = 900
    panel.ui.addButton.click()
    assert slicer_host.app.wait_until(lambda: "registering" in panel.session.step, SECONDS)

    with slicer_host.faults.expect("ended unexpectedly"):
        psutil.Process(worker.processId).kill()
        wait()

    assert Twin.open(open_twin).revision == before
    assert verify(open_twin).whole
    panel.ui.addButton.click()
    wait()
    assert [scan.day for scan in panel.session.record.scans][-1] == 900


def test_what_was_done_before_it_could_be_cancelled_is_said_and_shown(
    slicer_host, worker, panel, wait, open_twin, select, patients, monkeypatch
):
    """The result is on its way when the user cancels: the handle on the worker then tells of a cancellation."""
    select(patients[0].visits[1])
    panel.ui.daySpinBox.value = 900
    hand = worker._hand

    def too_late(number, request, kind, message):
        request.isCancelled = request.isCancelled or kind == "result"
        hand(number, request, kind, message)

    monkeypatch.setattr(worker, "_hand", too_late)
    panel.ui.addButton.click()
    wait()

    assert panel.ui.stepLabel.text == "It was done before it could be cancelled."
    assert [scan.day for scan in panel.session.record.scans][-1] == 900


def test_what_another_patients_model_has_drawn_is_not_added(slicer_host, panel, wait, open_twin, select, patients):
    node = select(patients[0].visits[1])
    node.SetAttribute("TwinSeg.Delta", "000004")
    node.SetAttribute("TwinSeg.DeltaTwin", "P-8")
    panel.ui.daySpinBox.value = 900

    with slicer_host.faults.expect("The adapted model of P-8 has drawn this"):
        panel.ui.addButton.click()
    assert not panel.session.isBusy
    node.SetAttribute("TwinSeg.DeltaTwin", "P-7")
    panel.ui.addButton.click()
    wait()

    drawn = panel.session.record.scans[-1].segmentation
    assert (drawn.origin, drawn.model, drawn.delta) == ("model", "0123456789abcdef", "000004")


def test_the_day_comes_from_dicom_dates_which_are_not_kept(slicer_host, panel, wait, open_twin, select, patients):
    import slicer

    from TwinSegSlicerLib.TwinVisit import proposedDay

    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    name = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMStudyDateAttributeName()
    patient = tree.CreateSubjectItem(tree.GetSceneItemID(), "Ada")
    studies = []
    for text in ("20190301", "20190510"):
        studies.append(tree.CreateStudyItem(patient, text))
        tree.SetItemAttribute(studies[-1], name, text)
    node = select(patients[0].visits[1])
    assert proposedDay(node) is None
    tree.SetItemParent(tree.GetItemByDataNode(node.GetNodeReference("TwinSegImage_flair")), studies[1])

    panel.clear()  # the day was proposed already, when the node was selected
    panel.show(node)
    assert panel.ui.daySpinBox.value == 70
    assert "2 studies of this patient" in panel.ui.dayLabel.text
    assert "2019" not in panel.ui.dayLabel.text
    with pytest.raises(InputError, match="in the future"):
        proposedDay(node, today=date(2019, 4, 1))


def test_a_twin_without_a_given_name_has_the_pseudonym_of_its_patient(panel, wait, select, patients):
    from twinseg.pseudonyms import load_pseudonyms

    select(patients[0].visits[0], "Ada_flair")
    panel.ui.createButton.click()
    wait()

    assert panel.session.record.pseudonym == load_pseudonyms().patient("ada")
    panel.ui.createButton.click()
    wait()
    assert panel.session.record.pseudonym.startswith("twin-")


def test_a_pseudonym_that_cannot_be_is_told(slicer_host, panel, wait):
    panel.ui.pseudonymLineEdit.text = "Ada Lovelace"
    with slicer_host.faults.expect("not the patient's name"):
        panel.ui.createButton.click()
        wait()

    assert panel.session.record is None


def test_treatments_that_are_typed_are_kept(panel, wait, open_twin):
    ui = panel.ui
    ui.kindComboBox.setCurrentIndex(ui.kindComboBox.findData("radiotherapy"))
    ui.addLineButton.click()
    ui.treatmentsTable.item(0, 1).setText("30 weekdays from 14")
    ui.noneSteroidsCheckBox.checked = True
    ui.saveTreatmentsButton.click()
    wait()

    kept = panel.session.record.treatments
    assert kept.radiotherapy[0].total_gy == 60
    assert (kept.steroids, kept.surgery) == ((), None)
    assert ui.treatmentsTable.item(0, 1).text() == "30 weekdays from 14"


def test_treatments_that_cannot_be_stay_on_the_screen(slicer_host, panel, wait, open_twin):
    panel.ui.addLineButton.click()
    panel.ui.treatmentsTable.item(0, 1).setText("soon")

    with slicer_host.faults.expect("line 1: 'soon' is no number"):
        panel.ui.saveTreatmentsButton.click()

    assert panel.ui.treatmentsTable.item(0, 1).text() == "soon"
    assert panel.session.record.treatments.surgery is None


def test_a_reader_overrides_with_a_reason(slicer_host, panel, wait, open_twin):
    ui = panel.ui
    ui.responseTable.selectRow(1)
    ui.overrideComboBox.setCurrentIndex(ui.overrideComboBox.findData("SD"))
    with slicer_host.faults.expect("needs a reason"):
        ui.overrideButton.click()
        wait()
    ui.reasonLineEdit.text = "bleeding, not growth"
    ui.clinicalComboBox.setCurrentIndex(ui.clinicalComboBox.findData("worse"))
    ui.overrideButton.click()
    wait()

    assert ui.responseTable.item(1, 2).text().startswith("SD (by a reader; the rules:")
    assert "bleeding, not growth" in ui.traceLabel.text
    ui.assessButton.click()  # the clinical word comes along; the reader's stays
    wait()
    assert "rules: PD" in ui.responseTable.item(1, 2).text()
    ui.responseTable.selectRow(0)
    assert not ui.overrideButton.enabled


def test_a_task_without_enhancing_tumour_cannot_be_assessed_and_the_panel_says_why(panel, wait, own_home, patients):
    twin = Twin.create(own_home / "twins/P-9", task="lgg-flair", pseudonym="P-9")
    visit = patients[0].visits[0]
    labels = Volume((visit.labels.array > 0).astype(np.uint8), visit.labels.affine)
    add_scan(twin, 0, {"flair": visit.images["flair"]}, labels=labels)
    panel.session.open(twin.folder)
    wait()

    assert not panel.ui.assessButton.enabled
    assert "the task lgg-flair draws none" in panel.ui.assessButton.toolTip
    assert "the task lgg-flair draws none" in panel.ui.traceLabel.text


def test_the_report_is_written_and_opened(slicer_host, panel, wait, open_twin, own_home):
    opened = []
    panel._openFile = opened.append
    panel.ui.reportButton.click()
    wait()

    assert opened == [own_home / "reports/P-7.html"]
    assert "Patient twin P-7" in opened[0].read_text(encoding="utf-8")
    assert (own_home / "reports/P-7.pdf").read_bytes().startswith(b"%PDF")
    assert verify(open_twin).whole


def test_change_between_two_dates(slicer_host, panel, wait, open_twin):
    import slicer

    ui = panel.ui
    assert (ui.beforeComboBox.currentText, ui.afterComboBox.currentData) == ("day 0", "001")
    ui.changeButton.click()
    wait()

    assert "new (red)" in ui.changeLabel.text
    composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    assert composite.GetLabelVolumeID() is not None
    ui.changeButton.click()
    assert composite.GetLabelVolumeID() is None


def test_what_the_worker_refuses_is_told_in_one_line(slicer_host, panel, wait, own_home, patients):
    """There is nothing to learn from a scan that only a model has drawn."""
    twin = Twin.create(own_home / "twins/P-8", task="brats-glioma", pseudonym="P-8")
    visit = patients[0].visits[0]
    add_scan(twin, 0, {"flair": visit.images["flair"]}, labels=visit.labels, origin="model")
    panel.session.open(twin.folder)
    wait()

    with slicer_host.faults.expect("This failed: "):
        panel.ui.adaptButton.click()
        wait()

    assert "it has no corrected scan to learn from" in panel.ui.stepLabel.text
    assert "\n" not in panel.ui.stepLabel.text
    assert Twin.open(twin.folder).revision == twin.revision


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"kind": "adapted", "accepted": True, "reason": "Dice 0.8 before, 0.9 after. Accepted."}, "In use. Dice 0.8"),
        ({"kind": "adapted", "accepted": False, "reason": "Rejected, as it is worse."}, "Kept, but not used. Rejected"),
        ({"kind": "rolled back", "delta": "000004"}, "Rolled back"),
    ],
)
def test_what_became_of_the_model_is_said(slicer_host, panel, wait, open_twin, content, said):
    Twin.open(open_twin).add_record("models", {"base": "0" * 64, **content})
    panel.session.open(open_twin)
    wait()

    assert panel.ui.adaptLabel.text.startswith(said)
    assert panel.ui.rollBackButton.enabled


def test_a_damaged_twin_is_told_and_the_others_can_be_opened(slicer_host, panel, wait, open_twin, own_home):
    broken = own_home / "twins/broken"
    broken.mkdir()
    (broken / "twin.json").write_text("{", encoding="utf-8")
    panel.listTwins()

    with slicer_host.faults.expect("This failed: Opening the twin"):
        panel.ui.twinComboBox.setCurrentIndex(panel.ui.twinComboBox.findText("broken"))
        wait()

    assert panel.session.record.pseudonym == "P-7"
    assert panel.ui.twinComboBox.currentText == "P-7"


def test_closing_the_scene_keeps_the_twin_open(slicer_host, panel, wait, open_twin):
    panel.ui.scansButton.click()
    assert slicer_host.app.wait_until(lambda: panel.ui.scanSlider.enabled, SECONDS)
    slicer_host.close_scene()

    assert panel.session.record.pseudonym == "P-7"
    assert not panel.ui.scanSlider.enabled
    panel.ui.chartButton.click()
    assert panel.ui.twinComboBox.currentText == "P-7"


def test_the_tab_says_what_it_is_for(panel):
    assert panel.ui.researchLabel.text == "Research only: not for diagnosis, not for treatment decisions."
