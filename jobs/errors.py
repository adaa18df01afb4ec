"""What can be wrong with a request, each with the HTTP status that answers it.

JobsError ── Invalid       422, a list of wrong fields
          ├─ NotFound      404
          └─ Conflict      409, the job is in another state

Superseded   not for clients: the attempt is no longer the open one, its supervisor has to stop
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FieldError:
    """One wrong field: a JSON pointer into the body, and what was expected."""

    pointer: str
    detail: str


class JobsError(Exception):
    """Base of everything a client can cause."""

    status_code = 400
    title = "Bad request"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class NotFound(JobsError):  # noqa: N818 (named as the answer it becomes)
    status_code = 404
    title = "Not found"


class Conflict(JobsError):  # noqa: N818
    status_code = 409
    title = "Conflict"


class Invalid(JobsError):  # noqa: N818
    status_code = 422
    title = "Invalid request"

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(f"{e.pointer}: {e.detail}" if e.pointer else e.detail for e in errors))
        self.errors = errors


class Superseded(Exception):  # noqa: N818
    """Another attempt owns the job, or it ended: nothing of this one will ever be stored again."""
