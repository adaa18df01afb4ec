"""Commands that delete jobs, and restore them."""

from __future__ import annotations

from typing import Annotated

import typer

from wcl_client import completion, output
from wcl_client.api import WclClient
from wcl_client.commands.shared import RUN, SERVICE, AsJson, confirm
from wcl_client.references import find_job, matching_jobs
from wcl_client.responses import Json
from wcl_client.terminal import err, out, print_json
from wcl_core.text import counted, file_size

app = typer.Typer()


@app.command(rich_help_panel=RUN)
def delete(
    jobs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="JOB...",
            help="Jobs: names, ids, unique parts of them, or `last`.",
            autocompletion=completion.jobs,
        ),
    ] = None,
    status: Annotated[
        list[str] | None, typer.Option(help="In place of jobs: all with this status; may be repeated.")
    ] = None,
    kind: Annotated[str, typer.Option(help="All of this kind: pretrain or evaluate.")] = "",
    tag: Annotated[str, typer.Option(help="All with this tag.")] = "",
    query: Annotated[str, typer.Option("--query", "-q", help="All whose name, id or dataset contains this text.")] = "",
    by: Annotated[str, typer.Option("--by", metavar="KEY", help="All of the key with this name or id.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be deleted, and delete nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete jobs with everything that they wrote.

    The command says what is deleted, and asks.  Jobs that run or are needed stay, and the exit code is 1.
    """
    if bool(jobs) == bool(status or kind or tag or query or by):
        raise typer.BadParameter("expected either jobs, or at least one of --status, --kind, --tag, --query, --by")
    with WclClient.connect() as client:
        ids = [find_job(client, reference)["id"] for reference in jobs or ()]
        if not ids:
            plan = client.delete_matching(status=status or (), kind=kind, tag=tag, q=query, by=by, dry_run=True)
        else:
            plan = client.delete(ids, dry_run=True) if dry_run or not yes else {}
        if dry_run:
            print_json(plan) if as_json else _print_extent(plan)
            return
        if plan and not yes:
            _print_extent(plan, to_stderr=as_json)
            if plan["jobs"]:
                question = f"Delete {counted(len(plan['jobs']), 'job')}?"
                confirm(question, "--yes deletes without a question", "nothing is deleted")
        if plan:  # exactly those that were shown
            ids = [job["id"] for job in plan["jobs"]]
        deleted = client.delete(ids) if ids else plan
    if as_json:
        print_json(deleted)
    else:
        out.say(f"deleted {counted(len(deleted['jobs']), 'job')}, {file_size(deleted['size'])}")
        stay = {each["job_id"]: each["reason"] for each in (*plan.get("refused", ()), *deleted["refused"])}
        for job_id, reason in stay.items() if yes or not plan else ():  # else the question has shown them
            err.say(f"{job_id} stays: {reason}")
    if deleted["refused"] or (plan and plan["refused"]):
        raise typer.Exit(1)


def _print_extent(extent: Json, to_stderr: bool = False) -> None:
    """Print what a deletion removes, and what refers to it."""
    terminal = err if to_stderr else out
    if not extent["jobs"]:
        terminal.say("no job would be deleted" if extent["refused"] else "no job matches; nothing would be deleted")
        for each in extent["refused"]:
            terminal.say(f"{each['job_id']} stays: {each['reason']}")
        return
    for job in extent["jobs"][:20]:
        terminal.say(f"{job['id']}  {job['name']}")
    if (more := len(extent["jobs"]) - 20) > 0:
        terminal.say(f"and {more:,} more")
    for number, noun in (
        (extent["num_waiting"], "waiting job"),
        (extent["num_evaluation_jobs"], "evaluation job"),
        (extent["num_checkpoints"], "checkpoint"),
        (extent["num_results"], "measured value"),
    ):
        if number:
            terminal.say(f"  {counted(number, noun)}{', cancelled first' if noun == 'waiting job' else ''}")
    terminal.say(f"  files of {file_size(extent['size'])}")
    if extent["num_pinned"]:
        terminal.say(f"  {counted(extent['num_pinned'], 'checkpoint')} of them pinned")
    if extent["num_seed_groups"]:
        terminal.say(f"  {counted(extent['num_seed_groups'], 'seed group')} with fewer jobs")
    for sweep in extent["sweeps"]:
        terminal.say(f"  sweep {sweep['name']} with fewer trials")
    for job in extent["continued_by"]:
        terminal.say(f"  {job['name']} ({job['id']}) continues from one of them, and stays")
    for each in extent["refused"]:
        terminal.say(f"{each['job_id']} stays: {each['reason']}")
    terminal.say(f"An administrator can restore deleted jobs for {extent['restorable_days']:g} days (wcl undelete).")


@app.command(rich_help_panel=SERVICE)
def undelete(
    job: Annotated[
        str | None, typer.Argument(metavar="JOB", help="A deleted job's name, its id, or a part of one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Restore a deleted job; without a job, list the deleted ones.

    This needs an administrator's key.  A job can be restored for some days after its deletion.
    """
    with WclClient.connect() as client:
        records = client.deletions()
        if job is None:
            print_json(records) if as_json else out.show(output.deletions_table(records))
            return
        restored = client.restore(_deleted_id(records, job))
    print_json(restored) if as_json else out.say(f"{restored['id']} {restored['status']}")


@app.command(rich_help_panel=SERVICE)
def purge(
    jobs: Annotated[
        list[str] | None, typer.Argument(metavar="JOB...", help="Deleted jobs: names, ids, or parts of them.")
    ] = None,
    by: Annotated[str, typer.Option("--by", metavar="KEY", help="In place of jobs: all deleted ones of the key.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed, and keep it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove deleted jobs at once; this cannot be undone.

    Without it, a server removes files and rows of deleted jobs some days later, and until then `wcl undelete` restores
    them.  This needs an administrator's key.  Backups that were made before still hold the jobs.
    """
    if bool(jobs) == bool(by):
        raise typer.BadParameter("expected either jobs or --by")
    with WclClient.connect() as client:
        ids = [_deleted_id(client.deletions(), reference) for reference in jobs or ()]
        result = client.purge(ids, by=by, dry_run=dry_run or not yes)
        if not (dry_run or yes) and result["jobs"]:
            for each in result["jobs"][:20]:
                err.say(f"{each['id']}  {each['name']}")
            question = f"Remove {_purged(result)}? This cannot be undone."
            confirm(question, "--yes removes without a question", "nothing is removed")
            result = client.purge(ids, by=by)
    if as_json:
        print_json(result)
        return
    out.say(f"{_purged(result)}, {'would be removed' if dry_run else 'removed'}")
    if result["num_left"]:
        err.say(f"{counted(result['num_left'], 'job')} not removed yet; a server repeats it within ten minutes")
    if by and not dry_run:
        err.say("the name stays in usage, the activity log, records of deletions, the access log and earlier backups")


def _purged(result: Json) -> str:
    return f"{counted(len(result['jobs']), 'deleted job')}, {file_size(result['size'])}"


def _deleted_id(records: list[Json], reference: str) -> str:
    """Return the id of the deleted job that a user names.

    Raises:
        BadParameter: none or several match.
    """
    deleted = [{"id": each["job_id"], "name": each["job_name"]} for each in records]
    ids = [each["id"] for each in matching_jobs(deleted, reference)]
    if len(ids) != 1:
        number = "no deleted job matches" if not ids else f"{len(ids)} deleted jobs match"
        raise typer.BadParameter(f"{number} {reference}; `wcl undelete` lists their ids")
    return str(ids[0])
