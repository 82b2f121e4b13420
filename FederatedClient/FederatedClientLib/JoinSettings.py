"""How this computer takes part in a federation: kept in the site's folder, never in the scene, which is shared."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import qt

from twinfed.client.connection import Server
from twinseg.home import data_folder
from twinseg.volumes import write_atomically

FILE, TOKEN = "join.json", "token"
FOLDER_SETTING = "FederatedClient/Folder"


@dataclass(frozen=True)
class JoinSettings:
    """The words of `twinfed join`.

    address: of the aggregator; authority, certificate, key: PEM files; cases: a folder of labelled cases, "" for the
    case queue; device: as the worker names it; hours: such as 20-6, "" for all; goesOn: after Slicer's end;
    longestPoll: seconds between two questions; learningRate: highest of each training, 0 for the default.
    """

    address: str = ""
    authority: str = ""
    certificate: str = ""
    key: str = ""
    cases: str = ""
    device: str = "auto"
    hours: str = ""
    goesOn: bool = False
    longestPoll: float = 60.0
    learningRate: float = 0.0

    @classmethod
    def load(cls, folder: Path) -> JoinSettings:
        """Those of a site's folder; what is not there, or damaged, is as in a new one."""
        try:
            content = json.loads((folder / FILE).read_text(encoding="utf-8"))
            known = {field.name: content[field.name] for field in fields(cls) if field.name in content}
        except (OSError, ValueError, TypeError):
            return cls()
        return cls(**{name: value for name, value in known.items() if type(value) is type(getattr(cls, name))})

    def save(self, folder: Path) -> None:
        """Raises InputError where the folder cannot be written."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(folder / FILE, (json.dumps(asdict(self), indent=1) + "\n").encode())

    def server(self, folder: Path) -> Server:
        """The aggregator, with the folder's token. Raises InputError for what cannot be right."""
        authority, certificate, key = (
            Path(name) if name else None for name in (self.authority, self.certificate, self.key)
        )
        return Server(self.address, readToken(folder), authority, certificate, key)

    def words(self, folder: Path) -> list[str]:
        """The command that takes part."""
        words = ["join", self.address, "--token-file", str(folder / TOKEN), "--folder", str(folder)]
        words += ["--device", self.device, "--longest-poll", str(self.longestPoll)]
        given = {"data": self.cases, "hours": self.hours, "authority": self.authority}
        given |= {"certificate": self.certificate, "key": self.key}
        given["learning-rate"] = str(self.learningRate or "")
        given["parent"] = "" if self.goesOn else str(os.getpid())
        return words + [word for name, value in given.items() if value for word in (f"--{name}", value)]


def readToken(folder: Path) -> str:
    """The site's token, "" where there is none."""
    try:
        return (folder / TOKEN).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def writeToken(folder: Path, token: str) -> None:
    """Keep the token where only this user may read it. Raises InputError where the folder cannot be written."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / TOKEN).touch(mode=0o600)
    (folder / TOKEN).chmod(0o600)
    (folder / TOKEN).write_text(f"{token.strip()}\n", encoding="utf-8")


def chosenFolder() -> Path:
    """The site's folder that was used last, or a new site's."""
    return Path(qt.QSettings().value(FOLDER_SETTING) or data_folder() / "federation/site")


def chooseFolder(folder: Path) -> None:
    """Use this folder from now on."""
    qt.QSettings().setValue(FOLDER_SETTING, str(folder))
