"""Responses with one file: whole, one range of it, or 304 if the client has it already (RFC 9110).

Starlette's FileResponse ignores If-None-Match, and responds with 400 to ranges that a server has to ignore.  It sends
several ranges as multipart, even a thousand of them.  This module sends one range or the whole file.

With `WCL_NGINX_FILES` it sends no checkpoint to a trusted proxy, but the place of the file: nginx sends the bytes, or a
range of them, with a fraction of the CPU time.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import anyio.to_thread
from fastapi import Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from api.http.problems import Problem

CHUNK_BYTES = 1 << 18
_RANGE = re.compile(r"\s*bytes\s*=\s*([0-9]*)\s*-\s*([0-9]*)\s*", re.IGNORECASE | re.ASCII)
_LONGEST_RANGE = 200


def respond(
    request: Request,
    file: BinaryIO,
    etag: str,
    file_name: str,
    media_type: str = "application/octet-stream",
    link: Callable[[], str | None] = lambda: None,
) -> Response:
    """Return the response with the part of the file that the request's headers select.

    Args:
        request: a GET or HEAD with its Range, If-Range and If-None-Match.
        file: a stored file, open; the response closes it, and breaks off if the file changes meanwhile.
        etag: the strong validator, quoted.
        file_name: the name under which a browser saves the file; it consists of ids.
        media_type: a type that a browser may display; it saves `application/octet-stream`.
        link: returns an address that sends the file in place of this server; None without one.
    """
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
    if _has_it(request.headers.get("if-none-match"), etag):
        file.close()
        return Response(status_code=304, headers=headers)
    disposition = "attachment" if media_type == "application/octet-stream" else "inline"
    of_file = {"Content-Type": media_type, "Content-Disposition": f'{disposition}; filename="{file_name}"'}
    if disposition == "attachment" and (place := _place_for_nginx(request, file)) is not None:
        file.close()
        return Response(headers=headers | of_file | {"X-Accel-Redirect": place})
    if request.method == "GET" and (address := link()) is not None:
        file.close()
        return RedirectResponse(address, 307, {"Cache-Control": "no-store"})
    size = file.seek(0, os.SEEK_END)
    bounds = _bounds(request, etag)
    start, end = (0, size) if bounds is None else _clipped(*bounds, size)
    if bounds is not None and start >= end:
        file.close()
        refusal = headers | {"Content-Range": f"bytes */{size}"}
        return Problem(416, "Range not satisfiable", f"the file has {size} bytes", headers=refusal).response()
    headers |= of_file | {"Content-Length": str(end - start)}
    if bounds is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    if request.method == "HEAD":
        file.close()
        return Response(headers=headers)
    return _FilePart(file, start, end, 200 if bounds is None else 206, headers)


def _place_for_nginx(request: Request, file: BinaryIO) -> str | None:
    """Return the address below which nginx has a file; None if this server sends the response.

    A client on the proxy's machine that does not come through the proxy sends no X-Forwarded-For.
    """
    settings = request.app.state.settings
    is_forwarded = request.scope.get("wcl.is_of_proxy") and "x-forwarded-for" in request.headers
    if not (settings.nginx_files and request.method == "GET" and is_forwarded):
        return None
    if not isinstance(getattr(file, "name", None), str):
        return None  # of a bucket
    path, folder = Path(file.name).resolve(), settings.data_dir.resolve()
    if not path.is_relative_to(folder):
        return None
    return quote(f"{settings.nginx_files.rstrip('/')}/{path.relative_to(folder).as_posix()}")


def content(request: Request, body: bytes, etag: str, media_type: str) -> Response:
    """Return bytes as a whole, or 304 if the client has them already; `etag` is quoted."""
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if _has_it(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)


def _has_it(if_none_match: str | None, etag: str) -> bool:
    """Compare weakly, as the header requires."""
    if if_none_match is None:
        return False
    etags = [part.strip().removeprefix("W/") for part in if_none_match.split(",")]
    return "*" in etags or etag in etags


def _bounds(request: Request, etag: str) -> tuple[int | None, int | None] | None:
    """Return the first and last byte of a range, of which one may be None; None if the whole file is to be sent.

    A range counts only for GET, and only if If-Range names these bytes.  The RFC requires a server to ignore other
    units, several ranges and malformed ranges.
    """
    header, condition = request.headers.get("range", ""), request.headers.get("if-range", etag)
    match = _RANGE.fullmatch(header) if len(header) < _LONGEST_RANGE else None
    if request.method != "GET" or condition.strip() != etag or match is None or match.groups() == ("", ""):
        return None
    first, last = (int(text) if text else None for text in match.groups())
    return None if first is not None and last is not None and first > last else (first, last)


def _clipped(first: int | None, last: int | None, size: int) -> tuple[int, int]:
    """Return the half-open range of bytes to send; it may be empty."""
    if first is None:
        return max(0, size - (last or 0)), size
    return first, size if last is None else min(last + 1, size)


class _FilePart(StreamingResponse):
    """A response body that reads the file on a thread, chunk by chunk, and closes it even if the client disconnects."""

    def __init__(self, file: BinaryIO, start: int, end: int, status_code: int, headers: dict[str, str]) -> None:
        super().__init__(_chunks(file, start, end), status_code, headers)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()


async def _chunks(file: BinaryIO, start: int, end: int) -> AsyncIterator[bytes]:
    await anyio.to_thread.run_sync(file.seek, start)
    before = _touched(file)
    left = end - start
    while left:
        chunk = await anyio.to_thread.run_sync(file.read, min(left, CHUNK_BYTES))
        if not chunk or _touched(file) != before:  # after the read: the chunk is of the bytes that were checked
            raise OSError("the file changed while the server sent it")
        left -= len(chunk)
        yield chunk


def _touched(file: BinaryIO) -> tuple[int, int]:
    """Return size and time of the last change; not the inode's time, which a deletion changes, too.

    A file of a bucket compares the version of its object itself.
    """
    if not isinstance(file, BufferedReader):
        return 0, 0
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
