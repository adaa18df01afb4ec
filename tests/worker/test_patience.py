"""What a worker waits for, by its own clock: a gang that another worker starts."""

from __future__ import annotations

from typing import Any

import pytest

from jobs import transitions, workers
from jobs.database import Database
from jobs.eligibility import WorkerFacts
from jobs.transitions import Claim
from tests.jobs import rows
from worker.patience import Patience


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


def register(database: Database, number: int) -> WorkerFacts:
    address = f"10.0.0.{number}"
    facts = rows.worker(id=f"00000000-0000-7000-8000-{number:012}", name=f"w{number}", address=address)
    database.write(lambda session: workers.register(session, facts, number, []))
    database.write(lambda session: workers.heartbeat(session, facts.id, None, address=address))
    return facts


class Poller:
    """A worker that claims jobs with a clock of its own."""

    def __init__(self, database: Database, facts: WorkerFacts) -> None:
        self._database, self._facts, self.now = database, facts, 0.0
        self._patience = Patience(60, lambda: self.now)

    def poll(self, seconds: float = 0.0) -> Claim | None:
        """Try to claim a job now, and each ten seconds for so long; return the first one."""
        end = self.now + seconds
        while True:
            if (claim := self._database.write(self._claim)) is not None or self.now >= end:
                return claim
            self.now += 10

    def _claim(self, session: Any) -> Claim | None:
        avoided = self._patience.avoided(session, self._facts, self._facts.all_free)
        return transitions.claim(session, self._facts, None, None, avoided)


def test_a_worker_waits_for_one_that_starts_no_gang_only_for_a_while(database: Database) -> None:
    _, second = register(database, 1), register(database, 2)
    gang = rows.submit(database, spec={"nodes": 2, "batch_size": 240})
    small, later = rows.submit(database), rows.submit(database)
    worker = Poller(database, second)

    assert worker.poll(20) is None, "the other worker is about to start the gang"
    claim = worker.poll(10)
    assert claim is not None
    assert claim.job_id == small
    rows.Run(database, claim).end("succeeded")
    claim = worker.poll()
    assert claim is not None
    assert claim.job_id == later
    rows.Run(database, claim).end("succeeded")
    rows.submit(database)
    worker.now += 600
    assert worker.poll() is None, "it waits for the other worker once more"
    assert rows.status(database, gang) == "queued"


def test_a_worker_that_was_busy_begins_to_wait_anew(database: Database) -> None:
    _, second = register(database, 1), register(database, 2)
    rows.submit(database, spec={"nodes": 2, "batch_size": 240})
    rows.submit(database)
    worker = Poller(database, second)

    assert worker.poll() is None
    worker.now += 3600
    assert worker.poll(20) is None


def test_other_workers_start_a_gang_without_one_that_does_not(database: Database) -> None:
    _, second, third = (register(database, number) for number in (1, 2, 3))
    gang = rows.submit(database, spec={"nodes": 2, "batch_size": 240})

    claim = Poller(database, second).poll(30)

    assert claim is not None
    assert (claim.job_id, claim.node) == (gang, 0)
    assert database.write(lambda session: transitions.begin_node(session, third.id, third.all_free)) is not None
