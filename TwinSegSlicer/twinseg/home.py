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
