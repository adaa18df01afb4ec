"""Downloads from an HTTP server that breaks connections, ignores ranges and sends wrong bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import wcl_client.download
from tests.waiting import patch_clock, run_apart
from wcl_client.api import WclClient
from wcl_client.async_client import AsyncWclClient
from wcl_client.errors import NotFoundError, TransferError

pytestmark = pytest.mark.server

BODY = os.urandom(300_000)


@dataclass
class FileServer:
    """One file at one URL, and the behaviour of its server."""

    body: bytes = BODY
    etag: str = f'"{hashlib.sha256(BODY).hexdigest()}"'
    breaks_after: list[int] = field(default_factory=list)
    honours_ranges: bool = True
    sizes_of_heads: bool = True
    ranges: list[str | None] = field(default_factory=list)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    file_server: FileServer

    def do_HEAD(self) -> None:
        if "missing" in self.path:
            self.send_error(404)
            return
        self._head(200, len(self.file_server.body) if self.file_server.sizes_of_heads else None)

    def do_GET(self) -> None:
        file_server = self.file_server
        requested = self.headers.get("Range")
        file_server.ranges.append(requested)
        is_same = self.headers.get("If-Range") == file_server.etag
        start = int(requested[6:-1]) if requested and is_same and file_server.honours_ranges else 0
        rest = file_server.body[start:]
        self._head(206 if start else 200, len(rest))
        if file_server.breaks_after:
            self.wfile.write(rest[: file_server.breaks_after.pop(0)])
            self.wfile.flush()
            self.connection.close()
            return
        self.wfile.write(rest)

    def _head(self, status: int, length: int | None) -> None:
        self.send_response(status)
        self.send_header("ETag", self.file_server.etag)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@pytest.fixture
def file_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    patch_clock(monkeypatch, wcl_client.download, sleep=lambda seconds: None)
    served = FileServer()
    handler = type("Handler", (_Handler,), {"file_server": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    yield served
    server.shutdown()
    server.server_close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "model.safetensors"


def fetch(file_server: FileServer, target: Path) -> wcl_client.download.Downloaded:
    with WclClient(file_server.url) as wcl:
        return wcl.download("some-id", target)


def test_a_download_has_the_right_bytes_and_leaves_no_partial_file(file_server: FileServer, target: Path) -> None:
    done = fetch(file_server, target)

    assert target.read_bytes() == BODY
    assert done.sha256 == hashlib.sha256(BODY).hexdigest()
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_proxy_may_remove_the_size_from_the_response_to_a_head(file_server: FileServer, target: Path) -> None:
    file_server.sizes_of_heads = False

    fetch(file_server, target)

    assert target.read_bytes() == BODY


def test_a_broken_connection_is_resumed_by_range(file_server: FileServer, target: Path) -> None:
    file_server.breaks_after = [100_000, 50_000]

    fetch(file_server, target)

    assert target.read_bytes() == BODY
    assert file_server.ranges == [None, "bytes=100000-", "bytes=150000-"]


def test_the_asynchronous_client_resumes_and_checks_a_download(file_server: FileServer, target: Path) -> None:
    async def fetched() -> None:
        async with AsyncWclClient(file_server.url) as wcl:
            assert (await wcl.download("some-id", target)).size == len(BODY)
            file_server.body = BODY[::-1]
            with pytest.raises(TransferError, match="sha256"):
                await wcl.download("some-id", target.with_name("other"))

    file_server.breaks_after = [100_000]
    run_apart(fetched())

    assert target.read_bytes() == BODY
    assert file_server.ranges == [None, "bytes=100000-", None]
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_later_call_continues_an_interrupted_download(file_server: FileServer, target: Path) -> None:
    file_server.breaks_after = [100_000, 0, 0, 0, 0]
    with pytest.raises(TransferError, match="100000 of 300000"):
        fetch(file_server, target)
    assert not target.exists()

    done = fetch(file_server, target)

    assert done.resumed_from == 100_000
    assert target.read_bytes() == BODY


def test_a_changed_file_is_downloaded_from_the_start(file_server: FileServer, target: Path) -> None:
    file_server.breaks_after = [100_000, 0, 0, 0, 0]
    with pytest.raises(TransferError):
        fetch(file_server, target)
    file_server.body = os.urandom(200_000)
    file_server.etag = f'"{hashlib.sha256(file_server.body).hexdigest()}"'

    done = fetch(file_server, target)

    assert done.resumed_from == 0
    assert target.read_bytes() == file_server.body


def test_a_server_without_ranges_is_read_from_the_start(file_server: FileServer, target: Path) -> None:
    file_server.breaks_after = [100_000]
    file_server.honours_ranges = False

    fetch(file_server, target)

    assert target.read_bytes() == BODY


def test_wrong_bytes_never_become_the_file(file_server: FileServer, target: Path) -> None:
    file_server.body = b"x" * len(BODY)

    with pytest.raises(TransferError, match="sha256"):
        fetch(file_server, target)

    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("etag", ['"1234"', 'W/"5f3-17"', f'"{"A" * 64}"'])
def test_a_file_without_a_digest_is_not_kept(file_server: FileServer, target: Path, etag: str) -> None:
    file_server.etag = etag

    with pytest.raises(TransferError, match="no sha256"):
        fetch(file_server, target)

    assert not target.parent.exists() or list(target.parent.iterdir()) == []


def test_a_digest_that_a_proxy_marked_is_compared(file_server: FileServer, target: Path) -> None:
    digest = hashlib.sha256(BODY).hexdigest()
    file_server.etag = f'W/"{digest}-gzip"'
    assert fetch(file_server, target).sha256 == digest

    file_server.body = b"x" * len(BODY)
    with pytest.raises(TransferError, match="sha256"):
        fetch(file_server, target.with_name("other"))
    assert not target.with_name("other").exists()


def test_a_partial_file_with_wrong_bytes_is_not_kept(file_server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"an older file")
    part = target.with_name(target.name + ".part")
    part.write_bytes(b"?" * 1000)
    part.with_name(part.name + ".etag").write_text(file_server.etag)

    with pytest.raises(TransferError, match="sha256"):
        fetch(file_server, target)

    assert target.read_bytes() == b"an older file"
    assert not part.exists()
    assert fetch(file_server, target).size == len(BODY)


def test_a_disk_that_is_full_is_one_sentence(
    file_server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(wcl_client.download.os, "fsync", full)

    with pytest.raises(TransferError, match="cannot be written: No space left on device"):
        fetch(file_server, target)

    assert not target.exists()
    monkeypatch.undo()
    assert fetch(file_server, target).resumed_from == len(BODY)


def test_an_artifact_with_wrong_bytes_is_refused(file_server: FileServer) -> None:
    with WclClient(file_server.url) as wcl:
        assert wcl.artifact("job", "probe.png") == BODY
        file_server.body = b"x" * len(BODY)
        with pytest.raises(TransferError, match="sha256"):
            wcl.artifact("job", "probe.png")


def test_a_missing_file_is_not_found(file_server: FileServer, target: Path) -> None:
    with WclClient(file_server.url) as wcl, pytest.raises(NotFoundError):
        wcl.download("missing", target)
