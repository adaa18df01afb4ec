"""Services for the acceptance tests, on SQLite alone and on PostgreSQL with Redis."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.up import free_port
from tests.acceptance.service import Service, eventually


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Redis on a free port, without persistence."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    import redis

    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        client = redis.Redis(port=port)
        try:
            eventually(lambda: _answers(client), 20, "Redis")
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait(timeout=10)


def _answers(client: object) -> bool:
    import redis

    try:
        return bool(client.ping())  # type: ignore[attr-defined]
    except redis.ConnectionError:
        return False


@pytest.fixture(params=["sqlite", "postgres"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    """A started service, in both modes."""
    settings: dict[str, str] = {}
    if request.param == "postgres":
        settings = {
            "WCL_DATABASE_URL": request.getfixturevalue("postgres_url"),
            "WCL_BROKER_URL": request.getfixturevalue("redis_url"),
        }
    yield from _running(Service(tmp_path / "data", **settings))


@pytest.fixture
def small_service(tmp_path: Path) -> Iterator[Service]:
    """A started service on SQLite, where the mode does not matter."""
    yield from _running(Service(tmp_path / "data"))


def _running(service: Service) -> Iterator[Service]:
    try:
        service.start()
        yield service
    finally:
        service.stop()
        print(service.words())
