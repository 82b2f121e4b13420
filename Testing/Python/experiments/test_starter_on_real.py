"""The starter on real scans: what is scored, what is kept, what the page and the model card say of it."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import starter_on_real

from twinseg.cases import find_cases, load_case
from twinseg.errors import InputError
from twinseg.model_file import load_model
from twinseg.phantom import write_cohort
from twinseg.segmentation import load_network
from twinseg.tasks import load_task

HOUSE = Path(__file__).resolve().parents[3]
SHIPPED = starter_on_real.SHIPPED


def row(site: str, number: int, truth_ml: float, dice: float) -> dict[str, Any]:
    each = {way: {"dice": dice, "false_ml": 2.0} for way in starter_on_real.WAYS}
    return {"site": site, "number": number, "sequences": ["flair"], "truth_ml": truth_ml, **each}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_flat_cohort: Callable[[Path], None]) -> Path:
    """Two patients at two sites whose labels are those of lgg/, and one of the BraTS kind."""
    folder = tmp_path_factory.mktemp("data with a space")
    write_flat_cohort(folder / "lgg")
    write_cohort(folder / "brats-gli", sites=1, patients=1, size=32, spacing=5.0, seed=4)
    return folder


def options(data: Path, output: Path, **given: Any) -> argparse.Namespace:
    chosen = {"model": SHIPPED, "data": data, "output": output, "pictures": None, "failures": None, "device": "cpu"}
    return argparse.Namespace(**{**chosen, **given})


@pytest.fixture(scope="module")
def output(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    starter_on_real.run(options(data, folder))
    return folder


def test_every_patient_is_scored_in_both_ways(output: Path) -> None:
    content = json.loads((output / "starter.json").read_text(encoding="utf-8"))

    assert [(one["site"], one["number"]) for one in content["patients"]] in (
        [("SITE-01", 1), ("SITE-02", 1)],
        [("SITE-02", 1), ("SITE-01", 1)],
    )
    for one in content["patients"]:
        assert one["truth_ml"] > 0
        assert all(0 <= one[way]["dice"] <= 1 <= 1 + one[way]["false_ml"] for way in starter_on_real.WAYS)
    assert list(content["brats"]) == ["WT", "TC", "ET"]
    assert content["model"] == load_model(SHIPPED).card.hash


def test_nothing_tells_a_path_or_a_patients_name(data: Path, output: Path) -> None:
    written = "".join(file.read_text(encoding="utf-8") for file in output.iterdir())

    assert str(data.parent) not in written
    assert str(HOUSE) not in written
    assert not [case.patient for case in find_cases(data / "lgg", load_task("lgg-flair")) if case.patient in written]


def test_a_model_is_scored_once(data: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads((output / "starter.json").read_text(encoding="utf-8"))
    stopped = {**content, "patients": content["patients"][:1]}
    (tmp_path / "starter.json").write_text(json.dumps(stopped), encoding="utf-8")
    scored, seen = starter_on_real.scored, []
    monkeypatch.setattr(starter_on_real, "scored", lambda *given: seen.append(1) or scored(*given))

    starter_on_real.run(options(data, tmp_path, failures="None of the two is found."))

    assert len(seen) == 1
    gone_on = json.loads((tmp_path / "starter.json").read_text(encoding="utf-8"))
    assert gone_on["patients"] == content["patients"]
    assert gone_on["summary"] == content["summary"]
    assert "None of the two is found." in (tmp_path / "starter.md").read_text(encoding="utf-8")


def test_another_model_is_scored_anew(output: Path, tmp_path: Path) -> None:
    content = json.loads((output / "starter.json").read_text(encoding="utf-8"))
    file, model = tmp_path / "starter.json", load_network(SHIPPED)

    assert starter_on_real.kept(file, model) is None
    file.write_text(json.dumps({**content, "model": "another"}), encoding="utf-8")
    assert starter_on_real.kept(file, model) is None
    for damaged in ("{", "[]", f'{{"model": "{model.hash}"}}'):
        file.write_text(damaged, encoding="utf-8")
        with pytest.raises(InputError, match="remove it"):
            starter_on_real.kept(file, model)


def test_flair_alone_is_flair_alone(data: Path) -> None:
    case = load_case(find_cases(data / "brats-gli", load_task("brats-glioma"))[0], load_task("brats-glioma"))

    alone = starter_on_real.seen_in(starter_on_real.FLAIR, case)

    assert list(alone.images) == ["flair"]
    assert alone.reference is case.reference
    assert starter_on_real.seen_in(starter_on_real.ALL, case) is case


def test_a_summary_counts_the_missed() -> None:
    rows = [row("A", n, 10.0 * n, score) for n, score in enumerate((0.05, 0.5, 0.9, 0.95), start=1)]

    found = starter_on_real.summary(rows, starter_on_real.ALL)

    assert found["dice_mean"] == pytest.approx(0.6)
    assert found["dice_median"] == pytest.approx(0.7)
    assert found["missed_share"] == 0.25
    assert found["dice_mean_95"][0] < 0.6 < found["dice_mean_95"][1]


def test_groups_are_sites_and_thirds() -> None:
    rows = [row("AB"[n % 2], n, float(n), 0.5) for n in range(9)]

    found = starter_on_real.groups(rows)

    assert {name: len(some) for name, some in found.items()} == {
        "all": 9,
        "A": 5,
        "B": 4,
        "smallest third, 0 to 2 mL": 3,
        "middle third, 3 to 5 mL": 3,
        "largest third, 6 to 8 mL": 3,
    }


def test_the_worst_come_first_and_the_larger_of_equals() -> None:
    rows = [row("A", 1, 5.0, 0.0), row("A", 2, 50.0, 0.0), row("A", 3, 5.0, 0.9), row("A", 4, 5.0, 0.2)]

    assert starter_on_real.worst(rows, starter_on_real.ALL) == [1, 0, 3, 2]


def test_the_pictures_are_written_only_where_asked(data: Path, output: Path, tmp_path: Path) -> None:
    from PIL import Image

    starter_on_real.run(options(data, output, pictures=tmp_path / "seen"))

    assert {file.name for file in output.iterdir()} == {"starter.json", "starter.md"}
    for name in ("starter-failures.png", "starter-failures-flair.png"):
        assert Image.open(tmp_path / "seen" / name).size[0] > 800


def test_missing_data_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder") as raised:
        starter_on_real.run(options(tmp_path / "nowhere", tmp_path / "results"))

    assert "\n" not in str(raised.value)
    assert not (tmp_path / "results").exists()


# --- the card of the model that ships --------------------------------------------------------------------------------

CARD = SHIPPED.with_suffix(".md")
SCORES = HOUSE / "Docs/results/starter.json"


def test_the_card_is_of_the_model_that_ships() -> None:
    shipped = load_model(SHIPPED).card
    card, scores = CARD.read_text(encoding="utf-8"), json.loads(SCORES.read_text(encoding="utf-8"))

    assert shipped.hash == scores["model"], "a new model: score it by starter_on_real.py"
    assert shipped.hash in card, "a new model wants a new card"
    for fact in (shipped.provenance["parent"], shipped.provenance["commit"]):
        assert fact is None or fact in card


def test_the_cards_table_is_what_was_measured() -> None:
    card, scores = CARD.read_text(encoding="utf-8"), json.loads(SCORES.read_text(encoding="utf-8"))

    assert len(scores["patients"]) == 93
    assert Counter(one["site"] for one in scores["patients"]) == {"CS": 12, "DU": 41, "FG": 10, "HT": 30}
    assert "\n".join(starter_on_real.table(scores)) in card


def test_every_number_of_the_card_stands_in_the_scores_or_in_the_model() -> None:
    card, scores = CARD.read_text(encoding="utf-8"), json.loads(SCORES.read_text(encoding="utf-8"))
    known = starter_on_real.page(scores) + json.dumps(load_model(SHIPPED).card.provenance)

    prose = re.sub(r"Apache-2\.0", "", card)
    unknown = [number for number in re.findall(r"\d+\.\d+", prose) if number not in known]

    assert not unknown
    assert (HOUSE / "Docs/results/starter.md").read_text(encoding="utf-8") == starter_on_real.page(scores)
