"""The page about a patient, read back as a reader of HTML and PDF does; and the export."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import nibabel
import numpy as np
import pytest

from twinseg.errors import InputError
from twinseg.twin import report
from twinseg.twin.assessments import respond
from twinseg.twin.report import NOTICE, ForecastBands, write_report
from twinseg.twin.response import Override
from twinseg.twin.store import Twin
from twinseg.twin.store_export import export_bids
from twinseg.twin.timeline import correct_scan


class Text(HTMLParser):
    """The words of a page, the sources of its pictures, and tags that were opened and not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.sources, self.open = "", [], []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data + " "


def page(file: Path) -> Text:
    parser = Text()
    parser.feed(file.read_text("utf-8"))
    assert parser.open == []
    return parser


def test_the_page_is_whole_in_one_file_and_says_why(assessed: Twin, tmp_path: Path) -> None:
    write_report(assessed, tmp_path / "r.html", tmp_path / "r.pdf")

    read = page(tmp_path / "r.html")
    assert NOTICE in read.words
    assert "Patient twin P-7" in read.words
    assert "Progressive disease: the lesions grew from the nadir" in read.words
    assert assessed.events[-1]["hash"] in read.words
    assert "radiotherapy: not known" in read.words
    assert len(read.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in read.sources)
    pdf = (tmp_path / "r.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type /Page\b", pdf)) == 1
    assert b"CreationDate" not in pdf


def test_equal_twins_give_equal_pages(assessed: Twin, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(assessed, tmp_path / f"{name}.html", tmp_path / f"{name}.pdf")

    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


def test_a_forecast_is_drawn_with_what_must_be_said(assessed: Twin, tmp_path: Path) -> None:
    days, median = np.array([60.0, 120.0]), np.array([5.0, 9.0])
    bands = ForecastBands(
        days,
        median,
        median - 1,
        median + 1,
        median - 2,
        median + 2,
        "Whole tumour",
        ("It did not beat <persistence>.",),
        (["scenario", "+60 days"], ["no further treatment", "5.0 (3.0–7.0)"]),
    )
    write_report(assessed, tmp_path / "without.html")

    write_report(assessed, tmp_path / "with.html", forecast=bands)

    read = page(tmp_path / "with.html")
    assert "It did not beat <persistence>." in read.words
    assert "5.0 (3.0–7.0)" in read.words
    assert read.sources[0] != page(tmp_path / "without.html").sources[0]


def test_nothing_runs_off_the_page_of_the_pdf(twin: Twin, scan, monkeypatch) -> None:
    for day in (120, 180, 240, 300):
        twin.add_timepoint(day, {"t1ce": scan()["t1ce"]}, to_baseline=np.eye(4))
    for number in range(6):
        correct_scan(twin, f"{number:03d}", scan(0, 5.0 + 0.5 * number)["labels"], "expert")
    respond(twin, overrides=(Override("003", "SD", "seen on perfusion " * 30),))
    days = np.array([310.0, 400.0])
    note = "On 2 past visits of this patient the twin did not beat persistence: do not rely on this forecast. " * 3
    row = [
        "60 Gy in 30 fractions by dose map, with temozolomide",
        *["228.7 (197.9–278.8)"] * 3,
        "> 180 (> 180 to > 180)",
    ]
    bands = ForecastBands(days, *[days / 30] * 5, "Enhancing tumour", (note,) * 3, (row,) * 6)
    pages = []
    monkeypatch.setattr(report, "_page", lambda contents, make=report._page: pages.append(make(contents)) or pages[0])

    write_report(twin, twin.folder.parent / "r.html", twin.folder.parent / "r.pdf", forecast=bands)

    (page,) = pages
    boxes = [text.get_window_extent() for text in page.texts]
    assert len(boxes) > 40
    width, height = page.bbox.width, page.bbox.height
    assert all(box.x0 > 0 and box.x1 < width and box.y0 > 0 and box.y1 < height for box in boxes)
    for one, box in zip(page.texts, boxes, strict=True):
        assert sum(box.overlaps(other) for other in boxes) == 1, one.get_text()
    assert any("twinseg" in text.get_text() for text in page.texts)  # where it comes from is never cut off


def test_a_reason_cannot_write_into_the_page(assessed: Twin, tmp_path: Path) -> None:
    respond(assessed, overrides=(Override("001", "SD", "<script>alert(1)</script>"),))

    write_report(assessed, tmp_path / "r.html")

    assert "<script" not in (tmp_path / "r.html").read_text("utf-8")
    assert "<script>alert(1)</script>" in page(tmp_path / "r.html").words


def test_a_twin_with_one_scan_and_nothing_else_has_a_page(tmp_path: Path, scan) -> None:
    twin = Twin.create(tmp_path / "twin", task="brats-glioma")
    twin.add_timepoint(0, {"t1ce": scan()["t1ce"]})

    write_report(twin, tmp_path / "r.html", tmp_path / "r.pdf")

    assert "Not assessed yet." in page(tmp_path / "r.html").words


def test_a_missing_folder_is_told(assessed: Twin, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder does not exist"):
        write_report(assessed, tmp_path / "nowhere" / "r.html")


# --- export ----------------------------------------------------------------------------------------------------------


def test_the_export_has_the_shape_of_bids_derivatives(assessed: Twin, tmp_path: Path) -> None:
    folder = export_bids(assessed, tmp_path / "bids")

    description = json.loads((folder / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "TwinSegSlicer"
    anat = folder / "sub-P7" / "ses-001" / "anat"
    image = nibabel.load(anat / "sub-P7_ses-001_ce-gadolinium_desc-preproc_T1w.nii.gz")
    assert image.shape == (24, 20, 16)
    assert (anat / "sub-P7_ses-001_desc-expert_dseg.nii.gz").is_file()
    transform = json.loads((anat / "sub-P7_ses-001_from-scan_to-baseline_mode-image_xfm.json").read_text())
    np.testing.assert_array_equal(transform["Matrix"], np.eye(4))
    sessions = (folder / "sub-P7" / "sub-P7_sessions.tsv").read_text().splitlines()
    assert sessions == ["session_id\tday\tday_standard_deviation", "ses-000\t0\t0.0", "ses-001\t60\t0.0"]
    for path in folder.rglob("sub-*.*"):
        assert re.fullmatch(r"sub-P7(_[a-zA-Z]+-[a-zA-Z0-9]+)*_[a-zA-Z0-9]+\.(nii\.gz|json|tsv)", path.name), path.name


def test_an_export_never_overwrites(assessed: Twin, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is there already"):
        export_bids(assessed, tmp_path)
