"""`twinseg calibrate`: from a model file and labelled patients to a model file that keeps what it promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twinseg.calibration import Reliability, fewest_patients, total_reliability
from twinseg.calibration_measures import Measured, calibrate_on
from twinseg.cases import find_cases
from twinseg.errors import InputError
from twinseg.evaluation import choose_part
from twinseg.inference import Report
from twinseg.model_file import load_model, save_model
from twinseg.pictures import png
from twinseg.segmentation import load_network
from twinseg.training_run import check_output
from twinseg.volumes import write_atomically


def calibrate(
    data: Path,
    model_path: Path,
    output: Path,
    *,
    part: str = "validation",
    device: torch.device | str = "cpu",
    report: Report = lambda done, stage: None,
) -> dict[str, Any]:
    """Calibrate a model on one part (train, validation, test or all) of a folder of labelled cases: write it with its
    margins as another model file, and the reliability diagram beside that.

    The network must not have been trained on these patients: on those it is surer, and more often right, than on new
    ones. Patients that chose its weights (validation) are nearly new. Where there are too few patients the model
    written has no margins. A twin's adapted models stand on the model as it was, not on the calibrated one, as that has
    another hash.

    Returns what was measured. Raises InputError for an empty part, or where no model can be written; Cancelled when
    `report` asks for it.
    """
    check_output(output)
    if output.resolve() == model_path.resolve():
        raise InputError(f"{output}: this is the model itself, which is kept; name another output")
    model, picture = load_network(model_path), output.with_suffix(".reliability.png")
    chosen = choose_part(find_cases(data, model.task, require_labels=True), data, part)
    name = data.resolve().name
    calibration, patients = calibrate_on(chosen, model, data=name, part=part, device=device, report=report)
    stored = load_model(model_path)
    provenance = {**stored.card.provenance, "calibration": calibration.to_json(), "calibrated_from": model.hash}
    card, reliabilities = stored.card, reliability_by_region(patients)
    digest = save_model(
        output, stored.tensors, task=card.task, network=card.network, provenance=provenance, dtype=card.dtype
    )
    draw_reliability(picture, reliabilities, f"{output.stem}: {calibration.patients} patients of {name} ({part})")
    regions = {
        region: {
            "patients": calibration.patients,
            "margin": calibration.margins.get(region),
            "expected_calibration_error": calibration.errors[region],
            "missed_share": reliabilities[region].missed_share,
            "held_before": float(np.mean([one[region].score <= 0 for one in patients])),
        }
        for region in reliabilities
    }
    facts = {"model": model.hash, "model_hash": digest, "part": part, "files": [output, picture]}
    return {**facts, "calibration": calibration.to_json(), "regions": regions, "words": calibration.words}


def reliability_by_region(patients: Sequence[Measured]) -> dict[str, Reliability]:
    """Each region's reliability over all patients."""
    return {region: total_reliability(one[region] for one in patients) for region in patients[0]}


def draw_reliability(path: Path, reliabilities: Mapping[str, Reliability], title: str) -> None:
    """The reliability diagram as a PNG, a panel a region: the share of voxels that belong to the region over the
    probability that they were given, above how many voxels each bin holds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(reliabilities) + 0.6, 4.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(2, len(reliabilities), squeeze=False, sharex=True, height_ratios=(3, 1))
    for (name, one), above, below in zip(reliabilities.items(), *panels, strict=True):
        voxels = np.array(one.voxels)
        filled = voxels > 0
        chance, share = (np.array(sums)[filled] / voxels[filled] for sums in (one.expected, one.found))
        above.plot([0, 1], [0, 1], color="tab:gray", linestyle="dashed", linewidth=1)
        above.plot(chance, share, color="tab:blue", marker="o", markersize=4)
        above.set(xlim=(0, 1), ylim=(0, 1), title=f"{name}: error {one.error:.3f}")
        places = (np.arange(len(voxels)) + 0.5) / len(voxels)
        below.bar(places, voxels / 1000, width=0.9 / len(voxels), color="tab:blue")
        below.set(xlabel="probability", yscale="symlog", ylim=(0, None))
    panels[0][0].set_ylabel("share of voxels in the region")
    panels[1][0].set_ylabel("thousand voxels")
    write_atomically(path, png(figure))


def calibration_table(measured: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one a region."""
    header = ["region", "patients", "calibration error", "missed", "held before", "margin", "ends move by"]
    rows = []
    for name, one in measured["regions"].items():
        margin = one["margin"]
        moved = ["none", f"{fewest_patients()} patients are needed"]
        if margin is not None:
            moved = [f"{margin:+.3f}", f"× {np.exp(margin):.2f}"]
        shares = ["–" if np.isnan(one[key]) else f"{100 * one[key]:.0f} %" for key in ("missed_share", "held_before")]
        rows.append([name, str(one["patients"]), f"{one['expected_calibration_error']:.3f}", *shares, *moved])
    return header, rows
