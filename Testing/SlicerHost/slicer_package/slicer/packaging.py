"""Python packages that a module needs: check them, and install them when the user agrees.

As Slicer's ``slicer.packaging``. In the host, nothing is ever installed unless a test allows it
(``allow_installation``): a request to install is written down in ``installation_requests``, and fails.
"""

from __future__ import annotations

import importlib.metadata
import logging
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer.util
from packaging.requirements import InvalidRequirement, Requirement
from slicer.i18n import tr as _

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


installation_requests: list[str] = []
allow_installation = False


class InstallationRefused(RuntimeError):
    """A module asked to install packages, which the host does only where a test allows it."""


def load_requirements(path: str | Path) -> list[Requirement]:
    """The requirements in a requirements.txt; comments and options of pip are left out."""
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [Requirement(line.partition(" #")[0]) for line in lines if line and line[0] not in "#-"]


def load_pyproject_dependencies(path: str | Path) -> list[Requirement]:
    """The dependencies in a pyproject.toml; KeyError without a ``[project]`` table."""
    project = tomllib.loads(Path(path).read_text(encoding="utf-8"))["project"]
    return [Requirement(text) for text in project.get("dependencies", [])]


def to_requirements(reqs: Any) -> list[Requirement]:
    """One requirement or several, as text or parsed, as a list."""
    if isinstance(reqs, Requirement):
        return [reqs]
    if isinstance(reqs, str):
        try:
            return [Requirement(reqs)]
        except InvalidRequirement:
            return [Requirement(text) for text in reqs.split()]
    return [req if isinstance(req, Requirement) else Requirement(req) for req in reqs]


def _is_satisfied(requirement: Requirement) -> bool:
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    try:
        distribution = importlib.metadata.distribution(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    if not requirement.specifier.contains(distribution.version, prereleases=True):
        return False
    needed = [Requirement(text) for text in distribution.requires or ()] if requirement.extras else []
    extra = [
        inner
        for inner in needed
        if inner.marker is not None and any(inner.marker.evaluate({"extra": name}) for name in requirement.extras)
    ]
    return all(_is_satisfied(Requirement(str(inner).partition(";")[0])) for inner in extra)


def pip_check(req: Any, *, _seen: Any = None) -> bool:
    """Whether requirements are satisfied by what is installed; nothing is imported, nothing run."""
    return all(_is_satisfied(requirement) for requirement in to_requirements(req))


def pip_ensure(
    requirements: Any,
    constraints: str | Path | None = None,
    prompt_install: bool = True,
    requester: str | None = None,
    skip_packages: list[str] | None = None,
    show_progress: bool = True,
    **options: Any,
) -> list[Any] | None:
    """Install what is missing, after asking the user. Declining raises RuntimeError. Returns what was skipped."""
    skipped = set(skip_packages or ())
    missing = [r for r in to_requirements(requirements) if r.name not in skipped and not _is_satisfied(r)]
    if not missing:
        return []
    names = ", ".join(str(requirement) for requirement in missing)
    text = _("{requester} needs these Python packages: {names}. Install them?")
    question = text.format(requester=requester or _("The module"), names=names)
    if prompt_install and not slicer.util.confirmOkCancelDisplay(question):
        raise RuntimeError(f"The user declined to install {names}")
    pip_install([str(requirement) for requirement in missing], constraints=constraints, requester=requester)
    return []


def isPipInstallInProgress() -> bool:
    """Installations are not left running here."""
    return False


def pip_install(
    requirements: Any,
    constraints: str | Path | None = None,
    blocking: bool = True,
    logCallback: Callable[[str], None] | None = None,
    completedCallback: Callable[[int], None] | None = None,
    **options: Any,
) -> None:
    """Install packages with pip, where the test allows it; else raise :class:`InstallationRefused`."""
    arguments = shlex.split(requirements) if isinstance(requirements, str) else [str(entry) for entry in requirements]
    if constraints is not None:
        arguments += ["--constraint", str(constraints)]
    _run_pip("install", arguments, blocking, logCallback, completedCallback)


def pip_uninstall(requirements: Any, blocking: bool = True, **options: Any) -> None:
    """Uninstall packages, where the test allows it."""
    arguments = shlex.split(requirements) if isinstance(requirements, str) else [str(entry) for entry in requirements]
    _run_pip("uninstall", [*arguments, "--yes"], blocking, options.get("logCallback"), options.get("completedCallback"))


def _run_pip(command: str, arguments: list[str], blocking: bool, log: Any, completed: Any) -> None:
    installation_requests.append(f"{command} {' '.join(arguments)}")
    if not allow_installation:
        raise InstallationRefused(f"pip {installation_requests[-1]}: SlicerHost does not change the Python environment")
    logging.info("pip %s", installation_requests[-1])
    slicer.util.executePythonModule("pip", [command, *arguments], blocking, log, completed)
