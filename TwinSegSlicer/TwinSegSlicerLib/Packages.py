"""The Python packages that Slicer lacks: which are missing, and their installation when the user presses the button."""

from __future__ import annotations

import html
import importlib.metadata
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qt
import slicer
from packaging.requirements import Requirement
from slicer.i18n import tr as _

REQUIREMENTS = Path(__file__).resolve().parents[1] / "Resources/requirements.txt"
REQUESTER = "TwinSegSlicer"
LEAST_SLICER = "5.12"  # the first with slicer.packaging


@dataclass(frozen=True)
class Package:
    """A package that is needed; `size` is what its download weighs, `reason` what it is for."""

    requirement: Requirement
    size: str
    reason: str

    @property
    def name(self) -> str:
        return self.requirement.name

    def installedVersion(self) -> str | None:
        """The version that is installed; None where there is none, or only the remains of one. Nothing is imported."""
        if importlib.util.find_spec(self.name) is None:
            return None
        try:
            return importlib.metadata.version(self.name)
        except importlib.metadata.PackageNotFoundError:
            return None

    def isInstalled(self) -> bool:
        """Whether the version that is installed is new enough."""
        version = self.installedVersion()
        return version is not None and self.requirement.specifier.contains(version, prereleases=True)


def readPackages(path: Path = REQUIREMENTS) -> list[Package]:
    """The packages of a requirements.txt, in its order. The comment above each says "size: reason"."""
    packages, comment = [], ""
    for line in (text.strip() for text in path.read_text(encoding="utf-8").splitlines()):
        if line.startswith("#"):
            comment = line.lstrip("# ")
        elif line:
            size, _colon, reason = comment.partition(": ")
            packages.append(Package(Requirement(line), size, reason))
    return packages


def missingPackages(path: Path = REQUIREMENTS) -> list[Package]:
    """Those packages of a requirements.txt that are not installed, or too old."""
    importlib.invalidate_caches()
    return [package for package in readPackages(path) if not package.isInstalled()]


class InstallPanel:
    """Shows in `frame` what is missing, and installs it on the user's press of the button, in the main thread.

    The frame is visible as long as something is missing. `onReady()` is called once nothing is missing any more; where
    nothing is missing from the start it is not called: see `ready`. A refused or failed installation leaves the panel
    as it was, with what to do.
    """

    def __init__(self, frame: Any, onReady: Callable[[], None], requirements: Path = REQUIREMENTS):
        self._frame = frame
        self._onReady = onReady
        self._requirements = requirements
        self._missing: list[Package] = []
        self.listLabel = _wordWrapped(qt.QLabel())
        self.statusLabel = _wordWrapped(qt.QLabel())
        self.installButton = qt.QPushButton(_("Install"))
        self.checkButton = qt.QPushButton(_("Check again"))
        self.checkButton.toolTip = _("Looks again which packages are installed, after you installed some yourself")
        self.installButton.connect("clicked(bool)", lambda _checked=False: self.install())
        self.checkButton.connect("clicked(bool)", lambda _checked=False: self.refresh())
        layout = frame.layout() or qt.QVBoxLayout(frame)
        for widget in (self.listLabel, self.installButton, self.checkButton, self.statusLabel):
            layout.addWidget(widget)
        self._tell("")
        self._show()

    @property
    def ready(self) -> bool:
        """Whether everything is installed."""
        return not self._missing

    def refresh(self) -> None:
        """Look again what is missing, and tell the caller if now nothing is."""
        wasReady = self.ready
        self._tell("")
        self._show()
        if self.ready and not wasReady:
            self._onReady()

    def install(self) -> None:
        """Install what is missing: PyTorch by its extension, the rest by pip. Both ask the user first."""
        self.installButton.enabled = False  # an installation lets events through, so that the button could be pressed
        problem = ""
        try:
            self._installMissing()
        except RuntimeError as error:  # how slicer.packaging tells that the user said no
            problem = _("Nothing was installed ({error}). Press the button again when you want to go on.").format(
                error=error
            )
        except Exception as error:  # pip's or the PyTorch extension's, whatever it is: the panel has to stay usable
            logging.exception("TwinSegSlicer: the installation failed")
            problem = _(
                "The installation failed ({error}). Check the network connection (behind a proxy, HTTPS_PROXY must be "
                "set) and the free disk space, then press the button again. What pip said is in the Python console."
            ).format(error=error)
        self.refresh()
        if not self.ready:
            names = ", ".join(package.name for package in self._missing)
            missing = _(
                "Still missing: {names}. Press the button again, or restart Slicer if they were just installed."
            )
            self._tell(problem or missing.format(names=names))

    def _tell(self, text: str) -> None:
        self.statusLabel.text = text
        self.statusLabel.setVisible(bool(text))

    def _installMissing(self) -> None:
        if any(package.name == "torch" for package in self._missing):
            import PyTorchUtils  # another extension's: it picks the build of PyTorch for this computer

            torch = next(package for package in self._missing if package.name == "torch")
            version = str(torch.requirement.specifier)
            PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True, torchVersionRequirement=version)
            importlib.invalidate_caches()
            if not torch.isInstalled():
                return  # the user said no; without it, pip would draw in another build of it for MONAI
        rest = [package for package in self._missing if package.name != "torch"]
        if rest:
            from slicer.packaging import pip_ensure

            constraints = _pinInstalled({package.name for package in rest})
            try:
                pip_ensure([p.requirement for p in rest], constraints=constraints, requester=REQUESTER)
            finally:
                constraints.unlink()

    def _show(self) -> None:
        """List what is missing, and say why the button cannot be pressed where it cannot."""
        self._missing = missingPackages(self._requirements)
        self._frame.setVisible(not self.ready)
        rows = "".join(f"<li>{_describe(package)}</li>" for package in self._missing)
        text = _("This needs Python packages that Slicer does not have yet. Nothing is installed by itself.")
        hindrance, advice = _hindrance(self._missing)
        self.listLabel.text = f"{text}<ul>{rows}{advice}</ul>"
        self.installButton.enabled = not hindrance
        self.installButton.text = _("Install {count} packages").format(count=len(self._missing))
        self.installButton.toolTip = hindrance or _(
            "Downloads and installs the listed packages into Slicer's Python, after asking once more"
        )


def _hindrance(missing: list[Package]) -> tuple[str, str]:
    """Why these packages cannot be installed here, and what to do (HTML); twice "" where they can."""
    if importlib.util.find_spec("slicer.packaging") is None:  # said before PyTorch is downloaded in vain
        return _("Slicer {version} is needed").format(version=LEAST_SLICER), "<p>" + _(
            "This needs <b>Slicer {version}</b> or newer: an older one, as this is, cannot install them. Get it from "
            "<i>download.slicer.org</i>."
        ).format(version=LEAST_SLICER)
    if any(package.name == "torch" for package in missing) and not hasattr(slicer.modules, "pytorchutils"):
        return _("Install the PyTorch extension first"), "<p>" + _(
            "First install the <b>PyTorch</b> extension: <i>View / Extensions Manager / Install Extensions</i>, "
            "search for PyTorch, install it and restart Slicer. It finds the build that fits your computer."
        )
    return "", ""


def _wordWrapped(label: Any) -> Any:
    label.wordWrap = True
    return label


def _describe(package: Package) -> str:
    """A package in HTML: what is wanted, its size and reason, and a version that is too old."""
    text = f"<b>{html.escape(str(package.requirement))}</b>"
    if package.size:
        text += f", {html.escape(package.size)}: {html.escape(package.reason)}"
    if version := package.installedVersion():
        text += " " + _("(version {version} is too old)").format(version=version)
    return text


def _pinInstalled(but: set[str]) -> Path:
    """A constraints file with all that is installed at its version, so that pip rather refuses than changes a package
    that Slicer or another extension works with."""
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        if name := distribution.metadata["Name"]:
            versions.setdefault(name, distribution.version)  # the first on Python's path is the one that is imported
    path = Path(slicer.app.temporaryPath) / "TwinSegSlicer-constraints.txt"
    lines = [f"{name}=={version}\n" for name, version in sorted(versions.items()) if name not in but]
    path.write_text("".join(lines), encoding="utf-8")
    return path
