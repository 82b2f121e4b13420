"""The commands `twinfed nvflare …`. They import what they need when they run; only `try` needs nvflare itself."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from twinfed.client.commands import one_kind_of_error
from twinfed.errors import InputError
from twinseg.terminal import Json, progress_bar

SCORES = (
    "Under NVFlare a certificate stands for the token, and a job may ask for mean Dice and Hausdorff distance of models"
    " on this site's test cases, and how many those are."
)
OWN_MODEL = " The weights of this site's own model are sent to the other sites, if a job asks for that."
app = typer.Typer(no_args_is_help=True, help="The same federation under NVFlare, for consortia (see Docs/nvflare.md).")
Config = Annotated[Path, typer.Argument(help="The federation's TOML file, as the aggregator reads it.")]


@app.command()
def job(
    config: Config,
    output: Annotated[Path, typer.Option(help="Folder for the job; one of the same name is replaced.")],
) -> None:
    """Write the job that NVFlare's operator submits."""
    with one_kind_of_error():
        from twinfed.engines.nvflare.job import load_job, write_job

        folder = write_job(load_job(config), output)
    print(f"{folder}: submit it with NVFlare's console, submit_job {folder.absolute()}")


@app.command()
def site(
    name: Annotated[str, typer.Argument(help="The site's name, as in its start-up kit.")],
    folder: Annotated[Path, typer.Option(help="The site's folder: state, models; the module in Slicer shows it.")],
    data: Annotated[Path | None, typer.Option(help="Folder of labelled cases; without it the case queue.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    hours: Annotated[str | None, typer.Option(help="Hours to work in, such as 20-6.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Highest of each local training.")] = None,
    twins: Annotated[bool, typer.Option(help="Fine-tune each published model for this site.")] = True,
    low_priority: Annotated[
        bool, typer.Option("--low-priority/--normal-priority", help="Let every other program go first, or not.")
    ] = True,
    share_local_model: Annotated[
        bool, typer.Option("--share-local-model", help="Let the other sites score this site's own model.")
    ] = False,
) -> None:
    """Say how this machine takes part in jobs, and give consent to it. Images never leave this machine."""
    with one_kind_of_error():
        from twinfed.client.controls import NVFLARE, STATEMENT, give_consent, tell
        from twinfed.engines.nvflare.site_file import SiteFile, write_site_file

        settings = SiteFile(
            folder=folder,
            cases=data,
            device=device,
            hours=hours,
            learning_rate=learning_rate,
            twins=twins,
            low_priority=low_priority,
            share_local_model=share_local_model,
        )
        besides = SCORES + (OWN_MODEL if share_local_model else "")
        tell(f"{STATEMENT}\n{besides}")
        how = f"twinfed nvflare site {name}. {besides}"
        give_consent(folder, NVFLARE, how, share_local_model=share_local_model)
        print(f"{write_site_file(name, settings)}: written")


@app.command("try")
def try_(
    config: Config,
    sites: Annotated[list[Path], typer.Option(help="Folders of labelled cases, one for each site.")],
    output: Annotated[Path, typer.Option(help="Folder for job, logs and results; an earlier trial's are replaced.")],
    more_sites: Annotated[list[Path] | None, typer.Argument(help="More sites, as in --sites A B C.")] = None,
    secure: Annotated[bool, typer.Option("--secure", help="With certificates and TLS, not in the simulator.")] = False,
    learning_rate: Annotated[float | None, typer.Option(help="Highest of each local training.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "cpu",
    json_file: Json = None,
) -> None:
    """Run a job on this machine, its sites simulated. Nothing listens to the network."""
    if importlib.util.find_spec("nvflare") is None:
        raise InputError('NVFlare is not installed here. Install it with: pip install "twinsegslicer[nvflare]"')
    with one_kind_of_error():
        from twinfed.engines.nvflare.job import load_job
        from twinfed.engines.nvflare.trial import try_job

        named = [*sites, *(more_sites or [])]
        folders = {folder.name: folder.absolute() for folder in named}
        if len(folders) < len(named):
            raise InputError("Two of the sites' folders have the same name. Name each site by its folder.")
        with progress_bar("trying") as bar:
            measured = try_job(
                load_job(config),
                folders,
                output,
                secure=secure,
                learning_rate=learning_rate,
                device=device,
                report=bar,
            )
    if json_file is not None:
        json_file.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    _print(measured)
    print(f"{output}: results.json, federation/ (twinfed verify --folder), job/, sites/, nvflare/ with the logs")


def _print(measured: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from twinfed.engines.nvflare.matrix import table

    sites = sorted({site for row in measured["rounds"] for site in row["weights"]})
    shown = Table("round", *sites, "refused", "seconds", title=f"{measured['name']}, {measured['engine']}: weights")
    for row in measured["rounds"]:
        weights = [f"{row['weights'][site]:.3f}" if site in row["weights"] else "–" for site in sites]
        refused = ", ".join(f"{site} ({code})" for site, code in row["refused"].items())
        shown.add_row(str(row["round"]), *weights, refused, f"{row['seconds']:.1f}")
    Console().print(shown)
    if measured["cross_site"]:
        header, rows = table(measured["cross_site"])
        matrix = Table(*header, title="Dice of each model on each site's test cases")
        for line in rows:
            matrix.add_row(*line)
        Console().print(matrix)
