"""How fast a whole case is segmented: the ViT-UNet beside MONAI's 3D networks, all in one run on the same image.

    python Testing/Benchmarks/inference.py [--quick] [--json FILE] [--case FOLDER] [--device auto|cpu|cuda]

Ours is the whole way from loaded arrays to labels: preparing, network, putting back, clean-up. The peers are handed the
prepared, cropped image and are timed on MONAI's `sliding_window_inference` alone (96³, half overlapping, one window at
a time): in float32 as they come, and in bfloat16 as fast as their user easily gets them (autocast, the faster memory
layout, fused attention where there is one). A verdict takes each peer's faster row. A peer that would take long is
timed on four windows and scaled by their number; a quick run times one of 64³ and scales it by GFLOP. Weights are
random: this is about speed, not Dice.

Each method runs in a process of its own, so that its peak memory is its own (Linux and macOS). FLOP are those of
convolutions and matrix products (torch.utils.flop_counter), a multiplication and an addition counted as two.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from twinseg.errors import InputError
from twinseg.machine import peak_memory, processor

if TYPE_CHECKING:
    import torch
    from torch import nn

    from twinseg.cases import LoadedCase
    from twinseg.tasks import Task

Result = TypeVar("Result")

TASK = "brats-glioma"
REAL_CASE = Path(__file__).resolve().parents[2] / "../shared/data/brats-gli"
OURS = "TwinSegSlicer"
PEERS = ("SegResNet", "UNETR", "DynUNet", "SwinUNETR")
WINDOW, QUICK_WINDOW, OVERLAP = 96, 64, 0.5
PATIENCE = 15.0
"""Seconds that all windows of a peer may take; beyond them four are timed."""


@dataclass(frozen=True)
class Measurement:
    """One row. seconds: median of the runs, scaled to all windows; memory_gb: peak of the process, or of its tensors
    on a GPU."""

    method: str
    precision: str
    parameters: int
    gflop: float
    seconds: float
    runs: int
    windows_timed: int
    windows: int
    memory_gb: float
    note: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 2 where what was asked for cannot be."""
    options = options_of("Segment a BraTS case with TwinSegSlicer and with MONAI's networks.").parse_args(arguments)
    try:
        run(options.quick, options.json, options.case, options.device)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def options_of(description: str) -> argparse.ArgumentParser:
    """The options of the benchmarks of inference."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="rough numbers within 40 seconds on two cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured to this file")
    parser.add_argument("--case", type=Path, metavar="FOLDER", help="the case to segment (default: a BraTS-GLI case)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser


def run(quick: bool, json_file: Path | None, folder: Path | None, device: str) -> None:
    """Measure every method, print the table and the verdicts, write them. Raises InputError for bad options."""
    from rich.progress import track

    folder = checked_folder(folder, json_file)
    with tempfile.TemporaryDirectory() as scratch:
        image_file = Path(scratch) / "prepared.npy"
        case, rows = in_own_process(measure_ours, folder, device, quick, image_file)
        machine = in_own_process(measure_machine, device, quick)
        precisions = ("float32", "bfloat16") if machine["bfloat16_pays"] and not quick else ("float32",)
        for peer, precision in track([*product(PEERS, precisions)], "MONAI", disable=not sys.stdout.isatty()):
            try:
                rows.append(in_own_process(measure_peer, peer, precision, device, quick, image_file))
            except (RuntimeError, ImportError) as error:
                print(f"{peer}, {precision}: not measured ({str(error).splitlines()[0]})", file=sys.stderr)
    show(machine, case, rows, "rough" if quick else "")
    conclude(verdicts(rows), quick, machine, case, rows, json_file)


# --- what is measured, each in its own process -----------------------------------------------------------------------


def in_own_process(work: Callable[..., Result], *arguments: Any) -> Result:
    """What `work` returns in a fresh process. Raises what it raises, and RuntimeError where that process dies."""
    context = multiprocessing.get_context("forkserver")  # its server imports once what all the processes need
    context.set_forkserver_preload(["torch.utils.flop_counter", "monai.inferers", "monai.networks.nets"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def measure_machine(device_name: str, quick: bool) -> dict[str, Any]:
    """What this runs on, and the GFLOP/s of its best matrix product of 4096³ (on a quick run on a CPU, 2048³) in the
    numbers that pay there: on a CPU without units for bfloat16 that product alone would take minutes."""
    import torch

    from twinseg.inference import bfloat16_is_faster

    device = device_of(device_name)
    size = 2048 if quick and device.type == "cpu" else 4096
    bfloat16_pays = device.type == "cuda" or bfloat16_is_faster()
    rates = {}
    for dtype in (torch.float32, torch.bfloat16) if bfloat16_pays else (torch.float32,):
        factor = torch.rand(size, size, device=device).to(dtype)
        seconds = time_runs(partial(torch.matmul, factor, factor), device, 3 if quick else 6)
        rates[str(dtype).removeprefix("torch.")] = 2e-9 * size**3 / min(seconds)
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "bfloat16_pays": bfloat16_pays,
        "matrix_product_gflops": rates,
    }


def measure_ours(
    folder: Path | None, device_name: str, quick: bool, image_file: Path
) -> tuple[dict[str, Any], list[Measurement]]:
    """The case in numbers; the rows of ours: the whole way, and the network's pass alone. The prepared image goes to
    `image_file` for the peers."""
    import torch

    from twinseg.inference import autocast, segment
    from twinseg.memory import keep_freed_memory
    from twinseg.network import build_network, count_parameters, preset
    from twinseg.preprocessing import label_values, prepare
    from twinseg.tasks import load_task

    keep_freed_memory()  # as the worker and the command line do
    task, device, repetitions = load_task(TASK), device_of(device_name), 1 if quick else 3
    name, case = load(folder, task)
    config = preset("small", len(task.sequences), len(label_values(task)), task.strides)
    network = build_network(config).to(device).eval()
    whole_way = partial(segment, network, case, task, device=device)
    computed = "" if quick else whole_way().computed  # warms up
    seconds = time_runs(whole_way, device, repetitions)
    memory = peak_memory(device)
    prepared = prepare(case, task).image
    np.save(image_file, prepared)
    image = torch.from_numpy(prepared)[None].to(device)
    with autocast(device):
        on = torch.is_autocast_enabled(device.type)
        own = str(torch.get_autocast_dtype(device.type)).removeprefix("torch.") if on else "float32"
    fixed = count_parameters(network), count_gflop(partial(build_network, config), tuple(image.shape))
    note = ", ".join(filter(None, ("arrays to labels", computed)))
    rows = [Measurement(OURS, own, *fixed, statistics.median(seconds), repetitions, 1, 1, memory, note)]
    for precision in (own,) if quick else dict.fromkeys((own, "float32")):
        with torch.inference_mode(), autocast(device) if precision == own else contextlib.nullcontext():
            alone = statistics.median(time_runs(partial(network, image), device, repetitions))
        rows.append(
            Measurement(OURS, precision, *fixed, alone, repetitions, 1, 1, peak_memory(device), "network alone")
        )
    shape, cropped = next(iter(case.images.values())).shape, tuple(prepared.shape[1:])
    windows = {"windows": count_windows(cropped), "windows_uncropped": count_windows(shape)}
    return {"name": name, "shape": shape, "cropped": cropped, **windows}, rows


def measure_peer(name: str, precision: str, device_name: str, quick: bool, image_file: Path) -> Measurement:
    """The row of one of MONAI's networks in one precision."""
    import torch
    from monai.inferers import sliding_window_inference

    device = device_of(device_name)
    tuned, side = precision == "bfloat16", QUICK_WINDOW if quick else WINDOW
    image = torch.from_numpy(np.load(image_file))[None].to(device)
    build = partial(build_peer, name, image.shape[1], tuned)
    network = build(side).to(device).eval()
    segment = partial(
        sliding_window_inference, roi_size=(side,) * 3, sw_batch_size=1, predictor=network, overlap=OVERLAP
    )
    part = centre(image, (side, side, side))
    windows = count_windows(image.shape[2:])
    layouts = (torch.contiguous_format, torch.channels_last_3d) if tuned else (torch.contiguous_format,)
    first: dict[torch.memory_format, float] = {}
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16) if tuned else contextlib.nullcontext():
        for layout in layouts:
            network.to(memory_format=layout)  # type: ignore[call-overload]
            first[layout] = min(time_runs(partial(segment, part), device, 1 if device.type == "cpu" else 3))
        best = min(layouts, key=lambda layout: first[layout])
        network.to(memory_format=best)  # type: ignore[call-overload]
        seconds = [first[best]]
        if not quick:
            all_windows = first[best] * windows
            part = image if all_windows <= PATIENCE else centre(image, (side, side * 3 // 2, side * 3 // 2))
            seconds = time_runs(partial(segment, part), device, 3 if all_windows * 3 <= PATIENCE else 1)
    timed = count_windows(part.shape[2:], side)
    gflop = {size: count_gflop(partial(build, size), (1, image.shape[1], size, size, size)) for size in (side, WINDOW)}
    return Measurement(
        method=name,
        precision=precision,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        gflop=gflop[WINDOW] * windows,
        seconds=statistics.median(seconds) * windows / timed * gflop[WINDOW] / gflop[side],
        runs=len(seconds),
        windows_timed=timed,
        windows=windows,
        memory_gb=peak_memory(device),
        note=f"window of {side}³" if quick else "channels last" if best is torch.channels_last_3d else "",
    )


def build_peer(name: str, sequences: int, tuned: bool, side: int) -> nn.Module:
    """One of MONAI's networks, of the size that its authors or MONAI's model zoo take for BraTS."""
    from monai.networks import nets

    classes, strides, filters = 4, [1, 2, 2, 2, 2, 2], [32, 64, 128, 256, 320, 320]
    builders: dict[str, Callable[[], nn.Module]] = {
        "SegResNet": lambda: nets.SegResNet(in_channels=sequences, out_channels=classes, init_filters=16),
        "UNETR": lambda: nets.UNETR(sequences, classes, img_size=(side,) * 3),
        "DynUNet": lambda: nets.DynUNet(3, sequences, classes, [3] * 6, strides, strides[1:], filters=filters),
        "SwinUNETR": lambda: nets.SwinUNETR(sequences, classes, feature_size=48, use_flash_attention=tuned),
    }
    return builders[name]()


# --- tools -----------------------------------------------------------------------------------------------------------


def checked_folder(folder: Path | None, json_file: Path | None) -> Path | None:
    """The folder of the case: the one asked for, else that of the real case where it is at hand. Raises InputError
    for a folder that is not there, and for a file that cannot be written as its folder is not there."""
    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; name one that holds the images of a case")
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise InputError(f"{json_file}: its folder does not exist; make it first")
    return REAL_CASE if folder is None and REAL_CASE.is_dir() else folder


def load(folder: Path | None, task: Task) -> tuple[str, LoadedCase]:
    """The name and the images of the case in a folder, or of a random one of BraTS's size with a brain's foreground."""
    from twinseg.cases import LoadedCase, load_case
    from twinseg.segmentation import case_of_folder
    from twinseg.volumes import Volume

    if folder is not None:
        case = case_of_folder(folder, task)
        return case.name, load_case(case, task, with_labels=False)
    shape, radii = (240, 240, 155), (70, 87, 67)
    axes = np.ogrid[tuple(slice(-(size - 1) / 2, size / 2) for size in shape)]
    inside = sum((axis / radius) ** 2 for axis, radius in zip(axes, radii, strict=True)) < 1
    random, affine = np.random.default_rng(0), np.diag([-1.0, -1.0, 1.0, 1.0])
    images = {s.name: Volume(inside * (random.random(shape, np.float32) + 1), affine) for s in task.sequences}
    return "random numbers in an ellipsoid, as no real case is at hand", LoadedCase(images, images["t1"], None)


def device_of(name: str) -> torch.device:
    """cpu, cuda, or for auto the GPU where there is one. Raises InputError for a device that is not there."""
    import torch

    from twinseg.inference import choose_device

    return choose_device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def time_runs(work: Callable[[], object], device: torch.device, repetitions: int) -> list[float]:
    """Seconds of each run, until the device has finished it."""
    import torch

    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    seconds = []
    for _ in range(repetitions):
        wait()
        started = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - started)
    return seconds


def count_gflop(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> float:
    """GFLOP of a pass over an input of this shape, without computing it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = build().eval().to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(shape, device="meta"))
    return float(counter.get_total_flops()) / 1e9


def count_windows(shape: Sequence[int], side: int = WINDOW) -> int:
    """Windows that MONAI's `sliding_window_inference` takes for an image of this shape."""
    from monai.data.utils import dense_patch_slices

    return len(dense_patch_slices([max(size, side) for size in shape], (side,) * 3, (int(side * (1 - OVERLAP)),) * 3))


def centre(image: torch.Tensor, size: Iterable[int]) -> torch.Tensor:
    """The middle of an image (1, sequences, X, Y, Z), and all of it along an axis that is shorter."""
    for axis, wanted in enumerate(size, start=2):
        length = min(wanted, image.shape[axis])
        image = image.narrow(axis, (image.shape[axis] - length) // 2, length)
    return image.contiguous()


# --- what is shown ---------------------------------------------------------------------------------------------------


def conclude(
    lines: Sequence[str],
    quick: bool,
    machine: dict[str, Any],
    case: dict[str, Any],
    rows: Sequence[Any],
    json_file: Path | None,
) -> None:
    """Print the verdicts, and write them with all that was measured, the rows being dataclasses."""
    from twinseg.volumes import write_atomically

    judged = [line + (" (rough)" if quick else "") for line in lines]
    print(*judged, sep="\n")
    if json_file is not None:
        measured = {"quick": quick, "machine": machine, "case": case, "rows": [*map(asdict, rows)], "verdicts": judged}
        write_atomically(json_file, (json.dumps(measured, indent=1, ensure_ascii=False) + "\n").encode())


def verdicts(rows: Sequence[Measurement]) -> list[str]:
    """Whether the bars are met, a line each; a peer stands by its faster row."""
    ours = rows[0]
    ratios = {peer: [row.seconds / ours.seconds for row in rows if row.method == peer] for peer in PEERS}
    swin = ratios["SwinUNETR"]
    lines = ["at least 20x faster than SwinUNETR: not measured", "faster than all four: not measured"]
    if swin:
        shown = ", ".join(f"{ratio:.1f}x" for ratio in swin)
        lines[0] = f"at least 20x faster than SwinUNETR: {'yes' if min(swin) >= 20 else 'no'} ({shown})"
    if all(ratios.values()):
        least, nearest = min((min(of_peer), peer) for peer, of_peer in ratios.items())
        lines[1] = f"faster than all four: {'yes' if least > 1 else 'no'} (than {nearest}, the next, {least:.1f}x)"
    memory = ours.memory_gb
    return [*lines, f"peak memory under 4 GB: {'yes' if memory < 4 else 'no'} ({memory:.2f} GB)"]


def show(machine: dict[str, Any], case: dict[str, Any], rows: Sequence[Measurement], title: str) -> None:
    """Print the machine, the case and the table of rows."""
    from rich.console import Console
    from rich.table import Table

    rates = machine["matrix_product_gflops"]
    shape, cropped = ("×".join(map(str, case[key])) for key in ("shape", "cropped"))
    inside, whole = case["windows"], case["windows_uncropped"]
    print(
        f"{machine['date']}: computed on {machine['device']} ({machine['cpu']}, cores: {machine['cores']}, threads: "
        f"{machine['threads']}), torch {machine['torch']}, matrix product "
        + ", ".join(f"{precision} {rate:.0f} GFLOP/s" for precision, rate in rates.items())
        + f"\n{case['name']}: {shape}, cropped to {cropped} for all, {inside} windows of {WINDOW}³ at half overlap; "
        f"uncropped {whole}, which would take the peers {whole / inside:.2f} times as long"
    )
    if not machine["bfloat16_pays"]:
        print("bfloat16 is slower than float32 here: the peers run in float32 alone")
    header = ["method", "precision", "parameters", "GFLOP", "windows timed / all", "seconds", "to ours"]
    table = Table(*header, "GFLOP/s", "of matrix product", "peak GB", "note", title=title)
    for row in rows:
        rate = row.gflop / row.seconds
        table.add_row(
            *(row.method, row.precision, f"{row.parameters / 1e6:.1f} M", f"{row.gflop:.0f}"),
            *(f"{row.windows_timed} / {row.windows}", f"{row.seconds:.2f}", f"{row.seconds / rows[0].seconds:.1f}x"),
            *(
                f"{rate:.0f}",
                f"{rate / rates.get(row.precision, max(rates.values())):.0%}",
                f"{row.memory_gb:.2f}",
                row.note,
            ),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    sys.exit(main())
