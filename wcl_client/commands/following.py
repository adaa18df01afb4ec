"""Jobs followed to their end, and the exit code that tells how they ended."""

from __future__ import annotations

import typer

from wcl_client.api import WclClient
from wcl_client.output import err, out
from wcl_client.responses import Job


def follow_jobs(client: WclClient, jobs: list[Job], to_stderr: bool) -> list[Job]:
    from wcl_client.progress import watch as watch_jobs

    return watch_jobs(client, jobs, err if to_stderr else out)


def require_success(jobs: list[Job]) -> None:
    """Exit code 1 when a job did not succeed."""
    bad = [job for job in jobs if job["status"] != "succeeded"]
    for job in bad:
        err.print(f"{job['id']} {job['status']}: {job.get('status_message') or job.get('status_reason') or ''}")
    if bad:
        raise typer.Exit(1)
