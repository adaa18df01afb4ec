"""Request bodies, validated before they reach a route: size, media type, UTF-8, and JSON that every database can store.

The work is bounded before it starts, and long work runs on a thread, so that other requests are answered meanwhile.
"""

from __future__ import annotations

import json
import math
from typing import Any

import anyio
import anyio.to_thread
from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.types import Message, Receive

from api.http.field_errors import escaped
from api.http.problems import TooLarge, TooSlow, Unreadable, WrongMediaType
from api.http.proxies import route_path
from jobs.errors import FieldError, Invalid

MAX_DEPTH = 32
MAX_VALUES = 10_000
MAX_BATCH_VALUES = 100_000
MAX_FORM_BYTES = 250_000
MAX_PUBLIC_BYTES = 4_000  # of a request without a key
MAX_FORM_FIELDS = 500
_JSON = "application/json"
_SEPARATORS = {"application/x-www-form-urlencoded": b"&", "multipart/form-data": b"Content-Disposition"}
_API = "/v1/"
_BATCH = "/v1/jobs:batch"
_READ_SECONDS = 30.0


async def checked(request: Request, max_bytes: int) -> Receive:
    """Read and validate the request's body, and return it as one message.

    Raises:
        TooLarge, TooSlow, Unreadable, WrongMediaType, Invalid: the body is refused.
    """
    kind = _media_type(request)
    max_bytes = min(max_bytes, MAX_FORM_BYTES) if kind in _SEPARATORS else max_bytes
    check_length(request, max_bytes)
    body = await _read(request, max_bytes)
    if body:
        await anyio.to_thread.run_sync(_check, body, kind, route_path(request.scope))
    return _replayed(body, request.receive)


def _media_type(request: Request) -> str:
    """Return the media type; the parser of forms obeys its charset, so it may be only UTF-8.

    Raises:
        WrongMediaType: the body is in another charset.
    """
    # Parsed as starlette parses it: another parser might find another charset.
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    charset = options.get(b"charset", b"utf-8")
    if charset.strip().lower() not in (b"utf-8", b"utf8"):
        raise WrongMediaType("expected a body in UTF-8: leave out the charset of Content-Type, or set charset=utf-8")
    return kind.decode("latin-1").strip().lower()


def _check(body: bytes, kind: str, path: str) -> None:
    if kind == _JSON:
        check_values(_decoded(body), MAX_BATCH_VALUES if path == _BATCH else MAX_VALUES)
    elif path.startswith(_API):
        raise WrongMediaType("expected Content-Type: application/json")
    elif kind in _SEPARATORS:
        _text(body)
        if body.lower().count(_SEPARATORS[kind].lower()) > MAX_FORM_FIELDS:
            raise TooLarge(f"expected a form of at most {MAX_FORM_FIELDS} fields")


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"expected UTF-8; byte {error.start} is invalid") from error


def check_length(request: Request, max_bytes: int) -> None:
    """Refuse a declared length that is no number, or that is over the limit.

    Raises:
        Unreadable, TooLarge: the body is refused.
    """
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
        return json.loads(_text(body), parse_constant=_refuse_constant, object_pairs_hook=_object)
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


class _Place:
    """The place of a value in a document; its pointer is made only for an error, since names may be long and many."""

    def __init__(self, parent: _Place | None = None, step: str | int = "") -> None:
        self._parent = parent
        self._step = step

    @property
    def pointer(self) -> str:
        return "" if self._parent is None else f"{self._parent.pointer}/{escaped(self._step)}"


def check_values(value: Any, most: int = MAX_VALUES) -> None:
    """Refuse text that UTF-8 or PostgreSQL cannot hold, numbers beyond a double, and too deep nesting.

    Raises:
        TooLarge, Invalid: with a pointer to the value.
    """
    left: list[tuple[_Place, int, Any]] = [(_Place(), 0, value)]
    count = 1
    while left:
        place, depth, item = left.pop()
        count += len(item) if isinstance(item, dict | list) else 0
        if depth > MAX_DEPTH or count > most:
            raise TooLarge(f"expected at most {MAX_DEPTH} levels and {most} values of JSON")
        if isinstance(item, dict):
            for name in item:
                _check_text(place, name)
            left += [(_Place(place, name), depth + 1, inner) for name, inner in item.items()]
        elif isinstance(item, list):
            left += [(_Place(place, number), depth + 1, inner) for number, inner in enumerate(item)]
        elif isinstance(item, str):
            _check_text(place, item)
        elif isinstance(item, float) and not math.isfinite(item):
            raise Invalid([FieldError(place.pointer, "expected a finite number")])


def _check_text(place: _Place, text: str) -> None:
    if "\0" in text:
        raise Invalid([FieldError(place.pointer, "expected text without the NUL character")])
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Invalid([FieldError(place.pointer, "expected Unicode text without unpaired surrogates")]) from None
