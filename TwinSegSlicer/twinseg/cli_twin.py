"""The commands `twinseg twin …`: a patient's record over time, from the command line."""

from __future__ import annotations

import hashlib
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from twinseg.cli_case import T1, T2, CaseFolder, Device, Flair, Image, T1ce, chosen_case
from twinseg.cli_twin_export import Folder, dicom, export, head, list_twins, verify
from twinseg.errors import InputError
from twinseg.terminal import Json, finish, print_table, progress_bar

twin_app = typer.Typer(
    no_args_is_help=True, help="The patient twin: scans over time, adaptation, response, forecast, report."
)


@twin_app.command()
def create(
    folder: Folder,
    pseudonym: Annotated[str | None, typer.Option(help="Not the patient's name; without it one is drawn.")] = None,
    task: Annotated[str, typer.Option(help="Task whose labels the segmentations carry.")] = "brats-glioma",
    treatments: Annotated[Path | None, typer.Option(help="JSON file of what is known of the treatment.")] = None,
    json_file: Json = None,
) -> None:
    """Make a twin: an empty folder that scans are added to."""
    from twinseg.tasks import load_task
    from twinseg.twin.store import Twin

    known = _treatments(treatments)
    twin = Twin.create(folder, task=load_task(task).name, pseudonym=pseudonym)
    if known is not None:
        twin.set_document("treatments.json", known)
    finish(f"{folder}: twin {twin.pseudonym} made", {"pseudonym": twin.pseudonym, **head(twin)}, json_file)


@twin_app.command()
def add(
    folder: Folder,
    case: CaseFolder = None,
    day: Annotated[float | None, typer.Option(help="Days since the baseline scan; or give two dates.")] = None,
    scan_date: Annotated[datetime | None, typer.Option("--date", formats=["%Y-%m-%d"], help="Not kept.")] = None,
    baseline_date: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Of the baseline. Not kept.")
    ] = None,
    day_uncertainty: Annotated[float, typer.Option(min=0, help="Standard deviation of the day.")] = 0.0,
    t1: T1 = None,
    t1ce: T1ce = None,
    t2: T2 = None,
    flair: Flair = None,
    image: Image = [],  # noqa: B006
    segmentation: Annotated[
        Path | None, typer.Option(help="Label map; without it the case's own, or the model's.")
    ] = None,
    origin: Annotated[
        str | None, typer.Option(help="Who drew the label map: expert, edited or model; to be said where there is one.")
    ] = None,
    no_tumour: Annotated[bool, typer.Option("--no-tumour", help="An empty segmentation is meant.")] = False,
    model: Annotated[Path | None, typer.Option(help="Model file that segments where no label map is given.")] = None,
    device: Device = "auto",
    treatments: Annotated[
        Path | None, typer.Option(help="JSON file: replaces what was known of the treatment.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Add a scan: it is registered to the baseline, segmented if need be, and its lesions are followed."""
    from twinseg.cases import load_case
    from twinseg.tasks import load_task
    from twinseg.twin.steps import time_point_added
    from twinseg.twin.store import Twin
    from twinseg.twin.timeline import add_scan
    from twinseg.volumes import read_labels

    twin, task = Twin.open(folder), load_task(Twin.open(folder).task)
    since = _day(day, scan_date, baseline_date)
    known = _treatments(treatments)
    found = chosen_case(case, {"t1": t1, "t1ce": t1ce, "t2": t2, "flair": flair}, image, task)
    loaded = load_case(found, task)
    labels = read_labels(segmentation) if segmentation is not None else loaded.labels
    by, delta, uncertainty = None, None, None
    if labels is None:
        labels, uncertainty, by, delta = _segmented(twin, loaded, model, device)
        origin = "model"
    elif origin is None:  # not guessed: a model's drawing that passed for an expert's would outrank every edit
        drawn = segmentation or found.labels
        raise InputError(f"{drawn}: who drew this label map? add --origin expert, edited or model")
    sources = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.images.items()}
    with progress_bar("adding") as bar:
        point = add_scan(
            twin,
            since,
            loaded.images,
            day_uncertainty=day_uncertainty,
            labels=labels,
            origin=origin,
            no_tumour=no_tumour,
            uncertainty=uncertainty,
            model=by,
            delta=delta,
            source_sha256=sources,
            report=lambda *said: bar(*said),
        )
    if known is not None:
        twin.set_document("treatments.json", known)
    measured = {**time_point_added(twin, point), "delta": delta, **head(twin)}
    _say_scores(measured["forecasts_scored"])
    volumes = ", ".join(
        f"{name} {ml['volume']:.1f} ± {ml['standard_deviation']:.1f} mL" for name, ml in measured["volumes_ml"].items()
    )
    fit = "" if point.registration is None else f", agreement with the baseline {point.registration['agreement']:.2f}"
    line = f"{folder}: day {point.day:g} added, {len(measured['lesions'])} lesions, {volumes}{fit}"
    finish(line, measured, json_file)


@twin_app.command()
def correct(
    folder: Folder,
    timepoint: Annotated[str, typer.Argument(help="Scan of the twin; twinseg twin list shows which there are.")],
    segmentation: Annotated[Path, typer.Argument(help="Label map on the grid of one of the scan's images.")],
    origin: Annotated[str, typer.Option(help="Who drew it: expert, edited or model.")] = "expert",
    no_tumour: Annotated[bool, typer.Option("--no-tumour", help="An empty segmentation is meant.")] = False,
    json_file: Json = None,
) -> None:
    """Add a corrected segmentation of a scan; earlier ones stay, and the newest of the most trusted origin counts."""
    from twinseg.twin.steps import time_point_added
    from twinseg.twin.store import Twin
    from twinseg.twin.timeline import correct_scan
    from twinseg.volumes import read_labels

    twin = Twin.open(folder)
    correct_scan(twin, timepoint, read_labels(segmentation), origin, no_tumour=no_tumour)
    point = twin.timepoint(timepoint)
    counts = point.segmentation.origin if point.segmentation is not None else origin
    measured = {**time_point_added(twin, point), "counts": counts, **head(twin)}
    finish(f"{folder}: scan {timepoint} corrected, the segmentation of origin {counts} counts", measured, json_file)


@twin_app.command()
def adapt(
    folder: Folder,
    model: Annotated[Path | None, typer.Option(help="Base model file; else the task's starter model.")] = None,
    roll_back: Annotated[bool, typer.Option("--roll-back", help="Use the model before the last one again.")] = False,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Fit a model to the patient's own corrected scans; it is used only if it is not worse on held-out voxels."""
    from twinseg.inference import choose_device
    from twinseg.segmentation import load_network, starter_model
    from twinseg.tasks import load_task
    from twinseg.twin import adaptation, adaptation_delta
    from twinseg.twin.store import Twin

    twin = Twin.open(folder)
    task = load_task(twin.task)
    base = load_network(model or starter_model(task.name), task)
    if roll_back:
        before = adaptation_delta.roll_back(twin, base.hash)
        now = "the base model" if before is None else f"the adapted model {before.name}"
        used = None if before is None else before.name
        finish(f"{folder}: rolled back to {now}", {"in_use": used, "base": base.hash, **head(twin)}, json_file)
        return
    with progress_bar("adapting") as bar:
        adapted = adaptation.adapt(twin, base, device=choose_device(device), report=lambda *said: bar(*said))
    record = adaptation.keep(twin, adapted)
    current = adaptation_delta.active_delta(twin, base.hash)
    measured = {"delta": record.name, "in_use": None if current is None else current.name, "base": base.hash}
    line = f"{folder}: adapted model {record.name} in {adapted.seconds:.0f} s. {adapted.reason}"
    finish(line, {**measured, **adapted.to_json(), **head(twin)}, json_file)


@twin_app.command()
def forecast(
    folder: Folder,
    region: Annotated[str | None, typer.Option(help="Region; else the one that lesions are followed in.")] = None,
    growth: Annotated[str, typer.Option(help="space (with a map) or curve (volumes alone, quicker).")] = "space",
    horizon: Annotated[float, typer.Option(help="Days after the last scan.")] = 180.0,
    map_day: Annotated[float, typer.Option(help="Days after the last scan of the probability map.")] = 90.0,
    treatment_day: Annotated[float, typer.Option(help="Days after the last scan when treatment would begin.")] = 14.0,
    dose_map: Annotated[Path | None, typer.Option(help="Dose in Gy for 60 Gy, in the baseline's space.")] = None,
    probability: Annotated[Path | None, typer.Option(help="Write the probability map to this file as well.")] = None,
    members: Annotated[int, typer.Option(help="Samples of the posterior.")] = 200,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    json_file: Json = None,
) -> None:
    """Forecast the volume under several treatments, with its bands. Research only: not for treatment decisions."""
    from twinseg.inference import choose_device
    from twinseg.twin.outlook import OutlookConfig, look_ahead, seal
    from twinseg.twin.outlook_table import forecast_table
    from twinseg.twin.steps import scored_forecasts
    from twinseg.twin.store import Twin
    from twinseg.volumes import Volume, read_image, write_volume

    if probability is not None and (growth == "curve" or not probability.parent.is_dir()):
        raise InputError(f"{probability}: only growth in space gives a map, and its folder must exist")
    twin = Twin.open(folder)
    config = OutlookConfig(
        region=region,
        growth=growth,
        days_ahead=tuple(horizon * n / 12 for n in range(1, 13)),
        map_days_ahead=map_day,
        treatment_days_ahead=treatment_day,
        dose_map=None if dose_map is None else read_image(dose_map),
        members=members,
        device=str(choose_device(device)),
    )
    scored = scored_forecasts(twin)
    _say_scores(scored)
    with progress_bar("forecasting") as bar:
        outlook = look_ahead(twin, config, lambda *said: bar(*said))
    record = seal(twin, outlook)
    told = outlook.to_json()
    if probability is not None and outlook.forecasts[0].probability is not None and twin.frame is not None:
        write_volume(probability, Volume(outlook.forecasts[0].probability, twin.frame.affine))
    last = told["last"]["day"]
    title = f"{outlook.region} in mL: median and 90 % band, days after the scan of day {last:g}"
    print_table(title, *forecast_table(told))
    for note in outlook.notes:
        typer.echo(note)
    line = f"{folder}: forecast {record.name} sealed"
    finish(line, {"record": record.name, **told, "forecasts_scored": scored, **head(twin)}, json_file)


@twin_app.command()
def respond(
    folder: Folder,
    timepoint: Annotated[str | None, typer.Option(help="Scan that the next options are about; else the last.")] = None,
    clinical: Annotated[str | None, typer.Option(help="better, stable or worse.")] = None,
    steroids: Annotated[float | None, typer.Option(help="Dexamethasone equivalent, mg a day.")] = None,
    override: Annotated[str | None, typer.Option(help="CR, PR, SD or PD instead of what the rules say.")] = None,
    reason: Annotated[str, typer.Option(help="Why; needed with --override.")] = "",
    setting: Annotated[list[str], typer.Option(help="NAME=VALUE of a rule, for instance target_lesions=3.")] = [],  # noqa: B006
    json_file: Json = None,
) -> None:
    """Assess the response by RANO 2.0, by diameters and by volume; each with the rule that fired."""
    import dataclasses

    from twinseg.twin.assessments import respond as assess_twin
    from twinseg.twin.response import Override
    from twinseg.twin.store import Twin

    twin = Twin.open(folder)
    drawn = [scan.name for scan in twin.timepoints if scan.segmentation is not None]
    if not drawn:
        raise InputError(f"{folder}: it has no scan with a segmentation; add one (twinseg twin add)")
    name = twin.timepoint(timepoint).name if timepoint else drawn[-1]
    record, assessed = assess_twin(
        twin,
        clinical={name: clinical} if clinical else None,
        steroids_mg={name: steroids} if steroids is not None else None,
        overrides=(Override(name, override, reason),) if override else (),
        settings=_settings(setting) if setting else None,
    )
    for measure, ones in assessed.items():
        rows = [[f"{one.day:g}", f"{one.size:.4g}", one.words, " ".join(one.trace)] for one in ones]
        print_table(f"RANO 2.0, {measure}", ["day", "mm²" if measure == "2D" else "mL", "response", "why"], rows)
    measured = {measure: [dataclasses.asdict(one) for one in ones] for measure, ones in assessed.items()}
    last = "; ".join(f"{measure}: {ones[-1].words}" for measure, ones in assessed.items())
    finish(f"{folder}: {last}", {"record": record.name, "assessed": measured, **head(twin)}, json_file)


@twin_app.command()
def report(
    folder: Folder,
    output: Annotated[Path, typer.Option(help="HTML file to write.")],
    pdf: Annotated[Path | None, typer.Option(help="PDF file to write as well.")] = None,
    json_file: Json = None,
) -> None:
    """Write the patient's page: timeline, pictures, response, forecast, provenance."""
    from twinseg.twin.steps import write_page
    from twinseg.twin.store import Twin

    twin = Twin.open(folder)
    write_page(twin, output, pdf)
    finish(f"{output}: report on {twin.pseudonym} written", {"html": output, "pdf": pdf, **head(twin)}, json_file)


for command in (verify, export, dicom):
    twin_app.command()(command)
twin_app.command("list")(list_twins)


def _segmented(twin: Any, loaded: Any, model: Path | None, device: str) -> tuple[Any, Any, str, str | None]:
    """Labels, uncertainty, the model's hash and the delta of the patient's own model, if one is in use."""
    from twinseg.inference import choose_device, segment
    from twinseg.segmentation import load_network, starter_model
    from twinseg.tasks import load_task
    from twinseg.twin.adaptation_delta import adapted_network

    base = load_network(model or starter_model(twin.task), load_task(twin.task))
    network, delta = adapted_network(twin, base)
    with progress_bar("segmenting") as bar:
        result = segment(
            network.network,
            loaded,
            network.task,
            device=choose_device(device),
            uncertainty=True,
            report=lambda *said: bar(*said),
        )
    return result.labels, result.uncertainty, network.hash, delta


def _day(day: float | None, scan: datetime | None, baseline: datetime | None) -> float:
    """Days since the baseline, given as such or by two dates."""
    from twinseg.twin.store_records import days_since

    if day is not None and scan is None and baseline is None:
        return day
    if day is None and scan is not None and baseline is not None:
        return days_since(baseline.date(), scan.date(), date.today())
    raise InputError("give either --day, or both --date and --baseline-date (neither date is kept)")


def _treatments(file: Path | None) -> dict[str, Any] | None:
    import json

    from twinseg.twin.treatments import Treatments

    if file is None:
        return None
    try:
        return Treatments.from_json(json.loads(file.read_text(encoding="utf-8"))).to_json()
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file}: it cannot be read as JSON ({' '.join(str(error).split())[:80]}); correct it"
        ) from error


def _settings(entries: list[str]) -> dict[str, Any]:
    """Settings of the rules from entries NAME=VALUE; a value is JSON, or else a word."""
    import json

    settings = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals:
            raise InputError(f"--setting {entry}: give NAME=VALUE, for instance target_lesions=3")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def _say_scores(scored: list[dict[str, Any]]) -> None:
    """Say how earlier forecasts fared."""
    for score in scored:
        typer.echo(score["words"])
