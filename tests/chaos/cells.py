"""Downtime cells: one part of a service is down for a while, in one state of a job.

Each job still ends correctly, soon after the part is back, and loses no attempt without need.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jobs import transitions
from jobs.models import Attempt
from tests.chaos.ledger import Accepted, Ledger
from tests.chaos.processes import Node
from tests.chaos.proxy import Proxy
from tests.chaos.stage import REAL, SCALE, SCALED, Stage, Theatre, arm, spec
from tests.waiting import eventually

SECONDS = (0, 5, 20, 60, 300)  # of a service whose lease is 60 s
PARTS = ("server", "worker", "PostgreSQL", "Redis", "disk full")
STATES = ("queued", "claiming", "running", "checkpointing", "finishing", "cancelling")
_ENDLESS = 100_000  # epochs
_FULL_DISK = "storage.before_rename storage.after_rename supervisor.run_file"
_HANG_AT = {  # where a worker is blocked in a state
    "claiming": "commit.before:Slots._claim",
    "checkpointing": "storage.before_rename",
    "finishing": "delivery.end",
}


@dataclass(frozen=True)
class Cell:
    """One combination; `seconds` are unscaled, and `is_real` runs it without scaling."""

    part: str
    state: str
    seconds: int
    is_real: bool = False


# Each part for both more and less than it takes to lose a lease of 60 s, and each state.
REAL_CELLS = [
    Cell("server", "running", 300, is_real=True),
    Cell("server", "claiming", 20, is_real=True),
    Cell("worker", "checkpointing", 300, is_real=True),
    Cell("worker", "running", 20, is_real=True),
    Cell("PostgreSQL", "running", 300, is_real=True),
    Cell("PostgreSQL", "finishing", 20, is_real=True),
    Cell("Redis", "queued", 300, is_real=True),
    Cell("Redis", "cancelling", 20, is_real=True),
    Cell("disk full", "checkpointing", 300, is_real=True),
    Cell("disk full", "finishing", 20, is_real=True),
]


def all_cells() -> list[Cell]:
    """Return every combination."""
    return [Cell(part, state, seconds) for seconds, part, state in itertools.product(SECONDS, PARTS, STATES)]


def run_all(theatre: Theatre, cells: list[Cell], side_by_side: int) -> dict[Cell, list[str]]:
    """Return the problems of each cell; run several at a time."""
    with ThreadPoolExecutor(side_by_side) as pool:
        return dict(zip(cells, pool.map(lambda cell: problems_of(theatre, cell), cells), strict=True))


def problems_of(theatre: Theatre, cell: Cell) -> list[str]:
    """Start a service, bring its job into the state, stop the part, start it again, and check the ledger."""
    name = f"cell-{cell.part}-{cell.state}-{cell.seconds}{'-real' * cell.is_real}".replace(" ", "-").lower()
    with theatre.stage(name, **(REAL if cell.is_real else SCALED)) as stage:
        return _Scene(stage, cell).play()


class _Scene:
    def __init__(self, stage: Stage, cell: Cell) -> None:
        self._stage, self._cell = stage, cell
        url, self._network = stage.proxied(stage.url)
        broker, self._broker = stage.proxied(stage.settings["WCL_BROKER_URL"])
        self._server = stage.server("server", url, settings={"WCL_BROKER_URL": broker})
        self._worker = stage.worker("worker", url, settings={"WCL_BROKER_URL": broker})
        self._failpoints = stage.failpoints(self._worker)

    def play(self) -> list[str]:
        cell = self._cell
        self._server.start()
        requested = spec(1, _ENDLESS if cell.state == "cancelling" else 3, 200)
        if cell.state == "queued":
            job_id = self._stage.submit(requested)
        else:
            self._start_worker()
            if cell.state in _HANG_AT:
                arm(self._failpoints, f"{_HANG_AT[cell.state]} hang 300")
            job_id = self._stage.submit(requested)
            self._until_in_state(job_id)
        with self._part_away():
            (self._failpoints / "release").touch()
            if cell.state == "queued" and cell.part != "worker":
                self._worker.start()
            time.sleep(cell.seconds / (1 if cell.is_real else SCALE))
        if not self._worker.is_alive():
            self._worker.start()
        self._stage.wait_for_end(job_id)
        return self._problems(job_id)

    def _start_worker(self) -> None:
        self._worker.start()
        self._stage.wait_for_workers("worker")

    def _until_in_state(self, job_id: str) -> None:
        if self._cell.state in _HANG_AT:
            eventually((self._failpoints / "fired").exists, self._cell.state)
            return
        eventually(lambda: self._num_delivered(job_id) > 1, "a delivery")
        if self._cell.state == "cancelling":
            self._stage.database.write(lambda session: transitions.cancel(session, job_id))

    def _num_delivered(self, job_id: str) -> int:
        with self._stage.database.read() as session:
            attempt = session.get(Attempt, (job_id, 1))
            return 0 if attempt is None else attempt.delivered_seq

    @contextmanager
    def _part_away(self) -> Iterator[None]:
        away: dict[str, Callable[[], Iterator[None]]] = {
            "server": lambda: self._node_away(self._server),
            "worker": lambda: self._node_away(self._worker),
            "PostgreSQL": lambda: self._network_away(self._network),
            "Redis": lambda: self._network_away(self._broker),
            "disk full": self._disk_full,
        }
        yield from away[self._cell.part]()

    def _node_away(self, node: Node) -> Iterator[None]:
        node.end(signal.SIGKILL)
        yield
        node.start()

    def _network_away(self, network: Proxy) -> Iterator[None]:
        network.cut()
        yield
        network.mend()

    def _disk_full(self) -> Iterator[None]:
        failing: Path = self._failpoints / "failing"
        failing.write_text(_FULL_DISK)
        yield
        failing.unlink()

    def _problems(self, job_id: str) -> list[str]:
        cell = self._cell
        job = self._stage.job(job_id)
        may_end = {"cancelled"} if cell.state == "cancelling" else {"succeeded"}
        accepted = Accepted(job_id, 1, 3, frozenset(may_end))
        result = Ledger(self._stage.database, self._stage.checkpoints_dir).problems([accepted])
        # A full disk pauses a job: this uses an attempt, but is not a failure.
        if cell.part != "worker" and (job.failures or (job.attempt > 1 and cell.part != "disk full")):
            result.append(f"it took {job.attempt} attempts and {job.failures} failures")
        return result
