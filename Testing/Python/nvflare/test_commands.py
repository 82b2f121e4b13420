"""`twinfed nvflare …`, without nvflare."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twinfed.cli import app
from twinfed.client.controls import CONSENT
from twinfed.engines.nvflare.site_file import SITES_FOLDER, read_site_file
from twinfed.errors import InputError

TOML = 'name = "trial"\ntask = "t"\nnetwork = "n"\nmodel = "initial.safetensors"\n'


def test_a_job_is_written(toml: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["nvflare", "job", str(toml), "--output", str(tmp_path / "jobs")])

    assert done.exit_code == 0, done.output
    assert "submit_job" in done.output
    assert json.loads((tmp_path / "jobs/trial/meta.json").read_text())["name"] == "trial"


def test_a_site_is_described_and_consents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SITES_FOLDER, str(tmp_path / "sites"))
    options = ["--folder", str(tmp_path / "state"), "--data", str(tmp_path / "cases"), "--share-local-model"]

    done = CliRunner().invoke(app, ["nvflare", "site", "SITE-01", *options])

    assert done.exit_code == 0, done.output
    assert "What is never sent: images" in done.output
    consent = json.loads((tmp_path / "state" / CONSENT).read_text())
    for words in ("on this site's test cases", "sent to the other sites"):
        assert words in done.output
        assert words in consent["how"]
    assert read_site_file("SITE-01").share_local_model


@pytest.mark.skipif(importlib.util.find_spec("nvflare") is not None, reason="nvflare is installed here")
def test_without_the_extra_one_line_says_what_to_install(toml: Path, tmp_path: Path) -> None:
    arguments = ["nvflare", "try", str(toml), "--sites", str(tmp_path), "--output", str(tmp_path / "out")]

    done = CliRunner().invoke(app, arguments)

    assert isinstance(done.exception, InputError)
    assert str(done.exception) == 'NVFlare is not installed here. Install it with: pip install "twinsegslicer[nvflare]"'


def test_neither_nvflare_nor_torch_is_imported_for_the_help() -> None:
    code = "import sys, twinfed.cli; print(sorted({'nvflare', 'torch', 'monai'} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.strip() == "[]"


def test_slicer_is_never_asked_to_install_nvflare() -> None:
    lists = list(Path(__file__).parents[3].glob("*/Resources/*requirements.txt"))

    assert len(lists) >= 3
    assert not [path for path in lists if "nvflare" in path.read_text(encoding="utf-8")]
