"""Download of one checkpoint: resumable, verified by its checksum, visible only when complete."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from wcl_client.errors import TransferError
from wcl_core.files import refuse_device

ATTEMPTS = 5
_DIGEST = re.compile("[0-9a-f]{64}")
_READ_SECONDS = 600.0  # the server may read a large file as a whole before it sends the first byte


@dataclass(frozen=True)
class Downloaded:
    """A complete file whose checksum matches; an earlier call received its first `resumed_from` bytes."""

    path: Path
    sha256: str
    size: int
    resumed_from: int


class _Partial:
    """The incomplete file beside the target, and the ETag of its content."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(target.name + ".part")
        self._tag_path = target.with_name(target.name + ".part.etag")

    def start(self, etag: str) -> int:
        """Return the number of bytes that are already here; delete a partial file of another version."""
        stored = self._tag_path.read_text(encoding="utf-8") if self._tag_path.exists() else None
        if stored != etag or not self.path.exists():
            self.path.unlink(missing_ok=True)
            self._tag_path.write_text(etag, encoding="utf-8")
            return 0
        return self.path.stat().st_size

    def finish(self, target: Path) -> None:
        """Write the bytes to disk and rename the file to the target."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(target)
        self._tag_path.unlink(missing_ok=True)

    def drop(self) -> None:
        """Delete the file and its ETag."""
        self.path.unlink(missing_ok=True)
        self._tag_path.unlink(missing_ok=True)


def download(
    http: httpx.Client,
    url: str,
    target: Path,
    check: Callable[[httpx.Response], None],
    on_bytes: Callable[[int, int], None] | None = None,
) -> Downloaded:
    """Download `url` into `target`; continue an interrupted download of an earlier call.

    Args:
        http: the HTTP client, with base URL and key.
        check: raises for an error response.
        on_bytes: called with the received and the total number of bytes.

    Raises:
        TransferError: the connection kept breaking, the bytes do not match the ETag's sha256, or the file cannot be
            written.
    """
    try:
        refuse_device(target)
        return _download(http, url, target, check, on_bytes)
    except OSError as error:  # a full disk, for example
        reason = f"{target} cannot be written: {error.strerror or error}"
        raise TransferError(f"{reason}. What was received is kept; run again to continue") from error


def _download(
    http: httpx.Client,
    url: str,
    target: Path,
    check: Callable[[httpx.Response], None],
    on_bytes: Callable[[int, int], None] | None,
) -> Downloaded:
    head = http.head(url, timeout=httpx.Timeout(30.0, read=_READ_SECONDS))
    if head.is_error:  # the response to a HEAD has no body that gives the reason
        with http.stream("GET", url) as response:
            if response.is_error:
                response.read()
                check(response)
    check(head)
    etag, size = head.headers.get("etag", ""), _size(http, url, head)
    if not _DIGEST.fullmatch(_digest_in(etag)):
        raise TransferError(f"the server names no sha256 of the file (its ETag is {etag[:100]!r}), so it is not kept")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _Partial(target)
    first = have = partial.start(etag)
    for attempt in range(ATTEMPTS):
        if have >= size:
            break
        try:
            _append(http, url, partial.path, etag, have, size, check, on_bytes)
        except httpx.TransportError as error:
            if attempt == ATTEMPTS - 1:
                raise TransferError(
                    f"the connection broke at {partial.path.stat().st_size} of {size} bytes; run again to continue"
                ) from error
            time.sleep(0.5 * 2**attempt)
        have = partial.path.stat().st_size if partial.path.exists() else 0
    return _verify(partial, target, etag, size, first)


def _size(http: httpx.Client, url: str, head: httpx.Response) -> int:
    """Return the size of the file; some proxies remove it from the response to a HEAD.

    Raises:
        TransferError: no response names it.
    """
    text = head.headers.get("content-length", "")
    if not text.isdecimal():
        with http.stream("GET", url, headers={"Accept-Encoding": "identity", "Range": "bytes=0-0"}) as response:
            is_part = response.status_code == 206
            text = response.headers.get("content-range", "").rpartition("/")[2] if is_part else ""
            text = text or response.headers.get("content-length", "")
    if not text.isdecimal():
        raise TransferError("no response names the size of the file; a proxy in front of the server may remove it")
    return int(text)


def _append(
    http: httpx.Client,
    url: str,
    path: Path,
    etag: str,
    start: int,
    size: int,
    check: Callable[[httpx.Response], None],
    on_bytes: Callable[[int, int], None] | None,
) -> None:
    # The checksum and the ranges are of the stored bytes, so transfer compression is off.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": etag.removeprefix("W/")}
    with http.stream("GET", url, headers=headers) as response:
        if (onward := response.next_request) is None:
            _receive(response, path, start, size, check, on_bytes)
            return
    # To the storage of the server: without the key, and without an ETag that is not the storage's.
    request = http.build_request("GET", onward.url, headers=headers)
    for name in ("Authorization", "If-Range"):
        request.headers.pop(name, None)
    response = http.send(request, stream=True)
    try:
        _receive(response, path, start, size, check, on_bytes)
    finally:
        response.close()


def _receive(
    response: httpx.Response,
    path: Path,
    start: int,
    size: int,
    check: Callable[[httpx.Response], None],
    on_bytes: Callable[[int, int], None] | None,
) -> None:
    if response.is_error:
        response.read()
    check(response)
    # Status 200 for a Range request: the file changed or the server ignores ranges. The bytes start at 0.
    have = start if response.status_code == 206 else 0
    with path.open("ab" if have else "wb") as file:
        # Without a chunk size: httpx buffers an incomplete chunk and loses it if the connection breaks.
        for chunk in response.iter_raw():
            file.write(chunk)
            have += len(chunk)
            if on_bytes:
                on_bytes(have, size)


def checked(content: bytes, etag: str) -> bytes:
    """Return the content of a response.

    Raises:
        TransferError: it does not match the ETag's sha256.
    """
    if (digest := hashlib.sha256(content).hexdigest()) != _digest_in(etag):
        raise TransferError(f"the received bytes have sha256 {digest}, expected {etag}; run again")
    return content


def _digest_in(etag: str) -> str:
    """Return the sha256 in an ETag, also in one that a proxy has made weak or marked as compressed."""
    return etag.removeprefix("W/").strip('"').split("-")[0].removeprefix("sha256:")


def _verify(partial: _Partial, target: Path, etag: str, size: int, first: int) -> Downloaded:
    """Check the size and the checksum, and rename the file to the target; delete it if a check fails."""
    if not partial.path.exists() or partial.path.stat().st_size != size:
        partial.drop()
        raise TransferError(f"the server did not send the expected {size} bytes; run again")
    with partial.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if (announced := _digest_in(etag)) != digest:
        partial.drop()
        raise TransferError(f"the received bytes have sha256 {digest}, expected {announced}; run again")
    partial.finish(target)
    return Downloaded(target, digest, size, first)
