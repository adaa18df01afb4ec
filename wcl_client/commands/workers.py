"""Commands for workers: list, run, drain, cordon."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from wcl_client import output
from wcl_client.address import data_folder
from wcl_client.api import WclClient
from wcl_client.commands.shared import SERVICE, AsJson
from wcl_client.processes import module_environment
from wcl_client.references import find_worker
from wcl_client.terminal import Styled, err, out, print_json

app = typer.Typer()
worker = typer.Typer(help="Run a worker here; list, drain or cordon workers.", invoke_without_command=True)
app.add_typer(worker, name="worker", rich_help_panel=SERVICE)


@app.command("workers", hidden=True)  # its older name
@worker.command("list")
def list_workers(as_json: AsJson = False) -> None:
    """List workers, live ones first."""
    with WclClient.connect() as client:
        rows = client.workers()
    if as_json:
        print_json(rows)
        return
    out.show(output.workers_table(rows))
    if any(row["is_live"] and (row.get("devices") or len(row.get("cpu_job_ids", [])) > 1) for row in rows):
        out.show(output.devices_table(rows))
    for sentence in output.unable_workers(rows):
        err.say(Styled(sentence, "red"))


@worker.callback()
def run_worker(
    context: typer.Context,
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
    options = (["--once"] if once else []) + ([] if max_seconds is None else ["--max-seconds", str(max_seconds)])
    environment = module_environment() | {"WCL_DATA_DIR": str(data_folder().absolute())}
    # The worker replaces this process, so that the signals of a batch system reach it.
    os.execve(sys.executable, [sys.executable, "-m", "worker", *options], environment)  # noqa: S606 (a list, no shell)


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
    print_json(changed) if as_json else out.say(f"{changed['name']} {changed['state']}, {takes}")
