"""The federation's commands, where the parts alone do not show what a user meets."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path
from typing import Any

CONFIG = 'name = "trial"\ntask = "brats-glioma"\nnetwork = "tiny"\nmodel = "{model}"\n'


def test_an_aggregator_on_a_free_port_says_which(tmp_path: Path, initial_model: Path, twinfed: Any, until: Any) -> None:
    (tmp_path / "trial.toml").write_text(CONFIG.format(model=initial_model))
    words = ("--folder", tmp_path / "aggregator", "--config", tmp_path / "trial.toml", "--port", "0")

    process, log = twinfed("aggregator", *words, log=tmp_path / "log"), tmp_path / "log"

    found = until(lambda: re.search(r"http://127\.0\.0\.1:[1-9]\d*", log.read_text()))

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"{found[0]}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    until(answers)
    assert process.poll() is None


def test_an_address_that_is_not_this_machines_is_said_in_one_line(tmp_path: Path, twinfed: Any) -> None:
    words = ("--folder", tmp_path / "aggregator", "--host", "192.0.2.1", "--insecure", "--port", "0")

    assert twinfed("aggregator", *words, log=tmp_path / "log").wait(timeout=120) == 2

    (said,) = (tmp_path / "log").read_text().splitlines()
    assert "192.0.2.1: nothing can listen there" in said
