"""The command `twinfed`. Each command is thin and imports what it needs, so that `--help` answers at once."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinfed import __version__
from twinfed.client.commands import initial, join, simulate
from twinfed.engines.nvflare.commands import app as nvflare_app
from twinfed.errors import InputError

if TYPE_CHECKING:
    from twinfed.aggregator.accounts import Accounts

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="Federated learning between hospitals: updates are exchanged, never images.",
)
site_app = typer.Typer(no_args_is_help=True, help="The sites that may take part.")
app.add_typer(site_app, name="site")
app.add_typer(nvflare_app, name="nvflare")
app.command()(initial)
app.command()(join)
app.command()(simulate)

Folder = Annotated[Path, typer.Option(help="The aggregator's folder.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")]


def main() -> None:
    """Entry point: bad input is one line and exit code 2, a fault exit code 1."""
    try:
        app()
    except InputError as error:
        print(f"twinfed: {error}", file=sys.stderr)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    """Options that stand before the command."""
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def aggregator(
    folder: Folder,
    config: Annotated[Path | None, typer.Option(help="The federation's TOML file; needed for a new folder.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one, which is then told.")] = 8600,
    tls_certificate: Annotated[Path | None, typer.Option(help="The aggregator's certificate (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    client_ca: Annotated[Path | None, typer.Option(help="Ask sites for certificates signed by this one (PEM).")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Plain HTTP to other machines.")] = False,
) -> None:
    """Run the server of a federation in a folder."""
    from twinfed.aggregator.config import load_config
    from twinfed.aggregator.server import Address, serve

    port = port or _free_port(host)
    address = Address(
        host=host, port=port, certificate=tls_certificate, key=tls_key, client_authority=client_ca, insecure=insecure
    )
    print(f"Aggregator in {folder} at http{'s' if tls_certificate else ''}://{host}:{port}/", flush=True)
    serve(folder, load_config(config) if config else None, address)


@site_app.command("add")
def site_add(name: str, folder: Folder, json_file: Json = None) -> None:
    """Add a site, and print its token: once, here."""
    token = _accounts(folder).add(name)
    print(token)
    if json_file is not None:
        json_file.unlink(missing_ok=True)
        json_file.touch(mode=0o600)  # a token is for its owner's eyes
    _write(json_file, {"site": name, "token": token})


@site_app.command("list")
def site_list(folder: Folder, json_file: Json = None) -> None:
    """The sites, and when they were last seen."""
    from datetime import datetime

    from rich.console import Console
    from rich.table import Table

    sites = _accounts(folder).sites()
    table = Table("Site", "Cases", "Last seen", "")
    for site in sites:
        seen = datetime.fromtimestamp(site["seen"]).isoformat(" ", "seconds") if site["seen"] else "never"
        table.add_row(site["name"], str(site["samples"] or "–"), seen, "revoked" if site["revoked"] else "")
    Console().print(table)
    _write(json_file, sites)


@site_app.command("revoke")
def site_revoke(name: str, folder: Folder) -> None:
    """Take nothing more from a site."""
    _accounts(folder).revoke(name)
    print(f"{name} is revoked.")


@app.command()
def verify(
    folder: Folder,
    quick: Annotated[bool, typer.Option("--quick", help="Do not aggregate the rounds again.")] = False,
    head: Annotated[list[str], typer.Option(help="A hash of a site's log-heads.txt that must be in the log.")] = [],  # noqa: B006 (typer copies it)
    json_file: Json = None,
) -> None:
    """Prove a folder whole: the log, every file, and every model from its updates."""
    from twinfed.aggregator.verify import faults, not_checked, rounds_made_again

    found = list(faults(folder, recompute=not quick, heads=head))
    first, last = rounds_made_again(folder)
    again = [] if quick or found else list(range(first, last + 1))
    left = not_checked(folder)
    result = {"whole": not found, "faults": found, "rounds_made_again": again, "not_checked": left}
    _write(json_file, result)
    if found:
        raise InputError(f"{folder}: not whole. {' '.join(found)}")
    made = [f"Made again from their updates: rounds {first} to {last}."] if again else []
    print(" ".join([f"{folder} is whole.", *made, *left]))


def _free_port(host: str) -> int:
    try:
        with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        raise InputError(
            f"{host}: nothing can listen there ({error.strerror}). Name an address of this machine."
        ) from error


def _accounts(folder: Path) -> Accounts:
    from twinfed.aggregator.accounts import Accounts
    from twinfed.aggregator.store import Store

    return Accounts(Store(folder))


def _write(path: Path | None, content: Any) -> None:
    if path is not None:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
