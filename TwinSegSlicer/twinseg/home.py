"""The data folder: where this machine keeps models, cases, twins and the user's own tasks."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def data_folder() -> Path:
    """``TWINSEG_HOME`` if set, else the program's folder among the platform's user data. It is not created here."""
    if given := os.environ.get("TWINSEG_HOME"):
        return Path(given).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "TwinSeg"
    if sys.platform == "darwin":
        return Path.home() / "Library/Application Support/TwinSeg"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "twinseg"


def resource_folders(kind: str) -> list[Path]:
    """Where files of a kind ("Tasks", "Models") are looked for: the user's own folder first, then what ships."""
    package = Path(__file__).resolve().parent
    # Beside the package in a checkout and in Slicer's flat install, inside it in a wheel.
    candidates = [data_folder() / kind.lower(), package.parent / "Resources" / kind, package / "Resources" / kind]
    return [folder for folder in candidates if folder.is_dir()]
