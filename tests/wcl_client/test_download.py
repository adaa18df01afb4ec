"""Downloads against a real HTTP server that breaks connections, forgets ranges and lies."""

from __future__ import annotations

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
from wcl_client.api import WclClient
from wcl_client.errors import NotFoundError, TransferError

pytestmark = pytest.mark.server

BODY = os.urandom(300_000)


@dataclass
class Shelf:
    """One file behind one URL and how its server behaves."""

    body: bytes = BODY
    etag: str = f'"{hashlib.sha256(BODY).hexdigest()}"'
    cuts: list[int] = field(default_factory=list)
    honours_ranges: bool = True
    ranges: list[str | None] = field(default_factory=list)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    shelf: Shelf

    def do_HEAD(self) -> None:
        if "missing" in self.path:
            self.send_error(404)
            return
        self._head(200, len(self.shelf.body))

    def do_GET(self) -> None:
        shelf = self.shelf
        wanted = self.headers.get("Range")
        shelf.ranges.append(wanted)
        is_same = self.headers.get("If-Range") == shelf.etag
        start = int(wanted[6:-1]) if wanted and is_same and shelf.honours_ranges else 0
        rest = shelf.body[start:]
        self._head(206 if start else 200, len(rest))
        if shelf.cuts:
            self.wfile.write(rest[: shelf.cuts.pop(0)])
            self.wfile.flush()
            self.connection.close()
            return
        self.wfile.write(rest)

    def _head(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("ETag", self.shelf.etag)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    monkeypatch.setattr(wcl_client.download.time, "sleep", lambda seconds: None)
    made = Shelf()
    handler = type("Handler", (_Handler,), {"shelf": made})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "model.safetensors"


def fetch(shelf: Shelf, target: Path) -> wcl_client.download.Downloaded:
    with WclClient(shelf.url) as wcl:
        return wcl.download("some-id", target)


def test_bytes_checksum_and_no_leftovers(shelf: Shelf, target: Path) -> None:
    done = fetch(shelf, target)

    assert target.read_bytes() == BODY
    assert done.sha256 == hashlib.sha256(BODY).hexdigest()
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_broken_connection_is_resumed_by_range(shelf: Shelf, target: Path) -> None:
    shelf.cuts = [100_000, 50_000]

    fetch(shelf, target)

    assert target.read_bytes() == BODY
    assert shelf.ranges == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_call_goes_on_where_the_first_stopped(shelf: Shelf, target: Path) -> None:
    shelf.cuts = [100_000, 0, 0, 0, 0]
    with pytest.raises(TransferError, match="100000 of 300000"):
        fetch(shelf, target)
    assert not target.exists()

    done = fetch(shelf, target)

    assert done.resumed_from == 100_000
    assert target.read_bytes() == BODY


def test_a_changed_file_starts_anew(shelf: Shelf, target: Path) -> None:
    shelf.cuts = [100_000, 0, 0, 0, 0]
    with pytest.raises(TransferError):
        fetch(shelf, target)
    shelf.body = os.urandom(200_000)
    shelf.etag = f'"{hashlib.sha256(shelf.body).hexdigest()}"'

    done = fetch(shelf, target)

    assert done.resumed_from == 0
    assert target.read_bytes() == shelf.body


def test_a_server_without_ranges_is_read_from_the_start(shelf: Shelf, target: Path) -> None:
    shelf.cuts = [100_000]
    shelf.honours_ranges = False

    fetch(shelf, target)

    assert target.read_bytes() == BODY


def test_wrong_bytes_never_become_the_file(shelf: Shelf, target: Path) -> None:
    shelf.body = b"x" * len(BODY)

    with pytest.raises(TransferError, match="sha256"):
        fetch(shelf, target)

    assert list(target.parent.iterdir()) == []


def test_a_missing_file_is_not_found(shelf: Shelf, target: Path) -> None:
    with WclClient(shelf.url) as wcl, pytest.raises(NotFoundError):
        wcl.download("missing", target)
