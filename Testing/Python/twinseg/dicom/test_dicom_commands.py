"""The commands `twinseg dicom-seg` and `twinseg twin dicom` as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from typer.testing import CliRunner

from twinseg.cli import app
from twinseg.errors import InputError
from twinseg.twin.store import Twin
from twinseg.volumes import Volume, write_volume

Run = Callable[..., str]


@pytest.fixture
def run() -> Run:
    """Run a command; its output, or the InputError that it ended with."""

    def run_command(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return run_command


@pytest.fixture
def twin(tmp_path: Path, head: Any) -> Path:
    """A twin of the head's scan, which a model segmented and an expert corrected."""
    made = Twin.create(tmp_path / "twin", task="brats-glioma", pseudonym="P-7")
    image = Volume(head.pixels.astype(np.float32), head.labels.affine)
    made.add_timepoint(0, {"t1ce": image}, segmentation=(head.labels, "model"), model="ab12")
    return made.folder


def test_a_label_map_goes_back_to_its_series(series: Path, head: Any, tmp_path: Path, run: Run) -> None:
    write_volume(tmp_path / "seg.nii.gz", head.labels)

    words = ("dicom-seg", tmp_path / "seg.nii.gz", "--series", series, "--output", tmp_path / "s.dcm")
    said = run(*words, "--json", tmp_path / "j")

    assert "NCR" in said
    assert "patient's identity" in said
    assert dcmread(tmp_path / "s.dcm").SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    assert [segment["label"] for segment in json.loads((tmp_path / "j").read_text())["segments"]] == ["NCR", "ED", "ET"]
    with pytest.raises(InputError, match="--origin nobody is unknown"):
        run(*words, "--origin", "nobody")


def test_the_segmentation_that_counts_is_written(series: Path, head: Any, twin: Path, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "seg.dcm"

    run("twin", "dicom", twin, "000", "--series", series, "--output", output, "--json", tmp_path / "first.json")
    first = dcmread(output)
    Twin.open(twin).add_segmentation("000", Volume(np.minimum(head.labels.array, 2), head.labels.affine), "expert")
    run("twin", "dicom", twin, "000", "--series", series, "--output", output)

    assert [segment.SegmentAlgorithmType for segment in first.SegmentSequence] == ["AUTOMATIC"] * 3
    assert "ab12" in first.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
    assert [segment.SegmentAlgorithmType for segment in dcmread(output).SegmentSequence] == ["MANUAL"] * 2
    measured = json.loads((tmp_path / "first.json").read_text("utf-8"))
    assert (measured["source_of"], measured["correlation"]) == ("t1ce", 1.0)


def test_the_identity_stays_where_the_series_is(series: Path, twin: Path, tmp_path: Path, run: Run) -> None:
    before = {path: path.read_bytes() for path in twin.rglob("*") if path.is_file()}

    run("twin", "dicom", twin, "000", "--series", series, "--output", tmp_path / "s.dcm", "--json", tmp_path / "j.json")
    with pytest.raises(InputError, match="holds nothing of the patient's identity"):
        run("twin", "dicom", twin, "000", "--series", series, "--output", twin / "s.dcm")

    assert {path: path.read_bytes() for path in twin.rglob("*") if path.is_file()} == before
    file, told = dcmread(tmp_path / "s.dcm"), (tmp_path / "j.json").read_text("utf-8")
    for secret in (str(file.PatientName), file.PatientID, file.PatientBirthDate, file.StudyDate, file.StudyInstanceUID):
        assert secret not in told
    assert b"P-7" not in (tmp_path / "s.dcm").read_bytes()  # nor does the file tell whose the pseudonym is


def test_another_patients_series_is_refused(twin: Path, make_head: Any, tmp_path: Path, run: Run) -> None:
    other = make_head(seed=9).save(tmp_path / "other")

    with pytest.raises(InputError, match="does not show what the scan shows"):
        run("twin", "dicom", twin, "000", "--series", other, "--output", tmp_path / "s.dcm")
    with pytest.raises(InputError, match="no time point 005"):
        run("twin", "dicom", twin, "005", "--series", other, "--output", tmp_path / "s.dcm")
    assert not (tmp_path / "s.dcm").exists()


@pytest.mark.parametrize("package", ["pydicom", "highdicom"])
def test_a_missing_package_is_named(series: Path, head: Any, tmp_path: Path, package: str) -> None:
    write_volume(tmp_path / "seg.nii.gz", head.labels)
    script = f"import sys; sys.modules[{package!r}] = None; from twinseg.cli import main; main()"
    arguments = ["dicom-seg", tmp_path / "seg.nii.gz", "--series", series, "--output", tmp_path / "seg.dcm"]

    ended = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True)

    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert f"DICOM needs the package {package}" in ended.stderr


def test_help_imports_no_dicom() -> None:
    script = "import sys, twinseg.cli, twinseg.dicom_segmentation; print({'pydicom', 'highdicom'} & set(sys.modules))"

    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert ended.stdout.strip() == "set()"
