"""A job as NVFlare takes it, from the TOML file that the light aggregator reads. Written without nvflare.

A job carries no code: its configuration names classes of this package, which every party has installed, so that a
server cannot have a hospital run what that has not chosen. Sites allow them by `ALLOWED` (see Docs/nvflare.md).
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinfed.aggregator.config import FederationConfig
from twinfed.errors import InputError
from twinseg.volumes import write_atomically

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ALLOWED = "twinfed.engines.nvflare."
"""Prefix of the classes that a site's and the server's `class_allow_list` must hold."""
FEDERATION, JOB_SETTINGS, INITIAL_MODEL = "federation.json", "job.json", "initial.safetensors"
DIFFERENCES, WEIGHTS, PACKED = "differences", "weights", "packed"
NO_CROSS_SITE, GLOBAL_MODELS, SITE_MODELS = "off", "global", "sites"


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """The table [nvflare] of a federation's TOML file.

    Args:
        send: what a site sends, "differences" from the global model or full "weights". A compressed upload (the
            table [upload]) is sent as the bytes of its file instead, which are differences.
        cross_site: after the last round, "global" has every site score the initial and the final model, "sites"
            besides the last local model of each site that allows it; "off" does neither.
    """

    send: str = DIFFERENCES
    cross_site: str = GLOBAL_MODELS

    def __post_init__(self) -> None:
        for key, choices in (
            ("send", (DIFFERENCES, WEIGHTS)),
            ("cross_site", (NO_CROSS_SITE, GLOBAL_MODELS, SITE_MODELS)),
        ):
            if (value := getattr(self, key)) not in choices:
                raise InputError(f"nvflare: {key} = {value!r}; it is one of {', '.join(choices)}. Correct it.")


@dataclass(frozen=True)
class Job:
    """What a job is made of: the federation, as the light aggregator knows it, and what NVFlare does besides."""

    federation: FederationConfig
    settings: JobSettings

    def __post_init__(self) -> None:
        if self.federation.strategy["name"] == "clustered":
            raise InputError(
                "Strategy clustered gives the sites several models, NVFlare sends all the same one. Take another "
                "strategy, or the light aggregator."
            )
        if not self.federation.upload.plain and self.settings.send == WEIGHTS:
            raise InputError('A compressed upload holds differences. Leave out [upload], or send = "differences".')
        if self.federation.quorum < self.federation.make_strategy().fewest:
            raise InputError(f"Strategy {self.federation.strategy['name']} needs more updates. Raise the quorum.")

    @property
    def form(self) -> str:
        """How updates are sent."""
        return self.settings.send if self.federation.upload.plain else PACKED


def load_job(path: Path) -> Job:
    """Read a federation's TOML file with its table [nvflare], which may be left out; `model` is relative to it.

    Raises InputError.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}). Name a federation's TOML file.") from error
    table = content.pop("nvflare", {})
    if isinstance(content.get("model"), str):
        content["model"] = str(path.parent / content["model"])
    try:
        if not isinstance(table, Mapping) or not table.keys() <= JobSettings.__dataclass_fields__.keys():
            raise InputError(f"nvflare: it takes {', '.join(JobSettings.__dataclass_fields__)}. Correct it.")
        return Job(FederationConfig.from_dict(content), JobSettings(**table))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def write_job(job: Job, output: Path) -> Path:
    """Write a job's folder into `output`, named like the federation; what was there before is replaced.

    Raises InputError for a model that cannot be read.
    """
    name = job_name(job.federation.name)
    folder = output / name
    shutil.rmtree(folder, ignore_errors=True)
    config = folder / "app" / "config"
    config.mkdir(parents=True)
    try:
        shutil.copyfile(job.federation.model, config / INITIAL_MODEL)
    except OSError as error:
        why = f"not a model ({error.strerror}). Name a .safetensors file."
        raise InputError(f"{job.federation.model}: {why}") from error
    _write(folder / "meta.json", _meta(job, name))
    _write(config / "config_fed_server.json", _server(job))
    _write(config / "config_fed_client.json", _client())
    _write(config / FEDERATION, {**job.federation.to_dict(), "model": INITIAL_MODEL})
    _write(config / JOB_SETTINGS, {"form": job.form, "cross_site": job.settings.cross_site})
    return folder


def read_job(config: Path) -> tuple[FederationConfig, dict[str, Any]]:
    """The federation and the settings in a job's `config` folder, as the server got it."""
    federation = json.loads((config / FEDERATION).read_text(encoding="utf-8"))
    federation["model"] = str(config / federation["model"])
    settings = json.loads((config / JOB_SETTINGS).read_text(encoding="utf-8"))
    return FederationConfig.from_dict(federation), settings


def job_name(federation: str) -> str:
    """A federation's name as a folder's."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", federation).strip("-") or "federation"


def _meta(job: Job, name: str) -> dict[str, Any]:
    turns = job.federation.strategy["name"] == "transfer"
    return {
        "name": name,
        "resource_spec": {},
        "min_clients": 1 if turns else job.federation.quorum,
        "deploy_map": {"app": ["@ALL"]},
    }


def _server(job: Job) -> dict[str, Any]:
    workflows = [{"id": "rounds", "path": f"{ALLOWED}workflow.Rounds", "args": {}}]
    if job.settings.cross_site != NO_CROSS_SITE:
        workflows.append({"id": "cross_site", "path": f"{ALLOWED}cross_site.CrossSite", "args": {}})
    return {
        "format_version": 2,
        "workflows": workflows,
        "components": [{"id": "federation", "path": f"{ALLOWED}workflow.FederationFolder", "args": {}}],
        "task_data_filters": [],
        "task_result_filters": [],
    }


def _client() -> dict[str, Any]:
    executor = {"path": f"{ALLOWED}executor.SiteExecutor", "args": {}}
    return {
        "format_version": 2,
        "executors": [{"tasks": ["*"], "executor": executor}],
        "components": [],
        "task_data_filters": [],
        "task_result_filters": [],
    }


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
