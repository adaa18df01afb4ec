"""An attempt stays alive for as long as its supervisor is held up by a slow storage, and no longer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from jobs import transitions
from jobs.database import Database
from jobs.settings import Settings
from jobs.storage import LocalStorage
from tests.chaos.proxy import Proxy
from tests.waiting import eventually
from tests.worker.running import Jobs
from tests.worker.test_delivery import Spool, deliver_all
from worker.datasets import Source
from worker.renewal import renewed
from worker.supervisor import Supervisor

HASTY: dict[str, Any] = {"lease_seconds": 0.6}


class HeldUp(LocalStorage):
    """A folder that takes so long for one kind of call that the attempt is renewed three times meanwhile."""

    def __init__(self, spool: Spool, slow: str) -> None:
        super().__init__(spool.storage.root)
        self._spool, self._slow = spool, slow
        self.was_slow = False

    def _wait(self, call: str) -> None:
        if call == self._slow:
            seen = self._spool.attempt().renewals
            eventually(lambda: self._spool.attempt().renewals >= seen + 3, f"renewals during {call}", 30)
            self.was_slow = True

    def put(self, source: Path, key: str) -> None:
        self._wait("put")
        super().put(source, key)

    def path(self, key: str) -> Path:
        self._wait("path")
        return super().path(key)

    def keys(self, job_id: str) -> Iterator[str]:
        self._wait("keys")
        return super().keys(job_id)


@pytest.fixture
def spool(database: Database, tmp_path: Path) -> Spool:
    """A running attempt under a lease that is soon over."""
    spool = Spool(database, tmp_path)
    spool.settings = Settings(data_dir=tmp_path / "data", **HASTY)
    return spool


@pytest.mark.parametrize("slow", ["put", "path", "keys"])
def test_an_attempt_is_renewed_while_its_checkpoint_is_stored(spool: Spool, slow: str) -> None:
    """Copied, read back, and older ones swept."""
    spool.storage = storage = HeldUp(spool, slow)
    spool.write_checkpoint(5, b"weights")
    deliver_all(spool.delivery())

    assert storage.was_slow
    assert [row.step for row in spool.checkpoints()] == [5]


def test_an_attempt_is_renewed_while_the_file_it_begins_from_is_read(spool: Spool) -> None:
    spool.write_checkpoint(5, b"weights")
    deliver_all(spool.delivery())
    with spool.database.read() as session:
        resume = transitions.resume_point(session, spool.job_id)
    assert resume
    (spool.storage.root / resume.path).write_bytes(b"damaged")  # so that no run begins
    claim = transitions.Claim(
        spool.job_id, spool.number, "pretrain", {}, "digits", "d" * 64, resume, None, must_resume=True
    )
    storage = HeldUp(spool, "path")
    sources: dict[str, Source] = {"digits": None}  # type: ignore[dict-item]

    Supervisor(spool.database, storage, spool.settings, sources, threading.Event()).supervise(claim)

    assert storage.was_slow
    assert Jobs(spool.database).get(spool.job_id).status_reason == "missing_checkpoint"


def test_an_outage_of_the_database_during_a_copy_fails_nothing(
    postgres_database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool, url = Spool(postgres_database, tmp_path), make_url(postgres_database.engine.url)
    assert url.port
    proxy = Proxy(url.port)
    behind = Database(url.set(port=proxy.port).render_as_string(hide_password=False))
    settings = Settings(data_dir=tmp_path / "data", **HASTY)
    try:
        with renewed(behind, settings, spool.job_id, spool.number):
            eventually(lambda: spool.attempt().renewals, "a renewal")
            proxy.cut()
            eventually(lambda: "is not renewed" in caplog.text, "a renewal that fails")
            seen = spool.attempt().renewals
            proxy.mend()
            eventually(lambda: spool.attempt().renewals > seen, "a renewal after the outage")
    finally:
        proxy.close()
        behind.dispose()


def test_nothing_is_renewed_after_the_work_or_for_an_attempt_that_has_ended(spool: Spool) -> None:
    with renewed(spool.database, spool.settings, spool.job_id, spool.number):
        eventually(lambda: spool.attempt().renewals, "a renewal")
    eventually(lambda: not renewing(), "the end of the renewals")

    with renewed(spool.database, spool.settings, spool.job_id, spool.number):
        spool.database.write(lambda s: transitions.end_attempt(s, spool.job_id, spool.number, "failed", "worker_lost"))
        eventually(lambda: not renewing(), "the end of the renewals of an attempt that has ended")


def test_a_storage_that_never_answers_does_not_keep_an_attempt_for_ever(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    settings = spool.settings.model_copy(update={"stall_seconds": 0.01})
    with renewed(spool.database, settings, spool.job_id, spool.number):
        eventually(lambda: not renewing(), "giving up")

    assert "for too long" in caplog.text
    assert spool.attempt().renewals == 0


def renewing() -> bool:
    return any(thread.name == "renewal" for thread in threading.enumerate())
