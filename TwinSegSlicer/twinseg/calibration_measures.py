"""What a model says of labelled patients beside the truth, and the calibration that follows from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from twinseg.calibration import Calibration, RegionMeasure, Reliability
from twinseg.cases import Case, LoadedCase
from twinseg.inference import Report, draw, predict_anywhere
from twinseg.preprocessing import prepare, region_channels
from twinseg.region_volumes import region_volumes
from twinseg.segmentation import LoadedModel, loaded_cases

Measured = dict[str, RegionMeasure]


def measure(model: LoadedModel, case: LoadedCase, device: torch.device | str = "cpu") -> Measured:
    """The regions of a labelled case: the interval of the level sets as `segment` gives it, without mirrored copies,
    and the true volume; the reliability on the grid that the network sees."""
    task = model.task
    prepared = prepare(case, task)
    assert case.labels is not None
    assert prepared.labels is not None
    probabilities, _ = predict_anywhere(model.network, prepared.image, task, device)
    labels = draw(probabilities, prepared, case.reference, task)
    volumes = region_volumes(labels, probabilities, prepared, task)
    measured = {}
    for region, channels in zip(task.regions, region_channels(task), strict=True):
        true_ml = case.labels.voxel_ml * int(np.isin(case.labels.array, region.labels).sum())
        reliability = Reliability.of(probabilities[channels].sum(0), np.isin(prepared.labels, channels))
        said = volumes[region.name]
        measured[region.name] = RegionMeasure(said["volume"], said["low"], said["high"], true_ml, reliability)
    return measured


def calibrate_on(
    cases: Sequence[Case],
    model: LoadedModel,
    *,
    data: str,
    part: str,
    device: torch.device | str = "cpu",
    report: Report = lambda done, stage: None,
) -> tuple[Calibration, list[Measured]]:
    """The calibration that labelled cases give, of which there must be one, and the patients that it follows from.

    Only the first date of each patient counts. data, part: as in `Calibration`. Raises Cancelled when `report` asks for
    it.
    """
    patients, sequences = [], {sequence.name for sequence in model.task.sequences}
    for _, loaded in loaded_cases(first_dates(cases), model.task, "calibrating", report):
        patients.append(measure(model, loaded, device))
        sequences &= set(loaded.images)
    return Calibration.of(patients, data=data, part=part, sequences=sorted(sequences)), patients


def first_dates(cases: Sequence[Case]) -> list[Case]:
    """One case a patient: dates of one patient are no independent draws (Dunn, Wasserman and Ramdas 2023,
    "Distribution-free prediction sets for two-layer hierarchical models": one draw of each keeps the promise)."""
    first: dict[str, Case] = {}
    for case in sorted(cases, key=lambda case: case.name):
        first.setdefault(case.patient, case)
    return list(first.values())
