"""The commands `twinfed initial`, `twinfed join` and `twinfed simulate`. They import what they need when they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from twinfed.client.threads import sleep_while_waiting
from twinfed.errors import InputError
from twinseg.terminal import progress_bar

Json = Annotated[Path | None, typer.Option("--json", help="Write what was measured to this file.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]


def initial(
    output: Annotated[Path, typer.Argument(help="The model file to write, .safetensors.")],
    task: Annotated[str, typer.Option(help="Its task: a name, or a .toml file.")],
    preset: Annotated[str, typer.Option(help="tiny (to try out), small (two cores) or base (GPU).")] = "small",
    init: Annotated[Path | None, typer.Option(help="A model, also of another task, whose weights are taken.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
) -> None:
    """Write the model that a federation begins with: random weights, or those of another model."""
    with one_kind_of_error():
        from twinfed.client.initial_model import write_initial_model
        from twinseg.tasks import load_task
        from twinseg.training_run import check_output

        check_output(output)
        digest = write_initial_model(output, load_task(task), preset, seed, init)
    print(f"{output}: {digest}")


def join(
    url: Annotated[str, typer.Argument(help="The aggregator's address.")],
    token_file: Annotated[Path, typer.Option(help="File with the site's token.")],
    folder: Annotated[Path, typer.Option(help="The site's folder: state, models, updates.")],
    data: Annotated[Path | None, typer.Option(help="Folder of labelled cases; without it the case queue.")] = None,
    hours: Annotated[str | None, typer.Option(help="Hours to work in, such as 20-6.")] = None,
    device: Device = "auto",
    task: Annotated[str | None, typer.Option(help="Take part only if the federation is for this task.")] = None,
    authority: Annotated[Path | None, typer.Option(help="Certificates by which the aggregator is known (PEM).")] = None,
    certificate: Annotated[Path | None, typer.Option(help="The site's certificate (PEM), if one is asked for.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let the token cross a network in the clear.")] = False,
    consent: Annotated[bool, typer.Option("--consent", help="Give consent again after it was withdrawn.")] = False,
    share_local_model: Annotated[
        bool, typer.Option("--share-local-model", help="Let other hospitals get this site's own model (transfer).")
    ] = False,
    parent: Annotated[int | None, typer.Option(help="Stop when this process is gone.")] = None,
    longest_poll: Annotated[float, typer.Option(help="Seconds between two questions at most.")] = 60.0,
    learning_rate: Annotated[float | None, typer.Option(help="Highest of each local training.")] = None,
    low_priority: Annotated[
        bool, typer.Option("--low-priority/--normal-priority", help="Let every other program go first, or not.")
    ] = True,
    twins: Annotated[bool, typer.Option(help="Fine-tune each published model for this site.")] = True,
) -> None:
    """Take part in a federation, until it is finished or you stop it. Images never leave this machine."""
    from twinfed.client import controls

    sleep_while_waiting()
    try:
        token = token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{token_file}: cannot be read. Store in it the token that twinfed site add printed."
        ) from error
    chosen_hours = controls.Hours.parse(hours) if hours else None
    with one_kind_of_error():
        from twinfed.client.case_source import CaseSource
        from twinfed.client.connection import Server
        from twinfed.client.site_process import run_site
        from twinfed.client.site_settings import SiteSettings

        server = Server(url, token, authority, certificate, key, insecure)
        controls.tell(f"{controls.STATEMENT}\n{controls.OWN_MODEL}" if share_local_model else controls.STATEMENT)
        settings = SiteSettings(
            server=server,
            folder=folder,
            source=CaseSource(folder=data),
            device=device,
            hours=chosen_hours,
            task=task,
            longest_poll=longest_poll,
            learning_rate=learning_rate,
            twins=twins,
            low_priority=low_priority,
        )

        def agree() -> None:
            if consent or not controls.was_withdrawn(folder):
                controls.give_consent(folder, url, "twinfed join", share_local_model=share_local_model)

        run_site(settings, parent, agree)


def simulate(
    config: Annotated[Path, typer.Argument(help="The simulation's TOML file.")],
    output: Annotated[Path, typer.Option(help="Folder for the results; what an earlier run left there is replaced.")],
    device: Device = "cpu",
    json_file: Json = None,
) -> None:
    """Run a federation of several sites in this process, and measure what it brings."""
    sleep_while_waiting()
    with one_kind_of_error():
        from twinfed.simulation import load_simulation, simulate
        from twinfed.simulation_report import print_tables, write_results

        loaded = load_simulation(config)
        with progress_bar("simulating") as bar:
            measured = simulate(loaded, output, device, bar)
        write_results(measured, output, json_file)
        print_tables(measured)
    print(f"{output}: results.json, results.csv, curves.png, federation/")


@contextmanager
def one_kind_of_error() -> Iterator[None]:
    """Bad input that twinseg finds is told as that which twinfed finds."""
    from twinfed.client.errors import INPUT_ERRORS

    try:
        yield
    except INPUT_ERRORS as error:
        raise InputError(str(error)) from error
