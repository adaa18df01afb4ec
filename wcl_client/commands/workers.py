"""Commands for workers: list, run, drain, cordon, invite, join."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from wcl_client import output
from wcl_client.address import checked_url, data_folder, is_loopback
from wcl_client.api import WclClient
from wcl_client.commands.shared import SERVICE, AsJson
from wcl_client.errors import DeniedError, RefusedTokenError, WclError
from wcl_client.processes import module_environment
from wcl_client.references import find_worker
from wcl_client.terminal import Styled, err, out, print_json
from wcl_core.files import read_regular, write_bytes
from wcl_core.text import assignments, counted, written_assignments
from wcl_core.version import VERSION

app = typer.Typer()
worker = typer.Typer(help="Run a worker; list, drain, cordon workers; join.", invoke_without_command=True)
app.add_typer(worker, name="worker", rich_help_panel=SERVICE)


@app.command("workers", hidden=True)  # its older name
@worker.command("list")
def list_workers(
    is_all: Annotated[bool, typer.Option("--all", help="Also stopped and lost workers of the last week.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the live workers.  JSON has the stopped and lost ones of the last week, too."""
    with WclClient.connect() as client:
        rows = client.workers()
    if as_json:
        print_json(rows)
        return
    shown = [row for row in rows if is_all or row["is_live"]]
    out.show(output.workers_table(shown))
    if num_hidden := len(rows) - len(shown):
        err.say(f"{counted(num_hidden, 'stopped or lost worker')} not shown; --all shows them")
    if any(row["is_live"] and (row.get("devices") or len(row.get("cpu_job_ids", [])) > 1) for row in rows):
        out.show(output.devices_table(rows))
    for sentence in output.unable_workers(rows):
        err.say(Styled(sentence, "red"))


@worker.callback()
def run_worker(
    context: typer.Context,
    settings: Annotated[
        Path | None, typer.Option("--settings", help="A file of `wcl worker join`; the environment has precedence.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check that a worker can run here with these settings, and end.")
    ] = False,
    once: Annotated[
        bool, typer.Option("--once", help="Run at most one job, then end; end at once if no job waits.")
    ] = False,
    max_seconds: Annotated[
        float | None, typer.Option(help="Within this time, in seconds, save the job, return it to the queue and end.")
    ] = None,
) -> None:
    """Run a worker on this machine with the settings in the environment (WCL_DATABASE_URL, ...)."""
    if context.invoked_subcommand is not None:
        return
    if settings is not None:
        _use(settings)
    options = (["--once"] if once else []) + ([] if max_seconds is None else ["--max-seconds", str(max_seconds)])
    _run(["--check"] if check else options)


def _run(options: list[str]) -> None:
    """Let a worker replace this process, so that the signals of a batch system reach it."""
    command = [sys.executable, "-m", "worker", *options]
    os.execve(sys.executable, command, _environment())  # noqa: S606 (a list, no shell)


def _environment() -> dict[str, str]:
    return module_environment() | {"WCL_DATA_DIR": str(data_folder().absolute())}


def _use(file: Path) -> None:
    """Take the settings of a file into the environment, which has precedence."""
    for name, value in _stored(file).items():
        os.environ.setdefault(name, value)


def _stored(file: Path) -> dict[str, str]:
    try:
        return assignments(read_regular(file, _MOST_BYTES).decode())
    except OSError as error:
        raise WclError(f"{file} cannot be read: {error.strerror or error}; `wcl worker join` writes it") from error
    except ValueError as error:
        raise WclError(f"{file}: {error}") from None


@worker.command()
def invite(as_json: AsJson = False) -> None:
    """Print a token with which one machine joins as a worker, once, within an hour.

    This needs an administrator's key.
    """
    with WclClient.connect() as client:
        invitation = client.invite_worker()
        url = client.url
    if as_json:
        print_json(invitation)
        return
    out.say(invitation["token"])
    err.say(f"it works once, within an hour. On the machine: wcl worker join {url}")
    if "id" in invitation:  # not of a server of an earlier version
        err.say(f"wcl worker invitations --revoke {invitation['id']} ends it before")


@worker.command()
def invitations(
    revoke: Annotated[str | None, typer.Option(metavar="ID", help="Revoke this invitation.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the invitations of machines that still work, or revoke one.

    This needs an administrator's key.
    """
    with WclClient.connect() as client:
        if revoke is not None:
            client.revoke_invitation(revoke)
            err.say("the invitation is revoked")
        rows = client.worker_invitations()
    print_json(rows) if as_json else out.show(output.invitations_table(rows))


_MOST_BYTES = 100_000  # of a file of settings
_NOT_WORKERS = ("WCL_URL", "WCL_KEY")  # variables of the command line


@worker.command()
def join(
    url: Annotated[str, typer.Argument(help="The address of the server.")],
    file: Annotated[
        Path | None, typer.Option("--file", help="Where the settings stay; default: ~/.config/wcl/worker.")
    ] = None,
    no_start: Annotated[bool, typer.Option("--no-start", help="Write and check the settings only.")] = False,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Get the passwords without TLS, in a network that you trust.")
    ] = False,
) -> None:
    """Join this machine to a server as a worker, with the token of `wcl worker invite`, and run it.

    The token is that of WCL_WORKER_TOKEN; without it, the command asks for it, or reads it from a pipe.  Variables
    WCL_* of this machine, such as WCL_DATASETS, have precedence over the server's settings, and are kept.
    """
    address = checked_url(url)
    if address.startswith("http:") and not plain_http and not is_loopback(urlsplit(address).hostname or ""):
        raise WclError(
            f"{address} has no TLS, and the settings hold passwords; use https, a tunnel "
            "(ssh -L 8000:127.0.0.1:8000 SERVER) or, in a network that you trust, --plain-http"
        )
    token = os.environ.pop("WCL_WORKER_TOKEN", "") or _typed_token()
    place = (file or Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "wcl" / "worker").absolute()
    _write(place, _stored(place) if place.exists() else {})  # first, since the token works once
    name = os.environ.get("WCL_WORKER_NAME") or _stored(place).get("WCL_WORKER_NAME") or socket.gethostname()
    with WclClient(address, token) as client:
        try:
            settings = client.join_worker(name, VERSION)
        except DeniedError as error:
            raise RefusedTokenError(error.status, error.title, error.detail, error.errors) from None
    own = {name: value for name, value in os.environ.items() if name.startswith("WCL_") and name not in _NOT_WORKERS}
    if "WCL_DATA_DIR" in own:
        own["WCL_DATA_DIR"] = str(data_folder().absolute())
    _write(place, _stored(place) | settings | own)
    _use(place)
    err.say(f"the settings are in {place}, which only you can read")
    if subprocess.run([sys.executable, "-m", "worker", "--check"], env=_environment()).returncode:
        raise WclError(
            "a worker cannot run here yet. Set what is named above for this machine, in that file or in its network; "
            f"then run `wcl worker --settings {place}`"
        )
    if no_start:
        out.say(f"the machine has joined; start its worker with `wcl worker --settings {place}`")
        return
    _run([])


def _typed_token() -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("Token of `wcl worker invite`", hide_input=True, err=True))
    with contextlib.suppress(OSError):  # of a closed stdin
        if token := sys.stdin.readline().strip():
            return token
    raise WclError("there is no token; set WCL_WORKER_TOKEN, or pipe it in; `wcl worker invite` prints one")


def _write(file: Path, settings: dict[str, str]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_bytes(file, written_assignments(settings).encode(), mode=0o600)
    except OSError as error:
        raise WclError(
            f"{file} cannot be written: {error.strerror or error}; choose another place with --file"
        ) from error
    except ValueError as error:
        raise WclError(f"{file}: {error}") from None


@worker.command()
def drain(
    reference: Annotated[
        str, typer.Argument(metavar="WORKER", help="A worker's name, its id, or a unique part of the id.")
    ],
    as_json: AsJson = False,
) -> None:
    """Drain a worker: it saves its job, returns the job to the queue, claims no other job, and ends."""
    with WclClient.connect() as client:
        drained = client.drain_worker(find_worker(client, reference)["id"])
    print_json(drained) if as_json else out.say(f"{drained['name']} {drained['state']}, drain requested")


@worker.command()
def cordon(
    reference: Annotated[
        str, typer.Argument(metavar="WORKER", help="A worker's name, its id, or a unique part of the id.")
    ],
    as_json: AsJson = False,
) -> None:
    """Let a worker finish its jobs and take no other one, also after a restart."""
    _cordon(reference, as_json, undo=False)


@worker.command()
def uncordon(
    reference: Annotated[
        str, typer.Argument(metavar="WORKER", help="A worker's name, its id, or a unique part of the id.")
    ],
    as_json: AsJson = False,
) -> None:
    """Let a cordoned worker take jobs again."""
    _cordon(reference, as_json, undo=True)


def _cordon(reference: str, as_json: bool, *, undo: bool) -> None:
    with WclClient.connect() as client:
        changed = client.cordon_worker(find_worker(client, reference)["id"], undo=undo)
    takes = "takes jobs" if undo else "takes no further job"
    if not changed["is_live"]:
        takes += " once it has started again"
    print_json(changed) if as_json else out.say(f"{changed['name']} {changed['state']}, {takes}")
