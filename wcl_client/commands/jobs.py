"""Commands about jobs that are there: found, looked at, followed, asked to do something, made anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from wcl_client import output
from wcl_client.api import WclClient
from wcl_client.commands.shared import AsJson, JobId, Overrides, follow_jobs, require_success
from wcl_client.errors import NotFoundError
from wcl_client.output import out, print_json
from wcl_client.references import find_job
from wcl_client.responses import Job
from wcl_client.specfile import apply_overrides

app = typer.Typer()


@app.command()
def jobs(
    status: Annotated[
        str | None, typer.Option(help="Only blocked, queued, running, paused, succeeded, failed or cancelled ones.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Only pretrain or evaluate.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    query: Annotated[str | None, typer.Option("--query", "-q", help="Only names that contain this.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with WclClient.connect() as client:
        found = client.jobs(status=status, kind=kind, tag=tag, q=query, limit=limit)
    print_json(found) if as_json else out.print(output.jobs_table(found))


@app.command()
def show(job: JobId, as_json: AsJson = False) -> None:
    """Show one job with its evaluations."""
    with WclClient.connect() as client:
        found = find_job(client, job)
        evaluations = client.evaluations(found["id"])
    if as_json:
        print_json({**found, "evaluations": evaluations})
        return
    out.print(output.job_table(found))
    if found.get("deviations"):
        out.print(output.deviations_table(found["deviations"] or ()))
    if evaluations:
        out.print(output.evaluations_table(evaluations))


@app.command()
def group(
    group_id: Annotated[str, typer.Argument(help="The group's id, as submit --seeds prints it, or one of its jobs.")],
    as_json: AsJson = False,
) -> None:
    """Show a group of seeds: its jobs, and mean, deviation and 95 % interval of what was measured."""
    with WclClient.connect() as client:
        try:
            found = client.group(group_id)
        except NotFoundError:
            job = find_job(client, group_id)
            if not job.get("group_id"):
                raise
            found = client.group(str(job["group_id"]))
    if as_json:
        print_json(found)
        return
    out.print(output.jobs_table(found["items"]))
    if found["results"]:
        out.print(output.group_table(found["results"]))


@app.command()
def groups(
    job: JobId,
    epoch: Annotated[int | None, typer.Option(min=0, help="The last one unless given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show how the weak labels of a run group its probe, a fixed batch of train images, at the end of an epoch."""
    with WclClient.connect() as client:
        found = client.weak_groups(find_job(client, job)["id"], epoch=epoch)
    print_json(found) if as_json else output.print_weak_groups(found)


@app.command()
def watch(
    jobs: Annotated[list[str], typer.Argument(help="One or more jobs: ids, parts of ids, or `last`.")],
    as_json: AsJson = False,
) -> None:
    """Show live progress until the jobs end; exit code 1 when one did not succeed."""
    with WclClient.connect() as client:
        ended = follow_jobs(client, [find_job(client, reference) for reference in jobs], to_stderr=as_json)
    if as_json:
        print_json(ended)
    require_success(ended)


@app.command()
def logs(job: JobId, as_json: AsJson = False) -> None:
    """Print what the training process wrote."""
    with WclClient.connect() as client:
        lines = client.logs(find_job(client, job)["id"])
    if as_json:
        print_json(lines)
        return
    for line in lines:
        print(line["line"])


@app.command()
def cancel(job: JobId, as_json: AsJson = False) -> None:
    """Ask a job to stop; a running one checkpoints first."""
    _ask(job, WclClient.cancel, ", cancel requested", as_json)


@app.command()
def pause(job: JobId, as_json: AsJson = False) -> None:
    """Hold a job until it is resumed; a running one checkpoints first."""
    _ask(job, WclClient.pause, ", pause requested", as_json)


@app.command()
def resume(job: JobId, as_json: AsJson = False) -> None:
    """Queue a paused job again; it goes on from its last checkpoint."""
    _ask(job, WclClient.resume, "", as_json)


def _ask(reference: str, verb: Callable[[WclClient, str], Job], asked: str, as_json: bool) -> None:
    with WclClient.connect() as client:
        found = verb(client, find_job(client, reference)["id"])
    told = asked if found["status"] == "running" else ""
    print_json(found) if as_json else out.print(f"{found['id']} {found['status']}{told}")


@app.command()
def retry(job: JobId, as_json: AsJson = False) -> None:
    """Make a new job that goes on from the last checkpoint of a failed or cancelled one."""
    with WclClient.connect() as client:
        made = client.retry(find_job(client, job)["id"])
    print_json(made) if as_json else out.print(made["id"])


@app.command()
def clone(
    job: JobId,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Make a new job with the same spec, some fields replaced, from scratch."""
    spec = apply_overrides({}, overrides or ())
    with WclClient.connect() as client:
        made = client.clone(find_job(client, job)["id"], spec)
    print_json(made) if as_json else out.print(made["id"])


@app.command()
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
