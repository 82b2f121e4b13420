"""What the twin's tab shows of a forecast: its verdict, its scenarios, and where tumour is probable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from twinseg.twin.forecast import Band, Forecast, TimeToProgression
from twinseg.twin.store import Twin
from twinseg.twin.store_verify import verify
from twinseg.volumes import Volume, volume_bytes

SECONDS = 240
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


def a_forecast(record, scenario):
    """What the library might forecast, as the worker sends it."""
    days = record.scans[-1].day + np.arange(30.0, 181.0, 30.0)
    median = np.linspace(90, 160, len(days))
    bands = tuple(Band(level, median * (1 - level / 2), median * (1 + level)) for level in (0.5, 0.9))
    progression = TimeToProgression(50.0, 20.0, float("inf"), 0.1, 180.0)
    notes = ("Research only: not for treatment decisions.",)
    made = Forecast(scenario, days, median, bands, median, median, progression, True, notes, days[1])
    return json.loads(json.dumps(made.to_json()))


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
