"""What an administrator does: drain workers, audit the ledger."""

from __future__ import annotations

from fastapi import APIRouter
from typing_extensions import TypedDict

from api.http.auth import Admin
from api.http.dependencies import TheDatabase
from api.rest import rendering
from api.rest.responses import WorkerAnswer
from jobs import workers
from jobs.audit import audit

router = APIRouter(prefix="/v1", tags=["operations"])


class FindingAnswer(TypedDict):
    """Something that does not close; `rule` is an open string."""

    job_id: str
    rule: str
    message: str


class Audit(TypedDict):
    """How much was looked at, and what was found: nothing, when all is well."""

    jobs: int
    events: int
    attempts: int
    findings: list[FindingAnswer]


@router.post("/workers/{worker_id}/drain")
def drain(worker_id: str, principal: Admin, database: TheDatabase) -> WorkerAnswer:
    """Ask a worker to save its job, return it to the queue, take nothing more, and end.

    The job loses no attempt by it.  Asking twice changes nothing.
    """
    return rendering.worker(database.write(lambda session: workers.drain(session, worker_id)))


@router.get("/audit")
def audit_all(principal: Admin, database: TheDatabase) -> Audit:
    """Replay the events of all jobs and compare where they lead with what the database says."""
    report = audit(database)
    findings: list[FindingAnswer] = [
        {"job_id": each.job_id, "rule": each.rule, "message": each.message} for each in report.findings
    ]
    return {"jobs": report.jobs, "events": report.events, "attempts": report.attempts, "findings": findings}
