"""The aggregation benchmark runs end to end, and its memory is what is promised."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "Benchmarks/aggregation.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc")
def test_memory_does_not_grow_with_the_sites(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, "--quick", "--json", tmp_path / "result.json"], check=True)

    result = json.loads((tmp_path / "result.json").read_text())

    rows = {(row["engine"], row["updates"]): row for row in result["aggregation"]}
    few, many = rows["twinfed fedavg", 8], rows["twinfed fedavg", 64]
    assert many["peak_bytes"] < few["peak_bytes"] + 8e6  # what 56 more headers take
    assert many["peak_bytes"] < 1.1 * 4 * 20e6
    assert result["http"]["share"] > 0
