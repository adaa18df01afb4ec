"""The audit: a replay of all events, compared with the stored state of the jobs."""

from __future__ import annotations

from fastapi import APIRouter

from api.http.auth import Admin
from api.http.dependencies import HeavySlot, TheDatabase
from api.rest.responses import Response
from jobs import audit

router = APIRouter(prefix="/v1/audit", tags=["operations"])


class FindingResponse(Response):
    """An inconsistency; `rule` is an open string."""

    job_id: str
    rule: str
    message: str


class Audit(Response):
    """The numbers of checked rows, and the inconsistencies; there are none if all is well."""

    jobs: int
    events: int
    attempts: int
    findings: list[FindingResponse]


@router.get("")
def audit_all(principal: Admin, database: TheDatabase, slot: HeavySlot) -> Audit:
    """Replay the events of all jobs, and compare the results with the stored state."""
    return Audit.of(audit.audit(database))
