"""The commands, as processes: what they print, and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from twinfed.aggregator.server import Address
from twinfed.wire import InputError

PATH = os.pathsep.join([str(Path(__file__).parents[3] / "FederatedClient"), os.environ.get("PYTHONPATH", "")])


def twinfed(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "twinfed.cli", *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": PATH}, capture_output=True, text=True, timeout=60)


def test_sites_are_added_listed_and_revoked(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    added = twinfed("site", "add", "north", "--folder", folder, "--json", tmp_path / "added.json")
    again = twinfed("site", "add", "north", "--folder", folder)
    revoked = twinfed("site", "revoke", "north", "--folder", folder)
    listed = twinfed("site", "list", "--folder", folder)

    assert added.stdout.strip() == json.loads((tmp_path / "added.json").read_text())["token"]
    if os.name == "posix":
        assert (tmp_path / "added.json").stat().st_mode & 0o077 == 0
        assert (tmp_path / "folder").stat().st_mode & 0o077 == 0
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    assert revoked.returncode == 0
    assert "north" in listed.stdout
    assert "revoked" in listed.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("verify", "--folder", "nowhere"), "no aggregator's folder"),
        (("aggregator", "--folder", "new"), "--config"),
        (("aggregator", "--folder", "new", "--config", "no.toml"), "cannot be read"),
        (("aggregator", "--folder", "new", "--host", "0.0.0.0"), "--insecure"),
        (("aggregator", "--folder", "new", "--tls-key", "key.pem"), "both a certificate and its key"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)

    done = twinfed(*arguments)

    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_needs_neither_web_nor_tensors() -> None:
    code = "import sys; sys.argv = ['twinfed', '--version']\nimport twinfed.cli\nprint(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": PATH}, capture_output=True, text=True, check=True
    )

    assert not {"torch", "fastapi", "numpy", "uvicorn"} & set(done.stdout.split())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_needs_no_tls(host: str) -> None:
    Address(host=host).check()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.org", "::"])
def test_other_machines_need_tls(host: str) -> None:
    with pytest.raises(InputError, match="needs TLS"):
        Address(host=host).check()
    Address(host=host, insecure=True).check()
