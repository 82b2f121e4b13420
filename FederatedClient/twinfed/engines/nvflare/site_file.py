"""A site's own settings under NVFlare: a TOML file on the site's machine, which no job and no server can change.

It stands in `federation/nvflare/NAME.toml` of the data folder, NAME being the site's name in its start-up kit, or in
the folder that the environment variable `TWINFED_NVFLARE_SITES` names. `twinfed nvflare site` writes it.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from twinfed.client.controls import Hours
from twinfed.errors import InputError
from twinseg.home import data_folder
from twinseg.volumes import write_atomically

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SITES_FOLDER = "TWINFED_NVFLARE_SITES"


@dataclass(frozen=True, kw_only=True)
class SiteFile:
    """How a site takes part under NVFlare.

    Args:
        folder: the site's own: state, models, consent; what Slicer's panel looks at.
        cases: folder of labelled cases; None takes the case queue.
        device: where it trains: auto, cpu, cuda, …
        hours: in which it works, such as "20-6"; None for all.
        learning_rate: highest of each local training; None for the default.
        twins: whether published models are fine-tuned for this site.
        low_priority: let every other program of the machine go first.
        share_local_model: whether other sites may score this site's local model, if the job asks for that.
    """

    folder: Path
    cases: Path | None = None
    device: str = "auto"
    hours: str | None = None
    learning_rate: float | None = None
    twins: bool = True
    low_priority: bool = True
    share_local_model: bool = False

    def __post_init__(self) -> None:
        if self.hours is not None:
            Hours.parse(self.hours)
        rate = self.learning_rate
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 10):
            raise InputError(f"learning_rate = {rate!r} must be a number above 0 and below 10. Correct it.")
        switches = (self.twins, self.low_priority, self.share_local_model)
        if not all(isinstance(switch, bool) for switch in switches) or not isinstance(self.device, str):
            raise InputError("twins, low_priority, share_local_model are true or false, device a text. Correct it.")


def site_file_path(site: str) -> Path:
    """Where the settings of a site stand."""
    given = os.environ.get(SITES_FOLDER)
    return (Path(given) if given else data_folder() / "federation" / "nvflare") / f"{site}.toml"


def read_site_file(site: str) -> SiteFile:
    """Raises InputError for a site without settings, or settings that cannot be."""
    path = site_file_path(site)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: not there. Write it with: twinfed nvflare site {site} --folder FOLDER") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}). Correct it.") from error
    try:
        for key in ("folder", "cases"):
            if key in content:
                if not isinstance(content[key], str):
                    raise InputError("folder and cases must be texts. Correct it.")
                content[key] = path.parent / Path(content[key]).expanduser()
        return SiteFile(**content)
    except TypeError as error:
        raise InputError(f"{path}: {str(error).partition('__init__() ')[2] or error}. Correct it.") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def write_site_file(site: str, settings: SiteFile, folder: Path | None = None) -> Path:
    """Write the settings of a site, with whole paths, where they are looked for (or into another `folder`)."""
    path = folder / f"{site}.toml" if folder else site_file_path(site)
    values = {
        "folder": str(settings.folder.absolute()),
        "cases": str(settings.cases.absolute()) if settings.cases else None,
        "device": settings.device,
        "hours": settings.hours,
        "learning_rate": settings.learning_rate,
        "twins": settings.twins,
        "low_priority": settings.low_priority,
        "share_local_model": settings.share_local_model,
    }
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in values.items() if value is not None]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: it cannot be written ({error.strerror}). Free some room.") from error
    write_atomically(path, "".join(lines).encode())
    return path
