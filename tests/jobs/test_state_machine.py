"""Any sequence of transitions against a small model of a job: the promises hold in every order.

`WCL_TEST_STATE_RUNS` makes it longer: so many runs of 50 steps on each database, for example 2000.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import select

from jobs import audit, submission, transitions, workers
from jobs.database import Database, new_id
from jobs.errors import Conflict, Superseded
from jobs.models import Attempt, Event, Job
from jobs.status import INFRASTRUCTURE, TERMINAL, Reason, Status
from jobs.transitions import outcomes
from tests import servers
from tests.jobs import rows
from tests.jobs.rows import Run

MAX_FAILURES = 3
EXAMPLES = {"sqlite": 40, "postgres": 30}
LONG_RUNS = int(os.environ.get("WCL_TEST_STATE_RUNS", 0))
MAX_SECONDS = 1_000  # a limit that is reached only when the test moves the time
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
    """The expected state of a job."""

    status: Status
    priority: int
    needs: list[str]
    until: str = "success"
    preemptible: bool = False
    max_seconds: int | None = None
    parent: str | None = None
    attempt: int = 0
    is_due: bool = True
    is_over_time: bool = False
    reason: str | None = None
    steps: list[int] = field(default_factory=list)  # of registered checkpoints
    failures: int = 0
    requested: set[str] = field(default_factory=set)
    points: int = 0
    ends: int = 0

    def settle(self, outcome: str, reason: str | None) -> None:
        infrastructure = reason in INFRASTRUCTURE
        stopped = infrastructure or outcome in ("drained", "paused")
        self.failures += infrastructure
        if outcome == "succeeded":
            self.status, self.reason = Status.SUCCEEDED, None
        elif outcome == "cancelled" or (stopped and "cancel" in self.requested):
            self.status, self.reason = Status.CANCELLED, Reason.USER
        elif stopped and self.is_over_time:
            self.status, self.reason = Status.FAILED, Reason.TIMEOUT
        elif outcome == "paused" or (stopped and "pause" in self.requested):
            self.status, self.reason = Status.PAUSED, Reason.USER
        elif outcome == "drained":
            self.reason = Reason.PREEMPTED if "preempt" in self.requested else Reason.WORKER_STOPPED
            self.status = Status.QUEUED
        elif infrastructure and self.failures < MAX_FAILURES:
            self.status, self.reason, self.is_due = Status.QUEUED, reason, False
        else:
            self.status, self.reason = Status.FAILED, reason
        self.requested.clear()
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
            self.workers: dict[str, bool] = {}  # id to whether it drains

        @initialize(target=runs)
        def begin(self) -> Run:
            """Start with a preemptible job, so that some sequences use preemption."""
            self.submit(-1, True, False)
            return self.claim_by_a_new_worker()

        @rule(target=jobs, priority=st.integers(-1, 1), preemptible=st.booleans(), is_limited=st.booleans())
        def submit(self, priority: int, preemptible: bool, is_limited: bool) -> str:
            limit = MAX_SECONDS if is_limited else None
            job_id = rows.submit(database, priority=priority, preemptible=preemptible, max_seconds=limit)
            self.models[job_id] = Model(Status.QUEUED, priority, [], preemptible=preemptible, max_seconds=limit)
            return job_id

        def is_met(self, needed: Model, until: str) -> bool:
            return needed.status is Status.SUCCEEDED or (until == "checkpoint" and bool(needed.steps))

        @rule(target=jobs, needed=jobs, until=st.sampled_from(["success", "checkpoint"]))
        def submit_behind(self, needed: str, until: str) -> str:
            met = self.is_met(self.models[needed], until)
            if self.models[needed].status in (Status.FAILED, Status.CANCELLED) and not met:
                return needed
            only = frozenset({needed} if until == "checkpoint" else ())
            job_id = rows.submit(database, after=(needed,), after_checkpoint=only)
            self.models[job_id] = Model(Status.QUEUED if met else Status.BLOCKED, 0, [needed], until)
            return job_id

        @rule(target=jobs, job_id=jobs)
        def retry(self, job_id: str) -> str:
            model = self.models[job_id]
            if model.status not in (Status.FAILED, Status.CANCELLED):
                with pytest.raises(Conflict):
                    database.write(lambda session: submission.retry(session, job_id, None))
                return job_id
            return self.copied(job_id, database.write(lambda session: submission.retry(session, job_id, None)).id)

        @rule(target=jobs, job_id=jobs)
        def clone(self, job_id: str) -> str:
            copy = database.write(lambda session: submission.clone(session, job_id, {"seed": 9}, None))
            assert (copy.spec["seed"], copy.resume_checkpoint_id) == (9, None)
            return self.copied(job_id, copy.id)

        def copied(self, job_id: str, copy: str) -> str:
            model = self.models[job_id]
            self.models[copy] = Model(
                Status.QUEUED,
                model.priority,
                [],
                preemptible=model.preemptible,
                max_seconds=model.max_seconds,
                parent=job_id,
            )
            return copy

        @rule(job_id=jobs, priority=st.integers(-2, 2))
        def change_priority(self, job_id: str, priority: int) -> None:
            model = self.models[job_id]
            if model.status not in (Status.BLOCKED, Status.QUEUED, Status.PAUSED):
                with pytest.raises(Conflict):
                    database.write(lambda session: submission.change(session, job_id, priority=priority))
                return
            database.write(lambda session: submission.change(session, job_id, priority=priority))
            model.priority = priority

        @rule()
        def wait(self) -> None:
            """End the backoff of every job."""
            rows.make_due(database)
            for model in self.models.values():
                model.is_due = True

        @rule(run=runs)
        def let_time_pass(self, run: Run) -> None:
            """Let the attempt reach its job's limit of running time."""
            if not self.is_open(run):
                return
            run.ran_ms += MAX_SECONDS * 1000
            run.send([])
            self.models[run.job_id].is_over_time = self.models[run.job_id].max_seconds is not None

        @rule(target=runs)
        def claim_by_a_new_worker(self) -> Run:
            facts = rows.worker(id=new_id())
            database.write(lambda session: workers.register(session, facts, 1, []))
            self.workers[facts.id] = False
            return self.claim(facts.id)

        @rule(target=runs, place=st.integers(0, 3))
        def claim_again(self, place: int) -> Run:
            if not self.workers:
                return Run(database, rows.UNKNOWN_CLAIM)
            return self.claim(list(self.workers)[place % len(self.workers)])

        @rule(place=st.integers(0, 3))
        def drain(self, place: int) -> None:
            if self.workers:
                worker_id = list(self.workers)[place % len(self.workers)]
                database.write(lambda session: workers.drain(session, worker_id))
                self.workers[worker_id] = True

        def claim(self, worker_id: str) -> Run:
            waiting = [
                (-model.priority, place, job_id)
                for place, (job_id, model) in enumerate(self.models.items())
                if model.status is Status.QUEUED and model.is_due and not self.workers[worker_id]
            ]
            claimed = rows.try_claim(database, rows.worker(id=worker_id))
            if not waiting:
                assert claimed is None
                return Run(database, rows.UNKNOWN_CLAIM)  # all its writes are superseded
            assert claimed is not None
            assert claimed.job_id == min(waiting)[2]
            model = self.models[claimed.job_id]
            model.status, model.attempt, model.reason = Status.RUNNING, model.attempt + 1, None
            assert claimed.number == model.attempt
            assert (claimed.resume.step if claimed.resume else None) == self.resume_step(claimed.job_id)
            return Run(database, claimed)

        def resume_step(self, job_id: str) -> int | None:
            """Return the step of the job's last checkpoint, or else of the one that it was started from."""
            with database.read() as session:
                began_from = session.get_one(Job, job_id).resume_checkpoint_id
            steps = self.models[job_id].steps
            if steps or began_from is None:
                return max(steps, default=None)
            parent = self.models[job_id].parent
            assert parent is not None
            return self.resume_step(parent)

        def is_open(self, run: Run) -> bool:
            model = self.models.get(run.job_id)
            return model is not None and model.status is Status.RUNNING and model.attempt == run.number

        @rule(run=runs, count=st.integers(0, 3))
        def deliver(self, run: Run, count: int) -> None:
            lines = [rows.metrics(step, loss=1.0) for step in range(count)]
            if self.is_open(run):
                requested = self.models[run.job_id].requested
                requests = run.deliver(*lines)
                assert (requests.cancel, requests.pause) == ("cancel" in requested, "pause" in requested)
                assert requests.preempt == ("preempt" in requested)
                assert requests.timeout == self.models[run.job_id].is_over_time
                self.models[run.job_id].points += count
            else:
                with pytest.raises(Superseded):
                    run.deliver(*lines)

        @rule(run=runs)
        def save(self, run: Run) -> None:
            line = rows.checkpoint(run.seq + 1)
            if self.is_open(run):
                run.deliver(line)
                self.models[run.job_id].steps.append(line["step"])
            else:
                with pytest.raises(Superseded):
                    run.deliver(line)

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
            result = [each for each in rows.attempts(database, run.job_id) if each.number == run.number]
            renewals = result[0].renewals - stale if result else 0
            reaped = database.write(lambda s: transitions.reap(s, run.attempt, renewals))
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
                model.requested.add("cancel")
            else:
                model.status, model.reason = Status.CANCELLED, Reason.USER
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
                model.requested.add("pause")
            else:
                model.status, model.reason = Status.PAUSED, Reason.USER

        @rule(job_id=jobs)
        def resume(self, job_id: str) -> None:
            model = self.models[job_id]
            if model.status is not Status.PAUSED:
                with pytest.raises(Conflict):
                    database.write(lambda session: transitions.resume(session, job_id))
                return
            database.write(lambda session: transitions.resume(session, job_id))
            model.status, model.reason, model.is_due = Status.QUEUED, None, True

        @rule()
        def preempt(self) -> None:
            """Preempt a job and compare with the rule: the victim is preemptible and has a lower priority."""
            chosen = database.write(transitions.preempt)
            if chosen is None:
                return
            (victim_id,) = chosen.job_ids  # each of these jobs takes one slot
            victim, urgent = self.models[victim_id], self.models[chosen.for_job_id]
            assert victim.status is Status.RUNNING
            assert victim.preemptible
            assert (urgent.status, urgent.is_due) == (Status.QUEUED, True)
            assert urgent.priority > victim.priority
            assert urgent.reason != Reason.PREEMPTED
            assert not any("preempt" in model.requested for model in self.models.values())
            victim.requested.add("preempt")

        @rule()
        def unblock(self) -> None:
            before = {job_id: model.status for job_id, model in self.models.items()}
            database.write(transitions.unblock)
            for model in self.models.values():
                if model.status is not Status.BLOCKED:
                    continue
                unmet = [other for other in model.needs if not self.is_met(self.models[other], model.until)]
                if any(before[other] in (Status.FAILED, Status.CANCELLED) for other in unmet):
                    model.status, model.reason = Status.FAILED, Reason.UPSTREAM_FAILED
                    model.count_end()
                elif not unmet:
                    model.status = Status.QUEUED

        @invariant()
        def rows_match_the_model(self) -> None:
            with database.read() as session:
                jobs = list(session.execute(select(Job)).scalars())
                attempts = list(session.execute(select(Attempt)).scalars())
                events = list(session.execute(select(Event).order_by(Event.seq)).scalars())
            assert {job.id for job in jobs} == set(self.models)
            for job in jobs:
                model = self.models[job.id]
                assert (job.status, job.attempt, job.failures) == (model.status, model.attempt, model.failures)
                assert (job.status_reason, job.priority) == (model.reason, model.priority)
                assert (job.not_before is None) == model.is_due
                assert (job.cancel_requested_at is not None) == ("cancel" in model.requested)
                assert (job.pause_requested_at is not None) == ("pause" in model.requested)
                assert (job.preempt_requested_at is not None) == ("preempt" in model.requested)
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
            assert len(rows.stored_points(database)) == sum(model.points for model in self.models.values())

        def teardown(self) -> None:
            """Check the events; they are never removed, so a finding in the middle remains until the end."""
            assert audit.audit(database).findings == []

    return Machine


@pytest.fixture(autouse=True)
def long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make backoffs very long: on a slow machine a real one of seconds would end unnoticed by the model."""
    for name in ("_FIRST_WAIT_SECONDS", "_LONGEST_WAIT_SECONDS"):
        monkeypatch.setattr(outcomes, name, 1e6)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_any_sequence_of_transitions_keeps_the_promises(database: Database) -> None:
    run_state_machine_as_test(
        machine(database),
        settings=settings(
            max_examples=LONG_RUNS or EXAMPLES["sqlite" if database.engine.dialect.name == "sqlite" else "postgres"],
            stateful_step_count=50 if LONG_RUNS else 30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
