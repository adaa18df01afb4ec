"""Commands about workers: listed, run here, drained."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from wcl_client import output
from wcl_client.address import data_folder
from wcl_client.api import WclClient
from wcl_client.commands.shared import AsJson
from wcl_client.output import out, print_json
from wcl_client.references import find_worker
from wcl_client.up import module_environment

app = typer.Typer()
worker = typer.Typer(help="Run a worker here, or drain one.", invoke_without_command=True)
app.add_typer(worker, name="worker")


@app.command()
def workers(as_json: AsJson = False) -> None:
    """List the workers, those that run first."""
    with WclClient.connect() as client:
        found = client.workers()
    print_json(found) if as_json else out.print(output.workers_table(found))


@worker.callback()
def run_worker(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Take one job, or none when none waits, and end.")] = False,
    max_seconds: Annotated[
        float | None, typer.Option(help="Save the job, return it to the queue and end before so much time is over.")
    ] = None,
) -> None:
    """Run a worker on this machine, with the settings of its environment (WCL_DATABASE_URL, ...)."""
    if context.invoked_subcommand is not None:
        return
    options = (["--once"] if once else []) + ([] if max_seconds is None else ["--max-seconds", str(max_seconds)])
    environment = module_environment() | {"WCL_DATA_DIR": str(data_folder().resolve())}
    # In place of this process: a batch system's signals have to reach the worker itself.
    os.execve(sys.executable, [sys.executable, "-m", "worker", *options], environment)  # noqa: S606 (a list, no shell)


@worker.command()
def drain(
    reference: Annotated[str, typer.Argument(metavar="WORKER", help="The worker's name, its id, or a part of it.")],
    as_json: AsJson = False,
) -> None:
    """Ask a worker to save its job, return it to the queue, take nothing more, and end."""
    with WclClient.connect() as client:
        found = client.drain_worker(find_worker(client, reference)["id"])
    print_json(found) if as_json else out.print(f"{found['name']} {found['state']}, drain requested")
