"""A trial before and after NVFlare runs: what is refused at once, what is allowed, and what counts as success."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twinfed.engines.nvflare.exchange import write_text
from twinfed.engines.nvflare.job import ALLOWED, load_job
from twinfed.engines.nvflare.job_federation import JobFederation
from twinfed.engines.nvflare.trial import allow_our_classes, check_finished, try_job
from twinfed.errors import InputError

TOML = 'name = "trial"\ntask = "t"\nnetwork = "n"\nmodel = "initial.safetensors"\n'


@pytest.mark.parametrize(("name", "words"), [("gone", "no such folder"), ("Site A", "letters, digits, - and _")])
def test_folders_that_cannot_be_sites_are_refused_before_anything_starts(
    model: Path, tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "federation.toml").write_text(TOML, encoding="utf-8")
    (tmp_path / "Site A").mkdir()

    with pytest.raises(InputError, match=words):
        try_job(load_job(tmp_path / "federation.toml"), {name: tmp_path / name}, tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_a_path_with_spaces_which_nvflare_would_cut_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "federation.toml").write_text(TOML, encoding="utf-8")

    with pytest.raises(InputError, match="NVFlare takes no path with spaces"):
        try_job(load_job(tmp_path / "federation.toml"), {}, tmp_path / "a trial")

    assert not (tmp_path / "a trial").exists()


def test_our_classes_are_allowed_beside_nvflares(tmp_path: Path) -> None:
    default = tmp_path / "resources.json.default"
    default.write_text(json.dumps({"format_version": 2, "class_allow_list": ["nvflare.one"]}), encoding="utf-8")

    allow_our_classes(default)

    written = json.loads((tmp_path / "resources.json").read_text())
    assert written == {"format_version": 2, "class_allow_list": ["nvflare.one", ALLOWED]}


def test_a_job_that_nvflare_calls_a_success_but_came_to_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a line\nRoundFailed: Round 1: 0 of 3 updates were accepted\n", encoding="utf-8")

    with pytest.raises(InputError, match=r"failed after 0 of \? rounds. RoundFailed: Round 1: 0 of 3"):
        check_finished(tmp_path, tmp_path / "log", ended_well=True)


def test_success_is_that_all_rounds_are_published(
    begun: Callable[..., JobFederation], change: Callable[[int, str], Any], tmp_path: Path
) -> None:
    federation = begun("fedavg", rounds=2)
    for number in (1, 2):
        told = federation.message()["instructions"]
        for site in ("SITE-01", "SITE-02"):
            said = {"form": "differences", "federation": "trial", "round": number, "base": told["base"]}
            federation.take(site, change(number, site), write_text({**said, "report": {"samples": 5}}))
        federation.close_round()
        if number == 1:
            with pytest.raises(InputError, match="failed after 1 of 2 rounds"):
                check_finished(tmp_path, tmp_path / "log", ended_well=True)

    check_finished(tmp_path, tmp_path / "log", ended_well=True)
    with pytest.raises(InputError, match="failed after 2 of 2 rounds"):
        check_finished(tmp_path, tmp_path / "log", ended_well=False)
