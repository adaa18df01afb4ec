"""The audit: a replay of all events, compared with the stored state of the jobs."""

from __future__ import annotations

from fastapi import APIRouter

from api.http.auth import ServiceAdmin
from api.http.dependencies import HeavySlot, TheDatabase, TheStorage
from api.http.problems import Unready
from api.rest.responses import Response
from jobs import audit
from jobs.storage import StorageUnavailable

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
    deletions: int
    findings: list[FindingResponse]


@router.get("")
def audit_all(principal: ServiceAdmin, database: TheDatabase, storage: TheStorage, slot: HeavySlot) -> Audit:
    """Replay the events of all jobs, and compare the results with the stored state and the folders of the storage."""
    try:
        return Audit.of(audit.audit(database, storage))
    except StorageUnavailable as error:
        raise Unready(str(error)) from error
