"""Errors of a request, each with its HTTP status.

JobsError ── Invalid       422, a list of wrong fields
          ├─ Forbidden     403, the key may not do this, or another site sent the request
          ├─ NotFound      404
          ├─ Conflict      409, the job is in another state
          └─ OverLimit     429, a limit of the key or of its project is reached

Superseded       internal: the attempt is no longer open, so its supervisor has to stop
RecordsMissing   internal: the database has not stored the records before these, so its supervisor has to repeat them
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class FieldError:
    """One wrong field: a JSON pointer into the body, and what was expected."""

    pointer: str
    detail: str


class JobsError(Exception):
    """Base class of the errors that a request can cause."""

    status_code = 400
    title = "Bad request"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Forbidden(JobsError):  # noqa: N818
    status_code = 403
    title = "Not allowed"


class NotFound(JobsError):  # noqa: N818 (named after the HTTP response)
    status_code = 404
    title = "Not found"


def existing(row: T | None, noun: str, name: str | None = None) -> T:
    """Return the row; raise `NotFound` if there is none of that id or name, which the message quotes."""
    if row is None:
        raise NotFound(f"there is no {noun}" if name is None else f"there is no {noun} {name!r}")
    return row


class Conflict(JobsError):  # noqa: N818
    status_code = 409
    title = "Conflict"


class Invalid(JobsError):  # noqa: N818
    status_code = 422
    title = "Invalid request"

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(f"{e.pointer}: {e.detail}" if e.pointer else e.detail for e in errors))
        self.errors = errors


class OverLimit(JobsError):  # noqa: N818
    """A limit of the key or of its project is reached (jobs.limits).

    Args:
        detail: which limit, and what to do.
        retry_seconds: after which the same request may succeed.
    """

    status_code = 429
    title = "Limit reached"

    def __init__(self, detail: str, retry_seconds: int) -> None:
        super().__init__(detail)
        self.retry_seconds = retry_seconds


class Superseded(Exception):  # noqa: N818
    """The attempt has ended, or another one has started; nothing more of it is stored."""


class RecordsMissing(ValueError):  # noqa: N818
    """The open attempt lacks records that were stored before: a backup of the database was restored."""
