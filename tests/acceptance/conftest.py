"""Services for the acceptance tests, on SQLite alone and on PostgreSQL with Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.service import Service


@pytest.fixture(params=["sqlite", "postgres"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    """Yield a started service, in both modes."""
    settings = {"WCL_WEBHOOK_NETWORKS": '["127.0.0.0/8"]'}  # of receivers
    if request.param == "postgres":
        settings |= {
            "WCL_DATABASE_URL": request.getfixturevalue("postgres_url"),
            "WCL_BROKER_URL": request.getfixturevalue("redis_url"),
        }
    yield from running(Service(tmp_path / "data", **settings))


@pytest.fixture
def small_service(tmp_path: Path) -> Iterator[Service]:
    """Yield a started service on SQLite, where the mode does not matter."""
    yield from running(Service(tmp_path / "data"))


def running(service: Service) -> Iterator[Service]:
    """Start a service, yield it, and stop it."""
    try:
        service.start()
        yield service
    finally:
        service.stop()
        print(service.words())
