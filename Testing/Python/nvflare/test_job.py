"""A job is written from the aggregator's own TOML file, and carries no code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twinfed.aggregator.config import load_config
from twinfed.engines.nvflare.job import ALLOWED, load_job, read_job, write_job
from twinfed.errors import InputError

TOML = """
name = "Gliomas 2026 / first"
task = "brats-glioma"
network = "small"
model = "initial.safetensors"
rounds = 4
quorum = 3
[strategy]
name = "adaptive"
clip = 2.0
"""


def test_the_server_reads_from_a_job_what_the_aggregator_reads_from_the_file(toml: Path, tmp_path: Path) -> None:
    folder = write_job(load_job(toml), tmp_path / "jobs")

    federation, settings = read_job(folder / "app" / "config")

    assert folder.name == "Gliomas-2026-first"
    assert Path(federation.model).read_bytes() == Path(load_config(toml).model).read_bytes()
    assert {**federation.to_dict(), "model": ""} == {**load_config(toml).to_dict(), "model": ""}
    assert settings == {"form": "differences", "cross_site": "global"}
    assert json.loads((folder / "meta.json").read_text())["min_clients"] == 3


def test_a_job_names_classes_of_ours_and_carries_no_code(toml: Path, tmp_path: Path) -> None:
    folder = write_job(load_job(toml), tmp_path / "jobs")

    named = [
        line.split('"')[3]
        for file in folder.rglob("config_fed_*.json")
        for line in file.read_text().splitlines()
        if '"path"' in line
    ]
    assert len(named) == 4
    assert all(name.startswith(ALLOWED) for name in named)
    assert not list(folder.rglob("custom"))
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_sites_that_are_visited_in_turn_need_no_quorum(toml: Path, tmp_path: Path) -> None:
    toml.write_text(TOML.replace('"adaptive"\nclip = 2.0', '"transfer"'), encoding="utf-8")

    folder = write_job(load_job(toml), tmp_path / "jobs")

    assert json.loads((folder / "meta.json").read_text())["min_clients"] == 1


def test_a_compressed_upload_is_packed_and_no_cross_site_evaluation_is_left_out(toml: Path, tmp_path: Path) -> None:
    more = '[upload]\nbits = 8\n[nvflare]\ncross_site = "off"\n'
    toml.write_text(TOML + more, encoding="utf-8")

    folder = write_job(load_job(toml), tmp_path / "jobs")

    assert read_job(folder / "app" / "config")[1]["form"] == "packed"
    server = json.loads((folder / "app/config/config_fed_server.json").read_text())
    assert [one["id"] for one in server["workflows"]] == ["rounds"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('[nvflare]\nsend = "weigths"', "it is one of differences, weights"),
        ("[nvflare]\nspeed = 3", "it takes send, cross_site"),
        ('[nvflare]\nsend = "weights"\n[upload]\nbits = 8', "A compressed upload holds differences"),
        ('[nvflare]\ncross_site = "all"', "it is one of off, global, sites"),
        ("[limit]\nx = 1", "unexpected keyword argument 'limit'"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(toml: Path, more: str, words: str) -> None:
    toml.write_text(f"{TOML}{more}\n", encoding="utf-8")

    with pytest.raises(InputError, match=words) as caught:
        load_job(toml)

    assert str(toml) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_strategy_with_several_models_is_refused(toml: Path) -> None:
    toml.write_text(TOML.replace('"adaptive"', '"clustered"'), encoding="utf-8")

    with pytest.raises(InputError, match="Take another strategy, or the light aggregator"):
        load_job(toml)


def test_a_model_that_is_not_there_is_told(toml: Path, model: Path, tmp_path: Path) -> None:
    model.unlink()

    with pytest.raises(InputError, match="not a model"):
        write_job(load_job(toml), tmp_path / "jobs")
