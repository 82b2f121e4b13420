"""Slicer's panel shows a site that NVFlare runs, from the same state."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from twinfed.client.site_state import SENT, SiteState
from twinfed.engines.nvflare.site_part import ENGINE
from twinfed.wire import Report

MODULE_FILE = Path(__file__).parents[3] / "FederatedClient/FederatedClient.py"


@pytest.fixture
def module(slicer_host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module's widget, opened as the user would."""
    import qt

    monkeypatch.setenv("TWINSEG_HOME", str(tmp_path / "home"))
    qt.QSettings().remove("FederatedClient/Folder")
    widget = slicer_host.open(MODULE_FILE)
    yield widget
    widget.logic.federation.watch.stop()


def test_a_site_under_nvflare_is_shown_with_its_rounds_and_not_started(
    module: Any,
    slicer_host: Any,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    state = SiteState(folder)
    facts = {"federation": "gliomas", "task": "brats-glioma", "round": 2, "rounds": 4, "pid": os.getpid()}
    state.set(engine=ENGINE, started=time.time(), phase="waiting for others", **facts)
    state.begin(1, "a" * 64)
    state.made(1, "a" * 64, "b" * 64, 1000, Report(samples=3, dice_before=0.4, dice_after=0.6))
    state.end(1, "a" * 64, SENT)
    state.close()

    module.logic.federation.setFolder(folder)
    end = time.monotonic() + 60
    while "NVFlare" not in module.ui.roundLabel.text and time.monotonic() < end:
        slicer_host.process_events(0.1)

    assert module.ui.roundLabel.text == "2 of 4, gliomas, task brats-glioma, under NVFlare"
    assert module.ui.stateLabel.text == "waiting for others"
    assert not module.ui.startButton.enabled
    assert module.ui.stopButton.enabled
    assert [row["report"]["dice_after"] for row in module.logic.federation.watch.snapshot.rounds] == [0.6]
