"""Errors as `application/problem+json` (RFC 9457): the only place that maps exceptions to status codes.

JobsError (jobs.errors) ── Unreadable        400, the request itself cannot be read
                        ├─ Unauthenticated   401, no key, or an unknown one
                        │    └─ KeyExpired
                        ├─ TooSlow           408
                        ├─ Gone              410, registered, but its file is missing
                        ├─ TooLarge          413
                        ├─ WrongMediaType    415
                        ├─ Misdirected       421, the Host header names another server
                        ├─ TooMany           429
                        └─ Unready           503, the database has another version's schema
"""

from __future__ import annotations

import errno
import logging
import os
import time
import uuid
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException

from api.http import field_errors
from jobs.errors import FieldError, Invalid, JobsError, OverLimit
from jobs.faults import describe, detail_of, fault_of
from wcl_core.text import without_paths

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
ErrorRenderer = Callable[[Request, Exception], Response]
MAX_DETAIL = 1_000
_RETRY_SECONDS = "5"
_QUIET_SECONDS = 60.0
# Where the framework only repeats the title
_DETAILS = {404: "there is nothing at this address", 405: "this address does not take this method"}
_OF_THE_MACHINE = frozenset(  # a full or read-only disk, no free descriptors or memory
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)


class Unreadable(JobsError):  # noqa: N818 (named after the response it becomes)
    status_code = 400
    title = "The request cannot be read"


class Unauthenticated(JobsError):  # noqa: N818
    status_code = 401
    title = "Not signed in"


class KeyExpired(Unauthenticated):
    title = "The key has expired"


class TooSlow(JobsError):  # noqa: N818
    status_code = 408
    title = "Too slow"


class Gone(JobsError):  # noqa: N818
    status_code = 410
    title = "File missing"


class TooLarge(JobsError):  # noqa: N818
    status_code = 413
    title = "Too large"


class WrongMediaType(JobsError):  # noqa: N818
    status_code = 415
    title = "Wrong content type"


class Misdirected(JobsError):  # noqa: N818
    status_code = 421
    title = "Wrong host"


class TooMany(JobsError):  # noqa: N818
    status_code = 429
    title = "Too many requests"


class Unready(JobsError):  # noqa: N818
    status_code = 503
    title = "Not ready"

    def __init__(self, detail: str) -> None:
        super().__init__(without_paths(detail))


@dataclass(frozen=True)
class Problem:
    """An error as clients see it: a problem document (RFC 9457), or a page where a browser navigates.

    Attributes:
        errors: each invalid field by its JSON pointer.
        headers: of the response.
    """

    status: int
    title: str
    detail: str
    errors: Sequence[FieldError] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, error: Exception) -> Problem:
        """Return the problem that an exception stands for; an unexpected one is logged, and only its id is shown."""
        if isinstance(error, JobsError):
            errors = error.errors if isinstance(error, Invalid) else ()
            return cls(error.status_code, error.title, error.detail, errors, _headers(error))
        if isinstance(error, RequestValidationError):
            return cls.of(Invalid(field_errors.of_request(error.errors())))
        if isinstance(error, HTTPException):
            title = HTTPStatus(error.status_code).phrase
            detail = _DETAILS.get(error.status_code, title) if error.detail == title else str(error.detail)
            return cls(error.status_code, title, detail, headers=error.headers or {})
        if isinstance(error, DataError):
            return cls(422, Invalid.title, "a number or a text is out of the range that can be stored")
        if (fault := fault_of(error)) is not None:
            _log_fault(fault, describe(error))
            headers = {"Retry-After": _RETRY_SECONDS} if fault.is_passing else {}
            return cls(503, "Database unavailable", detail_of(error, fault), headers=headers)
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            _log_fault(error.errno, str(error))
            detail = f"the server cannot do this now: {os.strerror(error.errno)}"
            return cls(503, "Server unavailable", detail, headers={"Retry-After": _RETRY_SECONDS})
        number = str(uuid.uuid4())
        log.error("error %s", number, exc_info=error)
        return cls(500, "Internal error", f"the server failed; its log explains error {number}")

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {"type": "about:blank", "title": self.title, "status": self.status}
        document["detail"] = shown(self.detail)
        if self.errors:
            document["errors"] = [
                {"pointer": shown(error.pointer), "detail": shown(error.detail)}
                for error in self.errors[: field_errors.MAX_ERRORS]
            ]
        return document

    def response(self) -> JSONResponse:
        return JSONResponse(self.to_json(), self.status, self.headers, MEDIA_TYPE)


def shown(text: str) -> str:
    """Return the start of a text that may quote the request, without characters that UTF-8 cannot hold."""
    return text[:MAX_DETAIL].encode(errors="backslashreplace").decode()


_logged_at: dict[Hashable, float] = {}


def _log_fault(kind: Hashable, text: str) -> None:
    """Log why requests fail, at most once a minute for each kind of fault: thousands may meet it."""
    if time.monotonic() - _logged_at.get(kind, float("-inf")) >= _QUIET_SECONDS:
        _logged_at[kind] = time.monotonic()
        log.warning("a request failed: %s; more of this kind are not logged for %g s", text, _QUIET_SECONDS)


def _headers(error: JobsError) -> dict[str, str]:
    if isinstance(error, Unauthenticated):
        return {"WWW-Authenticate": 'Bearer realm="wcl"'}
    if isinstance(error, OverLimit):
        return {"Retry-After": str(error.retry_seconds)}
    if isinstance(error, TooMany | Unready):
        return {"Retry-After": _RETRY_SECONDS}
    return {}
