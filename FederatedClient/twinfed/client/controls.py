"""How a site process is told what to do while it runs: by files in its folder, which any program can make.

`stop` ends it, `pause` lets it stand still as long as the file is there, and without `consent.json` nothing is trained
or sent. Besides, it keeps to the chosen hours and stands still while the viewer computes.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from twinfed.errors import InputError

STOP, PAUSE, CONSENT = "stop", "pause", "consent.json"
BUSY = "busy"
"""Folder in the data folder: a process that needs the GPU has a file in it, named by its process number."""
NVFLARE = "NVFlare"
"""Stands for the address in a consent where NVFlare's start-up kit holds that."""
STATEMENT = """\
What is sent to the aggregator: the change of the model's weights after training here; the number of training cases, and
for each label its share of labelled voxels; mean Dice and Hausdorff distance on this site's validation cases, before
and after training; the site's token. What is never sent: images, label maps, names, numbers or dates of patients, file
names. Who can learn from it: the aggregator's operator sees this site's own change. Other hospitals get the models that
are made of all changes; where fewer than three sites send in a round, or share a model (strategies clustered and
transfer), they can work out this site's own change from them. Consent can be withdrawn at any time; what was sent
before stays in the models."""
OWN_MODEL = "Besides: other hospitals may get this site's own model, where the federation's strategy is transfer."
"""What is to be agreed to besides the statement, as that strategy hands a model on from site to site."""


@dataclass(frozen=True)
class Hours:
    """Hours of the day, by the machine's clock, from `first` until `last`; past midnight if that is smaller."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> Hours:
        """Read "20-6". Raises InputError."""
        match = re.fullmatch(r"\s*(\d{1,2})\s*-\s*(\d{1,2})\s*", text)
        if not match or int(match[1]) > 23 or int(match[2]) > 24 or int(match[1]) == int(match[2]) % 24:
            raise InputError(f"{text!r}: these are no hours. Give them as 20-6, from eight in the evening until six.")
        return cls(int(match[1]), int(match[2]) % 24)

    def include(self, hour: int) -> bool:
        """Whether the hour that begins at `hour` is one of them."""
        if self.first < self.last:
            return self.first <= hour < self.last
        return hour >= self.first or hour < self.last


def tell(line: str) -> None:
    """Print a line for the terminal, or the file that stands for it. That the disk is full, or the terminal is closed,
    is no reason to stop."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


@dataclass(frozen=True)
class Consent:
    """What was agreed to: address: of the aggregator; when: in ISO 8601; shares_local_model: `OWN_MODEL`, too."""

    address: str
    when: str
    shares_local_model: bool

    def holds_for(self, address: str) -> bool:
        """Whether it is for this aggregator: it holds for one address."""
        return self.address == address.rstrip("/")


def read_consent(folder: Path) -> Consent | None:
    """The consent of a site's folder; None where there is none, or one that cannot be read."""
    try:
        content = json.loads((folder / CONSENT).read_text(encoding="utf-8"))
        return Consent(str(content["address"]), str(content["when"]), content.get("share_local_model") is True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def give_consent(folder: Path, address: str, how: str, *, share_local_model: bool = False) -> None:
    """Note that the statement was agreed to for an aggregator, when and how, unless that is noted; with
    `share_local_model` `OWN_MODEL`, too. One that was for less, or for another aggregator, is kept as a withdrawn one.
    Raises InputError for no room."""
    consent = read_consent(folder)
    if consent is not None and consent.holds_for(address) and consent.shares_local_model >= share_local_model:
        return
    content = {
        "statement": f"{STATEMENT}\n{OWN_MODEL}" if share_local_model else STATEMENT,
        "address": address.rstrip("/"),
        "share_local_model": share_local_model,
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "how": how,
    }
    text = json.dumps(content, indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        withdraw_consent(folder)
        temporary = folder / f".{CONSENT}"
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(folder / CONSENT)
    except OSError as error:
        raise InputError(f"{folder}: it cannot be written ({error.strerror}). Name another folder.") from error


def withdraw_consent(folder: Path) -> None:
    """From the next step, or piece of an upload, on nothing is trained or sent. The record of the consent is kept under
    another name."""
    if (folder / CONSENT).exists():
        (folder / CONSENT).replace(folder / f"withdrawn-{time.time():.3f}-{CONSENT}")


def was_withdrawn(folder: Path) -> bool:
    """Whether there is no consent any more."""
    return not (folder / CONSENT).exists() and any(folder.glob(f"withdrawn-*-{CONSENT}"))


def why_wait(folder: Path, address: str, data_folder: Path, hours: Hours | None) -> str | None:
    """Why the process that takes part at this address must stand still now, in words; None if it may go on."""
    consent = read_consent(folder)
    if consent is None or not consent.holds_for(address):
        return "without consent"
    if (folder / PAUSE).exists():
        return "paused"
    if hours is not None and not hours.include(time.localtime().tm_hour):
        return f"waiting for {hours.first}:00"
    if viewer_computes(data_folder):
        return "waiting for the viewer"
    return None


def viewer_computes(data_folder: Path) -> bool:
    """Whether a living process has its mark in the data folder's `BUSY` folder.

    A mark that a killed process left is older than the process that has its number now, if there is any.
    """
    try:
        marks = list((data_folder / BUSY).iterdir())
    except OSError:
        return False
    for mark in marks:
        try:
            if psutil.Process(int(mark.name)).create_time() <= mark.stat().st_mtime + 2:
                return True
        except (ValueError, OSError, psutil.Error):
            continue
    return False
