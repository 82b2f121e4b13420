"""A site's own settings stand on its machine, where no job reaches."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinfed.engines.nvflare.site_file import SITES_FOLDER, SiteFile, read_site_file, site_file_path, write_site_file
from twinfed.errors import InputError


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(SITES_FOLDER, str(tmp_path / "sites"))
    return tmp_path / "sites"


def test_settings_are_read_as_they_were_written(sites: Path, tmp_path: Path) -> None:
    settings = SiteFile(
        folder=tmp_path / "Hôpital 1", cases=tmp_path / "cases", device="cuda:1", hours="20-6", share_local_model=True
    )

    path = write_site_file("SITE-01", settings)

    assert path == sites / "SITE-01.toml"
    assert read_site_file("SITE-01") == settings


def test_without_the_variable_they_stand_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SITES_FOLDER, raising=False)
    monkeypatch.setenv("TWINSEG_HOME", str(tmp_path))

    assert site_file_path("SITE-01") == tmp_path / "federation" / "nvflare" / "SITE-01.toml"


def test_paths_are_relative_to_the_file(sites: Path) -> None:
    sites.mkdir()
    (sites / "A.toml").write_text('folder = "state"\n', encoding="utf-8")

    assert read_site_file("A") == SiteFile(folder=sites / "state")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "missing 1 required keyword-only argument: 'folder'"),
        ('folder = "a"\nspeed = 3', "unexpected keyword argument 'speed'"),
        ('folder = "a"\nhours = "late"', "these are no hours"),
        ('folder = "a"\nlearning_rate = -1', "must be a number above 0"),
        ('folder = "a"\nshare_local_model = "yes"', "share_local_model are true or false"),
        ("folder = 3", "must be texts"),
        ("folder = ", "cannot be read"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(sites: Path, text: str, words: str) -> None:
    sites.mkdir()
    (sites / "A.toml").write_text(text, encoding="utf-8")

    with pytest.raises(InputError, match=words) as caught:
        read_site_file("A")

    assert str(sites / "A.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_site_without_settings_is_told_how_to_write_them(sites: Path) -> None:
    with pytest.raises(InputError, match="twinfed nvflare site SITE-09 --folder FOLDER"):
        read_site_file("SITE-09")
