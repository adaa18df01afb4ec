"""What a client asks for under an `Idempotency-Key` is made once, however often it asks."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.errors import FieldError, Invalid
from jobs.models import IdempotencyKey


def once(
    database: Database, key: str, owner: str, body_digest: str, make: Callable[[Session], str]
) -> tuple[str, bool]:
    """Make something under a key: the same key and body answer with what the first request made.

    The key's row commits with it, so of two at the same time one waits on the unique index and then replays.

    Args:
        key, owner: the key is the owner's own.
        body_digest: of what is asked for.
        make: within the transaction; the id of what it made.

    Returns:
        (the id, whether it is a replay).

    Raises:
        Invalid: the key came before with another body; or as `make`.
    """

    def change(session: Session) -> tuple[str, bool]:
        known = session.get(IdempotencyKey, (owner, key))
        if known is not None:
            if known.body_digest != body_digest:
                raise Invalid([FieldError("", "this Idempotency-Key was used with another body")])
            return known.job_id, True
        made = make(session)
        session.add(IdempotencyKey(owner=owner, key=key, body_digest=body_digest, job_id=made))
        session.flush()
        return made, False

    try:
        return database.write(change)
    except IntegrityError:  # the twin has committed first
        return database.write(change)
