"""What Docs/federation.md shows: three sites of synthetic patients, a real aggregator and real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from Screenshots.pictures import REPOSITORY, Pictures

SPLIT_KEY = 20  # by it, of the eight patients two are to validate with and one to test


class FederationPictures(Pictures):
    """Drives the federation module as a user would. Two more sites take part as processes of their own."""

    module = REPOSITORY / "FederatedClient/FederatedClient.py"
    prefix = "federation"
    parts = ("join", "site", "rounds", "cases", "log", "aggregator")

    def draw(self, folder: Path) -> None:
        from twinseg.phantom import write_cohort

        self.federation = self.widget.logic.federation
        self.open_parts("join", "site", "rounds")
        self.take("start", self.widget.parent)
        write_cohort(folder / "phantoms", sites=3, patients=8, size=36, spacing=5.0, seed=3)
        own, *others = sorted(path for path in (folder / "phantoms").iterdir() if path.is_dir())
        fill_queue(own)
        self.start_aggregator(folder)
        self.open_parts("aggregator")
        self.take("aggregator", self.ui.aggregatorCollapsibleButton)
        self.open_parts("join")
        self.ui.previewButton.click()
        self.wait(self.ui.previewBrowser.isVisible)
        self.take("join", self.ui.joinCollapsibleButton)
        self.ui.previewButton.click()
        self.ui.consentCheckBox.click()
        joined = [self.join(folder / f"HOSPITAL-{letter}", cases) for letter, cases in zip("BC", others, strict=True)]
        self.wait(lambda: self.ui.startButton.enabled)
        self.ui.startButton.click()
        self.wait(lambda: self.federation.watch.snapshot.phase == "finished")
        self.ui.plotButton.click()
        self.open_parts("site", "rounds", "cases", "log")
        self.take("rounds")
        for process in joined:
            self.wait(lambda process=process: not process.isRunning)

    def start_aggregator(self, folder: Path) -> None:
        from dataclasses import replace

        from FederatedClientLib.SelfTest import makeModel

        model = makeModel(folder / "first model.safetensors", channels=(8, 16), patch=32)
        self.ui.modelPathLineEdit.currentPath = str(model)
        self.ui.roundsSpinBox.value, self.ui.epochsSpinBox.value, self.ui.sitesSpinBox.value = 5, 12, 3
        self.ui.startAggregatorButton.click()
        self.federation.setSettings(replace(self.federation.settings, learningRate=3e-3))
        self.wait(lambda: self.federation.watch.snapshot.aggregatorAnswers)

    def join(self, folder: Path, cases: Path) -> Any:
        """Another site takes part, by the command."""
        from dataclasses import replace

        from FederatedClientLib.ChildProcess import ChildProcess
        from FederatedClientLib.JoinSettings import writeToken
        from twinfed.aggregator.accounts import Accounts
        from twinfed.aggregator.store import Store

        store = Store(self.federation.aggregator.trial / "aggregator")
        writeToken(folder, Accounts(store).add(folder.name))
        store.close()
        process = ChildProcess(folder, "site")
        process.start(replace(self.federation.settings, cases=str(cases)).words(folder))
        return process


def fill_queue(folder: Path) -> None:
    """Submit the labelled cases of a folder, as a radiologist would correct and submit them."""
    from twinseg.case_queue import CaseQueue
    from twinseg.cases import find_cases
    from twinseg.tasks import load_task
    from twinseg.volumes import read_image, read_labels

    queue = CaseQueue()
    (queue.folder.parent / "pseudonyms.key").write_text(f"{SPLIT_KEY:064x}")
    task = load_task("brats-glioma")
    for case in find_cases(folder, task, require_labels=True):
        assert case.labels is not None
        images = {name: read_image(path) for name, path in case.images.items()}
        labels = read_labels(case.labels)
        queue.add(task=task, patient=case.patient, images=images, labels=labels, who="A. Reader", allow_empty=True)
