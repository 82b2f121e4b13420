"""`twinseg segment`: from image files and a model file to a label map file on the images' own grid."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from twinseg.calibration import Calibration
from twinseg.cases import Case, LoadedCase, find_cases, load_case
from twinseg.errors import Cancelled, InputError
from twinseg.home import resource_folders
from twinseg.inference import Report, segment
from twinseg.model_file import load_model
from twinseg.network import NetworkConfig, ViTUNet, build_network
from twinseg.tasks import Task
from twinseg.volumes import write_volume


@dataclass(frozen=True)
class LoadedModel:
    """A segmentation network with its weights, what it was made for, its content hash, and how it was calibrated."""

    network: ViTUNet
    task: Task
    hash: str
    calibration: Calibration | None = None


def load_network(path: Path, task: Task | None = None) -> LoadedModel:
    """The segmentation network of a model file. Raises InputError for a damaged file or a model for another task."""
    model = load_model(path, expected_task=task)
    if model.card.task.kind != "segmentation":
        raise InputError(f"{path}: this model classifies images, it does not segment them; name a segmentation model")
    try:
        network = build_network(NetworkConfig.from_dict(model.card.network))
        network.load_state_dict(model.tensors)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: its tensors do not fit its network ({reason}); use another model file") from error
    calibration = Calibration.from_provenance(model.card.provenance, path)
    return LoadedModel(network.eval(), model.card.task, model.card.hash, calibration)


def starter_model(task: str) -> Path:
    """The model that ships for a task. Raises InputError where none does."""
    for folder in resource_folders("Models"):
        if (path := folder / f"{task}.safetensors").is_file():
            return path
    raise InputError(f"no starter model ships for the task {task}: name one with --model (twinseg train makes one)")


def case_of_folder(folder: Path, task: Task) -> Case:
    """The one case of a folder. Raises InputError where it holds several."""
    cases = find_cases(folder, task)
    if len(cases) > 1:
        raise InputError(f"{folder}: it holds {len(cases)} cases ({cases[0].name}, …); name the folder of one case")
    return cases[0]


def case_of_files(files: Mapping[str, Path], task: Task) -> Case:
    """A case of image files named one by one. Raises InputError for a sequence that the task does not know."""
    known = [sequence.name for sequence in task.sequences]
    if unknown := [name for name in files if name not in known]:
        sequence = unknown[0]
        raise InputError(
            f"{files[sequence]}: the task {task.name} has no sequence {sequence}; it has {', '.join(known)}"
        )
    return Case(patient="case", name="case", site=None, date=None, images=dict(files))


def loaded_cases(cases: Sequence[Case], task: Task, doing: str, report: Report) -> Iterator[tuple[Case, LoadedCase]]:
    """Each case with its images and labels. Raises Cancelled when `report`, told before each, asks for it."""
    for number, case in enumerate(cases):
        if report(number / len(cases), f"{number + 1} of {len(cases)}: {case.name}"):
            raise Cancelled(f"stopped while {doing}")
        yield case, load_case(case, task)
    report(1.0, "done")


def segment_to_file(
    case: Case,
    model: LoadedModel,
    output: Path,
    uncertainty: Path | None = None,
    *,
    device: torch.device | str = "cpu",
    flips: bool = False,
    report: Report = lambda done, stage: None,
) -> dict[str, Any]:
    """Segment a case and write the label map (and the uncertainty); nothing is written unless all went well.

    Returns what was measured: volumes in mL by region with their intervals (`region_volumes`), the sequences that were
    used, seconds, where it was computed.
    """
    images = {path.resolve() for path in case.images.values()}
    for path in filter(None, (output, uncertainty)):
        if not path.name.endswith((".nii.gz", ".nii")):
            raise InputError(f"{path}: the output must end in .nii.gz or .nii")
        if not path.parent.is_dir():
            raise InputError(f"{path}: its folder does not exist; make it first")
        if path.resolve() in images:
            raise InputError(f"{path}: this is an image of the case, which is never overwritten; name another output")
    if uncertainty is not None and uncertainty.resolve() == output.resolve():
        raise InputError(f"{output}: label map and uncertainty need a file each; name two")
    started = time.perf_counter()
    loaded = load_case(case, model.task, with_labels=False)
    result = segment(
        model.network,
        loaded,
        model.task,
        device=device,
        flips=flips,
        uncertainty=uncertainty is not None,
        calibration=model.calibration,
        report=report,
    )
    if uncertainty is not None and result.uncertainty is not None:
        write_volume(uncertainty, result.uncertainty)
    try:
        write_volume(output, result.labels)
    except InputError:
        if uncertainty is not None:
            uncertainty.unlink(missing_ok=True)
        raise
    return {
        "model": model.hash,
        "task": model.task.name,
        "sequences": sorted(loaded.images),
        "missing": [s.name for s in model.task.sequences if s.name not in loaded.images],
        "volumes_ml": result.volumes,
        "computed": result.computed,
        "seconds": round(time.perf_counter() - started, 3),
    }
