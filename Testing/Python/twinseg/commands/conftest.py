"""Commands in real processes, and a small cohort with a model that a command trained on it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from twinseg.phantom import write_cohort

LIBRARY = Path(__file__).resolve().parents[4] / "TwinSegSlicer"

# The command in a process of its own each time, but torch and MONAI are imported once and not forty times.
SERVER = """
import gc, json, os, resource, sys
import torch._dynamo, typer.rich_utils, twinseg.cli
import twinseg.classification_evaluation, twinseg.classification_run, twinseg.calibration_run, twinseg.monai_bundle
gc.freeze()
for line in sys.stdin:
    wanted = json.loads(line)
    child = os.fork()
    if not child:
        for name, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(wanted[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        if wanted["room"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (wanted["room"],) * 2)
        os.chdir(wanted["folder"])
        sys.argv = ["twinseg", *wanted["arguments"]]
        exec(wanted["before"])
        code = 0
        try:
            twinseg.cli.main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # at once: to take all the modules down takes longer than most commands
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass
class Result:
    """How a command ended. `said` are the lines on stderr that do not tell progress."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        progress = re.compile(r"(segmenting|evaluating|calibrating|classifying|training|making patients): +\d+%, ")
        return [line for line in self.err.splitlines() if not progress.match(line)]

    def assert_bad_input(self, named: object, fault: str) -> None:
        """Exit code 2, and one line that names what is at fault and says what is wrong."""
        assert self.code == 2, self.err
        assert len(self.said) == 1, self.err
        assert self.said[0].startswith("twinseg: ")
        assert str(named) in self.said[0]
        assert fault in self.said[0]
        assert self.out == ""


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = str(tmp_path_factory.mktemp("home"))
    return {**os.environ, "PYTHONPATH": str(LIBRARY), "TWINSEG_HOME": home, "COLUMNS": "160"}


@pytest.fixture(scope="session")
def twinseg(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[Callable[..., Result]]:
    """Run `twinseg` with arguments. folder: to be in; room: bytes of the largest file that it may write; before:
    Python to run first."""
    streams = tmp_path_factory.mktemp("streams")
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def run(*arguments: object, folder: Path = streams, room: int = 0, before: str = "") -> Result:
        wanted = {"arguments": [str(a) for a in arguments], "folder": str(folder), "room": room, "before": before}
        wanted |= {"out": str(streams / "out"), "err": str(streams / "err")}
        assert server.stdin is not None
        assert server.stdout is not None
        print(json.dumps(wanted), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return Result(code, (streams / "out").read_text("utf-8"), (streams / "err").read_text("utf-8"))

    yield run
    server.communicate(timeout=20)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites of two synthetic patients on a coarse grid."""
    folder = tmp_path_factory.mktemp("Ärzte & Söhne") / "cohort"
    write_cohort(folder, sites=2, patients=2, size=32, spacing=5.0, seed=1)
    return folder


@pytest.fixture(scope="session")
def trained(cohort: Path, twinseg: Callable[..., Result]) -> dict[str, Any]:
    """A model trained for one epoch by the command, and what the command said and wrote."""
    model = cohort.parent / "modèle 1.safetensors"
    report = cohort.parent / "train.json"
    result = twinseg(
        "train", cohort, "--task", "brats-glioma", "--output", model, "--epochs", 1, "--device", "cpu", "--json", report
    )
    assert result.code == 0, result.err
    return {"model": model, "result": result, "json": json.loads(report.read_text("utf-8"))}


@pytest.fixture(scope="session")
def model(trained: dict[str, Any]) -> Path:
    path: Path = trained["model"]
    return path


@pytest.fixture
def case(cohort: Path, tmp_path: Path) -> Path:
    """A copy of one case, for a test to spoil."""
    return Path(shutil.copytree(cohort / "SITE-01" / "S01P001", tmp_path / "Zoë Müller 1"))
