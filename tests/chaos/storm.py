"""One round of chaos: a fresh service, jobs from clients, faults from several threads, and the ledger at the end."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from jobs import transitions
from jobs.errors import Conflict
from jobs.models import Job
from jobs.status import TERMINAL, Status
from tests.chaos import clock
from tests.chaos.clients import Caller, Clients
from tests.chaos.faults import LEASE, Faults, Target
from tests.chaos.ledger import Ledger
from tests.chaos.stage import Stage
from tests.waiting import eventually

_LOOK_SECONDS = 0.3
_FAULTS_SECONDS = 1800.0  # then the faults stop, so that a stuck round can finish
_REST_SECONDS = 300.0  # for the jobs that are then left
_SUBMITTERS = 2


@dataclass(frozen=True)
class Size:
    """The size of a round; each of `num_hands` threads injects one fault after another.

    `num_trainings` of the jobs are real trainings, on one more worker.
    """

    num_jobs: int = 500
    num_trainings: int = 0
    num_workers: int = 6
    num_servers: int = 2
    num_hands: int = 2
    pause_seconds: float = 2.0
    max_waiting: int = 40


@dataclass
class Outcome:
    """The result of a round; `problems` is empty if every promise was kept.

    `innocent` are attempts that were taken for lost without a fault of their worker.  It costs them a repetition and
    breaks no promise; with a scaled lease an overloaded machine is enough for it, so no test may fail for it.
    """

    seed: int
    database: str
    seconds: float
    jobs: dict[str, int]
    trainings: int
    faults: dict[str, int]
    attempts: int
    reaped: int
    innocent: list[str]
    retries: int
    restarts: int
    problems: list[str]


@dataclass(frozen=True)
class Hit:
    """An injected fault, by the clock of this machine, which is the database's."""

    kind: str
    whom: str
    began_at: float
    ended_at: float


@dataclass
class Storm:
    """A round.

    Args:
        stage: a fresh service.
        seed: of jobs and faults; the machine decides when they meet.
        size: how much happens.
    """

    stage: Stage
    seed: int
    size: Size
    _hits: list[Hit] = field(default_factory=list)
    _broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._is_calm, self._is_over = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._servers = [self._target("s", place) for place in range(self.size.num_servers)]
        self._workers = [self._target("w", place) for place in range(self.size.num_workers)]
        if self.size.num_trainings:
            self._workers.append(self._target("t", 0))
        self._targets = self._servers + self._workers

    def _target(self, letter: str, place: int) -> Target:
        """Put every other node behind a network of its own."""
        is_proxied = self.stage.postgres is not None and place % 2 == 1
        url, proxy = self.stage.proxied(self.stage.url) if is_proxied else (None, None)
        make = self.stage.server if letter == "s" else partial(self.stage.worker, trains=letter == "t")
        clock_file = self.stage.folder / f"clock-{letter}{place}"
        clock.step(clock_file, 0)
        node = make(f"{letter}{place}", url, clock_file=clock_file)
        if letter == "w":
            self.stage.give_small_disk(node)
        return Target(node, proxy, self.stage.failpoints(node))

    def run(self) -> Outcome:
        """Run the round and check the ledger."""
        began = time.monotonic()
        clients = self._open()
        hands = _started(self._hand, range(self.size.num_hands))
        others = _started(lambda caller: clients.run(caller, self._is_over), clients.callers)
        others += _started(lambda _: self._watch(), [None])
        try:
            self._until_calm(clients)
            self._is_calm.set()
            _joined(hands)
            assert not self._broken, "\n".join(self._broken)
            self._until_over()
        finally:
            self._is_calm.set()
            self._is_over.set()
            _joined(hands + others)
            for caller in clients.callers:
                caller.close()
        return self._outcome(clients, time.monotonic() - began)

    def _open(self) -> Clients:
        for target in self._targets:
            target.node.start()
        self.stage.wait_for_workers(*(target.name for target in self._workers))
        environments = [target.node.start_as.environment for target in self._servers]
        key_files = [Path(each["WCL_DATA_DIR"]) / "server.json" for each in environments]
        eventually(lambda: all(file.exists() for file in key_files), "the start of the servers")
        urls = [f"http://127.0.0.1:{each['WCL_PORT']}" for each in environments]
        key_file = Path(environments[0]["WCL_DATA_DIR"]) / "key"
        callers = [Caller(urls, key_file, self._is_over) for _ in range(_SUBMITTERS)]
        return Clients(callers, self.seed, self.size.num_jobs, self.size.num_trainings, self.size.max_waiting)

    def _hand(self, place: int) -> None:
        """Inject one fault after another until the faults stop."""
        faults = Faults(self.stage, self._targets, random.Random(f"{self.seed}/hand {place}"))
        while not self._is_calm.wait(self.size.pause_seconds):
            began = time.time()
            try:
                kind, whom = faults.one()
            except Exception:  # an error of the test itself must not pass unseen
                self._broken.append(f"hand {place}: {traceback.format_exc()}")
                return
            with self._lock:
                self._hits.append(Hit(kind, whom, began, time.time()))

    def _watch(self) -> None:
        """Restart processes that died, as a process manager does."""
        while not self._is_over.wait(_LOOK_SECONDS):
            for target in self._targets:
                if target.lock.acquire(blocking=False):
                    try:
                        if not target.node.is_alive():
                            target.node.start()
                    finally:
                        target.lock.release()

    def _until_calm(self, clients: Clients) -> None:
        """Wait until all jobs are submitted and most have ended, so that the last ones meet faults, too."""
        deadline = time.monotonic() + _FAULTS_SECONDS
        while time.monotonic() < deadline:
            clients.num_ended = self._num(Job.status.in_(TERMINAL)) or clients.num_ended
            if clients.are_done() and len(clients.accepted()) - clients.num_ended <= self.size.max_waiting // 2:
                return
            time.sleep(_LOOK_SECONDS)

    def _until_over(self) -> None:
        """Wait until every job has ended; resume jobs that a client left paused."""
        deadline = time.monotonic() + _REST_SECONDS
        while self._num(Job.status.not_in(TERMINAL)) != 0 and time.monotonic() < deadline:
            self._resume_paused()
            time.sleep(_LOOK_SECONDS)

    def _num(self, where: Any) -> int | None:
        """Return None while a fault delays the response."""
        try:
            with self.stage.database.read() as session:
                return session.execute(select(func.count()).select_from(Job).where(where)).scalar_one()
        except SQLAlchemyError:
            return None

    def _resume_paused(self) -> None:
        with self.stage.database.read() as session:
            paused = session.execute(select(Job.id).where(Job.status == Status.PAUSED)).scalars().all()
        for job_id in paused:
            with suppress(Conflict):
                self.stage.database.write(partial(transitions.resume, job_id=job_id))

    def _outcome(self, clients: Clients, seconds: float) -> Outcome:
        ledger = Ledger(self.stage.database, self.stage.checkpoints_dir, self.stage.flipped)
        accepted = clients.accepted()
        problems = ledger.problems(accepted)
        problems += [
            f"{each.job_id}: the training process of attempt {each.number} of {each.worker_name} was killed"
            for each in ledger.killed()
            if not self._had_fault(each)
        ]
        problems += [surprise for caller in clients.callers for surprise in caller.surprises]
        if not clients.are_done():
            problems.append(f"only {len(accepted)} of {self.size.num_jobs} jobs were accepted")
        return Outcome(
            seed=self.seed,
            database="SQLite" if self.stage.postgres is None else "PostgreSQL",
            seconds=round(seconds, 1),
            jobs=dict(ledger.counts()),
            trainings=sum(each.epochs is None for each in accepted),
            faults=dict(Counter(hit.kind for hit in self._hits)),
            attempts=ledger.num_attempts(),
            reaped=len(ledger.reaped()),
            innocent=self._reaped_by_mistake(ledger),
            retries=sum(caller.num_retries for caller in clients.callers),
            restarts=sum(target.node.starts - 1 for target in self._targets),
            problems=problems,
        )

    def _reaped_by_mistake(self, ledger: Ledger) -> list[str]:
        """Return attempts that were declared lost without a fault at their worker for two leases."""
        return [
            f"{each.job_id}: attempt {each.number} of {each.worker_name} was taken for lost"
            for each in ledger.reaped()
            if not self._had_fault(each)
        ]

    def _had_fault(self, attempt: Any) -> bool:
        """Return whether a fault met the attempt's worker in the last two leases before its end."""
        ended_at = attempt.ended_at / 1000
        return any(
            hit.whom == attempt.worker_name
            and hit.kind != "copied folder"
            and hit.began_at <= ended_at
            and hit.ended_at >= max(attempt.started_at / 1000, ended_at - 2 * LEASE)
            for hit in self._hits
        )


def _started(act: Any, places: Any) -> list[threading.Thread]:
    threads = [threading.Thread(target=act, args=(place,), daemon=True) for place in places]
    for thread in threads:
        thread.start()
    return threads


def _joined(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()
