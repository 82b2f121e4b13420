"""An aggregator on this computer, to try a federation out: folder, token and process."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from slicer.i18n import tr as _

from twinseg.home import data_folder
from twinseg.model_file import read_card

from .ChildProcess import ChildProcess, endTree
from .JoinSettings import JoinSettings, readToken, writeToken

AGGREGATOR, SITE = "aggregator", "site"  # folders of a trial
SITE_NAME = "this-site"
DATABASE = "aggregator.sqlite"
POLL_SECONDS = 1.0
MODEL_NAME = "trial"


class LocalAggregator:
    """The aggregator of a trial: a folder that holds the aggregator's folder and the site's."""

    def __init__(self, trial: Path) -> None:
        self.trial = trial
        self._child = ChildProcess(trial, "aggregator")

    @classmethod
    def of(cls, site: Path) -> LocalAggregator | None:
        """The one that a site's folder belongs to; None where that is no trial's."""
        return cls(site.parent) if (site.parent / AGGREGATOR / DATABASE).is_file() else None

    @classmethod
    def make(cls, model: Path, rounds: int, epochs: int, sites: int = 1) -> LocalAggregator:
        """A new trial that begins with a model file; each round waits for as many sites. Raises ValueError where that
        file is no model."""
        task = read_card(model).task.name
        trial = data_folder() / "federation" / time.strftime("trial-%Y%m%d-%H%M%S")
        trial.mkdir(parents=True, mode=0o700)
        facts = {"name": trial.name, "task": task, "network": model.stem, "model": str(model)}
        numbers = {"rounds": rounds, "quorum": sites, "epochs": epochs}
        lines = [f"{key} = {json.dumps(value)}" for key, value in (facts | numbers).items()]
        config = "\n".join([*lines, "", "[upload]", "bits = 8", "entropy = true", ""])
        (trial / f"{MODEL_NAME}.toml").write_text(config, encoding="utf-8")
        return cls(trial)

    @property
    def site(self) -> Path:
        """The site's folder."""
        return self.trial / SITE

    @property
    def isRunning(self) -> bool:
        return self._child.isRunning

    @property
    def failure(self) -> str:
        """Why it ended, in its words; "" where it did not, or was told to."""
        return self._child.failure

    @property
    def address(self) -> str:
        """Where it answers; also that of its page."""
        return JoinSettings.load(self.site).address

    def answers(self) -> bool:
        """Whether it takes connections by now."""
        parts = urlsplit(self.address)
        try:
            socket.create_connection((str(parts.hostname), parts.port or 0), timeout=0.5).close()
        except OSError:
            return False
        return True

    def start(self) -> None:
        """Start it, or go on where it was. The site's folder then holds its address, and a token. Raises ValueError."""
        if self.isRunning:
            raise ValueError(_("It runs already"))
        if not readToken(self.site):
            self._makeToken()
        port = _freePort(urlsplit(self.address).port or 0)
        settings = replace(JoinSettings.load(self.site), address=f"http://127.0.0.1:{port}", longestPoll=POLL_SECONDS)
        settings.save(self.site)
        words = ["aggregator", "--folder", str(self.trial / AGGREGATOR), "--host", "127.0.0.1", "--port", str(port)]
        self._child.start([*words, "--config", str(self.trial / f"{MODEL_NAME}.toml")])

    def stop(self) -> None:
        """End it; what sites sent is on the disk."""
        endTree(self._child.find())

    def _makeToken(self) -> None:
        from twinfed.aggregator.accounts import Accounts
        from twinfed.aggregator.store import Store

        store = Store(self.trial / AGGREGATOR)
        try:
            accounts = Accounts(store)
            if any(site["name"] == SITE_NAME and site["revoked"] is None for site in accounts.sites()):
                accounts.revoke(SITE_NAME)  # its token was lost
            writeToken(self.site, accounts.add(SITE_NAME))
        finally:
            store.close()


def _freePort(wanted: int) -> int:
    """The wanted port, or another one where that is taken."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return _freePort(0)
        return int(probe.getsockname()[1])
