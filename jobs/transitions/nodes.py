"""The further nodes of an attempt on several workers: their start, renewal and end."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, exists, select, update
from sqlalchemy.orm import Session

from jobs.attempts import AttemptRef
from jobs.database import now_ms
from jobs.devices import Free, is_node_of
from jobs.errors import Superseded
from jobs.gangs import Rendezvous, devices_of, is_given
from jobs.models import Attempt, AttemptNode, Job
from jobs.transitions.claims import Claim, claim_of
from jobs.transitions.fence import Requests, end_attempt, requests_to


@dataclass(frozen=True)
class NodeState:
    """What a renewed node learns: the requests to its attempt, and where its ranks meet once that is known."""

    requests: Requests
    rendezvous: Rendezvous | None


def has_node(session: Session, worker_id: str, free: Free) -> bool:
    """Return whether `begin_node` finds a node."""
    return _given(session, worker_id, free) is not None


def begin_node(session: Session, worker_id: str, free: Free) -> Claim | None:
    """Begin a node that this worker has been given, and return its part of the attempt.

    Returns:
        None if there is none, or if the run of an earlier attempt still uses its devices or its CPU slot.
    """
    if (given := _given(session, worker_id, free)) is None:
        return None
    begins = update(AttemptNode).where(_is_row(given.attempt, given.node), AttemptNode.renewals == 0)
    if session.execute(begins.values(renewals=1).returning(AttemptNode.node)).scalar_one_or_none() is None:
        return None
    return claim_of(session, given.attempt, given.devices, node=given.node, num_nodes=given.num_nodes)


@dataclass(frozen=True)
class _Given:
    attempt: AttemptRef
    node: int
    num_nodes: int
    devices: tuple[str, ...]


def _given(session: Session, worker_id: str, free: Free) -> _Given | None:
    """Return the oldest node that a worker has been given and that fits its free part."""
    nodes = (
        select(Attempt.job_id, Attempt.number, Attempt.token, AttemptNode.node, Job.nodes)
        .join(AttemptNode, is_node_of())
        .join(Job, Job.id == Attempt.job_id)
        .where(is_given(worker_id))
        .order_by(Attempt.started_at)
    )
    for job_id, number, token, node, num_nodes in session.execute(nodes).all():
        devices = devices_of(session, job_id, number, node)
        if set(devices) <= set(free.devices) and (devices or free.cpu_slots):
            return _Given(AttemptRef(job_id, number, token), node, num_nodes, devices)
    return None


def renew_node(session: Session, attempt: AttemptRef, node: int) -> NodeState:
    """Renew a node of an open attempt.

    Raises:
        Superseded: the attempt has ended.
    """
    is_open = exists().where(attempt.is_row(), Attempt.ended_at.is_(None))
    renews = update(AttemptNode).where(_is_row(attempt, node), is_open).values(renewals=AttemptNode.renewals + 1)
    result = session.execute(renews.returning(AttemptNode.node), execution_options={"synchronize_session": False})
    if result.scalar_one_or_none() is None:
        raise Superseded(f"{attempt} has ended")
    rendezvous = session.execute(select(Attempt.rendezvous).where(attempt.is_row())).scalar_one()
    return NodeState(requests_to(session, attempt), None if rendezvous is None else Rendezvous(**rendezvous))


def end_node(session: Session, attempt: AttemptRef, node: int) -> None:
    """Record that the ranks of a node have ended well: the others end the attempt, and the node needs no renewal."""
    session.execute(update(AttemptNode).where(_is_row(attempt, node)).values(ended_at=now_ms()))


def announce_rendezvous(session: Session, attempt: AttemptRef, rendezvous: Rendezvous) -> None:
    """Store where the ranks of an open attempt meet, for its other nodes.

    Raises:
        Superseded: the attempt has ended.
    """
    _update_open(session, attempt, rendezvous=rendezvous.as_json())


def request_drain(session: Session, attempt: AttemptRef) -> None:
    """Request that an open attempt saves and ends, since the worker of one of its nodes drains.

    Raises:
        Superseded: the attempt has ended.
    """
    _update_open(session, attempt, drain_requested_at=now_ms())


def leave_nodes(session: Session, worker_id: str, *, max_failures: int = 3) -> None:
    """End the attempts of which this worker, which stops, has been given a node that it has not begun."""
    given = select(Attempt.job_id, Attempt.number, Attempt.token).join(AttemptNode, is_node_of())
    for job_id, number, token in session.execute(given.where(is_given(worker_id))).all():
        message = "the worker of a node stopped before it began"
        with suppress(Superseded):  # the first node has ended it since
            end_attempt(session, AttemptRef(job_id, number, token), "drained", None, message, max_failures=max_failures)


def _update_open(session: Session, attempt: AttemptRef, **values: object) -> None:
    statement = update(Attempt).where(attempt.is_row(), Attempt.ended_at.is_(None)).values(values)
    result = session.execute(
        statement.returning(Attempt.number), execution_options={"synchronize_session": False}
    ).scalar_one_or_none()
    if result is None:
        raise Superseded(f"{attempt} has ended")


def _is_row(attempt: AttemptRef, node: int) -> ColumnElement[bool]:
    return and_(AttemptNode.job_id == attempt.job_id, AttemptNode.attempt == attempt.number, AttemptNode.node == node)
