"""Many clients at a PostgreSQL with few connections: every request is served, and none waits for ever."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg
import pytest

from jobs.database import Database
from tests import servers
from tests.api.served import SPEC, Served
from tests.jobs import rows

pytestmark = [pytest.mark.postgres, pytest.mark.server, pytest.mark.timeout(300)]

CLIENTS, REQUESTS = 100, 4


def test_a_hundred_clients_share_few_connections(tmp_path: Path) -> None:
    """Two servers by their defaults, and as many connections of workers as the rest of `max_connections = 20`."""
    with servers.postgres_server(max_connections="20") as (_, postgres):
        url = postgres.replace("postgresql://", "postgresql+psycopg://", 1)
        databases = [Database(url), Database(url)]
        databases[0].migrate()
        rows.add_dataset(databases[0])
        workers = [psycopg.connect(postgres) for _ in range(7)]
        served = [Served(database, tmp_path / str(n)) for n, database in enumerate(databases)]
        for server in served:
            server.start()
        key = {"Authorization": f"Bearer {served[0].key()}"}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=CLIENTS)
        client = httpx.Client(headers=key, timeout=60, trust_env=False, limits=limits)

        def act(number: int) -> Counter[int]:
            statuses: Counter[int] = Counter()
            for turn in range(REQUESTS):
                address = f"{served[(number + turn) % 2].url}/v1/jobs"
                is_submit = (number + turn) % 3 == 0
                body = {"kind": "pretrain", "spec": SPEC}
                answer = client.post(address, json=body) if is_submit else client.get(address, params={"limit": 5})
                statuses[answer.status_code] += 1
            return statuses

        began = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            statuses = sum(pool.map(act, range(CLIENTS)), Counter())
        seconds = time.monotonic() - began

        assert set(statuses) == {200, 201}, statuses
        assert statuses.total() == CLIENTS * REQUESTS
        assert seconds < 120
        client.close()
        for server in served:
            server.stop()
        for connection in workers:
            connection.close()
        for database in databases:
            database.dispose()
