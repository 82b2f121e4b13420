"""The command `twinseg`. Each command is thin: it reads its arguments, shows progress and prints what the library did.

torch and the rest are imported inside the commands, so that `twinseg --help` answers at once.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from twinseg import __version__
from twinseg.cli_case import T1, T2, CaseFolder, Device, Flair, Image, Model, T1ce, chosen_case
from twinseg.cli_cases import cases_app
from twinseg.cli_dicom import dicom_seg
from twinseg.cli_twin import twin_app
from twinseg.errors import Cancelled, InputError
from twinseg.memory import keep_freed_memory
from twinseg.terminal import Json, classification_table, finish, print_table, progress_bar, segmentation_table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="Brain tumour segmentation, synthetic patients and the patient twin.",
)
model_app = typer.Typer(no_args_is_help=True, help="Look at model files, and exchange them with MONAI.")
app.add_typer(model_app, name="model")
app.add_typer(cases_app, name="cases")
app.add_typer(twin_app, name="twin")


def main() -> None:
    """Entry point: bad input is one line and exit code 2, a fault exit code 1."""
    keep_freed_memory()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # what is wrong with a file is told in one line
    try:
        app()
    except InputError as error:
        print(f"twinseg: {error}", file=sys.stderr)
        sys.exit(2)
    except Cancelled as stopped:
        print(f"twinseg: {stopped}", file=sys.stderr)
        sys.exit(130)


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    """Options that stand before the command."""
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not hold patients of the same names yet.")],
    sites: Annotated[int, typer.Option(min=1, help="Hospitals, each with its own scanner.")] = 2,
    patients: Annotated[int, typer.Option(min=1, help="Patients a hospital.")] = 4,
    visits: Annotated[int, typer.Option(min=1, help="Visits a patient.")] = 1,
    size: Annotated[int, typer.Option(help="Voxels along each axis.")] = 96,
    spacing: Annotated[float, typer.Option(help="Voxel size in mm.")] = 2.0,
    anatomy: Annotated[Path | None, typer.Option(help="Folder of brain label maps to draw heads from.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same patients.")] = 0,
    json_file: Json = None,
) -> None:
    """Make synthetic patients: images, label maps and the truth behind them."""
    from twinseg.phantom import write_cohort

    with progress_bar("making patients") as bar:
        summary = write_cohort(
            out,
            sites=sites,
            patients=patients,
            visits=visits,
            size=size,
            spacing=spacing,
            anatomy=anatomy,
            seed=seed,
            progress=lambda done, total, name: bar(done / total, f"{done} of {total}: {name}"),
        )
    finish(f"{out}: {sites * patients} patients of {sites} sites", summary, json_file)


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="Folder of labelled cases.")],
    output: Annotated[Path, typer.Option(help="Model file to write (.safetensors).")],
    task: Annotated[str, typer.Option(help="Task by name, or its .toml file.")],
    init: Annotated[Path | None, typer.Option(help="Model file to start from, also of another task.")] = None,
    preset: Annotated[str, typer.Option(help="tiny (to try out), small (two cores) or base (GPU).")] = "small",
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training cases, or")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="how long to train (default: 50 for small).")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=1e-7, max=1, help="The highest (default: 0.001).")] = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint beside the output.")] = False,
    json_file: Json = None,
) -> None:
    """Train a model on the training part of a folder, chosen on its validation part."""
    from twinseg.tasks import load_task

    if epochs is not None and minutes is not None:
        raise InputError("--epochs and --minutes exclude each other; give one of them")
    loaded_task = load_task(task)
    if loaded_task.kind == "classification":
        from twinseg.classification_run import train_classifier as run
    else:
        from twinseg.training_run import train as run
    from twinseg.inference import choose_device
    from twinseg.training_run import TrainingRequest

    request = TrainingRequest(
        data,
        loaded_task,
        output,
        init=init,
        preset=preset,
        epochs=epochs,
        minutes=minutes,
        learning_rate=learning_rate,
        device=choose_device(device),
        seed=seed,
        resume=resume,
    )
    with progress_bar("training") as bar:
        measured = run(request, bar)
    said = "; ".join(filter(None, [measured["validation"], measured.get("intervals")]))
    finish(f"{output}: trained for {measured['minutes']} minutes; {said}", measured, json_file)


@app.command()
def segment(
    case: CaseFolder = None,
    output: Annotated[Path, typer.Option(help="Label map to write (.nii.gz).")] = ...,  # type: ignore[assignment]
    t1: T1 = None,
    t1ce: T1ce = None,
    t2: T2 = None,
    flair: Flair = None,
    image: Image = [],  # noqa: B006
    task: Annotated[
        str | None, typer.Option(help="Task whose starter model is used (brats-glioma), or that the model must be for.")
    ] = None,
    model: Model = None,
    uncertainty: Annotated[Path | None, typer.Option(help="Also write the uncertainty, 0 to 1 (.nii.gz).")] = None,
    flips: Annotated[bool, typer.Option(help="Average over mirrored copies: slower, a little better.")] = False,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Segment one case. Missing sequences are allowed."""
    from twinseg.inference import choose_device
    from twinseg.segmentation import load_network, segment_to_file, starter_model
    from twinseg.tasks import load_task

    if model is None:
        loaded = load_network(starter_model(task or "brats-glioma"))
    else:
        loaded = load_network(model, load_task(task) if task else None)
    chosen = chosen_case(case, {"t1": t1, "t1ce": t1ce, "t2": t2, "flair": flair}, image, loaded.task)
    with progress_bar("segmenting") as bar:
        measured = segment_to_file(
            chosen, loaded, output, uncertainty, device=choose_device(device), flips=flips, report=bar
        )
    volumes = ", ".join(
        f"{name} {ml['volume']:.1f} mL ({100 * ml['level']:.0f} % interval {ml['low']:.1f} to {ml['high']:.1f})"
        for name, ml in measured["volumes_ml"].items()
    )
    without = f", without {', '.join(measured['missing'])}" if measured["missing"] else ""
    finish(f"{output}: {volumes} ({measured['computed']}, {measured['seconds']:.1f} s{without})", measured, json_file)


@app.command()
def evaluate(
    data: Annotated[Path, typer.Argument(help="Folder of labelled cases.")],
    model: Annotated[Path, typer.Option(help="Model file to score.")],
    split: Annotated[str, typer.Option(help="test, validation, train or all.")] = "test",
    flips: Annotated[bool, typer.Option(help="Average over mirrored copies.")] = True,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Score a model on one part of a folder's own split, by region, site and case."""
    from twinseg.inference import choose_device
    from twinseg.model_file import read_card

    check_split(split)
    if read_card(model).task.kind == "classification":
        from twinseg.classification_evaluation import evaluate_classifier

        with progress_bar("classifying") as bar:
            measured = evaluate_classifier(data, model, part=split, device=choose_device(device), report=bar)
        print_table(f"{split} images", *classification_table(measured))
        if deduplicated := measured.get("deduplicated"):
            if deduplicated["n"]:
                print_table(f"{split} images, deduplicated", *classification_table(deduplicated))
            else:
                typer.echo(f"deduplicated: nothing is left, as every {split} image is a copy of a training image")
    else:
        from twinseg.evaluation import evaluate as evaluate_segmentation
        from twinseg.segmentation import load_network

        with progress_bar("evaluating") as bar:
            measured = evaluate_segmentation(
                data, load_network(model), part=split, device=choose_device(device), flips=flips, report=bar
            )
        print_table(f"{split} cases", *segmentation_table(measured))
    finish(f"{model}: {measured['n']} scored", measured, json_file)


@app.command()
def calibrate(
    data: Annotated[Path, typer.Argument(help="Folder of labelled cases that the model was not trained on.")],
    model: Annotated[Path, typer.Option(help="Model file to calibrate.")],
    output: Annotated[Path, typer.Option(help="Model file to write (.safetensors); its diagram goes beside it.")],
    split: Annotated[str, typer.Option(help="validation, test, train or all.")] = "validation",
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Make a model's volume intervals hold what they promise, and draw how far its probabilities do."""
    from twinseg.calibration_run import calibrate as run
    from twinseg.calibration_run import calibration_table
    from twinseg.inference import choose_device

    check_split(split)
    with progress_bar("calibrating") as bar:
        measured = run(data, model, output, part=split, device=choose_device(device), report=bar)
    print_table(f"{split} patients", *calibration_table(measured))
    finish(f"{output}: {measured['words']}", measured, json_file)


def check_split(split: str) -> None:
    """Raise InputError for a part that no split has."""
    if split not in ("train", "validation", "test", "all"):
        raise InputError(f"--split {split} is unknown; use train, validation, test or all")


app.command()(dicom_seg)


@model_app.command("show")
def model_show(
    model: Annotated[Path, typer.Argument(help="Model file.")],
    json_file: Json = None,
) -> None:
    """What a model is for, where it comes from and how it scored."""
    from twinseg.model_file import read_card

    card = read_card(model)
    shown = {
        "task": card.task.name,
        "title": card.task.title,
        "parameters": card.parameters,
        "hash": card.hash,
        "network": card.network,
        "provenance": card.provenance,
    }
    rows = []
    for name, value in shown.items():
        entries = value.items() if isinstance(value, dict) else ()
        lines = [f"{key}: {json.dumps(entry, ensure_ascii=False)}" for key, entry in entries]
        rows.append([name, "\n".join(lines) or str(value)])
    print_table(str(model), ["", ""], rows)
    finish("", shown, json_file)


@model_app.command("export")
def model_export(
    model: Annotated[Path, typer.Argument(help="Model file.")],
    folder: Annotated[Path, typer.Argument(help="Folder of the MONAI bundle to write.")],
    json_file: Json = None,
) -> None:
    """Write the model as a MONAI bundle."""
    from twinseg.monai_bundle import export_bundle

    finish(f"{folder}: MONAI bundle written", export_bundle(model, folder), json_file)


@model_app.command("import")
def model_import(
    folder: Annotated[Path, typer.Argument(help="Folder of a MONAI bundle.")],
    model: Annotated[Path, typer.Argument(help="Model file to write (.safetensors).")],
    json_file: Json = None,
) -> None:
    """Read a MONAI bundle into a model file; nothing in it is run or unpickled."""
    from twinseg.monai_bundle import import_bundle

    digest = import_bundle(folder, model)
    finish(f"{model}: imported", {"files": [model], "hash": digest}, json_file)


if __name__ == "__main__":
    main()
