"""A round on two machines with stand-in devices: jobs of 1, 2 and 4 devices, some on both machines, with priorities,
preemption and kills.

Urgent jobs come later, in waves, while the others hold the devices, so that some of these give way.

An observer looks at the living runs all the time: no device may be of two of them.  In the end every job has succeeded
with the right bytes, no job has passed a large one for longer than allowed, and the audit finds nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from sqlalchemy import func, select

from jobs.audit import audit
from jobs.models import Attempt, AttemptDevice, AttemptNode, Checkpoint, Event, Job, Worker
from jobs.status import TERMINAL, Reason
from tests.chaos.body import STEPS_PER_EPOCH
from tests.chaos.processes import Node
from tests.chaos.stage import Stage, spec
from tests.waiting import eventually

MACHINES = {"m0": 4, "m1": 2}  # with their numbers of devices
LARGER = max(MACHINES, key=MACHINES.__getitem__)
NUM_DEVICES = MACHINES[LARGER]
_SIZES = ((1, 1), (1, 1), (1, 1), (2, 1), (2, 1), (4, 1), (1, 2), (2, 2))  # devices on each machine, and machines
_KINDS = ("run", "run", "run", "worker killed", "worker stopped")  # of faults, by their shares
_STEP_MS = (5, 40, 120, 800)
_URGENT_SIZES = ((4, 1), (2, 2))  # of each wave
_URGENT_PRIORITY = 100
_FAULTS_BETWEEN_WAVES = 2
_HOLD_SECONDS = 2.0
_LATE_SECONDS = 5.0  # in which a worker has certainly looked at the queue again, on a machine of its own
_WINDOW_SECONDS = 60.0  # in which it is measured how busy the machine is
_LOOK_SECONDS = 0.02
_RUN_SECONDS = 5.0  # in which a run of a worker is awaited, to be killed
_START_SECONDS = 10.0  # in which a new process certainly gets its own command line
_LIMIT_SECONDS = 1200.0


@dataclass
class Outcome:
    """The result of a round; `problems` is empty if every promise was kept."""

    jobs: dict[str, int]
    attempts: int
    on_several: int  # of these, on both machines
    most_at_once: int
    preempted: int
    kills: dict[str, int]
    seconds: float
    problems: list[str]


@dataclass
class Round:
    """A round.

    Args:
        stage: a fresh service.
        seed: of jobs and faults; the machine decides when they meet.
        num_jobs: submitted at once.
        pause_seconds: between two faults.
        num_faults: of runs and workers.
        num_waves: of urgent jobs.
    """

    stage: Stage
    seed: int
    num_jobs: int = 200
    pause_seconds: float = 2.0
    num_faults: int = 40
    num_waves: int = 15
    _problems: list[str] = field(default_factory=list)
    _kills: Counter[str] = field(default_factory=Counter)
    _most_at_once: int = 0
    _processes: dict[int, _Seen] = field(default_factory=dict)
    _looks: list[_Look] = field(default_factory=list)

    def run(self) -> Outcome:
        began, random_ = time.monotonic(), random.Random(self.seed)
        workers = [self._worker(name, number).start() for number, name in enumerate(MACHINES)]
        self.stage.wait_for_workers(*MACHINES)
        ids = [self._submit(random_, place) for place in range(self.num_jobs)]
        is_over = threading.Event()
        observer = threading.Thread(target=self._observe, args=(is_over,), daemon=True)
        observer.start()
        try:
            self._inject(workers, random_, ids)
            for node in workers:
                self._restart(node)
            eventually(lambda: self._num_left() == 0, "the end of all jobs", _LIMIT_SECONDS)
        finally:
            is_over.set()
            observer.join()
        self._check(ids)
        with self.stage.database.read() as session:
            counts = Counter(session.execute(select(Job.status)).scalars())
            attempts = session.execute(select(func.count()).select_from(Attempt)).scalar_one()
            on_several = session.execute(
                select(func.count()).where(AttemptNode.node > 0, AttemptNode.renewals > 0)
            ).scalar_one()
            preempted = session.execute(
                select(func.count()).where(
                    Event.type == "requeued", Event.data["reason"].as_string() == Reason.PREEMPTED
                )
            ).scalar_one()
        seconds = round(time.monotonic() - began, 1)
        return Outcome(
            dict(counts),
            attempts,
            on_several,
            self._most_at_once,
            preempted,
            dict(self._kills),
            seconds,
            self._problems,
        )

    def facts(self) -> dict[str, Any]:
        """Run the round, and return its outcome; what did not happen in a round is not shown by it."""
        outcome = asdict(self.run())
        if not outcome["preempted"]:
            outcome["problems"].append("no job gave way to an urgent one")
        outcome["problems"] += [f"no fault of the kind: {kind}" for kind in absent_kinds(outcome["kills"])]
        return outcome

    def _worker(self, name: str, number: int) -> Node:
        offer = {"WCL_DEVICES": str(MACHINES[name]), "WCL_HOLD_SECONDS": str(_HOLD_SECONDS)}
        return self.stage.worker(name, settings=offer | {"WCL_NODE_ADDRESS": f"127.0.0.{2 + number}"})

    def _submit(self, random_: random.Random, place: int) -> str:
        gpus, nodes = random_.choice(_SIZES)
        requested = spec(place, epochs=random_.randint(1, 3), step_ms=random_.choice(_STEP_MS))
        requested |= {"nodes": nodes, "processes": 1}
        return self.stage.submit(
            requested,
            gpus=gpus,
            priority=random_.randint(0, 2),
            preemptible=random_.random() < 0.7,
        )

    def _submit_urgent(self, ids: list[str]) -> None:
        """Submit a wave of jobs: one needs all devices of the larger machine, one needs devices of both machines."""
        for gpus, nodes in _URGENT_SIZES:
            requested = spec(len(ids), epochs=1, step_ms=5) | {"nodes": nodes, "processes": 1}
            ids.append(self.stage.submit(requested, gpus=gpus, priority=_URGENT_PRIORITY))

    # --- faults ----------------------------------------------------------------------------------------------------

    def _inject(self, workers: list[Node], random_: random.Random, ids: list[str]) -> None:
        for number in range(self.num_faults):
            time.sleep(self.pause_seconds)
            if number % _FAULTS_BETWEEN_WAVES == 0 and number < _FAULTS_BETWEEN_WAVES * self.num_waves:
                self._submit_urgent(ids)
                time.sleep(self.pause_seconds)  # some jobs have given way and saved before the next fault
            if self._num_left() == 0:
                return
            for each in workers:
                self._restart(each)
            node = random_.choice(workers)
            kind = random_.choice(_KINDS)
            if kind != "run":
                node.end(signal.SIGKILL if kind == "worker killed" else signal.SIGTERM)
            elif not self._kill_run(node, random_):
                continue
            self._kills[kind] += 1

    def _restart(self, node: Node) -> None:
        if not node.is_alive():
            node.start()

    def _kill_run(self, node: Node, random_: random.Random) -> bool:
        """Kill a run of a worker, and return whether there was one: runs are short, so one may have to be awaited."""
        deadline = time.monotonic() + _RUN_SECONDS
        while time.monotonic() < deadline:
            if runs := node.trainings():
                with suppress(psutil.Error):  # it has just ended
                    random_.choice(runs).kill()
                    return True
            time.sleep(_LOOK_SECONDS)
        return False

    def _num_left(self) -> int:
        with self.stage.database.read() as session:
            return session.execute(select(func.count()).where(Job.status.not_in(TERMINAL))).scalar_one()

    # --- promises --------------------------------------------------------------------------------------------------

    def _observe(self, is_over: threading.Event) -> None:
        """Look for living runs that share a device."""
        seen: dict[str, set[str]] = {}
        while not is_over.wait(_LOOK_SECONDS):
            began, used = time.monotonic(), time.thread_time()
            runs = self._living()
            for folder in runs.keys() - seen.keys():
                seen[folder] = self._devices(folder)
            self._most_at_once = max(self._most_at_once, sum(bool(seen[folder]) for folder in runs))
            users: dict[str, list[str]] = {}
            for folder in runs:
                for device in seen[folder]:
                    users.setdefault(device, []).append(folder)
            for device, folders in users.items():
                # All still run, so they ran at once.
                if len(folders) > 1 and all(_is_alive(runs[folder]) for folder in folders):
                    self._problems.append(f"{device} is of {', '.join(sorted(folders))} at once")
            self._looks.append(_Look(1000 * time.time(), time.monotonic() - began, time.thread_time() - used))

    def _living(self) -> dict[str, psutil.Process]:
        """Return the runs of the machines, also those whose worker is dead, by the folder of their attempt.

        Each look reads the command lines of young processes only: reading all of them would keep a core busy.  It
        reads them by itself, since an object of psutil for each takes ten times as long.
        """
        pids, now = map(int, filter(str.isdigit, os.listdir("/proc"))), time.monotonic()
        self._processes = {pid: self._processes.get(pid) or _Seen(now) for pid in pids}
        for pid, seen in self._processes.items():
            if seen.run is None and now - seen.since < _START_SECONDS:
                with suppress(OSError, psutil.Error):  # it has ended
                    seen.folder = self._folder_of(Path(f"/proc/{pid}/cmdline").read_bytes())
                    seen.run = psutil.Process(pid) if seen.folder else None
        return {seen.folder: seen.run for seen in self._processes.values() if seen.run and _is_alive(seen.run)}

    def _folder_of(self, command: bytes) -> str:
        """Return the attempt's folder below that of its machine; nothing for other commands."""
        if os.fsencode(self.stage.folder) not in command:
            return ""
        words = os.fsdecode(command).split("\0")
        places = [f"{self.stage.folder / name / 'attempts'}/" for name in MACHINES]
        return next((each.removeprefix(place) for each in words for place in places if each.startswith(place)), "")

    def _devices(self, folder: str) -> set[str]:
        job_id, _, attempt = folder.partition("/")
        name, _, node = attempt.partition(".")
        held = select(AttemptDevice.device).where(
            AttemptDevice.job_id == job_id,
            AttemptDevice.attempt == int(name.partition("-")[0]),
            AttemptDevice.node == int(node or "0"),
        )
        with self.stage.database.read() as session:
            return set(session.execute(held).scalars())

    def _check(self, ids: list[str]) -> None:
        self._problems += [f"{each.job_id}: {each.message}" for each in audit(self.stage.database).findings]
        for place, job_id in enumerate(ids):
            job = self.stage.job(job_id)
            if job.status != "succeeded":
                self._problems.append(f"{job_id} is {job.status}: {job.status_message}")
            elif self._last_file(job_id) != _last_content(place, job.spec["epochs"]):
                self._problems.append(f"{job_id}: its last checkpoint has other bytes")
        self._problems += self._starved()

    def _last_file(self, job_id: str) -> bytes:
        newest = select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step.desc()).limit(1)
        with self.stage.database.read() as session:
            row = session.execute(newest).scalar_one()
        content = Path(self.stage.checkpoints_dir / row.storage_key).read_bytes()
        return content if hashlib.sha256(content).hexdigest() == row.sha256 else b"damaged"

    def _starved(self) -> list[str]:
        """Return a problem for each job that has passed a large one for longer than the large one may be passed.

        A job is large if it needs all devices of the larger machine.  For all that time it was the first in the queue,
        and this machine's worker lived.  Only first waits count, as later ones begin with a backoff, and only jobs that
        this worker has started.
        """
        with self.stage.database.read() as session:
            jobs = {job.id: job for job in session.execute(select(Job)).scalars()}
            events = session.execute(select(Event).order_by(Event.job_id, Event.seq)).scalars().all()
            began = select(Worker.started_at).where(Worker.name == LARGER).order_by(Worker.started_at)
            starts = session.execute(began).scalars().all()
        waits = [wait for _, each in groupby(events, lambda event: event.job_id) for wait in _waits(list(each))]

        def place(job_id: str) -> tuple[int, int]:
            return -jobs[job_id].priority, jobs[job_id].queue_place

        problems = []
        for event in events:
            if event.type != "claimed" or event.data["worker"] != LARGER:
                continue
            late = 1000 * _LATE_SECONDS * self._slowdown(event.at)
            since = event.at - 1000 * _HOLD_SECONDS - late
            waiting = [wait for wait in waits if wait.until > since and wait.since < event.at]
            first = min(waiting, key=lambda wait: place(wait.job_id))
            is_large = (jobs[first.job_id].gpus, jobs[first.job_id].nodes) == (NUM_DEVICES, 1)
            lasts = first.is_first and first.since < since and event.at < first.until
            restarts = [start for start in starts if since <= start < event.at + late]
            if is_large and lasts and starts[0] < since and not restarts and jobs[event.job_id].gpus:
                problems.append(f"{event.job_id} has passed {first.job_id}, which waits for {NUM_DEVICES} devices")
        return problems

    def _slowdown(self, at: float) -> float:
        """Return how many times as long as alone the observer has taken for its looks in the minute before a time."""
        looks = [look for look in self._looks if at - 1000 * _WINDOW_SECONDS < look.at <= at]
        return max(1.0, sum(look.seconds for look in looks) / max(1e-9, sum(look.cpu_seconds for look in looks)))


class _Look(NamedTuple):
    """A look of the observer: its end, in milliseconds since 1970, and how long it took."""

    at: float
    seconds: float
    cpu_seconds: float


@dataclass
class _Seen:
    """A process of this machine: when it was seen first, and the run that it is."""

    since: float
    run: psutil.Process | None = None
    folder: str = ""


@dataclass(frozen=True)
class _Wait:
    """A time in which a job waited, in milliseconds of the database's clock."""

    job_id: str
    since: float
    until: float
    is_first: bool


def _waits(events: list[Event]) -> Iterator[_Wait]:
    """Yield the waits of one job from its events in order."""
    since, is_first = float(events[0].at), True
    for event in events:
        if event.type == "claimed":
            yield _Wait(event.job_id, since, event.at, is_first)
            is_first = False
        elif event.type == "requeued":
            since = event.at


def absent_kinds(kills: Mapping[str, int]) -> list[str]:
    """Return the kinds of faults that did not happen."""
    return [kind for kind in dict.fromkeys(_KINDS) if not kills.get(kind)]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _last_content(seed: int, epochs: int) -> bytes:
    return json.dumps({"seed": seed, "step": epochs * STEPS_PER_EPOCH}).encode()
