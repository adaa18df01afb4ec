"""Exceptions of the client.

WclError
 ├─ InvalidAddress       the address or the key of the server cannot be one
 ├─ Unreachable          no server responds at the address
 ├─ ForeignServer        something else than this service responds there
 ├─ ApiError             the server responded with problem+json
 │   ├─ NotFoundError    404
 │   ├─ InvalidError     400, 413, 415, 422: names each wrong field
 │   ├─ DeniedError      401, 403
 │   │   └─ RefusedTokenError   the token of `wcl worker join`
 │   └─ ConflictError    409, 410, 412: the current state forbids the request
 └─ TransferError        a download is incomplete or does not match its checksum
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wcl_core.text import visible


@dataclass(frozen=True)
class FieldProblem:
    """One wrong field of a request."""

    pointer: str
    detail: str


class WclError(Exception):
    """Base of all errors of this client."""


class InvalidAddress(WclError):  # noqa: N818 - the state is the name
    """The address or the key of the server cannot be one."""


class ForeignServer(WclError):  # noqa: N818 - the state is the name
    """Something else than this service responds at the address."""


class Unreachable(WclError):  # noqa: N818 - the state is the name
    """No server responds at the address."""


class TransferError(WclError):
    """A download is incomplete, or its bytes do not match the registered checksum."""


class ApiError(WclError):
    """A response with an error status, with the fields of its problem+json."""

    def __init__(self, status: int, title: str, detail: str = "", errors: tuple[FieldProblem, ...] = ()) -> None:
        self.status = status
        self.title = title
        self.detail = detail
        self.errors = errors
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{visible(self.title)} ({self.status})"
        if self.errors:  # `detail` repeats the errors in one line
            lines = (f"  {visible(problem.pointer) or '/'}: {visible(problem.detail)}" for problem in self.errors)
            return "\n".join([head, *lines])
        return f"{head}: {visible(self.detail)}" if self.detail and self.detail != self.title else head


class NotFoundError(ApiError):
    """The requested object does not exist on the server."""


class InvalidError(ApiError):
    """The request is wrong; repeating it unchanged fails again."""


class DeniedError(ApiError):
    """The key is absent, unknown or lacks the permission."""


class RefusedTokenError(DeniedError):
    """The token of `wcl worker join` is unknown, used or expired; no key takes its place."""


class ConflictError(ApiError):
    """The current state of the object forbids the request."""


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
    """Return the exception for an error response.

    Args:
        body: the decoded JSON; None if the response holds none.
        fallback: the title if the body has none.
    """
    problem: dict[str, Any] = body if isinstance(body, dict) else {}
    raw = problem.get("errors")
    errors = tuple(
        FieldProblem(str(entry.get("pointer", "")), str(entry.get("detail", "")))
        for entry in (raw if isinstance(raw, list) else [])
        if isinstance(entry, dict)
    )
    kind = _BY_STATUS.get(status, ApiError)
    return kind(status, str(problem.get("title") or fallback), str(problem.get("detail") or ""), errors)
