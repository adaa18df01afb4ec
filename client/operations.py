"""Commands that act on jobs and workers after their submission; `register` hangs them into `wcl`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from client import output
from client.address import data_folder
from client.api import Job, WclClient
from client.output import err, out, print_json
from client.references import find_job, find_worker
from client.specfile import apply_overrides
from client.transfer import find_checkpoint
from client.up import module_environment

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JobId = Annotated[str, typer.Argument(help="The job's id, a unique beginning or end of it, or `last`.")]

worker = typer.Typer(help="Run a worker here, or drain one.", invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Make all of them commands of `app`."""
    for command in (cancel, pause, resume, retry, clone, evaluate, change, workers, audit):
        app.command()(command)
    app.add_typer(worker, name="worker")


def cancel(job: JobId, as_json: AsJson = False) -> None:
    """Ask a job to stop; a running one checkpoints first."""
    _ask(job, WclClient.cancel, ", cancel requested", as_json)


def pause(job: JobId, as_json: AsJson = False) -> None:
    """Hold a job until it is resumed; a running one checkpoints first."""
    _ask(job, WclClient.pause, ", pause requested", as_json)


def resume(job: JobId, as_json: AsJson = False) -> None:
    """Queue a paused job again; it goes on from its last checkpoint."""
    _ask(job, WclClient.resume, "", as_json)


def _ask(reference: str, verb: Callable[[WclClient, str], Job], asked: str, as_json: bool) -> None:
    with WclClient.connect() as client:
        found = verb(client, find_job(client, reference)["id"])
    told = asked if found["status"] == "running" else ""
    print_json(found) if as_json else out.print(f"{found['id']} {found['status']}{told}")


def retry(job: JobId, as_json: AsJson = False) -> None:
    """Make a new job that goes on from the last checkpoint of a failed or cancelled one."""
    with WclClient.connect() as client:
        made = client.retry(find_job(client, job)["id"])
    print_json(made) if as_json else out.print(made["id"])


def clone(
    job: JobId,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE, for example epochs=20.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a new job with the same spec, some fields replaced, from scratch."""
    spec = apply_overrides({}, overrides or ())
    with WclClient.connect() as client:
        made = client.clone(find_job(client, job)["id"], spec)
    print_json(made) if as_json else out.print(made["id"])


def evaluate(
    reference: Annotated[str, typer.Argument(help="A job (its last checkpoint is meant) or a checkpoint's id.")],
    protocol: Annotated[
        list[str] | None, typer.Option(help="May be repeated; by default knn, linear, few_labels.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE, for example data.name=stl10.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a job that measures a checkpoint."""
    spec = apply_overrides({"protocols": list(protocol)} if protocol else {}, overrides or ())
    with WclClient.connect() as client:
        made = client.evaluate(find_checkpoint(client, reference), spec)
    print_json(made) if as_json else out.print(made["id"])


def change(
    job: JobId,
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    priority: Annotated[int | None, typer.Option(help="Higher runs earlier; only while the job waits.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Replaces all tags; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Rename or retag a job, or change the priority of one that waits."""
    if name is None and priority is None and tag is None:
        raise typer.BadParameter("give at least one of --name, --priority, --tag")
    with WclClient.connect() as client:
        found = client.change(find_job(client, job)["id"], name=name, priority=priority, tags=tag)
    print_json(found) if as_json else out.print(output.job_table(found))


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
    os.execve(sys.executable, [sys.executable, "-m", "worker", *options], environment)


@worker.command()
def drain(
    reference: Annotated[str, typer.Argument(metavar="WORKER", help="The worker's name, its id, or a part of it.")],
    as_json: AsJson = False,
) -> None:
    """Ask a worker to save its job, return it to the queue, take nothing more, and end."""
    with WclClient.connect() as client:
        found = client.drain_worker(find_worker(client, reference)["id"])
    print_json(found) if as_json else out.print(f"{found['name']} {found['state']}, drain requested")


def audit(as_json: AsJson = False) -> None:
    """Replay the events of all jobs; exit code 1 when they do not lead to what the database says."""
    with WclClient.connect() as client:
        report = client.audit()
    if as_json:
        print_json(report)
    else:
        for finding in report["findings"]:
            err.print(f"{finding['job_id']} [red]{finding['rule']}[/red] {finding['message']}")
        counts = f"{report['jobs']:,} jobs, {report['attempts']:,} attempts, {report['events']:,} events"
        out.print(f"{counts}: {len(report['findings'])} findings")
    if report["findings"]:
        raise typer.Exit(1)
