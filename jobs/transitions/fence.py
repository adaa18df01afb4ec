"""A running attempt: the fence before each of its writes, and its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Row, Select, case, exists, null, select, update
from sqlalchemy.orm import Session

from jobs import ingest, usage
from jobs.attempts import AttemptRef
from jobs.database import now_ms
from jobs.devices import is_node_of
from jobs.errors import RecordsMissing, Superseded
from jobs.events import record
from jobs.ingest import Delivered, StoredFile
from jobs.models import Attempt, AttemptDevice, AttemptNode, Job
from jobs.status import Reason
from jobs.transitions.outcomes import settle, spent_ms
from wcl_core.protocol import CheckpointRecord, StartedRecord, WarningRecord


@dataclass(frozen=True)
class Requests:
    """Requests to a running attempt.

    Attributes:
        timeout: the job has reached its limit of running time.
        drain: the worker of another node drains.
        seconds_left: until the job reaches that limit; infinite without one.
    """

    cancel: bool
    pause: bool
    preempt: bool
    timeout: bool = False
    drain: bool = False
    seconds_left: float = math.inf


def deliver(
    session: Session,
    attempt: AttemptRef,
    records: Sequence[Delivered],
    output: Sequence[tuple[int, str]] = (),
    *,
    max_failures: int = 3,
    ran_ms: int | None = None,
) -> Requests:
    """Store records and output of an open attempt, and renew it.

    The first statement is fence, duplicate filter and renewal in one.  Stored records are skipped, so a caller that got
    no response may repeat the delivery.

    Args:
        session: a writing transaction.
        records: of the spool in order, without a gap; none to renew only.
        output: numbered lines of stdout and stderr.
        max_failures: infrastructure failures that end the job.
        ran_ms: running time of the attempt by its worker's monotonic clock; None keeps the last one.

    Raises:
        Superseded: the attempt has ended.
    """
    records = _fence(session, attempt, records, ran_ms)
    job_id, number, end = attempt.job_id, attempt.number, None
    if records or output:
        job = session.get_one(Job, job_id)  # read once: the session finds it again while it is held here
        records = ingest.fitting(session, job, number, records)
        end = ingest.store(session, job, number, records, output)
    for each in records:
        match each:
            case StartedRecord() | WarningRecord():
                record(session, job_id, each.type, {**each.fields(), "attempt": number})
            case StoredFile(CheckpointRecord() as checkpoint, storage_key):
                data = checkpoint.fields() | {"path": storage_key}
                record(session, job_id, checkpoint.type, {"attempt": number, **data})
    if end is not None:
        _close(session, attempt, end.reason or end.outcome)
        settle(session, job_id, number, end.outcome, end.reason, end.message, max_failures)
        return Requests(cancel=False, pause=False, preempt=False)  # the end has answered them
    return requests_to(session, attempt)


def requests_to(session: Session, attempt: AttemptRef) -> Requests:
    """Return the requests to an attempt."""
    return requests_of(session.execute(requests_query(attempt)).one())


@lru_cache(maxsize=256)
def requests_query(attempt: AttemptRef) -> Select[Any]:
    """Return the query whose row `requests_of` reads: one for each attempt, whose worker reads it often."""
    left_ms = case((Job.max_seconds.is_not(None), Job.max_seconds * 1000 - spent_ms(Job.id)))
    return (
        select(
            Job.cancel_requested_at,
            Job.pause_requested_at,
            Job.preempt_requested_at,
            Attempt.drain_requested_at,
            left_ms.label("left_ms"),
        )
        .join(Attempt, Attempt.job_id == Job.id)
        .where(attempt.is_row())
    )


def requests_of(row: Row[Any]) -> Requests:
    """Return the requests that a row of `requests_query` holds."""
    left = math.inf if row.left_ms is None else float(row.left_ms) / 1000  # PostgreSQL sums to a decimal
    return Requests(
        cancel=row.cancel_requested_at is not None,
        pause=row.pause_requested_at is not None,
        preempt=row.preempt_requested_at is not None,
        timeout=left <= 0,
        drain=row.drain_requested_at is not None,
        seconds_left=max(0.0, left),
    )


def _fence(
    session: Session, attempt: AttemptRef, records: Sequence[Delivered], ran_ms: int | None
) -> Sequence[Delivered]:
    """Renew the attempt and return the records that are new.

    Raises:
        Superseded: the attempt has ended.
    """
    if records and records[-1].seq - records[0].seq != len(records) - 1:
        raise ValueError(f"records between {records[0].seq} and {records[-1].seq} are missing")
    if _renew(session, attempt, records, ran_ms):
        return records
    row = session.execute(
        select(Attempt.ended_at, Attempt.delivered_seq)
        .where(attempt.is_row())
        .with_for_update()  # a twin of this delivery may be under way
    ).one_or_none()
    if row is None or row.ended_at is not None:
        raise Superseded(f"{attempt} has ended")
    new = [each for each in records if each.seq > row.delivered_seq]
    if new and new[0].seq != row.delivered_seq + 1:
        raise RecordsMissing(f"records after {row.delivered_seq} are missing, got {new[0].seq}")
    if not _renew(session, attempt, new, ran_ms):
        raise Superseded(f"{attempt} changed hands")
    return new


def _renew(session: Session, attempt: AttemptRef, records: Sequence[Delivered], ran_ms: int | None) -> bool:
    statement = (
        update(Attempt)
        .where(attempt.is_row(), Attempt.ended_at.is_(None))
        .values(renewals=Attempt.renewals + 1, ran_ms=Attempt.ran_ms if ran_ms is None else ran_ms)
    )
    if records:
        first, last = records[0].seq, records[-1].seq
        statement = statement.where(Attempt.delivered_seq == first - 1).values(delivered_seq=last)
    result = session.execute(statement.returning(Attempt.number), execution_options={"synchronize_session": False})
    return result.scalar_one_or_none() is not None


def end_attempt(
    session: Session,
    attempt: AttemptRef,
    outcome: str,
    reason: str | None = None,
    message: str | None = None,
    *,
    max_failures: int = 3,
    ran_ms: int | None = None,
) -> None:
    """End an open attempt without an `end` record, since its process was killed, stopped or never started.

    Arguments as for `deliver`.

    Raises:
        Superseded: the attempt has ended already.
    """
    if not _close(session, attempt, reason or outcome, ran_ms=ran_ms):
        raise Superseded(f"{attempt} has ended")
    settle(session, attempt.job_id, attempt.number, outcome, reason, message, max_failures)


def reap(session: Session, attempt: AttemptRef, renewals: int, *, node: int = 0, max_failures: int = 3) -> bool:
    """End an attempt that was not renewed for a whole lease; return False when it was renewed in the meantime.

    Args:
        renewals: of the attempt, or of its node.
        node: the one that was not renewed; the first node renews the attempt.
    """
    if not _close(session, attempt, Reason.WORKER_LOST, renewals=renewals, node=node):
        return False
    message = f"the worker of node {node} stopped renewing it" if node else "its worker stopped renewing the attempt"
    settle(session, attempt.job_id, attempt.number, "failed", Reason.WORKER_LOST, message, max_failures)
    return True


def _close(
    session: Session,
    attempt: AttemptRef,
    reason: str,
    *,
    renewals: int | None = None,
    node: int = 0,
    ran_ms: int | None = None,
) -> bool:
    """End the attempt and release its devices; return False if it has ended, or its node was renewed since."""
    statement = (
        update(Attempt)
        .where(attempt.is_row(), Attempt.ended_at.is_(None))
        .values(
            ended_at=now_ms(),
            end_reason=reason,
            ran_ms=Attempt.ran_ms if ran_ms is None else ran_ms,
            rendezvous=null(),
        )
        .returning(Attempt.number)
    )
    if renewals is not None:
        is_same = exists().where(is_node_of(), AttemptNode.node == node, AttemptNode.renewals == renewals)
        statement = statement.where(is_same if node else Attempt.renewals == renewals)
    result = session.execute(statement, execution_options={"synchronize_session": False})
    if result.scalar_one_or_none() is None:
        return False
    usage.charge(session, attempt)
    its = (AttemptDevice.job_id == attempt.job_id, AttemptDevice.attempt == attempt.number)
    session.execute(update(AttemptDevice).where(*its, AttemptDevice.released_at.is_(None)).values(released_at=now_ms()))
    return True
