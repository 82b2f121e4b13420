"""A provisioned federation on loopback: certificates, start-up kits and mutual TLS as hospitals have them."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twinfed.engines.nvflare.processes import Processes, wait_until
from twinfed.engines.nvflare.trial import allow_our_classes, check_finished
from twinfed.errors import InputError

SERVER = "localhost"
"""The server's name: NVFlare listens on loopback alone where that is it, else on every interface."""
OPERATOR, PROJECT, ORGANISATION = "operator@trial.local", "trial", "trial"
START = 300.0
"""Seconds that server and sites have to come up."""


def run_secure(job: Path, sites: list[str], folder: Path, processes: Processes, seconds: float) -> Path:
    """Provision, start server and sites, run a job to its end, stop everything; the job's folder at the server.

    Raises InputError where a step fails; the logs are in `folder`.
    """
    kits = _provision(sites, folder, processes)
    for name in (SERVER, *sites):
        allow_our_classes(kits / name / "local" / "resources.json.default")
    _keep_storage_within(kits / SERVER, folder / "storage")
    server = _start(processes, folder, kits / SERVER, "server", "")
    with _session(kits / OPERATOR, processes) as session:
        for name in sites:
            _start(processes, folder, kits / name, "client", name)
        wait_until(lambda: _connected(session) >= set(sites), processes, START, "Connecting the sites")
        number = session.submit_job(str(job))
        states: list[str] = []

        def over() -> bool:
            if server.poll() is not None:
                raise InputError(f"NVFlare's server ended in the middle. See {folder / 'server.log'}.")
            states.append(str(session.get_job_meta(number).get("status")))
            return states[-1].startswith("FINISHED")

        wait_until(over, processes, seconds, "The job", every=1.0)
        run = Path(session.download_job_result(number, str(folder / "result"))) / "workspace"
    check_finished(run, folder / "server.log", states[-1] == "FINISHED:COMPLETED")
    return run


def _provision(sites: list[str], folder: Path, processes: Processes) -> Path:
    """Certificates and start-up kits for a server that is called localhost; the folder of the kits."""
    clients = [{"name": name, "type": "client", "org": ORGANISATION} for name in sites]
    ports = free_ports(2)
    server = {"fed_learn_port": ports[0], "admin_port": ports[1], "default_host": "localhost"}
    builders: tuple[tuple[str, dict[str, Any]], ...] = (
        ("workspace.WorkspaceBuilder", {"template_file": ["master_template.yml"]}),
        ("static_file.StaticFileBuilder", {"config_folder": "config", "scheme": "grpc"}),
        ("cert.CertBuilder", {}),
        ("signature.SignatureBuilder", {}),
    )
    project = {
        "api_version": 3,
        "name": PROJECT,
        "description": "a trial on one machine",
        "participants": [
            {"name": SERVER, "type": "server", "org": ORGANISATION, **server},
            *clients,
            {"name": OPERATOR, "type": "admin", "org": ORGANISATION, "role": "project_admin"},
        ],
        "builders": [{"path": f"nvflare.lighter.impl.{name}", "args": options} for name, options in builders],
    }
    file, log = folder / "project.yml", folder / "provision.log"
    file.write_text(json.dumps(project, indent=1), encoding="utf-8")  # YAML takes JSON
    arguments = ["nvflare.lighter.provision", "-p", str(file), "-w", str(folder / "provisioned")]
    provision = processes.start(arguments, log, folder)
    wait_until(lambda: provision.poll() is not None, processes, START, "Provisioning")
    kits = folder / "provisioned" / PROJECT / "prod_00"
    if provision.returncode or not kits.is_dir():
        raise InputError(f"Provisioning failed. See {log}.")
    return kits


def _start(processes: Processes, folder: Path, kit: Path, role: str, site: str) -> Any:
    """Start a server or site in the foreground: its own script would leave processes that nobody ends."""
    module = f"nvflare.private.fed.app.{role}.{role}_train"
    options = ["secure_train=true", f"org={ORGANISATION}", "config_folder=config"]
    options += [f"uid={site}"] if site else []
    arguments = [module, "-m", str(kit), "-s", f"fed_{role}.json", "--set", *options]
    return processes.start(arguments, folder / f"{site or role}.log", kit)


def _keep_storage_within(kit: Path, storage: Path) -> None:
    """NVFlare keeps jobs and snapshots below /tmp, for all to see, unless told otherwise."""
    path = kit / "local" / "resources.json"
    text = path.read_text(encoding="utf-8").replace("/tmp/nvflare", str(storage))
    path.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _session(kit: Path, processes: Processes) -> Iterator[Any]:
    """The operator's session with the server, as soon as that is up."""
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    end, session = time.monotonic() + START, None
    while session is None:
        processes.look()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                session = new_secure_session(OPERATOR, str(kit), timeout=10.0)
        except Exception as error:  # NVFlare raises many kinds while the server is not up yet
            if time.monotonic() > end:
                raise InputError(f"NVFlare's server did not come up ({error}). See its log.") from error
            time.sleep(1.0)
    try:
        yield session
    finally:
        session.close()


def _connected(session: Any) -> set[str]:
    return {client.name for client in session.get_system_info().client_info}


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
