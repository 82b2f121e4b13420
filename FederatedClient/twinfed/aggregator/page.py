"""The federation as a page and as Prometheus metrics. The chart is drawn here, so that the page needs no script."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, Template

from .rounds import Federation

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 260, 44, 30  # of the chart, in its own units
COLOURS = ("#1f6f8b", "#c8553d", "#588157", "#8e5aa8", "#b8860b", "#3d5a98", "#7a4b3a", "#2a9d8f")
MEGABYTE = 10**6


def render_page(federation: Federation, site: str | None = None) -> str:
    """The page at ``/``, as HTML, for a site: what it sent itself, and the federation's totals; None for the operator,
    who sees each site's."""
    store, config, now = federation.store, federation.config, federation.store.now()
    rounds = store.rows("SELECT * FROM rounds ORDER BY number DESC")
    updates = store.rows("SELECT * FROM updates ORDER BY received DESC")
    traffic = store.rows("SELECT * FROM traffic")
    sites = federation.accounts.sites()
    refused = [row for row in updates if row["state"] == "refused"]
    return _template().render(
        config=config,
        now=_moment(now),
        current=rounds[0],
        seconds_left=_span(max(0.0, rounds[0]["deadline"] - now)),
        site=site,
        rounds=[_round(row, updates, traffic, site) for row in rounds[:50]],
        sites=[
            {
                **one,
                "seen": "never" if one["seen"] is None else f"{_span(now - one['seen'])} ago",
                "up": sum(row["up"] for row in traffic if row["site"] == one["name"]) / MEGABYTE,
                "down": sum(row["down"] for row in traffic if row["site"] == one["name"]) / MEGABYTE,
            }
            for one in sites
            if site in (None, one["name"])
        ],
        count=len(sites),
        cases=sum(one["samples"] or 0 for one in sites),
        up=sum(row["up"] for row in traffic) / MEGABYTE,
        down=sum(row["down"] for row in traffic) / MEGABYTE,
        refused_count=len(refused),
        refused=[{**row, "received": _moment(row["received"])} for row in refused if site in (None, row["site"])][:50],
        chart=chart(_scores([row for row in updates if site in (None, row["site"])]), config.rounds),
    )


def render_metrics(federation: Federation, site: str | None = None) -> str:
    """The same numbers in Prometheus' text format."""
    store = federation.store
    current = federation.current()
    lines: list[str] = []

    def add(name: str, kind: str, text: str, values: list[tuple[dict[str, Any], float]]) -> None:
        lines.extend([f"# HELP twinfed_{name} {text}", f"# TYPE twinfed_{name} {kind}"])
        for labels, value in values:
            if site is not None and labels.get("site", site) != site:
                continue
            shown = ",".join(f'{key}="{label}"' for key, label in labels.items())
            lines.append(f"twinfed_{name}{{{shown}}} {value:g}" if shown else f"twinfed_{name} {value:g}")

    add("round", "gauge", "The round that is open.", [({}, current["number"])])
    add("round_extended", "gauge", "How often it was extended.", [({}, current["extended"])])
    add("deadline_seconds", "gauge", "Seconds to its deadline.", [({}, current["deadline"] - store.now())])
    counts = store.rows("SELECT state, COALESCE(code, '') AS code, COUNT(*) AS n FROM updates GROUP BY state, code")
    add(
        "updates_total",
        "counter",
        "Updates by what became of them.",
        [({"state": row["state"], "code": row["code"]}, row["n"]) for row in counts],
    )
    traffic = store.rows("SELECT site, SUM(up) AS up, SUM(down) AS down FROM traffic GROUP BY site")
    for key, text in (("up", "Bytes received from a site."), ("down", "Bytes sent to a site.")):
        add(f"bytes_{key}_total", "counter", text, [({"site": row["site"]}, row[key]) for row in traffic])
    seen = [(one["name"], one["seen"]) for one in federation.accounts.sites() if one["seen"] is not None]
    add("site_seen_seconds", "gauge", "When a site was last seen.", [({"site": name}, value) for name, value in seen])
    last = store.row("SELECT weights FROM rounds WHERE weights IS NOT NULL ORDER BY number DESC LIMIT 1")
    weights = json.loads(last["weights"]) if last else {}
    add("weight", "gauge", "A site's weight in the last model.", [({"site": k}, v) for k, v in weights.items()])
    return "\n".join(lines) + "\n"


def chart(scores: dict[str, list[tuple[int, float]]], rounds: int) -> dict[str, Any]:
    """Lines of a chart of scores in [0, 1] against rounds: points, ticks and colours in the chart's own units.

    Args:
        scores: site -> (round, Dice) in the order of the rounds.
        rounds: the last round of the axis.
    """

    def x(number: float) -> float:
        return round(LEFT + (number - 1) * (WIDTH - LEFT - 12) / max(rounds - 1, 1), 1)

    def y(score: float) -> float:
        return round(10 + (1 - score) * (HEIGHT - BOTTOM - 10), 1)

    step = max(1, -(-rounds // 12))
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "bottom": HEIGHT - BOTTOM,
        "x_ticks": [(x(number), number) for number in range(1, rounds + 1, step)],
        "y_ticks": [(y(part / 5), f"{part / 5:.1f}") for part in range(6)],
        "lines": [
            {
                "site": site,
                "colour": COLOURS[index % len(COLOURS)],
                "dashes": "" if index < len(COLOURS) else "5 3",
                "points": [(x(number), y(score), number, f"{score:.3f}") for number, score in values],
            }
            for index, (site, values) in enumerate(sorted(scores.items()))
        ],
    }


def _scores(updates: list[Any]) -> dict[str, list[tuple[int, float]]]:
    """Each site's Dice of the global model as it came in, which is comparable across sites and rounds."""
    scores: dict[str, list[tuple[int, float]]] = {}
    for row in sorted(updates, key=lambda row: row["round"]):
        report = json.loads(row["report"] or "{}")
        score = report.get("dice_before")
        if row["state"] == "accepted" and score is not None:
            scores.setdefault(row["site"], []).append((row["round"], score))
    return scores


def _round(row: Any, updates: list[Any], traffic: list[Any], site: str | None) -> dict[str, Any]:
    number = row["number"]
    weights = json.loads(row["weights"] or "{}")
    accepted = [one for one in updates if one["round"] == number and one["state"] == "accepted"]
    shown = [one for one in sorted(accepted, key=lambda one: one["site"]) if site in (None, one["site"])]
    models = json.loads(row["models"] or "{}")
    if site is not None and len(models) > 1:  # another cluster's may be of one site alone
        models = {one["cluster"]: models[one["cluster"]] for one in shown if one["cluster"] in models}
    return {
        "number": number,
        "state": row["state"],
        "opened": _moment(row["opened"]),
        "published": "" if row["published"] is None else _moment(row["published"]),
        "extended": row["extended"],
        "note": row["note"],
        "models": models,
        "accepted": len(accepted),
        "up": sum(one["up"] for one in traffic if one["round"] == number) / MEGABYTE,
        "down": sum(one["down"] for one in traffic if one["round"] == number) / MEGABYTE,
        "updates": [
            {
                "site": one["site"],
                "weight": weights.get(one["site"]),
                "megabytes": one["bytes"] / MEGABYTE,
                "norm": one["norm"],
                "cluster": one["cluster"],
                **json.loads(one["report"]),
            }
            for one in shown
        ],
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


@lru_cache(maxsize=1)
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template("page.html")
