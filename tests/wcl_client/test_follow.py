"""Following a job's stream over connections that break, against an HTTP server."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rich.console import Console

from wcl_client.api import WclClient
from wcl_client.errors import NotFoundError, Unreachable
from wcl_client.progress import JobView, watch
from wcl_client.sse import Message
from wcl_client.terminal import Terminal
from wcl_client.up import free_port

pytestmark = pytest.mark.server

PROGRESS = {"total_steps": 10, "total_epochs": 2, "images_per_second": 100.0, "eta_seconds": 1.0, "phase": "train"}
JOB = {"id": "j", "name": "WCL", "kind": "pretrain", "status": "running", "progress": None}


def message(event: str, data: Any, message_id: str) -> bytes:
    return f"id: {message_id}\nevent: {event}\ndata: {json.dumps(data)}\n\n".encode()


@dataclass
class Script:
    """The bytes that the server sends on each connection, and the `Last-Event-ID` of each request."""

    connections: list[bytes] = field(default_factory=list)
    last_event_ids: list[str | None] = field(default_factory=list)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    script: Script

    def do_GET(self) -> None:
        if not self.path.endswith("/stream"):
            self._respond(200, json.dumps(JOB | {"status": "succeeded"}).encode(), "application/json")
            return
        self.script.last_event_ids.append(self.headers.get("Last-Event-ID"))
        if not self.script.connections:
            self._respond(404, b'{"title": "Not found", "detail": "no such job"}', "application/problem+json")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(self.script.connections.pop(0))

    def _respond(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@pytest.fixture
def script() -> Iterator[Script]:
    served = Script()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"script": served}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    yield served
    server.shutdown()
    server.server_close()


def broken_stream() -> list[bytes]:
    """Return two connections: the first breaks within a message, which the second sends again."""
    first = message("progress", PROGRESS | {"step": 2, "epoch": 0.4}, "1.1.4") + b": heartbeat\n\nid: 1.1.9\nevent: pro"
    second = message("progress", PROGRESS | {"step": 9, "epoch": 1.8}, "1.1.9")
    points = [{"name": "train/loss", "step": 9, "value": 3.25}]
    second += message("metrics", {"attempt": 1, "points": points}, "1.1.9")
    return [first, second + message("end", {"id": "j", "status": "succeeded"}, "2.1.9")]


def test_a_broken_stream_continues_after_the_last_complete_message(script: Script) -> None:
    script.connections = broken_stream()

    with WclClient(script.url) as client:
        received = [(item.event, item.id) for item in client.follow("j")]

    assert received == [("progress", "1.1.4"), ("progress", "1.1.9"), ("metrics", "1.1.9"), ("end", "2.1.9")]
    assert script.last_event_ids == [None, "1.1.4"]


def test_following_an_absent_job_raises(script: Script) -> None:
    with WclClient(script.url) as client, pytest.raises(NotFoundError, match="no such job"):
        list(client.follow("j"))


def test_following_raises_once_the_server_is_unreachable_for_too_long() -> None:
    with WclClient(f"http://127.0.0.1:{free_port()}") as client, pytest.raises(Unreachable):
        list(client.follow("j", patience_seconds=1))


def test_a_training_that_goes_on_says_what_is_possible_now() -> None:
    job: Any = {"id": "01a22ac7-deef-7ae1-b221-b758db60f8ad", "kind": "pretrain", "status": "running"}
    view = JobView(job | {"expected_time": {"high_seconds": 960}})
    assert view.advice == {}
    for epoch in (3, 6):
        view.take(Message("event", {"type": "checkpoint", "data": {"epoch": epoch}}))
    progress = {"epoch": 2, "total_epochs": 10, "step": 20, "total_steps": 100}
    view.take(Message("progress", progress | {"eta_seconds": 1000}))
    (features,) = view.advice.values()
    assert (
        "a checkpoint of epoch 3 is saved; features of images are possible now: wcl features b758db60f8ad FOLDER"
        in features
    )
    view.take(Message("progress", progress | {"eta_seconds": 1600}))
    assert view.advice["longer"] == (
        "it takes about 33 minutes, much longer than the expected 16 minutes; wcl cancel b758db60f8ad ends it, and its "
        "checkpoints and results stay"
    )
    view.take(Message("job", {"status": "succeeded"}))
    assert view.advice == {}


@pytest.mark.parametrize("is_terminal", [False, True])
def test_watching_shows_progress_and_the_final_status(script: Script, is_terminal: bool) -> None:
    script.connections = broken_stream()
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=160, no_color=True)

    with WclClient(script.url) as client:
        ended = watch(client, [client.job("j") | {"status": "running"}], Terminal(console))  # type: ignore[list-item]

    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert [job["status"] for job in ended] == ["succeeded"]
    for words in ("WCL", "100%", "succeeded", "epoch 1/2", "loss 3.250"):
        assert words in shown
