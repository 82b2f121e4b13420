"""Where a site's cases come from: the case queue of this machine, or a folder of labelled cases."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from twinseg.case_queue import CaseQueue
from twinseg.case_queue_record import IN_TRAINING, WITHDRAWN
from twinseg.cases import Case, find_cases, split_cases
from twinseg.errors import InputError
from twinseg.tasks import Task

logger = logging.getLogger(__name__)
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class CaseSource:
    """A folder of labelled cases; without one the case queue in `queue` (default: that of the data folder).

    Either draws its split by patient once and keeps to it.
    """

    folder: Path | None = None
    queue: Path | None = None

    def find(self, task: Task) -> dict[str, list[Case]]:
        """The cases of a task by part of the split, each with its newest labels; withdrawn ones are not among them.

        Raises InputError where folder or queue cannot be read.
        """
        if self.folder is None:
            queue = CaseQueue(self.queue)
            return {part: queue.cases_for_training(task.name, part) for part in PARTS}
        from twinseg.classification_pictures import find_pictures  # torch with them: here, so that a process
        from twinseg.training_run import split_file  # that is told to stop as it starts is not held up

        if task.kind == "classification":
            cases = find_pictures(self.folder, task)
        else:
            cases = find_cases(self.folder, task, require_labels=True)
        split = split_cases(split_file(self.folder), cases)
        return {part: [case for case in cases if case.name in getattr(split, part)] for part in PARTS}

    def withdrawn(self, names: Iterable[str]) -> list[str]:
        """Those of the named cases that may not be used any more. A folder's cases cannot be withdrawn."""
        if self.folder is not None:
            return []
        here = {case.name for case in CaseQueue(self.queue).cases() if case.state != WITHDRAWN}
        return [name for name in names if name not in here]

    def mark(self, names: Iterable[str], state: str) -> None:
        """Tell the queue which cases are in training, and of those afterwards that they are trained (or submitted: not
        yet). One that was corrected meanwhile stays submitted."""
        if self.folder is not None:
            return
        queue = CaseQueue(self.queue)
        for name in names:
            try:
                if state == IN_TRAINING or queue.case(name).state == IN_TRAINING:
                    queue.mark(name, state)
            except InputError as error:  # withdrawn meanwhile
                logger.warning("%s", error)

    def what_to_do(self, task: Task) -> str:
        """What a user does about having no training case, in one line."""
        if self.folder is not None:
            return (
                f"{self.folder}: no training case of the task {task.name}; add labelled cases, or name another folder"
            )
        others = sorted({case.task for case in CaseQueue(self.queue).cases()} - {task.name})
        held = f" (it holds cases of {', '.join(others)})" if others else ""
        return f"the case queue has no training case of the task {task.name}{held}; submit corrected cases"
