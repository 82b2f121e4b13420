"""What computes our network fastest on this machine: torch in several ways, ONNX Runtime and OpenVINO, side by side.

    python Testing/Benchmarks/runtimes.py [--quick] [--json FILE] [--case FOLDER] [--model FILE]
                                          [--spacing MM] [--device auto|cpu|cuda]

Each method is handed the same prepared image and gives class probabilities, by the weights of the shipped starter
model or of --model, on the model's own grid or (for a longer pass than it was made for) at --spacing. How a whole case
does beside MONAI's networks is `inference.py`'s; this looks at the pass alone. Processor seconds are those of all
threads: other programs change them less than they change seconds. The share of the peak is that of the fastest matrix
product measured here. The change in Dice against the truth, from what float32 gives, is that of the region that
changes most: rounding may cost `ALLOWED`.

Each method runs in a process of its own, so that its peak memory is its own (torch's libraries among it, for all). A
runtime that is not installed is a row that says so: none of them is needed by TwinSegSlicer. To try them all:
`pip install onnx onnxruntime onnxscript openvino`. A quick run takes the middle of the image, and does not compile.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))

import inference
from runtime_methods import METHODS, Job, Method, export

from twinseg.errors import InputError
from twinseg.machine import peak_memory
from twinseg.metrics import dice

if TYPE_CHECKING:
    from twinseg.cases import LoadedCase
    from twinseg.tasks import Task

Labels = NDArray[Any]
"""A label map (X, Y, Z) with the task's values."""

ALLOWED = 0.002
"""Dice that a method may lose, or win, by rounding otherwise than float32 does."""

RUNS = 5
QUICK_SIDE = 96


@dataclass(frozen=True)
class Row:
    """What was measured of a method, or a note why nothing was.

    seconds: median of the runs; processor_seconds: mean, of all threads; first_seconds: making ready and the first
    pass; peak_share: of the fastest matrix product; dice_to_float32, dice_to_truth: by region.
    """

    method: str
    precision: str
    seconds: float | None = None
    processor_seconds: float | None = None
    first_seconds: float | None = None
    gflop: float | None = None
    peak_share: float | None = None
    memory_gb: float | None = None
    dice_to_float32: dict[str, float] = field(default_factory=dict)
    dice_to_truth: dict[str, float] = field(default_factory=dict)
    dice_change: float | None = None
    note: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 2 where what was asked for cannot be."""
    parser = inference.options_of("Compute TwinSegSlicer's network by several runtimes.")
    parser.add_argument("--model", type=Path, metavar="FILE", help="a model file (default: the shipped starter model)")
    parser.add_argument("--spacing", type=float, metavar="MM", help="voxels to compute on (default: the model's own)")
    options = parser.parse_args(arguments)
    try:
        run(options.quick, options.json, options.case, options.model, options.spacing, options.device)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run(
    quick: bool, json_file: Path | None, folder: Path | None, model: Path | None, spacing: float | None, device: str
) -> None:
    """Measure every method, print the table and the verdict, write them. Raises InputError for bad options."""
    from rich.progress import track

    folder = inference.checked_folder(folder, json_file)
    if model is not None and not model.is_file():
        raise InputError(f"{model}: there is no such file; name a model file")
    if spacing is not None and not 0.5 <= spacing <= 10:
        raise InputError(f"--spacing {spacing:g}: this is no voxel size for a head; name one from 0.5 to 10 mm")
    with tempfile.TemporaryDirectory() as scratch:
        job, case, truth = inference.in_own_process(prepare_job, folder, model, spacing, device, quick, Path(scratch))
        machine = inference.in_own_process(inference.measure_machine, device, quick)
        rows: list[Row] = []
        float32 = None
        for method in track(METHODS, "Runtimes", disable=not sys.stdout.isatty()):
            row, labels = measure_or_say_why_not(method, job, machine, quick)
            float32 = labels if method is METHODS[0] else float32
            rows.append(row if labels is None else compared(row, case, machine, labels, float32, truth))
    show(machine, case, rows, "rough" if quick else "")
    inference.conclude(verdicts(rows), quick, machine, case, rows, json_file)


# --- what is measured, each in its own process -----------------------------------------------------------------------


def prepare_job(
    folder: Path | None, model: Path | None, spacing: float | None, device: str, quick: bool, scratch: Path
) -> tuple[Job, dict[str, Any], Labels | None]:
    """What the methods are given, the case in numbers, and the true label map (X, Y, Z) where the case has one."""
    import torch

    from twinseg.network import build_network
    from twinseg.preprocessing import label_values, prepare
    from twinseg.segmentation import load_network, starter_model

    inference.device_of(device)  # which complains of one that is not there
    model = model or starter_model(inference.TASK)
    loaded = load_network(model)
    task = loaded.task if spacing is None else replace(loaded.task, spacing=(spacing,) * 3)
    name, case = load(folder, task, quick)
    prepared = prepare(case, task)
    image = torch.from_numpy(prepared.image)[None]
    truth = torch.empty(0) if prepared.labels is None else torch.from_numpy(prepared.labels)[None, None]
    if quick:
        image, truth = (inference.centre(part, (QUICK_SIDE,) * 3) if len(part) else part for part in (image, truth))
    job = Job(model, scratch / "image.npy", scratch / "network.onnx", prepared.spacing, device)
    np.save(job.image, image[0].numpy())
    facts = {
        "name": name,
        "shape": tuple(image.shape[2:]),
        "spacing": job.spacing,
        "model": {"name": model.name, "hash": loaded.hash},
        "gflop": inference.count_gflop(partial(build_network, loaded.network.config), tuple(image.shape)),
        "regions": {region.name: region.labels for region in task.regions},
    }
    return job, facts, np.asarray(label_values(task))[truth[0, 0].numpy()] if len(truth) else None


def load(folder: Path | None, task: Task, quick: bool) -> tuple[str, LoadedCase]:
    """The name and the images of the case in a folder, with its label map, or of a synthetic patient."""
    from twinseg.cases import LoadedCase, load_case
    from twinseg.phantom import Scanner, make_patient
    from twinseg.segmentation import case_of_folder

    if folder is not None:
        case = case_of_folder(folder, task)
        return case.name, load_case(case, task)
    size, spacing = ((96, 96, 96), 2.0) if quick else ((182, 218, 182), 1.0)
    patient = make_patient(3, scanner=Scanner.for_site(0), size=size, spacing=spacing)
    images = {sequence.name: patient.images[sequence.name] for sequence in task.sequences}
    return "a synthetic patient, as no real case is at hand", LoadedCase(images, patient.labels, patient.labels)


def measure_or_say_why_not(
    method: Method, job: Job, machine: Mapping[str, Any], quick: bool
) -> tuple[Row, Labels | None]:
    """A method's times, memory and label map, or a row that says why there are none."""
    row = Row(method.name, method.precision)
    if method.only_cpu and machine["device"] != "the CPU":
        return replace(row, note="for CPUs alone"), None
    if method.needs and importlib.util.find_spec(method.needs) is None:
        return replace(row, note=f"{method.needs} is not installed"), None
    if method.precision == "bfloat16" and not machine["bfloat16_pays"]:
        return replace(row, note="bfloat16 is slower than float32 here"), None
    if method.compiles and quick:
        return replace(row, note="compiling takes too long for a quick run"), None
    try:
        if method.needs and not job.exported.is_file():
            inference.in_own_process(export, job)
        return inference.in_own_process(measure, method, job, 1 if quick else RUNS)
    except (RuntimeError, ImportError) as error:
        return replace(row, note=f"failed: {str(error).splitlines()[0][:200]}"), None


def measure(method: Method, job: Job, runs: int) -> tuple[Row, Labels]:
    """A method's times and memory, and the label map (X, Y, Z) it gives. Raises RuntimeError for whatever fails."""
    from twinseg.inference import clean_up
    from twinseg.preprocessing import label_values
    from twinseg.segmentation import load_network

    device = inference.device_of(job.device)
    image = np.load(job.image)
    started = time.perf_counter()
    try:
        segment = method.build(job)
        channels = segment(image).argmax(0).astype(np.uint8)  # warms up
        first = time.perf_counter() - started
        before = time.process_time()
        seconds = inference.time_runs(partial(segment, image), device, runs)
        processor = (time.process_time() - before) / runs
    except Exception as error:  # a runtime's own kinds do not all travel between processes
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    memory = peak_memory(device)
    task = load_network(job.model).task
    labels = clean_up(np.asarray(label_values(task))[channels], task, float(np.prod(job.spacing)) / 1000)
    note = f"{method.needs} {version(method.needs)}" if method.needs else ""
    row = Row(method.name, method.precision, statistics.median(seconds), processor, first, memory_gb=memory, note=note)
    return row, labels


def compared(
    row: Row,
    case: Mapping[str, Any],
    machine: Mapping[str, Any],
    labels: Labels,
    float32: Labels | None,
    truth: Labels | None,
) -> Row:
    """The row with what its time means on this machine, and with the Dice of its label map to the one by float32 and to
    the truth, as far as there are any."""
    dices: list[dict[str, float]] = [
        {} if one is None or other is None else dice_by_region(one, other, case["regions"])
        for one, other in ((labels, float32), (labels, truth), (float32, truth))
    ]
    to_float32, to_truth, own = dices
    rate = case["gflop"] / row.seconds if row.seconds else 0.0
    return replace(
        row,
        gflop=case["gflop"],
        peak_share=rate / max(machine["matrix_product_gflops"].values()),
        dice_to_float32=to_float32,
        dice_to_truth=to_truth,
        dice_change=max((to_truth[name] - own[name] for name in own), key=abs, default=None),
    )


def dice_by_region(labels: Labels, reference: Labels, regions: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Dice of each region of two label maps (X, Y, Z)."""
    return {name: dice(np.isin(labels, values), np.isin(reference, values)) for name, values in regions.items()}


# --- what is shown ---------------------------------------------------------------------------------------------------


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Whether rounding changes the Dice of ours too much, and whether another method is faster, a line each."""
    ours = next(row for row in rows if row.method == inference.OURS)
    lines = [f"Dice change of ours at most {ALLOWED}: not measured", "nothing faster than ours: not measured"]
    if ours.dice_change is not None:
        held = "yes" if abs(ours.dice_change) <= ALLOWED else "no"
        lines[0] = f"Dice change of ours at most {ALLOWED}: {held} ({ours.dice_change:+.4f})"
    measured = [row for row in rows if row.seconds and row is not ours]
    if ours.seconds and measured:
        fastest = min(measured, key=lambda row: row.seconds or 0.0)
        ratio = ours.seconds / (fastest.seconds or 1.0)
        held = "yes" if ratio <= 1 else "no"
        lines[1] = f"nothing faster than ours: {held} ({fastest.method}, {fastest.precision}: {ratio:.2f}x)"
    return lines


def show(machine: Mapping[str, Any], case: Mapping[str, Any], rows: Sequence[Row], title: str) -> None:
    """Print the machine, the case and the table of rows."""
    from rich.console import Console
    from rich.table import Table

    rates = ", ".join(f"{precision} {rate:.0f}" for precision, rate in machine["matrix_product_gflops"].items())
    grid = f"{'×'.join(map(str, case['shape']))} voxels of {case['spacing'][0]:.2g} mm"
    print(
        f"{machine['date']}: computed on {machine['device']} ({machine['cpu']}, cores: {machine['cores']}, threads: "
        f"{machine['threads']}), torch {machine['torch']}, matrix product, GFLOP/s: {rates}\n{case['name']}: {grid}, "
        f"{case['gflop']:.0f} GFLOP; model {case['model']['name']}"
    )
    header = ["method", "precision", "seconds", "processor s", "first s", "GFLOP/s", "of peak", "peak GB"]
    regions = " / ".join(case["regions"])
    table = Table(*header, f"Dice to float32, {regions}", "to the truth", "change", "note", title=title)
    for row in rows:
        cells = [""] * 9
        if row.seconds is not None and row.gflop is not None:
            numbers = [f"{row.seconds:.2f}", f"{row.processor_seconds:.2f}", f"{row.first_seconds:.1f}"]
            numbers += [f"{row.gflop / row.seconds:.0f}", f"{row.peak_share:.0%}", f"{row.memory_gb:.2f}"]
            to_float32 = " / ".join(f"{value:.4f}" for value in row.dice_to_float32.values())
            to_truth = " / ".join(f"{value:.3f}" for value in row.dice_to_truth.values())
            cells = [*numbers, to_float32, to_truth, "" if row.dice_change is None else f"{row.dice_change:+.4f}"]
        table.add_row(row.method, row.precision, *cells, row.note)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    sys.exit(main())
