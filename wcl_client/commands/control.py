"""Commands that cancel, pause and resume jobs: named ones, or all that match filters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal
from uuid import uuid4

import typer

from wcl_client import completion
from wcl_client.api import WclClient
from wcl_client.commands.shared import RUN, AsJson
from wcl_client.references import find_job
from wcl_client.responses import Job, Json
from wcl_client.terminal import err, out, print_json
from wcl_core.text import counted

app = typer.Typer()

Verb = Literal["cancel", "pause", "resume"]
_ACTIONS: Final[dict[Verb, tuple[Callable[[WclClient, str], Job], str]]] = {
    "cancel": (WclClient.cancel, ", cancel requested"),
    "pause": (WclClient.pause, ", pause requested"),
    "resume": (WclClient.resume, ""),
}
_GOAL: Final[dict[Verb, tuple[str, ...]]] = {"cancel": ("cancelled",), "pause": ("paused",)}  # nothing is left to do
_MOST_SHOWN: Final = 20
_DENIED: Final = 5  # the exit code, as of a request for one job of another key
_Jobs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="JOB...", help="Jobs: names, ids, unique parts of them, or `last`.", autocompletion=completion.jobs
    ),
]
_By = Annotated[str, typer.Option("--by", metavar="KEY", help="In place of jobs: all of the key with this name or id.")]
_Status = Annotated[list[str] | None, typer.Option(help="All with this status; may be repeated.")]
_Kind = Annotated[str, typer.Option(help="All of this kind: pretrain or evaluate.")]
_Tag = Annotated[str, typer.Option(help="All with this tag.")]
_Query = Annotated[str, typer.Option("--query", "-q", help="All whose name, id or dataset contains this text.")]
_Starred = Annotated[bool, typer.Option("--starred", help="All with a star.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="List the jobs, and change nothing.")]


@app.command(rich_help_panel=RUN)
def cancel(
    jobs: _Jobs = None,
    by: _By = "",
    status: _Status = None,
    kind: _Kind = "",
    tag: _Tag = "",
    query: _Query = "",
    starred: _Starred = False,
    dry_run: _DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Cancel jobs, or all that match.

    A running job ends within 2 s and keeps its checkpoints.
    """
    _act("cancel", jobs, _filter(by, status, kind, tag, query, starred), dry_run, as_json)


@app.command(rich_help_panel=RUN)
def pause(
    jobs: _Jobs = None,
    by: _By = "",
    status: _Status = None,
    kind: _Kind = "",
    tag: _Tag = "",
    query: _Query = "",
    starred: _Starred = False,
    dry_run: _DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Pause jobs, or all that match.

    A running job finishes its step and saves a checkpoint first.
    """
    _act("pause", jobs, _filter(by, status, kind, tag, query, starred), dry_run, as_json)


@app.command(rich_help_panel=RUN)
def resume(
    jobs: _Jobs = None,
    by: _By = "",
    kind: _Kind = "",
    tag: _Tag = "",
    query: _Query = "",
    starred: _Starred = False,
    dry_run: _DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Queue paused jobs again.

    They continue from their last checkpoints.
    """
    _act("resume", jobs, _filter(by, None, kind, tag, query, starred), dry_run, as_json)


def _filter(by: str, status: list[str] | None, kind: str, tag: str, query: str, starred: bool) -> Json:
    """Return the filters that are set, as the server names them."""
    filters = {"by": by, "status": status, "kind": kind, "tag": tag, "q": query, "starred": starred}
    return {name: value for name, value in filters.items() if value}


def _act(verb: Verb, jobs: list[str] | None, chosen: Json, dry_run: bool, as_json: bool) -> None:
    if bool(jobs) == bool(chosen):
        filters = "--by, --kind, --tag, --query, --starred" + (", --status" if verb != "resume" else "")
        raise typer.BadParameter(f"expected either jobs, or at least one of {filters}")
    with WclClient.connect() as client:
        if jobs and not dry_run:
            _act_on(client, verb, jobs, as_json)
            return
        ids = [find_job(client, reference)["id"] for reference in jobs or ()]
        result = _change_all(client, verb, {"jobs": ids} if ids else {"filter": chosen}, dry_run)
    if as_json:
        print_json(result)
    else:
        _print_result(verb, result, dry_run)
    if result["refused"]:
        raise typer.Exit(1)
    if not result["count"] and _num_foreign(result):
        raise typer.Exit(_DENIED)


def _act_on(client: WclClient, verb: Verb, jobs: list[str], as_json: bool) -> None:
    """Send the request for each job and print its status; a job that still runs gets a note."""
    action, note = _ACTIONS[verb]
    changed = []
    for found in [find_job(client, reference) for reference in jobs]:
        if found["status"] in _GOAL.get(verb, ()):
            changed.append(found)
            if not as_json:
                out.say(f"{found['name']} ({found['id'][-12:]}) is already {found['status']}; nothing to do")
            continue
        job = action(client, found["id"])
        changed.append(job)
        if not as_json:
            out.say(f"{job['id']} {job['status']}{note if job['status'] == 'running' else ''}")
    if as_json:
        print_json(changed[0] if len(changed) == 1 else changed)


def _change_all(client: WclClient, verb: Verb, chosen: Json, dry_run: bool) -> Json:
    """Change all that match, in as many requests as that takes; jobs that are submitted meanwhile stay."""
    key, total = str(uuid4()), 0
    jobs: list[Any] = []
    while True:
        result = client.change_many(verb, chosen, dry_run=dry_run, idempotency_key=None if dry_run else key)
        total, jobs = total + result["count"], [*jobs, *result["jobs"]]
        if dry_run or not result["has_more"] or not result["count"]:
            return {**result, "count": total, "jobs": jobs}


def _num_foreign(result: Json) -> int:
    """Return the number of jobs of other keys that match; a former server does not count them."""
    number: int = result.get("num_foreign", 0)
    return number


def _print_result(verb: Verb, result: Json, dry_run: bool) -> None:
    for job in result["jobs"][: None if dry_run else _MOST_SHOWN]:
        out.say(f"{job['id']} {job['status']}  {job['name']}")
    if not dry_run and (more := result["count"] - _MOST_SHOWN) > 0:
        out.say(f"and {more:,} more")
    for each in result["refused"]:
        err.say(f"{each['job_id']} stays: {each['reason']}")
    if foreign := _num_foreign(result):
        stay, their, them = ("stays", "its", "it") if foreign == 1 else ("stay", "their", "them")
        who = f"only {their} owner or an administrator may {verb} {them}"
        err.say(f"{counted(foreign, 'job')} of other keys {stay}: {who}")
    count = f"{result['count']:,}{' or more' if dry_run and result['has_more'] else ''}"
    jobs = "job" if result["count"] == 1 else "jobs"
    done = f"would {verb}" if dry_run else {"cancel": "cancelled", "pause": "paused", "resume": "resumed"}[verb]
    out.say(f"{done} {count} {jobs}")
