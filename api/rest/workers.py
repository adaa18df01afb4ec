"""Workers: list, drain, cordon, invite and join."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from api.http.auth import Reader, ServiceAdmin
from api.http.dependencies import TheDatabase, TheSettings
from api.http.problems import Unauthenticated
from api.rest.responses import Response, Time, WorkerResponse
from jobs import devices, joining, keys, queries, workers
from jobs.models import Worker

router = APIRouter(prefix="/v1/workers")
_NO_INVITATION = (
    "the token is unknown, used or older than an hour, or its key has ended; an administrator makes another one with "
    "`wcl worker invite`"
)


class Workers(Response):
    """Running workers first, then newest first; those that ended a week ago are left out."""

    items: list[WorkerResponse]


class Invitation(Response):
    """The token for one machine, and the id of the invitation.  No other response contains the token."""

    id: str
    token: str
    expires_in_seconds: int


class OpenInvitation(Response):
    """An invitation that a machine may still use; `by` is the name of the key that made it."""

    id: str
    by: str
    created_at: Time
    expires_at: Time


class OpenInvitations(Response):
    """The invitations that still work, newest first."""

    items: list[OpenInvitation]


class Machine(BaseModel):
    """A machine that joins."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"host": "node1", "version": "0.2.0"}]})

    host: Annotated[str, Field(min_length=1, max_length=255, description="Its name, for the activity log.")]
    version: Annotated[str, Field(max_length=100, description="Of the service that is installed on it.")]


class MachineSettings(Response):
    """The settings of a worker on the machine; they hold passwords."""

    settings: dict[str, str]


@router.get("", tags=["catalog"])
def list_workers(principal: Reader, database: TheDatabase) -> Workers:
    """List the workers."""
    with database.read() as session:
        return Workers(items=_responses(session, queries.workers_and_jobs(session)))


@router.post("/{worker_id}/drain", tags=["operations"])
def drain(worker_id: str, principal: ServiceAdmin, database: TheDatabase) -> WorkerResponse:
    """Drain a worker: it saves its job, returns the job to the queue, takes no other job, and ends.

    The drain does not count as a failure of the job.  A second request changes nothing.
    """
    return database.write(lambda session: _response(session, workers.drain(session, worker_id)))


@router.post("/{worker_id}/cordon", tags=["operations"])
def cordon(worker_id: str, principal: ServiceAdmin, database: TheDatabase) -> WorkerResponse:
    """Cordon a worker: its jobs go on, and it takes no other one until it is uncordoned, also after a restart."""
    return database.write(lambda session: _response(session, workers.cordon(session, worker_id, True)))


@router.post("/{worker_id}/uncordon", tags=["operations"])
def uncordon(worker_id: str, principal: ServiceAdmin, database: TheDatabase) -> WorkerResponse:
    """Let a cordoned worker take jobs again.  A second request changes nothing."""
    return database.write(lambda session: _response(session, workers.cordon(session, worker_id, False)))


@router.post("/invitations", status_code=201, tags=["operations"])
def invite(principal: ServiceAdmin, database: TheDatabase, settings: TheSettings) -> Invitation:
    """Invite one machine: `wcl worker join` exchanges the token for the settings of a worker, once, within an hour.

    The token ends with the key that made it.
    """
    joining.worker_settings(settings)  # a token without settings would be of no use
    token = database.write(lambda session: keys.new_invitation(session, principal.key_id))
    return Invitation(id=keys.invitation_id(token), token=token, expires_in_seconds=keys.INVITATION_MINUTES * 60)


@router.get("/invitations", tags=["operations"])
def list_invitations(principal: ServiceAdmin, database: TheDatabase) -> OpenInvitations:
    """List the invitations of machines that still work."""
    with database.read() as session:
        return OpenInvitations(items=[OpenInvitation.of(each) for each in keys.invitations(session)])


@router.delete("/invitations/{invitation_id}", status_code=204, tags=["operations"])
def revoke_invitation(invitation_id: str, principal: ServiceAdmin, database: TheDatabase) -> None:
    """Revoke an invitation of a machine."""
    database.write(lambda session: keys.revoke_invitation(session, invitation_id))


@router.post("/join", tags=["operations"])
def join(machine: Machine, request: Request, database: TheDatabase, settings: TheSettings) -> MachineSettings:
    """Exchange the token of an invitation, sent as `Authorization: Bearer TOKEN`, for the settings of a worker.

    A machine of another version is refused with 409, and its token stays.
    """
    token = request.headers.get("authorization", "").partition(" ")[2].strip()
    with database.read() as session:
        is_right = keys.is_invitation(session, token)
    if not is_right:  # a right one always passes, as with a link
        request.app.state.failures.note(request)
        raise Unauthenticated(_NO_INVITATION)
    joining.check_version(machine.version)
    values = joining.worker_settings(settings)
    if not database.write(lambda session: keys.accept_invitation(session, token, machine.host)):
        raise Unauthenticated(_NO_INVITATION)
    return MachineSettings(settings=values)


def _response(session: Session, worker: Worker) -> WorkerResponse:
    return _responses(session, [(worker, worker.job_id)])[0]


def _responses(session: Session, rows: Sequence[tuple[Worker, str | None]]) -> list[WorkerResponse]:
    """Return the responses about workers, each given with its job; None for one that the transaction does not see."""
    workers = [worker for worker, _ in rows]
    jobs, on_cpu = devices.users(session, workers), devices.cpu_users(session, workers)
    return [
        WorkerResponse.of(
            worker,
            job_id=job_id,
            devices=[each.as_json() | {"job_id": jobs.get(each.uuid)} for each in devices.of_worker(worker)],
            cpu_job_ids=on_cpu.get(worker.id, []),
        )
        for worker, job_id in rows
    ]
