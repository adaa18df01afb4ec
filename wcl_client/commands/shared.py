"""Options and steps that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from wcl_client.api import WclClient
from wcl_client.progress import watch
from wcl_client.responses import Job
from wcl_client.terminal import err, out

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, a unique beginning or end of an id, or `last`.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE sets a field of the spec, for example epochs=20; may be repeated."),
]


def follow_jobs(client: WclClient, jobs: list[Job], to_stderr: bool) -> list[Job]:
    """Show the progress of jobs until they end, and return the ended jobs."""
    return watch(client, jobs, err if to_stderr else out)


def require_success(jobs: list[Job]) -> None:
    """Print each job that did not succeed, and exit with code 1 if there is one."""
    failed = [job for job in jobs if job["status"] != "succeeded"]
    for job in failed:
        reason = job["status_message"] or job["status_reason"] or "no reason given"
        err.say(f"{job['id']} {job['status']}: {reason}")
    if failed:
        raise typer.Exit(1)
