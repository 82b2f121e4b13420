"""Which model is offered first, and going back to an earlier one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from twinfed.client.site_state import SiteState, read_state
from twinfed.client.site_twin import choose, choose_newest, first_offer
from twinfed.errors import InputError
from twinseg.segmentation import load_network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A site with twins of three rounds: better, worse, and none."""
    state = SiteState(tmp_path)
    for number, twin, dice in ((1, "t1", 0.8), (2, "t2", 0.6), (3, None, None)):
        state.add_twin(f"model-{number}", number, f"g{number}", twin, 0.7, dice)
    state.close()
    return tmp_path


def test_the_better_one_of_the_newest_round_is_offered(tmp_path: Path) -> None:
    assert first_offer(tmp_path) is None
    offers = []
    for number, global_dice, twin_dice in ((1, 0.7, 0.8), (2, 0.7, 0.6), (3, 0.7, 0.7), (4, None, None)):
        state = SiteState(tmp_path)
        state.add_twin(f"m{number}", number, "global", None if twin_dice is None else "twin", global_dice, twin_dice)
        state.close()
        offers.append(first_offer(tmp_path))

    assert [offer.kind for offer in offers if offer] == ["twin", "global", "global", "global"]
    assert offers[0] is not None
    assert "twin 0.800, global 0.700" in offers[0].words
    assert offers[3] is not None
    assert "not measured" in offers[3].words


def test_an_earlier_one_can_be_gone_back_to_and_a_worse_one_is_never_silent(folder: Path) -> None:
    newest = first_offer(folder)
    worse = choose(folder, 2, "twin")
    earlier = choose(folder, 1, "twin")

    assert newest is not None
    assert (newest.kind, newest.round) == ("global", 3)
    assert "not better than the global model" in worse.words
    assert (earlier.round, earlier.chosen, earlier.file.name) == (1, True, "t1")
    assert "not better" not in earlier.words
    assert first_offer(folder) == earlier
    choose_newest(folder)
    assert first_offer(folder) == newest
    for number, kind in ((3, "twin"), (9, "global"), (1, "other")):
        with pytest.raises(InputError, match="There is no"):
            choose(folder, number, kind)


def test_every_published_model_and_its_twin_are_model_files(
    cohort: Path, aggregator: Any, join: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinfed.client.site_twin.KEPT", 1)
    there = aggregator(sites=("SITE-01",), rounds=2)
    site = join(there.url, there.tokens["SITE-01"], "SITE-01", cohort / "SITE-01")
    until(lambda: not site.thread.is_alive())

    twins = read_state(site.folder)["twins"]
    assert [row["round"] for row in twins] == [2]  # of those of round 1 the files are gone, too
    assert sorted(path.name for path in (site.folder / "twins").iterdir()) == [
        "round-0002-global.safetensors",
        "round-0002-twin.safetensors",
    ]
    for path in (site.folder / "twins").iterdir():
        assert load_network(path).task.name == "brats-glioma"
    offer = first_offer(site.folder)
    assert offer is not None
    assert offer.file.is_file()
    assert offer.global_dice is not None
    assert offer.twin_dice is not None
    assert (offer.kind == "twin") == (offer.twin_dice > offer.global_dice)
