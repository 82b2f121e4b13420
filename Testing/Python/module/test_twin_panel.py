"""The patient twin as its user meets it: through the module's tab, in the host, with the real worker."""

from __future__ import annotations

import json
import shutil
import time
from datetime import date
from pathlib import Path

import numpy as np
import psutil
import pytest

from twinseg.errors import InputError
from twinseg.phantom import Scanner, make_patient
from twinseg.twin.forecast import Band, Forecast, TimeToProgression
from twinseg.twin.store import Twin
from twinseg.twin.store_verify import verify
from twinseg.twin.timeline import add_scan
from twinseg.volumes import Volume, volume_bytes

SECONDS = 240
WAITED = Path("/proc/thread-self/schedstat")  # Linux: the second number is how long this thread waited for a core, ns


@pytest.fixture(scope="session")
def patients():
    """Two synthetic patients at two dates."""
    scanner = Scanner.for_site(0)
    return [make_patient((5, n), scanner=scanner, size=48, spacing=4.0, visits=2, kind="ring") for n in range(2)]


@pytest.fixture
def panel(slicer_host, module_widget, worker):
    """The tab of the twin, opened; with the worker of all tests, as importing torch is what takes long."""
    module_widget.ui.tabWidget.setCurrentIndex(1)
    module_widget.twinPanel.session._worker = worker
    return module_widget.twinPanel


@pytest.fixture
def wait(slicer_host, panel):
    """Waits until the present step is done; then no error was told."""

    def until_done():
        assert slicer_host.app.wait_until(lambda: not panel.session.isBusy, SECONDS)

    return until_done


@pytest.fixture
def select(slicer_host, module_widget, add_volume, add_result):
    """Puts a visit's FLAIR and a segmentation of it into the scene, and selects it as the user would."""

    def select_visit(visit, name="P1_flair"):
        flair = visit.images["flair"]
        node = add_result(volume=add_volume(flair.array.T, flair.affine, name), labels=visit.labels.array)
        module_widget.ui.segmentationSelector.setCurrentNode(node)
        slicer_host.process_events()
        return node

    return select_visit


@pytest.fixture(scope="session")
def two_scans(tmp_path_factory, patients) -> Path:
    folder = tmp_path_factory.mktemp("twins") / "P-7"
    twin = Twin.create(folder, task="brats-glioma", pseudonym="P-7")
    for visit in patients[0].visits:
        add_scan(twin, visit.day, {"flair": visit.images["flair"]}, labels=visit.labels, origin="expert")
    return folder


@pytest.fixture
def open_twin(panel, wait, own_home, two_scans):
    """A twin with two scans in the data folder, opened in the panel."""
    folder = shutil.copytree(two_scans, own_home / "twins/P-7")
    panel.listTwins()
    panel.ui.twinComboBox.setCurrentIndex(panel.ui.twinComboBox.findText("P-7"))
    wait()
    return folder


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


def own_clock():
    """Seconds, less those in which other programs had the core: what they take is not the module's doing."""
    waited = int(WAITED.read_text().split()[1]) / 1e9 if WAITED.exists() else 0.0
    return time.perf_counter() - waited


def test_the_window_stays_alive_while_a_twin_is_read_shown_and_compared(slicer_host, panel, wait, open_twin):
    import qt

    ui, gaps, last = panel.ui, [], [own_clock()]

    def beat():
        now = own_clock()
        gaps.append(now - last[0])
        last[0] = now

    timer = qt.QTimer()
    timer.setInterval(5)
    timer.connect("timeout()", beat)
    slicer_host.process_events()
    last[0] = own_clock()
    timer.start()
    ui.twinComboBox.setCurrentIndex(0)
    ui.twinComboBox.setCurrentIndex(ui.twinComboBox.findText("P-7"))
    wait()
    ui.scansButton.click()
    assert slicer_host.app.wait_until(lambda: ui.scanSlider.enabled, SECONDS)
    timer.stop()

    assert len(gaps) > 5
    assert sorted(gaps)[-2] <= 0.05  # the views are drawn once, in one go


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

    panel.show(None)
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


@pytest.mark.slow
def test_the_worker_forecasts_and_the_twin_keeps_it(slicer_host, panel, wait, open_twin):
    panel.ui.forecastButton.click()
    wait()

    assert "not for treatment decisions" in panel.ui.verdictLabel.text
    assert panel.ui.scenarioTable.rowCount >= 3
    assert panel.ui.mapButton.checked
    assert len(panel.session.record.forecasts) == 1
    assert verify(open_twin).whole
    shown = []
    for row, forecast in enumerate(panel.session.forecasts):
        panel.ui.scenarioTable.selectRow(row)
        assert slicer_host.app.wait_until(lambda name=forecast["scenario"]: name in shown_map().GetName(), SECONDS)
        shown.append(voxels(shown_map()))
    assert 0 < shown[1].sum() < shown[0].sum()  # treated, and not


SCENARIOS = ("no further treatment", "60 Gy in 30 fractions with temozolomide")


@pytest.fixture
def show_forecast(panel, wait, open_twin):
    """Seals a forecast of two scenarios with a map each, of shares in a box, and shows it as the worker's answer."""

    def show(with_maps=True, shares=(0.7, 0.3)):
        twin = panel.session.record.twin
        forecasts, files = [], {}
        for name, share in zip(SCENARIOS, shares, strict=True):
            file = f"{share}.nii.gz" if with_maps else None
            forecasts.append({**a_forecast(panel.session.record, name), "probability_file": file})
            if with_maps:
                array = np.zeros(twin.frame.shape, np.float32)
                array[20:28, 20:28, 20:28] = share
                files[file] = volume_bytes(Path(file), Volume(array, twin.frame.affine))
        record = Twin.open(open_twin).add_record("forecasts", {"scenarios": forecasts}, files)
        panel.session.open(open_twin)
        wait()
        verdict = "On 1 past visit of this patient the twin did not beat persistence: do not rely on this forecast."
        panel.session.forecasts, panel.session.forecastName = forecasts, record.name
        notes = forecasts[0]["notes"]
        answer = {"forecasts": forecasts, "verdict": verdict, "beats_both": False, "notes": notes, "scored": []}
        panel._parts[-1].showForecast(answer)
        return answer

    return show


def shown_map():
    """The volume that lies over the images in the slice views; None where there is none."""
    import slicer

    composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    return slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID() or "")


def voxels(node):
    import slicer

    return slicer.util.arrayFromVolume(node).T


def test_a_forecast_is_shown_with_its_verdict(slicer_host, panel, show_forecast):
    answer = show_forecast()

    ui = panel.ui
    assert ui.verdictLabel.text.startswith(f"⚠ {answer['verdict']}")
    assert "not for treatment decisions" in ui.verdictLabel.text
    assert ui.scenarioTable.item(0, 1).text() == "50 d (20 d to > 180 d)"
    ui.twinComboBox.setCurrentIndex(0)
    assert ui.scenarioTable.rowCount == 0


def test_every_scenario_has_its_map(slicer_host, panel, show_forecast):
    show_forecast()
    ui = panel.ui
    assert ui.mapButton.checked
    for row, share in ((0, 0.7), (1, 0.3), (0, 0.7)):
        ui.scenarioTable.selectRow(row)
        assert slicer_host.app.wait_until(lambda r=row: shown_map() and SCENARIOS[r] in shown_map().GetName(), SECONDS)
        assert voxels(shown_map()).max() == pytest.approx(share)

    ui.mapButton.click()
    assert shown_map() is None
    ui.scenarioTable.selectRow(1)
    slicer_host.process_events(0.3)
    assert shown_map() is None  # until it is asked for
    ui.mapButton.click()
    assert slicer_host.app.wait_until(lambda: shown_map() is not None, SECONDS)
    assert voxels(shown_map()).max() == pytest.approx(0.3)
    ui.twinComboBox.setCurrentIndex(0)
    assert shown_map() is None  # it is of a patient who is not open any more


def test_a_forecast_without_maps_says_so(panel, show_forecast):
    show_forecast(with_maps=False)

    assert not panel.ui.mapButton.enabled
    assert panel.ui.mapButton.toolTip == "This forecast has no map"


def test_a_map_of_nothing_is_told_as_such(slicer_host, panel, show_forecast):
    show_forecast(shares=(0.0, 0.3))

    assert slicer_host.app.wait_until(lambda: panel.ui.mapLabel.text, SECONDS)
    assert panel.ui.mapLabel.text.endswith("nowhere more probable than 5 %, so there is nothing to show.")
    panel.ui.scenarioTable.selectRow(1)
    assert slicer_host.app.wait_until(lambda: "from 5 % (yellow)" in panel.ui.mapLabel.text, SECONDS)
    panel.ui.mapButton.click()
    assert not panel.ui.mapLabel.isVisible()


def test_a_map_that_was_changed_on_the_disk_is_told(slicer_host, panel, show_forecast, open_twin):
    show_forecast()
    assert slicer_host.app.wait_until(lambda: shown_map() is not None, SECONDS)
    (file,) = open_twin.glob("forecasts/*/0.3.nii.gz")
    file.write_bytes(file.read_bytes()[:-1] + b"x")

    with slicer_host.faults.expect("The map could not be shown"):
        panel.ui.scenarioTable.selectRow(1)
        assert slicer_host.app.wait_until(lambda: not panel.ui.mapButton.checked, SECONDS)


def a_forecast(record, scenario):
    """What the library might forecast, as the worker sends it."""
    days = record.scans[-1].day + np.arange(30.0, 181.0, 30.0)
    median = np.linspace(90, 160, len(days))
    bands = tuple(Band(level, median * (1 - level / 2), median * (1 + level)) for level in (0.5, 0.9))
    progression = TimeToProgression(50.0, 20.0, float("inf"), 0.1, 180.0)
    notes = ("Research only: not for treatment decisions.",)
    made = Forecast(scenario, days, median, bands, median, median, progression, True, notes, days[1])
    return json.loads(json.dumps(made.to_json()))


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
