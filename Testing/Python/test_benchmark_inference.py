"""The inference benchmark: its counts and verdicts are checked at once, its runs (slow) end to end."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "Benchmarks/inference.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return importlib.import_module("inference")


@pytest.mark.parametrize("shape", [(40, 96, 97), (96, 144, 144), (150, 100, 96)])
def test_windows_are_counted_as_monai_takes_them(benchmark: ModuleType, shape: tuple[int, int, int]) -> None:
    import torch
    from monai.inferers import sliding_window_inference

    taken = []

    def network(window: torch.Tensor) -> torch.Tensor:
        taken.append(window.shape)
        return window

    sliding_window_inference(torch.zeros(1, 1, *shape), (96, 96, 96), 1, network, overlap=0.5)

    assert benchmark.count_windows(shape) == len(taken)


def test_the_whole_brats_volume_takes_48_windows(benchmark: ModuleType) -> None:
    assert benchmark.count_windows((240, 240, 155)) == 4 * 4 * 3


def test_operations_of_a_convolution_are_two_for_each_weight_and_voxel(benchmark: ModuleType) -> None:
    from torch import nn

    gflop = benchmark.count_gflop(lambda: nn.Conv3d(4, 16, 3, padding=1), (1, 4, 32, 32, 32))

    assert gflop == pytest.approx(2 * 4 * 16 * 27 * 32**3 / 1e9)


def test_a_verdict_takes_the_faster_row_of_a_peer(benchmark: ModuleType) -> None:
    ours = benchmark.Measurement("TwinSegSlicer", "bfloat16", 1, 1.0, 2.0, 3, 1, 1, 3.0, "")
    others = [replace(ours, method=peer, seconds=30.0) for peer in benchmark.PEERS]
    swin = [replace(ours, method="SwinUNETR", seconds=seconds) for seconds in (90.0, 38.0)]

    lines = benchmark.verdicts([ours, *others, *swin])

    assert lines[0] == "at least 20x faster than SwinUNETR: no (15.0x, 45.0x, 19.0x)"
    assert lines[1].startswith("faster than all four: yes")
    assert lines[2] == "peak memory under 4 GB: yes (3.00 GB)"


def test_a_peer_that_failed_leaves_its_verdicts_open(benchmark: ModuleType) -> None:
    ours = benchmark.Measurement("TwinSegSlicer", "bfloat16", 1, 1.0, 2.0, 3, 1, 1, 5.0, "")

    lines = benchmark.verdicts([ours, replace(ours, method="UNETR", seconds=1.0)])

    assert [line.endswith("not measured") for line in lines] == [True, True, False]
    assert lines[2].startswith("peak memory under 4 GB: no")


def test_a_case_folder_that_is_not_there_is_told_in_one_line(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "no such case"

    assert benchmark.main(["--case", str(missing)]) == 2

    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"{missing}: ")


@pytest.mark.slow
def test_a_folder_without_images_is_told_in_one_line(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, SCRIPT, "--case", tmp_path], capture_output=True, text=True, check=False)

    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert str(tmp_path) in ended.stderr


@pytest.mark.slow
def test_a_quick_run_measures_ours_and_all_four_peers(tmp_path: Path) -> None:
    written = tmp_path / "measured.json"
    started = time.monotonic()

    ended = subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--device", "cpu", "--json", written],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - started < 120  # 40 on two idle cores; a test machine may be busy
    measured = json.loads(written.read_text(encoding="utf-8"))
    assert {row["method"] for row in measured["rows"]} == {
        "TwinSegSlicer",
        "SegResNet",
        "UNETR",
        "DynUNet",
        "SwinUNETR",
    }
    assert all(row["seconds"] > 0 and row["gflop"] > 0 and row["memory_gb"] > 0.1 for row in measured["rows"])
    assert len(measured["verdicts"]) == 3
    assert all(line in ended.stdout for line in measured["verdicts"])
