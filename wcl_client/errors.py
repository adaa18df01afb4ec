"""Everything the client raises.

WclError
 ├─ Unreachable          nobody answers at the server's address
 ├─ ApiError             the server answered with problem+json
 │   ├─ NotFoundError    404
 │   ├─ InvalidError     400, 413, 415, 422: names each wrong field
 │   ├─ DeniedError      401, 403
 │   └─ ConflictError    409, 410, 412: the current state forbids it
 └─ TransferError        a download does not match its checksum or never completed
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FieldProblem:
    """One wrong field of a request."""

    pointer: str
    detail: str


class WclError(Exception):
    """Base of all errors of this client."""


class Unreachable(WclError):  # noqa: N818 - the state is the name
    """No server answers at the address."""


class TransferError(WclError):
    """A download ended with other bytes than registered, or did not end."""


class ApiError(WclError):
    """An answer of the server with an error status, carrying its problem+json fields."""

    def __init__(self, status: int, title: str, detail: str = "", errors: tuple[FieldProblem, ...] = ()) -> None:
        self.status = status
        self.title = title
        self.detail = detail
        self.errors = errors
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.title} ({self.status})"
        if self.errors:  # the detail is the same once more, in one line
            return "\n".join([head, *(f"  {problem.pointer or '/'}: {problem.detail}" for problem in self.errors)])
        return f"{head}: {self.detail}" if self.detail and self.detail != self.title else head


class NotFoundError(ApiError):
    """There is no such thing on the server."""


class InvalidError(ApiError):
    """The request itself is wrong; sending it again will not help."""


class DeniedError(ApiError):
    """The key is absent, unknown or may not do this."""


class ConflictError(ApiError):
    """The current state of the thing forbids the request."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidError,
    401: DeniedError,
    403: DeniedError,
    404: NotFoundError,
    409: ConflictError,
    410: ConflictError,
    412: ConflictError,
    413: InvalidError,
    415: InvalidError,
    422: InvalidError,
}


def api_error(status: int, body: Any, fallback: str) -> ApiError:
    """The exception for an error answer; `body` is its decoded JSON, or None when it is none."""
    problem: dict[str, Any] = body if isinstance(body, dict) else {}
    raw = problem.get("errors")
    errors = tuple(
        FieldProblem(str(entry.get("pointer", "")), str(entry.get("detail", "")))
        for entry in (raw if isinstance(raw, list) else [])
        if isinstance(entry, dict)
    )
    kind = _BY_STATUS.get(status, ApiError)
    return kind(status, str(problem.get("title") or fallback), str(problem.get("detail") or ""), errors)
