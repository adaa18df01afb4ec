"""The queue of a large installation in virtual time: people, priorities, preemption, and jobs on several machines.

    python benchmarks/simulation.py [--workers 1000] [--hours 16] [--seed 0]

The rules are those of the service: `jobs.submission` adds the jobs, `worker.patience` and `jobs.transitions` decide
what each worker claims, keeps its devices for and gives up.  The database is SQLite, and reads a clock that the
simulation sets.  Simulated are arrivals, lengths of jobs and the moments at which workers look at the queue: after a
submission, at the end of a job, when the patience of a worker is over, and each ten minutes.

With a tenth of the workers, each rule is also switched off in a simulation of its own, which shows what it is good for.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import math
import multiprocessing
import random
import sqlite3
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the rows of the tests

from sqlalchemy import bindparam, event, update
from sqlalchemy.orm import Session

from jobs import gangs, policies, transitions, workers
from jobs.database import Database
from jobs.devices import Free
from jobs.eligibility import WorkerFacts
from jobs.models import Job
from jobs.settings import Settings
from jobs.transitions import Claim
from tests.jobs import rows
from worker.patience import Patience

HOUR: Final = 3_600.0
_START: Final = 1_800_000_000.0  # unix time
_LOOK_SECONDS, _REPORT_SECONDS, _RECONCILE_SECONDS = 600.0, 300.0, 60.0
_LEAVE_SECONDS: Final = 5.0  # in which a run saves and leaves on request
_HOLD_SECONDS: Final = Settings().hold_seconds
_WARM_UP, _FLOOD_AT = 0.25, 0.5  # shares of the time
_FLOOD_JOBS: Final = 3  # for each worker
_UNIX_EPOCH_AS_JULIAN_DAY = 2440587.5


@dataclass(frozen=True)
class Shape:
    """A kind of job.

    Attributes:
        share: of all jobs.
        median_hours: of its length, which is distributed log-normally.
    """

    name: str
    gpus: int
    nodes: int
    share: float
    median_hours: float
    priority: int = 0
    preemptible: bool = False


# Assumed: most jobs are small, most of the time goes into large ones.
SHAPES: Final = (
    Shape("1 GPU", 1, 1, 0.40, 1.0),
    Shape("1 GPU, preemptible", 1, 1, 0.25, 1.5, preemptible=True),
    Shape("1 GPU, urgent", 1, 1, 0.05, 0.25, priority=10),
    Shape("2 GPUs", 2, 1, 0.12, 1.5),
    Shape("4 GPUs", 4, 1, 0.10, 2.0),
    Shape("8 GPUs", 8, 1, 0.05, 3.0),
    Shape("2 x 4 GPUs", 4, 2, 0.02, 3.0),
    Shape("4 x 8 GPUs", 8, 4, 0.01, 4.0),
)
PEOPLE: Final = {"anna": 0.4, "ben": 0.3, "cora": 0.2, "dora": 0.1}  # each with a share of the jobs
_FLOODER: Final = "emil"
MACHINES: Final = {8: 0.1, 4: 0.2, 2: 0.2, 1: 0.5}  # GPUs of a worker, and the share of such workers
_SIGMA: Final = 0.8  # of the logarithm of the length
_LOAD: Final = 0.95  # of all GPUs that the arriving jobs need


@dataclass
class Task:
    """A job of the simulation, in seconds of virtual time."""

    shape: Shape
    owner: str
    submitted: float
    left: float
    first_start: float | None = None
    is_flood: bool = False


@dataclass
class Run:
    """An open attempt, with the devices that it holds by the id of their worker."""

    claim: Claim
    devices: dict[str, tuple[str, ...]]
    began: float
    ends: float


@dataclass
class Machine:
    """A worker, the devices that its runs use, and the job that its row says that it keeps the others for."""

    facts: WorkerFacts
    patience: Patience
    used: set[str] = field(default_factory=set)
    announced: str | None = None

    @property
    def free(self) -> Free:
        return self.facts.all_free.without(self.used)


@dataclass
class Outcome:
    """What a simulation measured.

    Attributes:
        busy: share of the GPU time that jobs used after the warm-up, while jobs arrived.
        waits: seconds from submission to the first start by shape; a job that has not started counts until the end.
        own_waits: the same by person, of jobs of one GPU that came with the flood or after it.
        longest: the longest wait in seconds.
        preemptions: number of attempts that gave way.
        looks: milliseconds of CPU of each look of a worker at the queue.
        jobs, gpus: their number.
    """

    busy: float
    waits: dict[str, list[float]]
    own_waits: dict[str, list[float]]
    longest: float
    preemptions: int
    looks: list[float]
    jobs: int
    gpus: int


class Simulation:
    """One installation.

    Args:
        folder: of the database.
        hold_seconds: `WCL_HOLD_SECONDS` of the workers.
        fair_share_days: `WCL_FAIR_SHARE_DAYS`.
        preempts: whether jobs give way.
    """

    def __init__(
        self,
        folder: Path,
        num_workers: int,
        hours: float,
        seed: int,
        hold_seconds: float,
        fair_share_days: int,
        preempts: bool,
    ) -> None:
        self._random = random.Random(seed)
        self.now, self._end = 0.0, hours * HOUR
        self._warm_at, self._flood_at = _WARM_UP * self._end, _FLOOD_AT * self._end
        self._order = count()
        self._calendar: list[tuple[float, int, Callable[[], None]]] = []
        self._preempts = preempts
        self.database = self._open(folder)
        self.database.write(lambda session: policies.store(session, Settings(fair_share_days=fair_share_days)))
        rows.add_dataset(self.database)
        self.machines = {
            each.id: Machine(each, Patience(hold_seconds, lambda: self.now)) for each in self._workers(num_workers)
        }
        self.num_gpus = sum(machine.facts.gpus for machine in self.machines.values())
        self.tasks: dict[str, Task] = {}
        self.waiting: dict[str, Task] = {}
        self.runs: dict[str, Run] = {}
        self._used_seconds, self._looks, self._preemptions = 0.0, list[float](), 0

    def _open(self, folder: Path) -> Database:
        database = Database(f"sqlite:///{folder}/simulation.db")

        @event.listens_for(database.engine, "connect")
        def configure(connection: Any, record: Any) -> None:
            del record
            assert isinstance(connection, sqlite3.Connection)
            connection.create_function(
                "julianday", 1, lambda _: (_START + self.now) / 86_400 + _UNIX_EPOCH_AS_JULIAN_DAY
            )
            connection.execute("PRAGMA synchronous = OFF")

        database.migrate()
        return database

    def _workers(self, num_workers: int) -> list[WorkerFacts]:
        result = []
        sizes = [gpus for gpus, share in MACHINES.items() for _ in range(round(share * num_workers))]
        self._random.shuffle(sizes)
        for number, gpus in enumerate(sizes):
            address = f"10.{number // 65_536}.{number // 256 % 256}.{number % 256}" if gpus >= 4 else None
            facts = rows.worker(
                id=f"00000000-0000-7000-8000-{number:012}", name=f"w{number}", gpus=gpus, address=address, cpu_slots=0
            )
            self.database.write(lambda session, facts=facts: workers.register(session, facts, 1, ()))
            self.database.write(
                lambda session, facts=facts: workers.heartbeat(session, facts.id, None, address=facts.address)
            )
            result.append(facts)
        return result

    def run(self) -> Outcome:
        self._plan_arrivals()
        for seconds, act in (
            (_LOOK_SECONDS, self._look_everywhere),
            (_REPORT_SECONDS, self._report_progress),
            (_RECONCILE_SECONDS, self._reconcile),
        ):
            self._each(seconds, act)
        while self._calendar and self._calendar[0][0] <= self._end:
            self.now, _, act = heapq.heappop(self._calendar)
            act()
        self.now = self._end
        return self._outcome()

    # --- the calendar ---

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._calendar, (when, next(self._order), act))

    def _each(self, seconds: float, act: Callable[[], None]) -> None:
        def again() -> None:
            act()
            self._at(self.now + seconds, again)

        self._at(self.now + seconds, again)

    def _plan_arrivals(self) -> None:
        spread = math.exp(_SIGMA**2 / 2)  # mean over median
        gpu_seconds = sum(s.share * s.gpus * s.nodes * s.median_hours * HOUR * spread for s in SHAPES)
        rate = _LOAD * self.num_gpus / gpu_seconds
        when = 0.0
        # The first hours begin with full machines, as an installation in use.
        for _ in range(round(0.8 * rate * 2 * HOUR)):
            self._at(self._random.uniform(0, 60), partial(self._submit, self._new_task()))
        while (when := when + self._random.expovariate(rate)) < self._end:
            self._at(when, partial(self._submit, self._new_task()))
        flood = SHAPES[0]
        for _ in range(_FLOOD_JOBS * len(self.machines)):
            self._at(self._flood_at, partial(self._submit, (flood, _FLOODER, self._length(flood))))

    def _new_task(self) -> tuple[Shape, str, float]:
        (shape,) = self._random.choices(SHAPES, [each.share for each in SHAPES])
        (owner,) = self._random.choices(list(PEOPLE), list(PEOPLE.values()))
        return shape, owner, self._length(shape)

    def _length(self, shape: Shape) -> float:
        return min(24 * HOUR, shape.median_hours * HOUR * math.exp(self._random.gauss(0, _SIGMA)))

    # --- what people, workers and servers do ---

    def _submit(self, new: tuple[Shape, str, float]) -> None:
        shape, owner, length = new
        job_id = rows.submit(
            self.database,
            spec={"nodes": shape.nodes, "batch_size": 256},
            gpus=shape.gpus,
            created_by=owner,
            priority=shape.priority,
            preemptible=shape.preemptible,
        )
        task = Task(shape, owner, self.now, length, is_flood=owner == _FLOODER)
        self.tasks[job_id] = self.waiting[job_id] = task
        # A wake-up reaches one worker after the other until one takes the job.
        fitting = [each for each in self.machines.values() if each.free.holds(shape.gpus)]
        if len(fitting) >= shape.nodes:
            self._random.shuffle(fitting)
            for machine in fitting[:8]:
                if self._look(machine):
                    break
        elif shape.priority > 0:
            self._reconcile()

    def _look(self, machine: Machine, *, is_second: bool = False) -> bool:
        """Let a worker claim jobs until none fits; return whether it has claimed one.

        Args:
            is_second: whether this is the look after the worker's patience with a larger job is over.
        """
        num_claimed = 0
        while (most := machine.free.most_gpus) and any(task.shape.gpus <= most for task in self.waiting.values()):
            began = time.process_time()
            claim = self._claim(machine)
            self._looks.append(1_000 * (time.process_time() - began))
            if claim is None:
                if not is_second and any(machine.facts.gpus >= task.shape.gpus for task in self.waiting.values()):
                    self._at(self.now + _HOLD_SECONDS + 1, partial(self._look, machine, is_second=True))
                break
            num_claimed += 1
            self._start(claim)
        return num_claimed > 0

    def _claim(self, machine: Machine) -> Claim | None:
        """Look at the queue and claim as `worker.slots.Slots` does."""
        facts, patience, free = machine.facts, machine.patience, machine.free
        with self.database.read() as session:
            avoided = patience.avoided(session, facts, free)
            held = patience.held(session, facts, free)
            is_claimable = transitions.is_claimable(session, facts, free, held, avoided)
            leader = None if facts.address is None else gangs.startable(session, facts, free, avoided).leader
        if facts.address is not None and (kept := patience.kept_for) != machine.announced:
            self.database.write(lambda session: workers.keep_for(session, facts.id, kept))
            machine.announced = kept
        if leader is not None and leader != facts.id:
            self._at(self.now + 1, partial(self._look, self.machines[leader]))
        if not is_claimable:
            return None

        def take(session: Session) -> Claim | None:
            avoided = patience.avoided(session, facts, free)
            return transitions.claim(session, facts, free, patience.held(session, facts, free), avoided)

        return self.database.write(take)

    def _start(self, claim: Claim) -> None:
        task = self.waiting.pop(claim.job_id)
        task.first_start = self.now if task.first_start is None else task.first_start
        with self.database.read() as session:
            nodes = [gangs.devices_of(session, claim.job_id, claim.number, node) for node in range(claim.num_nodes)]
        devices = {names[0].rpartition("-")[0]: names for names in nodes}
        for worker_id, names in devices.items():
            machine = self.machines[worker_id]
            assert machine.used.isdisjoint(names), "two jobs on one device"
            machine.used.update(names)
            if claim.num_nodes > 1:
                free = machine.facts.all_free
                self.database.write(partial(transitions.begin_node, worker_id=worker_id, free=free))
        run = self.runs[claim.job_id] = Run(claim, devices, self.now, self.now + task.left)
        self._at(run.ends, partial(self._finish, run, "succeeded"))
        for machine in self.machines.values():
            if machine.patience.kept_for == claim.job_id:  # its devices are for others again
                self._at(self.now + 1, partial(self._look, machine))

    def _finish(self, run: Run, outcome: str) -> None:
        job_id = run.claim.job_id
        if self.runs.get(job_id) is not run:
            return  # it has given way meanwhile
        del self.runs[job_id]
        task, ran = self.tasks[job_id], self.now - run.began
        self._used_seconds += self._within(run.began, self.now) * task.shape.gpus * task.shape.nodes
        end = partial(transitions.end_attempt, attempt=run.claim.attempt, outcome=outcome, ran_ms=round(1_000 * ran))
        self.database.write(end)
        if outcome == "drained":
            task.left -= ran
            self.waiting[job_id] = task
        for worker_id, names in run.devices.items():
            self.machines[worker_id].used.difference_update(names)
        for worker_id in run.devices:
            self._look(self.machines[worker_id])

    def _reconcile(self) -> None:
        """Let a server choose jobs that give way, as each second; they save and leave."""
        if not self._preempts or not any(task.shape.priority > 0 for task in self.waiting.values()):
            return
        chosen = self.database.write(transitions.preempt)
        for job_id in chosen.job_ids if chosen else ():
            self._preemptions += 1
            self._at(self.now + _LEAVE_SECONDS, partial(self._finish, self.runs[job_id], "drained"))
        if chosen:
            self._at(self.now + _LEAVE_SECONDS + 1, self._reconcile)

    def _report_progress(self) -> None:
        """Store the time left of all running jobs, as their reports do."""
        if not self.runs:
            return
        left = [{"job": job_id, "eta": {"eta_seconds": run.ends - self.now}} for job_id, run in self.runs.items()]
        jobs = Job.__table__
        report = update(jobs).where(jobs.c.id == bindparam("job")).values(progress=bindparam("eta"))
        self.database.write(lambda session: session.connection().execute(report, left).rowcount)

    def _look_everywhere(self) -> None:
        for machine in self.machines.values():
            if not self.waiting:
                return
            self._look(machine)

    # --- results ---

    def _within(self, start: float, end: float) -> float:
        return max(0.0, min(end, self._end) - max(start, self._warm_at))

    def _outcome(self) -> Outcome:
        for run in self.runs.values():
            shape = self.tasks[run.claim.job_id].shape
            self._used_seconds += self._within(run.began, self._end) * shape.gpus * shape.nodes
        waits, own = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
        for task in self.tasks.values():
            waited = (self._end if task.first_start is None else task.first_start) - task.submitted
            if task.submitted >= self._warm_at and not task.is_flood:
                waits[task.shape.name].append(waited)
            if task.shape.gpus == 1 and task.shape.priority == 0 and task.submitted >= self._flood_at:
                own[task.owner].append(waited)
        possible = (self._end - self._warm_at) * self.num_gpus
        busy = self._used_seconds / possible
        return Outcome(
            busy,
            dict(waits),
            dict(own),
            max(map(max, waits.values())),
            self._preemptions,
            self._looks,
            len(self.tasks),
            self.num_gpus,
        )


# --- the report ------------------------------------------------------------------------------------------------------

VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "as it is": {},
    "no devices kept for large jobs": {"hold_seconds": 1e9},
    "no fair share": {"fair_share_days": 0},
    "no preemption": {"preempts": False},
}


def simulate(num_workers: int, hours: float, seed: int, changes: dict[str, Any]) -> Outcome:
    """Return the outcome of one simulation; the changes switch rules off."""
    rules: dict[str, Any] = {"hold_seconds": _HOLD_SECONDS, "fair_share_days": 7, "preempts": True} | changes
    with tempfile.TemporaryDirectory(prefix="wcl-simulation-") as folder:
        simulation = Simulation(Path(folder), num_workers, hours, seed, **rules)
        gc.freeze()  # a garbage collection looks at none of the objects that stay
        try:
            return simulation.run()
        finally:
            simulation.database.dispose()


def _simulate_named(task: tuple[str, int, float, int, dict[str, Any]]) -> tuple[str, Outcome]:
    name, num_workers, hours, seed, changes = task
    return name, simulate(num_workers, hours, seed, changes)


def _main() -> None:
    from measure.report import save_results, setting  # it loads torch, which the simulations do not need

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--hours", type=float, default=16.0, help="of virtual time; jobs arrive in all of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="simulations at once")
    options = parser.parse_args()
    few = options.workers // 10
    runs = {f"{options.workers:,} workers": (options.workers, {})}
    runs |= {f"{few:,} workers, {name}": (few, changes) for name, changes in VARIANTS.items()}
    tasks = [(name, workers, options.hours, options.seed, changes) for name, (workers, changes) in runs.items()]
    with multiprocessing.get_context("spawn").Pool(options.processes, maxtasksperchild=1) as pool:
        ready: dict[str, Outcome] = {}
        for name, outcome in pool.imap_unordered(_simulate_named, tasks):
            ready[name] = outcome
            print(_table({name: outcome}, options.hours, options.seed), flush=True)
        outcomes = {name: ready[name] for name in runs}
    table = _table(outcomes, options.hours, options.seed)
    print(table)
    facts = {name: _facts(outcome) for name, outcome in outcomes.items()}
    save_results("simulation", setting() | {"hours": options.hours, "simulations": facts}, table)


def _facts(outcome: Outcome) -> dict[str, Any]:
    waits = {name: [_quantile(waits, q) for q in (0.5, 0.99, 1)] for name, waits in outcome.waits.items()}
    own = {name: [_quantile(waits, 0.5), max(waits)] for name, waits in outcome.own_waits.items()}
    looks = [_quantile(outcome.looks, q) for q in (0.5, 0.99)]
    facts = {name: getattr(outcome, name) for name in ("gpus", "jobs", "busy", "longest", "preemptions")}
    return facts | {"waits": waits, "own_waits": own, "look_ms": looks, "looks": len(outcome.looks)}


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:,.1f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:,.1f} h"


def _table(outcomes: dict[str, Outcome], hours: float, seed: int) -> str:
    lines = ["| | " + " | ".join(outcomes) + " |", "|---|" + "---|" * len(outcomes)]

    def add(name: str, cell: Callable[[Outcome], str]) -> None:
        lines.append(f"| {name} | " + " | ".join(map(cell, outcomes.values())) + " |")

    add("GPUs", lambda outcome: f"{outcome.gpus:,}")
    add("jobs", lambda outcome: f"{outcome.jobs:,}")
    add("GPUs in use", lambda outcome: f"{100 * outcome.busy:.1f} %")
    for shape in SHAPES:
        add(f"wait: {shape.name}", partial(_waits_of, shape.name))
    add("longest wait of the others' 1-GPU jobs after the flood", _longest_of_others)
    add("attempts that gave way", lambda outcome: f"{outcome.preemptions:,}")
    add("CPU of a look at the queue", lambda outcome: "{:.0f} / {:.0f} ms".format(*_facts(outcome)["look_ms"]))
    lines += [
        "",
        f"{hours:.0f} hours, seed {seed}. Jobs need {100 * _LOAD:.0f} % of the GPUs. Waits: median / 99 % / longest, "
        f"of jobs submitted after {_WARM_UP * hours:.0f} hours; one that has not started counts until the end. "
        f"At hour {_FLOOD_AT * hours:.0f} one person submits {_FLOOD_JOBS} jobs of 1 GPU for each worker beside this, "
        "which are not in the waits. "
        "A look: median / 99 %.",
    ]
    return "\n".join(lines)


def _waits_of(name: str, outcome: Outcome) -> str:
    waits = outcome.waits.get(name)
    return " / ".join(_minutes(_quantile(waits, share)) for share in (0.5, 0.99, 1)) if waits else ""


def _longest_of_others(outcome: Outcome) -> str:
    return _minutes(max((max(waits) for name, waits in outcome.own_waits.items() if name != _FLOODER), default=0.0))


if __name__ == "__main__":
    _main()
