"""The audit has no findings for real histories, and finds every planted defect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Update, delete, update
from sqlalchemy.orm import Session

from jobs import __main__ as command
from jobs import audit, transitions
from jobs.database import Database, new_id
from jobs.events import record
from jobs.models import Attempt, Checkpoint, Event, Job, Log, PointBlock
from jobs.status import Status
from tests.jobs import rows
from tests.jobs.rows import Run, claim, running, submit

Plant = Callable[[Session, str], object]


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


def rich_job(database: Database) -> str:
    """Start a job that failed once, was drained once, has rows of every kind, and runs."""
    run = Run(database, running(database))
    run.deliver(rows.started(), rows.metrics(1, loss=1.0), rows.checkpoint(1), output=[(1, "words")])
    run.end("failed", "killed")
    rows.make_due(database)
    Run(database, claim(database)).deliver(rows.started(1), rows.metrics(2, loss=0.5), rows.end("drained"))
    Run(database, claim(database)).deliver(rows.started(1), rows.checkpoint(3))
    return run.job_id


def test_an_undisturbed_history_has_no_findings(database: Database) -> None:
    rich_job(database)
    for requested in sorted(Status, key=lambda status: status is Status.QUEUED):
        rows.job_in(database, requested)
    cancelled = Run(database, claim(database))
    database.write(lambda session: transitions.cancel(session, cancelled.job_id))
    cancelled.end("failed", "worker_lost")
    before = rows.contents(database)

    report = audit.audit(database)

    assert report.findings == []
    assert (report.jobs, report.attempts) == (len(before["Job"]), len(before["Attempt"]))
    assert report.events == len(before["Event"])
    assert rows.contents(database) == before, "an audit changes nothing"


def test_the_audit_reads_every_batch_of_jobs(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_BATCH", 2)
    ids = [submit(database) for _ in range(5)]
    broken = update(Job).where(Job.id == ids[4]).values(status="paused")
    database.write(lambda session: session.execute(broken))

    report = audit.audit(database)

    assert report.jobs == 5
    assert [(finding.job_id, finding.rule) for finding in report.findings] == [(ids[4], "status")]


def job(**values: Any) -> Plant:
    return lambda session, job_id: session.execute(update(Job).where(Job.id == job_id).values(values))


def attempt(number: int, **values: Any) -> Plant:
    where: Callable[[str], Update] = lambda job_id: update(Attempt).where(  # noqa: E731
        Attempt.job_id == job_id, Attempt.number == number
    )
    return lambda session, job_id: session.execute(where(job_id).values(values))


def event(kind: str, data: dict[str, Any], *more: tuple[str, dict[str, Any]]) -> Plant:
    def plant(session: Session, job_id: str) -> None:
        for each in ((kind, data), *more):
            record(session, job_id, *each)

    return plant


def without(table: type[Any], *conditions: Any) -> Plant:
    return lambda session, job_id: session.execute(delete(table).where(table.job_id == job_id, *conditions))


def a_checkpoint_of(number: int, step: int) -> Plant:
    facts = {"epoch": 1, "storage_key": "x", "sha256": "x", "size": 1, "metrics": {}, "kind": "training"}
    return lambda session, job_id: session.add(
        Checkpoint(id=new_id(), job_id=job_id, attempt=number, step=step, **facts)
    )


def undelivered_point(session: Session, job_id: str) -> None:
    del job_id
    session.execute(update(PointBlock).where(PointBlock.attempt == 2).values(seq=99))


DEFECTS: dict[str, tuple[str, Plant]] = {
    "another status": ("status", job(status="queued")),
    "an end without a terminal status": ("status", job(ended_at=1)),
    "an attempt too many": ("attempts", job(attempt=4)),
    "an event not counted": ("numbering", job(event_seq=3)),
    "an event lost": ("numbering", without(Event, Event.seq == 2)),
    "the last event lost": ("numbering", without(Event, Event.type == "checkpoint", Event.seq > 8)),
    "an illegal transition": ("transition", event("unblocked", {"status": "blocked"})),
    "two ends": (
        "two_ends",
        event("succeeded", {"status": "succeeded", "attempt": 3}, ("failed", {"status": "failed", "attempt": 3})),
    ),
    "an attempt ended twice": ("transition", event("requeued", {"status": "running", "attempt": 3})),
    "another attempt ended": ("attempts", event("requeued", {"status": "queued", "attempt": 2})),
    "an attempt skipped": (
        "attempts",
        event("requeued", {"status": "queued", "attempt": 3}, ("claimed", {"status": "running", "attempt": 5})),
    ),
    "a superseded attempt that reports": ("fence", event("started", {"attempt": 1})),
    "an attempt without a row": ("attempts", without(Attempt, Attempt.number == 2)),
    "an attempt that never ended": ("open_attempts", attempt(1, ended_at=None)),
    "no open attempt of a running job": ("open_attempts", attempt(3, ended_at=1)),
    "failures not counted": ("failures", job(failures=0)),
    "a checkpoint without its event": ("checkpoints", a_checkpoint_of(3, 9)),
    "a checkpoint of no attempt": ("checkpoints", a_checkpoint_of(7, 9)),
    "a checkpoint's row lost": ("checkpoints", without(Checkpoint, Checkpoint.step == 1)),
    "a point of an undelivered record": ("points", undelivered_point),
    "a line of an undelivered log": ("logs", attempt(1, log_seq=0)),
    "lines of no attempt": (
        "logs",
        lambda session, job_id: session.add(Log(job_id=job_id, attempt=9, seq=1, stream="run", line="")),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("defect", list(DEFECTS))
def test_a_planted_defect_is_found(database: Database, defect: str) -> None:
    job_id = rich_job(database)
    others = submit(database)
    rule, plant = DEFECTS[defect]
    database.write(lambda session: plant(session, job_id))

    findings = audit.audit(database).findings

    assert rule in {finding.rule for finding in findings}, findings
    assert {finding.job_id for finding in findings} == {job_id} != {others}


def test_the_operators_command_prints_its_findings(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WCL_DATABASE_URL", database.engine.url.render_as_string(hide_password=False))
    job_id = rich_job(database)
    assert command.main(["audit"]) == 0
    assert "1 job, 3 attempts" in capsys.readouterr().err

    database.write(lambda session: DEFECTS["another status"][1](session, job_id))

    assert command.main(["audit"]) == 1
    assert f"{job_id} status: the row is queued, but its events lead to running" in capsys.readouterr().out
