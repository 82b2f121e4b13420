"""Numbers are told with the machine that they were made on."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from twinseg.machine import processor

CORE = """processor\t: {number}
model name\t: AMD EPYC
flags\t\t: fpu sse sse2 {flags}
bogomips\t: 5890.35

"""


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("avx avx2", "AMD EPYC, AVX2"),
        ("avx2 avx512f avx512_bf16 avx512vl", "AMD EPYC, AVX-512 with bfloat16"),
        ("avx avx2x", "AMD EPYC"),
    ],
)
def test_two_processors_of_one_name_are_told_apart_by_their_vector_units(tmp_path: Path, flags: str, told: str) -> None:
    facts = tmp_path / "cpuinfo"
    facts.write_text("".join(CORE.format(number=number, flags=flags) for number in range(2)))

    assert processor(facts) == told


def test_a_system_that_tells_nothing_is_told_by_its_architecture(tmp_path: Path) -> None:
    assert processor(tmp_path / "none") == (platform.processor() or platform.machine())
