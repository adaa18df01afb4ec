"""Request bodies, validated before they reach a route: size, media type, and JSON that every database can store."""

from __future__ import annotations

import json
import math
from typing import Any

import anyio
from fastapi import Request
from starlette.types import Message, Receive

from api.http.field_errors import escaped
from api.http.problems import TooLarge, TooSlow, Unreadable, WrongMediaType
from jobs.errors import FieldError, Invalid

MAX_DEPTH = 32
MAX_VALUES = 10_000
_API = "/v1/"
_READ_SECONDS = 30.0


async def checked(request: Request, max_bytes: int) -> Receive:
    """Read and validate the request's body, and return it as one message.

    Raises:
        TooLarge, TooSlow, Unreadable, WrongMediaType, Invalid: the body is refused.
    """
    _check_length(request, max_bytes)
    body = await _read(request, max_bytes)
    if body and _is_json(request):
        check_values(_decoded(body))
    elif body and request.scope["path"].startswith(_API):
        raise WrongMediaType("expected Content-Type: application/json")
    return _replayed(body, request.receive)


def _check_length(request: Request, max_bytes: int) -> None:
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise Unreadable("expected a number as Content-Length")
    if len(length) > 18 or int(length) > max_bytes:
        raise TooLarge(f"expected a body of at most {max_bytes} bytes")


async def _read(request: Request, max_bytes: int) -> bytes:
    """Read the body and count its bytes: a chunked body does not declare its length."""
    parts, size = [], 0
    try:
        with anyio.fail_after(_READ_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    raise TooLarge(f"expected a body of at most {max_bytes} bytes")
                parts.append(part)
    except TimeoutError as error:
        raise TooSlow(f"expected the whole body within {_READ_SECONDS:g} s") from error
    return b"".join(parts)


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json"


def _replayed(body: bytes, receive: Receive) -> Receive:
    is_sent = False

    async def replay() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body.decode(), parse_constant=_refuse_constant, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise Unreadable(f"expected UTF-8; byte {error.start} is invalid") from error
    except json.JSONDecodeError as error:
        raise Unreadable(f"expected JSON; {error.msg} at line {error.lineno} column {error.colno}") from error
    except RecursionError as error:
        raise TooLarge(f"expected at most {MAX_DEPTH} levels of JSON") from error
    except ValueError as error:  # a number of thousands of digits
        raise Unreadable("a number has too many digits") from error


def _refuse_constant(name: str) -> None:
    raise Unreadable(f"{name} is not a JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise Unreadable(f"the field {name[:100]!r} is there twice")
        result[name] = value
    return result


def check_values(value: Any) -> None:
    """Refuse text that UTF-8 or PostgreSQL cannot hold, numbers beyond a double, and too deep nesting.

    Raises:
        TooLarge, Invalid: with a pointer to the value.
    """
    left: list[tuple[str, int, Any]] = [("", 0, value)]
    count = 1
    while left:
        pointer, depth, item = left.pop()
        count += len(item) if isinstance(item, dict | list) else 0
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise TooLarge(f"expected at most {MAX_DEPTH} levels and {MAX_VALUES} values of JSON")
        if isinstance(item, dict):
            for name in item:
                _check_text(pointer, name)
            left += [(f"{pointer}/{escaped(name)}", depth + 1, inner) for name, inner in item.items()]
        elif isinstance(item, list):
            left += [(f"{pointer}/{place}", depth + 1, inner) for place, inner in enumerate(item)]
        elif isinstance(item, str):
            _check_text(pointer, item)
        elif isinstance(item, float) and not math.isfinite(item):
            raise Invalid([FieldError(pointer, "expected a finite number")])


def _check_text(pointer: str, text: str) -> None:
    if "\0" in text:
        raise Invalid([FieldError(pointer, "expected text without the NUL character")])
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Invalid([FieldError(pointer, "expected Unicode text without unpaired surrogates")]) from None
