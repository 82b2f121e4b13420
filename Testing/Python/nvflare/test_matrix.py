"""The matrix of a cross-site evaluation."""

from __future__ import annotations

import math
from typing import Any

import pytest

from twinfed.engines.nvflare.matrix import checked_scores, table


@pytest.mark.parametrize(
    "metrics", [None, {}, [0.5], {"dice": math.nan}, {"dice": 1.5}, {"dice": "good"}, {"hd95": 3.0}, {"dice": -0.1}]
)
def test_scores_that_cannot_be_are_left_out(metrics: Any) -> None:
    assert checked_scores(metrics) == {}


def test_scores_that_can_be_stay(tmp_path: Any) -> None:
    assert checked_scores({"dice": 0.5, "hd95": 1e9, "cases": 4, "name": "x"}) == {"dice": 0.5, "cases": 4.0}


def test_the_table_has_a_row_a_model_and_the_mean_over_cases() -> None:
    matrix = {
        "initial": {"A": {"dice": 0.2, "cases": 3.0}, "B": {"dice": 0.6, "cases": 1.0}},
        "final": {"A": {"dice": 0.8, "cases": 3.0}},
        "nobody": {},
    }

    header, rows = table(matrix)

    assert header == ["model", "A", "B", "all"]
    assert rows == [
        ["initial", "0.200", "0.600", "0.300"],
        ["final", "0.800", "–", "0.800"],
        ["nobody", "–", "–", "–"],
    ]
