"""Bodies that a route reads itself, part by part: files that are too large for memory.

The middleware leaves the body of a route with the parameter `TheUpload` unread; host, key and scope are checked before.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, BinaryIO

import anyio
import anyio.from_thread
from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from starlette.requests import ClientDisconnect
from starlette.types import Message

from api.http.bodies import check_length
from api.http.problems import TooLarge, TooSlow, WrongMediaType

MEDIA_TYPE = "application/octet-stream"
BODY = {"required": True, "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}  # for OpenAPI
_AT_ONCE = 4
_PAUSE_SECONDS = 30.0  # between two parts
_GRACE_SECONDS = 60.0
_BYTES_PER_SECOND = 1 << 15  # after the grace; a slower client would hold a thread for hours


class Upload:
    """The body of a request that is received on the thread that serves it.

    Args:
        request: whose body was not read.
        clock: monotonic seconds.
    """

    def __init__(self, request: Request, clock: Callable[[], float] = time.monotonic) -> None:
        self._request = request
        self._clock = clock

    def copy_to(self, file: BinaryIO, max_bytes: int) -> str:
        """Write the body to a file while it arrives, and return the sha256 of its bytes.

        Raises:
            WrongMediaType, TooLarge, TooSlow: the body is refused.
            ClientDisconnect: the client has closed the connection before the end.
            OSError: the file cannot take it.
        """
        if self._request.headers.get("content-type", "").partition(";")[0].strip().lower() != MEDIA_TYPE:
            raise WrongMediaType(f"expected Content-Type: {MEDIA_TYPE}")
        check_length(self._request, max_bytes)
        digest, size, began, is_over = hashlib.sha256(), 0, self._clock(), False
        while not is_over:
            message = anyio.from_thread.run(self._receive)
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part = message.get("body", b"")
            is_over = not message.get("more_body", False)
            size += len(part)
            if size > max_bytes:
                raise TooLarge(f"expected a body of at most {max_bytes} bytes")
            if self._clock() - began > _GRACE_SECONDS + size / _BYTES_PER_SECOND:
                raise TooSlow(f"expected at least {_BYTES_PER_SECOND} bytes a second")
            digest.update(part)
            file.write(part)
        return digest.hexdigest()

    async def _receive(self) -> Message:
        try:
            with anyio.fail_after(_PAUSE_SECONDS):
                return await self._request.receive()
        except TimeoutError as error:
            raise TooSlow(f"expected the next bytes within {_PAUSE_SECONDS:g} s") from error


async def _upload(request: Request) -> AsyncIterator[Upload]:
    async with request.app.state.upload_slots:
        yield Upload(request)


TheUpload = Annotated[Upload, Depends(_upload, scope="function")]


def upload_slots() -> asyncio.Semaphore:
    """Return the slots of uploads: each holds a thread while its body arrives."""
    return asyncio.Semaphore(_AT_ONCE)


def takes_upload(dependant: Dependant | None) -> bool:
    """Return whether a route reads its body itself."""
    return any(inner.call is _upload for inner in (dependant.dependencies if dependant else ()))
