"""Every error as `application/problem+json` (RFC 9457); the only place that turns exceptions into answers.

JobsError (jobs.errors) ── Unreadable        400, the request itself cannot be read
                        ├─ Unauthenticated   401, no key, or one that nobody knows
                        ├─ Forbidden         403, the key may not do this, or another site asks in its name
                        ├─ TooSlow           408
                        ├─ Gone              410, it was registered, but its file is missing
                        ├─ TooLarge          413
                        ├─ WrongMediaType    415
                        ├─ Misdirected       421, the Host header names another server
                        ├─ TooMany           429
                        └─ Unready           503, the database has another version's tables
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from api.http import field_errors
from jobs.database import is_outage
from jobs.errors import FieldError, Invalid, JobsError

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_MAX_ERRORS = 50
_MAX_DETAIL = 1_000
_RETRY_SECONDS = "5"


class Unreadable(JobsError):  # noqa: N818 (named as the answer it becomes)
    status_code = 400
    title = "The request cannot be read"


class Unauthenticated(JobsError):  # noqa: N818
    status_code = 401
    title = "Not signed in"


class Forbidden(JobsError):  # noqa: N818
    status_code = 403
    title = "Not allowed"


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


def problem(
    status: int,
    title: str,
    detail: str,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """One problem document; `errors` name each wrong field by a JSON pointer."""
    body: dict[str, Any] = {"type": "about:blank", "title": title, "status": status, "detail": detail[:_MAX_DETAIL]}
    if errors:
        body["errors"] = [
            {"pointer": error.pointer, "detail": error.detail[:_MAX_DETAIL]} for error in errors[:_MAX_ERRORS]
        ]
    return JSONResponse(body, status, headers, MEDIA_TYPE)


def answer(error: Exception) -> JSONResponse:
    """The response to any exception; unknown ones are logged under an id, and only the id is told."""
    if isinstance(error, JobsError):
        errors = error.errors if isinstance(error, Invalid) else ()
        return problem(error.status_code, error.title, error.detail, errors, _headers(error))
    if isinstance(error, RequestValidationError):
        return answer(Invalid(field_errors.of_request(error.errors()[:_MAX_ERRORS])))
    if isinstance(error, HTTPException):
        title = HTTPStatus(error.status_code).phrase
        return problem(error.status_code, title, str(error.detail), headers=error.headers)
    if isinstance(error, DataError):
        return problem(422, Invalid.title, "a number or a text is out of the range that can be stored")
    if is_outage(error) or isinstance(error, PoolTimeout):
        detail = "the database does not answer; try again"
        return problem(503, "Database unavailable", detail, headers={"Retry-After": _RETRY_SECONDS})
    number = str(uuid.uuid4())
    log.error("error %s", number, exc_info=error)
    return problem(500, "Internal error", f"the server's log has the reason under {number}")


def _headers(error: JobsError) -> dict[str, str] | None:
    if isinstance(error, Unauthenticated):
        return {"WWW-Authenticate": 'Bearer realm="wcl"'}
    if isinstance(error, TooMany | Unready):
        return {"Retry-After": _RETRY_SECONDS}
    return None
