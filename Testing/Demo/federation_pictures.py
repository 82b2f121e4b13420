"""Dice and bytes by round, from what the sites' processes wrote down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from twinseg.pictures import png

Curve = dict[int, dict[str, float]]
"""By rounds done: Dice of the "global" model and of the site "twin"."""


def dice_by_round(state: Mapping[str, Any]) -> Curve:
    """Of a site, on its validation cases. Round 0 is the model that the federation began with."""
    found: Curve = {}

    def note(number: int, kind: str, dice: float | None) -> None:
        if dice is not None:
            found.setdefault(number, {})[kind] = dice

    for row in state["rounds"]:
        note(row["number"] - 1, "global", (row["report"] or {}).get("dice_before"))
    for row in state["twins"]:
        note(row["round"], "global", row["global_dice"])
        note(row["round"], "twin", row["twin_dice"])
    return dict(sorted(found.items()))


def bytes_by_round(states: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, int]]:
    """Bytes that went "up" and "down", of all sites together."""
    found: dict[int, dict[str, int]] = {}
    for state in states:
        for row in state["traffic"]:
            total = found.setdefault(max(1, row["round"]), {"up": 0, "down": 0})
            for way in total:
                total[way] += row[way]
    return dict(sorted(found.items()))


def rounds_picture(curves: Mapping[str, Curve], traffic: Mapping[int, Mapping[str, int]]) -> bytes:
    """PNG: a curve a site, with its twin dotted, and a pair of bars a round."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    for position, (site, curve) in enumerate(curves.items()):
        for kind, style, title in (("global", "-o", site), ("twin", ":s", f"{site}, its twin")):
            rounds = [number for number, dice in curve.items() if kind in dice]
            dice = [curve[number][kind] for number in rounds]
            left.plot(rounds, dice, style, color=f"C{position}", markersize=4, linewidth=1.5, label=title)
    left.set(xlabel="rounds done", ylabel="mean Dice", title="On each site's validation cases")
    left.set_ylim(bottom=0)
    left.legend(frameon=False, fontsize=8)
    for shift, (way, title) in enumerate((("up", "sent"), ("down", "received"))):
        places = [number + 0.38 * (shift - 0.5) for number in traffic]
        right.bar(places, [row[way] / 1e6 for row in traffic.values()], width=0.36, label=title)
    right.set(xlabel="round", ylabel="MB, all sites", title="Bytes")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return png(figure)
