"""A real server in this process: uvicorn on a thread, so that a test can read its pool, its streams and its rows."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI
from safetensors.numpy import save

from api.app import create_app
from api.http import connections, hosts
from api.http.auth import Failures
from jobs import keys, queries
from jobs.database import Database
from jobs.settings import Settings
from tests.jobs import rows
from tests.waiting import PATIENCE, eventually
from wcl_client.sse import Message, Parser

T = TypeVar("T")
ALL = ("read", "submit", "admin")
SPEC = {"data": {"name": "digits", "image_size": 8}}


class Served:
    """An application that listens on a free port."""

    def __init__(self, database: Database, data_dir: Path, **settings: Any) -> None:
        self.database = database
        self.settings = Settings(data_dir=data_dir, database_url=database.url, **settings)
        self.app: FastAPI = create_app(self.settings, database)
        self.listener = hosts.listen("127.0.0.1", 0)
        self.url = hosts.url_of(self.listener)
        config = connections.config(self.app, timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self.listener],), daemon=True)
        self._clients: list[httpx.Client] = []

    def start(self) -> None:
        self._thread.start()
        eventually(lambda: self._server.started, "the start of the server")

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        self.app.state.stopping.set()
        self._server.should_exit = True
        self._thread.join(timeout=PATIENCE)
        assert not self._thread.is_alive()

    def key(self, *scopes: str) -> str:
        return self.database.write(lambda session: keys.create(session, "test", scopes or ALL)[1])

    def client(self, *scopes: str) -> httpx.Client:
        """Return a client with a key of its own."""
        return self.bare({"Authorization": f"Bearer {self.key(*scopes)}"})

    def bare(self, headers: dict[str, str] | None = None) -> httpx.Client:
        client = httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE, trust_env=False, verify=False)
        self._clients.append(client)
        return client

    def browser(self, *scopes: str) -> httpx.Client:
        """Return a client that signed in by a link and sends only its cookie."""
        link = self.client(*(scopes or ALL)).post("/v1/sign-in-links").json()["url"]
        client = self.bare({"Accept": "text/html"})
        assert client.get(link).status_code == 200
        return client

    @property
    def open_connections(self) -> int:
        return len(self._server.server_state.connections)

    @property
    def cookie(self) -> str:
        """The name of the session cookie."""
        return str(self.app.state.session_cookie)

    def forget_failures(self) -> None:
        self.app.state.failures = Failures()

    def checkpoint(self, content: bytes, run: rows.Run | None = None, step: int = 1) -> str:
        """Return the id of a registered checkpoint whose file has `content`."""
        run = run or rows.Run(self.database, rows.running(self.database))
        key = f"{run.attempt.folder}/step-{step}.safetensors"
        place = self.settings.checkpoints_dir / key
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        run.deliver(rows.checkpoint(step, digest) | {"path": key, "size": len(content)})
        with self.database.read() as session:
            return queries.checkpoints(session, run.job_id)[0].id

    def file_of(self, checkpoint_id: str) -> Path:
        with self.database.read() as session:
            return self.settings.checkpoints_dir / queries.get_checkpoint(session, checkpoint_id).storage_key


def native_checkpoint() -> bytes:
    """Return a small native checkpoint, written without torch."""
    tensors = {
        "model/backbone.conv1.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "model/backbone.bn1.bias": np.ones(3, dtype=np.float32),
        "model/head.weight": np.zeros(5, dtype=np.float32),
        "optimizer/conv1/momentum": np.zeros(12, dtype=np.float32),
    }
    facts = {"spec": {"backbone": {"name": "tiny"}, "data": {"image_size": 8}}, "step": 1, "epoch": 1}
    content: bytes = save(tensors, {"wcl": json.dumps(facts)})
    return content


@contextmanager
def listening(client: httpx.Client, address: str, last_id: str | None = None) -> Iterator[Iterator[Message | None]]:
    """Yield the messages of an open stream; None for a comment."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    with client.stream("GET", address, headers=headers) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        parser = Parser()
        yield (message for line in response.iter_lines() for message in parser.feed(line))


def messages(stream: Iterator[Message | None]) -> Iterator[Message]:
    return (message for message in stream if message is not None)


def assert_problem(response: httpx.Response, status: int, *pointers: str) -> dict[str, Any]:
    """Check for a well-formed problem document with this status and these pointers; return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert {"type", "title", "detail"} <= body.keys()
    assert all(isinstance(body[name], str) and body[name] for name in ("type", "title", "detail"))
    if pointers:
        assert {error["pointer"] for error in body["errors"]} == set(pointers)
    return body
