"""Idempotency keys: a request that repeats its key gets the row that the first request created."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.errors import Conflict, FieldError, Invalid
from jobs.models import Activity, IdempotencyKey, Job, Key, Sweep, Webhook
from wcl_core.digests import digest_of

R = TypeVar("R")
Created = TypeVar("Created", Job, Sweep, Key, Activity, Webhook)


def create_once(
    database: Database, owner: str, key: str, request: Any, model: type[Created], create: Callable[[Session], Created]
) -> tuple[Created, bool]:
    """Create a row under an idempotency key, or return the row that an earlier request created under it.

    The key's row commits together with the created row.  Of two concurrent requests one waits on the unique index, and
    then returns the other one's row.

    Args:
        database: where both rows are stored.
        owner: id of the API key that sends the request; each owner has idempotency keys of its own.
        request: JSON values that identify the request.
        model: the class of the created row.
        create: adds the row; runs within the transaction, and again if the transaction is retried.

    Returns:
        (the row, whether an earlier request created it).

    Raises:
        Invalid: an earlier request used the key with another body; or as `create`.
        Conflict: the row that an earlier request created is deleted.
    """

    def find(session: Session, earlier: IdempotencyKey) -> Created:
        if (row := session.get(model, earlier.job_id)) is None:
            raise _deleted(earlier.job_id)
        return row

    return _once(database, owner, key, request, find, create, lambda row: {"job_id": row.id})


def create_batch_once(
    database: Database, owner: str, key: str, request: Any, create: Callable[[Session], list[Job]]
) -> tuple[list[Job], bool]:
    """Create jobs under one idempotency key, or return those that an earlier request created; as `create_once`."""

    def find(session: Session, earlier: IdempotencyKey) -> list[Job]:
        ids = earlier.job_ids or []
        rows = {job.id: job for job in session.execute(select(Job).where(Job.id.in_(ids))).scalars()}
        if deleted := [each for each in ids if each not in rows]:
            raise _deleted(deleted[0])
        return [rows[each] for each in ids]

    def stored(jobs: list[Job]) -> dict[str, Any]:
        return {"job_id": jobs[0].id, "job_ids": [job.id for job in jobs]}

    return _once(database, owner, key, request, find, create, stored)


def _deleted(row_id: str) -> Conflict:
    return Conflict(f"{row_id}, which this Idempotency-Key created, is deleted; send a new key")


def _once(
    database: Database,
    owner: str,
    key: str,
    request: Any,
    find: Callable[[Session, IdempotencyKey], R],
    create: Callable[[Session], R],
    stored: Callable[[R], dict[str, Any]],
) -> tuple[R, bool]:
    body_digest = digest_of(request)

    def change(session: Session) -> tuple[R, bool]:
        earlier = session.get(IdempotencyKey, (owner, key))
        if earlier is not None:
            if earlier.body_digest != body_digest:
                raise Invalid([FieldError("", "this Idempotency-Key was used with another body; send a new key")])
            return find(session, earlier), True
        result = create(session)
        session.add(IdempotencyKey(owner=owner, key=key, body_digest=body_digest, **stored(result)))
        session.flush()
        return result, False

    try:
        return database.write(change)
    except IntegrityError:  # a concurrent request with the same key has committed first
        return database.write(change)
