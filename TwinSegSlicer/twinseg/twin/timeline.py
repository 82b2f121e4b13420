"""A patient over time: adding a scan, volumes with their errors by date, what changed between two dates."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from twinseg.errors import Cancelled, InputError
from twinseg.pictures import png
from twinseg.tasks import Task, load_task
from twinseg.twin.lesions import (
    LesionHistory,
    LesionSettings,
    Scan,
    follow_lesions,
    followed_region,
    measure_volume,
    region_mask,
)
from twinseg.twin.registration import Registration, register
from twinseg.twin.store import Twin
from twinseg.twin.store_records import ORIGINS, Segmentation, TimePoint, checked_day, checked_origin
from twinseg.volumes import Volume, read_image, resample_to

if TYPE_CHECKING:
    from twinseg.inference import Report

REGISTERED_ON = ("t1ce", "t1", "flair", "t2")  # by preference; else the first sequence that both scans have
GONE, STAYED, NEW = 1, 2, 3  # the values of a change map; 0 is what was never tumour


@dataclass(frozen=True)
class Measured:
    """One scan on the timeline. volumes: (mL, standard deviation) by region; None where there is no segmentation."""

    timepoint: str
    day: float
    day_uncertainty: float
    volumes: dict[str, tuple[float, float]] | None


def add_scan(
    twin: Twin,
    day: float,
    images: Mapping[str, Volume],
    *,
    day_uncertainty: float = 0.0,
    labels: Volume | None = None,
    origin: str = "expert",
    no_tumour: bool = False,
    uncertainty: Volume | None = None,
    model: str | None = None,
    delta: str | None = None,
    source_sha256: Mapping[str, str] | None = None,
    report: Report = lambda done, stage: None,
) -> TimePoint:
    """Add a scan to a twin: register it to the baseline, follow the lesions, keep it all in one revision.

    labels: its segmentation, on the grid of one of the images. One without any tumour must be meant: say `no_tumour`.
    `report` is told where the work is, often, and may stop it. Raises InputError for a day that does not follow on, a
    scan that does not match the baseline, labels that the task does not know, an empty segmentation; Cancelled when
    `report` asks for it; then nothing was added.
    """

    def tell(done: float, stage: str) -> None:
        if report(done, stage):
            raise Cancelled("stopped; nothing was changed")

    tell(0.0, "checking the scan")
    scans = twin.timepoints
    checked_day(day, day_uncertainty, [scan.day for scan in scans])
    if labels is not None:
        check_labels(labels, load_task(twin.task), baseline=not scans, no_tumour=no_tumour)
    registration = _registered(twin, scans[0], images, day, lambda *at: tell(0.8 * at[0], at[1])) if scans else None
    to_baseline = np.eye(4) if registration is None else registration.to_baseline
    lesions = None
    if labels is not None:
        tell(0.8, "matching the lesions")
        lesions = _lesions(twin, Scan(f"{len(scans):03d}", labels, to_baseline, uncertainty))
    tell(0.9, "writing the scan")
    return twin.add_timepoint(
        day,
        images,
        day_uncertainty=day_uncertainty,
        to_baseline=to_baseline,
        registration=None if registration is None else registration.to_json(),
        source_sha256=source_sha256,
        segmentation=None if labels is None else (labels, origin),
        uncertainty=uncertainty,
        model=model,
        delta=delta,
        lesions=lesions,
    )


def correct_scan(twin: Twin, timepoint: str, labels: Volume, origin: str, *, no_tumour: bool = False) -> Segmentation:
    """Add a corrected (or another) segmentation of a scan that is there; lesions keep their ids. Raises InputError like
    `add_scan`."""
    point = twin.timepoint(timepoint)
    check_labels(labels, load_task(twin.task), baseline=timepoint == twin.timepoints[0].name, no_tumour=no_tumour)
    drawn = point.segmentation
    counts = drawn is None or ORIGINS.index(checked_origin(origin)) >= ORIGINS.index(drawn.origin)
    lesions = _lesions(twin, Scan(timepoint, labels, point.to_baseline)) if counts else None
    return twin.add_segmentation(timepoint, labels, origin, lesions=lesions)


def check_labels(labels: Volume, task: Task, *, baseline: bool, no_tumour: bool) -> None:
    """Raises InputError for a segmentation that cannot be right."""
    values = set(np.unique(labels.array).tolist())
    if unknown := values - {0, *(label.value for label in task.labels)}:
        raise InputError(f"the segmentation holds the label {min(unknown)}, which the task {task.name} does not know")
    empty = values <= {0}
    if empty and baseline:
        raise InputError("the baseline's segmentation is empty; a twin needs a tumour to follow, so segment it first")
    if empty and not no_tumour:
        raise InputError("the segmentation is empty; if no tumour is left, say so (--no-tumour), else segment again")


def lesion_history(twin: Twin) -> LesionHistory:
    """What `lesions.json` says."""
    return LesionHistory.from_json(twin.document("lesions.json"))


def timeline(twin: Twin) -> tuple[Measured, ...]:
    """Every scan with its volumes, by day."""
    task = load_task(twin.task)
    measured = []
    for point in twin.timepoints:
        labels = twin.labels(point)
        volumes = None
        if labels is not None:
            unsure = _uncertainty(twin, point)
            volumes = {r.name: measure_volume(region_mask(labels, r.labels), unsure) for r in task.regions}
        measured.append(Measured(point.name, point.day, point.day_uncertainty, volumes))
    return tuple(measured)


def change_map(twin: Twin, before: str, after: str, region: str | None = None) -> tuple[Volume, dict[str, float]]:
    """What became of a region (None: the one that lesions are followed in) between two scans, in the twin's frame:
    `GONE`, `STAYED`, `NEW` (uint8), and the mL of each.

    Raises InputError where a scan has no segmentation.
    """
    values = followed_region(load_task(twin.task), LesionSettings(region=region))[1]
    masks = [in_frame(twin, name, values) for name in (before, after)]
    changed = np.select(
        [masks[0].array & ~masks[1].array, masks[0].array & masks[1].array, masks[1].array], [GONE, STAYED, NEW]
    )
    voxel = masks[0].voxel_ml
    counts = {name: voxel * int(np.count_nonzero(changed == v)) for name, v in (("gone", 1), ("stayed", 2), ("new", 3))}
    return Volume(changed.astype(np.uint8), masks[0].affine), counts


def in_frame(twin: Twin, name: str, values: Sequence[int]) -> Volume:
    """The mask (bool) of label values of a scan on the twin's frame, the baseline's grid."""
    point, frame = twin.timepoint(name), twin.frame
    labels = twin.labels(point)
    if labels is None or frame is None:
        raise InputError(f"time point {name} has no segmentation; add one (twinseg twin add, or correct it in Slicer)")
    mask = Volume(np.isin(labels.array, values).astype(np.uint8), point.to_baseline @ labels.affine)
    if np.allclose(mask.affine, frame.affine, atol=1e-6) and mask.shape == frame.shape:
        return Volume(mask.array > 0, frame.affine)
    # Shares of a voxel, of which half and more is tumour: keeps the volume better than the nearest voxel does.
    share = resample_to(Volume(mask.array.astype(np.float32), mask.affine), frame.affine, frame.shape, fill=0.0)
    return Volume(share.array >= 0.5, frame.affine)


def volume_chart(measured: Sequence[Measured], task: Task) -> bytes:
    """PNG of each region's volume over time, with error bars of one standard deviation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    draw_volumes(axes, measured, task)
    axes.set_ylim(bottom=0)
    return png(figure)


def draw_volumes(axes: Any, measured: Sequence[Measured], task: Task) -> None:
    """Draw the volumes on matplotlib axes; what is drawn later must fit, so the axis is not fixed."""
    there = [point for point in measured if point.volumes is not None]
    colors = {label.value: np.array(label.color) / 255 for label in task.labels}
    for region, marker in zip(task.regions, itertools.cycle("osD^v"), strict=False):
        values = [point.volumes[region.name] for point in there if point.volumes is not None]
        axes.errorbar(
            [point.day for point in there],
            [value for value, _ in values],
            yerr=[deviation for _, deviation in values],
            xerr=[point.day_uncertainty for point in there],
            label=region.title,
            color=colors[region.labels[0]] * 0.75 if len(region.labels) == 1 else None,
            marker=marker,
            markersize=5,
            capsize=3,
            linewidth=1.5,
        )
    axes.set_xlabel("days since the baseline scan")
    axes.set_ylabel("volume, mL (± 1 SD)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)


def _registered(
    twin: Twin, baseline: TimePoint, images: Mapping[str, Volume], day: float, report: Report
) -> Registration:
    shared = [name for name in (*REGISTERED_ON, *images) if name in images and name in baseline.images]
    if not shared:
        raise InputError(f"day {day:g}: the scan shares no sequence with the baseline ({', '.join(baseline.images)})")
    return register(images[shared[0]], twin.image(baseline, shared[0]), name=f"the scan of day {day:g}", report=report)


def _lesions(twin: Twin, changed: Scan) -> dict[str, Any]:
    """`lesions.json` with one scan added or drawn anew; ids that were given are kept."""
    settings = LesionSettings()
    region, values = followed_region(load_task(twin.task), settings)
    scans = {changed.name: changed}
    for point in twin.timepoints:
        labels = twin.labels(point)
        if labels is not None and point.name != changed.name:
            scans[point.name] = Scan(point.name, labels, point.to_baseline, _uncertainty(twin, point))
    history = follow_lesions([scans[name] for name in sorted(scans)], values, settings, lesion_history(twin))
    return {"region": region, **history.to_json()}


def _uncertainty(twin: Twin, point: TimePoint) -> Volume | None:
    drawn = point.segmentation
    if drawn is None or drawn.uncertainty is None:
        return None
    twin.read(drawn.uncertainty)
    return read_image(twin.folder / drawn.uncertainty)
