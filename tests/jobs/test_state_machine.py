"""Any sequence of transitions against a small model of a job: whatever comes in whatever order, the promises hold."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import select

from jobs import transitions
from jobs.database import Database
from jobs.errors import Conflict, Superseded
from jobs.models import Attempt, Event, Job, Point
from jobs.status import INFRASTRUCTURE, TERMINAL, Reason, Status
from tests import servers
from tests.jobs import rows
from tests.jobs.rows import Run

MAX_FAILURES = 3
EXAMPLES = {"sqlite": 40, "postgres": 30}
OUTCOMES = [
    ("succeeded", None),
    ("failed", "bad_data"),
    ("failed", "killed"),
    ("cancelled", None),
    ("paused", None),
    ("drained", None),
]


@dataclass
class Model:
    """What a job has to be."""

    status: Status
    priority: int
    needs: list[str]
    attempt: int = 0
    failures: int = 0
    asked: set[str] = field(default_factory=set)
    points: int = 0
    ends: int = 0

    def settle(self, outcome: str, reason: str | None) -> None:
        infrastructure = reason in INFRASTRUCTURE
        stopped = infrastructure or outcome in ("drained", "paused")
        self.failures += infrastructure
        if outcome == "succeeded":
            self.status = Status.SUCCEEDED
        elif outcome == "cancelled" or (stopped and "cancel" in self.asked):
            self.status = Status.CANCELLED
        elif outcome == "paused" or (stopped and "pause" in self.asked):
            self.status = Status.PAUSED
        elif outcome == "drained" or (infrastructure and self.failures < MAX_FAILURES):
            self.status = Status.QUEUED
        else:
            self.status = Status.FAILED
        self.asked.clear()
        self.count_end()

    def count_end(self) -> None:
        self.ends += self.status in TERMINAL


def machine(database: Database) -> type[RuleBasedStateMachine]:
    class Machine(RuleBasedStateMachine):
        jobs: Bundle[str] = Bundle("jobs")
        runs: Bundle[Run] = Bundle("runs")

        def __init__(self) -> None:
            super().__init__()
            servers.clear(database)
            rows.add_dataset(database)
            self.models: dict[str, Model] = {}

        @rule(target=jobs, priority=st.integers(-1, 1))
        def submit(self, priority: int) -> str:
            job_id = rows.submit(database, priority=priority)
            self.models[job_id] = Model(Status.QUEUED, priority, [])
            return job_id

        @rule(target=jobs, needed=jobs)
        def submit_behind(self, needed: str) -> str:
            if self.models[needed].status in (Status.FAILED, Status.CANCELLED):
                return needed
            job_id = rows.submit(database, after=(needed,))
            waits = self.models[needed].status is not Status.SUCCEEDED
            self.models[job_id] = Model(Status.BLOCKED if waits else Status.QUEUED, 0, [needed])
            return job_id

        @rule(target=runs)
        def claim(self) -> Run:
            waiting = [
                (-model.priority, job_id) for job_id, model in self.models.items() if model.status is Status.QUEUED
            ]
            claimed = rows.try_claim(database)
            if not waiting:
                assert claimed is None
                return Run(database, rows.CLAIM_OF_NOBODY)  # everything it does is superseded
            assert claimed is not None
            assert claimed.job_id == min(waiting)[1]
            model = self.models[claimed.job_id]
            model.status, model.attempt = Status.RUNNING, model.attempt + 1
            assert claimed.number == model.attempt
            return Run(database, claimed)

        def is_open(self, run: Run) -> bool:
            model = self.models.get(run.job_id)
            return model is not None and model.status is Status.RUNNING and model.attempt == run.number

        @rule(run=runs, count=st.integers(0, 3))
        def deliver(self, run: Run, count: int) -> None:
            lines = [rows.metrics(step, loss=1.0) for step in range(count)]
            if self.is_open(run):
                asked = self.models[run.job_id].asked
                requests = run.deliver(*lines)
                assert (requests.cancel, requests.pause) == ("cancel" in asked, "pause" in asked)
                self.models[run.job_id].points += count
            else:
                with pytest.raises(Superseded):
                    run.deliver(*lines)

        @rule(run=runs)
        def deliver_again(self, run: Run) -> None:
            lines = [{"seq": seq, **rows.metrics(0, loss=1.0)} for seq in range(1, run.seq + 1)]
            if self.is_open(run):
                run.send(lines)
            else:
                with pytest.raises(Superseded):
                    run.send(lines)

        @rule(run=runs, outcome=st.sampled_from(OUTCOMES), by_line=st.booleans())
        def end(self, run: Run, outcome: tuple[str, str | None], by_line: bool) -> None:
            def act() -> None:
                if by_line:
                    run.deliver(rows.end(*outcome))
                else:
                    run.end(*outcome)

            if self.is_open(run):
                act()
                self.models[run.job_id].settle(*outcome)
            else:
                with pytest.raises(Superseded):
                    act()

        @rule(run=runs, stale=st.booleans())
        def reap(self, run: Run, stale: bool) -> None:
            found = [each for each in rows.attempts(database, run.job_id) if each.number == run.number]
            renewals = found[0].renewals - stale if found else 0
            reaped = database.write(lambda s: transitions.reap(s, run.job_id, run.number, renewals))
            assert reaped == (self.is_open(run) and not stale)
            if reaped:
                self.models[run.job_id].settle("failed", Reason.WORKER_LOST)

        @rule(job_id=jobs)
        def cancel(self, job_id: str) -> None:
            model = self.models[job_id]
            if model.status in TERMINAL:
                with pytest.raises(Conflict):
                    database.write(lambda session: transitions.cancel(session, job_id))
                return
            database.write(lambda session: transitions.cancel(session, job_id))
            if model.status is Status.RUNNING:
                model.asked.add("cancel")
            else:
                model.status = Status.CANCELLED
                model.count_end()

        @rule(job_id=jobs)
        def pause(self, job_id: str) -> None:
            model = self.models[job_id]
            if model.status not in (Status.QUEUED, Status.RUNNING):
                with pytest.raises(Conflict):
                    database.write(lambda session: transitions.pause(session, job_id))
                return
            database.write(lambda session: transitions.pause(session, job_id))
            if model.status is Status.RUNNING:
                model.asked.add("pause")
            else:
                model.status = Status.PAUSED

        @rule(job_id=jobs)
        def resume(self, job_id: str) -> None:
            model = self.models[job_id]
            if model.status is not Status.PAUSED:
                with pytest.raises(Conflict):
                    database.write(lambda session: transitions.resume(session, job_id))
                return
            database.write(lambda session: transitions.resume(session, job_id))
            model.status = Status.QUEUED

        @rule()
        def unblock(self) -> None:
            before = {job_id: model.status for job_id, model in self.models.items()}
            database.write(transitions.unblock)
            for model in self.models.values():
                if model.status is not Status.BLOCKED:
                    continue
                needed = [before[other] for other in model.needs]
                if any(status in (Status.FAILED, Status.CANCELLED) for status in needed):
                    model.status = Status.FAILED
                    model.count_end()
                elif all(status is Status.SUCCEEDED for status in needed):
                    model.status = Status.QUEUED

        @invariant()
        def rows_are_what_the_model_says(self) -> None:
            with database.read() as session:
                jobs = list(session.execute(select(Job)).scalars())
                attempts = list(session.execute(select(Attempt)).scalars())
                events = list(session.execute(select(Event).order_by(Event.seq)).scalars())
                points = list(session.execute(select(Point)).scalars())
            assert {job.id for job in jobs} == set(self.models)
            for job in jobs:
                model = self.models[job.id]
                assert (job.status, job.attempt, job.failures) == (model.status, model.attempt, model.failures)
                assert (job.cancel_requested_at is not None) == ("cancel" in model.asked)
                assert (job.pause_requested_at is not None) == ("pause" in model.asked)
                own = [attempt for attempt in attempts if attempt.job_id == job.id]
                still_open = [attempt.number for attempt in own if attempt.ended_at is None]
                assert still_open == ([model.attempt] if model.status is Status.RUNNING else [])
                assert sorted(attempt.number for attempt in own) == list(range(1, model.attempt + 1))
                story = [event for event in events if event.job_id == job.id]
                assert [event.seq for event in story] == list(range(1, job.event_seq + 1))
                ends = [event for event in story if event.data.get("status") in TERMINAL]
                assert len(ends) == model.ends <= 1
                assert not ends or story[-1] is ends[0]
                assert story[-1].data.get("status", job.status) == job.status
                assert (job.ended_at is not None) == (model.status in TERMINAL)
            assert len(points) == sum(model.points for model in self.models.values())

    return Machine


def test_any_sequence_of_transitions_keeps_the_promises(database: Database) -> None:
    run_state_machine_as_test(
        machine(database),
        settings=settings(
            max_examples=EXAMPLES["sqlite" if database.engine.dialect.name == "sqlite" else "postgres"],
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
