"""How a site takes part."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from twinfed.client.case_source import CaseSource
from twinfed.client.connection import Server
from twinfed.client.controls import Hours
from twinseg.home import data_folder


@dataclass(frozen=True, kw_only=True)
class SiteSettings:
    """The settings of a site process.

    Args:
        server: the aggregator.
        folder: the site's own: state, models, updates.
        source: its cases.
        device: where it trains: auto, cpu, cuda, …
        hours: in which it works; None for all.
        task: the task that is expected, if the user named one.
        longest_poll: seconds between two questions at most.
        learning_rate: highest of each local training; None for the default.
        twins: whether site twins are made.
        low_priority: let every other program of the machine go first.
        data_folder: where the viewer leaves its marks.
    """

    server: Server
    folder: Path
    source: CaseSource
    device: str = "auto"
    hours: Hours | None = None
    task: str | None = None
    longest_poll: float = 60.0
    learning_rate: float | None = None
    twins: bool = True
    low_priority: bool = True
    data_folder: Path = field(default_factory=data_folder)
