"""The benchmark of runtimes: what it compares is checked at once, a quick run (slow) end to end."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "Benchmarks/runtimes.py"
REGIONS = {"WT": (1, 2, 3), "ET": (3,)}


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return importlib.import_module("runtimes")


def head(edema: int, enhancing: int) -> np.ndarray:
    """Labels of a head of 100 voxels, of which the first are oedema and the last are enhancing tumour."""
    labels = np.zeros((100, 1, 1), np.uint8)
    labels[:edema], labels[100 - enhancing :] = 2, 3
    return labels


def test_the_change_in_dice_is_that_of_the_region_that_changes_most(benchmark: ModuleType) -> None:
    truth, float32, labels = head(40, 10), head(40, 10), head(40, 5)
    machine, case = {"matrix_product_gflops": {"bfloat16": 400.0}}, {"gflop": 100.0, "regions": REGIONS}
    row = benchmark.Row("a runtime", "bfloat16", seconds=0.5)

    row = benchmark.compared(row, case, machine, labels, float32, truth)

    assert row.dice_to_truth == pytest.approx({"WT": 90 / 95, "ET": 10 / 15})
    assert row.dice_change == pytest.approx(10 / 15 - 1)
    assert row.peak_share == pytest.approx(0.5)


def test_without_a_truth_the_labels_are_compared_with_those_of_float32_alone(benchmark: ModuleType) -> None:
    machine, case = {"matrix_product_gflops": {"bfloat16": 400.0}}, {"gflop": 100.0, "regions": REGIONS}
    row = benchmark.Row("a runtime", "bfloat16", seconds=0.5)

    row = benchmark.compared(row, case, machine, head(40, 5), head(40, 10), None)

    assert row.dice_to_float32 == pytest.approx({"WT": 90 / 95, "ET": 10 / 15})
    assert (row.dice_to_truth, row.dice_change) == ({}, None)


def test_verdicts_name_what_rounding_costs_and_what_is_faster(benchmark: ModuleType) -> None:
    ours = benchmark.Row(benchmark.inference.OURS, "its own", seconds=2.0, dice_change=-0.003)
    slower, faster = (replace(ours, method=name, seconds=s) for name, s in (("slow", 3.0), ("fast", 1.0)))

    lines = benchmark.verdicts([slower, ours, replace(ours, method="absent", seconds=None), faster])

    assert lines[0] == "Dice change of ours at most 0.002: no (-0.0030)"
    assert lines[1] == "nothing faster than ours: no (fast, its own: 2.00x)"


def test_a_runtime_that_is_not_installed_is_a_row_that_says_so(benchmark: ModuleType, tmp_path: Path) -> None:
    method = replace(benchmark.METHODS[-1], needs="a_package_that_nobody_made")
    job = benchmark.Job(tmp_path / "model", tmp_path / "image", tmp_path / "network", (1.0, 1.0, 1.0), "cpu")

    row, labels = benchmark.measure_or_say_why_not(method, job, {"device": "the CPU"}, True)

    assert labels is None
    assert row.seconds is None
    assert row.note == "a_package_that_nobody_made is not installed"


def test_the_network_that_is_exported_computes_what_ours_does(benchmark: ModuleType) -> None:
    import torch
    from runtime_methods import plain_network  # which lies beside the script

    from twinseg.segmentation import load_network, starter_model

    image = torch.rand(1, 4, 32, 48, 32, generator=torch.Generator().manual_seed(0))
    model = starter_model("brats-glioma")

    with torch.inference_mode():
        ours, plain = load_network(model).network(image), plain_network(model)(image)

    assert torch.allclose(plain, ours, atol=1e-3)
    assert ours.abs().max() > 1  # the network says something here


@pytest.mark.parametrize("options", [("--model", "HERE/none.safetensors"), ("--spacing", "0"), ("--case", "HERE/none")])
def test_an_option_that_cannot_be_is_told_in_one_line(
    benchmark: ModuleType, options: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option, value = options

    assert benchmark.main(["--quick", "--device", "cpu", option, value.replace("HERE", str(tmp_path))]) == 2

    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_a_quick_run_measures_torch_and_ours(tmp_path: Path) -> None:
    written = tmp_path / "measured.json"

    ended = subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--device", "cpu", "--json", written],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    measured = json.loads(written.read_text(encoding="utf-8"))
    rows = {(row["method"], row["precision"]): row for row in measured["rows"]}
    float32, ours = rows["torch", "float32"], rows["TwinSegSlicer", "its own"]
    assert all(row["seconds"] > 0 and row["peak_share"] > 0 and row["memory_gb"] > 0.1 for row in (float32, ours))
    assert set(float32["dice_to_float32"].values()) == {1.0}
    assert min(ours["dice_to_float32"].values()) > 0.99
    assert all(row["seconds"] or row["note"] for row in measured["rows"])
    assert len(measured["verdicts"]) == 2
    assert all(line in ended.stdout for line in measured["verdicts"])
